"""Stores as readers use them; the oracle is scipy, pandas and anndata on the same matrix."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import anndata as ad
import fsspec
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sparse
import zarr
from engine import convert
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Csr, csr_matrices, share, write_h5ad

from dask_convert import DaskConvertError, Store, open_store
from dask_convert.chunks.chunk_reader import ChunkReader
from dask_convert.errors import (
    AmbiguousNameError,
    DamagedStoreError,
    SelectionError,
    StoreError,
    UnknownNameError,
)
from dask_convert.reading import csc_reader, store_axes
from dask_convert.reading.csc_reader import open_csc

# anndata 0.13 warns so about itself with pandas 3; the others are zarr's about anndata's stores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
    pytest.mark.filterwarnings("ignore:This setting will be removed in 0.14"),
    pytest.mark.filterwarnings("ignore:zarr v3 will become the only option"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
    pytest.mark.filterwarnings("ignore:The data type"),
]

N_OBS, N_VARS = 60, 40
CUTS = {"chunk_nnz": 16, "shard_nnz": 64, "block_nnz": 300, "region_nnz": 128}
WRITERS = ("ours v3", "ours v3 unsharded", "ours v2", "anndata v3", "anndata v2")


def example() -> ad.AnnData:
    """Counts with layers, raw, names that repeat in a column, and cells of three types."""
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(0.4, (N_OBS, N_VARS)).astype("f8"))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["B", "T", "NK"], N_OBS), ["B", "T", "NK", "?"]),
            "depth": rng.random(N_OBS),
            "label": [None if n % 7 == 0 else f"l{n % 3}" for n in range(N_OBS)],
        },
        index=[f"cell{n}" for n in range(N_OBS)],
    )
    var = pd.DataFrame(
        {
            "symbol": ["Twin" if n in {3, 11} else f"Sym{n}" for n in range(N_VARS)],
            "entrez": np.arange(1000, 1000 + N_VARS),
            "score": rng.random(N_VARS),
            "kind": pd.Categorical(["a", "b"] * (N_VARS // 2)),
        },
        index=[f"gene{n}" for n in range(N_VARS)],
    )
    raw_names = pd.DataFrame(index=[f"raw{n}" for n in range(N_VARS + 5)])
    raw = sp.csr_matrix(rng.poisson(0.2, (N_OBS, N_VARS + 5)) * rng.random(N_VARS + 5))
    found = ad.AnnData(counts, obs, var, layers={"twice": counts * 2}, uns={"note": "hello"})
    found.raw = ad.AnnData(raw, obs, raw_names)
    return found


def columns_of(matrix: Any) -> sp.csc_matrix:
    return sp.csc_matrix(matrix)


def write_store(directory: Path, writer: str) -> Path:
    """The example as a store that this tool or anndata wrote."""
    adata, path = example(), directory / "genes.zarr"
    if writer.startswith("ours"):
        source = directory / "cells.h5ad"
        adata.write_h5ad(source)
        v2 = writer.endswith("v2")
        cut = {**CUTS, "shard_nnz": 64 if writer == "ours v3" else 0}
        cut["chunk_nnz"] = 64 if not cut["shard_nnz"] else 16
        convert(source, path, zarr_format=2 if v2 else 3, **cut)
        return path
    adata.X = columns_of(adata.X)
    adata.layers["twice"] = columns_of(adata.layers["twice"])
    adata.raw = ad.AnnData(columns_of(adata.raw.X), adata.obs, adata.raw.var)
    with ad.settings.override(zarr_write_format=2 if writer.endswith("v2") else 3):
        adata.write_zarr(path, chunks=[50])
    return path


@pytest.fixture(scope="module", params=WRITERS)
def any_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("any"), request.param)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("ours"), "ours v3")


@pytest.fixture
def store(path: Path) -> Store:
    return open_store(path)


@pytest.fixture(scope="module")
def expected() -> ad.AnnData:
    return example()


def same(found: sp.csc_array, wanted: Any) -> None:
    """Equal in shape, type and every stored entry."""
    wanted = sp.csc_array(wanted)
    assert isinstance(found, sp.csc_array)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    for member in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(found, member), getattr(wanted, member))
        assert getattr(found, member).dtype == getattr(wanted, member).dtype


# ------------------------------------------------------------------ any store


def test_every_writers_store_reads_alike(any_store: Path, expected: ad.AnnData) -> None:
    """By name, position, slice, list and mask, from X, a layer and raw; zarr v2 and v3."""
    store = open_store(any_store)
    x = expected.X.tocsc()
    assert store.matrices == ("X", "layers/twice", "raw/X")
    assert (store.shape, store.n_obs, store.n_vars) == ((N_OBS, N_VARS), N_OBS, N_VARS)
    same(store["gene7"], x[:, [7]])
    same(store[:], x)
    same(store.read([5, -1, 5], matrix="layers/twice"), (2 * x)[:, [5, N_VARS - 1, 5]])
    same(store.read(["raw44", "raw0"], matrix="raw/X"), expected.raw.X.tocsc()[:, [44, 0]])
    mask = np.arange(N_VARS) % 3 == 0
    for key in (mask, mask.tolist(), pd.Series(mask, expected.var_names)):
        same(store[key], x[:, mask])
    same(store[10:2:-3], x[:, 10:2:-3])
    pd.testing.assert_index_equal(store.obs_names, expected.obs_names, check_names=False)
    pd.testing.assert_index_equal(store.var_names, expected.var_names, check_names=False)
    assert store.obs.equals(ad.io.read_elem(zarr.open_group(any_store, mode="r")["obs"]))


@settings(max_examples=share(40))
@given(csr_matrices(), st.data())
def test_any_columns_of_any_matrix_are_scipys(matrix: Csr, data: st.DataObject) -> None:
    """Bit by bit, in both ways, in memory and on disk, whatever is cut where."""
    with tempfile.TemporaryDirectory() as name:
        source = write_h5ad(Path(name, "source.h5ad"), matrix)
        target = Path(name, "target.zarr")
        chunk = data.draw(st.sampled_from([5, 64]))
        format_and_shards = data.draw(st.sampled_from([(3, 0), (3, 4 * chunk), (2, 0)]))
        zarr_format, shard = format_and_shards if chunk == 5 or not matrix.nnz else (3, 4 * chunk)
        codec = data.draw(st.sampled_from(["lz4", "zstd", "gzip", "none"]))
        convert(
            source, target, chunk_nnz=chunk, shard_nnz=shard, codec=codec, zarr_format=zarr_format
        )
        root = zarr.open_group(target, mode="r")
        wanted = "u2" if matrix.data.dtype == np.float16 else matrix.data.dtype
        values = matrix.data.view(wanted)
        csc = sp.csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape).tocsc()
        n_vars = matrix.shape[1]
        positions = data.draw(
            st.lists(st.integers(0, n_vars - 1), max_size=9) if n_vars else st.just([])
        )
        for direct in (True, False):
            found = open_csc(root["X"], "X", direct=direct).columns(np.array(positions, np.int64))
            part = csc[:, positions]
            as_stored = part.data.view(matrix.data.dtype).astype(found.dtype)
            np.testing.assert_array_equal(found.indptr, part.indptr)
            np.testing.assert_array_equal(found.indices, part.indices)
            assert found.data.tobytes() == as_stored.tobytes()


@pytest.mark.parametrize("kind", ["csc", "coo", "gcxs", "dense", "frame"])
def test_kinds_and_obs(store: Store, expected: ad.AnnData, kind: str) -> None:
    """Each kind has the right type and values, for all obs and for chosen ones."""
    types = {
        "csc": sp.csc_array,
        "coo": sparse.COO,
        "gcxs": sparse.GCXS,
        "dense": np.ndarray,
        "frame": pd.DataFrame,
    }
    genes = ["gene3", "gene0", "gene39"]
    depth = expected.obs["depth"].to_numpy()
    is_b = (expected.obs["cell_type"] == "B").to_numpy()
    rows: list[tuple[Any, Any]] = [
        (None, np.arange(N_OBS)),
        ("cell_type == 'B' and depth > 0.5", np.flatnonzero(is_b & (depth > 0.5))),
        (is_b, np.flatnonzero(is_b)),
        (["cell9", "cell2"], np.array([9, 2])),
        (slice(5, 9), np.arange(5, 9)),
        ("depth > 2", np.array([], np.int64)),
    ]
    for obs, chosen in rows:
        found = store.read(genes, obs=obs, kind=kind)
        assert type(found) is types[kind]
        wanted = expected.to_df().iloc[chosen][genes]
        if kind == "frame":
            pd.testing.assert_frame_equal(found, wanted, check_names=False)
        else:
            dense = found if kind == "dense" else found.todense()
            np.testing.assert_array_equal(dense, wanted.to_numpy())
            assert found.dtype == np.float64


def test_all_kinds_sum_duplicates_but_csc(tmp_path: Path) -> None:
    """Entries that are stored twice count twice, as they do in scipy."""
    matrix = Csr(np.array([1.0, 2, 4]), np.array([0, 0, 1]), np.array([0, 2, 3]), (2, 2))
    convert(write_h5ad(tmp_path / "a.h5ad", matrix), tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    assert store[[0, 1]].data.tolist() == [1, 2, 4]
    for kind in ("coo", "gcxs", "dense"):
        found = store.read([0, 1], kind=kind)
        dense = found if kind == "dense" else found.todense()
        assert dense.tolist() == [[3, 0], [0, 4]]
    assert store.gene_stats()["mean"].tolist() == [1.5, 2]


def test_blocks_tile_the_matrix_within_bounds(store: Store, expected: ad.AnnData) -> None:
    """Blocks of about as many entries as asked for, one after the other."""
    blocks = list(store.blocks(block_nnz=32))
    same(sp.hstack([block for _, block in blocks], format="csc"), expected.X.tocsc())
    slices = [piece for piece, _ in blocks]
    assert [piece.start for piece in slices] == [0, *(piece.stop for piece in slices[:-1])]
    longest = int(np.diff(store.indptr()).max())
    assert max(block.nnz for _, block in blocks) <= 32 + longest
    assert len(blocks) > 10
    of_b = list(store.blocks(block_nnz=100, obs="cell_type == 'B'", kind="dense"))
    wanted = expected.X[(expected.obs["cell_type"] == "B").to_numpy()].toarray()
    np.testing.assert_array_equal(np.hstack([block for _, block in of_b]), wanted)


# ------------------------------------------------------------------ names


def test_genes_by_a_column(store: Store, expected: ad.AnnData) -> None:
    """Words, integers and categories name genes; frames show those names."""
    x = expected.X.tocsc()
    same(store.by("symbol")["Sym5"], x[:, [5]])
    same(store.by("entrez")[[1004, 1002]], x[:, [4, 2]])
    same(store.by("entrez")[0:3], x[:, 0:3])
    frame = store.by("symbol").read(["Sym8"], kind="frame", obs=["cell1"])
    assert (list(frame.index), list(frame.columns)) == (["cell1"], ["Sym8"])
    assert "symbol" in repr(store.by("symbol"))


@pytest.mark.parametrize(
    ("column", "key", "error", "words"),
    [
        (None, "gene400", UnknownNameError, "gene40|gene4"),
        (None, "GENE4", UnknownNameError, "near it: gene4"),
        (None, "Sym5", UnknownNameError, "in the column 'symbol'"),
        ("symbol", "Twin", AmbiguousNameError, r"gene3 \(position 3\), gene11 \(position 11\)"),
        ("kind", ["a"], AmbiguousNameError, r"stands for 20: gene0 .* and 15 more"),
        ("symbol", ["Sym1", "Nix"], UnknownNameError, "symbol 'Nix'"),
        ("score", "x", SelectionError, "words or integers"),
        ("nothing", "x", SelectionError, "there are: symbol, entrez"),
        ("entrez", 5, UnknownNameError, "entrez 5"),
        (None, N_VARS, SelectionError, "position 40"),
        (None, [0, -N_VARS - 1], SelectionError, "position -41"),
        (None, True, SelectionError, "True is neither"),
        (None, 1.0, SelectionError, "1.0 is neither"),
        (None, None, SelectionError, "None is neither"),
        (None, ["gene1", 2], SelectionError, "of one kind"),
        (None, [0.5], SelectionError, "of one kind"),
        (None, (1, 2), SelectionError, "read"),
        (None, slice("a", "b"), SelectionError, "by position"),
        (None, [True, False], SelectionError, "mask of 2 for 40"),
        (None, np.zeros((2, 2), int), SelectionError, "2 axes"),
        (None, pd.Series(np.ones(N_VARS, bool), [*"ab"] * 20), SelectionError, "align it"),
    ],
)
def test_wrong_genes_are_told_apart(
    store: Store, column: str | None, key: Any, error: type[Exception], words: str
) -> None:
    """Each mistake has its message, with what could have been meant."""
    with pytest.raises(error, match=words) as caught:
        store.read(key, by=column)
    assert isinstance(caught.value, DaskConvertError)
    assert "\n" not in str(caught.value)


def test_names_are_read_for_keys_that_need_them(
    path: Path, expected: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(path)

    def unread(*_: Any) -> None:
        pytest.fail("names were read")

    with monkeypatch.context() as patch:
        patch.setattr(store_axes, "element", unread)
        wanted = columns_of(expected.X)[:50]
        for key in (3, -1, slice(2, 5), [4, 1], np.arange(N_VARS) % 3 == 0):
            columns = np.atleast_1d(np.arange(N_VARS)[key])
            same(store.read(key, obs=slice(0, 50)), wanted[:, columns])
        with pytest.raises(SelectionError, match="position 40: there are 40"):
            store[N_VARS]
    same(store["gene3"], columns_of(expected.X)[:, [3]])


def test_integers_are_names_where_names_are_integers(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "genes.zarr"
    shutil.copytree(path, copy)
    root = zarr.open_group(str(copy), mode="r+", use_consolidated=False)
    var = root["var"]
    del var[var.attrs["_index"]]
    ad.io.write_elem(var, var.attrs["_index"], np.arange(N_VARS)[::-1].copy())
    zarr.consolidate_metadata(root.store)
    same(open_store(copy)[0], open_store(path)[N_VARS - 1])


def test_names_that_repeat_are_ambiguous_wherever_they_stand(tmp_path: Path) -> None:
    """Neighbours and not, since pandas finds them in two ways; an unknown name is a KeyError."""
    for names in (["a", "a", "b"], ["a", "b", "a"]):
        path = tmp_path / "".join(names)
        with pytest.warns(UserWarning, match="not unique"):
            ad.AnnData(sp.csc_matrix(np.eye(3)), var=pd.DataFrame(index=names)).write_zarr(path)
        store = open_store(path, missing="zeros")
        with pytest.raises(AmbiguousNameError) as caught:
            store["a"]
        assert caught.value.positions == tuple(n for n, name in enumerate(names) if name == "a")
        same(store["b"], np.eye(3)[:, [names.index("b")]])
        with pytest.raises(KeyError, match="no gene has the var name 'c'"):
            store["c"]


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        ("celltype == 'B'", "columns of obs: cell_type, depth"),
        ("depth >", "cannot be evaluated"),
        ("depth", "no condition"),
        ("@N_OBS > depth", "cannot be evaluated"),
        (["cell99"], "no obs has the obs name 'cell99'; near it"),
        (np.ones(3, bool), "mask of 3 for 60"),
        ([60], "position 60"),
    ],
)
def test_wrong_obs_are_told_apart(store: Store, obs: Any, words: str) -> None:
    """As wrong genes are."""
    with pytest.raises(SelectionError, match=words):
        store.read("gene1", obs=obs)


def test_other_wrong_arguments(store: Store) -> None:
    """Kinds, matrices and the meaning of missing chunks."""
    with pytest.raises(SelectionError, match="there are csc, coo"):
        store.read(0, kind="dask")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(SelectionError, match="there are: X, layers/twice, raw/X"):
        store.read(0, matrix="layers/thrice")
    with pytest.raises(SelectionError, match="missing is"):
        open_store("x", missing="maybe")  # type: ignore[arg-type]  # wrong on purpose


# ------------------------------------------------------------------ places


class RangeHandler(SimpleHTTPRequestHandler):
    """The standard library's file server, with the byte ranges that it lacks."""

    ranges = True

    def do_GET(self) -> None:
        """Serve a file, or the part of it that is asked for."""
        asked = self.headers.get("Range", "")
        path = Path(self.translate_path(self.path))
        if not asked.startswith("bytes=") or not self.ranges or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = int(last) + 1 if first and last else len(content)
        part = content[start:stop]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class PlainHandler(RangeHandler):
    """Ignores ranges, as the standard library's server does."""

    ranges = False


@pytest.fixture
def served(path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the store behind a server on the loopback device."""
    handler = partial(request.param, directory=str(path.parent))
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{path.name}"
        server.shutdown()
        thread.join()


def check_place(place: Any, expected: ad.AnnData) -> Store:
    store = open_store(place)
    same(store[["gene7", "gene30"]], expected.X.tocsc()[:, [7, 30]])
    same(store.read("raw1", matrix="raw/X"), expected.raw.X.tocsc()[:, [1]])
    return store


@pytest.mark.parametrize("served", [RangeHandler], indirect=True)
def test_over_http(served: str, expected: ad.AnnData) -> None:
    """Shards are read in part, and what is not there is told."""
    check_place(served, expected)
    with pytest.raises(StoreError, match="no zarr store is there"):
        open_store(f"{served}.not")


@pytest.mark.parametrize("served", [PlainHandler], indirect=True)
def test_a_server_without_ranges_is_an_error(served: str) -> None:
    """Its answers are longer than what was asked for."""
    with pytest.raises(DamagedStoreError, match="ranges"):
        open_store(served)["gene7"]


def test_other_places(path: Path, expected: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths, file URLs, fsspec's memory, obstore, and stores of zarr; each can be pickled."""
    import obstore.store

    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/there/genes.zarr", recursive=True)
    monkeypatch.chdir(path.parent)
    places: list[Any] = [
        path,
        str(path),
        path.name,
        f"file://{path}",
        "memory://there/genes.zarr",
        zarr.storage.ObjectStore(obstore.store.LocalStore(path), read_only=True),
        zarr.storage.LocalStore(path),
    ]
    for place in places:
        store = check_place(place, expected)
        assert "60 obs × 40 vars" in repr(store)
        again = pickle.loads(pickle.dumps(store._reader("X")))  # noqa: S301  # it travels to workers so
        same(again.block(0, N_VARS), expected.X.tocsc())


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    """One readable line for each."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    zarr.open_group(tmp_path / "group", mode="w")
    for place, words in {
        tmp_path / "nothing": "no such directory",
        tmp_path / "file": "not a directory",
        tmp_path / "empty": "no zarr store",
        tmp_path / "group": "not AnnData's",
        "nosuchprotocol://x": "nosuchprotocol",
    }.items():
        with pytest.raises(StoreError, match=words):
            open_store(place)


def test_matrices_that_are_not_csc_are_refused_with_advice(tmp_path: Path) -> None:
    """CSR and dense: the message says what to do."""
    for matrix, words in ((sp.csr_matrix(np.eye(3)), "dask-convert convert"), (np.eye(3), "dense")):
        path = tmp_path / words
        ad.AnnData(matrix).write_zarr(path)
        store = open_store(path)
        assert store.matrices == ()
        with pytest.raises(StoreError, match=words):
            store[0]


# ------------------------------------------------------------------ damage


def test_damage_is_an_error_and_never_another_number(path: Path, tmp_path: Path) -> None:
    """A flipped bit, a missing file, indptr that does not fit, rows beyond the matrix."""
    import shutil

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(path, tmp_path / name))

    flipped = damaged("flipped") / "X" / "indices" / "c" / "0"
    content = bytearray(flipped.read_bytes())
    content[30] ^= 1
    flipped.write_bytes(content)
    lost = damaged("lost") / "X" / "data" / "c" / "1"
    lost.unlink()
    pointers = zarr.open_group(damaged("pointers"), mode="r+")["X/indptr"]
    pointers[3] = pointers[5]
    pointers[4] = pointers[2]
    rows = zarr.open_group(damaged("rows"), mode="r+")["X/indices"]
    rows[7] = N_OBS
    shape = zarr.open_group(damaged("shape"), mode="r+", use_consolidated=False)["X"]
    shape.attrs["shape"] = [N_OBS, N_VARS + 1]
    zarr.consolidate_metadata(tmp_path / "shape")
    del zarr.open_group(damaged("member"), mode="r+", use_consolidated=False)["X"]["indices"]
    zarr.consolidate_metadata(tmp_path / "member")
    for name, words in {
        "flipped": "checksum",
        "lost": "is missing",
        "pointers": "indptr falls after position 3",
        "rows": "row 60 in column 0",
        "shape": "indptr has 41 elements",
        "member": "X lacks .*indices.*; the store is damaged",
    }.items():
        with pytest.raises(DamagedStoreError, match=words):
            open_store(tmp_path / name)[:]


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_are_asked_for_before_they_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """All groups of them but the first, once each, and not much earlier than is of use."""
    log: list[tuple[str, str, tuple[int, ...]]] = []

    def logged(what: str, inner: Any) -> Any:
        def method(reader: ChunkReader, group: list[int]) -> Any:
            log.append((what, reader.layout.name, tuple(group)))
            return inner(reader, group)

        return method

    reader = open_csc(zarr.open_group(path, mode="r")["X"], "X").with_threads(threads)
    for what in ("expect", "read"):
        monkeypatch.setattr(ChunkReader, what, logged(what, getattr(ChunkReader, what)))
    monkeypatch.setattr(csc_reader, "_AHEAD_BYTES", 3 * 16 * 8)  # three chunks of 16 values
    reader.columns(np.arange(0, N_VARS, 2))
    wanted = [group for what, *group in log if what == "read"]
    asked = [group for what, *group in log if what == "expect"]
    assert len(wanted) > 10
    assert sorted(asked) == sorted(group for group in wanted if group in asked)
    assert len(asked) == len(wanted) - 1
    if threads == 1:  # another thread may read what one has just begun to ask for
        for group in asked:
            assert log.index(("expect", *group)) < log.index(("read", *group))
        size = {"X/data": 16 * 8, "X/indices": 16 * 4}  # of a chunk
        steps = [(1 if what == "expect" else -1) * size[n] * len(group) for what, n, group in log]
        # And two groups, of a whole shard each: the last one asked for, and the one to be read.
        assert np.cumsum(steps).max() <= (3 + 2 * 4) * 16 * 8


def test_an_error_ends_all_threads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised as it is, and what had not been begun is not begun."""
    begun: list[int] = []

    def fail(_reader: ChunkReader, group: list[int]) -> Any:
        begun.append(group[0])
        raise IndexError(group[0])

    reader = open_csc(zarr.open_group(path, mode="r")["X"], "X").with_threads(3)
    monkeypatch.setattr(ChunkReader, "read", fail)
    with pytest.raises(IndexError):
        reader.columns(np.arange(0, N_VARS, 2))
    assert len(begun) <= 3


# ------------------------------------------------------------------ all of it


@pytest.mark.parametrize("kind", ["scipy", "sparse"])
def test_to_dask(store: Store, expected: ad.AnnData, kind: Any) -> None:
    """Blocks follow the stored chunks; per-gene functions and reductions are right."""
    array = store.to_dask(kind=kind, block_nnz=100)
    wanted = expected.X.toarray()
    assert array.shape == wanted.shape
    assert array.dtype == wanted.dtype
    assert array.numblocks[1] > 3
    borders = np.cumsum(array.chunks[1])[:-1]
    ends_of_chunks = 7 * 16 * np.arange(1, borders.size + 1)  # 100 entries take seven chunks
    indptr = store.indptr()
    assert np.all(indptr[borders] <= ends_of_chunks)
    assert np.all(ends_of_chunks < indptr[borders + 1])
    sums = array.map_blocks(
        lambda block: (
            np.asarray(block.sum(axis=0)).reshape(1, -1)
            if kind == "scipy"
            else block.sum(axis=0).todense().reshape(1, -1)
        ),
        chunks=((1,), array.chunks[1]),
        dtype="f8",
        meta=np.empty((0, 0)),
    )
    np.testing.assert_allclose(sums.compute(scheduler="synchronous")[0], wanted.sum(axis=0))
    block = array.blocks[0, 0].compute(scheduler="synchronous")
    assert isinstance(block, sp.csc_array if kind == "scipy" else sparse.COO)


def test_dask_reduces_sparse_blocks(store: Store, expected: ad.AnnData) -> None:
    """Its own sum, mean and slicing work on them."""
    array = store.to_dask("layers/twice", kind="sparse", block_nnz=100)
    wanted = 2 * expected.X.toarray()
    np.testing.assert_allclose(array.sum(axis=0).compute().todense(), wanted.sum(axis=0))
    np.testing.assert_allclose(array.mean(axis=1).compute().todense(), wanted.mean(axis=1))
    with pytest.raises(SelectionError, match="scipy, sparse"):
        store.to_dask(kind="dense")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("lazy", [True, False])
def test_to_anndata(store: Store, expected: ad.AnnData, lazy: bool) -> None:
    """All of the store, on disk or in memory."""
    found = store.to_anndata(lazy=lazy)
    in_memory = found.to_memory() if lazy else found
    np.testing.assert_array_equal(in_memory.X.toarray(), expected.X.toarray())
    np.testing.assert_array_equal(in_memory.layers["twice"].toarray(), 2 * expected.X.toarray())
    assert list(in_memory.obs_names) == list(expected.obs_names)
    assert in_memory.obs["cell_type"].tolist() == expected.obs["cell_type"].tolist()
