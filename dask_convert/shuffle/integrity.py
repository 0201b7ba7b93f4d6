"""Checks that every conversion makes of its own output, nearly for nothing.

While a region is in memory, a combine task looks at its rows once more (`row_checks`, 0.3 ns per
entry): they must ascend within every column, and the sum of a mix of all of them is kept. When
all regions are written, the sums must add up to what the source's indptr demands: each row
exactly as often as it has entries. Counts per column are exact already, since a region is
refused whose fragments do not fill its columns.

A sum of a non-linear mix does not care about order and is changed by any entry that is lost,
doubled or moved to another row, except by a chance of about 2⁻⁶⁴. What it does not see are
values, and columns exchanged within a row: that is what `dask_convert.verification` is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from dask_convert.errors import IntegrityError

SUM_MASK = 2**64 - 1


class RegionCheck(msgspec.Struct, frozen=True):
    """What the rows of one region come to.

    Attributes
    ----------
    row_sum
        Sum of the mix of the rows of all entries, mod 2⁶⁴.
    repeated_nnz
        Entries at the place of the one before: kept duplicates.
    first_column, last_column, first_row, last_row
        Column and row of the region's first and of its last entry.
    """

    row_sum: int
    repeated_nnz: int
    first_column: int
    last_column: int
    first_row: int
    last_row: int


def check_regions(
    matrix: str, checks: Sequence[RegionCheck], row_sum: int, duplicate_nnz: int
) -> None:
    """Hold all regions of a matrix, in order, against each other and against the source.

    Parameters
    ----------
    matrix
        Its name.
    checks
        Of its regions.
    row_sum
        What theirs must add up to.
    duplicate_nnz
        Entries of the source that have row and column of an earlier one.

    Raises
    ------
    IntegrityError
        A column that goes on in the next region does not ascend across the border, or rows
        have other numbers of entries than the source's indptr says, or duplicates are lost.
    """
    for number, (left, right) in enumerate(pairwise(checks)):
        if left.last_column == right.first_column and left.last_row > right.first_row:
            msg = (
                f"{matrix}, regions {number} and {number + 1}, column {left.last_column}: row "
                f"{right.first_row} follows row {left.last_row} across their border"
            )
            raise IntegrityError(msg)
    if sum(check.row_sum for check in checks) & SUM_MASK != row_sum:
        msg = (
            f"{matrix}: rows of the output do not have as many entries as the source's indptr "
            "says: an error of this program or of this machine; nothing was published"
        )
        raise IntegrityError(msg)
    across = sum(
        left.last_column == right.first_column and left.last_row == right.first_row
        for left, right in pairwise(checks)
    )
    repeated_nnz = sum(check.repeated_nnz for check in checks) + across
    if repeated_nnz != duplicate_nnz:
        msg = (
            f"{matrix}: the source has {duplicate_nnz:,} entries at the place of another one, the "
            f"output {repeated_nnz:,}: an error of this program or of this machine; nothing was "
            "published"
        )
        raise IntegrityError(msg)
