"""A row block's fragments as bytes: what a split task leaves for the combine tasks.

One file per row block. Its head has a fixed size, known from the plan, so that a combine task
finds what it needs with one positioned read each: the column counts of its column ranges,
their table, and their fragments, which lie next to each other.

    0    magic, format version, crc32c of the rest of the head            16 bytes
    16   nnz, payload type                                                32 bytes
    48   counts   n_vars   × uint32    entries of each column in this block
    ..   table    n_ranges × (end of the fragment, its crc32c)            12 bytes each
    H    fragments, one per column range, blosc-lz4 over byte-shuffled records

A fragment's checksum covers its counts as well, so it can be trusted without reading the head
as a whole. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
import msgspec
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dask_convert.errors import FragmentError
from dask_convert.layout import FRAGMENT_FIXED_BYTES, FragmentLayout
from dask_convert.records import record_words, word_dtype

MAGIC = b"dcfrag\x00\x01"
_FIXED = struct.Struct("<8sI4xQ24s")
_UNCHECKED_BYTES = 16  # magic and checksum themselves
TABLE_DTYPE = np.dtype([("end", "<u8"), ("crc32c", "<u4")])

Records = NDArray[np.unsignedinteger[Any]]
Counts = NDArray[np.uint32]


class Head(msgspec.Struct, frozen=True):
    """The head of a fragment file, decoded.

    Attributes
    ----------
    nnz
        Entries of the row block.
    payload
        Type of the values in its records.
    counts
        Entries of each column; shape (n_vars,), uint32.
    table
        End offset (from the first fragment) and checksum of each fragment; shape (n_ranges,).
    """

    nnz: int
    payload: np.dtype[np.generic]
    counts: Counts
    table: NDArray[np.void]


def encode_head(layout: FragmentLayout, head: Head) -> bytes:
    """The head as bytes of length ``layout.head_bytes``."""
    body = (
        struct.pack("<Q24s", head.nnz, head.payload.str.encode())
        + head.counts.astype("<u4", copy=False).tobytes()
        + head.table.tobytes()
    )
    encoded = MAGIC + struct.pack("<I4x", google_crc32c.value(body)) + body
    if len(encoded) != layout.head_bytes:
        msg = f"head of {len(encoded)} bytes does not fit its layout of {layout.head_bytes}"
        raise FragmentError(msg)
    return encoded


def decode_head(layout: FragmentLayout, encoded: bytes, name: str) -> Head:
    """Read a head and check it.

    Raises
    ------
    FragmentError
        `encoded` is cut short, of another format, or damaged; `name` says whose it is.
    """
    if len(encoded) != layout.head_bytes:
        msg = f"{name}: head has {len(encoded)} bytes where {layout.head_bytes} belong"
        raise FragmentError(msg)
    nnz, payload = decode_fixed(encoded[:FRAGMENT_FIXED_BYTES], name)
    if google_crc32c.value(encoded[_UNCHECKED_BYTES:]) != struct.unpack_from("<I", encoded, 8)[0]:
        msg = f"{name}: the head's checksum does not match: the file was damaged"
        raise FragmentError(msg)
    counts = np.frombuffer(encoded, "<u4", layout.n_vars, layout.counts_offset)
    table = np.frombuffer(encoded, TABLE_DTYPE, layout.n_ranges, layout.table_offset)
    return Head(nnz, payload, counts, table)


def decode_fixed(encoded: bytes, name: str) -> tuple[int, np.dtype[Any]]:
    """Entries of the block and type of its values, from the first `FRAGMENT_FIXED_BYTES` of the head.

    Raises
    ------
    FragmentError
        They are no head of this version.
    """
    magic, _, nnz, payload = _FIXED.unpack(encoded)
    if magic != MAGIC:
        msg = f"{name}: not a fragment file of this version: it begins with {magic!r}"
        raise FragmentError(msg)
    return nnz, np.dtype(payload.rstrip(b"\x00").decode())


def encode_fragments(records: Records, counts: Counts, column_width: int) -> Iterator[bytes]:
    """Compress the records of each column range in turn.

    Parameters
    ----------
    records
        All records of the block, column after column; shape (nnz,) or (nnz, words).
    counts
        Entries of each column.
    column_width
        Columns per range.
    """
    start = 0
    for column in range(0, counts.size, column_width):
        stop = start + int(counts[column : column + column_width].sum(dtype=np.int64))
        yield _compress(records[start:stop])
        start = stop


def fragment_checksum(counts: Counts, encoded: bytes | memoryview) -> int:
    """crc32c over the counts of a fragment's columns and its compressed records."""
    return int(google_crc32c.extend(google_crc32c.value(counts.tobytes()), bytes(encoded)))


def decode_fragment(
    encoded: bytes | memoryview, counts: Counts, checksum: int, payload: np.dtype[np.generic], name: str
) -> Records:
    """The records of one fragment, checked against its checksum and its counts.

    Raises
    ------
    FragmentError
        Something differs; `name` says where.
    """
    if fragment_checksum(counts, encoded) != checksum:
        msg = f"{name}: the checksum does not match: the file was damaged or cut short"
        raise FragmentError(msg)
    words = np.frombuffer(blosc.decompress(encoded) if encoded else b"", word_dtype(payload))
    records = words if record_words(payload) == 1 else words.reshape(-1, record_words(payload))
    if len(records) != int(counts.sum(dtype=np.int64)):
        msg = f"{name}: {len(records)} records where the counts say {counts.sum()}"
        raise FragmentError(msg)
    return records


def _compress(records: Records) -> bytes:
    if not records.size:
        return b""
    width = records.itemsize if records.ndim == 1 else records.itemsize * records.shape[1]
    encoded: bytes = blosc.compress(
        records.reshape(-1).view(np.uint8), b"lz4", 1, blosc.SHUFFLE, typesize=width
    )
    return encoded


