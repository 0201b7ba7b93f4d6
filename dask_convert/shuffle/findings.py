"""What is allowed in a matrix and still worth telling: it is kept, bit by bit, and counted.

Entries that share row and column, zeros that are stored, NaN and infinities. They are counted
while a row block is split, on values that were narrowed already and lie in the cache.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_NAMES = {
    "duplicate_nnz": "that share row and column with an earlier one",
    "zero_nnz": "that are zero",
    "nan_nnz": "that are NaN",
    "infinite_nnz": "that are infinite",
}


class Findings(msgspec.Struct, frozen=True):
    """How many entries of a matrix are unusual.

    Attributes
    ----------
    duplicate_nnz
        Have the row and the column of an earlier entry.
    zero_nnz
        Are zero, or minus zero.
    nan_nnz, infinite_nnz
        Are NaN, or infinite and not NaN; of complex values, in either part.
    """

    duplicate_nnz: int = 0
    zero_nnz: int = 0
    nan_nnz: int = 0
    infinite_nnz: int = 0

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.duplicate_nnz + other.duplicate_nnz,
            self.zero_nnz + other.zero_nnz,
            self.nan_nnz + other.nan_nnz,
            self.infinite_nnz + other.infinite_nnz,
        )

    def texts(self) -> list[str]:
        """What there is of each kind, in words; nothing for kinds that there are none of."""
        counts = msgspec.structs.asdict(self)
        return [f"{counts[name]:,} entries {text}" for name, text in _NAMES.items() if counts[name]]


def value_findings(values: NDArray[Any]) -> Findings:
    """Count zeros, NaN and infinities; O(n)."""
    zeros = values.size - int(np.count_nonzero(values))
    if values.dtype.kind not in "fc":
        return Findings(zero_nnz=zeros)
    # In slices, for masks that stay in the cache; most have nothing to count.
    step = 2**15
    nans = infinities = 0
    for start in range(0, values.size, step):
        part = values[start : start + step]
        finite = np.isfinite(part)
        if not finite.all():
            some = int(np.count_nonzero(np.isnan(part)))
            nans += some
            infinities += part.size - int(np.count_nonzero(finite)) - some
    return Findings(zero_nnz=zeros, nan_nnz=nans, infinite_nnz=infinities)


def first_unusual(values: NDArray[Any]) -> int:
    """Position of the first value that is zero, NaN or infinite, or -1; O(n)."""
    with np.errstate(invalid="ignore"):  # of complex NaN, which is not zero
        unusual = values == 0
    if values.dtype.kind in "fc":
        unusual |= ~np.isfinite(values)
    positions = np.flatnonzero(unusual)
    return int(positions[0]) if positions.size else -1
