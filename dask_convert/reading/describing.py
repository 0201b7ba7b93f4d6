"""What is in a store: what `inspect` prints."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
from zarr.core.sync import sync

from dask_convert.planning.sizes import bytes_text
from dask_convert.reading.csc_reader import CscReader, open_csc
from dask_convert.reading.store import Store

_TIMED_GENES = 20
_ELEMENTS = ("obsm", "varm", "obsp", "varp", "uns", "layers", "raw")


class ArrayDescription(msgspec.Struct, frozen=True):
    """How a member of a matrix is stored.

    Attributes
    ----------
    dtype
        Of its elements.
    chunk_nnz, shard_nnz
        Entries per chunk, and per file.
    codecs
        What its chunks are encoded with, the first one first.
    checksums
        Whether every chunk carries one that is checked when it is read.
    stored_bytes
        In the store; None where the storage cannot tell.
    """

    dtype: str
    chunk_nnz: int
    shard_nnz: int
    codecs: tuple[str, ...]
    checksums: bool
    stored_bytes: int | None


class GeneCost(msgspec.Struct, frozen=True):
    """What reading one gene takes.

    Attributes
    ----------
    median_nnz, largest_nnz
        Entries of genes.
    mean_chunks
        Chunks of values that a gene lies in, on average.
    mean_bytes
        Stored bytes that have to be fetched for it, values and rows; None where sizes are unknown.
    median_ms
        Measured here and now, over some genes spread evenly; None in a store without genes.
    """

    median_nnz: int
    largest_nnz: int
    mean_chunks: float
    mean_bytes: int | None
    median_ms: float | None


class MatrixDescription(msgspec.Struct, frozen=True):
    """A matrix that can be read gene by gene."""

    name: str
    n_obs: int
    n_vars: int
    nnz: int
    data: ArrayDescription
    indices: ArrayDescription
    gene: GeneCost


class StoreDescription(msgspec.Struct, frozen=True):
    """What is in a store.

    Attributes
    ----------
    place
        Path or URL.
    zarr_format
        2 or 3.
    created_by
        Tool and version; None for stores of others.
    n_obs, n_vars
        Lengths of the axes.
    matrices
        Those that can be read gene by gene.
    obs, var
        Columns and their types.
    other
        Names of all other elements.
    """

    place: str
    zarr_format: int
    created_by: str | None
    n_obs: int
    n_vars: int
    matrices: tuple[MatrixDescription, ...]
    obs: dict[str, str]
    var: dict[str, str]
    other: tuple[str, ...]


def described(store: Store) -> StoreDescription:
    """Look at a store: its metadata, all of `indptr`, and some genes to time.

    Raises
    ------
    StoreError
        A matrix is damaged, or the storage fails.
    """
    root = store.root
    created_by = root.attrs.get("created_by")
    return StoreDescription(
        place=str(root.store_path),
        zarr_format=int(root.metadata.zarr_format),
        created_by=None if created_by is None else str(created_by),
        n_obs=store.n_obs,
        n_vars=store.n_vars,
        matrices=tuple(_matrix(store, name) for name in store.matrices),
        obs={str(name): str(dtype) for name, dtype in store.obs.dtypes.items()},
        var={str(name): str(dtype) for name, dtype in store.var.dtypes.items()},
        other=tuple(_others(store)),
    )


def of_description(found: StoreDescription) -> str:
    """A description as lines of text."""
    maker = found.created_by or "not dask_convert"
    lines = [
        f"store      {found.place}",
        f"made by    {maker}, zarr v{found.zarr_format}",
        f"axes       {found.n_obs:,} obs x {found.n_vars:,} vars",
        f"obs        {_columns(found.obs)}",
        f"var        {_columns(found.var)}",
    ]
    if found.other:
        lines.append(f"other      {', '.join(found.other)}")
    if not found.matrices:
        lines.append("no matrix is CSC: nothing here can be read gene by gene")
    return "\n".join([*lines, *(line for matrix in found.matrices for line in _lines(matrix))])


def _matrix(store: Store, name: str) -> MatrixDescription:
    reader = open_csc(store.root[name], name)
    data, indices = (described_array(store, f"{name}/{m}") for m in ("data", "indices"))
    return MatrixDescription(
        name, *reader.shape, reader.nnz, data, indices, _cost(store, reader, data, indices)
    )


def described_array(store: Store, path: str, *, sized: bool = True) -> ArrayDescription:
    """How an array of a store is stored.

    Parameters
    ----------
    store, path
        The store, and the array's path in it.
    sized
        Add up the sizes of its files, which takes a while on remote storages.
    """
    array: Any = store.root[path]
    codecs = [*(array.filters or ()), *(array.compressors or ())]
    names = tuple(_codec_name(codec) for codec in codecs)
    return ArrayDescription(
        dtype=str(array.dtype),
        chunk_nnz=int(array.chunks[0]),
        shard_nnz=int((array.shards or array.chunks)[0]),
        codecs=names or ("none",),
        checksums="crc32c" in names,
        stored_bytes=_stored_bytes(array) if sized else None,
    )


def _codec_name(codec: Any) -> str:
    """``zstd``, or for blosc what it calls: ``blosc-zstd``."""
    fields: dict[str, Any] = codec.to_dict() if hasattr(codec, "to_dict") else codec.get_config()
    settings = fields.get("configuration", fields)
    name = str(fields.get("name", fields.get("id")))
    return f"{name}-{settings['cname']}" if "cname" in settings else name


def _stored_bytes(array: Any) -> int | None:
    store, path = array.store_path.store, array.store_path.path
    try:
        return int(sync(store.getsize_prefix(path)))
    except Exception:  # noqa: BLE001  # storages that cannot list fail in ways of their own
        return None


def _cost(
    store: Store, reader: CscReader, data: ArrayDescription, indices: ArrayDescription
) -> GeneCost:
    """What a gene takes, by arithmetic on `indptr` and by the clock."""
    counts = np.diff(reader.indptr)
    if not counts.size:
        return GeneCost(0, 0, 0.0, None, None)
    touched = [_chunks_touched(reader.indptr, member.chunk_nnz) for member in (data, indices)]
    mean_bytes = None
    if data.stored_bytes is not None and indices.stored_bytes is not None and reader.nnz:
        per_entry = [(m.stored_bytes or 0) * m.chunk_nnz / reader.nnz for m in (data, indices)]
        most = data.stored_bytes + indices.stored_bytes
        mean_bytes = min(int(np.dot(touched, per_entry)), most)
    genes = np.linspace(0, counts.size - 1, min(_TIMED_GENES, counts.size)).astype(int)
    taken = []
    for gene in [genes[0], *genes]:  # the first one opens the file
        started = time.perf_counter()
        store.read(int(gene), matrix=reader.name)
        taken.append(1000 * (time.perf_counter() - started))
    return GeneCost(
        median_nnz=int(np.median(counts)),
        largest_nnz=int(counts.max()),
        mean_chunks=touched[0],
        mean_bytes=mean_bytes,
        median_ms=float(np.median(taken[1:])),
    )


def _chunks_touched(indptr: Any, chunk_nnz: int) -> float:
    """The mean number of chunks that a column lies in."""
    starts, stops = indptr[:-1], indptr[1:]
    return float(
        np.mean(np.where(stops > starts, (stops - 1) // chunk_nnz - starts // chunk_nnz + 1, 0))
    )


def _others(store: Store) -> list[str]:
    found = [] if "X" in store.matrices or store.root.get("X") is None else ["X"]
    for name in _ELEMENTS:
        group: Any = store.root.get(name)
        if group is None or not hasattr(group, "keys"):  # anndata stores raw=None as an array
            continue
        inside = [f"{name}/{key}" for key in sorted(group.keys())]
        found += [path for path in inside if path not in store.matrices]
    return found


def _columns(dtypes: dict[str, str]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in dtypes.items()) or "no columns"


def _lines(matrix: MatrixDescription) -> list[str]:
    data, indices, gene = matrix.data, matrix.indices, matrix.gene
    size = "unknown size"
    if data.stored_bytes is not None and indices.stored_bytes is not None:
        stored = data.stored_bytes + indices.stored_bytes
        each = f", {stored / matrix.nnz:.2f} bytes per entry" if matrix.nnz else ""
        size = f"{bytes_text(stored)}{each}"
    density = matrix.nnz / max(matrix.n_obs * matrix.n_vars, 1)
    fetched = "" if gene.mean_bytes is None else f", {bytes_text(gene.mean_bytes)} fetched"
    timed = "" if gene.median_ms is None else f", {gene.median_ms:.1f} ms here and now"
    return [
        f"{matrix.name:<10} {matrix.n_obs:,} obs x {matrix.n_vars:,} vars, {matrix.nnz:,} entries "
        f"({density:.1%}) of {data.dtype}, rows {indices.dtype}",
        f"  stored   {size}; {' + '.join(data.codecs)}{'' if data.checksums else ', no checksums'}",
        f"  layout   chunks of {data.chunk_nnz:,} entries, files of {data.shard_nnz:,}",
        f"  gene     {gene.median_nnz:,} entries in the median, {gene.largest_nnz:,} at most; "
        f"{gene.mean_chunks:.2f} chunks{fetched}{timed}",
    ]
