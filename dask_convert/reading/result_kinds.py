"""The forms in which columns are handed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from dask_convert.errors import SelectionError

Kind = Literal["csc", "coo", "gcxs", "dense", "frame"]
"""``scipy.sparse.csc_array``, ``sparse.COO``, ``sparse.GCXS``, a numpy array, or a pandas frame
with obs as its index and genes as its columns."""


def assembled(
    parts: Iterator[sp.csc_array], shape: tuple[int, int], dtype: np.dtype[Any], kind: Kind
) -> Any:
    """Columns that came in parts, as one matrix of a kind; ``frame`` as ``dense``.

    Parameters
    ----------
    parts
        From left to right; each is let go before the next is read, where the result is dense.
    shape, dtype
        Of the result.
    kind
        Duplicate entries are summed in all kinds but ``csc``, which has them as they are stored.

    Raises
    ------
    SelectionError
        There is no such kind.
    """
    if kind in {"dense", "frame"}:
        return _dense(parts, shape, dtype)
    return as_sparse(_stacked(list(parts), shape, dtype), kind)


def as_sparse(matrix: sp.csc_array, kind: str) -> Any:
    """A sparse matrix of a kind."""
    if kind == "csc":
        return matrix
    import sparse  # compiles for seconds when it is first imported

    if kind == "coo":
        return sparse.COO.from_scipy_sparse(matrix)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return sparse.GCXS.from_scipy_sparse(matrix)


def check_kind(kind: str) -> None:
    """Refuse what is no kind.

    Raises
    ------
    SelectionError
        It is none.
    """
    if kind not in get_args(Kind):
        msg = f"kind is {kind!r}; there are {', '.join(get_args(Kind))}"
        raise SelectionError(msg)


def _dense(parts: Iterator[sp.csc_array], shape: tuple[int, int], dtype: np.dtype[Any]) -> Any:
    dense = np.zeros(shape, dtype, order="F")
    at = 0
    for part in parts:
        dense[:, at : at + part.shape[1]] = part.toarray(order="F")
        at += part.shape[1]
    return dense


def _stacked(
    parts: list[sp.csc_array], shape: tuple[int, int], dtype: np.dtype[Any]
) -> sp.csc_array:
    if not parts:
        return sp.csc_array(shape, dtype=dtype)
    return parts[0] if len(parts) == 1 else sp.hstack(parts, format="csc")
