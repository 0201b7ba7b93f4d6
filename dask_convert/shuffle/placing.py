"""From records to a region: the second half of the column shuffle, without its I/O.

A column's entries arrive row block after row block, rows ascending, so each column needs
nothing but a cursor: the exact indptr says where it begins in the region, and every fragment
moves it on. Columns at the region's borders begin before it or end behind it; what falls
outside is a neighbour's and is skipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.planning.records import (
    Records,
    pack_records,
    payload_bits,
    record_words,
    unpack_payload,
    unpack_rows,
)
from dask_convert.shuffle import kernels
from dask_convert.shuffle.pages import PagedRecords

WIDENED_RECORDS = 2**16
"""Records that are unpacked and packed again at once; 44 bytes of memory for each."""


class RegionEntries:
    """Collects the rows and values of a region, row block after row block.

    Parameters
    ----------
    length
        Entries of the region.
    row_dtype
        Type of the rows.
    payload
        Type to keep values in: that of the blocks if they agree, else the source's.
    cursors
        For each column, in the order of its records, where it begins relative to the region's
        start; int64. Negative, or beyond the end, where it is (partly) a neighbour's.
    """

    def __init__(
        self,
        length: int,
        row_dtype: np.dtype[Any],
        payload: np.dtype[Any],
        cursors: NDArray[np.int64],
    ) -> None:
        self.cursors = cursors
        self._length = length
        self._payload = payload
        self._rows = np.empty(length, row_dtype)
        self._values = np.empty(length, payload)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows of the entries ``[start, stop)`` of the region."""
        return self._rows[start:stop]

    def values(self, start: int, stop: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Values of the entries ``[start, stop)`` of the region, in the target's type."""
        values = self._values[start:stop]
        if dtype.kind != "c":
            values = values.real  # of a complex type only if no imaginary part is lost
        return np.ascontiguousarray(values, dtype)

    def place(
        self,
        records: PagedRecords | Records,
        payload: np.dtype[Any],
        counts: NDArray[np.uint32],
        columns: slice,
        first_row: int,
    ) -> None:
        """Put the records of one fragment at their places.

        Parameters
        ----------
        records, payload, counts
            The fragment: its records, the type of their values, and how many are of each column.
        columns
            Which of the region's cursors these columns are.
        first_row
            First row of the fragment's row block.
        """
        if isinstance(records, PagedRecords):
            if payload == self._payload:
                self._place_paged(records, counts, columns, first_row)
                return
            records = records.to_words()
        if payload == self._payload:
            self._place_words(records, counts, columns, first_row)
            return
        ends = np.cumsum(counts, dtype=np.int64)
        first = start = 0
        while first < counts.size:  # some columns at a time: unpacked, records take much room
            last = int(np.searchsorted(ends, start + WIDENED_RECORDS, side="right"))
            last = max(last, first + 1)
            some = records[start : ends[last - 1]]
            values = unpack_payload(some, payload).astype(self._payload)
            wide = pack_records(unpack_rows(some, payload), values)
            own = slice(columns.start + first, columns.start + last)
            self._place_words(wide, counts[first:last], own, first_row)
            first, start = last, int(ends[last - 1])

    def _place_words(
        self,
        records: Records,
        counts: NDArray[np.uint32],
        columns: slice,
        first_row: int,
    ) -> None:
        where = (records, counts, self.cursors[columns], self._length, first_row)
        bits = payload_bits(self._values)
        if record_words(self._payload) == 1:
            kernels.place_words(*where, np.uint64(records.itemsize * 4), self._rows, bits)
        else:
            kernels.place_wide(*where, self._rows, bits)

    def _place_paged(
        self,
        paged: PagedRecords,
        counts: NDArray[np.uint32],
        columns: slice,
        first_row: int,
    ) -> None:
        cursors = self.cursors[columns]
        bits = payload_bits(self._values)
        if paged.escape_places.size:
            # As far from its column's cursor as from its column's first record.
            ends = np.cumsum(counts, dtype=np.int64)
            column = np.searchsorted(ends, paged.escape_places, side="right")
            places = cursors[column] + paged.escape_places - (ends - counts)[column]
        kernels.place_paged(
            paged.records,
            paged.page_counts,
            paged.column_width,
            np.empty(paged.page_counts.shape[1], np.int64),
            cursors,
            self._length,
            first_row,
            self._rows,
            bits,
        )
        if paged.escape_places.size:
            inside = (places >= 0) & (places < self._length)
            bits[places[inside]] = paged.escape_values[inside]
