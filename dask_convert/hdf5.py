"""Arrays of an HDF5 file, in order, piece by piece.

Two ways lead to their elements. HDF5's own, through h5py, knows every filter but works under
one lock per process and inflates with zlib. The other one asks HDF5 once where every chunk
lies and then needs only `os.pread` and a fast inflater; it serves what nearly all h5ad files
are: contiguous, or chunked with gzip, shuffle or neither. A property test holds both to the
same result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import deflate
import h5py
import numpy as np
from numpy.typing import NDArray

from dask_convert import memory
from dask_convert.errors import SourceError
from dask_convert.layout import ArraySource
from dask_convert.records import native_dtype
from dask_convert.scratch import will_need

CHUNK_DTYPE = np.dtype([("offset", "<u8"), ("stored_bytes", "<u8")])
"""A row of a chunk table; a chunk that was never written has offset and size 0."""

_RAW_PIPELINES = ((), ("gzip",), ("shuffle",), ("shuffle", "gzip"))
_FILTER_NAMES = {
    h5py.h5z.FILTER_DEFLATE: "gzip",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_LZF: "lzf",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    h5py.h5z.FILTER_SZIP: "szip",
    h5py.h5z.FILTER_SCALEOFFSET: "scaleoffset",
    h5py.h5z.FILTER_NBIT: "nbit",
    32001: "blosc",
    32015: "zstd",
    32004: "lz4",
    32026: "blosc2",
    32008: "bitshuffle",
}


Piece = tuple[int, NDArray[Any]]


def open_source(path: Path) -> h5py.File:
    """Open an h5ad file for reading.

    Raises
    ------
    SourceError
        It is not there, not readable or not HDF5.
    """
    if not path.exists():
        msg = f"{path}: no such file"
        raise SourceError(msg)
    if not path.is_file():
        msg = f"{path}: not a file; the source must be one .h5ad file"
        raise SourceError(msg)
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        msg = f"{path}: cannot be opened as HDF5: {error}"
        raise SourceError(msg) from error


def chunk_table(dataset: h5py.Dataset) -> NDArray[np.void] | None:
    """Where every chunk of a data set lies in the file; one pass over HDF5's index.

    Returns
    -------
        One row of `CHUNK_DTYPE` per chunk; for a contiguous data set one row in all. None
        where some chunk skipped its filters, so that only HDF5 can tell how to read it.
    """
    if dataset.chunks is None:
        table = np.zeros(1, CHUNK_DTYPE)
        table[0] = (dataset.id.get_offset() or 0, dataset.id.get_storage_size())
        return table
    (length,) = dataset.chunks
    table = np.zeros(-(-dataset.shape[0] // length), CHUNK_DTYPE)
    unfiltered = 0

    def note(chunk: Any) -> None:
        nonlocal unfiltered
        table[chunk.chunk_offset[0] // length] = (chunk.byte_offset, chunk.size)
        unfiltered += chunk.filter_mask != 0

    dataset.id.chunk_iter(note)
    return None if unfiltered else table


class MemberReader:
    """Reads the elements of one member array of a matrix, in pieces, in order.

    Parameters
    ----------
    path
        The h5ad file.
    name
        The data set within it.
    array
        How it is stored.
    table
        Where its chunks lie, if it is to be read without HDF5.

    Notes
    -----
    A context manager: it holds the file open. `stored_bytes` counts what was read of it, as
    stored; through HDF5, which does not tell, in proportion to the elements.
    """

    def __init__(
        self, path: Path, name: str, array: ArraySource, table: NDArray[np.void] | None = None
    ) -> None:
        self.stored_bytes = 0
        self._name = name
        self._array = array
        self._table = table
        self._native = native_dtype(array.dtype)
        self._files = ExitStack()
        if table is None:
            file = self._files.enter_context(open_source(path))
            self._dataset = member_dataset(file, name, array.filters)
        else:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files.callback(os.close, self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._files.close()

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Elements ``[start, stop)``, as consecutive pieces in native byte order.

        Yields
        ------
            Position of the first element in the data set, and the elements.

        Raises
        ------
        SourceError
            A chunk was never written, is cut short or cannot be inflated.
        """
        if self._table is None:
            return self._hdf5_pieces(start, stop)
        if self._array.chunk_length:
            return self._chunk_pieces(self._table, start, stop)
        return self._contiguous_pieces(int(self._table["offset"][0]), start, stop)

    def _chunk_pieces(self, table: NDArray[np.void], start: int, stop: int) -> Iterator[Piece]:
        length = self._array.chunk_length
        stored = np.dtype(self._array.dtype)
        numbers = range(start // length, -(-stop // length))
        sizes = table["stored_bytes"][numbers.start : numbers.stop]
        ahead = memory.READ_PIECE_BYTES * len(numbers) // max(int(sizes.sum()), 1) + 1
        for number in numbers[:ahead]:
            self._will_need(table[number])
        for number in numbers:
            if number + ahead in numbers:
                self._will_need(table[number + ahead])
            first = number * length
            offset, size = (int(field) for field in table[number])
            what = f"{self._name}, chunk {number} (elements from {first})"
            if not size:
                msg = f"{what} was never written: HDF5 would read zeros where values are missing"
                raise SourceError(msg)
            encoded = self._read(size, offset, what)
            elements = np.frombuffer(_inflate(encoded, self._array, stored.itemsize, what), stored)
            low, high = max(start - first, 0), min(stop - first, length)
            yield first + low, elements[low:high].astype(self._native, copy=False)

    def _contiguous_pieces(self, offset: int, start: int, stop: int) -> Iterator[Piece]:
        stored = np.dtype(self._array.dtype)
        step = memory.READ_PIECE_BYTES // stored.itemsize
        for first in range(start, stop, step):
            length = min(step, stop - first)
            what = f"{self._name}, elements {first} to {first + length}"
            read = self._read(length * stored.itemsize, offset + first * stored.itemsize, what)
            yield first, np.frombuffer(read, stored).astype(self._native, copy=False)

    def _hdf5_pieces(self, start: int, stop: int) -> Iterator[Piece]:
        itemsize = self._native.itemsize
        chunk = self._array.chunk_length or 1
        step = max(memory.READ_PIECE_BYTES // itemsize // chunk, 1) * chunk
        while start < stop:
            end = min((start // step + 1) * step, stop)
            try:
                elements = self._dataset[start:end]
            except OSError as error:
                msg = f"{self._name}, elements {start} to {end}: HDF5 cannot read them: {error}"
                raise SourceError(msg) from error
            self.stored_bytes += self._array.stored_bytes * (end - start) // self._array.length
            yield start, elements.astype(self._native, copy=False)
            start = end

    def _will_need(self, chunk: NDArray[np.void]) -> None:
        will_need(self._descriptor, int(chunk["offset"]), int(chunk["stored_bytes"]))

    def _read(self, size: int, offset: int, what: str) -> bytes:
        read = os.pread(self._descriptor, size, offset)
        while len(read) < size:  # Linux returns at most 2 GiB at once, and signals may cut a read
            more = os.pread(self._descriptor, size - len(read), offset + len(read))
            if not more:
                msg = f"{what}: the file ends before it: it was cut short"
                raise SourceError(msg)
            read += more
        self.stored_bytes += size
        return read


def member_dataset(file: h5py.File, path: str, filters: tuple[str, ...]) -> h5py.Dataset:
    """A member array that is to be read through HDF5, with its filter plugins loaded.

    Raises
    ------
    SourceError
        A filter that the array needs is not available, or parts of it were never written.
    """
    dataset = file[path]
    if not set(filters) <= set(_FILTER_NAMES.values()) - {
        "blosc",
        "zstd",
        "lz4",
        "blosc2",
        "bitshuffle",
    }:
        import hdf5plugin  # noqa: F401  (registers its filters; slow and rarely needed)
    properties = dataset.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code = properties.get_filter(number)[0]
        if not h5py.h5z.filter_avail(code):
            msg = f"{path}: HDF5 filter {_FILTER_NAMES.get(code, code)!r} is not available here"
            raise SourceError(msg)
    if _missing_parts(dataset):
        msg = f"{path}: a part of it was never written, and HDF5 would read zeros there"
        raise SourceError(msg)
    return dataset


def _missing_parts(dataset: h5py.Dataset) -> bool:
    """Whether HDF5 would make up some of the elements."""
    if dataset.chunks:
        return bool(dataset.id.get_num_chunks() < -(-dataset.size // dataset.chunks[0]))
    elsewhere = dataset.is_virtual or dataset.external is not None
    return bool(dataset.size and not elsewhere and not dataset.id.get_storage_size())


def array_source(dataset: h5py.Dataset) -> ArraySource:
    """How a member array is stored, and whether it can be read without HDF5."""
    properties = dataset.id.get_create_plist()
    codes = [properties.get_filter(n)[0] for n in range(properties.get_nfilters())]
    filters = tuple(_FILTER_NAMES.get(code, str(code)) for code in codes)
    in_file = not dataset.is_virtual and dataset.external is None
    placed = dataset.chunks is not None or dataset.id.get_offset() is not None
    # HDF5 has numbers that numpy has not, of 20 bits say; h5py converts them, a plain read doesn't.
    plain = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype, logical=True)
    return ArraySource(
        dtype=np.dtype(bool).str if dataset.dtype == bool else dataset.dtype.str,
        length=int(dataset.shape[0]),
        chunk_length=int(dataset.chunks[0]) if dataset.chunks else 0,
        stored_bytes=int(dataset.id.get_storage_size()),
        filters=filters,
        raw=filters in _RAW_PIPELINES
        and (in_file and placed and plain)
        and not dataset.file.userblock_size,
    )


def _inflate(encoded: bytes, array: ArraySource, itemsize: int, what: str) -> bytes | bytearray:
    """Undo the filters of one chunk."""
    expected = array.chunk_length * itemsize
    inflated: bytes | bytearray = encoded
    if "gzip" in array.filters:
        try:
            inflated = deflate.zlib_decompress(encoded, expected)
        except deflate.DeflateError as error:
            msg = f"{what}: cannot be inflated: the file is damaged there"
            raise SourceError(msg) from error
    if len(inflated) != expected:
        msg = f"{what}: has {len(inflated)} bytes instead of {expected}: the file is damaged there"
        raise SourceError(msg)
    if "shuffle" in array.filters and itemsize > 1:
        planes = np.frombuffer(inflated, np.uint8).reshape(itemsize, array.chunk_length)
        inflated = np.ascontiguousarray(planes.T).tobytes()
    return inflated
