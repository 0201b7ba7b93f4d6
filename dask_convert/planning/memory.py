"""Projected memory of every kind of task and process: arithmetic on integers, nothing else.

Each function adds up the buffers that its task holds at its worst moment, for values that
cannot be narrowed at all. The planner turns the sums round to find the largest tasks that fit
a budget; a test holds them against what real processes use.
"""

from __future__ import annotations

import numpy as np

from dask_convert.planning.layout import FRAGMENT_TABLE_BYTES, PAGE_ROWS, MatrixSource, TargetLayout
from dask_convert.planning.records import native_dtype, payload_dtypes, record_bytes

MIB = 2**20

DRIVER_BYTES = 280 * MIB
"""At rest: the driver with client, scheduler and dashboard, and what workers are forked from."""

WORKER_BYTES = 150 * MIB
"""A worker at rest: what it does not share, and freed memory that its heap keeps."""

READ_PIECE_BYTES = 8 * MIB
"""The most that is read at once from a contiguous data set or from a fragment file."""

SHARD_INDEX_ROW_BYTES = 16
"""Offset and size of a chunk."""

FILES_AHEAD = 16
"""Fragment files whose heads, and again whose fragments, are asked for ahead of time."""


MIN_PAGE_RECORDS = 4
"""Mean records per column and page below which pages are not worth their counts."""


def widest_record_bytes(source: MatrixSource) -> int:
    """Bytes of a record whose value could not be narrowed."""
    return record_bytes(payload_dtypes(native_dtype(source.data.dtype))[-1])


def row_dtype(n_obs: int) -> np.dtype[np.signedinteger]:
    """The type of the target's ``indices``: int32 while rows fit, else int64."""
    return np.dtype(np.int32 if n_obs <= np.iinfo(np.int32).max else np.int64)


def column_dtype(n_vars: int) -> np.dtype[np.integer]:
    """The type that a row block keeps its columns in: uint16 while they fit, else int32."""
    return np.dtype(np.uint16 if n_vars <= 2**16 else np.int32)


def is_paged(source: MatrixSource) -> bool:
    """Whether pages have records enough to be worth their counts; the values decide the rest."""
    return PAGE_ROWS * source.nnz >= MIN_PAGE_RECORDS * source.n_obs * source.n_vars


def split_bytes(source: MatrixSource, block_nnz: int, block_rows: int, column_width: int) -> int:
    """Peak bytes of one split task, without the process itself.

    Columns, values and records of the block, as words of the widest kind or paged, with the
    tables of their pages; the inflated chunk with its compressed and converted copies; the
    per-column tables; one fragment while it is encoded.
    """
    column = column_dtype(source.n_vars).itemsize
    value = native_dtype(source.data.dtype).itemsize
    record = widest_record_bytes(source)
    counts = source.n_vars * (-(-block_rows // PAGE_ROWS) if is_paged(source) else 1)
    as_words = block_nnz * (column + value + record) + 4 * counts
    as_pages = block_nnz * (column + 2 + 2) + 14 * counts
    tables = 24 * source.n_vars + 24 * (block_rows + 1)
    chunks = 4 * _piece_bytes(source, "data") + 4 * _piece_bytes(source, "indices")
    fragment = 2 * min(block_nnz, column_width * block_rows) * record
    return max(as_words, as_pages) + tables + chunks + fragment


def combine_bytes(
    source: MatrixSource,
    target: TargetLayout,
    region_nnz: int,
    block_nnz: int,
    block_rows: int,
    column_width: int,
) -> int:
    """Peak bytes of one combine task, without the process itself.

    Rows and payload of the region; one encoded and one decoded fragment; the counters of
    the columns; the tables of all open fragment files; one target chunk with its converted and
    its encoded copy; the index of a shard, twice.
    """
    itemsize = native_dtype(source.data.dtype).itemsize
    row_itemsize = row_dtype(source.n_obs).itemsize
    fragment = min(block_nnz, column_width * block_rows) * widest_record_bytes(source)
    n_ranges = -(-source.n_vars // column_width)
    tables = 32 * source.n_vars + FRAGMENT_TABLE_BYTES * (2 * FILES_AHEAD + 1) * n_ranges
    chunk = 4 * target.chunk_nnz * max(itemsize, row_itemsize)
    index = 2 * SHARD_INDEX_ROW_BYTES * (target.shard_nnz // target.chunk_nnz)
    entries = region_nnz * (row_itemsize + itemsize)
    return entries + 3 * fragment + READ_PIECE_BYTES + tables + chunk + index


def total_bytes(task_bytes: int, workers: int, annotation_bytes: int) -> int:
    """Peak bytes of all processes; `workers` 0 is the driver working alone."""
    if workers == 0:
        return DRIVER_BYTES + annotation_bytes + task_bytes
    return DRIVER_BYTES + annotation_bytes + workers * (WORKER_BYTES + task_bytes)


def task_budget_bytes(memory_bytes: int, workers: int, annotation_bytes: int) -> int:
    """What `total_bytes` leaves for one task; negative where even idle processes don't fit."""
    return (memory_bytes - total_bytes(0, workers, annotation_bytes)) // max(workers, 1)


def _piece_bytes(source: MatrixSource, member: str) -> int:
    """Bytes of what is inflated or read at once of a member array."""
    array = source.data if member == "data" else source.indices
    itemsize = np.dtype(array.dtype).itemsize
    return array.chunk_length * itemsize if array.chunk_length else READ_PIECE_BYTES
