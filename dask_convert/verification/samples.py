"""Random rows and columns of a converted matrix, compared with h5py and scipy alone.

A check on the checkers: nothing here knows of digests, cells or parts, so a mistake in how those
understand a matrix does not repeat itself here.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from dask_convert.errors import SourceError
from dask_convert.verification.sides import Side, open_members

RANGES = 4
"""Ranges of consecutive rows to read of the source."""

RANGE_NNZ = 2**18
RANGE_ROWS = 2**12
COLUMNS = 8
"""Columns to draw from all, and as many again from those that the rows have entries in."""

MAX_COLUMN_NNZ = 2**24


def sample_differences(source: Side, target: Side, seed: int) -> list[str]:
    """Random columns of the target, within random ranges of rows, against the source's.

    Parameters
    ----------
    source, target
        A CSR matrix and the same in CSC, whose indptr have been checked.
    seed
        For the choice.

    Returns
    -------
        A line for each column that differs somewhere in those rows.

    Raises
    ------
    SourceError
        An index of the source is out of range.
    """
    chosen = random.Random(seed)  # noqa: S311  (a sample, no secret)
    blocks = _row_blocks(source, chosen)
    columns = set(chosen.sample(range(source.n_vars), min(COLUMNS, source.n_vars)))
    for _, block in blocks:
        filled = np.flatnonzero(np.diff(block.indptr))
        if filled.size:
            columns |= {int(chosen.choice(filled)) for _ in range(COLUMNS // RANGES)}
    differences = []
    with open_members(target) as (data, indices, indptr):
        for column in sorted(columns):
            start, stop = (int(end) for end in np.asarray(indptr[column : column + 2]))
            if stop - start > MAX_COLUMN_NNZ:
                continue
            rows = np.asarray(indices[start:stop])
            values = np.asarray(data[start:stop])
            for first, block in blocks:
                inside = (rows >= first) & (rows < first + block.shape[0])
                if not _same(block, column, rows[inside] - first, values[inside], source):
                    last = first + block.shape[0] - 1
                    differences.append(
                        f"{target.name}: column {column:,} differs from what scipy makes of rows "
                        f"{first:,} to {last:,}"
                    )
    return differences


def _row_blocks(source: Side, chosen: random.Random) -> list[tuple[int, Any]]:
    """First row and CSC of some ranges of rows; values as words, which scipy only carries."""
    blocks = []
    with open_members(source) as (data, indices, indptr):
        for _ in range(RANGES if source.n_obs else 0):
            first = chosen.randrange(source.n_obs)
            ends = np.asarray(indptr[first : first + RANGE_ROWS + 1]).astype(np.int64)
            rows = max(int(np.searchsorted(ends, ends[0] + RANGE_NNZ, side="right")) - 1, 1)
            ends = ends[: rows + 1]
            columns = np.asarray(indices[ends[0] : ends[-1]]).astype(np.int64)
            _check_columns(source, columns, int(ends[0]))
            # scipy knows neither float16 nor what is in a NaN: let it carry positions instead.
            places = np.arange(columns.size)
            matrix = sp.csr_array(
                (places, columns, ends - ends[0]), shape=(ends.size - 1, source.n_vars)
            ).tocsc()
            values = np.asarray(data[ends[0] : ends[-1]])
            matrix.values = values.astype(values.dtype.newbyteorder("="))[matrix.data]
            blocks.append((first, matrix))
    return blocks


def _check_columns(source: Side, columns: NDArray[np.int64], start: int) -> None:
    """Let nothing reach scipy that would have it write outside its arrays."""
    outside = np.flatnonzero((columns < 0) | (columns >= source.n_vars))
    if outside.size:
        at = int(outside[0])
        msg = (
            f"{source.name}/indices[{start + at}] is {columns[at]}, which is no column: there are "
            f"{source.n_vars}"
        )
        raise SourceError(msg)


def _same(block: Any, column: int, rows: NDArray[Any], values: NDArray[Any], source: Side) -> bool:
    own = slice(block.indptr[column], block.indptr[column + 1])
    wanted = np.ascontiguousarray(block.values[own])
    dtype = np.dtype(source.data_dtype)
    with np.errstate(all="ignore"):
        real = values.real if values.dtype.kind == "c" and dtype.kind != "c" else values
        got = np.ascontiguousarray(real.astype(dtype))
    return bool(
        np.array_equal(block.indices[own], rows)
        and np.array_equal(wanted.view(np.uint8), got.view(np.uint8))
    )
