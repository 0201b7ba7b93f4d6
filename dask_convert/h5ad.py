"""The source: what matrices an h5ad file has, and whether they are what they say.

How their elements are read is the business of `dask_convert.hdf5`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dask_convert.dtypes import SUPPORTED
from dask_convert.errors import SourceError
from dask_convert.hdf5 import array_source
from dask_convert.layout import MatrixSource
from dask_convert.plans import RowIndex
from dask_convert.records import native_dtype, type_code

INDPTR_SLAB_ROWS = 2**20


def csr_matrices(file: h5py.File) -> list[MatrixSource]:
    """All CSR matrices with one row per obs: ``X``, ``layers/*`` and ``raw/X``.

    Raises
    ------
    SourceError
        One of them is not what its attributes say.
    """
    n_obs = axis_length(file, "obs")
    if n_obs is None:
        msg = f"{file.filename}: has no 'obs': not an h5ad file"
        raise SourceError(msg)
    paths = ["X", "raw/X", "raw.X"]
    layers = file.get("layers")
    if isinstance(layers, h5py.Group):
        paths += [f"layers/{key}" for key in sorted(layers)]
    found = [
        _matrix_source(file[path])
        for path in paths
        if path in file and matrix_format(file[path]) == "csr"
    ]
    for source in found:
        var_path = "var" if source.name != "raw/X" else _first(file, "raw/var", "raw.var")
        _check_shape(source, n_obs, axis_length(file, var_path))
    return found


def matrix_format(element: Any) -> str | None:
    """``csr`` or ``csc`` for a sparse matrix, by its attributes; None for anything else."""
    if not isinstance(element, h5py.Group):
        return None
    encoding = element.attrs.get("encoding-type", "")
    if encoding in {"csr_matrix", "csc_matrix"}:
        return str(encoding)[:3]
    legacy = element.attrs.get("h5sparse_format")
    legacy = legacy.decode() if isinstance(legacy, bytes) else legacy
    return legacy if legacy in {"csr", "csc"} else None


def axis_length(file: h5py.File, path: str | None) -> int | None:
    """Length of an axis from its data frame; None where there is none."""
    if path is None or path not in file:
        return None
    frame = file[path]
    if isinstance(frame, h5py.Dataset):
        return int(frame.shape[0])
    index = frame.attrs.get("_index", "_index")
    index = index.decode() if isinstance(index, bytes) else index
    if index not in frame:
        return None
    column = frame[index]
    if isinstance(column, h5py.Group):
        column = column["codes" if "codes" in column else "values"]
    return int(column.shape[0])


def row_index(file: h5py.File, source: MatrixSource) -> RowIndex:
    """Check a matrix's indptr, slab by slab, and note what planning needs of it.

    Raises
    ------
    SourceError
        It does not begin at 0, descends somewhere, or does not end at nnz.
    """
    dataset = file[source.path]["indptr"]
    longest = 0
    last = 0
    row = 0
    first = int(dataset[0])
    if first != 0:
        msg = f"{source.path}/indptr[0] is {first}: it must be 0"
        raise SourceError(msg)
    for ends in _row_end_slabs(dataset):
        lengths = np.diff(ends, prepend=last)
        descents = np.flatnonzero(lengths < 0)
        if descents.size:
            at = int(descents[0])
            before = int(ends[at - 1]) if at else last
            msg = (
                f"{source.path}/indptr[{row + at + 1}] is {int(ends[at])}, less than the {before} "
                f"before it: row {row + at} would have a negative length; indptr must not descend "
                "(a 32-bit overflow where the matrix was written?)"
            )
            raise SourceError(msg)
        longest = max(longest, int(lengths.max(initial=0)))
        last = int(ends[-1])
        row += ends.size
    if last != source.nnz:
        msg = f"{source.path}/indptr ends at {last}, but there are {source.nnz} entries"
        raise SourceError(msg)
    return RowIndex(longest, lambda: _row_end_slabs(dataset))


def _matrix_source(group: h5py.Group) -> MatrixSource:
    path = group.name.lstrip("/")
    for member in ("data", "indices", "indptr"):
        if not isinstance(group.get(member), h5py.Dataset) or group[member].ndim != 1:
            msg = f"{path}/{member}: a CSR matrix needs this one-dimensional data set"
            raise SourceError(msg)
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    if shape is None or len(shape) != 2:
        msg = f"{path}: attribute 'shape' is {shape!r}: it must be two numbers, n_obs and n_vars"
        raise SourceError(msg)
    n_obs, n_vars = (int(length) for length in shape)
    data, indices, indptr = group["data"], group["indices"], group["indptr"]
    for dataset in (indices, indptr):
        if dataset.dtype.kind not in "iu":
            msg = f"{path}: {dataset.name} has type {dataset.dtype}: it must have an integer type"
            raise SourceError(msg)
    if type_code(native_dtype(data.dtype.str)) not in SUPPORTED:
        msg = f"{path}/data has type {data.dtype}: only numbers and booleans can be converted"
        raise SourceError(msg)
    if data.shape != indices.shape:
        msg = f"{path}: data has {data.shape[0]} elements, indices has {indices.shape[0]}"
        raise SourceError(msg)
    if indptr.shape[0] != n_obs + 1:
        hint = " (it has n_vars + 1: is this CSC?)" if indptr.shape[0] == n_vars + 1 else ""
        msg = f"{path}/indptr has {indptr.shape[0]} elements, not n_obs + 1 = {n_obs + 1}{hint}"
        raise SourceError(msg)
    return MatrixSource(
        name="raw/X" if path == "raw.X" else path,
        path=path,
        n_obs=n_obs,
        n_vars=n_vars,
        nnz=int(data.shape[0]),
        data=array_source(data),
        indices=array_source(indices),
        indptr_dtype=indptr.dtype.str,
    )


def _check_shape(source: MatrixSource, n_obs: int, n_vars: int | None) -> None:
    for axis, length, expected in (("obs", source.n_obs, n_obs), ("var", source.n_vars, n_vars)):
        if expected is not None and length != expected:
            msg = f"{source.path} has {length} along {axis}, but {axis} has {expected} rows"
            raise SourceError(msg)


def _row_end_slabs(dataset: h5py.Dataset) -> Iterator[NDArray[np.int64]]:
    for start in range(1, dataset.shape[0], INDPTR_SLAB_ROWS):
        yield dataset[start : start + INDPTR_SLAB_ROWS].astype(np.int64)


def _first(file: h5py.File, *paths: str) -> str | None:
    return next((path for path in paths if path in file), None)
