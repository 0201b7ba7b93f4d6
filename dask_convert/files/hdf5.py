"""Arrays of an HDF5 file, in order, piece by piece.

Two ways lead to their elements. HDF5's own, through h5py, knows every filter but works under
one lock per process and inflates with zlib. The other one asks HDF5 once where every chunk
lies and then needs only `os.pread` and a fast inflater; it serves what nearly all h5ad files
are: contiguous, or chunked, with or without shuffle, with or without gzip or zstd. A property
test holds both to the same result.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import deflate
import h5py
import msgspec
import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import SourceError, StorageError
from dask_convert.files.admission import (
    admit,
    check_allocation,
    check_filters,
    ignore_plugin_paths,
)
from dask_convert.files.chunk_guard import ChunkGuard, check_extent
from dask_convert.files.filters import filter_name, is_usual, pipeline, zstd_inflated
from dask_convert.files.hdf5_errors import reading, refuse_transient
from dask_convert.files.rehearsal import rehearse
from dask_convert.page_cache import fills_cache, not_needed, will_need
from dask_convert.planning import memory
from dask_convert.planning.layout import ArraySource, Trust
from dask_convert.planning.records import native_dtype

CHUNK_DTYPE = np.dtype([("offset", "<u8"), ("stored_bytes", "<u8")])
"""A row of a chunk table; a chunk that was never written has offset and size 0."""

_RAW_PIPELINES = (
    *((), ("shuffle",), ("gzip",), ("shuffle", "gzip")),
    *(("zstd",), ("shuffle", "zstd")),
)

Piece = tuple[int, NDArray[Any]]


def open_source(path: Path, trust: Trust = Trust()) -> h5py.File:  # noqa: B008  (frozen)
    """Open an h5ad file for reading, after a look at all that it may lead to.

    Parameters
    ----------
    path
        The file.
    trust
        What the file may do beyond being read; see `dask_convert.files.admission`.

    Raises
    ------
    SourceError
        It is not there, not readable, not HDF5, or damaged.
    AdmissionError
        It leads to other files, needs foreign code, or declares more than it holds.
    """
    check_file(path)
    rehearse(path)
    file = reopen_source(path, trust)
    try:
        admit(file, trust)
    except BaseException:
        file.close()
        raise
    return file


def reopen_source(path: Path, trust: Trust = Trust()) -> h5py.File:  # noqa: B008  (frozen)
    """Open a file that `open_source` has looked at before.

    Raises
    ------
    SourceError
        It is not there, not readable or not HDF5.
    StorageError
        The system failed, in a way that may pass: the file is not to blame.
    """
    check_file(path)
    if not trust.allow_plugins:
        ignore_plugin_paths()
    try:
        return h5py.File(path, "r", locking="best-effort")
    except (OSError, RuntimeError, ValueError) as error:
        if "unable to lock file" in str(error):
            msg = f"{path}: another program has it open for writing: wait until it is closed"
            raise StorageError(msg) from error
        refuse_transient(error, str(path))
        what = " ".join(str(error).split())
        if "truncated file" in what:
            what = f"it was cut short: copy it again ({what})"
        elif "signature not found" in what:
            what = "it is no HDF5 file, so no .h5ad file"
        msg = f"{path}: cannot be opened as HDF5: {what}"
        raise SourceError(msg) from error


def check_file(path: Path) -> None:
    """Refuse what is no file that can be read.

    Raises
    ------
    SourceError
        Says what it is.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        msg = f"{path}: no such file"
        raise SourceError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}"
        raise SourceError(msg) from error
    if not stat.S_ISREG(mode):
        msg = f"{path}: not a file; the source must be one .h5ad file"
        raise SourceError(msg)
    if not os.access(path, os.R_OK):
        msg = f"{path}: no permission to read it; ask its owner, or copy it"
        raise SourceError(msg)


def chunk_table(dataset: h5py.Dataset) -> NDArray[np.void] | None:
    """Where every chunk of a data set lies in the file; one pass over HDF5's index.

    Returns
    -------
        One row of `CHUNK_DTYPE` per chunk; for a contiguous data set one row in all. None
        where some chunk skipped its filters, so that only HDF5 can tell how to read it.

    Raises
    ------
    SourceError
        A chunk lies behind the end of the file, or the index is damaged.
    """
    if dataset.chunks is None:
        table = np.zeros(1, CHUNK_DTYPE)
        table[0] = (dataset.id.get_offset() or 0, dataset.id.get_storage_size())
        return table
    (length,) = dataset.chunks
    chunk_bytes = length * dataset.id.get_type().get_size()
    file_bytes = Path(dataset.file.filename).stat().st_size
    name = dataset.name.lstrip("/")
    table = np.zeros(-(-dataset.shape[0] // length), CHUNK_DTYPE)
    unfiltered = 0

    def note(chunk: Any) -> None:
        nonlocal unfiltered
        number = chunk.chunk_offset[0] // length
        what = f"{name}, chunk {number} (elements from {chunk.chunk_offset[0]})"
        check_extent(what, chunk.byte_offset, chunk.size, chunk_bytes, file_bytes)
        table[number] = (chunk.byte_offset, chunk.size)
        unfiltered += chunk.filter_mask != 0

    with reading(f"{name}, where its chunks are"):
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
    trust
        What the file may do beyond being read.

    Notes
    -----
    A context manager: it holds the file open. `stored_bytes` counts what was read of it, as
    stored; through HDF5, which does not tell, in proportion to the elements.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        array: ArraySource,
        table: NDArray[np.void] | None = None,
        trust: Trust = Trust(),  # noqa: B008  (frozen)
    ) -> None:
        self.stored_bytes = 0
        self._name = name
        self._array = array
        self._table = table
        self._native = native_dtype(array.dtype)
        self._files = ExitStack()
        if table is None:
            file = self._files.enter_context(reopen_source(path, trust))
            self._dataset = member_dataset(file, name, array, trust)
        else:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._files.callback(os.close, self._descriptor)
            self._file_bytes = os.fstat(self._descriptor).st_size

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
        chunks = table[numbers.start : numbers.stop].tolist()
        stored_bytes = sum(size for _, size in chunks)
        ahead = memory.READ_PIECE_BYTES * len(chunks) // max(stored_bytes, 1) + 1
        self._expect(chunks[:ahead])
        for done, (number, (offset, size)) in enumerate(zip(numbers, chunks, strict=True)):
            if done % ahead == 0:
                self._expect(chunks[done + ahead : done + 2 * ahead])
            first = number * length
            what = f"{self._name}, chunk {number} (elements from {first})"
            if not size:
                msg = f"{what} was never written: HDF5 would read zeros where values are missing"
                raise SourceError(msg)
            encoded = self._read(size, offset, what)
            elements = np.frombuffer(_inflate(encoded, self._array, stored.itemsize, what), stored)
            low, high = max(start - first, 0), min(stop - first, length)
            yield first + low, elements[low:high].astype(self._native, copy=False)
        self._forget(chunks)

    def _expect(self, chunks: list[tuple[int, int]]) -> None:
        """Have chunks fetched: at once where they lie together, as most writers put them."""
        written = [(offset, size) for offset, size in chunks if size]
        together = _extent(written)
        for offset, size in [together] if together else written:
            will_need(self._descriptor, offset, size)

    def _forget(self, chunks: list[tuple[int, int]]) -> None:
        """Leave the page cache to fragments, where this array would fill much of it."""
        together = _extent(chunks)
        if together and fills_cache(self._array.stored_bytes):  # none: other arrays lie between
            not_needed(self._descriptor, *together)

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
        guard = ChunkGuard(self._dataset, self._name)
        step = max(memory.READ_PIECE_BYTES // itemsize // chunk, 1) * chunk
        while start < stop:
            end = min((start // step + 1) * step, stop)
            guard.check(end, start=start)
            with reading(f"{self._name}, elements {start} to {end}"):
                elements = self._dataset[start:end]
            self.stored_bytes += self._array.stored_bytes * (end - start) // self._array.length
            yield start, elements.astype(self._native, copy=False)
            start = end

    def _read(self, size: int, offset: int, what: str) -> bytes:
        if offset + size > self._file_bytes:  # before memory is asked for
            msg = f"{what}: the file ends at {self._file_bytes}, before it: it was cut short"
            raise SourceError(msg)
        read = os.pread(self._descriptor, size, offset)
        while len(read) < size:  # Linux returns at most 2 GiB at once, and signals may cut a read
            more = os.pread(self._descriptor, size - len(read), offset + len(read))
            if not more:
                msg = f"{what}: the file ends before it: it was cut short"
                raise SourceError(msg)
            read += more
        self.stored_bytes += size
        return read


def _extent(chunks: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Offset and size of the part of a file that chunks fill; None if most of it is not theirs."""
    if not chunks:
        return None
    first = min(offset for offset, _ in chunks)
    size = max(offset + size for offset, size in chunks) - first
    return (first, size) if size <= 2 * sum(size for _, size in chunks) else None


def member_dataset(
    file: h5py.File,
    path: str,
    array: ArraySource,
    trust: Trust = Trust(),  # noqa: B008  (frozen)
) -> h5py.Dataset:
    """A member array that is to be read through HDF5, with its filter plugins loaded.

    Raises
    ------
    SourceError
        A filter that the array needs is not available, parts of it were never written, or it is
        not what it was when it was planned for.
    """
    with reading(path):
        dataset = file[path]
        check_filters(dataset, path, trust)
        if not (dataset.is_virtual or dataset.external):  # those were seen to at first
            check_allocation(dataset, path)
        now = array_source(dataset, file.filename)
        if now != msgspec.structs.replace(array, raw=now.raw):
            msg = f"{path}: is not what it was: the file was changed while it was converted"
            raise SourceError(msg)
    return dataset


def array_source(dataset: h5py.Dataset, home: str) -> ArraySource:
    """How a member array is stored, and whether it can be read without HDF5.

    `home` is the name of the source file: a link may have led into another one.
    """
    steps = pipeline(dataset)
    filters = tuple(filter_name(step.code) for step in steps)
    in_file = not dataset.is_virtual and dataset.external is None
    in_file &= dataset.file.filename == home
    placed = dataset.chunks is not None or dataset.id.get_offset() is not None
    # HDF5 has numbers that numpy has not, of 20 bits say; h5py converts them, a plain read doesn't.
    plain = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype, logical=True)
    plain &= all(is_usual(step, dataset.dtype.itemsize) for step in steps)
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
    if "zstd" in array.filters:
        content = zstd_inflated(encoded, expected)
        if content is None:
            msg = f"{what}: cannot be inflated to {expected} bytes: the file is damaged there"
            raise SourceError(msg)
        inflated = content
    if len(inflated) != expected:
        msg = f"{what}: has {len(inflated)} bytes instead of {expected}: the file is damaged there"
        raise SourceError(msg)
    if "shuffle" in array.filters and itemsize > 1:
        planes = np.frombuffer(inflated, np.uint8).reshape(itemsize, array.chunk_length)
        inflated = np.ascontiguousarray(planes.T).tobytes()
    return inflated
