"""The target's files of entries: chunks encoded, gathered into shards, each written once, whole.

Workers write these files themselves, and zarr-python, which writes the metadata that describes
them (see `dask_convert.zarr_csc`), is what tests read them with. That split is for speed and
memory: writing chunk by chunk needs one chunk of memory and no event loop.

    shard   [chunk 0][chunk 1]…[index: offset and size of every chunk, uint64][crc32c of the index]
    chunk   codec(elements, little-endian)[crc32c, in zarr v3]

The last chunk of an array is padded with zeros; chunks of the last shard that lie beyond the
end are marked absent in the index, as zarr's sharding specification has it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dask_convert.layout import Region, TargetLayout
from dask_convert.scratch import published, write_all

ABSENT = 2**64 - 1

Encode = Callable[[NDArray[Any]], bytes]
Slice = Callable[[int, int], NDArray[Any]]


def blosc_shuffle(itemsize: int) -> int:
    """Bit planes for single bytes, byte planes for longer elements."""
    return int(blosc.BITSHUFFLE if itemsize == 1 else blosc.SHUFFLE)


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
    array_directory: Path, layout: TargetLayout, region: Region, elements: Slice
) -> int:
    """Write all files of one array that a region covers.

    Parameters
    ----------
    array_directory
        The zarr array.
    layout
        How it is cut and encoded.
    region
        Whole shards of it.
    elements
        Gives the region's elements ``[start, stop)``, counted from the region's start, in
        the target's type and little-endian.

    Returns
    -------
        Bytes written.
    """
    encode = chunk_encoder(layout)
    files = array_directory / "c" if layout.zarr_format == 3 else array_directory
    files.mkdir(parents=True, exist_ok=True)
    written = 0
    for start in range(0, region.nnz, layout.shard_nnz):
        stop = min(start + layout.shard_nnz, region.nnz)
        number = (region.start_nnz + start) // layout.shard_nnz
        chunks = (
            encode(_full_chunk(elements(low, min(low + layout.chunk_nnz, stop)), layout.chunk_nnz))
            for low in range(start, stop, layout.chunk_nnz)
        )
        written += _write_shard(files / str(number), layout, chunks)
    return written


def _write_shard(path: Path, layout: TargetLayout, chunks: Iterator[bytes]) -> int:
    with published(path) as file:
        if not layout.sharded:
            (only,) = chunks
            write_all(file, only)
            return len(only)
        index = np.full((layout.shard_nnz // layout.chunk_nnz, 2), ABSENT, "<u8")
        offset = 0
        for number, chunk in enumerate(chunks):
            write_all(file, chunk)
            index[number] = (offset, len(chunk))
            offset += len(chunk)
        encoded = index.tobytes()
        write_all(file, encoded + struct.pack("<I", google_crc32c.value(encoded)))
        return offset + len(encoded) + 4


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
    name = layout.codec.encode()

    def compress(elements: NDArray[Any]) -> bytes:
        size = elements.itemsize
        bits = elements.view(np.uint8)  # types like bool and float16 have no buffer format
        return bytes(blosc.compress(bits, name, level, blosc_shuffle(size), typesize=size))

    return compress
