"""Entries of a row block that share row and column, and whether columns ascend within rows.

Both come out of one pass over the columns: where they ascend, a duplicate has its first one right
before it. Where they don't, a second pass remembers the last row of every column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.shuffle import scans


def order_and_duplicates(
    columns: NDArray[np.integer[Any]], row_ends: NDArray[np.int64], n_vars: int
) -> tuple[bool, int]:
    """Whether columns ascend within all rows, and how many entries are duplicates; O(n).

    Parameters
    ----------
    columns
        Columns of all entries of a row block, checked.
    row_ends
        Where each row ends within the block.
    n_vars
        Columns of the matrix.
    """
    starts = row_ends[:-1]
    starts = starts[(starts > 0) & (starts < columns.size)]
    starts = starts[np.diff(starts, prepend=0) > 0]  # each once, however many rows are empty
    descents, repeats = scans.count_descents(columns)
    firsts, before = columns[starts], columns[starts - 1]
    if descents == np.count_nonzero(firsts < before):
        return True, repeats - int(np.count_nonzero(firsts == before))
    last_rows = np.full(n_vars, -1, np.int32)
    return False, scans.count_repeats(columns, row_ends, last_rows)[0]


def first_duplicate(
    columns: NDArray[np.integer[Any]], row_ends: NDArray[np.int64], n_vars: int
) -> int:
    """Position of the first entry with row and column of an earlier one, or -1; O(n)."""
    return int(scans.count_repeats(columns, row_ends, np.full(n_vars, -1, np.int32))[1])
