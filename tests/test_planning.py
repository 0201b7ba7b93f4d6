"""One list of what makes a plan sound, held against real sizes and against random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import DTYPES, share

from dask_convert.errors import MemoryBudgetError, PlanError
from dask_convert.planning.layout import ArraySource, ColumnRange, MatrixSource, Region, RowBlock
from dask_convert.planning.planner import conversion_plan, row_blocks
from dask_convert.planning.plans import ConversionPlan, MatrixPlan, RowIndex, Settings
from dask_convert.planning.records import MAX_BLOCK_ROWS

GIB = 2**30
SLAB_ROWS = 2**20


def matrix_source(
    n_obs: int, n_vars: int, nnz: int, dtype: str = "<f8", chunk_length: int = 100_000
) -> MatrixSource:
    """A gzip source of this size, three bytes per entry."""

    def member(dtype: str, stored_bytes: int) -> ArraySource:
        return ArraySource(dtype, nnz, chunk_length, stored_bytes, ("gzip",), raw=True)

    return MatrixSource(
        "X", "X", n_obs, n_vars, nnz, member(dtype, nnz), member("<i4", 2 * nnz), "<i8"
    )


def even_rows(source: MatrixSource) -> RowIndex:
    """Entries spread over all rows as evenly as integers allow."""

    def row_ends() -> Iterator[NDArray[np.int64]]:
        for start in range(1, source.n_obs + 1, SLAB_ROWS):
            rows = np.arange(start, min(start + SLAB_ROWS, source.n_obs + 1))
            base, rest = divmod(source.nnz, source.n_obs)
            yield rows * base + rows * rest // source.n_obs

    return RowIndex(-(-source.nnz // max(source.n_obs, 1)), row_ends)


def given_rows(row_nnz: list[int], slab_rows: int) -> RowIndex:
    """Rows of these lengths, told in slabs of `slab_rows`."""
    ends = np.cumsum(row_nnz, dtype=np.int64)
    slabs = [ends[start : start + slab_rows] for start in range(0, ends.size, slab_rows)]
    return RowIndex(max(row_nnz, default=0), lambda: iter(slabs))


def assert_plan_sound(plan: ConversionPlan) -> None:
    """Everything that any plan must fulfil."""
    for matrix in plan.matrices:
        assert_blocks_tile(matrix)
        assert_ranges_tile(matrix)
        assert_one_writer_per_shard(matrix)
        assert max(matrix.split_bytes, matrix.combine_bytes) <= plan.task_bytes
    assert plan.projected_bytes <= plan.settings.memory
    assert plan.least_memory_bytes <= plan.settings.memory
    assert msgspec.json.decode(msgspec.json.encode(plan), type=ConversionPlan) == plan


def assert_blocks_tile(plan: MatrixPlan) -> None:
    """Row blocks follow each other over all rows and entries, and fit their records."""
    borders = [(0, 0), *((block.stop, block.stop_nnz) for block in plan.blocks)]
    assert [(block.start, block.start_nnz) for block in plan.blocks] == borders[:-1]
    assert borders[-1] == (plan.source.n_obs, plan.source.nnz)
    for block in plan.blocks:
        assert 0 < block.rows <= MAX_BLOCK_ROWS
        assert 0 <= block.nnz < 2**32  # cursors within a block are uint32


def assert_ranges_tile(plan: MatrixPlan) -> None:
    """Column ranges follow each other over all columns."""
    layout = plan.fragment_layout
    ranges = [layout.column_range(number) for number in range(layout.n_ranges)]
    borders = [0, *(columns.stop for columns in ranges)]
    assert [columns.start for columns in ranges] == borders[:-1]
    assert borders[-1] == plan.source.n_vars
    assert all(columns.start < columns.stop for columns in ranges)
    assert plan.column_width >= 1


def assert_one_writer_per_shard(plan: MatrixPlan) -> None:
    """Regions follow each other over all entries, and no shard lies in two of them."""
    target = plan.target
    borders = [0, *(region.stop_nnz for region in plan.regions)]
    assert [region.start_nnz for region in plan.regions] == borders[:-1]
    assert borders[-1] == plan.source.nnz
    assert target.shard_nnz % target.chunk_nnz == 0
    assert all(
        region.nnz > 0 and region.start_nnz % target.shard_nnz == 0 for region in plan.regions
    )
    shards = [
        (r.start_nnz // target.shard_nnz, -(-r.stop_nnz // target.shard_nnz)) for r in plan.regions
    ]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(shards))


REALISTIC = {
    "pbmc-100k, 1 GiB": (
        matrix_source(100_000, 32_285, 416_000_000),
        Settings(memory=GIB, workers=2),
    ),
    "pbmc-100k, 2 GiB": (
        matrix_source(100_000, 32_285, 416_000_000),
        Settings(memory=2 * GIB, workers=2),
    ),
    "reference, 4 GiB": (
        matrix_source(1_162_565, 32_285, 5_700_000_000),
        Settings(memory=4 * GIB, workers=8),
    ),
    "atlas, 100 workers": (
        matrix_source(100_000_000, 60_000, 100_000_000_000),
        Settings(memory=64 * GIB, workers=100),
    ),
    "tiny": (matrix_source(10, 20, 50), Settings(memory=GIB)),
    "no entries": (matrix_source(1000, 20, 0), Settings(memory=GIB, workers=2)),
    "no obs": (matrix_source(0, 20, 0), Settings(memory=GIB, workers=2)),
    "ATAC": (
        matrix_source(50_000, 1_000_000, 500_000_000, "<f4"),
        Settings(memory=4 * GIB, workers=4),
    ),
}


@pytest.mark.parametrize("name", REALISTIC)
def test_plans_of_real_sizes_are_sound(name: str) -> None:
    """From a handful of entries to 10¹¹ of them, within the memory given."""
    source, chosen = REALISTIC[name]
    assert_plan_sound(conversion_plan([(source, even_rows(source))], chosen))


@pytest.mark.parametrize(
    ("name", "slice_nnz"),
    [
        ("pbmc-100k, 2 GiB", 2**14),
        ("reference, 4 GiB", 2**14),
        ("ATAC", 2**14),
        ("atlas, 100 workers", 2**12),  # its memory does not allow for more
    ],
)
def test_plans_of_real_sizes_are_efficient(name: str, slice_nnz: int) -> None:
    """Slices are not too small, files not too many, and every worker has work."""
    source, chosen = REALISTIC[name]
    (plan,) = conversion_plan([(source, even_rows(source))], chosen).matrices
    n_tasks = len(plan.blocks) * len(plan.regions)
    assert source.nnz / n_tasks >= slice_nnz
    assert min(len(plan.blocks), len(plan.regions)) >= chosen.workers
    assert plan.target_files < 30_000


@pytest.mark.parametrize("nnz", [10**11, 170 * 10**9, 3 * 10**11])
@pytest.mark.parametrize("workers", [1, 400, 1600])
def test_slices_of_huge_matrices_are_not_tiny(nnz: int, workers: int) -> None:
    """64 KiB, at two bytes a record, for 100 million cells and where memory allows it."""
    source = matrix_source(10**8, 60_000, nnz)
    settings = Settings(memory=2**44, workers=workers, worker_memory=4 * GIB)
    plan = conversion_plan([(source, even_rows(source))], settings)
    assert_plan_sound(plan)
    (matrix,) = plan.matrices
    assert 2 * nnz / len(matrix.blocks) / len(matrix.regions) >= 64 * 2**10


def test_ten_times_the_entries_take_no_more_memory() -> None:
    """Once a budget binds, the projection does not grow with the matrix."""
    chosen = Settings(memory=GIB, workers=2)
    sources = [matrix_source(n, 32_285, n * 4000) for n in (1_000_000, 10_000_000)]
    small, large = (conversion_plan([(s, even_rows(s))], chosen).projected_bytes for s in sources)
    assert large <= 1.05 * small


@st.composite
def planned(draw: st.DrawFn) -> tuple[MatrixSource, RowIndex, dict[str, Any]]:
    """Matrices of all shapes, and settings that do not contradict each other."""
    if draw(st.booleans()):
        row_nnz = draw(st.lists(st.integers(0, 50) | st.just(2000), max_size=60))
        n_vars = draw(st.integers(0, 100)) if sum(row_nnz) == 0 else draw(st.integers(1, 100))
        source = matrix_source(len(row_nnz), n_vars, sum(row_nnz), draw(st.sampled_from(DTYPES)))
        rows = given_rows(row_nnz, draw(st.integers(1, 20)))
    else:
        n_obs, n_vars = draw(st.integers(1, 10**6)), draw(st.integers(1, 10**6))
        nnz = draw(st.integers(0, min(n_obs * n_vars, 10**11)))
        chunk_length = draw(st.sampled_from([0, 1000, 10**6]))
        source = matrix_source(
            n_obs, n_vars, nnz, draw(st.sampled_from(["<f4", "<f8", "<u2"])), chunk_length
        )
        rows = even_rows(source)
    zarr_format = draw(st.sampled_from([2, 3]))
    chunk_nnz = draw(st.sampled_from([1, 7, 1000, 2**17, 2**20]))
    shard_nnz = draw(
        st.sampled_from([None, 0, *([] if zarr_format == 2 else [chunk_nnz, 5 * chunk_nnz])])
    )
    chosen = {
        "zarr_format": zarr_format,
        "chunk_nnz": max(
            chunk_nnz, source.nnz // 10**4
        ),  # a plan of millions of regions takes long
        "shard_nnz": shard_nnz and shard_nnz // chunk_nnz * max(chunk_nnz, source.nnz // 10**4),
        "workers": draw(st.integers(0, 5) | st.just(100)),
    }
    return source, rows, chosen


@settings(max_examples=share(150))
@given(planned(), st.integers(0, 8 * GIB))
def test_any_plan_is_sound_in_any_budget_from_the_least_on(
    case: tuple[MatrixSource, RowIndex, dict[str, Any]], extra_bytes: int
) -> None:
    """The least memory is enough, one byte less is refused, no more is taken than given."""
    source, rows, chosen = case
    with pytest.raises(MemoryBudgetError) as caught:
        conversion_plan([(source, rows)], Settings(memory=0, **chosen))
    least = caught.value.least_bytes
    with pytest.raises(MemoryBudgetError):
        conversion_plan([(source, rows)], Settings(memory=least - 1, **chosen))
    for memory in (least, least + extra_bytes % 2**20, least + extra_bytes):
        plan = conversion_plan([(source, rows)], Settings(memory=memory, **chosen))
        assert plan.least_memory_bytes == least
        assert_plan_sound(plan)


@given(
    st.lists(st.integers(0, 30), max_size=60),
    st.integers(1, 100),
    st.integers(1, 100),
    st.integers(1, 10),
    st.booleans(),
)
def test_sizes_that_are_asked_for_are_kept(
    row_nnz: list[int], block_nnz: int, region_nnz: int, column_width: int, sharded: bool
) -> None:
    """Overrides give sound plans of the sizes named, rounded up to rows and to shards."""
    source = matrix_source(len(row_nnz), 20, sum(row_nnz))
    chosen = Settings(
        memory=4 * GIB,
        chunk_nnz=4,
        shard_nnz=12 if sharded else 0,
        block_nnz=block_nnz,
        region_nnz=region_nnz,
        column_width=column_width,
    )
    plan = conversion_plan([(source, given_rows(row_nnz, 7))], chosen)
    assert_plan_sound(plan)
    (matrix,) = plan.matrices
    assert all(block.nnz <= max(block_nnz, *row_nnz) for block in matrix.blocks)
    assert all(region.nnz < region_nnz + matrix.target.shard_nnz for region in matrix.regions)
    assert matrix.column_width == column_width


@given(
    st.lists(st.integers(0, 9), max_size=50),
    st.integers(9, 40),
    st.integers(1, 12),
    st.integers(1, 20),
)
def test_row_blocks_are_those_of_a_plain_loop(
    row_nnz: list[int], max_nnz: int, max_rows: int, slab_rows: int
) -> None:
    """The oracle takes row after row; slabs make no difference."""
    expected: list[list[int]] = []
    for row, nnz in enumerate(row_nnz):
        full = not expected or len(expected[-1]) == max_rows
        if full or sum(row_nnz[r] for r in expected[-1]) + nnz > max_nnz:
            expected.append([])
        expected[-1].append(row)
    blocks = list(row_blocks(given_rows(row_nnz, slab_rows).row_ends(), max_nnz, max_rows))
    assert [list(range(block.start, block.stop)) for block in blocks] == expected


def test_several_matrices_share_the_budget() -> None:
    """They are converted one after the other, so the largest counts, and each has its own tasks."""
    sources = [matrix_source(1000, 50, 40_000, "<f8"), matrix_source(1000, 90, 70_000, "<f4")]
    plan = conversion_plan(
        [(s, even_rows(s)) for s in sources], Settings(memory=GIB), annotation_bytes=2**20
    )
    assert_plan_sound(plan)
    assert [matrix.source for matrix in plan.matrices] == sources
    assert plan.task_bytes == max(max(m.split_bytes, m.combine_bytes) for m in plan.matrices)
    assert plan.target_bytes == sum(m.target_bytes for m in plan.matrices)
    assert plan.scratch_bytes == max(m.scratch_bytes for m in plan.matrices)
    without = conversion_plan([(s, even_rows(s)) for s in sources], Settings(memory=GIB))
    assert plan.projected_bytes - without.projected_bytes == 2**20


@pytest.mark.parametrize(
    ("codec", "data_dtype", "each"),
    [("zstd", "same", 3), ("none", "same", 12), ("none", "float32", 8), ("none", "auto", 12)],
)
def test_a_target_that_is_not_compressed_takes_all_of_its_bytes(
    codec: Any, data_dtype: str, each: int
) -> None:
    """However well the source is compressed; else no more than the source does."""
    source = matrix_source(1000, 50, 40_000, "<f8")
    settings = Settings(memory=GIB, codec=codec, data_dtype=data_dtype)
    plan = conversion_plan([(source, even_rows(source))], settings)
    assert plan.target_bytes == each * 40_000 + 8 * 51


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    """The message has what was given, the least in MiB, and the remedy."""
    source = matrix_source(100_000, 32_285, 416_000_000)
    with pytest.raises(
        MemoryBudgetError, match=r"100 MiB .* 8 workers: the least is [0-9,]+ MiB; give more"
    ):
        conversion_plan([(source, even_rows(source))], Settings(memory=100 * 2**20, workers=8))


@pytest.mark.parametrize("nnz", [0, 1, 1000, 10**5, 10**7])
@pytest.mark.parametrize("workers", [0, 2])
def test_no_plan_takes_less_than_the_least(nnz: int, workers: int) -> None:
    """Small matrices have smaller tasks than the smallest that large ones are cut into."""
    source = matrix_source(1000, 500, nnz)
    rows = even_rows(source)
    plan = conversion_plan([(source, rows)], Settings(memory=4 * GIB, workers=workers))
    assert plan.least_memory_bytes <= plan.projected_bytes


def test_the_index_of_a_shard_is_counted() -> None:
    """It has 16 bytes a chunk, of which there may be as many as there are entries."""
    source = matrix_source(100_000, 32_285, 416_000_000)
    tiny = Settings(memory=2 * GIB, chunk_nnz=1, shard_nnz=10**8)
    with pytest.raises(MemoryBudgetError) as caught:
        conversion_plan([(source, even_rows(source))], tiny)
    assert caught.value.least_bytes > 2 * 16 * 10**8


CONTRADICTIONS = {
    "chunk_nnz is 0": {"chunk_nnz": 0},
    "shard_nnz is 15: .*multiple of chunk_nnz, 10": {"chunk_nnz": 10, "shard_nnz": 15},
    "chunk_nnz is 67108865: it must be at most 67108864": {"chunk_nnz": 2**26 + 1},
    "shard_nnz is -10": {"chunk_nnz": 10, "shard_nnz": -10},
    "format 2 has no shards": {"chunk_nnz": 10, "shard_nnz": 20, "zarr_format": 2},
    "workers is -1": {"workers": -1},
    "codec_level is -1": {"codec_level": -1},
    "codec_level is 10: .*lz4": {"codec": "lz4", "codec_level": 10},
    "codec_level is 10: .*zstd": {"codec_level": 10, "codec": "zstd"},
    "codec_level is 10: .*gzip": {"codec_level": 10, "codec": "gzip"},
    "codec is 'lzma'": {"codec": "lzma"},
    "zarr_format is 4": {"zarr_format": 4},
    "block_nnz is -1": {"block_nnz": -1},
    "region_nnz is -1": {"region_nnz": -1},
    "column_width is 0": {"column_width": 0},
    "data_dtype is 'floaty'": {"data_dtype": "floaty"},
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_settings_that_make_no_sense_are_refused(message: str) -> None:
    """The setting, its value and the rule are named."""
    source = matrix_source(10, 20, 50)
    chosen = {"memory": GIB, **CONTRADICTIONS[message]}
    with pytest.raises(PlanError, match=message):
        conversion_plan([(source, even_rows(source))], Settings(**chosen))


def test_nouns_know_their_sizes() -> None:
    """Rows and entries are the differences of the borders."""
    assert (RowBlock(3, 8, 10, 40).rows, RowBlock(3, 8, 10, 40).nnz) == (5, 30)
    assert Region(10, 40).nnz == 30
    source = matrix_source(10, 25, 50)
    (plan,) = conversion_plan(
        [(source, even_rows(source))], Settings(memory=GIB, column_width=10)
    ).matrices
    assert plan.fragment_layout.column_range(2) == ColumnRange(20, 25)
