"""From integers to a plan: which task reads, sends and writes what. Pure: no file is touched.

    rows     |  block 0  |  block 1  | … | block N−1 |      cut by non-zeros, from indptr alone
    columns  | range 0 | range 1 | …                 |      a fixed number of columns each
    target   |     region 0     |     region 1    |…|       whole shards, equal in non-zeros

A combine task reads one slice of every block's file. Slices shrink as N and M grow, and small
reads are what a parallel file system is worst at; so blocks and regions are made as small as
the wish for slices of 64 Ki records allows, not as large as memory allows. That makes sizes
grow with the square root of the matrix, keeps tasks short and even, and leaves memory unused
that the budget would have given. Where the budget is the tighter bound it decides.

Above some 10¹¹ entries tasks would be too long if slices were to stay as large. Blocks end at
`MAX_TASK_NNZ`, but regions grow on where slices would fall below `LEAST_SLICE_RECORDS` otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isqrt
from types import MappingProxyType
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from dask_convert.errors import MemoryBudgetError, PlanError
from dask_convert.planning import memory
from dask_convert.planning.dtypes import requested_dtype
from dask_convert.planning.layout import (
    Codec,
    FragmentLayout,
    MatrixSource,
    Region,
    RowBlock,
    TargetLayout,
)
from dask_convert.planning.plans import ConversionPlan, MatrixPlan, RowIndex, Settings
from dask_convert.planning.records import MAX_BLOCK_ROWS

SLICE_RECORDS = 2**16
LEAST_SLICE_RECORDS = 2**15
"""For which regions may grow beyond `MAX_TASK_NNZ`: 64 KiB of paged records."""
MAX_CHUNK_NNZ = 2**26
"""Of complex values that is 1 GiB; blosc takes at most 2."""
LEAST_BLOCK_NNZ = 2**16
MIN_TASK_NNZ = 2**23
MAX_TASK_NNZ = 2**26
MAX_REGION_NNZ = 2**28
FRAGMENT_RECORDS = 2**15
FRAGMENT_BYTES = 2**24
MAX_SHARDS = 128
MIN_SHARD_NNZ = 2**20
MAX_SHARD_NNZ = 2**24


def conversion_plan(
    matrices: Iterable[tuple[MatrixSource, RowIndex]],
    settings: Settings,
    *,
    annotation_bytes: int = 0,
    copied_bytes: int = 0,
    copied: Mapping[str, str] = MappingProxyType({}),
    left_out: tuple[str, ...] = (),
) -> ConversionPlan:
    """Plan the conversion of some matrices within a memory budget.

    Parameters
    ----------
    matrices
        The CSR matrices to convert.
    settings
        The user's choices.
    annotation_bytes
        Projected memory for the rest of the file.
    copied_bytes, copied, left_out
        See `ConversionPlan`.

    Raises
    ------
    MemoryBudgetError
        The budget holds not even the smallest tasks; names the least that would do.
    PlanError
        Settings contradict each other.
    """
    check_settings(settings)
    matrices = tuple(matrices)
    least_task = max(
        (_least_task_bytes(source, rows, settings) for source, rows in matrices), default=0
    )
    if settings.worker_memory is not None:
        _check_worker_memory(settings.worker_memory, memory.WORKER_BYTES + least_task)
    least = memory.total_bytes(least_task, settings.workers, annotation_bytes)
    if settings.memory < least:
        msg = (
            f"a memory budget of {-(-settings.memory // memory.MIB):,} MiB is too small for this "
            f"file with {settings.workers} workers: the least is {-(-least // memory.MIB):,} MiB; "
            "give more memory or fewer workers"
        )
        raise MemoryBudgetError(msg, least)
    budget = memory.task_budget_bytes(settings.memory, settings.workers, annotation_bytes)
    if settings.worker_memory is not None:
        budget = min(budget, settings.worker_memory - memory.WORKER_BYTES)
    planned = tuple(_matrix_plan(source, rows, settings, budget) for source, rows in matrices)
    return ConversionPlan(
        settings, planned, dict(copied), left_out, annotation_bytes, copied_bytes, least
    )


def _check_worker_memory(worker_bytes: int, least_bytes: int) -> None:
    if worker_bytes < least_bytes:
        msg = (
            f"workers that may use {max(worker_bytes, 0) // memory.MIB:,} MiB each are too small "
            f"for this file: the least is {-(-least_bytes // memory.MIB):,} MiB; give them more "
            "memory, or jobs fewer cores"
        )
        raise MemoryBudgetError(msg, least_bytes)


def check_settings(settings: Settings) -> None:
    """Refuse settings that contradict each other.

    Raises
    ------
    PlanError
        Names the setting, its value and the rule.
    """
    for name in ("chunk_nnz", "block_nnz", "region_nnz", "column_width"):
        size = getattr(settings, name)
        if size is not None and size < 1:
            msg = f"{name} is {size}: it must be at least 1"
            raise PlanError(msg)
    for name, known in (("zarr_format", (2, 3)), ("codec", get_args(Codec))):
        if getattr(settings, name) not in known:
            msg = f"{name} is {getattr(settings, name)!r}: it must be one of {known}"
            raise PlanError(msg)
    if settings.chunk_nnz > MAX_CHUNK_NNZ:
        msg = f"chunk_nnz is {settings.chunk_nnz}: it must be at most {MAX_CHUNK_NNZ}"
        raise PlanError(msg)
    requested_dtype(settings.data_dtype, np.dtype(np.float64))
    shard = settings.shard_nnz
    if shard and (shard < 0 or shard % settings.chunk_nnz):
        msg = f"shard_nnz is {shard}: it must be 0 or a multiple of chunk_nnz, {settings.chunk_nnz}"
        raise PlanError(msg)
    if shard and settings.zarr_format == 2:
        msg = "zarr format 2 has no shards: leave shard_nnz out or set it to 0"
        raise PlanError(msg)
    if settings.workers < 0:
        msg = f"workers is {settings.workers}: it must be 0 or more"
        raise PlanError(msg)
    if not 0 <= settings.codec_level <= 9:
        msg = f"codec_level is {settings.codec_level}: {settings.codec} knows 0 to 9 here"
        raise PlanError(msg)


def row_blocks(
    row_ends: Iterable[NDArray[np.int64]], max_nnz: int, max_rows: int
) -> Iterator[RowBlock]:
    """Cut rows into blocks, greedily: each takes rows while it has at most `max_nnz` entries.

    `max_nnz` must be at least the longest row. O(blocks · log rows) time beside reading the
    slabs, one slab of memory.
    """
    start = start_nnz = stop = stop_nnz = 0
    for ends in row_ends:
        position = 0
        while position < ends.size:
            fitting = int(np.searchsorted(ends[position:], start_nnz + max_nnz, side="right"))
            taken = min(fitting, start + max_rows - stop)
            if taken:
                position += taken
                stop += taken
                stop_nnz = int(ends[position - 1])
            else:
                yield RowBlock(start, stop, start_nnz, stop_nnz)
                start, start_nnz = stop, stop_nnz
    if stop > start:
        yield RowBlock(start, stop, start_nnz, stop_nnz)


def target_regions(nnz: int, region_nnz: int) -> tuple[Region, ...]:
    """Cut the target's non-zeros into regions of `region_nnz`, the last one shorter."""
    return tuple(Region(s, min(s + region_nnz, nnz)) for s in range(0, nnz, region_nnz))


def _matrix_plan(
    source: MatrixSource, rows: RowIndex, settings: Settings, budget_bytes: int
) -> MatrixPlan:
    block_nnz = _block_nnz(source, rows, settings, budget_bytes)
    max_rows = _max_rows(source, block_nnz)
    width = _column_width(source, settings, block_nnz)
    target = _target_layout(source, settings, block_nnz, budget_bytes)
    region_nnz = _region_nnz(source, target, settings, block_nnz, budget_bytes)
    blocks = tuple(row_blocks(rows.row_ends(), block_nnz, max_rows))
    regions = target_regions(source.nnz, region_nnz)
    largest = max((b.nnz for b in blocks), default=0)
    most_rows = max((b.rows for b in blocks), default=0)
    return MatrixPlan(
        source=source,
        target=target,
        column_width=width,
        paged=memory.is_paged(source),
        blocks=blocks,
        regions=regions,
        split_bytes=memory.split_bytes(source, largest, most_rows, width),
        combine_bytes=memory.combine_bytes(
            source, target, min(region_nnz, source.nnz), largest, most_rows, width
        ),
        scratch_bytes=_scratch_bytes(source, len(blocks), width),
        target_bytes=_target_bytes(source, settings),
    )


def _block_nnz(source: MatrixSource, rows: RowIndex, settings: Settings, budget_bytes: int) -> int:
    """Entries of the largest row block: what is wished, what fits, evenly for the workers."""
    least = _least_block_nnz(source, rows, settings)
    if settings.block_nnz:
        return least

    def needed_bytes(block_nnz: int) -> int:
        return _least_bytes_with(source, settings, block_nnz)

    longest = max(rows.longest_row_nnz, 1)
    fitting = _largest(needed_bytes, least, MAX_TASK_NNZ, budget_bytes)
    wished = min(max(isqrt(source.nnz * SLICE_RECORDS), MIN_TASK_NNZ), fitting)
    count = _even_count(source.nnz, max(wished - longest, longest), settings.workers)
    # Greedy cutting falls short of its limit by up to a row: add one to make `count` blocks do.
    chosen = min(-(-source.nnz // count) + longest, fitting)
    # Smaller blocks may have wider ranges, and so larger fragments, than those that fit.
    return chosen if needed_bytes(chosen) <= budget_bytes else fitting


def _region_nnz(
    source: MatrixSource,
    target: TargetLayout,
    settings: Settings,
    block_nnz: int,
    budget_bytes: int,
) -> int:
    """Entries of a region: whole shards, enough for large slices, evenly for the workers."""
    shard = target.shard_nnz
    if settings.region_nnz:
        return _least_region_nnz(target, settings)
    fitting = _largest(
        lambda shards: _sized_combine_bytes(source, settings, target, shards * shard, block_nnz),
        1,
        max(MAX_REGION_NNZ // shard, 1),
        budget_bytes,
    )
    wished = min(max(MIN_TASK_NNZ, source.nnz * SLICE_RECORDS // block_nnz), MAX_TASK_NNZ) // shard
    least = -(-source.nnz * LEAST_SLICE_RECORDS // (block_nnz * shard))
    n_shards = -(-source.nnz // shard)
    count = _even_count(n_shards, max(min(wished, fitting), 1), settings.workers)
    chosen = max(-(-n_shards // count), 1)
    if chosen < least:
        chosen = max(min(least, fitting), 1)
        rounds = n_shards // (chosen * max(settings.workers, 1))
        if rounds:  # whole ones: the last would leave most workers idle
            chosen = min(-(-n_shards // (rounds * max(settings.workers, 1))), fitting)
    return chosen * shard


def _target_layout(
    source: MatrixSource, settings: Settings, block_nnz: int, budget_bytes: int
) -> TargetLayout:
    """Shards large enough that there are few files, small enough for the budget."""

    def layout(shard_nnz: int) -> TargetLayout:
        return TargetLayout(
            settings.zarr_format,
            settings.chunk_nnz,
            shard_nnz,
            settings.codec,
            settings.codec_level,
        )

    if settings.shard_nnz == 0 or settings.zarr_format == 2:
        return layout(settings.chunk_nnz)
    if settings.shard_nnz:
        return layout(settings.shard_nnz)
    shard = settings.chunk_nnz
    for doubled in (shard << power for power in range(1, 32)):
        too_many = -(-source.nnz // shard) > MAX_SHARDS and doubled <= MAX_SHARD_NNZ
        needs = _sized_combine_bytes(source, settings, layout(doubled), doubled, block_nnz)
        if needs > budget_bytes or not (too_many or doubled <= MIN_SHARD_NNZ):
            break
        shard = doubled
    return layout(shard)


def _column_width(source: MatrixSource, settings: Settings, block_nnz: int) -> int:
    """Columns per range: fragments of about `FRAGMENT_RECORDS`, and bounded if they are dense."""
    if settings.column_width:
        return settings.column_width
    wished = source.n_vars * FRAGMENT_RECORDS // max(block_nnz, 1)
    column_bytes = _max_rows(source, block_nnz) * memory.widest_record_bytes(source)
    width = 1 << max(min(wished, FRAGMENT_BYTES // column_bytes) - 1, 0).bit_length()
    return min(width, max(source.n_vars, 1))


def _max_rows(source: MatrixSource, block_nnz: int) -> int:
    """Rows of a block at most: four times the mean, so that empty rows cannot pile up."""
    mean = block_nnz * source.n_obs // max(source.nnz, 1)
    return min(max(4 * mean, 1), MAX_BLOCK_ROWS)


def _sized_split_bytes(source: MatrixSource, settings: Settings, block_nnz: int) -> int:
    width = _column_width(source, settings, block_nnz)
    return memory.split_bytes(source, block_nnz, _max_rows(source, block_nnz), width)


def _sized_combine_bytes(
    source: MatrixSource, settings: Settings, target: TargetLayout, region_nnz: int, block_nnz: int
) -> int:
    width = _column_width(source, settings, block_nnz)
    max_rows = _max_rows(source, block_nnz)
    region_nnz = min(region_nnz, source.nnz)
    return memory.combine_bytes(source, target, region_nnz, block_nnz, max_rows, width)


def _least_task_bytes(source: MatrixSource, rows: RowIndex, settings: Settings) -> int:
    """The larger of the smallest split task and the smallest combine task."""
    return _least_bytes_with(source, settings, _least_block_nnz(source, rows, settings))


def _least_bytes_with(source: MatrixSource, settings: Settings, block_nnz: int) -> int:
    """The larger of a split task of this size and the smallest combine task that goes with it."""
    target = _target_layout(source, settings, block_nnz, budget_bytes=0)
    region_nnz = _least_region_nnz(target, settings)
    return max(
        _sized_split_bytes(source, settings, block_nnz),
        _sized_combine_bytes(source, settings, target, region_nnz, block_nnz),
    )


def _least_block_nnz(source: MatrixSource, rows: RowIndex, settings: Settings) -> int:
    least = min(LEAST_BLOCK_NNZ, max(source.nnz, 1))
    return max(settings.block_nnz or least, rows.longest_row_nnz)


def _least_region_nnz(target: TargetLayout, settings: Settings) -> int:
    return -(-(settings.region_nnz or 1) // target.shard_nnz) * target.shard_nnz


def _largest(needed_bytes: Callable[[int], int], low: int, high: int, budget_bytes: int) -> int:
    """The largest size in ``[low, high]`` whose need fits the budget; `low` if none does."""
    while low < high:
        middle = (low + high + 1) // 2
        if needed_bytes(middle) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _even_count(total: int, most: int, workers: int) -> int:
    """How many parts of at most `most`, in whole rounds of the workers where there are several."""
    count = max(-(-total // most), 1)
    if 1 < workers < count:
        count = -(-count // workers) * workers
    return count


def _stored_bound(source: MatrixSource, row_itemsize: int) -> int:
    """What the entries take at most: raw, or by what the source takes, if that is less.

    Words, compressed by LZ4 on scratch and by columns in the target, have been seen to take half
    as much again as well packed sources; parts of a virtual data set tell nothing.
    """
    raw = source.nnz * (np.dtype(source.data.dtype).itemsize + row_itemsize)
    if not (source.data.stored_bytes and source.indices.stored_bytes):
        return raw
    return min(raw, source.stored_bytes * (1 if memory.is_paged(source) else 2))


def _target_bytes(source: MatrixSource, settings: Settings) -> int:
    """What the matrix takes in the target at most: raw where it is not compressed."""
    row_itemsize = memory.row_dtype(source.n_obs).itemsize
    stored = np.dtype(source.data.dtype)
    value = requested_dtype(settings.data_dtype, stored) or stored
    raw = source.nnz * (value.itemsize + row_itemsize)
    entries = raw if settings.codec == "none" else min(raw, _stored_bound(source, row_itemsize))
    return entries + 8 * (source.n_vars + 1)


def _scratch_bytes(source: MatrixSource, n_blocks: int, column_width: int) -> int:
    """What the fragments take at most; paged records are two bytes, however the source packs."""
    head_bytes = FragmentLayout(source.n_vars, column_width).head_bytes
    least = source.nnz * 9 // 4 if memory.is_paged(source) else 0
    entries = max(_stored_bound(source, 4), least)
    return entries + n_blocks * (head_bytes + 4096) + 8 * source.n_obs
