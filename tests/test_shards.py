"""What we write into a target's files is what zarr-python reads from them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zarr
from engine import names
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import assert_same_bits, read_csc
from strategies import DTYPES, random_values, share

from dask_convert.files.shards import ABSENT, is_intact, write_region
from dask_convert.files.zarr_csc import describe_matrix, finalise, made_by_us
from dask_convert.planning.layout import ArraySource, Codec, MatrixSource, Region, TargetLayout
from dask_convert.planning.memory import SHARD_INDEX_ROW_BYTES
from dask_convert.planning.planner import target_regions

CODECS = get_args(Codec)
LAYOUTS = [(2, False), (3, False), (3, True)]
LAYOUT_IDS = ["v2", "v3", "v3-sharded"]


def target_layout(zarr_format: Any, sharded: bool, codec: Any, chunk_nnz: int = 10) -> TargetLayout:
    return TargetLayout(zarr_format, chunk_nnz, chunk_nnz * (3 if sharded else 1), codec, 1)


def matrix_source(nnz: int, n_vars: int = 4) -> MatrixSource:
    member = ArraySource("<f8", nnz, 0, 0, (), raw=True)
    return MatrixSource("X", "X", 1000, n_vars, nnz, member, member, "<i8")


def write_matrix(
    target: Path,
    layout: TargetLayout,
    data: NDArray[Any],
    indices: NDArray[np.int32],
    region_nnz: int,
) -> NDArray[np.int64]:
    """Write a matrix region by region, the last first, as tasks may."""
    for region in reversed(target_regions(data.size, region_nnz)):
        for member, array in (("data", data), ("indices", indices)):
            own = array[region.start_nnz : region.stop_nnz]
            before = _tree_bytes(target)
            written = write_region(
                target, f"X/{member}", layout, region, lambda low, high, own=own: own[low:high]
            )
            assert sum(file.n_bytes for file in written) == _tree_bytes(target) - before
            assert all(is_intact(target, file) for file in written)
    indptr = np.array([0, 0, data.size // 2, data.size, data.size])
    root = zarr.open_group(target, mode="a", zarr_format=layout.zarr_format)
    describe_matrix(root, matrix_source(data.size), layout, data.dtype, indptr)
    finalise(root, "0")
    return indptr


def _tree_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_an_index_takes_the_memory_that_is_planned_for_it(tmp_path: Path) -> None:
    """Of a million chunks, nearly none of which are there."""
    layout = TargetLayout(3, 1, 10**6, "none", 1)
    elements = np.zeros(3)
    tracemalloc.start()
    write_region(tmp_path, "X/data", layout, Region(0, 3), lambda low, high: elements[low:high])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2 * SHARD_INDEX_ROW_BYTES * 10**6 + 2**20


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("zarr_format", "sharded"), LAYOUTS, ids=LAYOUT_IDS)
def test_zarr_reads_what_was_written(
    tmp_path: Path, dtype: str, codec: str, zarr_format: int, sharded: bool
) -> None:
    """Every codec, format, layout and type, with the last chunk and the last shard cut short."""
    rng = np.random.default_rng(0)
    data = random_values(rng, 74, dtype, "bits")
    indices = rng.integers(0, 1000, 74).astype(np.int32)
    layout = target_layout(zarr_format, sharded, codec)
    indptr = write_matrix(tmp_path, layout, data, indices, 30)
    for actual, expected in zip(read_csc(tmp_path), (data, indices, indptr), strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize(("zarr_format", "sharded"), LAYOUTS, ids=LAYOUT_IDS)
@settings(max_examples=share(25))
@given(st.integers(0, 100), st.integers(1, 4), st.integers(1, 12))
def test_any_length_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    zarr_format: int,
    sharded: bool,
    nnz: int,
    shards_per_region: int,
    chunk_nnz: int,
) -> None:
    """No length, chunk, shard or region size puts an entry in a wrong place."""
    target = tmp_path_factory.mktemp("any")
    layout = target_layout(zarr_format, sharded, "none", chunk_nnz)
    data, indices = np.arange(1, nnz + 1, dtype="f4"), np.arange(nnz, dtype=np.int32)
    write_matrix(target, layout, data, indices, shards_per_region * layout.shard_nnz)
    assert_same_bits(read_csc(target)[0], data)
    assert_same_bits(read_csc(target)[1], indices)
    n_files = sum(path.name.isdigit() for path in (target / "X" / "data").rglob("*"))
    assert n_files == -(-nnz // layout.shard_nnz)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("zarr_format", "sharded"), LAYOUTS, ids=LAYOUT_IDS)
def test_zarr_would_write_the_same_metadata_and_reads_by_slices(
    tmp_path: Path, codec: str, zarr_format: int, sharded: bool
) -> None:
    """The array is an ordinary one: partial reads work, and zarr can write it anew."""
    data, indices = np.arange(95, dtype="f8"), np.arange(95, dtype=np.int32)
    write_matrix(tmp_path, target_layout(zarr_format, sharded, codec), data, indices, 60)
    array = zarr.open_group(tmp_path, mode="r+")["X"]["data"]
    for start, stop in ((0, 1), (29, 31), (9, 61), (94, 95)):
        np.testing.assert_array_equal(array[start:stop], data[start:stop])
    array[:] = -data
    np.testing.assert_array_equal(array[:], -data)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sharded", [False, True])
def test_zarr_notices_every_flipped_byte_of_a_chunk(
    tmp_path: Path, codec: str, sharded: bool
) -> None:
    """The checksums are there and right: no damage in a v3 file reads as other values."""
    data = np.arange(30, dtype="f4")
    layout = target_layout(3, sharded, codec)
    write_matrix(tmp_path, layout, data, np.arange(30, dtype=np.int32), 30)
    path = tmp_path / "X" / "data" / "c" / "0"
    content = path.read_bytes()
    array = zarr.open_group(tmp_path, mode="r")["X"]["data"]
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            array[:]


def test_a_shards_index_marks_what_lies_beyond_the_end(tmp_path: Path) -> None:
    """Chunks that do not exist are absent, as the specification has it, not of length 0."""
    layout = target_layout(3, True, "none")
    elements = np.arange(11, dtype="f4")
    write_region(tmp_path, "a", layout, Region(0, 11), lambda low, high: elements[low:high])
    content = (tmp_path / "a" / "c" / "0").read_bytes()
    index = np.frombuffer(content[-52:-4], "<u8").reshape(3, 2)
    np.testing.assert_array_equal(index, [[0, 44], [44, 44], [ABSENT, ABSENT]])
    assert names(tmp_path / "a" / "c") == ["0"]


def test_a_region_written_twice_is_the_same(tmp_path: Path) -> None:
    """A repeated task replaces its files with equal ones and leaves no others."""
    layout = target_layout(3, True, "zstd")
    elements = np.arange(55, dtype="f4")
    contents = []
    for _ in range(2):
        write_region(tmp_path, "a", layout, Region(30, 85), lambda low, high: elements[low:high])
        files = sorted((tmp_path / "a" / "c").iterdir())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    assert [name for name, _ in contents[0]] == ["1", "2"]


def test_a_store_that_was_cleared_does_not_come_back(tmp_path: Path) -> None:
    """A writer that comes too late makes no directories, and fails."""
    layout, target = target_layout(3, True, "lz4"), tmp_path / "cleared"
    with pytest.raises(FileNotFoundError):
        write_region(target, "X/data", layout, Region(0, 5), lambda low, high: np.ones(high - low))
    assert list(tmp_path.iterdir()) == []


def test_only_our_stores_are_known_as_ours(tmp_path: Path) -> None:
    """A finished store is; another store, a directory, a file and nothing at all are not."""
    (tmp_path / "ours").mkdir()
    write_matrix(
        tmp_path / "ours", target_layout(3, True, "lz4"), np.ones(5), np.zeros(5, np.int32), 30
    )
    zarr.open_group(tmp_path / "other", mode="w").attrs["created_by"] = "somebody else"
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="f4")
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    ours = {path.name for path in tmp_path.iterdir() if made_by_us(path)}
    assert ours == {"ours"}
    finalise(zarr.open_group(tmp_path / "other", mode="a"), "0")
    assert made_by_us(tmp_path / "other")
    attrs = zarr.open_group(tmp_path / "other", mode="r").attrs
    assert attrs["created_by"] == "dask_convert 0 of what somebody else has created"
    assert not made_by_us(tmp_path / "nothing")
