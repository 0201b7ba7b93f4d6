"""A row block's fragment file on scratch: written once by a split task, read in slices.

See `dask_convert.fragments` for what is in it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from dask_convert.errors import FragmentError
from dask_convert.fragments import (
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
from dask_convert.layout import FRAGMENT_FIXED_BYTES, ColumnRange, FragmentLayout
from dask_convert.memory import READ_PIECE_BYTES
from dask_convert.pages import PagedRecords
from dask_convert.records import Records
from dask_convert.scratch import published, will_need, write_all

FILES_AHEAD = 16


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

    Returns
    -------
        Bytes written.
    """
    table = np.zeros(layout.n_ranges, TABLE_DTYPE)
    n_pages = records.page_counts.shape[1] if isinstance(records, PagedRecords) else 0
    end = 0
    with published(path) as file:
        file.seek(layout.head_bytes)
        for number, encoded in enumerate(encode_fragments(records, counts, layout.column_width)):
            columns = layout.column_range(number)
            end += len(encoded)
            own = counts[columns.start : columns.stop]
            table[number] = (end, fragment_checksum((n_pages, payload), own, encoded))
            write_all(file, encoded)
        file.seek(0)
        nnz = int(counts.sum(dtype=np.int64))
        write_all(file, encode_head(layout, Head(nnz, n_pages, payload, counts, table)))
    return layout.head_bytes + end


def open_ahead(
    paths: Sequence[Path], layout: FragmentLayout, numbers: range
) -> Iterator[FragmentFile]:
    """Open fragment files in turn, with their fragments of some column ranges located.

    What will be read of the next files is asked for ahead of time, heads first and then
    fragments, so that a disk (or a file system at the other end of a network) works while
    its last answers are used. Each file is closed when the next one is asked for.

    Raises
    ------
    FragmentError
        One of them is missing or its head is damaged.
    """
    opened: list[FragmentFile] = []

    def expected() -> Iterator[FragmentFile]:
        for path in paths:
            opened.append(FragmentFile(path, layout))
            yield opened[-1].expect(numbers)

    try:
        for file in _ahead(file.locate() for file in _ahead(expected())):
            yield file
            file.close()
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
    """An open fragment file; a context manager.

    Raises
    ------
    FragmentError
        The file is not there.
    """

    def __init__(self, path: Path, layout: FragmentLayout) -> None:
        self.read_bytes = 0
        self._name = str(path)
        self._layout = layout
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            msg = f"{path} is missing: something has removed it while the conversion ran"
            raise FragmentError(msg) from error
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

    def head(self) -> Head:
        """The whole head, checked.

        Raises
        ------
        FragmentError
            It is damaged or cut short.
        """
        return decode_head(self._layout, self._read(0, self._layout.head_bytes), self._name)

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
        _, n_pages, payload = decode_fixed(self._read(0, FRAGMENT_FIXED_BYTES), self._name)
        self._kind = n_pages, payload
        self._counts = np.frombuffer(self._read(*self._counts_place()), "<u4")
        table = np.frombuffer(self._read(*self._table_place()), TABLE_DTYPE)
        ends = table["end"].astype(np.int64)
        if not self._numbers[0]:  # else the first row is of the fragment before
            ends = np.concatenate([[0], ends])
        self._ends = ends
        self._checksums = table["crc32c"][-len(self._numbers) :]
        if np.any(np.diff(ends) < 0):
            msg = f"{self._name}: its table of fragments descends: the file was damaged"
            raise FragmentError(msg)
        start = self._layout.head_bytes + int(ends[0])
        will_need(self._descriptor, start, int(ends[-1] - ends[0]))
        return self

    def fragments(self) -> Iterator[Fragment]:
        """The fragments that were located, leaving out empty ones.

        They lie next to each other and are read so: one request of up to
        `memory.READ_PIECE_BYTES`, or one fragment if that is larger.

        Raises
        ------
        FragmentError
            One of them is damaged or cut short.
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
                name = f"{self._name}, fragment {numbers[i]}"
                checksum = int(self._checksums[i])
                records = decode_fragment(piece[begin:end], own, checksum, self._kind, name)
                if begin != end:
                    yield Fragment(covered, own, self._kind[1], records)
            first = last

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
        return read
