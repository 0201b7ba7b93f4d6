"""A matrix of a store as a dask array, cut by columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import dask.array as da
import numpy as np
import scipy.sparse as sp
from dask.delayed import delayed

from dask_convert.errors import SelectionError
from dask_convert.reading.csc_reader import CscReader
from dask_convert.reading.result_kinds import as_sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

BlockKind = Literal["scipy", "sparse"]


def to_dask(reader: CscReader, kind: BlockKind, block_nnz: int) -> Any:
    """A dask array of shape (n_obs, n_vars), one chunk per range of columns.

    Parameters
    ----------
    reader
        The matrix. It travels to each worker once; workers need the store at the same place.
    kind
        ``scipy``: blocks are ``csc_array``, for ``map_blocks`` and for anndata. ``sparse``:
        blocks are ``sparse.COO``, with which dask's own reductions work (on ``sparse.GCXS`` they
        take a minute to compile).
    block_nnz
        Entries per block, rounded up to whole stored chunks.

    Raises
    ------
    SelectionError
        There is no such kind.
    """
    if kind not in get_args(BlockKind):
        msg = f"kind is {kind!r}; there are {', '.join(get_args(BlockKind))}"
        raise SelectionError(msg)
    inner = {"scipy": "csc", "sparse": "coo"}[kind]
    meta = as_sparse(sp.csc_array((0, 0), dtype=reader.dtype), inner)
    shared: Any = delayed(
        reader if reader.data.remote else reader.with_threads(1), pure=False, traverse=False
    )
    ranges = np.array(reader.ranges(block_nnz), np.int64).reshape(-1, 2)
    if not ranges.size:
        return da.from_array(np.zeros(reader.shape, reader.dtype))
    starts, stops = (da.from_array(edges[None, :], chunks=1) for edges in ranges.T)
    widths = tuple((ranges[:, 1] - ranges[:, 0]).tolist())
    return da.map_blocks(
        _block,
        starts,
        stops,
        reader=shared,
        kind=inner,
        chunks=((reader.shape[0],), widths),
        dtype=reader.dtype,
        meta=meta,
    )


def _block(start: NDArray[Any], stop: NDArray[Any], reader: CscReader, kind: str) -> Any:
    return as_sparse(reader.block(int(start[0, 0]), int(stop[0, 0])), kind)
