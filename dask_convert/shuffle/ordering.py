"""From entries in row order to records in column order: the first half of the column shuffle.

Ordering is a counting sort: columns are counted when they are checked, which gives every column
its place, and then each entry goes to its place in one pass. Rows are read in ascending order, so
rows ascend within every column and entries that are stored twice keep their order, whatever
the order of columns within a row.

The pass goes over a page of rows (or all rows, for words) once for every tile of columns. What
it reads of a page, and what it writes of a tile, stay in the caches:

            tile 0     tile 1     tile 2
    row 0   ──────►    ──────►    ──────►       each arrow is a run of entries, since columns
    row 1   ──────►    ──────►    ──────►       ascend within rows; where they don't, one tile
    row 2   ──────►    ──────►    ──────►       spans all columns
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.planning.layout import PAGE_ROWS
from dask_convert.planning.memory import column_dtype
from dask_convert.planning.records import Records, payload_bits, record_words, word_dtype
from dask_convert.shuffle import kernels, scans
from dask_convert.shuffle.narrowing import NarrowValues
from dask_convert.shuffle.pages import ESCAPE, MAX_ESCAPES, PagedRecords

Columns = NDArray[np.uint16] | NDArray[np.int32]

_TILE_COLUMNS = 256
"""Columns that are written to at a time: their cursors and records fit a first-level cache."""


class BlockColumns:
    """Collects a row block's columns, checked, and counts them page by page.

    Parameters
    ----------
    row_ends
        Where each row ends within the block; shape (rows,), int64.
    n_vars
        Columns of the matrix.
    paged
        Whether to count pages by themselves.

    Attributes
    ----------
    columns
        Of all entries that were added; shape (nnz,), of `memory.column_dtype`.
    page_counts
        Entries of each column in each page; shape (pages, n_vars), uint32. One page without
        `paged`.
    """

    def __init__(self, row_ends: NDArray[np.int64], n_vars: int, *, paged: bool) -> None:
        self.row_ends = row_ends
        self.paged = paged
        self.columns: Columns = np.empty(row_ends[-1], column_dtype(n_vars))
        page_rows = PAGE_ROWS if paged else row_ends.size
        self._page_ends = np.append(row_ends[page_rows - 1 : -1 : page_rows], row_ends[-1])
        self.page_counts = np.zeros((self._page_ends.size, n_vars), np.uint32)

    def add(self, position: int, indices: NDArray[np.integer[Any]]) -> int:
        """Take the indices of the entries from `position` on.

        Returns the place among them of the first that is no column, or -1.
        """
        signed = indices.view(np.int64) if indices.dtype == np.uint64 else indices
        columns = self.columns[position : position + indices.size]
        n_vars = self.page_counts.shape[1]
        return scans.check_and_count(
            signed, n_vars, columns, position, self._page_ends, self.page_counts
        )


class BlockRecords:
    """Collects a row block's values and orders its entries by column, as records.

    Parameters
    ----------
    block
        The columns of all entries. If they are counted in pages, records are paged if the values
        allow it.
    data_dtype
        The source's type of values, native byte order.
    column_width
        Columns per range.
    ascending
        Whether columns ascend within all rows.

    Attributes
    ----------
    counts
        Entries of each column; shape (n_vars,), uint32.
    """

    def __init__(
        self,
        block: BlockColumns,
        data_dtype: np.dtype[Any],
        *,
        column_width: int,
        ascending: bool,
    ) -> None:
        self.counts = block.page_counts.sum(axis=0, dtype=np.uint32)
        self._ascending = ascending
        self._columns = block.columns
        self._page_counts = block.page_counts
        self._row_ends = block.row_ends
        self._column_width = column_width
        most = int(block.page_counts.max(initial=0))
        self._paged = block.paged and most <= np.iinfo(np.uint16).max
        self._values = NarrowValues(block.columns.size, data_dtype)

    @property
    def payload(self) -> np.dtype[Any]:
        """Type of the values in the records."""
        return self._values.payload

    def add(self, position: int, values: NDArray[Any]) -> NDArray[Any]:
        """Take the values of the entries from `position` on; those before it are there.

        Returns the same values in the payload's type.
        """
        return self._values.add(position, values)

    def records(self) -> PagedRecords | Records:
        """All records, once all values were added.

        Words have shape (nnz,), or (nnz, words) for values of 8 bytes and more.
        """
        bits = payload_bits(self._values.values)
        if self._paged and self.payload.itemsize <= 2:
            most = int(bits.size * MAX_ESCAPES)
            escapes = _positions_from(bits, ESCAPE, most + 1)
            if escapes.size <= most:
                return self._paged_records(bits, escapes)
        starts = _starts(self.counts)
        n_words = record_words(self.payload)
        if n_words > 1:
            wide: Records = np.empty((bits.shape[0], n_words), np.uint64)
            kernels.scatter_wide(self._columns, bits, self._row_ends, starts, wide)
            return wide
        words: Records = np.empty(bits.size, word_dtype(self.payload))
        kernels.scatter_words(
            self._columns,
            bits,
            self._row_starts(),
            self._row_ends,
            self._tile_columns(),
            starts,
            np.uint64(words.itemsize * 4),
            words,
        )
        return words

    def _paged_records(
        self, bits: NDArray[np.unsignedinteger[Any]], escapes: NDArray[np.uint32]
    ) -> PagedRecords:
        cursors = _page_starts(self._page_counts, self._column_width)
        records = np.empty(bits.size, np.uint16)
        kernels.scatter_paged(
            self._columns,
            bits,
            self._row_starts(),
            self._row_ends,
            self._tile_columns(),
            cursors,
            records,
        )
        # Entries are in row order, and neither order changes that of entries which agree in the
        # other: sorting escapes by column pairs them with their places.
        by_column = np.argsort(self._columns[escapes], kind="stable")
        found = _positions_from(records, ESCAPE << 8, escapes.size)
        return PagedRecords(
            records=records,
            page_counts=np.ascontiguousarray(self._page_counts.T, np.uint16),
            column_width=self._column_width,
            escape_places=self._places_by_column(found, cursors) if found.size else found,
            escape_values=bits[escapes[by_column]].astype(np.uint16),
        )

    def _places_by_column(
        self, found: NDArray[np.uint32], page_ends: NDArray[np.uint32]
    ) -> NDArray[np.uint32]:
        """Where records would be if they were in column order, pages aside; ascending.

        Parameters
        ----------
        found
            Where they are.
        page_ends
            As `_page_starts`, of the ends; used up.
        """
        ordered = _by_range(page_ends, self._column_width)
        run = np.searchsorted(ordered.reshape(-1), found, side="right")
        range_number, page, column = np.unravel_index(run, ordered.shape)
        column += range_number * self._column_width
        to_end = page_ends[page, column] - found
        ends = page_ends[:, : self.counts.size]
        np.cumsum(self._page_counts, axis=0, out=ends)  # now of each column by itself
        return np.sort(_starts(self.counts)[column] + ends[page, column] - to_end)

    def _row_starts(self) -> NDArray[np.uint32]:
        return np.concatenate([[0], self._row_ends[:-1]]).astype(np.uint32)

    def _tile_columns(self) -> int:
        return _TILE_COLUMNS if self._ascending else self.counts.size


def _page_starts(page_counts: NDArray[np.uint32], column_width: int) -> NDArray[np.uint32]:
    """Where each column of each page begins in the order of paged records.

    Returns
    -------
        Shape (pages, ranges × `column_width`); columns beyond the last have nothing.
    """
    n_pages, n_vars = page_counts.shape
    padded = np.zeros((n_pages, -(-n_vars // column_width) * column_width), np.uint32)
    padded[:, :n_vars] = page_counts
    ordered = _by_range(padded, column_width)
    starts = _starts(ordered.reshape(-1)).reshape(ordered.shape)
    padded[:] = starts.transpose(1, 0, 2).reshape(padded.shape)
    return padded


def _by_range(by_page: NDArray[np.uint32], column_width: int) -> NDArray[np.uint32]:
    """A copy of what has a row for each page, as (ranges, pages, columns of the range)."""
    return by_page.reshape(len(by_page), -1, column_width).transpose(1, 0, 2).copy()


def _starts(counts: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Where each one's begin, if they follow each other; a row block has less than 2³² entries."""
    starts = np.cumsum(counts, dtype=np.uint32)
    starts -= counts
    return starts


def _positions_from(numbers: NDArray[Any], least: int, most: int) -> NDArray[np.uint32]:
    """Positions of the first `most` numbers that are at least that, ascending."""
    found = np.empty(min(most, numbers.size), np.uint32)
    return found[: scans.find_from(numbers, least, found)].copy()
