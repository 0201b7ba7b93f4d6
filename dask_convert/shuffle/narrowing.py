"""A row block's values in the narrowest type that holds every one of them, bit by bit.

Nearly all count matrices keep small integers in wide types. A block's values begin in the
narrowest type that there is for theirs, and when one does not fit, all that came before it are
widened.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.planning.records import payload_dtypes
from dask_convert.shuffle import scans


class NarrowValues:
    """Collects values, in the narrowest type that has held all of them so far.

    Parameters
    ----------
    size
        How many there will be.
    data_dtype
        The source's type of values, native byte order.

    Attributes
    ----------
    values
        Of that size; those that were added are there.
    """

    def __init__(self, size: int, data_dtype: np.dtype[Any]) -> None:
        self._wider = list(payload_dtypes(data_dtype))
        self.values: NDArray[Any] = np.empty(size, self._wider.pop(0))

    @property
    def payload(self) -> np.dtype[Any]:
        """The type."""
        dtype: np.dtype[Any] = self.values.dtype
        return dtype

    def add(self, position: int, values: NDArray[Any]) -> NDArray[Any]:
        """Take the values from `position` on; those before it are there.

        Returns the same values in the payload's type.
        """
        places = slice(position, position + values.size)
        while not narrow_into(self.values[places], values):
            wider = np.empty(self.values.size, self._wider.pop(0))
            wider[:position] = self.values[:position]
            self.values = wider
        return self.values[places]


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
