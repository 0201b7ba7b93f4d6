"""A row block's fragments as bytes: what a split task leaves for the combine tasks.

One file per row block. Its head has a fixed size, known from the plan, so that a combine task
finds what it needs with positioned reads: a few bytes of the head, and of each of the two
parts that fragments have a piece, in which those of its column ranges lie next to each other.

    0    magic, format version, crc32c of the rest of the head            16 bytes
    16   nnz, bytes of all indexes, pages, payload type                   40 bytes
    56   counts   n_vars   × uint32    entries of each column in this block
    ..   table    n_ranges × (end of the index, end of the records, crc32c)   20 bytes each
    H    index of each fragment
    ..   records of each fragment

                index                                         records
    of words    counts of its columns, uint32                 blosc-lz4 over byte-shuffled words
    paged       counts of its columns in each page, uint16;   uint16, not compressed
                places of escapes, uint32; values, uint16

A fragment's checksum covers its index, its records, and of what kind they are, so it can be
trusted without reading the head as a whole. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import google_crc32c
import msgspec
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from dask_convert.errors import FragmentError
from dask_convert.planning.dtypes import SUPPORTED
from dask_convert.planning.layout import FRAGMENT_FIXED_BYTES, FragmentLayout
from dask_convert.planning.records import Records, record_words, word_dtype
from dask_convert.shuffle import scans
from dask_convert.shuffle.pages import PagedRecords

MAGIC = b"dcfrag\x00\x02"
_FIXED = struct.Struct("<8sI4xQQI20s")
_UNCHECKED_BYTES = 16  # magic and checksum themselves
_KIND = struct.Struct("<I20s")
_PAYLOADS = {np.dtype(code).str.encode(): np.dtype(code) for code in SUPPORTED}
TABLE_DTYPE = np.dtype([("index_end", "<u8"), ("end", "<u8"), ("crc32c", "<u4")])
_ESCAPE_BYTES = 6

_NOTHING = np.empty(0, np.uint8)

Counts = NDArray[np.uint32]
Bytes = NDArray[np.uint8]


class RecordKind(NamedTuple):
    """What the records of a block are: its pages (0 for words), and the type of their values."""

    n_pages: int
    payload: np.dtype[Any]

    def encoded(self) -> bytes:
        """As it stands in the head."""
        return _KIND.pack(self.n_pages, self.payload.str.encode())

    def checksum(self) -> int:
        """Its crc32c, which the checksum of a fragment goes on from."""
        return int(google_crc32c.value(self.encoded()))


class FixedPart(NamedTuple):
    """The head before its arrays: entries of the block, bytes of all indexes, kind of records."""

    nnz: int
    index_bytes: int
    kind: RecordKind


class Head(msgspec.Struct, frozen=True):
    """The head of a fragment file, decoded.

    Attributes
    ----------
    nnz
        Entries of the row block.
    kind
        Of its records.
    counts
        Entries of each column; shape (n_vars,), uint32.
    table
        Of each fragment the end of its index, from the first one's start, that of its records,
        likewise, and its checksum; shape (n_ranges,).
    """

    nnz: int
    kind: RecordKind
    counts: Counts
    table: NDArray[np.void]


def encode_head(layout: FragmentLayout, head: Head) -> bytes:
    """The head as bytes of length ``layout.head_bytes``."""
    body = (
        struct.pack("<QQ", head.nnz, head.table["index_end"][-1] if head.table.size else 0)
        + head.kind.encoded()
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
    fixed = decode_fixed(encoded[:FRAGMENT_FIXED_BYTES], name)
    if google_crc32c.value(encoded[_UNCHECKED_BYTES:]) != struct.unpack_from("<I", encoded, 8)[0]:
        msg = f"{name}: the head's checksum does not match: the file was damaged"
        raise FragmentError(msg)
    counts = np.frombuffer(encoded, "<u4", layout.n_vars, layout.counts_offset)
    table = np.frombuffer(encoded, TABLE_DTYPE, layout.n_ranges, layout.table_offset)
    return Head(fixed.nnz, fixed.kind, counts, table)


def decode_fixed(encoded: bytes, name: str) -> FixedPart:
    """The head's fixed part.

    Raises
    ------
    FragmentError
        It is none of this version.
    """
    magic, _, nnz, index_bytes, n_pages, payload = _FIXED.unpack(encoded)
    if magic != MAGIC:
        msg = f"{name}: not a fragment file of this version: it begins with {magic!r}"
        raise FragmentError(msg)
    payload = payload.rstrip(b"\x00")
    if payload not in _PAYLOADS:
        msg = f"{name}: {payload!r} is no type of values: the file was damaged"
        raise FragmentError(msg)
    return FixedPart(nnz, index_bytes, RecordKind(n_pages, _PAYLOADS[payload]))


def encode_indexes(
    records: PagedRecords | Records, counts: Counts, column_width: int
) -> Iterator[Bytes]:
    """The index of each fragment in turn: how many records each of its columns has.

    Parameters
    ----------
    records
        All records of the block, column after column.
    counts
        Entries of each column.
    column_width
        Columns per range.
    """
    borders = _borders(counts, column_width)
    if not isinstance(records, PagedRecords):
        for column in range(0, counts.size, column_width):
            yield counts[column : column + column_width].view(np.uint8)
        return
    escapes = np.searchsorted(records.escape_places, borders)
    for number, column in enumerate(range(0, counts.size, column_width)):
        own = slice(escapes[number], escapes[number + 1])
        parts = (
            records.page_counts[column : column + column_width].reshape(-1),
            records.escape_places[own] - np.uint32(borders[number]),
            records.escape_values[own],
        )
        yield np.concatenate([part.view(np.uint8) for part in parts])


def encode_records(
    records: PagedRecords | Records, counts: Counts, column_width: int
) -> Iterator[Bytes]:
    """The records of each fragment in turn, as bytes; parameters as of `encode_indexes`."""
    for start, stop in pairwise(_borders(counts, column_width).tolist()):
        if isinstance(records, PagedRecords):
            yield records.records[start:stop].view(np.uint8)
        else:
            yield _compress(records[start:stop])


def fragment_checksum(kind_checksum: int, index: Bytes, records: Bytes) -> int:
    """crc32c over the kind of a fragment's records, its index and its records."""
    # Arrays are taken as they are; a memoryview would be copied.
    return int(google_crc32c.extend(google_crc32c.extend(kind_checksum, index), records))


def decode_words(
    index: Bytes, encoded: Bytes, payload: np.dtype[Any], name: str
) -> tuple[Counts, Records]:
    """Counts and words of one fragment whose checksum is right.

    Raises
    ------
    FragmentError
        There are not as many words as its index says; `name` says whose they are.
    """
    words = np.frombuffer(blosc.decompress(encoded) if encoded.size else b"", word_dtype(payload))
    n_words = record_words(payload)
    records = words if n_words == 1 else words.reshape(-1, n_words)
    counts = index.view("<u4")
    _require_count(counts, len(records), name)
    return counts, records


def decode_paged(
    indexes: Sequence[Bytes], n_columns: Sequence[int], n_pages: int, encoded: Bytes, name: str
) -> tuple[Counts, PagedRecords]:
    """Counts and records of consecutive fragments whose checksums are right; records not copied.

    Parameters
    ----------
    indexes, n_columns
        Of each fragment.
    n_pages
        Of the block.
    encoded
        Records of all of them, one after the other.
    name
        Whose they are.

    Raises
    ------
    FragmentError
        There are not as many records as the indexes say.
    """
    splits = [2 * n_pages * columns for columns in n_columns]
    pages = [index[:split] for index, split in zip(indexes, splits, strict=True)]
    page_counts = np.concatenate(pages).view("<u2").reshape(-1, n_pages)
    counts = np.empty(len(page_counts), np.uint32)
    scans.sum_pages(page_counts, counts)
    records = encoded.view("<u2")
    _require_count(counts, records.size, name)
    places, values = [np.empty(0, np.uint32)], [np.empty(0, np.uint16)]
    start = column = 0
    for index, split, columns in zip(indexes, splits, n_columns, strict=True):
        n_escapes = (index.size - split) // _ESCAPE_BYTES
        if n_escapes:
            places.append(index[split : split + 4 * n_escapes].view("<u4") + np.uint32(start))
            values.append(index[split + 4 * n_escapes :].view("<u2"))
        start += int(counts[column : column + columns].sum(dtype=np.int64))
        column += columns
    return counts, PagedRecords(
        records, page_counts, n_columns[0], np.concatenate(places), np.concatenate(values)
    )


def _require_count(counts: Counts, n_records: int, name: str) -> None:
    expected = int(counts.sum(dtype=np.int64))
    if n_records != expected:
        msg = f"{name}: {n_records} records where the index says {expected}"
        raise FragmentError(msg)


def _borders(counts: Counts, column_width: int) -> NDArray[np.int64]:
    """Where the records of each range begin, and at the end where the last one's end."""
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return np.append(starts[:-1:column_width], starts[-1])


def _compress(records: Records) -> Bytes:
    if not records.size:
        return _NOTHING
    width = records.itemsize if records.ndim == 1 else records.itemsize * records.shape[1]
    encoded: bytes = blosc.compress(
        records.reshape(-1).view(np.uint8), b"lz4", 1, blosc.SHUFFLE, typesize=width
    )
    return np.frombuffer(encoded, np.uint8)
