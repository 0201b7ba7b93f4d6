"""The source: what matrices an h5ad file has, and whether they are what they say.

How their elements are read is the business of `dask_convert.files.hdf5`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import SourceError
from dask_convert.files.annotation_reading import child_path, encoding_of
from dask_convert.files.chunk_guard import ChunkGuard
from dask_convert.files.hdf5 import array_source
from dask_convert.files.hdf5_errors import reading
from dask_convert.planning.dtypes import SUPPORTED
from dask_convert.planning.layout import MatrixSource
from dask_convert.planning.plans import RowIndex
from dask_convert.planning.records import native_dtype, type_code

INDPTR_SLAB_ROWS = 2**20
MAX_VARS = 2**31 - 1
"""Columns at most: they are numbered in 32 bits."""
MAX_ROW_NNZ = 2**32 - 1
"""Entries of a row at most: those of a row block are counted in 32 bits."""
_MATRIX_ENCODINGS = {
    *(("csr_matrix", "0.1.0"), ("csc_matrix", "0.1.0")),
    ("awkward-array", "0.1.0"),  # of a layer
}
_TENX = "this is a 10x file: scanpy.read_10x_h5(...).write_h5ad(...) makes one of it"


def csr_matrices(file: h5py.File) -> list[MatrixSource]:
    """All CSR matrices with one row per obs: ``X``, ``layers/*`` and ``raw/X``.

    Raises
    ------
    SourceError
        One of them, or one of the CSC matrices there, is not what its attributes say.
    """
    with reading(file.filename):
        n_obs = axis_length(file, "obs")
        if n_obs is None:
            tenx = f"; {_TENX}" if "matrix/barcodes" in file else ""
            msg = f"{file.filename}: has no 'obs': not an h5ad file{tenx}"
            raise SourceError(msg)
        found = [
            _matrix_source(file[path], path, file.filename)
            for path in _matrix_paths(file)
            if matrix_format(file[path]) == "csr"
        ]
        for source in found:
            var_path = "var" if source.name != "raw/X" else _first(file, "raw/var", "raw.var")
            _check_axes(source, n_obs, axis_length(file, var_path))
    return found


def copied_matrices(file: h5py.File, converted: Collection[str]) -> dict[str, str]:
    """The other matrices with one row per obs, by name: ``csr``, ``csc`` or ``dense``."""
    with reading(file.filename):
        formats = {_store_name(path): _form(file[path]) for path in _paths(file)}
    return {name: form for name, form in formats.items() if form and name not in converted}


def _form(element: Any) -> str | None:
    """How a matrix is stored; None if it is something else, an awkward array say."""
    return "dense" if isinstance(element, h5py.Dataset) else matrix_format(element)


def _matrix_paths(file: h5py.File) -> list[str]:
    """Where sparse matrices with one row per obs are, each of which is what it says it is."""
    for path in _paths(file):
        with reading(path):
            _check_encoding(file[path])
    paths = [path for path in _paths(file) if matrix_format(file[path])]
    for path in paths:
        with reading(path):
            _check_format(file[path])
    return paths


def _paths(file: h5py.File) -> list[str]:
    """Where matrices with one row per obs are."""
    paths = ["X", "raw/X", "raw.X"]
    layers = file.get("layers")
    if isinstance(layers, h5py.Group):
        paths += [child_path("layers", key) for key in sorted(layers)]
    return [path for path in paths if path in file]


def _store_name(path: str) -> str:
    """What a matrix is called in a store; old files have another name for one."""
    return "raw/X" if path == "raw.X" else path


def matrix_format(element: Any) -> str | None:
    """``csr`` or ``csc`` for a sparse matrix, by its attributes; None for anything else."""
    if not isinstance(element, h5py.Group):
        return None
    encoding = _text(element.attrs.get("encoding-type", ""))
    if encoding in {"csr_matrix", "csc_matrix"}:
        return str(encoding)[:3]
    legacy = _text(element.attrs.get("h5sparse_format", ""))
    return legacy if legacy in {"csr", "csc"} else None


def axis_length(file: h5py.File, path: str | None) -> int | None:
    """Length of an axis from its data frame; None where there is none.

    Raises
    ------
    SourceError
        The data frame has no index.
    """
    if path is None or path not in file:
        return None
    frame = file[path]
    if isinstance(frame, h5py.Dataset):
        return _length(frame)
    index = _text(frame.attrs.get("_index", "_index"))
    column = frame.get(index)
    if isinstance(column, h5py.Group):
        column = column.get("codes", column.get("values"))
    if not isinstance(column, h5py.Dataset):
        msg = f"{path}: has no index {index!r}: it is no data frame; write it again with anndata"
        raise SourceError(msg)
    return _length(column)


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
    for ends in row_end_slabs(dataset, start=0):
        before = np.concatenate([[last], ends[:-1]])
        if row == 0 and ends[0] != 0:
            msg = (
                f"{source.path}/indptr[0] is {dataset[0]}: it must be 0, or the first entries "
                "would be of no row; write the matrix again"
            )
            raise SourceError(msg)
        descents = np.flatnonzero(ends < before)  # a difference could wrap round
        if descents.size:
            at = int(descents[0])
            raise SourceError(_descent(source, dataset, row + at, int(before[at])))
        longest = max(longest, int((ends - before).max(initial=0)))
        last = int(ends[-1])
        row += ends.size
    if last != source.nnz:
        lost = "entries would be lost" if last < source.nnz else "data and indices were cut short"
        msg = (
            f"{source.path}/indptr[{row - 1}] is {last}, but there are {source.nnz} entries: "
            f"{lost}; the last of indptr must be the length of data"
        )
        raise SourceError(msg)
    if longest > MAX_ROW_NNZ:
        msg = f"{source.path} has a row of {longest} entries, and {MAX_ROW_NNZ} is the most"
        raise SourceError(msg)
    return RowIndex(longest, lambda: row_end_slabs(dataset))


def _descent(source: MatrixSource, dataset: h5py.Dataset, position: int, before: int) -> str:
    """The message about an indptr that descends."""
    value = int(dataset[position])
    wraps = value < 0 and dataset.dtype.itemsize == 4
    hint = (
        f"a 32-bit overflow: {value + 2**32} was meant; write indptr as int64"
        if wraps
        else "the matrix was damaged, or wrong when it was written"
    )
    return (
        f"{source.path}/indptr[{position}] is {value}, less than the {before} before it: row "
        f"{position - 1} would have a negative length; indptr must not descend ({hint})"
    )


def _check_encoding(element: Any) -> None:
    """Refuse what is in the place of a matrix, and cannot be read as one.

    Copied as a mapping of three arrays it would be of no use to anybody.
    """
    if not isinstance(element, h5py.Group):
        return
    path = element.name.lstrip("/")
    encoding, version = encoding_of(element, path)
    is_legacy = not encoding and matrix_format(element) is not None
    if is_legacy or (encoding, version) in _MATRIX_ENCODINGS:
        return
    hint = "write it again with a current anndata"
    if {"data", "indices", "indptr"} <= set(element):
        hint = (
            "if it is a CSR matrix, its attributes encoding-type and encoding-version must be "
            "'csr_matrix' and '0.1.0'"
        )
    msg = (
        f"{path}: a group with encoding-type {encoding!r}, version {version!r}, is no matrix that "
        f"can be read here: {hint}"
    )
    raise SourceError(msg)


def _check_format(group: h5py.Group) -> None:
    """Refuse a sparse matrix whose label, shape and indptr do not fit each other."""
    path = group.name.lstrip("/")
    for member in ("data", "indices", "indptr"):
        dataset = group.get(member)
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1:
            msg = f"{path}/{member}: a sparse matrix needs this one-dimensional data set"
            raise SourceError(msg)
    label = matrix_format(group)
    n_obs, n_vars = _shape(group)
    expected, other = (n_obs, n_vars) if label == "csr" else (n_vars, n_obs)
    axes = ("n_obs", "n_vars", "CSC") if label == "csr" else ("n_vars", "n_obs", "CSR")
    length = group["indptr"].shape[0]
    if length != expected + 1:
        hint = (
            f": it has {axes[1]} + 1, so this is {axes[2]}; mend its encoding-type"
            if length == other + 1
            else ": it was cut short, or 'shape' is wrong"
        )
        msg = (
            f"{path}/indptr has {length} elements, not {axes[0]} + 1 = {expected + 1} as the label "
            f"{label} and shape ({n_obs}, {n_vars}) want{hint}"
        )
        raise SourceError(msg)


def _shape(group: h5py.Group) -> tuple[int, int]:
    path = group.name.lstrip("/")
    shape = np.asarray(group.attrs.get("shape", group.attrs.get("h5sparse_shape", [])))
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 0).any():
        said = shape.tolist() if shape.size else None
        msg = f"{path}: attribute 'shape' is {said!r}: it must be two numbers, n_obs and n_vars"
        raise SourceError(msg)
    n_obs, n_vars = (int(length) for length in shape)
    if n_vars > MAX_VARS:
        msg = f"{path}: attribute 'shape' says {n_vars} columns, and {MAX_VARS} is the most"
        raise SourceError(msg)
    return n_obs, n_vars


def _matrix_source(group: h5py.Group, path: str, home: str) -> MatrixSource:
    n_obs, n_vars = _shape(group)
    data, indices, indptr = group["data"], group["indices"], group["indptr"]
    for dataset in (data, indices, indptr):
        with reading(dataset.name.lstrip("/")):
            _ = dataset.dtype  # numpy has no integers of three bytes, say
    for dataset in (indices, indptr):
        if dataset.dtype.kind not in "iu":
            msg = (
                f"{dataset.name.lstrip('/')} has type {dataset.dtype}: it must have an integer "
                "type, since positions are counted; write the matrix again"
            )
            raise SourceError(msg)
    if type_code(native_dtype(data.dtype.str)) not in SUPPORTED:
        msg = f"{path}/data has type {data.dtype}: only numbers and booleans can be converted"
        raise SourceError(msg)
    if data.shape != indices.shape:
        short = "data" if data.shape < indices.shape else "indices"
        msg = (
            f"{path}: data has {data.shape[0]} elements, indices has {indices.shape[0]}: they must "
            f"be as long as each other; {short} was cut short"
        )
        raise SourceError(msg)
    return MatrixSource(
        name=_store_name(path),
        path=path,
        n_obs=n_obs,
        n_vars=n_vars,
        nnz=int(data.shape[0]),
        data=array_source(data, home),
        indices=array_source(indices, home),
        indptr_dtype=indptr.dtype.str,
    )


def _check_axes(source: MatrixSource, n_obs: int, n_vars: int | None) -> None:
    for axis, length, expected in (("obs", source.n_obs, n_obs), ("var", source.n_vars, n_vars)):
        if expected is not None and length != expected:
            msg = (
                f"{source.path} has {length} along {axis}, but {axis} has {expected} rows: they "
                "must agree; one of them was cut short, or is of another file"
            )
            raise SourceError(msg)


def row_end_slabs(dataset: h5py.Dataset, start: int = 1) -> Iterator[NDArray[np.int64]]:
    """``indptr[1:]`` as int64 in consecutive slabs; unchecked, see `row_index`."""
    guard = ChunkGuard(dataset, dataset.name.lstrip("/"))
    for first in range(start, dataset.shape[0], INDPTR_SLAB_ROWS):
        stop = min(first + INDPTR_SLAB_ROWS, dataset.shape[0])
        guard.check(stop)
        with reading(f"{dataset.name.lstrip('/')}, elements {first} to {stop}"):
            ends = dataset[first:stop].astype(np.int64)
        if ends.size != stop - first:
            msg = f"{dataset.name.lstrip('/')}: was cut short while it was read"
            raise SourceError(msg)
        yield ends


def _length(dataset: h5py.Dataset) -> int:
    if not dataset.shape:
        msg = f"{dataset.name.lstrip('/')}: must be an array, with one element per row"
        raise SourceError(msg)
    return int(dataset.shape[0])


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _first(file: h5py.File, *paths: str) -> str | None:
    return next((path for path in paths if path in file), None)
