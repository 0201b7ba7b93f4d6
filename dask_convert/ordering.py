"""From entries in row order to records in column order: the first half of the column shuffle.

Ordering is a counting sort: the block's columns are counted first, which gives every column's
place, and then each entry goes to its place in one pass. Rows are read in ascending order, so
rows ascend within every column and entries that are stored twice keep their order, whatever
the order of columns within a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert import kernels
from dask_convert.layout import PAGE_ROWS
from dask_convert.pages import ESCAPE, MAX_ESCAPES, PagedRecords
from dask_convert.records import (
    Records,
    pack_records,
    payload_bits,
    payload_dtypes,
    record_bytes,
    record_words,
    unpack_payload,
    unpack_rows,
    word_dtype,
)

_WIDEN_RECORDS = 2**16


class BlockRecords:
    """Collects a row block's entries as records, ordered by column.

    Parameters
    ----------
    indices
        Columns of all entries of the block, checked; shape (nnz,), int32.
    counts
        Entries of each column; shape (n_vars,), uint32.
    row_ends
        Where each row ends within the block; shape (rows,), int64.
    data_dtype
        The source's type of values, native byte order.
    paged
        Begin with paged records, if the type allows it.

    Notes
    -----
    Values are kept in the narrowest records that have held all of them so far. When one does
    not fit, what is there already is widened: from pages to words, and then in place, since
    the buffer of words is as large as the widest need. Memory beyond what the narrower ones
    use is never touched.
    """

    def __init__(
        self,
        indices: NDArray[np.int32],
        counts: NDArray[np.uint32],
        row_ends: NDArray[np.int64],
        data_dtype: np.dtype[Any],
        *,
        paged: bool,
    ) -> None:
        self._indices = indices
        self._row_ends = row_ends
        self._payloads = list(payload_dtypes(data_dtype))
        self._buffer = np.empty(indices.size * record_bytes(self._payloads[-1]), np.uint8)
        ends = np.cumsum(counts, dtype=np.int64)
        self._starts = (ends - counts).astype(np.uint32)
        self._cursors = self._starts.copy()
        self._pages = None
        if paged and self.payload.itemsize <= 2:
            self._pages = _Pages(indices.size, row_ends, self._starts)

    @property
    def payload(self) -> np.dtype[Any]:
        """Type of the values in the records."""
        return self._payloads[0]

    def records(self) -> PagedRecords | Records:
        """All records, once all entries were added.

        Words have shape (nnz,), or (nnz, words) for values of 8 bytes and more.
        """
        if self._pages is not None:
            finished = self._pages.finished(self._cursors)
            if finished is not None:
                return finished
            self._leave_pages()
        return self._view(self.payload)

    def add(self, position: int, values: NDArray[Any]) -> None:
        """Take the values of the entries from `position` on, counted from the block's start."""
        bits = self._narrow(values)
        indices = self._indices[position : position + values.size]
        if self._pages is not None:
            if self._pages.scatter(position, indices, bits, self._cursors):
                return
            self._leave_pages()
        row = int(np.searchsorted(self._row_ends, position, side="right"))
        where = (indices, bits, self._row_ends, row, position, self._cursors)
        words = self._view(self.payload)
        if record_words(self.payload) == 1:
            kernels.scatter_words(*where, np.uint64(words.itemsize * 4), words)
        else:
            kernels.scatter_wide(*where, words)

    def _narrow(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values as payload bits, after widening the payload until they fit."""
        while (bits := narrowed(values, self.payload)) is None:
            self._leave_pages()
            self._widen(self._payloads[0], self._payloads[1])
            del self._payloads[0]
        return bits

    def _leave_pages(self) -> None:
        if self._pages is not None:
            self._pages.to_words(self._cursors, self._view(self.payload))
            self._pages = None

    def _widen(self, old: np.dtype[Any], new: np.dtype[Any]) -> None:
        # From the end: a wide record never lies on a narrow one that is still to be read.
        source, target = self._view(old), self._view(new)
        for start in reversed(range(0, len(source), _WIDEN_RECORDS)):
            part = source[start : start + _WIDEN_RECORDS].copy()
            with np.errstate(all="ignore"):  # places that are not filled yet hold anything
                values = unpack_payload(part, old).astype(new)
            target[start : start + len(part)] = pack_records(unpack_rows(part, old), values)

    def _view(self, payload: np.dtype[Any]) -> Records:
        n_bytes = self._indices.size * record_bytes(payload)
        words = self._buffer[:n_bytes].view(word_dtype(payload))
        count = record_words(payload)
        return words if count == 1 else words.reshape(-1, count)


class _Pages:
    """The paged records of a row block while they are being collected."""

    def __init__(self, nnz: int, row_ends: NDArray[np.int64], starts: NDArray[np.uint32]) -> None:
        self._row_ends = row_ends
        self._starts = starts
        self._records = np.empty(nnz, np.uint16)
        last_rows = np.arange(PAGE_ROWS - 1, row_ends.size + PAGE_ROWS - 1, PAGE_ROWS)
        self._page_ends = row_ends[np.minimum(last_rows, row_ends.size - 1)]
        self._column_ends = np.empty((self._page_ends.size, starts.size), np.uint32)
        self._page = 0
        capacity = int(nnz * MAX_ESCAPES)
        self._escape_places = np.empty(capacity, np.uint32)
        self._escape_values = np.empty(capacity, np.uint16)
        self._n_escapes = 0

    def scatter(
        self,
        position: int,
        indices: NDArray[np.int32],
        bits: NDArray[Any],
        cursors: NDArray[np.uint32],
    ) -> bool:
        """Take entries from `position` on; False, with nothing done, if too many escape."""
        if self._n_escapes + int(np.count_nonzero(bits >= ESCAPE)) > self._escape_places.size:
            return False
        stop = position + indices.size
        start = position
        while start < stop:
            while self._page_ends[self._page] <= start:
                self._end_page(cursors)
            end = min(stop, int(self._page_ends[self._page]))
            row = int(np.searchsorted(self._row_ends, start, side="right"))
            self._n_escapes = kernels.scatter_paged(
                indices[start - position : end - position],
                bits[start - position : end - position],
                self._row_ends,
                row,
                start,
                cursors,
                self._records,
                self._escape_places,
                self._escape_values,
                self._n_escapes,
            )
            start = end
        return True

    def finished(self, cursors: NDArray[np.uint32]) -> PagedRecords | None:
        """The records; None if a column has more in a page than can be counted."""
        counts = self._counts(cursors)
        if counts.max(initial=0) > np.iinfo(np.uint16).max:
            return None
        order = np.argsort(self._escape_places[: self._n_escapes])
        return PagedRecords(
            records=self._records,
            page_counts=counts.astype(np.uint16),
            escape_places=self._escape_places[order],
            escape_values=self._escape_values[order],
        )

    def to_words(self, cursors: NDArray[np.uint32], words: Records) -> None:
        """Write what was collected so far as words."""
        kernels.unpage(self._records, self._starts, self._counts(cursors), words)
        places = self._escape_places[: self._n_escapes]
        rows = unpack_rows(words[places], np.dtype(np.uint16))
        words[places] = pack_records(rows, self._escape_values[: self._n_escapes])

    def _end_page(self, cursors: NDArray[np.uint32]) -> None:
        self._column_ends[self._page] = cursors
        self._page += 1

    def _counts(self, cursors: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Records of each column in each page; shape (columns, pages)."""
        self._column_ends[self._page :] = cursors
        return np.ascontiguousarray(
            np.diff(self._column_ends, axis=0, prepend=self._starts[np.newaxis]).T
        )


def narrowed(values: NDArray[Any], payload: np.dtype[Any]) -> NDArray[Any] | None:
    """The values' payload bits if every one of them comes back bit by bit, else None."""
    if payload == values.dtype:
        return payload_bits(values)
    bits = values.view(f"u{values.itemsize}")
    if payload == np.uint16:
        small = np.empty(values.size, np.uint16)
        return small if kernels.narrow_to_uint16(values, bits, small) else None
    with np.errstate(all="ignore"):
        narrow = values.astype(payload)
        same = np.array_equal(narrow.astype(values.dtype).view(bits.dtype), bits)
    return payload_bits(narrow) if same else None
