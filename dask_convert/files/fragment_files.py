"""A row block's fragment file on scratch: written once by a split task, read in slices.

See `dask_convert.shuffle.fragments` for what is in it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import FragmentError
from dask_convert.files.scratch import published, visible, write_all
from dask_convert.page_cache import will_need
from dask_convert.planning.layout import FRAGMENT_FIXED_BYTES, ColumnRange, FragmentLayout
from dask_convert.planning.memory import FILES_AHEAD, READ_PIECE_BYTES
from dask_convert.planning.records import Records
from dask_convert.shuffle.fragments import (
    TABLE_DTYPE,
    Bytes,
    Counts,
    Head,
    RecordKind,
    decode_fixed,
    decode_head,
    decode_paged,
    decode_words,
    encode_head,
    encode_indexes,
    encode_records,
    fragment_checksum,
)
from dask_convert.shuffle.pages import PagedRecords


class Fragment(msgspec.Struct, frozen=True):
    """A fragment, or several that lie next to each other, read and checked.

    Attributes
    ----------
    columns
        The columns that it covers.
    counts
        Entries of each of these columns; uint32.
    payload
        Type of the values in its records.
    records
        Column after column, rows ascending within each.
    """

    columns: ColumnRange
    counts: Counts
    payload: np.dtype[Any]
    records: PagedRecords | Records


def write_fragment_file(
    path: Path,
    layout: FragmentLayout,
    records: PagedRecords | Records,
    counts: Counts,
    payload: np.dtype[Any],
) -> int:
    """Write a row block's fragments: room for the head, indexes, records, then the head.

    Nothing is fsynced: what a loss of power leaves of the file is found out by its checksums,
    and made again.

    Returns
    -------
        Bytes written.
    """
    n_pages = records.page_counts.shape[1] if isinstance(records, PagedRecords) else 0
    kind = RecordKind(n_pages, payload)
    indexes = list(encode_indexes(records, counts, layout.column_width))
    table = np.zeros(layout.n_ranges, TABLE_DTYPE)
    table["index_end"] = np.cumsum([index.size for index in indexes], dtype=np.uint64)
    kind_checksum, end = kind.checksum(), 0
    with published(path, "fragment") as file:
        file.seek(layout.head_bytes)
        for index in indexes:
            write_all(file, index)
        for number, encoded in enumerate(encode_records(records, counts, layout.column_width)):
            end += encoded.size
            checksum = fragment_checksum(kind_checksum, indexes[number], encoded)
            table[number] = (table["index_end"][number], end, checksum)
            write_all(file, encoded)
        file.seek(0)
        nnz = int(counts.sum(dtype=np.int64))
        write_all(file, encode_head(layout, Head(nnz, kind, counts, table)))
    return layout.head_bytes + sum(index.size for index in indexes) + end


def open_ahead(
    paths: Sequence[Path], layout: FragmentLayout, numbers: range, wait_seconds: float = 0.0
) -> Iterator[FragmentFile]:
    """Open fragment files in turn, with their fragments of some column ranges located.

    What will be read of the next files is asked for ahead of time, heads first and then
    fragments, so that a disk (or a file system at the other end of a network) works while
    its last answers are used. Each file is closed when the next one is asked for.

    Raises
    ------
    FragmentError
        One of them is missing, even after `wait_seconds`, or its head is damaged.
    """
    opened = set[FragmentFile]()  # closed ones go: each keeps the counts of its columns

    def expected() -> Iterator[FragmentFile]:
        for path in paths:
            file = FragmentFile(path, layout, wait_seconds)
            opened.add(file)
            yield file.expect(numbers)

    try:
        for file in _ahead(file.locate() for file in _ahead(expected())):
            yield file
            file.close()
            opened.discard(file)
    finally:
        for file in opened:
            file.close()


def _ahead(files: Iterator[FragmentFile]) -> Iterator[FragmentFile]:
    """The same files, each taken `FILES_AHEAD` steps before it is given."""
    taken: deque[FragmentFile] = deque()
    for file in files:
        taken.append(file)
        if len(taken) > FILES_AHEAD:
            yield taken.popleft()
    yield from taken


class _Piece(NamedTuple):
    """Fragments that were read at once: their numbers, index and records of each, all records."""

    numbers: range
    indexes: list[Bytes]
    records: list[Bytes]
    encoded: Bytes


class FragmentFile:
    """An open fragment file; a context manager. Its errors carry its path.

    Parameters
    ----------
    path, layout
        The file, and where things are in it.
    wait_seconds
        For the file to become visible, if it is not.

    Raises
    ------
    FragmentError
        The file is not there.
    """

    def __init__(self, path: Path, layout: FragmentLayout, wait_seconds: float = 0.0) -> None:
        self.read_bytes = 0
        self._descriptor = -1
        self._name = str(path)
        self._layout = layout
        with self._blamed():
            self._descriptor = self._open(path, wait_seconds)
        self._file_bytes = os.fstat(self._descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; again does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def head(self, nnz: int | None = None) -> Head:
        """The whole head, checked; `nnz` is how many entries there must be, if that is known.

        Raises
        ------
        FragmentError
            It is damaged or cut short, or has other entries.
        """
        with self._blamed():
            encoded = self._read(0, self._layout.head_bytes).tobytes()
            head = decode_head(self._layout, encoded, self._name)
            counted = int(head.counts.sum(dtype=np.int64))
            if nnz is not None and (head.nnz != nnz or counted != nnz):
                msg = f"{self._name}: holds {head.nnz} entries, the plan says {nnz}"
                raise FragmentError(msg)
            return head

    def check(self) -> None:
        """Read the whole file and hold it against its checksums.

        Raises
        ------
        FragmentError
            Something is damaged or cut short.
        """
        self.head()
        if not self._layout.n_ranges:
            return
        self.expect(range(self._layout.n_ranges)).locate()
        with self._blamed():
            for _ in self._pieces():
                pass

    def expect(self, numbers: range) -> Self:
        """Say which consecutive column ranges will be read; their part of the head is fetched."""
        self._numbers = numbers
        will_need(self._descriptor, 0, FRAGMENT_FIXED_BYTES)
        will_need(self._descriptor, *self._table_place())
        return self

    def locate(self) -> Self:
        """Read where the expected fragments are; they are fetched.

        Raises
        ------
        FragmentError
            The head is damaged.
        """
        with self._blamed():
            fixed = decode_fixed(self._read(0, FRAGMENT_FIXED_BYTES).tobytes(), self._name)
            table = self._read(*self._table_place()).view(TABLE_DTYPE)
            starts = self._layout.head_bytes, self._layout.head_bytes + fixed.index_bytes
            self._kind = fixed.kind
            self._checksums = table["crc32c"][-len(self._numbers) :].tolist()
            self._index_ends = self._ends_in_file(table["index_end"], starts[0])
            self._ends = self._ends_in_file(table["end"], starts[1])
            for ends in (self._index_ends, self._ends):
                will_need(self._descriptor, ends[0], ends[-1] - ends[0])
        return self

    def fragments(self) -> Iterator[Fragment]:
        """The fragments that were located, leaving out empty ones; paged ones several at a time.

        Raises
        ------
        FragmentError
            One of them is damaged or cut short.
        """
        with self._blamed():
            for piece in self._pieces():
                if piece.encoded.size:
                    yield from self._decoded(piece)

    def _decoded(self, piece: _Piece) -> Iterator[Fragment]:
        n_pages, payload = self._kind
        covered = [self._layout.column_range(number) for number in piece.numbers]
        if n_pages:
            widths = [columns.stop - columns.start for columns in covered]
            encoded = piece.encoded
            counts, paged = decode_paged(piece.indexes, widths, n_pages, encoded, self._name)
            yield Fragment(ColumnRange(covered[0].start, covered[-1].stop), counts, payload, paged)
            return
        for columns, index, encoded in zip(covered, piece.indexes, piece.records, strict=True):
            counts, words = decode_words(index, encoded, payload, self._name)
            if words.size:
                yield Fragment(columns, counts, payload, words)

    def _pieces(self) -> Iterator[_Piece]:
        """The located fragments, checked, as many at a time as are read at once.

        That is up to `memory.READ_PIECE_BYTES`, or one fragment if that is larger.
        """
        kind_checksum = self._kind.checksum()
        sizes = np.add(self._index_ends, self._ends)
        first = 0
        while first < len(self._numbers):
            last = int(np.searchsorted(sizes, sizes[first] + READ_PIECE_BYTES, side="right")) - 1
            last = max(last, first + 1)
            encoded, records = self._read_parts(self._ends[first : last + 1])
            _, indexes = self._read_parts(self._index_ends[first : last + 1])
            checksums = self._checksums[first:last]
            for i, checksum in enumerate(checksums):
                if fragment_checksum(kind_checksum, indexes[i], records[i]) != checksum:
                    name = f"{self._name}, fragment {self._numbers[first + i]}"
                    msg = f"{name}: the checksum does not match: the file was damaged"
                    raise FragmentError(msg)
            yield _Piece(self._numbers[first:last], indexes, records, encoded)
            first = last

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Note on errors which file it was."""
        try:
            yield
        except FragmentError as error:
            error.path = self._name
            raise

    @staticmethod
    def _open(path: Path, wait_seconds: float) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if visible(path, wait_seconds):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            msg = f"{path} is missing: something has removed it while the conversion ran"
            raise FragmentError(msg) from error

    def _table_place(self) -> tuple[int, int]:
        """Offset and size of the expected fragments' rows, and the one before: their start."""
        start, stop = max(self._numbers[0] - 1, 0), self._numbers[-1] + 1
        itemsize = TABLE_DTYPE.itemsize
        return self._layout.table_offset + itemsize * start, itemsize * (stop - start)

    def _ends_in_file(self, ends: NDArray[np.uint64], start: int) -> list[int]:
        """Where the expected fragments' indexes, or records, begin and end in the file."""
        offsets = [start + end for end in ends.tolist()]
        if not self._numbers[0]:  # else the first row is of the fragment before
            offsets.insert(0, start)
        if offsets != sorted(offsets) or offsets[-1] > self._file_bytes:
            msg = (
                f"{self._name}: its table of fragments is wrong: the file was damaged or cut short"
            )
            raise FragmentError(msg)
        return offsets

    def _read_parts(self, ends: list[int]) -> tuple[Bytes, list[Bytes]]:
        """Consecutive parts of the file, in one read: all bytes, and those of each part."""
        encoded = self._read(ends[0], ends[-1] - ends[0])
        return encoded, [encoded[a - ends[0] : b - ends[0]] for a, b in pairwise(ends)]

    def _read(self, offset: int, size: int) -> Bytes:
        # Before memory is asked for: a damaged table says anything.
        if offset + size > self._file_bytes:
            msg = (
                f"{self._name}: ends at {self._file_bytes}, before byte {offset + size}: "
                "it was cut short or damaged"
            )
            raise FragmentError(msg)
        read = os.pread(self._descriptor, size, offset)
        self.read_bytes += len(read)
        if len(read) != size:
            msg = f"{self._name}: {size} bytes at {offset} were asked for, {len(read)} are there"
            raise FragmentError(msg)
        return np.frombuffer(read, np.uint8)
