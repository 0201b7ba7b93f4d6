"""A row block's fragment file on scratch: written once by a split task, read in slices.

See `dask_convert.shuffle.fragments` for what is in it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from dask_convert.errors import FragmentError
from dask_convert.files.scratch import published, visible, write_all
from dask_convert.page_cache import will_need
from dask_convert.planning.layout import FRAGMENT_FIXED_BYTES, ColumnRange, FragmentLayout
from dask_convert.planning.memory import FILES_AHEAD, READ_PIECE_BYTES
from dask_convert.planning.records import Records
from dask_convert.shuffle.fragments import (
    TABLE_DTYPE,
    Counts,
    Head,
    decode_fixed,
    decode_fragment,
    decode_head,
    encode_fragments,
    encode_head,
    fragment_checksum,
)
from dask_convert.shuffle.pages import PagedRecords


class Fragment(msgspec.Struct, frozen=True):
    """One fragment, read and checked.

    Attributes
    ----------
    columns
        The column range it covers.
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
    """Write a row block's fragments: room for the head, the fragments, then the head.

    Nothing is fsynced: what a loss of power leaves of the file is found out by its checksums,
    and made again.

    Returns
    -------
        Bytes written.
    """
    table = np.zeros(layout.n_ranges, TABLE_DTYPE)
    n_pages = records.page_counts.shape[1] if isinstance(records, PagedRecords) else 0
    end = 0
    with published(path, "fragment") as file:
        file.seek(layout.head_bytes)
        for number, parts in enumerate(encode_fragments(records, counts, layout.column_width)):
            columns = layout.column_range(number)
            end += sum(map(len, parts))
            own = counts[columns.start : columns.stop]
            table[number] = (end, fragment_checksum((n_pages, payload), own, *parts))
            for part in parts:
                write_all(file, part)
        file.seek(0)
        nnz = int(counts.sum(dtype=np.int64))
        write_all(file, encode_head(layout, Head(nnz, n_pages, payload, counts, table)))
    return layout.head_bytes + end


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
            head = decode_head(self._layout, self._read(0, self._layout.head_bytes), self._name)
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
            for number, own, encoded in self._encoded():
                if fragment_checksum(self._kind, own, encoded) != int(self._checksums[number]):
                    msg = f"{self._name}, fragment {number}: the checksum does not match"
                    raise FragmentError(msg)

    def expect(self, numbers: range) -> Self:
        """Say which consecutive column ranges will be read; their part of the head is fetched."""
        layout = self._layout
        self._numbers = numbers
        self._columns = slice(
            layout.column_range(numbers[0]).start, layout.column_range(numbers[-1]).stop
        )
        will_need(self._descriptor, 0, FRAGMENT_FIXED_BYTES)
        for start, size in (self._counts_place(), self._table_place()):
            will_need(self._descriptor, start, size)
        return self

    def locate(self) -> Self:
        """Read where the expected fragments are; they are fetched.

        Raises
        ------
        FragmentError
            The head is damaged.
        """
        with self._blamed():
            _, n_pages, payload = decode_fixed(self._read(0, FRAGMENT_FIXED_BYTES), self._name)
            self._kind = n_pages, payload
            self._counts = np.frombuffer(self._read(*self._counts_place()), "<u4")
            table = np.frombuffer(self._read(*self._table_place()), TABLE_DTYPE)
            ends = table["end"].astype(np.int64)
            if not self._numbers[0]:  # else the first row is of the fragment before
                ends = np.concatenate([[0], ends])
            self._ends = ends
            self._checksums = table["crc32c"][-len(self._numbers) :]
            if ends[0] < 0 or np.any(np.diff(ends) < 0):
                msg = f"{self._name}: its table of fragments descends: the file was damaged"
                raise FragmentError(msg)
            start = self._layout.head_bytes + int(ends[0])
            will_need(self._descriptor, start, int(ends[-1] - ends[0]))
        return self

    def fragments(self) -> Iterator[Fragment]:
        """The fragments that were located, leaving out empty ones.

        Raises
        ------
        FragmentError
            One of them is damaged or cut short.
        """
        with self._blamed():
            for i, own, encoded in self._encoded():
                number = self._numbers[i]
                name = f"{self._name}, fragment {number}"
                checksum = int(self._checksums[i])
                records = decode_fragment(encoded, own, checksum, self._kind, name)
                if len(encoded):
                    covered = self._layout.column_range(number)
                    yield Fragment(covered, own, self._kind[1], records)

    def _encoded(self) -> Iterator[tuple[int, Counts, memoryview]]:
        """Of each located fragment its place among them, its columns' counts and its bytes.

        They lie next to each other and are read so: one request of up to
        `memory.READ_PIECE_BYTES`, or one fragment if that is larger.
        """
        layout, numbers, columns = self._layout, self._numbers, self._columns
        starts, ends = self._ends[:-1], self._ends[1:]
        first = 0
        while first < len(numbers):
            last = int(np.searchsorted(ends, starts[first] + READ_PIECE_BYTES, side="right"))
            last = max(last, first + 1)
            size = int(ends[last - 1] - starts[first])
            piece = memoryview(self._read(layout.head_bytes + int(starts[first]), size))
            for i in range(first, last):
                begin, end = int(starts[i] - starts[first]), int(ends[i] - starts[first])
                covered = layout.column_range(numbers[i])
                own = self._counts[covered.start - columns.start : covered.stop - columns.start]
                yield i, own, piece[begin:end]
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

    def _counts_place(self) -> tuple[int, int]:
        """Offset and size of the expected columns' counts."""
        start, stop = self._columns.start, self._columns.stop
        return self._layout.counts_offset + 4 * start, 4 * (stop - start)

    def _table_place(self) -> tuple[int, int]:
        """Offset and size of the expected fragments' rows, and the one before: their start."""
        start, stop = max(self._numbers[0] - 1, 0), self._numbers[-1] + 1
        itemsize = TABLE_DTYPE.itemsize
        return self._layout.table_offset + itemsize * start, itemsize * (stop - start)

    def _read(self, offset: int, size: int) -> bytes:
        # Before memory is asked for: a damaged table says anything.
        if offset < 0 or size < 0 or offset + size > self._file_bytes:
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
        return read
