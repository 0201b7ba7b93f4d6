"""Targets of each profile, against what their readers make of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from strategies import share

from dask_convert.api import clean, convert, plan
from dask_convert.cli import main
from dask_convert.conversion import exporting
from dask_convert.errors import (
    DiskSpaceError,
    DtypeError,
    IntegrityError,
    PlanError,
    SourceError,
    TargetError,
)
from dask_convert.files import failpoints
from dask_convert.files.h5ad_writer import check_matrices, write_h5ad
from dask_convert.files.hdf5_sink import write_hdf5

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
    pytest.mark.filterwarnings("ignore:The data type "),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
    pytest.mark.filterwarnings("ignore:zarr v3 will become the only option"),
]


def example(counts: np.ndarray) -> ad.AnnData:
    """Cells with elements of every kind that people have."""
    n_obs, n_vars = counts.shape
    rng = np.random.default_rng(0)
    obs_names = [f"cell {n}" for n in range(n_obs)]
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical([["a", "b"][n % 2] for n in range(n_obs)]),
            "score": rng.random(n_obs),
            "good": [bool(n % 2) for n in range(n_obs)],
            "note": [f"ä{n}" for n in range(n_obs)],
            "maybe": pd.array([None if n % 2 else n for n in range(n_obs)], dtype="Int64"),
        },
        index=obs_names,
    )
    return ad.AnnData(
        sp.csr_matrix(counts),
        obs,
        pd.DataFrame(index=[f"g{n}" for n in range(n_vars)]),
        obsm={
            "X_umap": rng.random((n_obs, 2)),
            "frame": pd.DataFrame({"q": range(n_obs)}, index=obs_names),
        },
        obsp={"near": sp.random(n_obs, n_obs, 0.3, format="csr", random_state=0)},
        layers={"dense": rng.random(counts.shape)},
        uns={
            "colors": np.array(["#ff0000", "#00ff00"]),
            "n": 3,
            "words": "text",
            "deep": {"list": [1, 2, 3]},
            "table": np.array([(1, "a"), (2, "b")], dtype=[("x", "i4"), ("y", "U3")]),
        },
    )


def assert_same(before: Any, after: Any) -> None:
    """Elements are equal, types included."""
    if isinstance(before, Mapping):
        assert list(before) == list(after)
        for name in before:
            if name is not None:  # under it anndata 0.13 has X among the layers
                assert_same(before[name], after[name])
    elif isinstance(before, pd.DataFrame):
        pd.testing.assert_frame_equal(before, after)
    elif sp.issparse(before):
        assert type(before) is type(after)
        assert_same(before.toarray(), after.toarray())
    else:
        assert type(before) is type(after)
        assert getattr(before, "dtype", None) == getattr(after, "dtype", None)
        np.testing.assert_array_equal(before, after)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A small h5ad file."""
    path = tmp_path / "cells.h5ad"
    example(np.random.default_rng(1).poisson(0.5, (60, 30)).astype("f8")).write_h5ad(path)
    return path


@pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option")  # anndata, on pandas 3
def test_cellxgene_gets_an_h5ad_that_anndata_reads(cells: Path, tmp_path: Path) -> None:
    """In memory and backed: X is CSC of float32, and everything else is what it was."""
    target = tmp_path / "out.h5ad"
    result = convert(cells, target, profile="cellxgene", workers=0, verify=True)
    assert result.target == str(target)
    before, after = ad.read_h5ad(cells), ad.read_h5ad(target)
    assert isinstance(after.X, sp.csc_matrix)
    assert after.X.dtype == np.float32
    np.testing.assert_array_equal(after.X.toarray(), before.X.toarray())
    for name in ("obs", "var", "obsm", "obsp", "uns", "layers"):
        assert_same(getattr(before, name), getattr(after, name))
    backed = ad.read_h5ad(target, backed="r")
    np.testing.assert_array_equal(backed[:, 3].X.toarray(), before[:, 3].X.toarray())
    backed.file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad"]


@pytest.mark.filterwarnings("ignore::dask_convert.errors.SourceWarning")
@settings(max_examples=share(25))
@given(st.data())
def test_cellxgene_equals_scipys_csc(data: st.DataObject) -> None:
    """Any small matrix, empty ones included: the members that scipy makes of it."""
    shape = data.draw(st.tuples(st.integers(0, 12), st.integers(1, 9)))
    values = st.sampled_from([0, 0, 0, 1, 2, 255, 65536, 0.5, -1.25, np.inf])
    dense = np.array(
        data.draw(st.lists(values, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])),
        "f8",
    ).reshape(shape)
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "cells.h5ad"), Path(name, "out.h5ad")
        ad.AnnData(sp.csr_matrix(dense)).write_h5ad(source)
        convert(source, target, profile="cellxgene", workers=0, chunk_nnz=7)
        found, expected = ad.read_h5ad(target).X, sp.csr_matrix(dense).tocsc()
        assert (found.shape, found.dtype) == (expected.shape, np.float32)
        for member in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(found, member), getattr(expected, member))


def test_cellxgene_refuses_values_that_float32_would_change(tmp_path: Path) -> None:
    """And leaves nothing behind."""
    source = tmp_path / "cells.h5ad"
    ad.AnnData(sp.csr_matrix(np.full((3, 2), 0.1))).write_h5ad(source)
    with pytest.raises(DtypeError, match="float32"):
        convert(source, tmp_path / "out.h5ad", profile="cellxgene", workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_cellxgene_replaces_what_it_made_and_nothing_else(cells: Path, tmp_path: Path) -> None:
    """Not the source, not a file of others; its own only when told."""
    options: Any = {"profile": "cellxgene", "workers": 0}
    target, foreign = tmp_path / "out.h5ad", tmp_path / "foreign.h5ad"
    ad.read_h5ad(cells).write_h5ad(foreign)
    kept = foreign.read_bytes()
    with pytest.raises(TargetError, match="source itself"):
        convert(cells, cells, overwrite=True, **options)
    with pytest.raises(TargetError, match="not made by"):
        convert(cells, foreign, overwrite=True, **options)
    assert foreign.read_bytes() == kept
    convert(cells, target, **options)
    with pytest.raises(TargetError, match="exists already"):
        convert(cells, target, **options)
    convert(cells, target, overwrite=True, **options)


@pytest.mark.parametrize("place", ["export: store finished", "export: file written"])
def test_cellxgene_goes_on_from_a_finished_store(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A full disk while the file is written: no target; the same call does not convert again."""
    target = tmp_path / "out.h5ad"
    options: Any = {"profile": "cellxgene", "workers": 0}
    with monkeypatch.context() as patched:
        patched.setenv(failpoints.VARIABLE, f"{place}=error:28")
        with pytest.raises(DiskSpaceError) as caught:
            convert(cells, target, **options)
    assert "the same command continues" in caught.value.__notes__[0]
    assert not target.exists()
    with monkeypatch.context() as patched:
        patched.setattr("dask_convert.engine.stages.split", None)  # nothing is converted again
        convert(cells, target, **options)
    np.testing.assert_array_equal(ad.read_h5ad(target).X.toarray(), ad.read_h5ad(cells).X.toarray())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad"]


def kill_at(place: str, source: Path, target: Path, *arguments: str) -> None:
    """Export in a process that dies at a failpoint."""
    options = ["--profile", "cellxgene", "--workers", "0", *arguments]
    command = [sys.executable, "-m", "dask_convert", "convert", str(source), str(target), *options]
    environment = {**os.environ, failpoints.VARIABLE: f"{place}=kill"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    "place", ["file written", "file described", "renamed", "state removed@2", "store removed@2"]
)
@pytest.mark.parametrize("replaces", [False, True])
def test_an_export_that_is_killed_as_it_ends_can_be_continued(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, *, replaces: bool
) -> None:
    """Before the file gets its name, after it, and while all else is cleared up."""
    target = tmp_path / "out.h5ad"
    options: Any = {"profile": "cellxgene", "workers": 0}
    if replaces:
        convert(cells, target, **options)
        old = target.stat().st_ino
        options["overwrite"] = True
    kill_at(f"export: {place}", cells, target, *["--overwrite"] * replaces)
    assert target.exists() == (replaces or not place.startswith("file"))
    with monkeypatch.context() as patched:
        patched.setattr("dask_convert.engine.stages.split", None)  # nothing is converted again
        result = convert(cells, target, **options)
    assert (result.target, result.matrices[0].nnz) == (str(target), ad.read_h5ad(cells).X.nnz)
    assert not replaces or target.stat().st_ino != old
    np.testing.assert_array_equal(ad.read_h5ad(target).X.toarray(), ad.read_h5ad(cells).X.toarray())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad"]


def test_a_file_that_has_its_name_is_not_taken_for_that_of_another_command(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings than those of the run that died: refused, or replaced when told."""
    target = tmp_path / "out.h5ad"
    options: Any = {"profile": "cellxgene", "workers": 0}
    kill_at("export: state removed@2", cells, target)
    with pytest.raises(TargetError, match="exists already"):
        convert(cells, target, chunk_nnz=99, **options)
    with monkeypatch.context() as patched:
        patched.setenv(failpoints.VARIABLE, "export: file written=error:28")
        with pytest.raises(DiskSpaceError):
            convert(cells, target, chunk_nnz=99, overwrite=True, **options)
    old = target.stat().st_ino
    convert(cells, target, chunk_nnz=99, overwrite=True, **options)
    assert target.stat().st_ino != old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad"]


@pytest.mark.parametrize("share_of_file", [0.1, 0.5, 0.99])
def test_a_disk_that_fills_up_is_one_line(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share_of_file: float
) -> None:
    """At the first bytes, among arrays and as the file is closed, of which HDF5 alone dies."""
    target = tmp_path / "out.h5ad"
    options: Any = {"profile": "cellxgene", "workers": 0}
    convert(cells, target, **options)  # for its size
    limit = int(target.stat().st_size * share_of_file)
    target.unlink()
    with monkeypatch.context() as patched:
        patched.setenv(failpoints.VARIABLE, "export: store finished=error:28")
        with pytest.raises(DiskSpaceError):
            convert(cells, target, **options)
    script = (
        "import resource, sys; from dask_convert.cli import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); main(sys.argv[1:])"
    )
    arguments = ["convert", str(cells), str(target), "--profile", "cellxgene", "--workers", "0"]
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == DiskSpaceError.exit_code, done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not target.exists()
    left = sorted(path.name for path in (tmp_path / ".out.h5ad.dask-convert").iterdir())
    assert left == ["finished.json", "store.zarr"]
    with monkeypatch.context() as patched:
        patched.setattr("dask_convert.engine.stages.split", None)  # nothing is converted again
        convert(cells, target, **options)
    assert ad.read_h5ad(target).shape == (60, 30)


def test_an_export_that_was_replaced_leaves_the_others_files_alone(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it ends by, once it has lost the lock."""
    target = tmp_path / "out.h5ad"
    room = tmp_path / ".out.h5ad.dask-convert"

    def replaced(room: Path, _plan: Any) -> None:
        (room / "lock-000007").write_bytes(b"{}")
        (room / "file.h5ad").touch()
        raise SourceError

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "_write", replaced)
        with pytest.raises(SourceError):
            convert(cells, target, profile="cellxgene", workers=0)
    left = {path.name for path in room.iterdir()}
    assert left >= {"file.h5ad", "finished.json", "store.zarr"}
    (room / "lock-000007").unlink()
    convert(cells, target, profile="cellxgene", workers=0)
    assert ad.read_h5ad(target).shape == (60, 30)


def test_an_interrupt_leaves_no_thread_that_writes(tmp_path: Path) -> None:
    """Whoever fills a file is stopped at the next look; what it wrote can be closed."""
    reached = threading.Event()

    def fill(file: h5py.File, check: Callable[[], None]) -> None:
        for number in range(100_000):
            file.create_dataset(str(number), data=np.arange(1000))
            reached.set()
            check()

    def interrupt() -> None:
        reached.wait()
        os.kill(os.getpid(), signal.SIGINT)  # to the main thread, as Ctrl-C

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        write_hdf5(tmp_path / "file.h5", fill)
    interrupter.join()


def test_cellxgene_wants_room_for_store_and_file(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any work, both; once the store is finished, the file only."""
    target = tmp_path / "out.h5ad"
    options: Any = {"profile": "cellxgene", "workers": 0}
    each = plan(cells, profile="cellxgene", workers=0).target_bytes
    usage = shutil.disk_usage(tmp_path)

    def free(n_bytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=n_bytes))

    free(2 * each - 1)
    with monkeypatch.context() as patched:
        patched.setattr("dask_convert.conversion.run.run_conversion", None)
        with pytest.raises(DiskSpaceError, match=f"{2 * each:,} are needed"):
            convert(cells, target, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]
    free(usage.free)
    with monkeypatch.context() as patched:
        patched.setenv(failpoints.VARIABLE, "export: store finished=error:28")
        with pytest.raises(DiskSpaceError):
            convert(cells, target, **options)
    free(each - 1)
    with pytest.raises(DiskSpaceError, match=f"{each:,} are needed"):
        convert(cells, target, **options)
    free(each)
    convert(cells, target, **options)


def test_cellxgene_is_deflated_as_hdf5_would(tmp_path: Path) -> None:
    """Any type and length, by the filters that it says; h5py and anndata read what was there."""
    rng = np.random.default_rng(0)
    store = zarr.open_group(str(tmp_path / "store.zarr"), mode="w")
    wanted: dict[str, np.ndarray] = {}
    for code in ("u1", "i2", "f2", "u4", "i8", "f4", "f8"):
        for size in (5000, 6000, 10_000, 10_001):
            values = rng.integers(0, 100, size).astype(code)
            name = f"{code}-{size}"
            store.create_array(name, data=values, chunks=(1000,), shards=(3000,))
            wanted[name] = values
    sp_counts = sp.random(900, 700, 0.3, format="csc", random_state=1, dtype="f4")
    ad.AnnData(sp_counts).write_zarr(tmp_path / "adata.zarr", chunks=(1000,))
    with h5py.File(tmp_path / "file.h5ad", "w") as file:
        write_h5ad(store, file, compressed=True)
    with h5py.File(tmp_path / "adata.h5ad", "w") as file:
        write_h5ad(zarr.open_group(str(tmp_path / "adata.zarr"), mode="r"), file, compressed=True)
    with h5py.File(tmp_path / "file.h5ad", "r") as file:
        for name, values in wanted.items():
            found = file[name]
            assert (found.compression, found.shuffle, found.dtype) == ("gzip", True, values.dtype)
            assert found.id.get_storage_size() < values.nbytes
            np.testing.assert_array_equal(found[...], values)
            np.testing.assert_array_equal(found[777:4321], values[777:4321])
    found = ad.read_h5ad(tmp_path / "adata.h5ad").X
    for member in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(found, member), getattr(sp_counts, member))


def test_cellxgene_keeps_what_only_hdf5_has_names_for(cells: Path, tmp_path: Path) -> None:
    """Empty attributes, and NULs within strings: in arrays, small and large, and attributes."""
    target = tmp_path / "out.h5ad"
    many = np.array([f"{n}\0ä".encode() for n in range(3000)], "S10").reshape(1000, 3)
    few = np.array([b"a\0b", b"c", b""], "S4")
    with h5py.File(cells, "a") as file:
        uns = file["uns"]
        uns.attrs["note"] = h5py.Empty("S1")
        uns.attrs["nul"] = np.bytes_(b"x\0y")
        uns.attrs["table"] = np.array([[b"p\0q", b"r"]])
        uns.attrs["words"] = np.array([["s", "t"]], object)
        uns.create_dataset("plain", data=["s", "t"], dtype=h5py.string_dtype())
        uns.create_dataset("few", data=few)
        uns.create_dataset("many", data=many)
        uns.create_dataset("one", data=np.bytes_(b"v\0w"))
    convert(cells, target, profile="cellxgene", workers=0)
    with h5py.File(target, "r") as file:
        uns = file["uns"]
        assert isinstance(uns.attrs["note"], h5py.Empty)
        assert uns.attrs["nul"] == b"x\0y"
        assert uns.attrs["table"].tolist() == [[b"p\0q", b"r"]]
        assert uns.attrs["words"].tolist() == [["s", "t"]]
        np.testing.assert_array_equal(uns["few"][:], few)
        np.testing.assert_array_equal(uns["many"][:], many)
        assert uns["one"][()] == b"v\0w"
        assert uns["plain"].dtype == object  # all others are of variable length, as ever
    found = ad.read_h5ad(target).uns
    assert found["few"].tolist() == ["a\0b", "c", ""]
    assert found["many"].tolist() == np.char.decode(many, "utf-8").tolist()
    assert found["one"] == "v\0w"


def test_clean_removes_what_an_export_has_left(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store that was finished, and its directory."""
    target = tmp_path / "out.h5ad"
    with monkeypatch.context() as patched:
        patched.setenv(failpoints.VARIABLE, "export: store finished=error:28")
        with pytest.raises(DiskSpaceError):
            convert(cells, target, profile="cellxgene", workers=0)
    assert clean(target)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_file_that_differs_from_its_store_is_noticed(tmp_path: Path) -> None:
    """A single entry is enough."""
    ad.AnnData(sp.csc_matrix(np.eye(20, dtype="f4"))).write_zarr(tmp_path / "store.zarr")
    root = zarr.open_group(str(tmp_path / "store.zarr"), mode="r")
    with h5py.File(tmp_path / "file.h5ad", "w") as file:
        write_h5ad(root, file, compressed=True)
        check_matrices(root, file)
        file["X/data"][7] = 2
        with pytest.raises(IntegrityError, match="X/data"):
            check_matrices(root, file)


def test_vitessce_gets_what_browsers_read(cells: Path, tmp_path: Path) -> None:
    """Format 2, consolidated, no shards, int32 where it does: int64 is no number to JavaScript."""
    target = tmp_path / "genes.zarr"
    convert(cells, target, profile="vitessce", workers=0, verify=True)
    metadata = json.loads((target / ".zmetadata").read_text())["metadata"]
    arrays = {name: metadata[f"X/{name}/.zarray"] for name in ("indptr", "indices", "data")}
    assert {name: array["dtype"] for name, array in arrays.items()} == {
        "indptr": "<i4",
        "indices": "<i4",
        "data": "|u1",
    }
    assert arrays["data"]["chunks"] == [2**16]
    assert metadata["X/.zattrs"]["encoding-type"] == "csc_matrix"
    np.testing.assert_array_equal(ad.read_zarr(target).X.toarray(), ad.read_h5ad(cells).X.toarray())


def test_what_a_profile_needs_is_not_given_up(cells: Path) -> None:
    """Contradictions are refused; other options go before a profile's defaults."""
    with pytest.raises(PlanError, match="zarr_format is 3, and profile vitessce needs 2"):
        plan(cells, profile="vitessce", zarr_format=3)
    with pytest.raises(PlanError, match="data_dtype is 'same', and profile cellxgene"):
        plan(cells, profile="cellxgene", data_dtype="same")
    with pytest.raises(PlanError, match="there are anndata, vitessce, cellxgene"):
        plan(cells, profile="browser")  # type: ignore[arg-type]  # that is the point
    chosen = plan(cells, profile="vitessce", chunk_nnz=999, data_dtype="same").settings
    assert (chosen.chunk_nnz, chosen.data_dtype, chosen.zarr_format) == (999, "same", 2)
    default = plan(cells).settings
    assert (default.chunk_nnz, default.data_dtype, default.zarr_format) == (2**17, "same", 3)


# ------------------------------------------------------------------ pages


def test_pages_are_whole_and_say_what_the_plan_says(cells: Path, tmp_path: Path) -> None:
    """One file each, no script, nothing from elsewhere, and the figures of plan and store."""
    target = tmp_path / "genes.zarr"
    convert(cells, target, workers=0)
    for arguments in (("plan", cells), ("inspect", target)):
        page = tmp_path / f"{arguments[0]}.html"
        result = CliRunner().invoke(main, [*map(str, arguments), "--html", str(page)])
        assert (result.exit_code, result.output) == (0, "")
        text = page.read_text()
        assert "<script" not in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        assert text.count("<svg") == text.count("</svg>") >= 3
    nnz = ad.read_h5ad(cells).X.nnz
    planned = plan(cells)
    assert f"{nnz:,} entries" in (tmp_path / "plan.html").read_text()
    assert f"{len(planned.matrices[0].blocks):,} row blocks" in (tmp_path / "plan.html").read_text()
    text = (tmp_path / "inspect.html").read_text()
    counts = ad.read_h5ad(cells).X.tocsc().getnnz(axis=0)
    assert f"{int(np.median(counts)):,} in the median, {counts.max():,} at most" in text
    assert f"<td>g{int(np.argmax(counts))}</td><td>{counts.max():,}</td>" in text


def test_names_on_pages_are_escaped(tmp_path: Path) -> None:
    """Genes are named by others."""
    source, page = tmp_path / "cells.h5ad", tmp_path / "page.html"
    var = pd.DataFrame(index=["<script>alert(1)</script>", "b"])
    ad.AnnData(sp.csr_matrix(np.ones((3, 2))), var=var).write_h5ad(source)
    convert(source, tmp_path / "genes.zarr", workers=0)
    command = ["inspect", str(tmp_path / "genes.zarr"), "--html", str(page)]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert "&lt;script&gt;alert" in page.read_text()
    assert "<script" not in page.read_text()
