"""The loops that look at entries: check, count, narrow, sum. They move nothing.

An index reaches `count_columns` only after `check_indices` has passed it. See
`dask_convert.shuffle.compiling` for what holds for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.shuffle.compiling import kernel

_U = NDArray[np.unsignedinteger[Any]]


@kernel
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


@kernel
def count_columns(indices: NDArray[np.int32], counts: NDArray[np.uint32]) -> None:
    """Add to ``counts[j]`` the occurrences of column ``j``; O(n)."""
    for k in range(indices.size):
        counts[np.uint32(indices[k])] += np.uint32(1)


@kernel
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


@kernel
def count_descents(indices: NDArray[np.int32]) -> tuple[int, int]:
    """How many elements are less than the one before, and how many equal it; O(n)."""
    descents = 0
    repeats = 0
    for k in range(1, indices.size):
        descents += indices[k] < indices[k - 1]
        repeats += indices[k] == indices[k - 1]
    return descents, repeats


@kernel
def count_repeats(
    indices: NDArray[np.int32], row_ends: NDArray[np.int64], last_rows: NDArray[np.int32]
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
            column = np.uint32(indices[k])
            if last_rows[column] == row:
                first = k if repeats == 0 else first
                repeats += 1
            last_rows[column] = row
            k += 1
    return repeats, first


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
def sum_rows(rows: NDArray[np.signedinteger[Any]]) -> np.uint64:
    """Sum of the mix of each row; O(n)."""
    total = np.uint64(0)
    for i in range(rows.size):
        total += _mixed(np.uint64(rows[i]))
    return total


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
def check_row_order(
    rows: NDArray[np.signedinteger[Any]], ends: NDArray[np.int64], noted: NDArray[np.int64]
) -> int:
    """Count descents within columns and repeated rows; O(n).

    Parameters
    ----------
    rows
        Of a region.
    ends
        Where each column ends in it, the last at ``rows.size``.
    noted
        Is given the number of repeated rows, and the column of the first descent.
    """
    descents = 0
    start = 0
    for column in range(ends.size):
        own = rows[start : ends[column]]
        found = 0
        repeated = 0
        for i in range(1, own.size):
            found += own[i] < own[i - 1]
            repeated += own[i] == own[i - 1]
        if found and not descents:
            noted[1] = column
        descents += found
        noted[0] += repeated
        start = ends[column]
    return descents
