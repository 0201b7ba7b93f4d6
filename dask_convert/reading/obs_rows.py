"""Which obs to read: from a mask, names, positions or a query to rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dask_convert.errors import SelectionError
from dask_convert.reading.gene_names import Names


def obs_rows(
    obs: Any, names: Callable[[], Names], frame: Callable[[], pd.DataFrame]
) -> NDArray[np.int64] | None:
    """Rows that `obs` stands for; None for all.

    Parameters
    ----------
    obs
        None; a string, which is a query on the columns of obs as pandas' ``DataFrame.query``
        has them; or what `Names.positions` takes: mask, slice, list of names or positions.
    names, frame
        Give names and columns of obs; called only where they are needed.

    Raises
    ------
    SelectionError
        The query cannot be evaluated, or is no condition; or what `Names.positions` raises.
    """
    if obs is None:
        return None
    if isinstance(obs, str):
        return np.flatnonzero(query_mask(frame(), obs))
    return names().positions(obs)


def query_mask(frame: pd.DataFrame, query: str) -> NDArray[np.bool]:
    """Which rows of a frame fulfil a condition.

    Variables of the caller (``@name``) are out of reach: what a query means depends on the store
    alone.
    """
    try:
        found = frame.eval(query, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # a query can go wrong in as many ways as Python
        msg = (
            f"the query {query!r} cannot be evaluated ({type(error).__name__}: {error}); columns "
            f"of obs: {', '.join(map(str, frame.columns))}"
        )
        raise SelectionError(msg) from error
    if not isinstance(found, pd.Series) or found.dtype.kind != "b" or len(found) != len(frame):
        msg = f"the query {query!r} is no condition: it does not say yes or no of every obs"
        raise SelectionError(msg)
    return np.asarray(found.fillna(value=False), dtype=bool)
