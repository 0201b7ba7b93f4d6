"""Copies an AnnData zarr store into an `.h5ad` file, in slabs of bounded size.

AnnData's on-disk specification is one for zarr and HDF5, so groups and arrays are copied as they
are stored, with their attributes. What HDF5 has other forms for, tables with named fields, goes
through anndata. Members of matrices are deflated here, chunk by chunk on all cores: HDF5 would do
so on one, and with zlib.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import deflate
import h5py
import msgspec
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from dask_convert.errors import AnnotationError, IntegrityError
from dask_convert.files.hdf5_lock import write_chunk
from dask_convert.files.zarr_csc import is_ours
from dask_convert.planning.cores import available_cores

SLAB_BYTES = 2**25
GZIP_LEVEL = 1
"""Of all but small arrays: every HDF5 library reads gzip, and level 1 is twice as fast as 4."""
_SMALL_BYTES = 2**12
_THREADS = 8  # at most; more would wait for the one that reads, and for the disk
_MATRICES = {"csc_matrix", "csr_matrix"}


class _How(msgspec.Struct, frozen=True):
    """How arrays are copied; see `write_h5ad`."""

    compressed: bool
    check: Callable[[], None]


def write_h5ad(
    root: zarr.Group,
    file: h5py.File,
    *,
    compressed: bool,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Copy a store.

    Parameters
    ----------
    root
        The store.
    file
        Empty; gets all of it.
    compressed
        Whether arrays are compressed, with gzip.
    check
        Called after each slab; may raise. See `dask_convert.files.hdf5_sink`.

    Raises
    ------
    AnnotationError
        An element cannot be written to HDF5; names it.
    """
    _copy_attrs(root, file)
    for name, item in sorted(root.members()):
        _copy(item, file, name, _How(compressed, check))


def check_matrices(root: zarr.Group, file: h5py.File) -> None:
    """Make sure that sparse matrices of a store and a file are the same, bit by bit.

    Raises
    ------
    IntegrityError
        Names the first array and slab that differ.
    """
    for name, item in root.members(max_depth=None):
        if not isinstance(item, zarr.Group) or item.attrs.get("encoding-type") not in _MATRICES:
            continue
        for member in ("indptr", "indices", "data"):
            array: Any = item[member]
            for place in _slabs(array):
                if array[place].tobytes() != file[f"{name}/{member}"][place].tobytes():
                    start = place[0].start
                    msg = (
                        f"{name}/{member}: what was written differs from {start:,} on; nothing was "
                        "published"
                    )
                    raise IntegrityError(msg)


def _copy(item: Any, parent: h5py.Group, name: str, how: _How) -> None:
    path = f"{parent.name.rstrip('/')}/{name}".lstrip("/")
    try:
        if item.attrs.get("encoding-type") == "rec-array":
            _copy_by_anndata(item, parent, name)
        elif isinstance(item, zarr.Array):
            _copy_array(item, parent, name, how)
        else:
            group = parent.create_group(name)
            _copy_attrs(item, group)
            for key, member in sorted(item.members()):
                _copy(member, group, key, how)
    except (TypeError, ValueError, KeyError) as error:
        msg = f"{path}: cannot be written to HDF5: {error}"
        raise AnnotationError(msg) from error


def _copy_by_anndata(item: Any, parent: h5py.Group, name: str) -> None:
    from anndata.io import read_elem, write_elem

    write_elem(parent, name, read_elem(item))


def _copy_array(array: Any, parent: h5py.Group, name: str, how: _How) -> None:
    if array.attrs.get("encoding-type") == "null":
        dataset = parent.create_dataset(name, data=h5py.Empty("f"))
        _copy_attrs(array, dataset)
        return
    options: dict[str, Any] = {"shape": array.shape}
    if array.ndim and array.size and array.size * array.dtype.itemsize > _SMALL_BYTES:
        chunks = zip(array.chunks, array.shape, strict=True)
        options["chunks"] = tuple(min(chunk, length) for chunk, length in chunks)
        if how.compressed:
            options |= {"compression": "gzip", "compression_opts": GZIP_LEVEL, "shuffle": True}
    if array.dtype.kind in "TUO":
        _copy_attrs(array, _copy_text(array, parent, name, options, how))
        return
    dataset = parent.create_dataset(name, dtype=array.dtype, **options)
    _copy_attrs(array, dataset)
    if "compression" in options and array.ndim == 1 and array.dtype.kind in "iuf":
        _copy_deflated(array, dataset, how)
        return
    for place in _slabs(array):
        dataset[place] = array[place]
        how.check()


def _copy_text(
    array: Any, parent: h5py.Group, name: str, options: dict[str, Any], how: _How
) -> h5py.Dataset:
    """Write strings of variable length, as anndata does; where one holds a NUL, of a fixed one.

    In HDF5 a string of variable length ends at a NUL, so such a source had a fixed length too.
    """

    def written(dtype: Any) -> h5py.Dataset:
        dataset = parent.create_dataset(name, dtype=dtype, **options)
        for place in _slabs(array):
            dataset[place] = _words(array, place)
            how.check()
        return dataset

    try:
        return written(h5py.string_dtype())
    except ValueError:  # h5py's of a NUL; any other comes again
        del parent[name]
    return written(
        _fixed_dtype(word for place in _slabs(array) for word in _words(array, place).flat)
    )


def _words(array: Any, place: tuple[slice, ...]) -> NDArray[Any]:
    return np.asarray(array[place]).astype(object)


def _fixed_dtype(words: Iterable[str]) -> np.dtype[Any]:
    """Of strings as long as the longest."""
    dtype: np.dtype[Any] = h5py.string_dtype(length=max(len(word.encode()) for word in words))
    return dtype


def _copy_deflated(array: Any, dataset: h5py.Dataset, how: _How) -> None:
    """Write chunks as HDF5's filters would make them; the next slab is read meanwhile."""
    length, stored = dataset.chunks[0], dataset.dtype
    deflated = _deflater(length, stored)
    slabs = list(_slabs(array))
    with ThreadPoolExecutor(min(_THREADS, available_cores())) as pool:
        reading = pool.submit(array.__getitem__, slabs[0])
        for place, following in zip_longest(slabs, slabs[1:]):
            values = np.ascontiguousarray(reading.result(), stored)
            if following is not None:
                reading = pool.submit(array.__getitem__, following)
            starts = range(0, values.size, length)
            chunks = pool.map(deflated, (values[start : start + length] for start in starts))
            for start, chunk in zip(starts, chunks, strict=True):
                write_chunk(dataset, (place[0].start + start,), chunk)
            how.check()


def _deflater(length: int, dtype: np.dtype[Any]) -> Callable[[NDArray[Any]], bytes]:
    """What HDF5's filters shuffle and gzip make of a chunk; the last one is filled with zeros."""
    shuffle = numcodecs.Shuffle(dtype.itemsize)

    def deflated(values: NDArray[Any]) -> bytes:
        if values.size < length:
            values = np.concatenate([values, np.zeros(length - values.size, dtype)])
        return bytes(deflate.zlib_compress(shuffle.encode(values), GZIP_LEVEL))

    return deflated


def _slabs(array: Any) -> Iterator[tuple[slice, ...]]:
    """Parts of an array of at most `SLAB_BYTES` where its first axis can be cut so."""
    if not array.ndim:
        yield ()
        return
    if not array.size:
        return
    step = (array.shards or array.chunks)[0]
    row_bytes = max(array.size // array.shape[0] * array.dtype.itemsize, 1)
    rows = max(SLAB_BYTES // row_bytes // step * step, array.chunks[0])
    for start in range(0, array.shape[0], rows):
        yield (slice(start, min(start + rows, array.shape[0])),)


def _copy_attrs(item: Any, target: Any) -> None:
    """Attributes as anndata has them in HDF5: words are text, lists are arrays."""
    for name, value in item.attrs.items():
        values = np.array(value, object)
        if value is None:  # empty in the source, of a type that zarr does not keep
            target.attrs[name] = h5py.Empty("f")
        elif not all(isinstance(word, str) for word in values.flat):
            target.attrs[name] = value
        elif any("\0" in word for word in values.flat):  # see `_copy_text`
            encoded = np.reshape([word.encode() for word in values.flat], values.shape)
            target.attrs.create(name, encoded, dtype=_fixed_dtype(values.flat))
        else:
            target.attrs.create(name, values, dtype=h5py.string_dtype())


def made_by_us(path: Any) -> bool:
    """Whether a path is an h5ad file that this tool made."""
    try:
        with h5py.File(path, "r") as file:
            return is_ours(file.attrs)
    except OSError:
        return False
