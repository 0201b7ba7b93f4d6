"""Verification finds every single fault in a stored target, and none where there is none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from click.testing import CliRunner
from engine import TINY, convert
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, Storage, csr_matrices, random_csr, share, storages, write_h5ad
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec

from dask_convert import api
from dask_convert.chunks import chunk_bytes, chunk_reader
from dask_convert.cli import main
from dask_convert.conversion import run
from dask_convert.engine import stages
from dask_convert.engine.graph import SynchronousExecutor
from dask_convert.engine.results import VerificationResult
from dask_convert.errors import (
    MemoryBudgetError,
    PlanError,
    SourceError,
    StorageError,
    VerificationError,
)
from dask_convert.files import hdf5
from dask_convert.verification import entries, matrices, sides
from dask_convert.verification.samples import sample_differences
from dask_convert.verification.verifying import verify_store

pytestmark = pytest.mark.filterwarnings("ignore")  # of anndata and zarr, about what they write

N_OBS, N_VARS = 60, 12
MATRICES = ("X", "raw/X", "layers/csc", "obsp/near")


def verify(source: Path, target: Path, **options: Any) -> VerificationResult:
    """Verify in this process."""
    options = {"memory_bytes": 2**31, "workers": 0, **options}
    return verify_store(source, target, SynchronousExecutor(), **options)


def example() -> ad.AnnData:
    """A little of everything."""
    rng = np.random.default_rng(0)
    counts = sp.random(N_OBS, N_VARS, 0.4, "csr", random_state=1)
    names = [f"cell{i}" for i in range(N_OBS)]
    kinds = pd.Categorical(rng.choice(["a", "b", "c"], N_OBS), ordered=True)
    flags = pd.array([True, None, False] * (N_OBS // 3), dtype="boolean")
    obs = pd.DataFrame({"kind": kinds, "score": rng.random(N_OBS), "flag": flags}, index=names)
    adata = ad.AnnData(
        counts,
        obs=obs,
        layers={"csc": counts.tocsc(), "dense": counts.toarray()},
        obsm={"X_pca": rng.random((N_OBS, 3))},
        obsp={"near": sp.random(N_OBS, N_OBS, 0.1, "csr", random_state=2)},
        uns={"deep": {"number": 3, "text": "hello"}, "array": np.arange(1, 6)},
    )
    adata.raw = adata
    return adata


@dataclass(frozen=True)
class Stored:
    """A file and a store of it."""

    source: Path
    target: Path


@pytest.fixture(scope="module", params=[3, 2], ids=["v3", "v2"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The example, converted: many shards of several chunks in zarr 3, no checksums in zarr 2."""
    directory = tmp_path_factory.mktemp("stored")
    source, target = directory / "source.h5ad", directory / "target.zarr"
    example().write_h5ad(source)
    cuts = {"chunk_nnz": 30, "shard_nnz": 120 if request.param == 3 else 0}
    convert(source, target, zarr_format=request.param, **cuts)
    return Stored(source, target)


@pytest.mark.parametrize("column", [N_VARS, 10**8, -1, -(10**8)])
def test_a_column_out_of_range_of_the_source_reaches_neither_scipy_nor_the_verdict(
    stored: Stored, tmp_path: Path, column: int
) -> None:
    """Scipy would write outside its arrays, and the process would end by a signal."""
    source = tmp_path / "source.h5ad"
    shutil.copy(stored.source, source)
    with h5py.File(source, "r+") as file:
        file["X/indices"][:] = column
    with pytest.raises(SourceError, match=r"X/indices.* no (index|column)"):
        verify(source, stored.target)
    target = zarr.open_group(stored.target, mode="r")["X"]
    with h5py.File(source) as file:
        ours, _ = sides.side_of(file["X"], "h5ad", source, "X")
    theirs, _ = sides.side_of(target, "zarr", stored.target, "X")
    assert ours is not None
    assert theirs is not None
    with pytest.raises(SourceError, match=rf"X/indices\[\d+\] is {column}, which is no column"):
        sample_differences(ours, theirs, 0)


def test_the_control_passes(stored: Stored) -> None:
    """Without a fault nothing is found, and every sparse matrix was compared."""
    result = verify(stored.source, stored.target)
    assert result.differences == ()
    assert {matrix.name for matrix in result.matrices} == set(MATRICES)
    assert all(matrix.h5py_nnz == matrix.nnz > 0 for matrix in result.matrices)
    # A matrix of one part has at least that in its sample.
    assert all(matrix.zarr_nnz == matrix.nnz for matrix in result.matrices)


# ---------------------------------------------------------------- single faults

Fault = Callable[[zarr.Group, Path, np.random.Generator], None]
FAULTS: dict[str, tuple[Fault, int]] = {}
"""Each fault, and with how many seeds."""


def fault(seeds: int) -> Callable[[Fault], Fault]:
    def register(function: Fault) -> Fault:
        FAULTS[function.__name__] = (function, seeds)
        return function

    return register


def matrix_of(root: zarr.Group, rng: np.random.Generator) -> Any:
    return root[str(rng.choice(MATRICES))]


def chunk_files(store: Path, below: str = "") -> list[Path]:
    files = sorted(path for path in (store / below).rglob("*") if path.is_file())
    return [path for path in files if path.name != "zarr.json" and not path.name.startswith(".z")]


def chosen_file(store: Path, rng: np.random.Generator, below: str = "X") -> Path:
    files = chunk_files(store, below)
    return files[rng.integers(len(files))]


@fault(60)
def a_flipped_bit_in_a_file_of_a_matrix(root: Any, store: Path, rng: Any) -> None:
    """Of chunks, of indexes of shards, of indptr; in zarr 2, where it changes what is read."""
    name = str(rng.choice(MATRICES))
    group = root[name]

    def read() -> list[bytes] | None:
        try:
            return [group[member][:].tobytes() for member in ("data", "indices", "indptr")]
        except Exception:  # noqa: BLE001  (that is a change as well)
            return None

    before = read() if root.metadata.zarr_format == 2 else None
    while True:
        path = chosen_file(store, rng, name)
        content = bytearray(path.read_bytes())
        original = bytes(content)
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        if root.metadata.zarr_format == 3 or read() != before:
            return
        path.write_bytes(original)  # the padding of a last chunk, or a field that nobody reads


@fault(30)
def a_flipped_bit_in_any_chunk(_root: Any, store: Path, rng: Any) -> None:
    """Of annotations: all of them carry a checksum."""
    elements = [
        name for name in ("obs", "var", "obsm", "uns", "raw/var") if (store / name).is_dir()
    ]
    path = chosen_file(store, rng, str(rng.choice(elements)))
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


@fault(30)
def a_changed_bit_of_a_value(root: Any, _store: Path, rng: Any) -> None:
    data = matrix_of(root, rng)["data"]
    at = int(rng.integers(data.shape[0]))
    value = np.array([data[at]])
    value.view(np.uint64)[0] ^= np.uint64(1) << np.uint64(rng.integers(64))
    data[at] = value[0]


@fault(15)
def two_exchanged_values(root: Any, _store: Path, rng: Any) -> None:
    data = matrix_of(root, rng)["data"]
    one, other = rng.choice(data.shape[0], 2, replace=False)
    values = data[:]
    assert values[one] != values[other]
    values[[one, other]] = values[[other, one]]
    data[:] = values


@fault(15)
def two_exchanged_entries(root: Any, _store: Path, rng: Any) -> None:
    """Neighbours in a column: the same matrix, but no longer in order."""
    group = root["X"]
    indptr, indices = group["indptr"][:], group["indices"][:]
    column = int(rng.choice(np.flatnonzero(np.diff(indptr) > 1)))
    at = int(rng.integers(indptr[column], indptr[column + 1] - 1))
    for member in ("indices", "data"):
        values = group[member][:]
        values[[at, at + 1]] = values[[at + 1, at]]
        group[member][:] = values
    assert indices[at] < indices[at + 1]


@fault(20)
def a_moved_entry(root: Any, _store: Path, rng: Any) -> None:
    indices = matrix_of(root, rng)["indices"]
    at = int(rng.integers(indices.shape[0]))
    indices[at] = indices[at] + 1 if indices[at] < 20 else indices[at] - 1


@fault(5)
def an_index_outside(root: Any, _store: Path, rng: Any) -> None:
    indices = matrix_of(root, rng)["indices"]
    indices[int(rng.integers(indices.shape[0]))] = int(rng.choice([-1, N_OBS, 2**31 - 1, -(2**31)]))


@fault(10)
def a_duplicate(root: Any, _store: Path, rng: Any) -> None:
    """An entry takes the place of the next one of its column."""
    group = root["X"]
    indptr = group["indptr"][:]
    column = int(rng.choice(np.flatnonzero(np.diff(indptr) > 1)))
    at = int(rng.integers(indptr[column], indptr[column + 1] - 1))
    for member in ("indices", "data"):
        group[member][at + 1] = group[member][at]


@fault(15)
def a_moved_border_of_a_column(root: Any, _store: Path, rng: Any) -> None:
    indptr = matrix_of(root, rng)["indptr"]
    at = int(rng.integers(indptr.shape[0]))
    indptr[at] = indptr[at] + int(rng.choice([-1, 1]))


@fault(10)
def a_missing_file(_root: Any, store: Path, rng: Any) -> None:
    chosen_file(store, rng, "").unlink()


@fault(10)
def a_truncated_file(_root: Any, store: Path, rng: Any) -> None:
    path = chosen_file(store, rng)
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


@fault(5)
def a_file_of_another_place(_root: Any, store: Path, rng: Any) -> None:
    """One shard is there twice: every checksum holds."""
    files = chunk_files(store, f"X/{rng.choice(['data', 'indices'])}")[:-1]
    one, other = rng.choice(len(files), 2, replace=False)
    shutil.copy(files[one], files[other])


@fault(5)
def a_file_too_many(_root: Any, store: Path, rng: Any) -> None:
    path = chosen_file(store, rng)
    shutil.copy(path, path.with_name(str(rng.choice(["99", "100", ".1.partial", "1.5", "x"]))))


@fault(2)
def an_element_too_many(root: Any, _store: Path, rng: Any) -> None:
    root.create_group(str(rng.choice(["layers/new", "uns/new", "new"])))
    consolidate(root)


@fault(10)
def a_missing_chunk_within_a_shard(root: Any, store: Path, rng: Any) -> None:
    """Its index says, checksum and all, that there is nothing: zarr reads zeros."""
    import google_crc32c

    path = chosen_file(store, rng, "X/data")
    if root.metadata.zarr_format == 2:
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    index = np.frombuffer(content[-68:-4], "<u8").reshape(-1, 2).copy()
    present = np.flatnonzero(index[:, 0] != 2**64 - 1)
    index[rng.choice(present)] = 2**64 - 1
    content[-68:] = index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    path.write_bytes(content)


@fault(8)
def a_changed_attribute_of_a_matrix(root: Any, _store: Path, rng: Any) -> None:
    group = matrix_of(root, rng)
    shape = list(group.attrs["shape"])
    other = "csr_matrix" if group.attrs["encoding-type"] == "csc_matrix" else "csc_matrix"
    changes: list[dict[str, Any]] = [
        {"shape": [shape[0] + 1, shape[1]]},
        {"shape": [shape[0], shape[1] - 1]},
        {"encoding-type": other},
        {"encoding-type": "array"},
    ]
    group.attrs.update(changes[rng.integers(len(changes))])
    consolidate(root)


@fault(3)
def metadata_that_contradict_their_copy(root: Any, _store: Path, rng: Any) -> None:
    root[str(rng.choice(["X", "obs", "uns"]))].attrs["new"] = 1


@fault(10)
def a_changed_annotation(root: Any, _store: Path, rng: Any) -> None:
    """A label, a code, a category, a number, a mask, a text, an element of an array."""

    def other_code(array: Any) -> None:
        array[7] = (array[7] + 1) % 3

    def other_text(array: Any) -> None:
        values = np.array(array[...], object)
        values.reshape(-1)[-1] = "other"
        array[...] = values

    def other_number(array: Any) -> None:
        array[...] = array[...] + np.array(1, array.dtype)

    changes: list[tuple[str, Callable[[Any], None]]] = [
        ("obs/_index", other_text),
        ("var/_index", other_text),
        ("raw/var/_index", other_text),
        ("obs/kind/codes", other_code),
        ("obs/kind/categories", other_text),
        ("obs/score", other_number),
        ("obsm/X_pca", other_number),
        ("uns/deep/number", other_number),
        ("uns/deep/text", other_text),
        ("uns/array", other_number),
        ("layers/dense", other_number),
    ]
    path, change = changes[rng.integers(len(changes))]
    change(root[path])


@fault(6)
def a_changed_attribute_of_an_annotation(root: Any, _store: Path, rng: Any) -> None:
    number = int(rng.integers(3))
    if number == 0:
        root["obs/kind"].attrs["ordered"] = False
    elif number == 1:
        root["obs"].attrs["column-order"] = ["score", "kind", "flag"]
    else:
        root.attrs["encoding-type"] = "dict"
    consolidate(root)


@fault(6)
def a_missing_element(root: Any, store: Path, rng: Any) -> None:
    name = str(rng.choice(["X", "layers/csc", "obs/score", "uns/deep", "obsm", "raw"]))
    shutil.rmtree(store / name)
    consolidate(root)


@fault(4)
def a_negative_zero(root: Any, _store: Path, rng: Any) -> None:
    dense = root["layers/dense"]
    zeros = np.argwhere(dense[:] == 0)
    dense[tuple(zeros[rng.integers(len(zeros))])] = -0.0


def consolidate(root: zarr.Group) -> None:
    """What a careful editor would do last."""
    zarr.consolidate_metadata(root.store)


@pytest.fixture
def one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of a store is drawn to be read by zarr-python as well."""
    monkeypatch.setattr(matrices, "_sample", lambda _numbers, _one_in: set())


@pytest.fixture
def only_zarr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are read as if our reader knew none of their codecs."""
    monkeypatch.setattr(entries, "_direct_members", lambda _side, _arrays: None)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_system_that_fails_for_a_moment_is_no_difference(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It would end a conversion, and throw its store away."""

    def fails(*_arguments: int) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(chunk_bytes, "_pread", fails)
    with pytest.raises(StorageError, match="X/data") as caught:
        verify(stored.source, stored.target)
    assert caught.value.resumable


@pytest.mark.usefixtures("one_reader")
@pytest.mark.parametrize("name", FAULTS)
def test_every_single_fault_is_found(stored: Stored, tmp_path: Path, name: str) -> None:
    """One fault in an otherwise perfect store, hundreds of times."""
    function, seeds = FAULTS[name]
    seeds = share(seeds)
    seeds = seeds if stored.target.joinpath("zarr.json").exists() else -(-seeds // 6)
    assert missed_faults(stored, tmp_path, function, range(seeds)) == []


@pytest.mark.usefixtures("only_zarr")
@pytest.mark.parametrize("name", FAULTS)
def test_zarr_alone_finds_them_too(stored: Stored, tmp_path: Path, name: str) -> None:
    """Which is how stores with codecs that our reader does not know are read."""
    assert missed_faults(stored, tmp_path, FAULTS[name][0], range(100, 102)) == []


def missed_faults(stored: Stored, tmp_path: Path, function: Fault, seeds: range) -> list[int]:
    missed = []
    for seed in seeds:
        store = tmp_path / f"{seed}.zarr"
        shutil.copytree(stored.target, store)
        root = zarr.open_group(store, mode="r+", use_consolidated=False)
        function(root, store, np.random.default_rng(seed))
        if verify(stored.source, store).equal:
            missed.append(seed)
        shutil.rmtree(store)
    return missed


# ---------------------------------------------------------------- what is right passes


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stores_that_anndata_wrote_are_judged(tmp_path: Path, zarr_format: Any) -> None:
    """Its defaults: no checksums, chunks of zeros left out, other chunks; and a fault in one."""
    adata = example()
    source, target = tmp_path / "source.h5ad", tmp_path / "target.zarr"
    adata.write_h5ad(source, compression="gzip")
    adata.X = adata.X.tocsc()
    with ad.settings.override(zarr_write_format=zarr_format):
        adata.write_zarr(target)
    assert verify(source, target).differences == ()
    root = zarr.open_group(target, mode="r+", use_consolidated=False)
    root["X/indices"][3] += 1
    (line, *_) = verify(source, target).differences
    assert line.startswith("X")


DELTA = {"filters": (numcodecs.Delta("<f8"),), "chunks": (50,)}
BARE_INDEX = ShardingCodec(
    chunk_shape=(50,), codecs=(BytesCodec(),), index_codecs=(BytesCodec(endian="little"),)
)
BY_ZARR = {"serializer": BARE_INDEX, "compressors": (), "chunks": (100,)}


@pytest.mark.usefixtures("one_reader")
@pytest.mark.parametrize(
    ("stored", "options", "by_zarr"),
    [
        (2, DELTA, True),
        (2, {"compressors": None, "chunks": (7,)}, False),
        (2, {"compressors": numcodecs.BZ2(1), "chunks": (10**4,)}, False),
        (3, BY_ZARR, True),
        (3, {"chunks": (7,), "serializer": BytesCodec(endian="big")}, False),
        (3, {"chunks": (50,), "compressors": (GzipCodec(), BloscCodec())}, True),
        (3, {"chunks": (7,), "shards": (35,)}, False),
    ],
    indirect=["stored"],
)
def test_any_way_of_storing_is_judged(
    stored: Stored, tmp_path: Path, options: dict[str, Any], by_zarr: bool
) -> None:
    """Values in chunks unlike those of the indices, with codecs known to our reader or not."""
    store = tmp_path / "store.zarr"
    shutil.copytree(stored.target, store)
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    data = root["X/data"][:]
    del root["X/data"]
    options = {"shape": data.shape, "dtype": data.dtype, "filters": (), **options}
    array = root["X"].create_array("data", **options)
    array[:] = data
    consolidate(root)
    result = verify(stored.source, store)
    lines = [line for line in result.differences if "not where this program" not in line]
    assert lines == []
    found = {matrix.name: matrix.zarr_nnz for matrix in result.matrices}
    assert found["X"] == (data.size if by_zarr else 0)
    array[-1] = 99.0
    assert any("X: entries differ" in line for line in verify(stored.source, store).differences)


@pytest.mark.parametrize("dtype", ["int64", "int16"])
def test_other_types_of_indices_are_equal(stored: Stored, tmp_path: Path, dtype: str) -> None:
    """What counts is which row an index says."""
    store = tmp_path / "store.zarr"
    shutil.copytree(stored.target, store)
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    indices = root["X/indices"][:]
    del root["X/indices"]
    root["X"].create_array("indices", data=indices.astype(dtype), chunks=(50,))
    consolidate(root)
    assert verify(stored.source, store).differences == ()


@settings(max_examples=share(15))
@given(csr_matrices(), storages(), st.sampled_from([2, 3]), st.sampled_from(["same", "auto"]))
def test_what_the_engine_makes_of_any_matrix_is_equal(
    matrix: Any, storage: Any, zarr_format: int, data_dtype: str
) -> None:
    """Every type and storage; told by the whole source, and by what the conversion has read."""
    cuts = {**TINY, "chunk_nnz": 256, "block_nnz": 500, "region_nnz": 1024}
    cuts["shard_nnz"] = 1024 if zarr_format == 3 else 0
    with tempfile.TemporaryDirectory() as directory:
        source = write_h5ad(Path(directory, "source.h5ad"), matrix, storage)
        target = Path(directory, "target.zarr")
        options = {"zarr_format": zarr_format, "data_dtype": data_dtype, "verify": True, **cuts}
        assert convert(source, target, **options).verification.equal
        result = verify(source, target)
        assert result.differences == ()
        assert [found.h5py_nnz for found in result.matrices] == [matrix.nnz]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_every_type_counts(tmp_path: Path, dtype: str) -> None:
    """Flipping any one bit of a value is found."""
    rng = np.random.default_rng(0)
    kind = "bits" if dtype != "?" else "counts"
    matrix = random_csr(rng, (9, 4), rng.integers(1, 5, 9), dtype, kind)
    source, target = write_h5ad(tmp_path / "source.h5ad", matrix), tmp_path / "target.zarr"
    convert(source, target)
    data = zarr.open_group(target, mode="r+", use_consolidated=False)["X/data"]
    original = data[:]
    for bit in range(0, 8 * original.itemsize if dtype != "?" else 1, 5):
        changed = original.copy()
        changed[bit % 9 : bit % 9 + 1].view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
        data[:] = changed
        assert not verify(source, target).equal, bit
    data[:] = original
    assert verify(source, target).equal


@pytest.mark.parametrize(
    ("source_dtype", "target_dtype", "source_value", "target_value"),
    [
        ("f8", "u1", 256.5, 0),
        ("f8", "u1", -0.0, 0),
        ("f8", "i4", 1e30, 0),
        ("u2", "f8", 5, 5.5),
        ("i8", "f8", 2**53 + 1, 2.0**53),
        ("c8", "f4", 1 + 1j, 1),
        ("f4", "c8", 2, 2 + 1j),
        ("f8", "f4", 0.1, np.float32(0.1)),
    ],
)
def test_values_that_a_cast_would_make_equal_differ(
    tmp_path: Path, source_dtype: str, target_dtype: str, source_value: Any, target_value: Any
) -> None:
    """A value is equal if it comes back, bit by bit, whichever way it is cast."""
    matrix = sp.csr_array(np.ones((3, 2)))
    source, target = tmp_path / "source.h5ad", tmp_path / "target.zarr"
    ad.AnnData(matrix.astype(source_dtype)).write_h5ad(source)
    ad.AnnData(matrix.tocsc().astype(target_dtype)).write_zarr(target)
    assert verify(source, target).differences == ()
    with h5py.File(source, "r+") as file:
        file["X/data"][0] = source_value
    assert not verify(source, target).equal
    zarr.open_group(target, mode="r+", use_consolidated=False)["X/data"][0] = target_value
    assert not verify(source, target).equal


def test_an_old_file_is_compared_as_anndata_reads_it(tmp_path: Path) -> None:
    """Data frames as compound data sets; a changed label is found."""
    rng = np.random.default_rng(0)
    matrix = random_csr(rng, (9, 4), rng.integers(1, 5, 9), "f4")
    source = write_h5ad(tmp_path / "source.h5ad", matrix, Storage(legacy=True))
    target = tmp_path / "target.zarr"
    convert(source, target)
    assert verify(source, target).differences == ()
    names = zarr.open_group(target, mode="r+", use_consolidated=False)["obs/index"]
    names[...] = np.array(["other", *names[1:]], object)
    assert verify(source, target).differences == ("obs: differs",)


def test_what_is_stored_otherwise_is_judged_as_anndata_reads_it(
    stored: Stored, tmp_path: Path
) -> None:
    """Codes of another type and another attribute: equal; another category, or order: not."""
    store = tmp_path / "store.zarr"
    shutil.copytree(stored.target, store)
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    kind = root["obs/kind"]
    codes = kind["codes"][:]
    del kind["codes"]
    kind.create_array("codes", data=codes.astype("i4"))
    root["uns/deep/number"].attrs["note"] = "somebody's own"
    consolidate(root)
    assert verify(stored.source, store).differences == ()
    kind["codes"][0] = (codes[0] + 1) % 3
    assert verify(stored.source, store).differences == ("obs/kind: differs",)
    kind["codes"][0] = codes[0]
    kind.attrs["ordered"] = False
    consolidate(root)
    assert verify(stored.source, store).differences == ("obs/kind: differs",)


def test_what_is_stored_alike_is_equal_without_anndata(tmp_path: Path) -> None:
    """A store of ours is verified in a process that never loads it: a second of its time.

    anndata itself would decide by its version how the names in such a file are stored.
    """
    matrix = random_csr(np.random.default_rng(0), (20, 9), [3] * 20, "float64")
    source, target = write_h5ad(tmp_path / "source.h5ad", matrix), tmp_path / "target.zarr"
    convert(source, target)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dask_convert.engine.graph import SynchronousExecutor\n"
        "from dask_convert.verification.verifying import verify_store\n"
        f"source, target = Path({str(source)!r}), Path({str(target)!r})\n"
        "options = {'memory_bytes': 2**31, 'workers': 0}\n"
        "assert verify_store(source, target, SynchronousExecutor(), **options).equal\n"
        "print({'anndata', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------- messages and limits


def test_a_difference_says_where(stored: Stored, tmp_path: Path) -> None:
    """Matrix, columns and rows; chunk of what cannot be read."""
    store = tmp_path / "store.zarr"
    shutil.copytree(stored.target, store)
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    indptr, indices = root["X/indptr"][:], root["X/indices"][:]
    root["X/data"][indptr[5]] = 99.0
    (line,) = verify(stored.source, store).differences
    assert line == f"X: entries differ in columns 5, rows {indices[indptr[5]]}"
    chunk_files(store, "X/data")[0].write_bytes(b"nothing")
    lines = verify(stored.source, store).differences
    assert any(line.startswith("X/data, chunk 0 (entries from 0): cannot") for line in lines)
    assert not any(
        str(tmp_path) in line for line in lines
    )  # which may be a name for the time being


def test_what_is_no_store_differs(stored: Stored, tmp_path: Path) -> None:
    """No traceback for a directory without a store, and none for a missing matrix."""
    assert not verify(stored.source, tmp_path).equal
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    assert (
        "X: is missing in the store" in verify(stored.source, tmp_path / "empty.zarr").differences
    )


def test_a_source_that_cannot_be_read_is_an_error(stored: Stored, tmp_path: Path) -> None:
    """It says nothing about the target."""
    source = tmp_path / "source.h5ad"
    shutil.copy(stored.source, source)
    with h5py.File(source, "r+") as file:
        file["X/indptr"][3] = 10**6
    with pytest.raises(SourceError, match="X/indptr: descends"):
        verify(source, stored.target)
    with pytest.raises(PlanError, match="no sparse matrix"):
        verify(stored.source, stored.target, matrices=["layers/none"])
    with pytest.raises(MemoryBudgetError, match="MiB"):
        verify(stored.source, stored.target, memory_bytes=2**20)


def test_the_command_line_tells_by_its_exit_code(stored: Stored, tmp_path: Path) -> None:
    """0 and a summary, or 8 and a line for each difference; the same as JSON."""
    arguments = ["verify", str(stored.source), "--workers", "0"]
    result = CliRunner().invoke(main, [*arguments, str(stored.target)])
    assert (result.exit_code, "equal to the source" in result.stdout) == (0, True)
    store = tmp_path / "store.zarr"
    shutil.copytree(stored.target, store)
    zarr.open_group(store, mode="r+", use_consolidated=False)["X/data"][0] = 99.0
    result = CliRunner().invoke(main, [*arguments, str(store)])
    assert (result.exit_code, "X: entries differ" in result.stderr) == (14, True)
    result = CliRunner().invoke(main, [*arguments, str(store), "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["equal"], len(found["differences"])) == (14, False, 1)


def test_a_cluster_finds_what_one_process_finds(stored: Stored, tmp_path: Path) -> None:
    """On workers of a local cluster, too."""
    assert api.verify(stored.source, stored.target, workers=2).equal
    store = tmp_path / "store.zarr"
    shutil.copytree(stored.target, store)
    zarr.open_group(store, mode="r+", use_consolidated=False)["X/data"][0] = 99.0
    with pytest.raises(VerificationError, match="X: entries differ"):
        api.verify(stored.source, store, workers=2).require_equal()


# ---------------------------------------------------------------- before it is published


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    matrix = random_csr(rng, (50, 9), rng.integers(1, 9, 50), "f8")
    return write_h5ad(tmp_path / "cells.h5ad", matrix, Storage(64, "gzip"))


def wrong_values(original: Any) -> Any:
    def write(*arguments: Any) -> Any:
        *others, elements, attempts = arguments
        return original(*others, lambda start, stop: elements(start, stop) + 1, attempts)

    return write


def test_a_wrong_store_is_never_published(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written wrong is found before it gets its name, and nothing is left."""
    monkeypatch.setattr(stages, "write_region", wrong_values(stages.write_region))
    with pytest.raises(VerificationError, match="differs from its source"):
        convert(source, tmp_path / "target.zarr", verify=True, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_what_the_raw_reader_gets_wrong_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion believes it; h5py, which reads a sample again, does not.

    Were it wrong about the three chunks that are tried first, it would not be used.
    """
    monkeypatch.setattr(run, "raw_table", lambda dataset, _array: hdf5.chunk_table(dataset))
    original = hdf5._inflate

    def wrong(encoded: bytes, array: Any, itemsize: int, what: str) -> bytes:
        inflated = bytearray(original(encoded, array, itemsize, what))
        if "/data" in what:
            inflated[0] ^= 1
        return bytes(inflated)

    monkeypatch.setattr(hdf5, "_inflate", wrong)
    with pytest.raises(VerificationError, match="h5py reads other entries"):
        convert(source, tmp_path / "target.zarr", verify=True, **{**TINY, "block_nnz": 300})


def test_what_writer_and_reader_both_get_wrong_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our reader believes what was written wrong; zarr-python, which reads a sample, does not."""
    original = chunk_reader.decode_chunk

    def wrong(layout: Any, encoded: Any, out: Any = None) -> Any:
        elements = original(layout, encoded, out)
        if out is None:
            return elements - 1
        out -= 1
        return out

    monkeypatch.setattr(stages, "write_region", wrong_values(stages.write_region))
    monkeypatch.setattr(chunk_reader, "decode_chunk", wrong)
    with pytest.raises(VerificationError, match="zarr-python reads something else"):
        convert(source, tmp_path / "target.zarr", verify=True, **TINY)


def test_only_a_sample_of_either_side_is_read_by_two(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row block in 16, or what was not digested; one part of the store in 16."""
    monkeypatch.setattr(sides, "PART_NNZ", 1)  # a part for each chunk
    result = convert(source, tmp_path / "target.zarr", verify=True, **TINY)
    (matrix,) = result.verification.matrices
    assert 0 < matrix.h5py_nnz < matrix.nnz / 4
    assert 0 < matrix.zarr_nnz < matrix.nnz / 4
