"""A row block's fragment file on scratch: written once by a split task, read in slices.

See `dask_convert.fragments` for what is in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

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
from dask_convert.scratch import published, write_all


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
        os.close(self._descriptor)

    def head(self) -> Head:
        """The whole head, checked.

        Raises
        ------
        FragmentError
            It is damaged or cut short.
        """
        return decode_head(self._layout, self._read(0, self._layout.head_bytes), self._name)

    def fragments(self, numbers: range) -> Iterator[Fragment]:
        """The fragments of consecutive column ranges, leaving out empty ones.

        They lie next to each other and are read so: one request of up to
        `memory.READ_PIECE_BYTES`, or one fragment if that is larger.

        Raises
        ------
        FragmentError
            One of them is damaged or cut short.
        """
        layout = self._layout
        _, n_pages, payload = decode_fixed(self._read(0, FRAGMENT_FIXED_BYTES), self._name)
        columns = slice(
            layout.column_range(numbers[0]).start, layout.column_range(numbers[-1]).stop
        )
        counts = self._array("<u4", layout.counts_offset, columns.start, columns.stop)
        before = 1 if numbers[0] else 0  # a fragment begins where the one before it ends
        table = self._array(TABLE_DTYPE, layout.table_offset, numbers[0] - before, numbers[-1] + 1)
        ends = table["end"].astype(np.int64)
        starts = ends[:-1] if before else np.concatenate([[0], ends[:-1]])
        ends, checksums = ends[before:], table["crc32c"][before:]
        if np.any(ends < starts):
            msg = f"{self._name}: its table of fragments descends: the file was damaged"
            raise FragmentError(msg)
        first = 0
        while first < len(numbers):
            last = int(np.searchsorted(ends, starts[first] + READ_PIECE_BYTES, side="right"))
            last = max(last, first + 1)
            size = int(ends[last - 1] - starts[first])
            piece = memoryview(self._read(layout.head_bytes + int(starts[first]), size))
            for i in range(first, last):
                begin, end = int(starts[i] - starts[first]), int(ends[i] - starts[first])
                covered = layout.column_range(numbers[i])
                own = counts[covered.start - columns.start : covered.stop - columns.start]
                name = f"{self._name}, fragment {numbers[i]}"
                checksum = int(checksums[i])
                records = decode_fragment(piece[begin:end], own, checksum, (n_pages, payload), name)
                if begin != end:
                    yield Fragment(covered, own, payload, records)
            first = last

    def _array(self, dtype: Any, offset: int, start: int, stop: int) -> NDArray[Any]:
        itemsize = np.dtype(dtype).itemsize
        read = self._read(offset + start * itemsize, (stop - start) * itemsize)
        return np.frombuffer(read, dtype)

    def _read(self, offset: int, size: int) -> bytes:
        if (
            offset + size > self._file_bytes
        ):  # before memory is asked for: a damaged table says anything
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
