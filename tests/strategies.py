"""Random CSR matrices, and h5ad files that store them in every way HDF5 has.

Files are written with h5py alone, so that they can be wrong in ways anndata would not write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
INDEX_DTYPES = ("int32", "int64", "uint32", "int16", "uint16", "uint64")
VALUE_KINDS = ("counts", "rare", "special", "bits")
FILTERS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip", "compression_opts": 1},
    "shuffle+gzip": {"compression": "gzip", "compression_opts": 6, "shuffle": True},
    "shuffle": {"shuffle": True},
    "lzf": {"compression": "lzf"},
    "fletcher32": {"fletcher32": True},
    "gzip+fletcher32": {"compression": "gzip", "fletcher32": True},
    "blosc": dict(hdf5plugin.Blosc(cname="lz4")),
    "zstd": dict(hdf5plugin.Zstd()),
    "lz4": dict(hdf5plugin.LZ4()),
    "bitshuffle": dict(hdf5plugin.Bitshuffle()),
}


def share(count: int) -> int:
    """So many examples or seeds, or as large a part of them as the profile of hypothesis says."""
    return -(-count * settings().max_examples // 100)


@dataclass(frozen=True)
class Csr:
    """A CSR matrix as plain arrays; nothing about it is checked."""

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[Any]
    shape: tuple[int, int]

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.data.size

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of every entry."""
        return np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))


@dataclass(frozen=True)
class Storage:
    """How the members of a matrix are stored; `chunk_length` 0 is contiguous."""

    chunk_length: int = 0
    filters: str = "none"
    index_dtype: str = "int32"
    indptr_dtype: str = "int64"
    big_endian: bool = False
    legacy: bool = False


def csr_from_rows(columns: list[list[int]], n_vars: int, data: Any) -> Csr:
    """A matrix from the columns of each row, and its values in one array."""
    indptr = np.cumsum([0, *map(len, columns)])
    indices = np.array([column for row in columns for column in row], np.int64)
    return Csr(np.asarray(data), indices, indptr, (len(columns), n_vars))


def random_csr(
    rng: np.random.Generator,
    shape: tuple[int, int],
    row_nnz: Any,
    dtype: str,
    values: str = "counts",
) -> Csr:
    """A matrix of this many entries in each row, its columns in any order and maybe repeated."""
    indptr = np.concatenate([[0], np.cumsum(row_nnz, dtype=np.int64)]).astype(np.int64)
    nnz = int(indptr[-1])
    indices = rng.integers(0, max(shape[1], 1), nnz)
    return Csr(random_values(rng, nnz, dtype, values), indices, indptr, shape)


def random_values(rng: np.random.Generator, size: int, dtype: str, kind: str) -> NDArray[Any]:
    """Values of one of `VALUE_KINDS`: counts, rarely large ones, limits, any bits."""
    numpy_dtype = np.dtype(dtype)
    if numpy_dtype.kind == "b":
        return rng.integers(0, 2, size).astype(bool)
    if kind == "counts":
        return rng.geometric(0.4, size).clip(0, 127).astype(numpy_dtype)
    if kind == "rare":
        most = {1: 2**7, 2: 2**15}.get(numpy_dtype.itemsize, 2**16)
        return np.where(rng.random(size) < 0.01, rng.integers(100, most, size), 1).astype(dtype)
    if kind == "special":
        return rng.choice(special_values(dtype), size)
    any_bits = np.frombuffer(rng.bytes(size * numpy_dtype.itemsize), numpy_dtype)
    # Whether casts make a signalling NaN of float16 quiet depends on the processor.
    return (
        np.where(np.isnan(any_bits), numpy_dtype.type(np.nan), any_bits)
        if dtype == "f2"
        else any_bits
    )


def special_values(dtype: str) -> NDArray[Any]:
    """Values at which narrowing could go wrong: limits, −0.0, infinities, NaN with a payload."""
    numpy_dtype = np.dtype(dtype)
    if numpy_dtype.kind == "c":
        parts = special_values(f"f{numpy_dtype.itemsize // 2}")
        pairs = np.empty((parts.size, parts.size, 2), parts.dtype)
        pairs[..., 0], pairs[..., 1] = parts[:, None], parts
        return pairs.reshape(-1).view(numpy_dtype)
    if numpy_dtype.kind == "f":
        info = np.finfo(numpy_dtype)
        plain = [0.0, -0.0, 1, -1, 0.1, 255, 256, 2048.5, np.inf, -np.inf]
        if numpy_dtype.itemsize > 2:
            plain += [65535, 65536, -32768, 2**24 + 1, 2.0**31, 2.0**32, 2.0**63, 2.0**64, 1e30]
        near = [info.max, info.min, info.tiny, info.smallest_subnormal, np.nan]
        nan = np.array([*plain, *near]).astype(numpy_dtype)
        payload = nan[-1:].view(f"u{numpy_dtype.itemsize}") | 5  # a NaN is not just a NaN
        return np.concatenate([nan, payload.view(numpy_dtype)])
    info = np.iinfo(numpy_dtype)
    limits = (
        0,
        1,
        2,
        127,
        128,
        255,
        256,
        2**15 - 1,
        2**16 - 1,
        2**16,
        2**31 - 1,
        2**31,
        2**32,
        2**63,
    )
    inside = [
        v
        for v in (*limits, -1, -128, -129, -(2**15), info.min, info.max)
        if info.min <= v <= info.max
    ]
    return np.array(inside, numpy_dtype)


@st.composite
def csr_matrices(
    draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES, min_obs: int = 0, max_obs: int = 600
) -> Csr:
    """Any small CSR matrix: rows in order or not, repeated entries, empty axes, explicit zeros."""
    n_obs = draw(st.integers(min_obs, 30) | st.integers(250, max_obs))
    n_vars = draw(st.integers(0, 40))
    longest = draw(st.sampled_from([0, 1, 3, 12])) if n_vars else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    row_nnz = rng.integers(0, longest + 1, n_obs)
    if n_obs and n_vars and draw(st.booleans()):
        row_nnz[draw(st.integers(0, n_obs - 1))] = draw(st.integers(1, 200))  # one row with it all
    kind = draw(st.sampled_from(VALUE_KINDS))
    matrix = random_csr(rng, (n_obs, n_vars), row_nnz, draw(st.sampled_from(dtypes)), kind)
    return sorted_rows(matrix) if draw(st.booleans()) else matrix


def sorted_rows(matrix: Csr) -> Csr:
    """The same with columns ascending within each row, repeated ones in their order."""
    order = np.lexsort([matrix.indices, matrix.rows])
    return replace(matrix, data=matrix.data[order], indices=matrix.indices[order])


@st.composite
def storages(draw: st.DrawFn) -> Storage:
    """Any way of storing the members of a small matrix."""
    chunk_length = draw(st.sampled_from([0, 1, 2, 7, 13, 64, 1000]))
    return Storage(
        chunk_length,
        draw(st.sampled_from(sorted(FILTERS))) if chunk_length else "none",
        draw(st.sampled_from(INDEX_DTYPES)),
        draw(st.sampled_from(INDEX_DTYPES)),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def write_h5ad(
    path: Path, matrices: Csr | Mapping[str, Csr], storage: Storage | None = None
) -> Path:
    """Write a valid, minimal h5ad file with these matrices; one alone becomes ``X``."""
    storage = storage or Storage()
    matrices = {"X": matrices} if isinstance(matrices, Csr) else matrices
    n_obs, n_vars = next(iter(matrices.values())).shape
    with h5py.File(path, "w") as file:
        if not storage.legacy:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_axis(file, "obs", n_obs, legacy=storage.legacy)
        write_axis(file, "var", n_vars, legacy=storage.legacy)
        for name, matrix in matrices.items():
            if name == "raw/X":
                raw = file.create_group("raw")
                raw.attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
                write_axis(file, "raw/var", matrix.shape[1], legacy=storage.legacy)
            elif name.startswith("layers/"):
                layers = file.require_group("layers")
                layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
            write_matrix(file, name, matrix, storage)
    return path


def write_matrix(file: h5py.File, name: str, matrix: Csr, storage: Storage) -> None:
    """Write one CSR matrix."""
    group = file.create_group(name)
    if storage.legacy:
        group.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": matrix.shape})
    else:
        encoding = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
        group.attrs.update({**encoding, "shape": matrix.shape})
    write_member(group, "data", matrix.data, storage)
    write_member(group, "indices", matrix.indices.astype(storage.index_dtype), storage)
    write_member(
        group,
        "indptr",
        matrix.indptr.astype(storage.indptr_dtype),
        replace(storage, filters="none"),
    )


def write_member(group: h5py.Group, name: str, array: NDArray[Any], storage: Storage) -> None:
    """Write one member array."""
    dtype = array.dtype.newbyteorder(">") if storage.big_endian else array.dtype
    chunked = (
        {"chunks": (storage.chunk_length,), "maxshape": (None,)} if storage.chunk_length else {}
    )
    group.create_dataset(name, data=array, dtype=dtype, **chunked, **FILTERS[storage.filters])


def write_axis(file: h5py.File, name: str, length: int, *, legacy: bool = False) -> None:
    """Write a data frame with nothing but an index."""
    names = [f"{name[-3:]}{number}" for number in range(length)]
    if legacy and "/" not in name:
        file[name] = np.array([(n.encode(),) for n in names], [("index", "S12")])
        return
    frame = file.create_group(name)
    frame.attrs.update(
        {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    )
    frame.attrs.create("column-order", [], dtype=h5py.string_dtype())
    index = frame.create_dataset("_index", data=np.array(names, object), dtype=h5py.string_dtype())
    index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def away(path: Path, matrix: Csr, kind: str) -> Path:
    """Move the values of X, or all of it, into a file of another directory, which is returned."""
    parts = path.parent / "parts"
    parts.mkdir()
    with h5py.File(parts / "part.h5", "w") as other:
        other["values"] = matrix.data
    (parts / "raw").write_bytes(matrix.data.tobytes())
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        if kind == "group":
            with h5py.File(parts / "part.h5", "r+") as other:
                file.copy("X", other)
                other["X/data"] = other["values"]
            del file["X"]
            file["X"] = h5py.ExternalLink("parts/part.h5", "/X")
        elif kind == "link":
            file["X/data"] = h5py.ExternalLink("parts/part.h5", "/values")
        elif kind == "storage":
            where = [(str(parts / "raw"), 0, matrix.data.nbytes)]
            file["X"].create_dataset("data", (matrix.nnz,), matrix.data.dtype, external=where)
        else:
            layout = h5py.VirtualLayout((matrix.nnz,), matrix.data.dtype)
            layout[:] = h5py.VirtualSource("parts/part.h5", "values", (matrix.nnz,))
            file["X"].create_virtual_dataset("data", layout)
    return parts
