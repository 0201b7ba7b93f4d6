"""The checks of `dask_convert.shuffle.integrity` that look at every row of a region: compiled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import IntegrityError
from dask_convert.shuffle import scans
from dask_convert.shuffle.integrity import SUM_MASK, RegionCheck


def region_check(
    matrix: str,
    region: int,
    first_column: int,
    ends: NDArray[np.int64],
    rows: NDArray[np.signedinteger[Any]],
) -> RegionCheck:
    """Check the rows of a region before they are written; O(n).

    Parameters
    ----------
    matrix, region
        Whose they are, for the message.
    first_column
        Column of the first element of `ends`.
    ends
        Where each column ends, relative to the region's start; may lie outside the region.
    rows
        Of all entries of the region, at least one.

    Raises
    ------
    IntegrityError
        They descend within a column.
    """
    inside = np.clip(ends, 0, rows.size)
    found = np.zeros(3, np.int64)
    row_sum = int(scans.check_rows(rows, inside, found))
    if found[0]:
        msg = (
            f"{matrix}, region {region}, column {first_column + int(found[1])}: rows do not "
            "ascend: an error of this program or of this machine's memory; nothing was published"
        )
        raise IntegrityError(msg)
    first = int(np.searchsorted(inside, 0, side="right"))
    last = int(np.searchsorted(inside, rows.size - 1, side="right"))
    return RegionCheck(
        row_sum,
        int(found[2]),
        first_column + first,
        first_column + last,
        int(rows[0]),
        int(rows[-1]),
    )


def expected_row_sum(row_end_slabs: Iterable[NDArray[np.int64]]) -> int:
    """The sum that all regions must come to, from the source's ``indptr[1:]`` in slabs."""
    total = row = start_nnz = 0
    for ends in row_end_slabs:
        total = (total + int(scans.sum_counted_rows(row, ends, start_nnz))) & SUM_MASK
        row += ends.size
        start_nnz = int(ends[-1]) if ends.size else start_nnz
    return total
