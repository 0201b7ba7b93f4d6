"""Statistics of every gene in every group of obs, in one pass over the store.

A column lies whole in a block, so that a block is all that its variances need: the mean first,
then squares of differences from it, which lose no digits as sums of squares would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from dask.base import compute
from dask.delayed import delayed

from dask_convert.errors import SelectionError
from dask_convert.reading.csc_reader import CscReader

if TYPE_CHECKING:
    import scipy.sparse as sp
    from distributed import Client
    from numpy.typing import NDArray

STATS_NNZ = 2**20
"""Entries of a block. A task holds some sixty bytes for each."""


class Groups(NamedTuple):
    """Which obs belong to which group.

    Attributes
    ----------
    names
        Of the groups.
    codes
        Shape (n_obs,): the number of each obs' group, -1 for none.
    """

    names: pd.Index
    codes: NDArray[np.integer[Any]]


class BlockStats(NamedTuple):
    """Of the columns of one block, each of shape (columns, groups)."""

    n_expressing: NDArray[np.int64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def groups_of(labels: pd.Series, rows: NDArray[np.int64] | None) -> Groups:
    """Group obs by their labels, in the order of categories or else sorted.

    Parameters
    ----------
    labels
        One per obs; obs whose label is missing belong to no group.
    rows
        Only these obs, each once; None for all.

    Raises
    ------
    SelectionError
        No obs is in any group.
    """
    mask = np.zeros(len(labels), bool)
    mask[slice(None) if rows is None else rows] = True
    codes = np.full(len(labels), -1, np.int32)
    chosen = labels[mask]
    if isinstance(chosen.dtype, pd.CategoricalDtype):
        chosen = chosen.cat.remove_unused_categories()
    factors = pd.Categorical(chosen)
    codes[mask] = factors.codes
    if not len(factors.categories):
        msg = f"no obs has a value in {labels.name!r}: there is nothing to group"
        raise SelectionError(msg)
    return Groups(pd.Index(factors.categories, name=labels.name), codes)


def gene_stats(
    reader: CscReader,
    genes: pd.Index,
    groups: Groups,
    client: Client | None,
    block_nnz: int = STATS_NNZ,
) -> pd.DataFrame:
    """Statistics of all columns, block by block as tasks of dask.

    Parameters
    ----------
    reader
        The matrix.
    genes
        Names of its columns.
    groups
        Of its rows.
    client
        Where tasks run; None for dask's default scheduler.
    block_nnz
        Entries per task.

    Returns
    -------
        Indexed by gene and group; columns ``n_obs``, ``n_expressing``, ``fraction``, ``mean``,
        ``variance`` (with n − 1, NaN for a single obs).
    """
    if reader.dtype.kind == "c":
        msg = f"{reader.name}: statistics of complex values ({reader.dtype}) are not defined"
        raise SelectionError(msg)
    n_obs = np.bincount(groups.codes[groups.codes >= 0], minlength=len(groups.names))
    reader = reader if reader.data.remote else reader.with_threads(1)
    shared: Any = (reader, groups.codes, n_obs)
    # Scattered, it reaches a worker once, and outside of the graph.
    shared = client.scatter([shared])[0] if client else delayed(shared, pure=False, traverse=False)
    task: Any = delayed(_range_stats, pure=False)
    tasks = [task(shared, start, stop) for start, stop in reader.ranges(block_nnz)]
    blocks = client.gather(client.compute(tasks)) if client else compute(*tasks)
    names = [genes.name or "gene", groups.names.name or "group"]
    index = pd.MultiIndex.from_product([genes, groups.names], names=names)
    counted = np.tile(n_obs, len(genes))
    expressing, mean, variance = (
        np.concatenate([block[field].ravel() for block in blocks]) if blocks else np.empty(0)
        for field in range(3)
    )
    columns = {"n_obs": counted, "n_expressing": expressing, "fraction": expressing / counted}
    return pd.DataFrame({**columns, "mean": mean, "variance": variance}, index=index)


def block_stats(
    block: sp.csc_array, codes: NDArray[np.integer[Any]], n_obs: NDArray[np.int64]
) -> BlockStats:
    """Statistics of the columns of a block; O(entries + columns × groups).

    Parameters
    ----------
    block
        Shape (rows, columns).
    codes
        Shape (rows,): the group of each row, -1 for none.
    n_obs
        Shape (groups,): rows per group, each at least 1.
    """
    if not block.has_canonical_format:
        block.sum_duplicates()
    shape, n_cells = (block.shape[1], n_obs.size), block.shape[1] * n_obs.size
    code = codes[block.indices]
    inside = code >= 0
    cell = np.repeat(np.arange(shape[0]), np.diff(block.indptr)) * n_obs.size + code
    # Infinite or missing values make mean and variance NaN, as they do in pandas.
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cell, values = cell[inside], block.data[inside].astype(np.float64)
        expressing = np.bincount(cell[values != 0], minlength=n_cells).reshape(shape)
        stored = np.bincount(cell, minlength=n_cells).reshape(shape)
        mean = np.bincount(cell, values, n_cells).reshape(shape) / n_obs
        squares = np.bincount(cell, (values - mean.ravel()[cell]) ** 2, n_cells).reshape(shape)
        squares = squares + (n_obs - stored) * mean**2
        variance = np.where(n_obs > 1, squares / (n_obs - 1), np.nan)
    return BlockStats(expressing, mean, variance)


def _range_stats(
    shared: tuple[CscReader, NDArray[np.integer[Any]], NDArray[np.int64]], start: int, stop: int
) -> BlockStats:
    """Read a range of columns and sum it up."""
    reader, codes, n_obs = shared
    return block_stats(reader.block(start, stop), codes, n_obs)
