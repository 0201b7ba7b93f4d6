"""The engine from file to store: what comes out is scipy's CSC, and failures leave nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from engine import TINY, convert, names
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_converted, assert_same_bits
from strategies import (
    DTYPES,
    Csr,
    Storage,
    csr_from_rows,
    csr_matrices,
    random_csr,
    storages,
    write_h5ad,
)

from dask_convert import page_cache
from dask_convert.conversion import run
from dask_convert.conversion.source_plan import plan_conversion
from dask_convert.engine import stages
from dask_convert.engine.graph import ClientExecutor, Executor, SynchronousExecutor
from dask_convert.engine.tasks import Job, split
from dask_convert.errors import (
    DaskConvertError,
    DiskSpaceError,
    DtypeError,
    PlanError,
    SourceError,
    TargetError,
)
from dask_convert.files.fragment_files import FragmentFile
from dask_convert.places.local_cluster import local_client
from dask_convert.planning.layout import ArraySource, MatrixSource
from dask_convert.planning.planner import conversion_plan
from dask_convert.planning.plans import RowIndex, Settings
from dask_convert.planning.records import unpack_payload, unpack_rows
from dask_convert.shuffle import placing
from dask_convert.shuffle.pages import PagedRecords

# anndata 0.13 warns so about itself with pandas 3.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

N_OBS, N_VARS = 400, 60
SAMPLES = {
    "scanpy": ("datasets/10x_pbmc68k_reduced.h5ad", "raw/X"),
    "infercnvpy": ("datasets/data/oligodendroglioma.h5ad", "X"),
}


@pytest.fixture(scope="module", params=["synchronous", "cluster"])
def executor(request: pytest.FixtureRequest) -> Iterator[Callable[[], Executor]]:
    """What runs the tasks: the calling thread, or two processes."""
    if request.param == "synchronous":
        yield SynchronousExecutor
        return
    with local_client(conversion_plan([], Settings(memory=2**31, workers=2)), None) as client:
        yield lambda: ClientExecutor(client)


@pytest.fixture
def matrix() -> Csr:
    """Counts with a few large ones, rows unsorted, entries repeated."""
    rng = np.random.default_rng(0)
    return random_csr(rng, (N_OBS, N_VARS), rng.integers(0, 40, N_OBS), "f8", "rare")


@pytest.fixture
def source(matrix: Csr, tmp_path: Path) -> Path:
    return write_h5ad(tmp_path / "source.h5ad", matrix, Storage(1000, "shuffle+gzip"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target.zarr"


MEDIUM = {
    "chunk_nnz": 300,
    "shard_nnz": 900,
    "block_nnz": 1500,
    "region_nnz": 1800,
    "column_width": 8,
}


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@st.composite
def cuts(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that cut small matrices in all ways."""
    chunk_nnz = draw(st.sampled_from([1, 5, 64, 1000]))
    zarr_format = draw(st.sampled_from([2, 3]))
    n_chunks = draw(st.sampled_from([0, 1, 2, 5])) if zarr_format == 3 else 0
    return {
        "zarr_format": zarr_format,
        "chunk_nnz": max(chunk_nnz, 5) if n_chunks else max(chunk_nnz, 64),
        "shard_nnz": n_chunks * max(chunk_nnz, 5),
        "codec": draw(st.sampled_from(["lz4", "zstd", "gzip", "none"])),
        "codec_level": 1,
        "block_nnz": draw(st.sampled_from([40, 200, 10_000])),
        "region_nnz": draw(st.sampled_from([100, 500, 10_000])),
        "column_width": draw(st.sampled_from([1, 3, 16, 1000])),
    }


@given(csr_matrices(), storages(), cuts())
def test_any_matrix_comes_out_as_scipys_csc(
    matrix: Csr, storage: Storage, chosen: dict[str, Any]
) -> None:
    """Every type, storage, cut and codec; entry by entry, bit by bit."""
    with tempfile.TemporaryDirectory() as directory:
        source = write_h5ad(Path(directory, "source.h5ad"), matrix, storage)
        target = Path(directory, "target.zarr")
        (result,) = convert(source, target, **chosen).matrices
        assert_converted(target, matrix)
        assert (result.n_obs, result.n_vars, result.nnz) == (*matrix.shape, matrix.nnz)
        assert result.data_dtype == matrix.data.dtype.name
        assert names(Path(directory)) == ["source.h5ad", "target.zarr"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_in_one_file_of_several_matrices(
    executor: Callable[[], Executor], tmp_path: Path, target: Path, dtype: str
) -> None:
    """X and a layer of the same axes, and raw/X of its own, with any bits."""
    rng = np.random.default_rng(1)
    x, layer = (random_csr(rng, (50, 9), rng.integers(0, 9, 50), dtype, "bits") for _ in range(2))
    raw = random_csr(
        rng, (50, 30), rng.integers(0, 20, 50), dtype, "special" if dtype != "?" else "counts"
    )
    matrices = {"X": x, "layers/other": layer, "raw/X": raw}
    source = write_h5ad(tmp_path / "source.h5ad", matrices, Storage(100, "gzip"))
    result = convert(source, target, executor=executor, **{**MEDIUM, "block_nnz": 100})
    assert {matrix.name for matrix in result.matrices} == set(matrices)
    for name, matrix in matrices.items():
        assert_converted(target, matrix, name)


def test_only_the_matrices_that_are_chosen_are_converted(
    executor: Callable[[], Executor], tmp_path: Path, target: Path, matrix: Csr
) -> None:
    """The other CSR matrices are copied as they are."""
    source = write_h5ad(
        tmp_path / "source.h5ad", {"X": matrix, "layers/a": matrix, "layers/b": matrix}
    )
    result = convert(source, target, executor=executor, matrices=["layers/b"], **MEDIUM)
    assert [converted.name for converted in result.matrices] == ["layers/b"]
    assert_converted(target, matrix, "layers/b")
    root = zarr.open_group(target, mode="r")
    for name in ("X", "layers/a"):
        assert root[name].attrs["encoding-type"] == "csr_matrix"
        assert_same_bits(root[name]["data"][:], matrix.data)


@pytest.mark.parametrize("share", [0.0, page_cache.CACHED_SHARE])
def test_the_page_cache_is_left_to_fragments_by_a_large_target(
    source: Path, target: Path, matrix: Csr, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """All files of its entries are forgotten, when they have their names; a small one's are not."""
    told: list[str] = []

    def forget(path: Path) -> None:
        assert path.is_file()
        told.append(f"{path.parent.parent.name}/{path.name}")
        page_cache.forget(path)

    monkeypatch.setattr(page_cache, "CACHED_SHARE", share)
    monkeypatch.setattr(stages, "forget", forget)
    convert(source, target, **MEDIUM)
    files = [target / "X" / member / "c" for member in ("data", "indices")]
    expected = [f"{part.parent.name}/{name}" for part in files for name in names(part)]
    assert sorted(told) == ([] if share else sorted(expected))
    assert_converted(target, matrix)


def test_everything_else_is_copied_along(tmp_path: Path, target: Path) -> None:
    """CSC and dense layers, annotations and raw are there and equal."""
    dense = np.arange(30 * 7, dtype="f4").reshape(30, 7)
    counts = sp.random(30, 7, 0.3, "csr", random_state=0)
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {"kind": pd.Categorical(["a", "b", "c"] * 10)}, index=[f"o{i}" for i in range(30)]
        ),
        layers={"csc": counts.tocsc(), "dense": dense, "csr": counts},
        obsm={"X_pca": dense},
        obsp={"near": sp.eye(30, format="csr")},
        uns={"nested": {"number": 3}},
    )
    adata.raw = adata
    adata.write_h5ad(tmp_path / "source.h5ad")
    result = convert(tmp_path / "source.h5ad", target)
    assert {matrix.name for matrix in result.matrices} == {"X", "layers/csr", "raw/X"}
    copy = ad.read_zarr(target)
    for name in ("csc", "csr"):
        assert copy.layers[name].format == "csc"
        np.testing.assert_array_equal(copy.layers[name].toarray(), counts.toarray())
    np.testing.assert_array_equal(copy.layers["dense"], dense)
    np.testing.assert_array_equal(copy.raw.X.toarray(), counts.toarray())
    np.testing.assert_array_equal(copy.obsm["X_pca"], dense)
    pd.testing.assert_frame_equal(copy.obs, adata.obs)
    assert copy.obsp["near"].format == "csr"
    assert copy.uns["nested"]["number"] == 3


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_room_for_what_is_copied_is_asked_for_at_first(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, compression: Any
) -> None:
    """Dense and CSC matrices, annotations and text take no more than was said they would."""
    rng = np.random.default_rng(0)
    counts = sp.random(300, 80, 0.3, "csr", random_state=0)
    words = pd.Categorical([f"kind {i % 7}" for i in range(300)])
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame({"kind": words}, index=[f"cell {i}" for i in range(300)]),
        layers={"csc": counts.tocsc(), "dense": rng.poisson(0.2, (300, 80)).astype("f8")},
        obsm={"X_pca": rng.random((300, 50))},
        uns={"words": np.array([f"word {i}" * 20 for i in range(500)], dtype=object)},
    )
    source = tmp_path / "source.h5ad"
    adata.write_h5ad(source, compression=compression)
    usage = shutil.disk_usage(tmp_path)
    planned = plan_conversion(source, Settings(memory=2**31))
    assert planned.copied_bytes > 0
    needed = planned.scratch_bytes + planned.target_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(DiskSpaceError, match=f"{needed:,} are needed"):
        convert(source, target)
    assert names(tmp_path) == ["source.h5ad"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    convert(source, target)
    files = [path for path in target.rglob("*") if path.is_file()]
    entries = [path for path in files if path.relative_to(target).parts[0] == "X"]
    contents = [path for path in files if path not in entries and not path.name.endswith(".json")]
    assert sum(path.stat().st_size for path in contents) <= planned.copied_bytes


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_else_is_in_the_group_of_a_matrix_is_copied_along(
    source: Path, target: Path, zarr_format: int
) -> None:
    """Attributes of other tools, and members that AnnData knows nothing of."""
    with h5py.File(source, "r+") as file:
        file.attrs["created_by"] = "another tool"
        file["X"].attrs["unit"] = "counts"
        file["X/data"].attrs["scale"] = 0.5
        file["X/extra"] = np.arange(5)
    expected = ad.read_h5ad(source).X.toarray()
    convert(source, target, zarr_format=zarr_format, shard_nnz=0)
    for options in ({}, {"use_consolidated": False}):
        root = zarr.open_group(target, mode="r", **options)
        assert root["X"].attrs["unit"] == "counts"
        assert root["X"].attrs["encoding-type"] == "csc_matrix"
        assert dict(root["X/data"].attrs) == {"scale": 0.5}
        np.testing.assert_array_equal(root["X/extra"][:], np.arange(5))
        assert "another tool" in root.attrs["created_by"]
    np.testing.assert_array_equal(ad.read_zarr(target).X.toarray(), expected)


def test_what_cannot_be_copied_beside_a_matrix_is_left_out_and_told(
    source: Path, target: Path
) -> None:
    """No reader of AnnData ever sees it, so that it is no reason to refuse a file."""
    with h5py.File(source, "r+") as file:
        file["X/data"].attrs["scale"] = np.nan
        file["X"].attrs["name"] = np.bytes_(b"\xe9")
        file["X"].attrs["unit"] = "counts"
        file["X/nowhere"] = h5py.SoftLink("/nothing")
        file["X/circle"] = file["X"]
        file["X/group/good"] = [1, 2]
        file["X/group/opaque"] = np.zeros(2, "V3")
        file["X/kept/good"] = [1, 2]
    expected = ad.read_h5ad(source).X.toarray()
    result = convert(source, target)
    told = result.plan.left_out
    for words in ("X/data, attribute 'scale'", "X, attribute 'name'", "X/nowhere", "X/circle",
                  "X/group/opaque"):  # fmt: skip
        assert sum(line.startswith(words) for line in told) == 1, (words, told)
    assert len(told) == 5
    root = zarr.open_group(target, mode="r")
    assert root["X"].attrs["unit"] == "counts"
    assert set(root["X"]) == {"data", "indices", "indptr", "kept"}
    np.testing.assert_array_equal(ad.read_zarr(target).X.toarray(), expected)


def test_room_is_asked_for_what_is_there_and_not_for_holes(tmp_path: Path) -> None:
    """A file that was edited has unused space, and arrays of several names are copied for each."""
    adata = ad.AnnData(sp.random(30, 8, 0.3, "csr", random_state=0))
    source = tmp_path / "source.h5ad"
    adata.write_h5ad(source)
    before = plan_conversion(source, Settings(memory=2**31)).copied_bytes
    with h5py.File(source, "r+") as file:
        file["uns/hole"] = np.ones(10**6)
    with h5py.File(source, "r+") as file:
        file["uns/small"] = np.ones(1000)
        del file["uns/hole"]
        file["uns/again"] = file["uns/small"]
    assert source.stat().st_size > 8 * 10**6
    after = plan_conversion(source, Settings(memory=2**31)).copied_bytes
    assert 2 * 8000 < after - before < 10**5


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_anndata_opens_the_store_in_all_its_ways(
    source: Path, target: Path, zarr_format: int
) -> None:
    """In memory, lazily as AnnData, as a dask array and as a sparse data set: the same matrix."""
    expected = ad.read_h5ad(source).X.toarray()
    convert(source, target, chunk_nnz=1000, zarr_format=zarr_format, shard_nnz=0)
    eager = ad.read_zarr(target).X
    assert (eager.format, eager.dtype) == ("csc", np.float64)
    np.testing.assert_array_equal(eager.toarray(), expected)
    lazy = ad.experimental.read_lazy(target)
    np.testing.assert_array_equal(lazy.X.compute().toarray(), expected)
    group = zarr.open_group(target, mode="r")["X"]
    np.testing.assert_array_equal(
        ad.experimental.read_elem_lazy(group).compute().toarray(), expected
    )
    columns = ad.io.sparse_dataset(group)[:, 3:5]
    np.testing.assert_array_equal(columns.toarray(), expected[:, 3:5])


@pytest.mark.parametrize("values", ["counts", "rare"])
def test_auto_finds_the_smallest_type_that_holds_every_value(
    executor: Callable[[], Executor], tmp_path: Path, target: Path, values: str
) -> None:
    """Blocks vote; one large value in one of them decides for all."""
    rng = np.random.default_rng(2)
    matrix = random_csr(rng, (300, 20), rng.integers(0, 20, 300), "f8", values)
    source = write_h5ad(tmp_path / "source.h5ad", matrix)
    (result,) = convert(source, target, executor=executor, data_dtype="auto", **MEDIUM).matrices
    assert result.data_dtype == ("uint8" if values == "counts" else "uint16")
    assert_converted(target, matrix, dtype=result.data_dtype)


@pytest.mark.parametrize(
    ("dtype", "values", "asked"),
    [
        ("f8", [1.0, 255.0, 0.0], "uint8"),
        ("f8", [1.5, -0.0, np.inf], "float32"),
        ("f8", [1.0, -3.0, 2.0**40], "int64"),
        ("i8", [1, -3, 2**53], "float64"),
        ("i8", [0, 1, 1], "bool"),
        ("?", [True, False, True], "float16"),
        ("f4", [0.1, np.nan, 3.0], "float64"),
        ("c16", [1 + 0j, 2 + 0j, 3 + 0j], "float64"),
        ("c16", [1 + 2j, 2 - 0.5j, 3], "complex64"),
        ("u2", [1, 2, 65535], "complex64"),
    ],
)
def test_a_type_that_holds_every_value_can_be_asked_for(
    tmp_path: Path, target: Path, dtype: str, values: list[Any], asked: str
) -> None:
    """Casts down, up and across kinds, without a warning."""
    matrix = csr_from_rows([[2, 0], [1]], 3, np.array(values, dtype))
    source = write_h5ad(tmp_path / "source.h5ad", matrix)
    (result,) = convert(source, target, data_dtype=asked).matrices
    assert result.data_dtype == asked
    with np.errstate(all="ignore"):
        data = (
            matrix.data.real.astype(asked)
            if dtype == "c16" and asked[0] == "f"
            else matrix.data.astype(asked)
        )
    assert_converted(target, Csr(data, matrix.indices, matrix.indptr, matrix.shape))


def test_blocks_that_disagree_about_their_values_are_widened_a_few_columns_at_a_time(
    matrix: Csr, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fraction, in the last row block, makes all others' counts floats again."""
    monkeypatch.setattr(placing, "WIDENED_RECORDS", 20)
    data = matrix.data.copy()
    data[-1] = 0.1
    matrix = Csr(data, matrix.indices, matrix.indptr, matrix.shape)
    source = write_h5ad(tmp_path / "source.h5ad", matrix)
    convert(source, target, **MEDIUM)
    assert_converted(target, matrix)


@pytest.mark.parametrize("codec", ["zstd", "lz4", "gzip", "none"])
@pytest.mark.parametrize(("dtype", "asked"), [("c16", "float64"), ("c8", "float32")])
def test_real_parts_fill_whole_chunks(
    tmp_path: Path, target: Path, dtype: str, asked: str, codec: str
) -> None:
    """They lie apart in memory, which codecs do not take."""
    columns = [list(range(50)) for _ in range(4)]
    matrix = csr_from_rows(columns, 50, np.arange(200).astype(dtype))
    source = write_h5ad(tmp_path / "source.h5ad", matrix)
    convert(source, target, data_dtype=asked, codec=codec, chunk_nnz=64, shard_nnz=128)
    real = Csr(matrix.data.real.astype(asked), matrix.indices, matrix.indptr, matrix.shape)
    assert_converted(target, real)


@pytest.mark.parametrize(
    ("dtype", "value", "asked"),
    [
        ("f8", 256.0, "uint8"),
        ("f8", -0.0, "uint8"),
        ("f8", 0.1, "float32"),
        ("f8", np.nan, "int32"),
        ("f8", 2.0**63, "int64"),
        ("i8", 2**53 + 1, "float64"),
        ("u8", 2**64 - 1, "float64"),
        ("i4", 2**24 + 1, "float32"),
        ("i4", -1, "uint32"),
        ("c16", 1j, "float64"),
        ("f4", 2.0, "bool"),
        ("u4", 70_000, "float16"),
    ],
)
def test_a_value_that_would_change_is_refused_by_name(
    executor: Callable[[], Executor],
    tmp_path: Path,
    target: Path,
    dtype: str,
    value: Any,
    asked: str,
) -> None:
    """Position, row, column, value and type are told, and nothing is left behind."""
    values = np.ones(90, dtype)
    values[57] = value
    matrix = csr_from_rows([[0, 2, 1]] * 30, 3, values)
    source = write_h5ad(tmp_path / "source.h5ad", matrix)
    with pytest.raises(DtypeError, match=r"X/data\[57\].*row 19, column 0") as caught:
        convert(source, target, executor=executor, data_dtype=asked, **TINY)
    assert asked in str(caught.value)
    assert repr(values[57].item()).strip("()") in str(caught.value)
    assert names(tmp_path) == ["source.h5ad"]


@pytest.mark.parametrize("wrong", [-1, N_VARS, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
def test_a_column_out_of_range_is_refused_by_name(
    executor: Callable[[], Executor],
    tmp_path: Path,
    target: Path,
    matrix: Csr,
    wrong: int,
    index_dtype: str,
) -> None:
    """Position, value, row and limit; no crash, no target, no scratch."""
    position = matrix.nnz // 2
    matrix.indices[position] = wrong
    source = write_h5ad(tmp_path / "source.h5ad", matrix, Storage(100, "gzip", index_dtype))
    with pytest.raises(SourceError) as caught:
        convert(source, target, executor=executor, **MEDIUM)
    words = (f"X/indices[{position}] is {wrong}", f"row {matrix.rows[position]}", str(N_VARS))
    assert [word for word in words if word not in str(caught.value)] == []
    assert names(tmp_path) == ["source.h5ad"]


@pytest.mark.parametrize("wrong", [2**32, 2**63, 2**64 - 1])
def test_an_unsigned_column_out_of_range_does_not_wrap_round(
    tmp_path: Path, target: Path, matrix: Csr, wrong: int
) -> None:
    """The largest 64-bit indices are told as what they are."""
    indices = matrix.indices.astype("u8")
    indices[7] = wrong
    matrix = Csr(matrix.data, indices, matrix.indptr, matrix.shape)
    source = write_h5ad(tmp_path / "source.h5ad", matrix, Storage(index_dtype="uint64"))
    with pytest.raises(SourceError, match=rf"X/indices\[7\] is {wrong}"):
        convert(source, target)
    assert names(tmp_path) == ["source.h5ad"]


def spoil_chunk(path: Path) -> None:
    """Overwrite the begin of a chunk in the middle."""
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(3)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * 20)


def spoil_indptr(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["X/indptr"][5] = 10**6


def spoil_annotation(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.create_group("uns").create_group("odd").attrs["encoding-type"] = "unheard-of"


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [spoil_chunk, spoil_indptr, spoil_annotation, cut_short])
def test_a_spoilt_source_leaves_nothing_behind(
    executor: Callable[[], Executor], source: Path, target: Path, spoil: Callable[[Path], None]
) -> None:
    """The error is typed, and the directory is as it was."""
    spoil(source)
    with pytest.raises(DaskConvertError):
        convert(source, target, executor=executor, **MEDIUM)
    assert names(target.parent) == ["source.h5ad"]


def test_a_target_that_exists_is_kept_unless_it_may_go(
    source: Path, target: Path, matrix: Csr
) -> None:
    """Refused without `overwrite`; replaced with it, whole."""
    convert(source, target, zarr_format=2, **{**MEDIUM, "shard_nnz": 0})
    before = contents(target)
    with pytest.raises(TargetError, match="exists already"):
        convert(source, target, **MEDIUM)
    assert contents(target) == before
    convert(source, target, overwrite=True, **MEDIUM)
    assert_converted(target, matrix)
    assert not (target / ".zgroup").exists()
    assert names(target.parent) == ["source.h5ad", "target.zarr"]


@pytest.mark.parametrize("kind", ["directory", "file", "foreign store", "link", "ours with notes"])
def test_what_we_did_not_make_is_never_replaced(
    source: Path, target: Path, tmp_path: Path, kind: str
) -> None:
    """Not even with `overwrite`, and not by one byte."""
    if kind == "directory":
        (target / "data").mkdir(parents=True)
    elif kind == "file":
        target.write_bytes(b"mine")
    elif kind == "foreign store":
        zarr.open_group(target, mode="w").create_array("mine", shape=(3,), dtype="f4")
    else:
        convert(source, target if kind != "link" else tmp_path / "real.zarr", **MEDIUM)
        if kind == "link":
            target.symlink_to(tmp_path / "real.zarr")
        else:
            (target / "X" / "notes.txt").write_text("mine")
    before, listing = contents(target), names(tmp_path)
    words = "is a link, which is not replaced" if kind == "link" else r"target\.zarr"
    with pytest.raises(TargetError, match=words):
        convert(source, target, overwrite=True, **MEDIUM)
    assert contents(target) == before
    assert names(tmp_path) == listing


def test_a_failed_run_keeps_the_target_it_was_to_replace(
    source: Path, target: Path, matrix: Csr
) -> None:
    """The old store goes only when the new one is there."""
    convert(source, target, **MEDIUM)
    spoil_chunk(source)
    with pytest.raises(SourceError):
        convert(source, target, overwrite=True, **MEDIUM)
    assert_converted(target, matrix)
    assert names(target.parent) == ["source.h5ad", "target.zarr"]


def test_matrices_that_are_not_there_are_refused_by_name(source: Path, target: Path) -> None:
    """The message lists those that are."""
    with pytest.raises(PlanError, match=r"'layers/counts' is no CSR matrix.*there are: X"):
        convert(source, target, matrices=["layers/counts"])
    with h5py.File(source, "r+") as file:
        del file["X"]
    with pytest.raises(SourceError, match="no CSR matrix"):
        convert(source, target)


def test_a_file_without_csr_is_copied(tmp_path: Path, target: Path) -> None:
    """What is stored gene by gene already, or dense, arrives as it is."""
    csc = sp.random(30, 20, 0.2, format="csc", random_state=0)
    source = tmp_path / "genes.h5ad"
    ad.AnnData(csc, layers={"dense": csc.toarray()}).write_h5ad(source)
    result = convert(source, target)
    assert result.matrices == ()
    assert result.plan.copied == {"X": "csc", "layers/dense": "dense"}
    copied = ad.read_zarr(target)
    assert copied.X.format == "csc"
    np.testing.assert_array_equal(copied.X.toarray(), csc.toarray())
    np.testing.assert_array_equal(copied.layers["dense"], csc.toarray())


@pytest.mark.parametrize(
    "storage", [Storage(100, "gzip"), Storage(1000, "shuffle+gzip"), Storage()]
)
def test_the_source_is_read_once(
    tmp_path: Path, target: Path, matrix: Csr, storage: Storage
) -> None:
    """Beside the chunks at the borders of row blocks, no byte of it is read twice."""
    source = write_h5ad(tmp_path / "source.h5ad", matrix, storage)
    result = convert(source, target, **MEDIUM)
    (plan,), (converted,) = result.plan.matrices, result.matrices
    with h5py.File(source) as file:
        members = [file["X/data"].id, file["X/indices"].id]
        stored = sum(member.get_storage_size() for member in members)
        largest = sum(
            max((member.get_chunk_info(n).size for n in range(member.get_num_chunks())), default=0)
            for member in members
            if storage.chunk_length
        )
    assert stored <= converted.source_bytes <= stored + 2 * largest * len(plan.blocks)


def twice(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function two times."""
    function(*args)
    return function(*args)


class EverythingTwice(SynchronousExecutor):
    """Runs every task two times, as after the loss of a worker."""

    def run(self, graph: Any, on_report: Any) -> None:
        """See `Executor.run`."""
        super().run({key: (twice, *task) for key, task in graph.items()}, on_report)


def test_tasks_that_are_repeated_do_no_harm(
    executor: Callable[[], Executor], source: Path, target: Path, tmp_path: Path
) -> None:
    """Run twice each, or elsewhere: the stores are the same, byte by byte."""
    convert(source, target, executor=EverythingTwice, **MEDIUM)
    convert(source, tmp_path / "again.zarr", executor=executor, **MEDIUM)
    assert contents(target) == contents(tmp_path / "again.zarr")


def test_the_graph_has_one_task_per_block_and_region(source: Path, target: Path) -> None:
    """N + 1 + M tasks, and never N × M."""
    sizes = []

    class Counting(SynchronousExecutor):
        def run(self, graph: Any, on_report: Any) -> None:
            sizes.append(len(graph))
            super().run(graph, on_report)

    (plan,) = convert(source, target, executor=Counting, **MEDIUM).plan.matrices
    assert min(len(plan.blocks), len(plan.regions)) > 3
    assert sizes == [len(plan.blocks) + 1 + len(plan.regions)]


@pytest.mark.parametrize("package", SAMPLES)
@pytest.mark.filterwarnings("ignore:Moving element:FutureWarning")
def test_real_files_are_converted(
    executor: Callable[[], Executor], tmp_path: Path, target: Path, package: str
) -> None:
    """Files that other programs wrote, years ago, in formats of their time."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    path, name = SAMPLES[package]
    source = Path(spec.origin).parent / path
    with h5py.File(source) as file:
        group = file[name] if name in file else file[name.replace("/", ".")]
        shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
        members = (group[member][:] for member in ("data", "indices", "indptr"))
        matrix = Csr(*members, (int(shape[0]), int(shape[1])))
    result = convert(
        source, target, executor=executor, chunk_nnz=2**14, block_nnz=2**16, region_nnz=2**17
    )
    assert [converted.name for converted in result.matrices] == [name]
    assert_converted(target, matrix, name)
    copy = ad.read_zarr(target)
    assert copy.shape[0] == matrix.shape[0]
    assert len(names(tmp_path)) == 1


def test_a_row_block_beyond_32_bits_is_split_right(tmp_path: Path) -> None:
    """Five billion entries, of which only one row is in the file: positions stay 64-bit."""
    row_nnz, n_obs, n_vars, row = 1_000_000, 5_000, 50, 4_500
    nnz = n_obs * row_nnz
    assert row * row_nnz > 2**32
    rng = np.random.default_rng(3)
    values = rng.integers(1, 9, row_nnz).astype("f4")
    columns = rng.integers(0, n_vars, row_nnz).astype("i4")
    source = tmp_path / "long.h5ad"
    with h5py.File(source, "w") as file:
        file["X/indptr"] = np.arange(n_obs + 1) * row_nnz
        for name, array in (("data", values), ("indices", columns)):
            dataset = file["X"].create_dataset(
                name, (nnz,), array.dtype, chunks=(row_nnz,), compression="gzip"
            )
            dataset[row * row_nnz : (row + 1) * row_nnz] = array
    member = ArraySource("<f4", nnz, row_nnz, row_nnz, ("gzip",), raw=True)
    indices = ArraySource("<i4", nnz, row_nnz, row_nnz, ("gzip",), raw=True)
    matrix = MatrixSource("X", "X", n_obs, n_vars, nnz, member, indices, "<i8")
    rows = RowIndex(row_nnz, lambda: iter([np.arange(1, n_obs + 1) * row_nnz]))
    plan = conversion_plan(
        [(matrix, rows)], Settings(memory=2**31, block_nnz=row_nnz, column_width=n_vars)
    )
    run.prepare_scratch(source, tmp_path, plan)
    job = Job(str(source), str(tmp_path), str(tmp_path / "partial.zarr"), 0)
    assert (job.plan.blocks[row].start, job.plan.blocks[row].start_nnz) == (row, row * row_nnz)
    split(job, row)
    with FragmentFile(job.files.block(row), job.plan.fragment_layout) as file:
        (fragment,) = file.expect(range(1)).locate().fragments()
    records = fragment.records
    words = records.to_words() if isinstance(records, PagedRecords) else records
    order = np.argsort(columns, kind="stable")
    assert_same_bits(unpack_payload(words, fragment.payload).astype("f4"), values[order])
    assert not unpack_rows(words, fragment.payload).any()
    np.testing.assert_array_equal(fragment.counts, np.bincount(columns, minlength=n_vars))
    with pytest.raises(SourceError, match=r"X/indices, chunk 4501.*never written"):
        split(job, row + 1)
