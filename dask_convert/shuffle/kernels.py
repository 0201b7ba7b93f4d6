"""The loops that move entries: scatter a row block into column order, place records in a region.

A column reaches `scatter_words`, `scatter_wide` or `scatter_paged` only after
`scans.check_and_count` has passed it. See `dask_convert.shuffle.compiling` for what holds for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.shuffle.compiling import kernel

_U = NDArray[np.unsignedinteger[Any]]


@kernel
def scatter_words(
    columns: NDArray[np.integer[Any]],
    payload: _U,
    next_entries: NDArray[np.uint32],
    row_ends: NDArray[np.int64],
    tile_columns: int,
    cursors: NDArray[np.uint32],
    shift: np.uint64,
    records: _U,
) -> None:
    """Put a row block's entries into column order as one-word records; O(n), stable.

    Goes over the rows once for every tile of columns, so that the places written to at a
    time fit the cache: a tile's part of a row is a run, if columns ascend within rows. If
    they don't, one tile must span all columns.

    Parameters
    ----------
    columns, payload
        Columns and payload bits of all entries.
    next_entries, row_ends
        Where each row begins, and ends, in the block. The former is used up.
    tile_columns
        Width of a tile.
    cursors
        For each column, where its first record goes; advanced.
    shift
        Bits of the row half of a record: 16 or 32.
    records
        All records of the block.
    """
    for start in range(0, cursors.size, tile_columns):
        stop = np.uint32(min(start + tile_columns, cursors.size))
        for row in range(row_ends.size):
            k = np.uint64(next_entries[row])
            end = np.uint64(row_ends[row])
            while k < end:
                column = np.uint32(columns[k])
                if column >= stop:
                    break
                place = cursors[column]
                cursors[column] = place + np.uint32(1)
                records[place] = (np.uint64(payload[k]) << shift) | np.uint64(row)
                k += np.uint64(1)
            next_entries[row] = k


@kernel
def scatter_wide(
    columns: NDArray[np.integer[Any]],
    payload: _U,
    row_ends: NDArray[np.int64],
    cursors: NDArray[np.uint32],
    records: _U,
) -> None:
    """As `scatter_words`, for payload and records of several words: shapes (n, w), (n, 1 + w)."""
    k = 0
    for row in range(row_ends.size):
        while k < row_ends[row]:
            column = np.uint32(columns[k])
            place = cursors[column]
            cursors[column] = place + np.uint32(1)
            records[place, 0] = np.uint64(row)
            for word in range(payload.shape[1]):
                records[place, 1 + word] = payload[k, word]
            k += 1


@kernel
def scatter_paged(
    columns: NDArray[np.integer[Any]],
    payload: _U,
    next_entries: NDArray[np.uint32],
    row_ends: NDArray[np.int64],
    tile_columns: int,
    cursors: NDArray[np.uint32],
    records: NDArray[np.uint16],
) -> None:
    """As `scatter_words`, page by page, for the records of `dask_convert.shuffle.pages`.

    `cursors` have a row for each page: where the first record of each column in it goes.
    """
    escape = np.uint32(255)
    for page in range(cursors.shape[0]):
        own = cursors[page]
        first_row = page * 256
        stop_row = min(first_row + 256, row_ends.size)
        for start in range(0, own.size, tile_columns):
            stop = np.uint32(min(start + tile_columns, own.size))
            for row in range(first_row, stop_row):
                k = np.uint64(next_entries[row])
                end = np.uint64(row_ends[row])
                row_in_page = np.uint32(row - first_row)
                while k < end:
                    column = np.uint32(columns[k])
                    if column >= stop:
                        break
                    place = own[column]
                    own[column] = place + np.uint32(1)
                    value = min(np.uint32(payload[k]), escape)
                    records[place] = (value << np.uint32(8)) | row_in_page
                    k += np.uint64(1)
                next_entries[row] = k


@kernel
def unpage(
    records: NDArray[np.uint16],
    page_counts: NDArray[np.uint16],
    column_width: int,
    sources: NDArray[np.int64],
    words: NDArray[np.uint32],
) -> None:
    """Turn paged records into one-word records in column order, escapes not yet resolved; O(n).

    Parameters
    ----------
    records, page_counts, column_width
        See `dask_convert.shuffle.pages.PagedRecords`.
    sources
        Room for a position in each page.
    words
        Written, as many as there are records.
    """
    k = 0
    end = 0
    for column in range(page_counts.shape[0]):
        if column % column_width == 0:
            end = _find_pages(page_counts, column, column_width, end, sources)
        for page in range(page_counts.shape[1]):
            first_row = np.uint32(page * 256)
            source = sources[page]
            for _ in range(page_counts[column, page]):
                record = np.uint32(records[source])
                row = first_row + (record & np.uint32(255))
                words[k] = ((record >> np.uint32(8)) << np.uint32(16)) | row
                source += 1
                k += 1
            sources[page] = source


@kernel
def place_paged(
    records: NDArray[np.uint16],
    page_counts: NDArray[np.uint16],
    column_width: int,
    sources: NDArray[np.int64],
    cursors: NDArray[np.int64],
    length: int,
    first_row: int,
    rows: NDArray[np.signedinteger[Any]],
    payload: _U,
) -> None:
    """As `place_words`, for paged records, escapes not yet resolved; O(n).

    Every page is read from its begin to its end, all side by side, and every column is written
    so. Lengthy runs are what the slices are for: the compiler makes vector code of a loop over
    them. For the first four parameters see `unpage`.
    """
    end = 0
    for column in range(page_counts.shape[0]):
        if column % column_width == 0:
            end = _find_pages(page_counts, column, column_width, end, sources)
        place = int(cursors[column])
        base = first_row
        for page in range(page_counts.shape[1]):
            count = int(page_counts[column, page])
            source = sources[page]
            low = min(max(0, -place), count)
            high = max(min(count, length - place), low)
            run = records[source + low : source + high]
            run_rows = rows[place + low : place + high]
            run_payload = payload[place + low : place + high]
            for i in range(run.size):
                run_rows[i] = base + np.int64(run[i] & np.uint16(255))
                run_payload[i] = run[i] >> np.uint16(8)
            sources[page] = source + count
            place += count
            base += 256
        cursors[column] = place


@kernel
def _find_pages(
    page_counts: NDArray[np.uint16],
    first_column: int,
    column_width: int,
    start: int,
    sources: NDArray[np.int64],
) -> int:
    """Where each page of a column range begins, whose records begin at `start`; returns its end."""
    sources[:] = 0
    for column in range(first_column, min(first_column + column_width, page_counts.shape[0])):
        for page in range(sources.size):
            sources[page] += np.int64(page_counts[column, page])
    for page in range(sources.size):
        count = sources[page]
        sources[page] = start
        start += count
    return start


@kernel
def place_words(
    records: _U,
    counts: NDArray[np.uint32],
    cursors: NDArray[np.int64],
    length: int,
    first_row: int,
    shift: np.uint64,
    rows: NDArray[np.signedinteger[Any]],
    payload: _U,
) -> None:
    """Put one block's records of some columns at their places in a region; O(n).

    Parameters
    ----------
    records
        The records, column after column, rows ascending within each.
    counts
        Records of each column.
    cursors
        For each column, the place of its next entry relative to the region's start: below
        zero or from `length` on, it belongs to a neighbour and is skipped. Advanced.
    length
        Entries of the region.
    first_row
        The row block's first row.
    shift
        Bits of the row half of a record.
    rows, payload
        The region's rows and payload bits; written.
    """
    mask = (np.uint64(1) << shift) - np.uint64(1)
    k = 0
    for column in range(counts.size):
        place = int(cursors[column])
        count = int(counts[column])
        low = min(max(0, -place), count)
        high = max(min(count, length - place), low)
        run = records[k + low : k + high]
        run_rows = rows[place + low : place + high]
        run_payload = payload[place + low : place + high]
        for i in range(run.size):
            word = np.uint64(run[i])
            run_rows[i] = np.int64(word & mask) + first_row
            run_payload[i] = word >> shift
        cursors[column] = place + count
        k += count


@kernel
def place_wide(
    records: _U,
    counts: NDArray[np.uint32],
    cursors: NDArray[np.int64],
    length: int,
    first_row: int,
    rows: NDArray[np.signedinteger[Any]],
    payload: _U,
) -> None:
    """As `place_words`, for records of several words: shapes (n, 1 + w), (length, w)."""
    k = 0
    for column in range(counts.size):
        place = int(cursors[column])
        count = int(counts[column])
        low = max(0, -place)
        high = min(count, length - place)
        for i in range(low, high):
            rows[place + i] = np.int64(records[k + i, 0]) + first_row
            for word in range(payload.shape[1]):
                payload[place + i, word] = records[k + i, 1 + word]
        cursors[column] = place + count
        k += count
