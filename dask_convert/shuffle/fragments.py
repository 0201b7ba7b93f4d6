"""A row block's fragments as bytes: what a split task leaves for the combine tasks.

One file per row block. Its head has a fixed size, known from the plan, so that a combine task
finds what it needs with one positioned read each: the column counts of its column ranges,
their table, and their fragments, which lie next to each other.

    0    magic, format version, crc32c of the rest of the head            16 bytes
    16   nnz, pages, payload type                                         32 bytes
    48   counts   n_vars   × uint32    entries of each column in this block
    ..   table    n_ranges × (end of the fragment, its crc32c)            12 bytes each
    H    fragments, one per column range

    of words   blosc-lz4 over byte-shuffled words
    paged      number of escapes, their places and values, page counts, records; not compressed

A fragment's checksum covers its counts, pages and payload type as well, so it can be trusted
without reading the head as a whole. Numbers are little-endian.
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
from dask_convert.planning.dtypes import SUPPORTED
from dask_convert.planning.layout import FRAGMENT_FIXED_BYTES, FragmentLayout
from dask_convert.planning.records import Records, record_words, word_dtype
from dask_convert.shuffle.pages import PagedRecords

MAGIC = b"dcfrag\x00\x01"
_FIXED = struct.Struct("<8sI4xQI20s")
_ALIGNMENT = 8
_UNCHECKED_BYTES = 16  # magic and checksum themselves
_KIND = struct.Struct("<I20s")
_PAYLOADS = {np.dtype(code).str.encode(): np.dtype(code) for code in SUPPORTED}
TABLE_DTYPE = np.dtype([("end", "<u8"), ("crc32c", "<u4")])

Counts = NDArray[np.uint32]
Part = bytes | NDArray[np.uint8]
RecordKind = tuple[int, np.dtype[Any]]
"""Pages of a block's records (0 for words), and the type of their values."""


class Head(msgspec.Struct, frozen=True):
    """The head of a fragment file, decoded.

    Attributes
    ----------
    nnz
        Entries of the row block.
    n_pages
        Pages of its records; 0 where they are words.
    payload
        Type of the values in its records.
    counts
        Entries of each column; shape (n_vars,), uint32.
    table
        End offset (from the first fragment) and checksum of each fragment; shape (n_ranges,).
    """

    nnz: int
    n_pages: int
    payload: np.dtype[np.generic]
    counts: Counts
    table: NDArray[np.void]


def encode_head(layout: FragmentLayout, head: Head) -> bytes:
    """The head as bytes of length ``layout.head_bytes``."""
    body = (
        struct.pack("<Q", head.nnz)
        + _encode_kind((head.n_pages, head.payload))
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
    nnz, n_pages, payload = decode_fixed(encoded[:FRAGMENT_FIXED_BYTES], name)
    if google_crc32c.value(encoded[_UNCHECKED_BYTES:]) != struct.unpack_from("<I", encoded, 8)[0]:
        msg = f"{name}: the head's checksum does not match: the file was damaged"
        raise FragmentError(msg)
    counts = np.frombuffer(encoded, "<u4", layout.n_vars, layout.counts_offset)
    table = np.frombuffer(encoded, TABLE_DTYPE, layout.n_ranges, layout.table_offset)
    return Head(nnz, n_pages, payload, counts, table)


def decode_fixed(encoded: bytes, name: str) -> tuple[int, int, np.dtype[Any]]:
    """Entries of the block, its pages and the type of its values, from the head's fixed part.

    Raises
    ------
    FragmentError
        They are no head of this version.
    """
    magic, _, nnz, n_pages, payload = _FIXED.unpack(encoded)
    if magic != MAGIC:
        msg = f"{name}: not a fragment file of this version: it begins with {magic!r}"
        raise FragmentError(msg)
    payload = payload.rstrip(b"\x00")
    if payload not in _PAYLOADS:
        msg = f"{name}: {payload!r} is no type of values: the file was damaged"
        raise FragmentError(msg)
    return nnz, n_pages, _PAYLOADS[payload]


def encode_fragments(
    records: PagedRecords | Records, counts: Counts, column_width: int
) -> Iterator[tuple[Part, ...]]:
    """The fragment of each column range in turn, as parts to be written one after the other.

    Parameters
    ----------
    records
        All records of the block, column after column.
    counts
        Entries of each column.
    column_width
        Columns per range.
    """
    start = 0
    for column in range(0, counts.size, column_width):
        columns = slice(column, column + column_width)
        stop = start + int(counts[columns].sum(dtype=np.int64))
        if isinstance(records, PagedRecords):
            yield _encode_paged(records, columns, start, stop)
        else:
            yield (_compress(records[start:stop]),)
        start = stop


def fragment_checksum(kind: RecordKind, counts: Counts, *parts: Part | memoryview) -> int:
    """crc32c over the kind of a fragment's records, the counts of its columns and its bytes."""
    checksum = google_crc32c.value(_encode_kind(kind) + counts.tobytes())
    for part in parts:  # arrays are taken as they are; a memoryview would have to be copied
        checksum = google_crc32c.extend(checksum, np.frombuffer(part, np.uint8))
    return int(checksum)


def decode_fragment(
    encoded: bytes | memoryview, counts: Counts, checksum: int, kind: RecordKind, name: str
) -> PagedRecords | Records:
    """The records of one fragment, checked against its checksum and its counts.

    Raises
    ------
    FragmentError
        Something differs; `name` says where.
    """
    if fragment_checksum(kind, counts, encoded) != checksum:
        msg = f"{name}: the checksum does not match: the file was damaged or cut short"
        raise FragmentError(msg)
    expected = int(counts.sum(dtype=np.int64))
    n_pages, payload = kind
    if n_pages:
        paged = _decode_paged(encoded, counts.size, n_pages, expected)
        n_records = int(paged.page_counts.sum(dtype=np.int64))
        records: PagedRecords | Records = paged
    else:
        words = np.frombuffer(
            blosc.decompress(encoded) if len(encoded) else b"", word_dtype(payload)
        )
        n_words = record_words(payload)
        records = words if n_words == 1 else words.reshape(-1, n_words)
        n_records = len(records)
    if n_records != expected:
        msg = f"{name}: {n_records} records where the counts say {expected}"
        raise FragmentError(msg)
    return records


def _encode_kind(kind: RecordKind) -> bytes:
    n_pages, payload = kind
    return _KIND.pack(n_pages, payload.str.encode())


def _encode_paged(paged: PagedRecords, columns: slice, start: int, stop: int) -> tuple[Part, ...]:
    if start == stop:
        return ()
    first, last = np.searchsorted(paged.escape_places, [start, stop])
    tables = (
        struct.pack("<Q", last - first)
        + (paged.escape_places[first:last] - np.uint32(start)).tobytes()
        + paged.escape_values[first:last].tobytes()
        + paged.page_counts[columns].tobytes()
    )
    records = paged.records[start:stop].view(np.uint8)
    return tables, records, bytes(-(len(tables) + records.size) % _ALIGNMENT)


def _decode_paged(
    encoded: bytes | memoryview, n_columns: int, n_pages: int, n_records: int
) -> PagedRecords:
    if not len(encoded):
        encoded = bytes(8 + 2 * n_columns * n_pages)
    (n_escapes,) = struct.unpack_from("<Q", encoded)
    offset = 8

    def take(dtype: str, count: int) -> NDArray[Any]:
        nonlocal offset
        taken = np.frombuffer(encoded, dtype, count, offset) if count else np.empty(0, dtype)
        offset += taken.nbytes
        return taken

    return PagedRecords(
        escape_places=take("<u4", n_escapes),
        escape_values=take("<u2", n_escapes),
        page_counts=take("<u2", n_columns * n_pages).reshape(n_columns, n_pages),
        records=take("<u2", n_records),
    )


def _compress(records: Records) -> bytes:
    if not records.size:
        return b""
    width = records.itemsize if records.ndim == 1 else records.itemsize * records.shape[1]
    encoded: bytes = blosc.compress(
        records.reshape(-1).view(np.uint8), b"lz4", 1, blosc.SHUFFLE, typesize=width
    )
    return encoded
