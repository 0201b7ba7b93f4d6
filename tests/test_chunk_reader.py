"""Chunks of stored arrays: the direct way gives what zarr-python gives, or a typed error."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_same_bits
from strategies import DTYPES, random_values, share
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from dask_convert.chunks.chunk_reader import ChunkReader
from dask_convert.errors import DamagedStoreError, StoreError

V3_CODECS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "crc32c": (Crc32cCodec(),),
    "zstd": (ZstdCodec(level=0),),
    "zstd+checksum": (ZstdCodec(level=3, checksum=True), Crc32cCodec()),
    "blosc": (BloscCodec(cname="lz4"), Crc32cCodec()),
    "blosc-bits": (BloscCodec(cname="zstd", shuffle="bitshuffle"),),
    "gzip": (GzipCodec(level=1), Crc32cCodec()),
    "two": (GzipCodec(level=1), ZstdCodec(level=1)),
}
V2_CODECS = {
    "none": None,
    "blosc": numcodecs.Blosc("lz4"),
    "zstd": numcodecs.Zstd(1),
    "gzip": numcodecs.GZip(1),
    "zlib": numcodecs.Zlib(1),
    "bz2": numcodecs.BZ2(1),
    "lz4": numcodecs.LZ4(),
}
UNKNOWN_V2 = {"filters": (numcodecs.Delta("<i4"),)}


@st.composite
def stored(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any]]:
    """Elements, and any way of storing them that a matrix can come in."""
    dtype = draw(st.sampled_from(DTYPES))
    size = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    elements = random_values(rng, size, dtype, "bits")
    chunk = draw(st.integers(1, 25))
    options: dict[str, Any] = {"chunks": (chunk,), "config": {"write_empty_chunks": True}}
    if draw(st.booleans()):
        compressor = V2_CODECS[draw(st.sampled_from(sorted(V2_CODECS)))]
        big = draw(st.booleans()) and elements.dtype.itemsize > 1
        elements = elements.astype(elements.dtype.newbyteorder(">")) if big else elements
        return elements, {**options, "zarr_format": 2, "compressors": compressor}
    codecs = V3_CODECS[draw(st.sampled_from(sorted(V3_CODECS)))]
    endian = draw(st.sampled_from(["little", "big"]))
    serializer: Any = BytesCodec(endian=endian)
    options |= {"zarr_format": 3, "filters": (), "compressors": codecs, "serializer": serializer}
    if draw(st.booleans()):
        where = draw(st.sampled_from(["start", "end"]))
        sharding = ShardingCodec(
            chunk_shape=(chunk,), codecs=(serializer, *codecs), index_location=where
        )
        options |= {"chunks": (chunk * draw(st.integers(1, 4)),), "compressors": ()}
        options["serializer"] = sharding
    return elements, options


def write(store: Any, elements: np.ndarray, options: dict[str, Any]) -> zarr.Array:
    array = zarr.create_array(
        store, name="a", shape=elements.shape, dtype=elements.dtype, **options
    )
    if elements.size:
        array[:] = elements
    return zarr.open_array(store, path="a", mode="r")


@settings(max_examples=share(200))
@given(stored(), st.booleans(), st.booleans(), st.data())
def test_both_ways_give_what_was_stored(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[np.ndarray, dict[str, Any]],
    local: bool,
    direct: bool,
    data: st.DataObject,
) -> None:
    """Every type, codec, cut and byte order; files and stores of zarr; whole and in part."""
    elements, options = case
    store = LocalStore(tmp_path_factory.mktemp("any")) if local else MemoryStore()
    array = write(store, elements, options)
    reader = ChunkReader(array, "a", direct=direct)
    native = elements.astype(elements.dtype.newbyteorder("="))
    assert_same_bits(reader.all_elements(), native)
    assert (reader.layout.steps is not None) == direct
    length = reader.layout.chunk_length
    start, stop = sorted(data.draw(st.integers(0, elements.size)) for _ in range(2))
    part = reader.elements(start, stop)
    assert_same_bits(part, native[start:stop])
    assert part.flags.writeable  # kernels are compiled for what can be written to
    numbers = list(range(0, -(-elements.size // length), 2))
    if local:
        reader = pickle.loads(pickle.dumps(reader))  # noqa: S301  # it travels to workers so
    found = dict(reader.read(numbers))
    assert sorted(found) == numbers
    for number, chunk in found.items():
        wanted = native[number * length : (number + 1) * length]
        assert_same_bits(np.asarray(chunk[: wanted.size], reader.dtype), wanted)


def test_codecs_that_are_not_known_are_left_to_zarr() -> None:
    """A filter, or a codec of an extension: right all the same."""
    elements = np.arange(30, dtype="<i4")
    array = write(MemoryStore(), elements, {"chunks": (7,), "zarr_format": 2, **UNKNOWN_V2})
    reader = ChunkReader(array, "a")
    assert reader.layout.steps is None
    assert_same_bits(reader.all_elements(), elements)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "i8", "?"])
def test_format_2_may_have_no_fill_value(tmp_path: Path, direct: bool, dtype: str) -> None:
    """What is missing is zero then, as zarr-python has it."""
    options: dict[str, Any] = {"chunks": (3,), "zarr_format": 2, "fill_value": None}
    array = write(LocalStore(tmp_path), np.ones(7, dtype), options)
    (tmp_path / "a" / "1").unlink()
    assert array.fill_value is None
    found = ChunkReader(array, "a", fill_missing=True, direct=direct).all_elements()
    assert_same_bits(found, array[:])


def test_blosc_around_another_codec_is_left_to_zarr() -> None:
    """Only of the elements themselves it is known how large blosc's content must be."""
    elements = np.arange(30, dtype="<i4")
    codecs = (GzipCodec(level=1), BloscCodec())
    array = write(MemoryStore(), elements, {"chunks": (7,), "compressors": codecs})
    reader = ChunkReader(array, "a")
    assert reader.layout.steps is None
    assert_same_bits(reader.all_elements(), elements)


def sharded(directory: Path, codecs: tuple[Any, ...] = (Crc32cCodec(),)) -> zarr.Array:
    """Thirty elements in chunks of five, three to a file."""
    options = {"chunks": (5,), "shards": (15,), "compressors": codecs}
    elements = np.arange(1, 31, dtype="f4")
    return write(LocalStore(directory), elements, {**options, "zarr_format": 3})


def read_all(array: zarr.Array, **options: Any) -> np.ndarray:
    return ChunkReader(array, "X/data", **options).all_elements()


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("codec", ["crc32c", "blosc", "gzip"])
def test_every_flipped_byte_is_an_error(tmp_path: Path, codec: str, direct: bool) -> None:
    """In chunks and in the index of the shard."""
    array = sharded(tmp_path, V3_CODECS[codec])
    path = tmp_path / "a" / "c" / "1"
    content = path.read_bytes()
    for position in range(0, len(content), 1 if direct else 7):
        damaged = bytearray(content)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(DamagedStoreError, match=r"of X/data .*file c/1"):
            read_all(array, direct=direct)


@pytest.mark.parametrize("direct", [True, False])
def test_a_missing_file_and_a_file_cut_short_are_errors(tmp_path: Path, direct: bool) -> None:
    """Where zarr would read zeros; at every length of the file."""
    array = sharded(tmp_path)
    path = tmp_path / "a" / "c" / "0"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedStoreError):
            read_all(array, direct=direct)
    path.unlink()
    assert array[3] == 0
    with pytest.raises(DamagedStoreError, match=r"chunk 0 of X/data .*is missing.*missing='zeros'"):
        read_all(array, direct=direct)
    found = read_all(array, direct=direct, fill_missing=True)
    np.testing.assert_array_equal(found, [*[0] * 15, *range(16, 31)])


@pytest.mark.parametrize("direct", [True, False])
def test_a_chunk_that_a_writer_left_out_is_an_error_unless_allowed(
    tmp_path: Path, direct: bool
) -> None:
    """Within a shard, and as a file."""
    elements = np.array([0] * 5 + [1] * 5 + [0] * 10, "f4")
    for number, shards in enumerate([(10,), None]):
        store = LocalStore(tmp_path / str(number))
        array = write(store, elements, {"chunks": (5,), "shards": shards, "zarr_format": 3})
        with pytest.raises(DamagedStoreError, match="is missing"):
            read_all(array, direct=direct)
        np.testing.assert_array_equal(read_all(array, direct=direct, fill_missing=True), elements)


@pytest.mark.parametrize("codec", sorted(set(V2_CODECS) - {"none"}))
def test_damage_that_a_codec_notices_is_typed(tmp_path: Path, codec: str) -> None:
    """Whatever a codec raises, and a chunk that decodes to another length."""
    elements = np.arange(40, dtype="f8")
    options = {"chunks": (40,), "zarr_format": 2, "compressors": V2_CODECS[codec]}
    array = write(LocalStore(tmp_path), elements, options)
    path = tmp_path / "a" / "0"
    for content in (path.read_bytes()[:-9], b"", b"\x00" * 50, V2_CODECS[codec].encode(b"12345")):
        path.write_bytes(content)
        with pytest.raises(DamagedStoreError, match="chunk 0 of X/data"):
            read_all(array)


def test_shards_that_cannot_be_looked_into_are_refused(tmp_path: Path) -> None:
    """An index without its checksum, say: the message says what would do."""
    sharding = ShardingCodec(chunk_shape=(5,), codecs=(BytesCodec(),), index_codecs=(BytesCodec(),))
    options: dict[str, Any] = {"chunks": (15,), "serializer": sharding, "compressors": ()}
    array = write(LocalStore(tmp_path), np.arange(30.0), {**options, "zarr_format": 3})
    with pytest.raises(StoreError, match="index of its shards"):
        ChunkReader(array, "X/data")


def test_two_axes_are_refused(tmp_path: Path) -> None:
    """No member of a sparse matrix has them."""
    array = zarr.create_array(LocalStore(tmp_path), shape=(3, 3), dtype="f4")
    with pytest.raises(StoreError, match="2 axes"):
        ChunkReader(array, "X/data")


class Recording:
    """A source that notes what is read and what is expected: key, first and last byte."""

    remote = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.read: list[tuple[str, int, int | None]] = []
        self.expected: list[tuple[str, int, int | None]] = []

    def whole(self, key: str) -> Any:
        """All of a file."""
        self.read.append((key, 0, None))
        return self.inner.whole(key)

    def part(self, key: str, start: int, stop: int) -> Any:
        """Some bytes."""
        self.read.append((key, start, stop))
        return self.inner.part(key, start, stop)

    def tail(self, key: str, n_bytes: int) -> Any:
        """The last bytes."""
        self.read.append((key, -n_bytes, None))
        return self.inner.tail(key, n_bytes)

    def expect(self, key: str, start: int, stop: int | None) -> None:
        """What will be read soon."""
        self.expected.append((key, start, stop))
        self.inner.expect(key, start, stop)


def test_neighbours_are_fetched_at_once(tmp_path: Path) -> None:
    """One read per run of chunks in a file, one per index; counted."""
    reader = ChunkReader(sharded(tmp_path), "a")
    reader._source = source = Recording(reader._source)
    assert reader.groups([0, 1, 2, 3, 5]) == [[0, 1, 2], [3], [5]]
    for group in reader.groups([0, 1, 2, 3, 5]):
        list(reader.read(group))
    tail = -(3 * 16 + 4)
    assert source.read == [
        ("c/0", tail, None),
        ("c/0", 0, 72),
        ("c/1", tail, None),
        ("c/1", 0, 24),
        ("c/1", 48, 72),
    ]


@given(stored())
def test_what_is_expected_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[np.ndarray, dict[str, Any]]
) -> None:
    """Indexes and chunks of every layout, byte for byte, and nothing else."""
    elements, options = case
    array = write(LocalStore(tmp_path_factory.mktemp("any")), elements, options)
    reader = ChunkReader(array, "a")
    reader._source = source = Recording(reader._source)
    numbers = list(range(0, -(-elements.size // reader.layout.chunk_length), 2))
    reader.expect_indexes(numbers)
    for group in reader.groups(numbers):
        reader.expect(group)
        list(reader.read(group))
    assert sorted(source.expected) == sorted(source.read)
    reader.expect_indexes(numbers)
    assert sorted(source.expected) == sorted(source.read)


def test_far_away_nothing_is_expected(tmp_path: Path) -> None:
    """To find out where a chunk lies would be one more wait, before the threads begin."""
    reader = ChunkReader(sharded(tmp_path), "a")
    reader._source = source = Recording(reader._source)
    source.remote = True
    reader.expect_indexes([0, 4])
    reader.expect([0])
    assert (source.expected, source.read) == ([], [])


def test_what_is_missing_is_told_of_when_it_is_read(tmp_path: Path) -> None:
    """Not before: nobody may come to read it."""
    array = sharded(tmp_path)
    for path in tmp_path.glob("a/c/*"):
        path.unlink()
    reader = ChunkReader(array, "X/data")
    reader.expect_indexes([0, 4])
    reader.expect([0])
    with pytest.raises(DamagedStoreError, match="missing"):
        list(reader.read([0]))
