"""Which data types hold which values exactly: the rules behind ``data_dtype``.

*Exactly* means bit by bit after the way there and back: −0.0 is not 0, a NaN keeps its payload.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import PlanError
from dask_convert.planning.records import type_code

SUPPORTED = ("b1", *(f"{k}{n}" for k in "iu" for n in (1, 2, 4, 8)), "f2", "f4", "f8", "c8", "c16")
"""Kind and item size of the data types that can be converted."""

# What `auto` tries, smallest first, unsigned before signed before float. float16 is left out:
# scipy, and with it anndata, has no sparse matrices of it.
_INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
_SMALLER = {
    "f": ("u1", "i1", "u2", "i2", "u4", "i4", "f4"),
    "i": _INTEGERS,
    "u": _INTEGERS,
    "c": ("c8",),
}


def auto_dtypes(data_dtype: np.dtype[np.generic]) -> tuple[np.dtype[np.generic], ...]:
    """The types that ``auto`` chooses from for a source of this type; the last is itself."""
    smaller = (np.dtype(code) for code in _SMALLER.get(data_dtype.kind, ()))
    return (*(d for d in smaller if d.itemsize < data_dtype.itemsize), data_dtype)


def indptr_dtype(profile: str, nnz: int) -> np.dtype[np.signedinteger]:
    """The type of the target's ``indptr``: int64, and for browsers int32 as long as that will do.

    JavaScript reads int64 as `BigInt`, which cannot be mixed with numbers.
    """
    small = profile == "vitessce" and nnz <= np.iinfo(np.int32).max
    return np.dtype(np.int32 if small else np.int64)


@lru_cache(maxsize=256)
def always_exact(source: np.dtype[np.generic], dtype: np.dtype[np.generic]) -> bool:
    """Whether `dtype` holds every value of `source` exactly, whatever the values are.

    Stricter than numpy's "safe" casts, which send int64 to float64, and a signalling NaN of a
    float type to the quiet one of a wider type.
    """
    if source == dtype:
        return True
    too_long = source.itemsize == 8 and dtype.kind in "fc"
    return source.kind in "biu" and not too_long and np.can_cast(source, dtype, "safe")


def first_changed(values: NDArray[np.generic], dtype: np.dtype[np.generic]) -> int:
    """Position of the first value that `dtype` does not hold exactly, or -1; O(n)."""
    if always_exact(values.dtype, dtype):
        return -1
    real = values if dtype.kind == "c" else values.real
    with np.errstate(all="ignore"):
        cast = real.astype(dtype)
        back = (cast if values.dtype.kind == "c" else cast.real).astype(values.dtype)
        changed = _bytes_of(back) != _bytes_of(values)
        # To cast a number outside an integer type's range is undefined and might come back by
        # chance.
        if dtype.kind in "iu":
            changed |= ~_inside(real, dtype)
        elif values.dtype.kind in "iu" and dtype.kind in "fc":
            changed |= ~_inside(cast.real, values.dtype)
    positions = np.flatnonzero(changed)
    return int(positions[0]) if positions.size else -1


def exact_mask(
    values: NDArray[np.generic],
    payload: np.dtype[np.generic],
    candidates: tuple[np.dtype[np.generic], ...],
    mask: int,
) -> int:
    """Clear the bits of those candidates that do not hold all the values.

    Parameters
    ----------
    values
        Some values of the matrix.
    payload
        A type that is known to hold them.
    candidates
        From `auto_dtypes`; candidate ``i`` is bit ``i``.
    mask
        The candidates that hold all the values so far.
    """
    small = payload == np.uint16 and values.size > 0
    largest = int(values.max()) if small else 0
    for number, dtype in enumerate(candidates):
        if not mask >> number & 1:
            continue
        if small and dtype.kind in "iu":
            holds = largest <= np.iinfo(dtype.str).max
        else:
            holds = always_exact(payload, dtype) or first_changed(values, dtype) < 0
        mask &= ~(0 if holds else 1 << number)
    return mask


def requested_dtype(name: str, data_dtype: np.dtype[np.generic]) -> np.dtype[np.generic] | None:
    """The type that the setting ``data_dtype`` stands for; None for ``auto``.

    Raises
    ------
    PlanError
        The name is no data type, or one that a matrix cannot have.
    """
    if name == "auto":
        return None
    if name == "same":
        return data_dtype
    try:
        dtype = np.dtype(name).newbyteorder("=")
    except (TypeError, ValueError, SyntaxError, OverflowError) as error:  # numpy parses, and counts
        msg = f"data_dtype is {name!r}: neither 'same', 'auto' nor the name of a data type"
        raise PlanError(msg) from error
    if type_code(dtype) not in SUPPORTED:
        msg = f"data_dtype is {name!r}: a matrix has numbers or booleans"
        raise PlanError(msg)
    return dtype


def _inside(numbers: NDArray[Any], integer: np.dtype[np.generic]) -> NDArray[np.bool]:
    """Which numbers lie in the range of an integer type."""
    limits = np.iinfo(integer.str)
    exact = numbers.astype(np.float64) if numbers.dtype.kind == "f" else numbers
    return (exact >= limits.min) & (exact < limits.max + 1)


def _bytes_of(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The values as something that compares bit by bit."""
    if values.dtype.itemsize == 16:
        return values.view("V16")
    return values.view(f"u{values.dtype.itemsize}")
