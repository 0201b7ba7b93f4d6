"""Sparse matrices in an h5ad file or a zarr store: what they say of themselves, and their parts.

Both kinds are opened by the library of their format, h5py and zarr-python, and not by the readers
of the engine, so that an error of those is found as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import zarr

from dask_convert.files.h5ad import matrix_format
from dask_convert.files.hdf5 import array_source, member_dataset, reopen_source
from dask_convert.planning.layout import Trust
from dask_convert.shuffle.digests import Format

PART_NNZ = 2**23
STEP_NNZ = 2**20
INDPTR_SLAB = 2**20
MEMBERS = ("data", "indices", "indptr")


class Side(msgspec.Struct, frozen=True):
    """A sparse matrix of either file.

    Attributes
    ----------
    store
        Which library reads it.
    path, name
        The file or store, and the matrix within it.
    format
        ``csr`` or ``csc``.
    n_obs, n_vars, nnz
        Its shape (of `obsp`, say, both are along the same axis) and number of entries.
    data_dtype
        Type of its values, in native byte order.
    chunk_nnz
        Entries of the largest chunk, 1 where there are none.
    trust
        What an h5ad file may do beyond being read.
    """

    store: Literal["h5ad", "zarr"]
    path: str
    name: str
    format: Format
    n_obs: int
    n_vars: int
    nnz: int
    data_dtype: str
    chunk_nnz: int
    trust: Trust = Trust()

    @property
    def n_major(self) -> int:
        """Length of the axis that indptr is along."""
        return self.n_obs if self.format == "csr" else self.n_vars

    @property
    def step_nnz(self) -> int:
        """Entries that h5py or zarr-python reads at once: whole chunks."""
        return whole_chunks(STEP_NNZ, self.chunk_nnz)

    @property
    def read_bytes(self) -> int:
        """Projected memory for reading one step: raw, decoded, as indices and as words."""
        return 4 * self.step_nnz * (np.dtype(self.data_dtype).itemsize + 8)


class Part(msgspec.Struct, frozen=True):
    """Entries ``[start, stop)``, which belong to major indices ``[major_start, major_stop)``.

    Attributes
    ----------
    twice
        Of a store: read it with zarr-python as well, and compare.
    """

    start: int
    stop: int
    major_start: int
    major_stop: int
    twice: bool = False


def whole_chunks(nnz: int, chunk_nnz: int) -> int:
    """The multiple of a chunk's entries that comes next below, or one chunk."""
    return max(nnz // chunk_nnz, 1) * chunk_nnz


def side_of(
    group: Any, store: Literal["h5ad", "zarr"], path: Path, name: str
) -> tuple[Side | None, list[str]]:
    """A sparse matrix as its attributes and members describe it, and what contradicts itself.

    Returns
    -------
        The side, None if it cannot be read at all, and problems, a line each.
    """
    kind: Any = matrix_format(group) if store == "h5ad" else _zarr_format(group)
    if kind is None:
        return None, [f"{name}: is no sparse matrix"]
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    try:
        members = [group[member] for member in MEMBERS]
        n_obs, n_vars = (int(length) for length in shape)
    except (KeyError, TypeError, ValueError):
        return None, [f"{name}: lacks 'data', 'indices', 'indptr' or a shape of two numbers"]
    data, indices, indptr = members
    problems = [
        f"{name}/{member}: of type {array.dtype} and shape {array.shape}"
        for member, array in zip(MEMBERS, members, strict=True)
        if array.ndim != 1 or array.dtype.kind not in ("biufc" if member == "data" else "iu")
    ]
    n_major = n_obs if kind == "csr" else n_vars
    if not problems and (data.shape != indices.shape or indptr.shape != (n_major + 1,)):
        problems = [
            f"{name}: a {kind} matrix of shape ({n_obs}, {n_vars}) cannot have {data.shape[0]} "
            f"values, {indices.shape[0]} indices and an indptr of {indptr.shape[0]}"
        ]
    if problems or min(n_obs, n_vars) < 0:
        return None, problems or [f"{name}: has shape ({n_obs}, {n_vars})"]
    chunk_nnz = max((array.chunks or (1,))[0] for array in (data, indices))
    dtype = np.dtype(bool) if data.dtype == bool else data.dtype.newbyteorder("=")
    nnz = int(data.shape[0])
    side = Side(store, str(path), name, kind, n_obs, n_vars, nnz, dtype.str, int(chunk_nnz))
    return side, []


@contextmanager
def open_members(side: Side) -> Iterator[tuple[Any, Any, Any]]:
    """The matrix's data, indices and indptr, open for reading slices."""
    if side.store == "zarr":
        group: Any = zarr.open_group(side.path, mode="r", use_consolidated=False)[side.name]
        yield tuple(group[member] for member in MEMBERS)
        return
    with reopen_source(Path(side.path), side.trust) as file:
        arrays = [file[f"{side.name}/{member}"] for member in MEMBERS]
        yield tuple(
            member_dataset(file, array.name, array_source(array, side.path), side.trust)
            for array in arrays
        )


def cut_parts(side: Side) -> tuple[tuple[Part, ...], list[str]]:
    """Check a matrix's indptr, slab by slab, and cut its entries into parts.

    Returns
    -------
        The parts, none if there are problems, and the problems, a line each.
    """
    size = whole_chunks(PART_NNZ, side.chunk_nnz)
    starts = np.arange(0, side.nnz, size)
    stops = np.minimum(starts + size, side.nnz)
    major_starts = np.full(starts.size, -1, np.int64)
    major_stops = np.zeros(starts.size, np.int64)
    last = 0
    where = f"{side.name}/indptr"
    with open_members(side) as (_, _, indptr):
        for at in range(0, side.n_major + 1, INDPTR_SLAB):
            try:
                slab = np.asarray(indptr[at : at + INDPTR_SLAB]).astype(np.int64)
            except Exception as error:  # noqa: BLE001  (codecs raise what they like)
                return (), [f"{where}: cannot be read: {error}"]
            if not at and slab[0] != 0:
                return (), [f"{where}[0] is {slab[0]}: it must be 0"]
            descents = np.flatnonzero(np.diff(slab, prepend=last) < 0)
            if descents.size:
                return (), [f"{where}: descends at {at + int(descents[0])}"]
            major_starts += np.searchsorted(slab, starts, side="right")
            major_stops += np.searchsorted(slab, stops - 1, side="right")
            last = int(slab[-1])
    if last != side.nnz:
        return (), [f"{where}: ends at {last}, but there are {side.nnz} entries"]
    cut = np.stack([starts, stops, major_starts, major_stops], axis=1).tolist()
    return tuple(Part(*numbers) for numbers in cut), []


def _zarr_format(group: Any) -> Format | None:
    encoding = group.attrs.get("encoding-type") if isinstance(group, zarr.Group) else None
    formats: dict[Any, Format] = {"csr_matrix": "csr", "csc_matrix": "csc"}
    return formats.get(encoding)
