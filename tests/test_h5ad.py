"""The source is read right by either way, and refused by name where it is not as it must be."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import assert_same_bits
from strategies import (
    DTYPES,
    FILTERS,
    VALUE_KINDS,
    Csr,
    Storage,
    csr_from_rows,
    random_csr,
    random_values,
    share,
    storages,
    write_h5ad,
    write_member,
)

from dask_convert import page_cache
from dask_convert.errors import AdmissionError, SourceError, StorageError
from dask_convert.files import hdf5
from dask_convert.files.h5ad import axis_length, csr_matrices, matrix_format, row_index
from dask_convert.files.hdf5 import MemberReader, chunk_table, open_source, reopen_source
from dask_convert.files.hdf5_trial import raw_table
from dask_convert.planning.layout import ArraySource, Trust
from dask_convert.planning.memory import READ_PIECE_BYTES

WITHOUT_TRUST = Trust()
RAW_FILTERS = {"none", "gzip", "shuffle", "shuffle+gzip", "zstd"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h5ad")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A valid file with gzip chunks, to be spoilt."""
    matrix = random_csr(np.random.default_rng(0), (6, 5), [3, 0, 8, 2, 5, 2], "f4")
    return write_h5ad(tmp_path / "source.h5ad", matrix, Storage(7, "gzip"))


def source_of(file: h5py.File, name: str = "data") -> ArraySource:
    """How a member of X is stored."""
    source: ArraySource = getattr(csr_matrices(file)[0], name)
    return source


def read(reader: MemberReader, start: int, stop: int) -> NDArray[Any]:
    """The elements of all pieces, which must follow each other."""
    pieces, position = [], start
    for first, elements in reader.pieces(start, stop):
        assert first == position
        position += elements.size
        pieces.append(elements)
    assert position == stop
    return np.concatenate(pieces) if pieces else np.empty(0)


def read_all(*how: Any) -> NDArray[Any]:
    """All elements of a member array."""
    with MemberReader(*how) as reader:
        return read(reader, 0, 20)


def read_both_ways(
    path: Path, start: int, stop: int, name: str = "data", trust: Trust = WITHOUT_TRUST
) -> list[NDArray[Any]]:
    """Elements through HDF5 and, where the storage allows it, past it."""
    with open_source(path, trust) as file:
        array = source_of(file, name)
        tables = [None, raw_table(file["X"][name], array)] if array.raw else [None]
    results = []
    assert not array.raw or tables[1] is not None
    for table in tables:
        with MemberReader(path, f"X/{name}", array, table, trust) as reader:
            results.append(read(reader, start, stop))
    return results


@settings(max_examples=share(200))
@given(storages(), st.sampled_from(DTYPES), st.sampled_from(VALUE_KINDS), st.data())
def test_both_ways_read_the_same(
    directory: Path, storage: Storage, dtype: str, kind: str, data: st.DataObject
) -> None:
    """Any slice, type, filter and chunk size: what was written, bit by bit, in native order."""
    nnz = data.draw(st.integers(1, 150))
    values = random_values(np.random.default_rng(0), nnz, dtype, kind)
    matrix = Csr(values, np.arange(nnz) % 9, np.array([0, nnz]), (1, 9))
    path = write_h5ad(directory / "source.h5ad", matrix, storage)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, nnz)] * 2)))
    if start == stop:
        return
    results = read_both_ways(path, start, stop)
    assert len(results) == 1 + (storage.filters in RAW_FILTERS)
    for result in results:
        assert_same_bits(result, values[start:stop])
    for result in read_both_ways(path, start, stop, "indices"):
        np.testing.assert_array_equal(result, matrix.indices[start:stop])


@pytest.mark.parametrize("filters", [name for name in FILTERS if name != "none"])
def test_pieces_of_contiguous_and_of_filtered_data_stay_small(tmp_path: Path, filters: str) -> None:
    """No piece exceeds what the memory model allows for it."""
    values = np.arange(3 * READ_PIECE_BYTES // 8, dtype="f8")
    matrix = Csr(values, np.zeros(values.size, int), np.array([0, values.size]), (1, 1))
    for storage in (Storage(), Storage(100_000, filters)):
        path = write_h5ad(tmp_path / "source.h5ad", matrix, storage)
        with open_source(path) as file:
            array = source_of(file)
            tables = [None, chunk_table(file["X/data"])] if array.raw else [None]
        for table in tables:
            with MemberReader(path, "X/data", array, table) as reader:
                for first, piece in reader.pieces(5, values.size - 5):
                    assert piece.nbytes <= READ_PIECE_BYTES
                    np.testing.assert_array_equal(piece, values[first : first + piece.size])


def test_bytes_read_are_counted_once(path: Path) -> None:
    """Every chunk of a slice counts with its stored size, whole."""
    with open_source(path) as file:
        array, table = source_of(file), chunk_table(file["X/data"])
    assert table is not None
    with MemberReader(path, "X/data", array, table) as reader:
        read(reader, 8, 15)
        assert reader.stored_bytes == int(table["stored_bytes"][1:3].sum())
    assert array.stored_bytes == int(table["stored_bytes"].sum())


@pytest.mark.parametrize("share", [0.0, page_cache.CACHED_SHARE])
def test_the_page_cache_is_left_to_others_by_what_would_fill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """What was read of an array is not needed again: no byte before, none behind."""
    with h5py.File(tmp_path / "long.h5", "w") as file:
        file["before"] = np.ones(1000)
        file.create_dataset("data", data=np.arange(1000.0), chunks=(100,), compression="gzip")
        array = hdf5.array_source(file["data"], file.filename)
        table = chunk_table(file["data"])
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(page_cache, "CACHED_SHARE", share)
    monkeypatch.setattr(hdf5, "not_needed", lambda _file, *where: told.append(where))
    with MemberReader(tmp_path / "long.h5", "data", array, table) as reader:
        assert np.array_equal(read(reader, 150, 420), np.arange(150.0, 420.0))
    starts, sizes = table["offset"][1:5], table["stored_bytes"][1:5]
    first, last = int(starts.min()), int((starts + sizes).max())
    assert told == ([] if share else [(first, last - first)])


def leave_cut_chunks_unfiltered(creation: h5py.h5p.PropDCID) -> None:
    """A setting of HDF5 that h5py has not: the chunk that the end cuts stays as it is."""
    maps = Path("/proc/self/maps").read_text().split()
    library = next(name for name in maps if "libhdf5" in name and "_hl" not in name)
    function = ctypes.CDLL(library).H5Pset_chunk_opts
    function.argtypes = [ctypes.c_int64, ctypes.c_uint]
    assert function(creation.id, 2) >= 0


@pytest.mark.parametrize("length", [95, 100])
@pytest.mark.parametrize(
    "filters",
    [("shuffle",), ("gzip",), ("shuffle", "gzip"), ("fletcher32",), ("gzip", "fletcher32")],
)
def test_a_cut_chunk_that_was_left_as_it_is_is_read_rightly(
    tmp_path: Path, filters: tuple[str, ...], length: int
) -> None:
    """No mask tells of it: what HDF5 makes of the last chunk decides who reads the array."""
    values = np.random.default_rng(0).random(length)
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((10,))
    setters = {"shuffle": creation.set_shuffle, "fletcher32": creation.set_fletcher32}
    for name in filters:
        setters.get(name, lambda: creation.set_deflate(1))()
    leave_cut_chunks_unfiltered(creation)
    with h5py.File(tmp_path / "odd.h5", "w", libver="latest") as file:
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file.id, b"data", h5py.h5t.py_create(values.dtype), space, creation)
        h5py.Dataset(made)[:] = values
    with h5py.File(tmp_path / "odd.h5") as file:
        array = hdf5.array_source(file["data"], file.filename)
        table = raw_table(file["data"], array)
    assert (table is not None) == (length % 10 == 0 and "fletcher32" not in filters)
    with MemberReader(tmp_path / "odd.h5", "data", array, table) as reader:
        np.testing.assert_array_equal(read(reader, 0, length), values)


def spoil(path: Path, found: bytes, offset: int, content: bytes) -> None:
    """Overwrite bytes at some distance from where others are first found."""
    everything = bytearray(path.read_bytes())
    at = everything.index(found) + offset
    everything[at : at + len(content)] = content
    path.write_bytes(everything)


def one_filtered(path: Path, **options: Any) -> NDArray[Any]:
    """A file whose only filters are those of one array, ``data``, and what is in that."""
    values = np.random.default_rng(0).integers(0, 50, 2000).astype("f8")
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=values, chunks=(700,), **options)
    return values


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_shuffling_by_another_width_is_undone_as_hdf5_does(tmp_path: Path, itemsize: int) -> None:
    """The width is a parameter of the filter, which nearly always is that of the type."""
    path = tmp_path / "odd.h5"
    values = one_filtered(path, compression="gzip", shuffle=True)
    spoil(path, b"shuffle\0", 8, bytes([itemsize]))
    with h5py.File(path) as file:
        expected = file["data"][:]
        array = hdf5.array_source(file["data"], file.filename)
        table = raw_table(file["data"], array)
    assert array.raw == (itemsize == 8) == (table is not None) == np.array_equal(expected, values)
    with MemberReader(path, "data", array, table) as reader:
        assert_same_bits(read(reader, 0, 2000), expected)


def test_a_filter_whose_parameters_hdf5_refuses_is_refused(tmp_path: Path) -> None:
    """Gzip at level 99: HDF5 undoes no such thing, though its chunks could be inflated."""
    path = tmp_path / "odd.h5"
    one_filtered(path, compression="gzip")
    spoil(path, b"deflate\0", 8, bytes([99]))
    with h5py.File(path) as file:
        array = hdf5.array_source(file["data"], file.filename)
        assert not array.raw
        assert raw_table(file["data"], array) is None
    with (
        MemberReader(path, "data", array) as reader,
        pytest.raises(SourceError, match="data, elements 0 to 2000: cannot be read"),
    ):
        read(reader, 0, 2000)


@pytest.mark.parametrize(("length", "is_sampled"), [(2000, False), (1230, True)])
def test_chunks_that_hdf5_misses_are_read_or_refused(
    tmp_path: Path, length: int, is_sampled: bool
) -> None:
    """A key within the index is wrong by ten chunks; its leaves are not, and hold all there is."""
    path = tmp_path / "odd.h5"
    values = np.arange(1, length + 1)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=values, chunks=(10,), compression="gzip")
    root, key_bytes, child_bytes = b"TREE\x01\x01", 24, 8
    second = 24 + key_bytes + child_bytes + 8
    at = path.read_bytes().index(root) + second
    first = int.from_bytes(path.read_bytes()[at : at + 8], "little")
    spoil(path, root, second, (first + 100).to_bytes(8, "little"))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(
            np.flatnonzero(file["data"][:] == 0), range(first, first + 100)
        )
        array = hdf5.array_source(file["data"], file.filename)
        if is_sampled:
            with pytest.raises(SourceError, match="data, elements 610 to 620: cannot be read"):
                raw_table(file["data"], array)
            return
        table = raw_table(file["data"], array)
    with MemberReader(path, "data", array, table) as reader:
        np.testing.assert_array_equal(read(reader, 0, length), values)


def test_what_comes_out_otherwise_than_by_hdf5_is_left_to_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: three chunks are read in both ways before one of them is chosen."""
    with open_source(path) as file:
        array = source_of(file)
        assert raw_table(file["X/data"], array) is not None
        monkeypatch.setattr(hdf5, "_inflate", lambda *_what: bytes(array.chunk_length * 4))
        assert raw_table(file["X/data"], array) is None


@pytest.mark.parametrize("apart", [False, True])
def test_every_chunk_is_fetched_ahead_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """In few calls where chunks lie together; one by one where another array lies between."""
    with h5py.File(tmp_path / "long.h5", "w") as file:
        data = file.create_dataset("data", (10_000,), "f8", chunks=(1000,), compression="gzip")
        for start in range(0, 10_000, 1000):
            data[start : start + 1000] = np.random.default_rng(start).random(1000)
            data.id.flush()
            if apart:
                file[f"between/{start}"] = np.ones(5000)
        array = hdf5.array_source(data, file.filename)
        table = chunk_table(data)
    told: list[tuple[int, int]] = []
    piece_bytes = int(table["stored_bytes"].max()) * 3  # a few chunks ahead
    monkeypatch.setattr(hdf5.memory, "READ_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(hdf5, "will_need", lambda _file, *where: told.append(where))
    with MemberReader(tmp_path / "long.h5", "data", array, table) as reader:
        for first, _piece in reader.pieces(0, 10_000):
            offset, size = table[first // 1000].tolist()
            assert any(start <= offset and offset + size <= start + n for start, n in told)
    assert (len(told) > 5) is apart


def test_a_chunk_that_skipped_its_filters_is_left_to_hdf5(path: Path) -> None:
    """Its filter mask says so; then there is no table, and HDF5 reads it right."""
    raw = np.arange(7, dtype="f4")
    with h5py.File(path, "r+") as file:
        file["X/data"].id.write_direct_chunk((7,), raw.tobytes(), filter_mask=1)
    with open_source(path) as file:
        assert chunk_table(file["X/data"]) is None
        with MemberReader(path, "X/data", source_of(file)) as reader:
            np.testing.assert_array_equal(read(reader, 7, 14), raw)


def test_all_matrices_are_found_by_name(directory: Path) -> None:
    """X, layers in order, raw/X with its own var; what is not CSR is left out."""
    x, wide = csr_from_rows([[0, 2], [1]], 3, np.ones(3)), csr_from_rows([[4], []], 5, np.ones(1))
    path = write_h5ad(directory / "all.h5ad", {"X": x, "layers/b": x, "layers/a": x, "raw/X": wide})
    with h5py.File(path, "r+") as file:
        file["layers/dense"] = np.ones((2, 3))
        file["layers"].copy("a", "csc")
        file["layers/csc"].attrs["encoding-type"] = "csc_matrix"
        replace("layers/csc/indptr", [0, 1, 2, 3])(file)
    with open_source(path) as file:
        found = {source.name: source for source in csr_matrices(file)}
        assert list(found) == ["X", "raw/X", "layers/a", "layers/b"]
        assert matrix_format(file["layers/csc"]) == "csc"
        assert matrix_format(file["layers/dense"]) is None
    assert (found["raw/X"].n_obs, found["raw/X"].n_vars, found["raw/X"].nnz) == (2, 5, 1)
    assert found["X"].data == ArraySource("<f8", 3, 0, 24, (), raw=True)


@pytest.mark.parametrize("legacy", [False, True])
def test_old_and_new_files_say_the_same(directory: Path, legacy: bool) -> None:
    """Compound data frames and h5sparse attributes are understood as their successors."""
    matrix = csr_from_rows([[0, 2], [1]], 3, np.ones(3))
    path = write_h5ad(directory / "legacy.h5ad", matrix, Storage(legacy=legacy))
    with open_source(path) as file:
        (source,) = csr_matrices(file)
        assert (axis_length(file, "obs"), axis_length(file, "var")) == (2, 3)
    assert (source.n_obs, source.n_vars, source.nnz, source.indptr_dtype) == (2, 3, 3, "<i8")


def test_the_old_name_of_raw_is_understood(directory: Path) -> None:
    """``raw.X`` beside ``raw.var`` is ``raw/X``, read from where it lies."""
    x, wide = csr_from_rows([[0, 2], [1]], 3, np.ones(3)), csr_from_rows([[4], []], 5, np.ones(1))
    path = write_h5ad(directory / "rawdot.h5ad", {"X": x, "raw.X": wide}, Storage(legacy=True))
    with h5py.File(path, "r+") as file:
        file["raw.var"] = np.zeros(5, [("index", "S3")])
    with open_source(path) as file:
        raw = csr_matrices(file)[1]
    assert (raw.name, raw.path, raw.n_vars) == ("raw/X", "raw.X", 5)


def test_a_categorical_index_has_a_length(path: Path) -> None:
    """The index of a data frame may be a group of codes and categories."""
    with h5py.File(path, "r+") as file:
        del file["obs/_index"]
        file["obs/_index/codes"] = np.zeros(6, "i1")
        assert axis_length(file, "obs") == 6
        assert axis_length(file, "nothing") is None


@given(st.lists(st.integers(0, 5), max_size=20), st.sampled_from(["i4", "u2", ">i8"]))
def test_row_ends_are_those_of_indptr(directory: Path, row_nnz: list[int], dtype: str) -> None:
    """Whatever its type; the longest row is found, and slabs can be had again."""
    matrix = random_csr(np.random.default_rng(0), (len(row_nnz), 3), np.array(row_nnz, int), "f4")
    path = write_h5ad(directory / "rows.h5ad", matrix, Storage(indptr_dtype=dtype))
    with open_source(path) as file:
        rows = row_index(file, csr_matrices(file)[0])
        assert rows.longest_row_nnz == max(row_nnz, default=0)
        for _ in range(2):
            ends = np.concatenate([np.empty(0, np.int64), *rows.row_ends()])
            np.testing.assert_array_equal(ends, matrix.indptr[1:])


def replace(name: str, array: Any) -> Callable[[h5py.File], None]:
    """A change of a file: another array in the place of one."""

    def spoil(file: h5py.File) -> None:
        del file[name]
        file[name] = array

    return spoil


def set_attribute(name: str, key: str, value: Any) -> Callable[[h5py.File], None]:
    """A change of a file: another value of an attribute."""
    return lambda file: file[name].attrs.__setitem__(key, value)


SPOILT: dict[str, tuple[Callable[[h5py.File], None], list[str]]] = {
    "no obs": (lambda file: file.__delitem__("obs"), ["obs"]),
    "no data": (lambda file: file.__delitem__("X/data"), ["X/data", "one-dimensional"]),
    "two-dimensional": (
        replace("X/indices", np.zeros((20, 1), "i4")),
        ["X/indices", "one-dimensional"],
    ),
    "no shape": (lambda file: file["X"].attrs.__delitem__("shape"), ["X", "shape", "None"]),
    "odd shape": (set_attribute("X", "shape", [6]), ["X", "shape", "[6]"]),
    "float indices": (replace("X/indices", np.zeros(20)), ["X/indices", "float64", "integer"]),
    "float indptr": (replace("X/indptr", np.zeros(7)), ["X/indptr", "float64", "integer"]),
    "text": (replace("X/data", np.full(20, b"a")), ["X/data", "S1"]),
    "unequal members": (replace("X/data", np.zeros(19, "f4")), ["X", "19", "20"]),
    "short indptr": (replace("X/indptr", np.zeros(4, "i8")), ["X/indptr", "4", "7"]),
    "looks like CSC": (replace("X/indptr", np.zeros(6, "i8")), ["X/indptr", "CSC"]),
    "not from 0": (replace("X/indptr", [1, 3, 11, 13, 18, 20, 20]), ["X/indptr[0]", "1"]),
    "descends": (
        replace("X/indptr", [0, 3, 11, 10, 18, 20, 20]),
        ["X/indptr[3]", "10", "11", "row 2"],
    ),
    "negative": (replace("X/indptr", [0, 3, -1, 13, 18, 20, 20]), ["X/indptr[2]", "-1", "row 1"]),
    "ends early": (replace("X/indptr", [0, 3, 11, 13, 18, 19, 19]), ["X/indptr", "19", "20"]),
    "no encoding": (
        lambda file: file["X"].attrs.__delitem__("encoding-type"),
        ["X", "''", "'csr_matrix'"],
    ),
    "an old format that is none": (
        lambda file: file["X"].attrs.update({"encoding-type": "", "h5sparse_format": "coo"}),
        ["X", "''", "no matrix"],
    ),
    "a mapping": (set_attribute("X", "encoding-type", "dict"), ["X", "'dict'", "'csr_matrix'"]),
    "a data frame": (set_attribute("X", "encoding-type", "dataframe"), ["X", "'dataframe'"]),
    "a newer version": (set_attribute("X", "encoding-version", "0.2.0"), ["X", "0.2.0", "0.1.0"]),
    "no version": (
        lambda file: file["X"].attrs.__delitem__("encoding-version"),
        ["X", "''", "0.1.0"],
    ),
    "a layer that is a mapping": (
        lambda file: file.create_group("layers/odd").create_dataset("data", data=1),
        ["layers/odd", "no matrix"],
    ),
    "too few obs": (set_attribute("X", "shape", [6, 4]), ["X", "4", "var", "5"]),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_refused_by_name(path: Path, case: str) -> None:
    """Typed, naming data set, position, value and what it should be."""
    spoil, words = SPOILT[case]
    with h5py.File(path, "r+") as file:
        spoil(file)
    with open_source(path) as file, pytest.raises(SourceError) as caught:  # noqa: PT012
        for source in csr_matrices(file):
            row_index(file, source)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_fault_in_a_later_slab_of_indptr_is_placed_right(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descent across a border of slabs is found, with its true position."""
    monkeypatch.setattr("dask_convert.files.h5ad.INDPTR_SLAB_ROWS", 2)
    with h5py.File(path, "r+") as file:
        replace("X/indptr", [0, 3, 11, 10, 18, 20, 20])(file)
    with (
        open_source(path) as file,
        pytest.raises(SourceError, match=r"indptr\[3\] is 10, less than the 11"),
    ):
        row_index(file, csr_matrices(file)[0])


@pytest.mark.parametrize("content", [None, b"", b"not HDF5 at all", "directory"])
def test_what_is_no_hdf5_file_is_refused_by_name(
    tmp_path: Path, content: bytes | str | None
) -> None:
    """Missing, empty, foreign, a directory."""
    path = tmp_path / "source.h5ad"
    if content == "directory":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(SourceError, match=r"source\.h5ad"):
        open_source(path)


def test_a_file_that_is_being_written_is_refused_by_name(path: Path) -> None:
    """It is not damaged, and may be whole later."""
    code = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(StorageError, match="has it open for writing"):
            open_source(path)
        writer.communicate(b"\n")


def damaged(path: Path, chunk: int, content: bytes, offset: int = 0) -> None:
    """Overwrite bytes of one chunk of X/data."""
    with h5py.File(path) as file:
        at = int(chunk_table(file["X/data"])["offset"][chunk])
    with path.open("r+b") as raw:
        raw.seek(at + offset)
        raw.write(content)


@pytest.mark.parametrize(
    "filters", ["gzip", "shuffle+gzip", "gzip+fletcher32", "blosc", "zstd", "lzf", "fletcher32"]
)
def test_a_damaged_chunk_is_refused_by_either_way(directory: Path, filters: str) -> None:
    """An inflater that cannot go on, or a checksum that differs, is typed and placed."""
    rng = np.random.default_rng(0)
    matrix = random_csr(rng, (4, 50), [50] * 4, "f8", "counts")
    path = write_h5ad(directory / "damaged.h5ad", matrix, Storage(100, filters))
    with open_source(path) as file:
        array, table = source_of(file), chunk_table(file["X/data"])
    damaged(path, 1, b"\xff" * 24, 8 if filters == "blosc" else 0)
    for candidate in [None, table] if array.raw else [None]:
        with MemberReader(path, "X/data", array, candidate) as reader:
            np.testing.assert_array_equal(read(reader, 0, 100), matrix.data[:100])
            with pytest.raises(SourceError, match=r"X/data.*(from 100|at 100|90 to 150)"):
                read(reader, 90, 150)


@pytest.mark.parametrize("storage", [Storage(), Storage(7), Storage(7, "gzip")])
def test_a_file_cut_short_is_refused(path: Path, tmp_path: Path, storage: Storage) -> None:
    """Reading past the end of the file names the data set."""
    matrix = random_csr(np.random.default_rng(0), (6, 5), [3, 0, 8, 2, 5, 2], "f4")
    path = write_h5ad(tmp_path / "short.h5ad", matrix, storage)
    with open_source(path) as file:
        array, table = source_of(file), chunk_table(file["X/data"])
        assert table is not None
        last = int(table["offset"].max() + 1)
    with path.open("r+b") as raw:
        raw.truncate(last)
    with (
        MemberReader(path, "X/data", array, table) as reader,
        pytest.raises(SourceError, match=r"X/data.*cut short"),
    ):
        read(reader, 0, 20)


@pytest.mark.parametrize("filters", ["none", "gzip", "lzf", "blosc"])
def test_chunks_that_were_never_written_are_refused_by_either_way(path: Path, filters: str) -> None:
    """HDF5 would read zeros where values are missing; neither way does."""
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        file.create_dataset("X/data", (20,), "f4", chunks=(7,), **FILTERS[filters])[:7] = 1
    with pytest.raises(AdmissionError, match="X/data: 2 of its 3 chunks were never written"):
        open_source(path)
    with reopen_source(path) as file:
        array, table = source_of(file), chunk_table(file["X/data"])
    for candidate in [None, table] if array.raw else [None]:
        with pytest.raises(SourceError, match=r"X/data.*never written"):
            read_all(path, "X/data", array, candidate)


def test_a_contiguous_data_set_that_was_never_written_is_refused(path: Path) -> None:
    """It has a length but no place in the file."""
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        file.create_dataset("X/data", (20,), "f4")
    with pytest.raises(AdmissionError, match="X/data: was never written"):
        open_source(path)
    with reopen_source(path) as file:
        array = source_of(file)
    with pytest.raises(SourceError, match=r"X/data.*never written"):
        read_all(path, "X/data", array)


def test_other_homes_of_data_are_left_to_hdf5(path: Path, tmp_path: Path) -> None:
    """Virtual, external and compact data sets, and files with a user block, are not read raw."""
    values = np.arange(20, dtype="f4")
    trust = Trust((str(tmp_path),))
    with h5py.File(tmp_path / "elsewhere.h5", "w") as file:
        file["values"] = values
        layout = h5py.VirtualLayout((20,), "f4")
        layout[:] = h5py.VirtualSource(file["values"])
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        file["X"].create_virtual_dataset("data", layout)
    assert len(read_both_ways(path, 3, 17, trust=trust)) == 1
    assert_same_bits(read_both_ways(path, 3, 17, trust=trust)[0], values[3:17])

    with h5py.File(path, "r+") as file:
        del file["X/data"]
        external = [(str(tmp_path / "raw"), 0, 80)]
        file["X"].create_dataset("data", (20,), "f4", external=external)[:] = values
    assert len(read_both_ways(path, 3, 17, trust=trust)) == 1
    assert_same_bits(read_both_ways(path, 3, 17, trust=trust)[0], values[3:17])

    with_block = tmp_path / "block.h5ad"
    with h5py.File(path) as file, h5py.File(with_block, "w", userblock_size=512) as copy:
        for name in ("X", "obs", "var"):
            file.copy(name, copy)
        write_member(copy["X"], "other", values, Storage())
        del copy["X/data"]
        copy["X"].move("other", "data")
    assert len(read_both_ways(with_block, 3, 17)) == 1
    assert_same_bits(read_both_ways(with_block, 3, 17)[0], values[3:17])


def test_numbers_of_odd_widths_are_read_right(path: Path) -> None:
    """HDF5 knows types that numpy has no equal of; they are not taken for their neighbours."""
    values = np.arange(20, dtype="i4")
    odd = h5py.h5t.STD_I32LE.copy()
    odd.set_precision(20)
    odd.set_offset(8)
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        space = h5py.h5s.create_simple((20,))
        h5py.h5d.create(file["X"].id, b"data", odd, space).write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    for result in read_both_ways(path, 0, 20):
        np.testing.assert_array_equal(result, values)


def test_entries_beyond_32_bits_are_read_from_their_place(tmp_path: Path) -> None:
    """Five billion entries, only one chunk of which is in the file."""
    length, chunk = 5_000_000_000, 2**22
    number = 2**32 // chunk + 3
    values = np.arange(chunk, dtype="u2")
    with h5py.File(tmp_path / "long.h5", "w") as file:
        dataset = file.create_dataset("data", (length,), "u2", chunks=(chunk,), compression="gzip")
        dataset[number * chunk : (number + 1) * chunk] = values
        file.flush()
        table = chunk_table(dataset)
        array = ArraySource(
            "<u2", length, chunk, dataset.id.get_storage_size(), ("gzip",), raw=True
        )
    start = number * chunk + 1000
    assert start > 2**32
    with MemberReader(tmp_path / "long.h5", "data", array, table) as reader:
        ((first, elements),) = reader.pieces(start, start + 5000)
        assert first == start
        assert_same_bits(elements, values[1000:6000])
        with pytest.raises(SourceError, match=str((number + 1) * chunk)):
            read(reader, start, (number + 1) * chunk + 1)


def test_a_missing_filter_is_named(path: Path) -> None:
    """A pipeline that this machine cannot undo is refused, not guessed."""
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((20,))
        properties.set_filter(300, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((20,))
        h5py.h5d.create(file["X"].id, b"data", h5py.h5t.IEEE_F32LE, space, properties)
        assert source_of(file).filters == ("300",)
    with pytest.raises(AdmissionError, match=r"X/data: HDF5 filter '300' is not on the list"):
        open_source(path)
    with pytest.raises(AdmissionError, match=r"X/data: HDF5 filter '300' is not available here"):
        open_source(path, Trust(allow_plugins=True))


def test_layouts_survive_json(path: Path) -> None:
    """What planning knows of a source can be written down and read again."""
    with open_source(path) as file:
        (source,) = csr_matrices(file)
    assert msgspec.json.decode(msgspec.json.encode(source), type=type(source)) == source
