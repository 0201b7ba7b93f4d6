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

from dask_convert.planning.layout import PAGE_ROWS
from dask_convert.planning.records import (
    Records,
    payload_bits,
    payload_dtypes,
    record_words,
    word_dtype,
)
from dask_convert.shuffle import kernels, scans
from dask_convert.shuffle.pages import ESCAPE, MAX_ESCAPES, PagedRecords

Columns = NDArray[np.uint16] | NDArray[np.int32]

_TILE_COLUMNS = 512
"""Columns that are written to at a time: their places and cursors fit a second-level cache."""


class BlockRecords:
    """Collects a row block's values and orders its entries by column, as records.

    Parameters
    ----------
    columns
        Columns of all entries of the block, checked; shape (nnz,), of `memory.column_dtype`.
    counts
        Entries of each column; shape (n_vars,), uint32.
    row_ends
        Where each row ends within the block; shape (rows,), int64.
    data_dtype
        The source's type of values, native byte order.
    paged
        Prefer paged records, if the values allow it.
    ascending
        Whether columns ascend within all rows.

    Notes
    -----
    Values are kept in the narrowest payload that has held all of them so far, and widened
    when one does not fit.
    """

    def __init__(
        self,
        columns: Columns,
        counts: NDArray[np.uint32],
        row_ends: NDArray[np.int64],
        data_dtype: np.dtype[Any],
        *,
        paged: bool,
        ascending: bool,
    ) -> None:
        self._ascending = ascending
        self._columns = columns
        self._counts = counts
        self._row_ends = row_ends
        self._paged = paged
        self._wider = list(payload_dtypes(data_dtype))
        self._values = np.empty(columns.size, self._wider.pop(0))

    @property
    def payload(self) -> np.dtype[Any]:
        """Type of the values in the records."""
        dtype: np.dtype[Any] = self._values.dtype
        return dtype

    def add(self, position: int, values: NDArray[Any]) -> NDArray[Any]:
        """Take the values of the entries from `position` on; those before it are there.

        Returns the same values in the payload's type.
        """
        places = slice(position, position + values.size)
        while not narrow_into(self._values[places], values):
            wider = np.empty(self._values.size, self._wider.pop(0))
            wider[:position] = self._values[:position]
            self._values = wider
        return self._values[places]

    def records(self) -> PagedRecords | Records:
        """All records, once all values were added.

        Words have shape (nnz,), or (nnz, words) for values of 8 bytes and more.
        """
        ends = np.cumsum(self._counts, dtype=np.int64)
        starts = (ends - self._counts).astype(np.uint32)
        n_words = record_words(self.payload)
        if n_words > 1:
            shape = (self._columns.size, n_words)
            records: Records = np.empty(shape, np.uint64)
            bits = payload_bits(self._values)
            kernels.scatter_wide(self._columns, bits, self._row_ends, starts, records)
            return records
        if self._paged and self.payload.itemsize <= 2:
            paged = self._paged_records(starts)
            if paged is not None:
                return paged
        records = np.empty(self._columns.size, word_dtype(self.payload))
        kernels.scatter_words(
            self._columns,
            payload_bits(self._values),
            self._row_starts(),
            self._row_ends,
            self._tile_columns(),
            starts,
            np.uint64(records.itemsize * 4),
            records,
        )
        return records

    def _paged_records(self, starts: NDArray[np.uint32]) -> PagedRecords | None:
        """Paged records; None if too many values escape, or a page cannot count its own."""
        bits = payload_bits(self._values)
        most = int(bits.size * MAX_ESCAPES)
        escapes = _found_from(bits, ESCAPE, most + 1)
        if escapes.size > most:
            return None
        records = np.empty(bits.size, np.uint16)
        n_pages = -(-self._row_ends.size // PAGE_ROWS)
        page_ends = np.empty((n_pages, starts.size), np.uint32)
        kernels.scatter_paged(
            self._columns,
            bits,
            self._row_starts(),
            self._row_ends,
            self._tile_columns(),
            starts.copy(),
            page_ends,
            records,
        )
        counts = np.diff(page_ends, axis=0, prepend=starts[np.newaxis])
        if counts.max(initial=0) > np.iinfo(np.uint16).max:
            return None
        # Entries are in row order, records in column order, and neither changes the order of
        # entries that agree in the other: sorting escapes by column pairs them with their places.
        by_column = np.argsort(self._columns[escapes], kind="stable")
        return PagedRecords(
            records=records,
            page_counts=np.ascontiguousarray(counts.T, np.uint16),
            escape_places=_found_from(records, ESCAPE << 8, most),
            escape_values=bits[escapes[by_column]].astype(np.uint16),
        )

    def _row_starts(self) -> NDArray[np.uint32]:
        return np.concatenate([[0], self._row_ends[:-1]]).astype(np.uint32)

    def _tile_columns(self) -> int:
        return _TILE_COLUMNS if self._ascending else self._counts.size


def narrow_into(narrow: NDArray[Any], values: NDArray[Any]) -> bool:
    """Copy values to a narrower type; False if some would not come back bit by bit.

    What `narrow` holds then is of no use.
    """
    if narrow.dtype == values.dtype:
        narrow[:] = values
        return True
    bits = values.view(f"u{values.itemsize}")
    if narrow.dtype == np.uint16:
        top = values.dtype.type(65_535).view(bits.dtype)
        return bool(scans.narrow_to_uint16(values, bits, top, narrow))
    with np.errstate(all="ignore"):
        narrow[:] = values
        return np.array_equal(narrow.astype(values.dtype).view(bits.dtype), bits)


def _found_from(numbers: NDArray[Any], least: int, most: int) -> NDArray[np.uint32]:
    """Positions of the first numbers that are at least that."""
    found = np.empty(most, np.uint32)
    return found[: scans.find_from(numbers, least, found)].copy()
