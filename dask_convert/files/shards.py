"""The target's files of entries: chunks encoded, gathered into shards, each written once, whole.

Workers write these files themselves, and zarr-python, which writes the metadata that describes
them (see `dask_convert.files.zarr_csc`), is what tests read them with. That split is for speed and
memory: writing chunk by chunk needs one chunk of memory and no event loop.

    shard   [chunk 0][chunk 1]…[index: offset and size of every chunk, uint64][crc32c of the index]
    chunk   codec(elements, little-endian)[crc32c, in zarr v3]

The last chunk of an array is padded with zeros; chunks of the last shard that lie beyond the
end are marked absent in the index, as zarr's sharding specification has it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dask_convert.files.scratch import file_checksum, published, start_writeback, write_all
from dask_convert.planning.layout import Codec, Region, TargetFile, TargetLayout

ABSENT = 2**64 - 1

ZSTD_BLOCK_BYTES = 2**20
"""Bytes that blosc hands to zstd at once. Its own choice, made for caches, is far smaller: with
this one, whole default chunks, zstd takes two thirds of the time and yields fewer bytes."""

Encode = Callable[[NDArray[Any]], bytes]
Slice = Callable[[int, int], NDArray[Any]]


def blosc_shuffle(itemsize: int) -> int:
    """Bit planes for single bytes, byte planes for longer elements."""
    return int(blosc.BITSHUFFLE if itemsize == 1 else blosc.SHUFFLE)


def blosc_block_bytes(codec: Codec) -> int:
    """Size of the parts that blosc compresses by themselves; 0 leaves it the choice."""
    return ZSTD_BLOCK_BYTES if codec == "zstd" else 0


def chunk_encoder(layout: TargetLayout) -> Encode:
    """The function from a full chunk's elements to the bytes that are stored."""
    compress = _compressor(layout)
    if layout.zarr_format == 2:
        return compress

    def with_checksum(elements: NDArray[Any]) -> bytes:
        encoded = compress(elements)
        return encoded + struct.pack("<I", google_crc32c.value(encoded))

    return with_checksum


def write_region(
    target: Path,
    array: str,
    layout: TargetLayout,
    region: Region,
    elements: Slice,
    attempts: Path | None = None,
) -> list[TargetFile]:
    """Write all files of one array that a region covers.

    Parameters
    ----------
    target, array
        The store, and the zarr array's path within it.
    layout
        How it is cut and encoded.
    region
        Whole shards of it.
    elements
        Gives the region's elements ``[start, stop)``, counted from the region's start, in
        the target's type and little-endian.
    attempts
        See `scratch.published`.

    Returns
    -------
        What was written.
    """
    encode = chunk_encoder(layout)
    files = Path(array, "c") if layout.zarr_format == 3 else Path(array)
    for part in (*reversed(files.parents), files):  # a store that was cleared does not come back
        if part.parts:
            (target / part).mkdir(exist_ok=True)
    written = []
    for start in range(0, region.nnz, layout.shard_nnz):
        stop = min(start + layout.shard_nnz, region.nnz)
        number = (region.start_nnz + start) // layout.shard_nnz
        chunks = (
            encode(_full_chunk(elements(low, min(low + layout.chunk_nnz, stop)), layout.chunk_nnz))
            for low in range(start, stop, layout.chunk_nnz)
        )
        path = files / str(number)
        n_bytes, checksum = _write_shard(target / path, layout, chunks, attempts)
        written.append(TargetFile(str(path), n_bytes, checksum))
    return written


def is_intact(target: Path, file: TargetFile) -> bool:
    """Whether a file is there and as it was written; reads it, a few MiB at a time."""
    try:
        with Path(target, file.path).open("rb", buffering=0) as opened:
            if os.fstat(opened.fileno()).st_size != file.n_bytes:
                return False
            return file_checksum(opened, file.n_bytes) == file.crc32c
    except FileNotFoundError:
        return False


def _write_shard(
    path: Path, layout: TargetLayout, chunks: Iterator[bytes], attempts: Path | None
) -> tuple[int, int]:
    """Write one file; returns its length and checksum."""
    offset = checksum = 0
    index = np.full((layout.shard_nnz // layout.chunk_nnz, 2), ABSENT, "<u8")
    with published(path, "shard", attempts=attempts) as file:
        for number, chunk in enumerate(chunks):
            write_all(file, chunk)
            checksum = google_crc32c.extend(checksum, chunk)
            index[number] = (offset, len(chunk))
            offset += len(chunk)
        if layout.sharded:
            encoded = index.tobytes()
            for part in (encoded, struct.pack("<I", google_crc32c.value(encoded))):
                write_all(file, part)
                checksum = google_crc32c.extend(checksum, part)
                offset += len(part)
        start_writeback(file.fileno())
    return offset, int(checksum)


def _full_chunk(elements: NDArray[Any], length: int) -> NDArray[Any]:
    if elements.size == length:
        return elements
    padded = np.zeros(length, elements.dtype)
    padded[: elements.size] = elements
    return padded


def _compressor(layout: TargetLayout) -> Encode:
    level = layout.codec_level
    if layout.codec == "none":
        return lambda elements: elements.tobytes()
    if layout.codec == "gzip":
        gzip = numcodecs.GZip(level)
        return lambda elements: bytes(gzip.encode(elements))
    name, block = layout.codec.encode(), blosc_block_bytes(layout.codec)

    def compress(elements: NDArray[Any]) -> bytes:
        size = elements.itemsize
        bits = elements.view(np.uint8)  # types like bool and float16 have no buffer format
        shuffle = blosc_shuffle(size)
        return bytes(blosc.compress(bits, name, level, shuffle, blocksize=block, typesize=size))

    return compress
