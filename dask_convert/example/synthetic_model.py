"""The synthetic count matrix as a pure function of (parameters, row): no files, no processes.

**The model.** Gene `j` has a log-normal abundance; each cell type multiplies every gene by a mild
log-normal factor and its own marker genes by a strong one. Cell `i` has a log-normal library size,
times the depth of its batch. The product `m` is the mean of a negative binomial count with shape
2, that is, of a Poisson count whose rate is gamma-distributed. With `q = m / (m + 2)`, `p = 1 - q`
its survival function is closed-form, `P(X > k) = q**(k + 1) * (1 + (k + 1) * p)`, so ONE uniform
number per (cell, gene) decides both whether the entry is stored and, by walking down the survival
function, its value. The inverse is exact, tail included; only stored entries pay for the walk.

**The random numbers** are a hash of (seed, row, column), not a stream. Any row can be made
anywhere, any number of times, and comes out the same: the matrix does not depend on the number of
processes or on how rows are cut into tasks. The loops over the columns of a row and over the
first steps of the walk have no branch and vectorise: half a nanosecond per (cell, gene) to count,
20 ns per non-zero to make.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

_Function = TypeVar("_Function", bound="Callable[..., Any]")

_ABUNDANCE_SIGMA = 2.2  # of log abundance over genes; sets how skewed the genes are
_TYPE_SIGMA = 0.4  # of log fold change of an ordinary gene between cell types
_MARKER_SHARE = 0.02  # of the genes are markers of a given type
_MARKER_LOG_FOLD = 2.0  # mean log fold change of a marker
_LIBRARY_SIGMA = 0.45  # of log library size over cells
_BATCH_DEPTHS = (1.0, 0.8, 1.25, 0.95, 1.1, 0.7)
_CALIBRATION_ROWS = 1024
_UNROLLED_COUNT = 5  # counts up to here are found without a branch

N_BATCHES = len(_BATCH_DEPTHS)


class Cells(NamedTuple):
    """Rows of the matrix before their entries are drawn; one element per row."""

    keys: npt.NDArray[np.uint64]
    types: npt.NDArray[np.int32]
    #: Library size times the model's scale.
    libraries: npt.NDArray[np.float32]


class SampledRows(NamedTuple):
    """Entries of contiguous rows, in CSR order, and the sum of each row."""

    indices: npt.NDArray[np.int32]
    data: npt.NDArray[Any]
    totals: npt.NDArray[np.int64]


def _compiled(function: _Function) -> _Function:
    """Compile without the GIL and without object mode, and keep the type of `function`."""
    return cast("_Function", numba.njit(nogil=True, cache=True)(function))


@_compiled
def _mix64(x: Any) -> Any:
    """Splitmix64's finaliser: a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_compiled
def _uniform(low: Any, high: Any, column: Any) -> Any:
    """Hash a row's two 32-bit keys and a column to a number in (0, 1), finest near 0."""
    h = np.uint32(np.uint32(column) * np.uint32(0x9E3779B9)) ^ low
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32(h + high)
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    h = h ^ (h >> np.uint32(16))
    return (np.float32(h) + np.float32(0.5)) * np.float32(2.0**-32)


@_compiled
def _is_stored(u: Any, half: Any) -> Any:
    """Whether `u < P(X > 0)` for the mean `2 * half`, without division or cancellation."""
    a = np.float32(1) + half
    return u * (a * a) < half * (np.float32(1) + a)


@_compiled
def describe_rows(
    rows: npt.NDArray[np.int64],
    seed: int,
    cumulative: npt.NDArray[np.float64],
    depths: npt.NDArray[np.float64],
    keys: npt.NDArray[np.uint64],
    types: npt.NDArray[np.int32],
    libraries: npt.NDArray[np.float32],
) -> None:
    """Fill the hash key, cell type and library size of each of `rows`.

    `cumulative` holds the cumulative shares of the types, ending in 1; `depths` the median library
    size for each row. The three outputs are as long as `rows` and are overwritten. O(rows).
    """
    u = np.empty(3)
    for i in range(rows.size):
        key = _mix64(np.uint64(seed)) + np.uint64(rows[i]) * np.uint64(0x9E3779B97F4A7C15)
        key = _mix64(key)
        keys[i] = key
        for k in range(3):
            key = _mix64(key + np.uint64(0x9E3779B97F4A7C15))
            u[k] = (np.float64(key >> np.uint64(11)) + 0.5) * 2.0**-53
        types[i] = np.searchsorted(cumulative[:-1], u[0], side="right")
        normal = math.sqrt(-2.0 * math.log(u[1])) * math.cos(2.0 * math.pi * u[2])
        libraries[i] = depths[i] * math.exp(_LIBRARY_SIGMA * normal)


@_compiled
def count_rows(
    keys: npt.NDArray[np.uint64],
    types: npt.NDArray[np.int32],
    libraries: npt.NDArray[np.float32],
    abundance: npt.NDArray[np.float32],
    row_nnz: npt.NDArray[np.int32],
) -> None:
    """Fill `row_nnz`, the stored entries of each row.

    `abundance` is types × n_vars; abundance times library is HALF the mean count. All the other
    arrays have one element per row. O(rows × n_vars).
    """
    for i in range(keys.size):
        low, high = np.uint32(keys[i]), np.uint32(keys[i] >> np.uint64(32))
        library, profile = libraries[i], abundance[types[i]]
        n = np.int32(0)
        for j in range(profile.size):
            n += np.int32(_is_stored(_uniform(low, high, j), library * profile[j]))
        row_nnz[i] = n


@_compiled
def sample_rows(
    keys: npt.NDArray[np.uint64],
    types: npt.NDArray[np.int32],
    libraries: npt.NDArray[np.float32],
    abundance: npt.NDArray[np.float32],
    indices: npt.NDArray[np.int32],
    data: npt.NDArray[Any],
    totals: npt.NDArray[np.int64],
) -> int:
    """Fill `indices` (ascending in each row), `data` (≥ 1) and each row's sum; return the nnz.

    The inputs are those of `count_rows`. `indices` and `data` must be one element longer than
    the nnz: the compaction writes every candidate and then decides whether to keep it.
    O(rows × n_vars + sum of data).
    """
    n_vars = abundance.shape[1]
    stored = np.empty(n_vars, np.uint8)
    uniforms, failures, powers = np.empty(n_vars), np.empty(n_vars), np.empty(n_vars)
    counts = np.empty(n_vars, np.int32)
    n = 0
    for i in range(keys.size):
        low, high = np.uint32(keys[i]), np.uint32(keys[i] >> np.uint64(32))
        library, profile = libraries[i], abundance[types[i]]
        for j in range(n_vars):
            stored[j] = _is_stored(_uniform(low, high, j), library * profile[j])
        start = n
        for j in range(n_vars):
            indices[n] = j
            n += stored[j]
        row_nnz = n - start
        for e in range(row_nnz):  # the first steps down the survival function
            j = indices[start + e]
            u = np.float64(_uniform(low, high, j))
            half = np.float64(library * profile[j])
            p = 1.0 / (1.0 + half)
            q = half * p
            power = q * q
            count = np.int32(1)
            for k in range(2, _UNROLLED_COUNT + 1):
                count += np.int32(u < power * (1.0 + k * p))
                power *= q
            uniforms[e], failures[e], powers[e], counts[e] = u, p, power, count
        total = np.int64(0)
        for e in range(row_nnz):  # the others, for one entry in six
            walked = np.int64(counts[e])
            if walked == _UNROLLED_COUNT:
                u, p, power = uniforms[e], failures[e], powers[e]
                q = np.float64(library * profile[indices[start + e]]) * p
                while u < power * (1.0 + (walked + 1) * p):
                    walked += 1
                    power *= q
            data[start + e] = walked
            total += walked
        totals[i] = total
    return n


@dataclass(frozen=True)
class SyntheticModel:
    """What the matrix depends on; every process derives the same tables from it."""

    n_obs: int
    n_vars: int
    density: float
    n_types: int
    seed: int
    #: Half the mean count of a gene of abundance 1 in a cell of library 1; see `calibrated`.
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        require_within("n_obs", self.n_obs, 1, 2**32)  # as many as barcodes of 16 bases
        require_within("n_vars", self.n_vars, 1, 2**31 - 1)
        require_within("density", self.density, 1e-9, 0.9)
        require_within("n_types", self.n_types, 1, 127)
        require_within("seed", self.seed, 0, 2**63 - 1)

    def abundance(self) -> npt.NDArray[np.float32]:
        """Relative abundance of each gene in each cell type, types × n_vars."""
        return _profiles(self.n_vars, self.n_types, self.seed)[0]

    def markers(self) -> npt.NDArray[np.bool_]:
        """Which genes were made markers of each cell type, types × n_vars."""
        return _profiles(self.n_vars, self.n_types, self.seed)[1]

    def batches(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Batch of each of `rows`; a batch is a contiguous interval of rows."""
        return rows * N_BATCHES // self.n_obs

    def cells(self, rows: npt.NDArray[np.int64]) -> Cells:
        """Describe each of `rows`."""
        cells = Cells(
            np.empty(rows.size, np.uint64),
            np.empty(rows.size, np.int32),
            np.empty(rows.size, np.float32),
        )
        shares = np.arange(1, self.n_types + 1) ** -0.7
        cumulative = np.cumsum(shares / shares.sum())
        depths = self.scale * np.array(_BATCH_DEPTHS)[self.batches(rows)]
        describe_rows(rows, self.seed, cumulative, depths, *cells)
        return cells

    def row_nnz(self, row_start: int, row_stop: int) -> npt.NDArray[np.int32]:
        """Count the stored entries of each of the rows `row_start:row_stop`."""
        cells = self.cells(np.arange(row_start, row_stop))
        row_nnz = np.empty(row_stop - row_start, np.int32)
        count_rows(*cells, self.abundance(), row_nnz)
        return row_nnz

    def sample(self, row_start: int, row_stop: int, nnz: int, data_dtype: str) -> SampledRows:
        """Make the rows `row_start:row_stop`, which are known to have `nnz` stored entries."""
        cells = self.cells(np.arange(row_start, row_stop))
        indices = np.empty(nnz + 1, np.int32)
        data = np.empty(nnz + 1, data_dtype)
        totals = np.empty(row_stop - row_start, np.int64)
        made_nnz = sample_rows(*cells, self.abundance(), indices, data, totals)
        if made_nnz != nnz:
            msg = f"rows {row_start}:{row_stop} have {made_nnz} entries, but {nnz} were counted"
            raise RuntimeError(msg)
        return SampledRows(indices[:nnz], data[:nnz], totals)

    def calibrated(self) -> SyntheticModel:
        """Choose the scale for which a sample of the rows has the density asked for."""
        n_rows = min(self.n_obs, _CALIBRATION_ROWS)
        rows = np.linspace(0, self.n_obs - 1, n_rows).astype(np.int64)
        keys, types, libraries = replace(self, scale=1.0).cells(rows)
        row_nnz = np.empty(n_rows, np.int32)
        log_low, log_high = -30.0, 30.0
        for _ in range(24):
            log_scale = (log_low + log_high) / 2
            scaled = libraries * np.float32(math.exp(log_scale))
            count_rows(keys, types, scaled, self.abundance(), row_nnz)
            if row_nnz.sum(dtype=np.int64) < self.density * n_rows * self.n_vars:
                log_low = log_scale
            else:
                log_high = log_scale
        return replace(self, scale=math.exp(log_scale))


def require_within(name: str, value: float, low: float, high: float) -> None:
    """Raise `ValueError` unless `low <= value <= high`."""
    if not low <= value <= high:
        msg = f"{name} is {value}, but must lie in [{low}, {high}]"
        raise ValueError(msg)


@functools.lru_cache(maxsize=2)
def _profiles(
    n_vars: int, n_types: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Draw the tables of `SyntheticModel.abundance` and `SyntheticModel.markers`."""
    rng = np.random.default_rng(seed)
    log_abundance = rng.normal(0, _ABUNDANCE_SIGMA, n_vars)
    log_fold = rng.normal(0, _TYPE_SIGMA, (n_types, n_vars))
    is_marker = rng.random((n_types, n_vars)) < _MARKER_SHARE
    log_fold += is_marker * rng.normal(_MARKER_LOG_FOLD, 0.5, (n_types, n_vars))
    return np.exp(log_abundance + log_fold).astype(np.float32), is_marker
