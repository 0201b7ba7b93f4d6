"""The loops that look at entries: check, count, narrow, sum. They move nothing.

See `dask_convert.shuffle.compiling` for what holds for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.shuffle.compiling import kernel

_I = NDArray[np.integer[Any]]
_U = NDArray[np.unsignedinteger[Any]]


@kernel
def check_and_count(
    indices: _I,
    n_vars: int,
    columns: _I,
    position: int,
    page_ends: NDArray[np.int64],
    page_counts: NDArray[np.uint32],
) -> int:
    """Copy column indices, each within ``[0, n_vars)``, and count them page by page; O(n).

    Returns the position of the first that is not within, or -1. Each slice is checked before it
    is counted, and still lies in the first-level cache then.

    Parameters
    ----------
    indices
        As they are stored, signed or of at most 32 bits.
    n_vars
        Number of columns.
    columns
        Are given the indices; of a type that holds ``n_vars - 1``. Unusable if one is not within.
    position
        Of the first index within its row block.
    page_ends
        Where each page of the block ends; the last one holds the last index.
    page_counts
        Occurrences of each column in each page, shape (pages, n_vars); added to.
    """
    page = np.searchsorted(page_ends, position, side="right")
    start = 0
    while start < indices.size:
        while page_ends[page] <= position + start:
            page += 1
        stop = min(start + 4096, indices.size, page_ends[page] - position)
        own = indices[start:stop]
        checked = columns[start:stop]
        bad = False
        for k in range(own.size):
            index = own[k]
            bad |= (index < 0) | (index >= n_vars)
            checked[k] = index
        if bad:
            for k in range(own.size):
                if own[k] < 0 or own[k] >= n_vars:
                    return start + k
        counts = page_counts[page]
        for k in range(own.size):
            counts[np.uint32(checked[k])] += np.uint32(1)
        start = stop
    return -1


@kernel
def narrow_to_uint16(
    values: NDArray[Any], bits: _U, top: np.unsignedinteger[Any], narrowed: NDArray[np.uint16]
) -> bool:
    """Copy values to uint16; False where one of them would not come back bit by bit; O(n).

    Numbers that are not negative are ordered as their bits are, of integers and of floats, and
    all others (−0.0 and NaN too) have greater bits. What is left to find out is whether a number
    has a fraction. (One so small that it is subnormal is taken for 0 by a processor that was told
    to, as some libraries tell it when they are loaded; its bits are not those of 0.)

    Parameters
    ----------
    values
        Of a real type of 4 or 8 bytes.
    bits
        The same memory as unsigned integers.
    top
        The bits of 65,535 in that type.
    narrowed
        Are given the values; unusable where the answer is no.
    """
    greatest = bits.dtype.type(0)
    for k in range(bits.size):
        greatest = max(greatest, bits[k])
    if greatest > top:
        return False
    whole = True
    for k in range(values.size):
        number = np.int32(values[k])
        narrowed[k] = number
        whole &= (values.dtype.type(number) == values[k]) & ((number != 0) | (bits[k] == 0))
    return whole


@kernel
def find_from(numbers: _U, least: int, found: NDArray[np.uint32]) -> int:
    """Positions of numbers that are at least `least`, ascending; O(n).

    Returns how many were found: as many as `found` has room for, at most. They are expected to
    be rare: a slice that has none is only looked at.
    """
    n_found = 0
    for start in range(0, numbers.size, 256):
        own = numbers[start : start + 256]
        some = False
        for k in range(own.size):
            some |= own[k] >= least
        if not some:
            continue
        if n_found == found.size:
            break
        for k in range(own.size):
            if own[k] >= least and n_found < found.size:
                found[n_found] = start + k
                n_found += 1
    return n_found


@kernel
def count_descents(columns: _I) -> tuple[int, int]:
    """How many elements are less than the one before, and how many equal it; O(n)."""
    descents = 0
    repeats = 0
    for k in range(1, columns.size):
        descents += columns[k] < columns[k - 1]
        repeats += columns[k] == columns[k - 1]
    return descents, repeats


@kernel
def count_repeats(
    columns: _I, row_ends: NDArray[np.int64], last_rows: NDArray[np.int32]
) -> tuple[int, int]:
    """How many entries have the row and column of an earlier one, and where the first is; O(n).

    For rows whose columns come in any order. `last_rows` has an element of -1 per column, and is
    used up. The position is -1 if there are none.
    """
    repeats = 0
    first = -1
    k = 0
    for row in range(row_ends.size):
        while k < row_ends[row]:
            column = np.uint32(columns[k])
            if last_rows[column] == row:
                first = k if repeats == 0 else first
                repeats += 1
            last_rows[column] = row
            k += 1
    return repeats, first


@kernel
def sum_pages(page_counts: NDArray[np.uint16], counts: NDArray[np.uint32]) -> None:
    """Add up each column's counts; a loop, since numpy is slow where rows are short; O(n)."""
    for column in range(page_counts.shape[0]):
        total = np.uint32(0)
        for page in range(page_counts.shape[1]):
            total += np.uint32(page_counts[column, page])
        counts[column] = total


@kernel
def lzf_bytes(encoded: NDArray[np.uint8]) -> int:
    """What LZF-compressed bytes inflate to, without inflating them; -1 if they are damaged; O(n).

    The format is that of Marc Lehmann's liblzf: a run of 1 to 32 literal bytes, or a length of 3
    to 264 and a distance of 1 to 8,192 backwards.
    """
    k = 0
    inflated = 0
    while k < encoded.size:
        control = int(encoded[k])
        k += 1
        if control < 32:
            inflated += control + 1
            k += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += int(encoded[k]) if k < encoded.size else 0
            k += 1
        if k >= encoded.size:
            return -1
        if (control & 31) * 256 + int(encoded[k]) + 1 > inflated:
            return -1
        k += 1
        inflated += length + 2
    return inflated if k == encoded.size else -1


@kernel
def _mixed(row: np.uint64) -> np.uint64:
    """Mix a row number; after splitmix64 (Steele, Lea and Flood 2014), one round shorter."""
    mixed = (row + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(32))


@kernel
def sum_counted_rows(first_row: int, row_ends: NDArray[np.int64], start_nnz: int) -> np.uint64:
    """Sum of the mix of each row times its entries; O(rows)."""
    total = np.uint64(0)
    start = start_nnz
    for i in range(row_ends.size):
        total += np.uint64(row_ends[i] - start) * _mixed(np.uint64(first_row + i))
        start = row_ends[i]
    return total


@kernel
def check_rows(
    rows: NDArray[np.signedinteger[Any]], ends: NDArray[np.int64], noted: NDArray[np.int64]
) -> np.uint64:
    """Sum of the mix of each row; counts descents within columns and repeated rows; O(n).

    Parameters
    ----------
    rows
        Of a region.
    ends
        Where each column ends in it, the last at ``rows.size``.
    noted
        Is given the number of descents, the column of the first, and the number of repeated rows.
    """
    total = np.uint64(0)
    start = 0
    for column in range(ends.size):
        own = rows[start : ends[column]]
        descents = 0
        repeated = 0
        if own.size:
            total += _mixed(np.uint64(own[0]))
        for i in range(1, own.size):
            descents += own[i] < own[i - 1]
            repeated += own[i] == own[i - 1]
            total += _mixed(np.uint64(own[i]))
        if descents and not noted[0]:
            noted[1] = column
        noted[0] += descents
        noted[2] += repeated
        start = ends[column]
    return total
