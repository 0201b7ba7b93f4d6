"""The compiled loops: arrays in, arrays out, nothing else.

Contract of every kernel here: the caller allocates; positions and counts are given in full, so
that no kernel can run past an array it was handed correctly; no kernel checks bounds again. An
index reaches `count_columns`, `scatter_words` or `scatter_wide` only after `check_indices` has
passed it. All are compiled without object mode, release the GIL and keep their machine code on
disk (``cache=True``), so that a worker loads them in milliseconds.

Unsigned index arithmetic is deliberate: numba would otherwise add the test for negative
("from the end") indices to every access.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

_F = TypeVar("_F", bound=Callable[..., object])
_U = NDArray[np.unsignedinteger[Any]]


def _kernel(function: _F) -> _F:
    """Compile on first call; typed as the function it wraps, since numba has no types."""
    return cast("_F", numba.njit(nogil=True, cache=True, error_model="numpy")(function))


@_kernel
def check_indices(
    indices: NDArray[np.integer[Any]], n_vars: int, checked: NDArray[np.int32]
) -> int:
    """Copy column indices to int32, each within ``[0, n_vars)``; O(n).

    Returns the position of the first that is not, or -1. `checked` (same length) holds
    unusable values if there is one.
    """
    bad = False
    for k in range(indices.size):
        index = indices[k]
        bad |= (index < 0) | (index >= n_vars)
        checked[k] = index
    if bad:
        for k in range(indices.size):
            if indices[k] < 0 or indices[k] >= n_vars:
                return k
    return -1


@_kernel
def count_columns(indices: NDArray[np.int32], counts: NDArray[np.uint32]) -> None:
    """Add to ``counts[j]`` the occurrences of column ``j``; O(n)."""
    for k in range(indices.size):
        counts[np.uint32(indices[k])] += np.uint32(1)


@_kernel
def narrow_to_uint16(values: NDArray[Any], bits: _U, narrowed: NDArray[np.uint16]) -> bool:
    """Copy values to uint16; False where one of them would not come back bit by bit; O(n).

    `values` are of a 4- or 8-byte real type, `bits` the same memory as unsigned integers
    (so that −0.0 and NaN are told from what they compare equal to, or do not).
    """
    bad = False
    zero = values.dtype.type(0)
    top = values.dtype.type(65535)
    for k in range(values.size):
        value = values[k]
        inside = (value >= zero) & (value <= top)
        # A cast from outside the range is undefined: give it zero and remember.
        small = np.uint16(value if inside else zero)
        narrowed[k] = small
        bad |= (not inside) | (values.dtype.type(small) != value)
        bad |= (small == 0) & (bits[k] != 0)
    return not bad


@_kernel
def count_descents(indices: NDArray[np.int32]) -> int:
    """How many elements are less than the one before; O(n)."""
    descents = 0
    for k in range(1, indices.size):
        descents += indices[k] < indices[k - 1]
    return descents


@_kernel
def scatter_words(
    indices: NDArray[np.int32],
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
    indices, payload
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
                column = np.uint32(indices[k])
                if column >= stop:
                    break
                place = cursors[column]
                cursors[column] = place + np.uint32(1)
                records[place] = (np.uint64(payload[k]) << shift) | np.uint64(row)
                k += np.uint64(1)
            next_entries[row] = k


@_kernel
def scatter_wide(
    indices: NDArray[np.int32],
    payload: _U,
    row_ends: NDArray[np.int64],
    cursors: NDArray[np.uint32],
    records: _U,
) -> None:
    """As `scatter_words`, for payload and records of several words: shapes (n, w), (n, 1 + w)."""
    k = 0
    for row in range(row_ends.size):
        while k < row_ends[row]:
            column = np.uint32(indices[k])
            place = cursors[column]
            cursors[column] = place + np.uint32(1)
            records[place, 0] = np.uint64(row)
            for word in range(payload.shape[1]):
                records[place, 1 + word] = payload[k, word]
            k += 1


@_kernel
def scatter_paged(
    indices: NDArray[np.int32],
    payload: _U,
    next_entries: NDArray[np.uint32],
    row_ends: NDArray[np.int64],
    tile_columns: int,
    cursors: NDArray[np.uint32],
    page_ends: NDArray[np.uint32],
    records: NDArray[np.uint16],
) -> None:
    """As `scatter_words`, for the records of `dask_convert.pages`.

    `page_ends`, of shape (pages, n_vars), is given the cursors as they are after each page.
    """
    escape = np.uint32(255)
    last_in_page = np.uint32(255)
    for start in range(0, cursors.size, tile_columns):
        stop = min(start + tile_columns, cursors.size)
        tile_end = np.uint32(stop)
        for row in range(row_ends.size):
            k = np.uint64(next_entries[row])
            end = np.uint64(row_ends[row])
            row_in_page = np.uint32(row) & last_in_page
            while k < end:
                column = np.uint32(indices[k])
                if column >= tile_end:
                    break
                place = cursors[column]
                cursors[column] = place + np.uint32(1)
                records[place] = (min(np.uint32(payload[k]), escape) << np.uint32(8)) | row_in_page
                k += np.uint64(1)
            next_entries[row] = k
            if row_in_page == last_in_page or row == row_ends.size - 1:
                page_ends[row // 256, start:stop] = cursors[start:stop]


@_kernel
def unpage(
    records: NDArray[np.uint16],
    starts: NDArray[np.uint32],
    page_counts: _U,
    words: NDArray[np.uint32],
) -> None:
    """Turn paged records into one-word records, escapes not yet resolved; O(n).

    Parameters
    ----------
    records
        Of some columns.
    starts
        Where each column begins in `records`.
    page_counts
        Records of each column in each page; those beyond are left alone.
    words
        Written at the same places.
    """
    for column in range(page_counts.shape[0]):
        k = np.uint64(starts[column])
        for page in range(page_counts.shape[1]):
            first_row = np.uint32(page * 256)
            for _ in range(page_counts[column, page]):
                record = np.uint32(records[k])
                row = first_row + (record & np.uint32(255))
                words[k] = ((record >> np.uint32(8)) << np.uint32(16)) | row
                k += np.uint64(1)


@_kernel
def place_paged(
    records: NDArray[np.uint16],
    page_counts: NDArray[np.uint16],
    cursors: NDArray[np.int64],
    length: int,
    first_row: int,
    rows: NDArray[np.signedinteger[Any]],
    payload: _U,
) -> None:
    """As `place_words`, for paged records, escapes not yet resolved; O(n).

    `page_counts` has the records of each column in each page. Lengthy runs are what the
    slices are for: the compiler makes vector code of a loop over them.
    """
    k = 0
    for column in range(page_counts.shape[0]):
        place = int(cursors[column])
        base = first_row
        for page in range(page_counts.shape[1]):
            count = int(page_counts[column, page])
            low = min(max(0, -place), count)
            high = max(min(count, length - place), low)
            run = records[k + low : k + high]
            run_rows = rows[place + low : place + high]
            run_payload = payload[place + low : place + high]
            for i in range(run.size):
                run_rows[i] = base + np.int64(run[i] & np.uint16(255))
                run_payload[i] = run[i] >> np.uint16(8)
            k += count
            place += count
            base += 256
        cursors[column] = place


@_kernel
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


@_kernel
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
