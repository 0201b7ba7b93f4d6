"""Records: an entry's row and value in one machine word.

While an entry travels from its row block to its column it is a *record*: the row within the
block in the low half, the value's bits (the *payload*) in the high half. One word means one
load and one store per entry where two arrays would need two, and it halves the number of
memory streams, which is what ordering by column is made of.

    payload of at most 2 bytes    uint32   [ payload 16 | row 16 ]
    payload of 4 bytes            uint64   [ payload 32 | row 32 ]
    payload of 8 bytes            2 × uint64   [ row ] [ payload ]
    payload of 16 bytes           3 × uint64   [ row ] [ real ] [ imaginary ]

Most count matrices keep small integers in 4- or 8-byte types, so each row block tries the
narrowest payload first and widens when a value does not survive the way there and back, bit
by bit. The row limit of 65,536 per block comes from the first line.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.unsignedinteger]
"""Records: shape (n,), or (n, words) where one takes several words."""

MAX_BLOCK_ROWS = 65_536
"""Rows that fit into the narrowest record."""

# What a stored type may be narrowed to, narrowest first; the type itself comes last.
_NARROWER: dict[str, tuple[str, ...]] = {
    "f8": ("u2", "f4"),
    "i8": ("u2", "i4"),
    "u8": ("u2", "u4"),
    "f4": ("u2",),
    "i4": ("u2",),
    "u4": ("u2",),
}


def native_dtype(dtype: str) -> np.dtype[np.generic]:
    """The type in this machine's byte order."""
    return np.dtype(dtype).newbyteorder("=")


def type_code(dtype: np.dtype[np.generic]) -> str:
    """Kind and item size, ``f8`` say: the type's name without its byte order."""
    return f"{dtype.kind}{dtype.itemsize}"


def payload_dtypes(data_dtype: np.dtype[np.generic]) -> tuple[np.dtype[np.generic], ...]:
    """The payload types to try for values of this type, from the narrowest to itself."""
    narrower = _NARROWER.get(type_code(data_dtype), ())
    return (*(np.dtype(code) for code in narrower), data_dtype)


def record_bytes(payload: np.dtype[np.generic]) -> int:
    """Bytes of one record that carries this payload."""
    if payload.itemsize <= 2:
        return 4
    return 8 if payload.itemsize == 4 else 8 + payload.itemsize


def record_words(payload: np.dtype[np.generic]) -> int:
    """Number of words in a record: 1, or more for payloads of 8 bytes and above."""
    return 1 if payload.itemsize <= 4 else 1 + payload.itemsize // 8


def word_dtype(payload: np.dtype[np.generic]) -> np.dtype[np.unsignedinteger]:
    """The unsigned type of a record's words."""
    return np.dtype(np.uint32 if payload.itemsize <= 2 else np.uint64)


def payload_bits(values: NDArray[np.generic]) -> NDArray[np.unsignedinteger]:
    """The values' bits as unsigned words, without a copy: the form that kernels move.

    Returns shape ``(n,)``; for 8- and 16-byte types ``(n, 1)`` and ``(n, 2)`` of uint64.
    """
    if values.dtype.itemsize >= 8:
        return values.view(np.uint64).reshape(values.size, values.dtype.itemsize // 8)
    return values.view(f"u{values.dtype.itemsize}")


def unpack_payload(
    records: NDArray[np.unsignedinteger], payload: np.dtype[np.generic]
) -> NDArray[np.generic]:
    """The values that records carry: the slow, plain counterpart of the placing kernels."""
    if payload.itemsize >= 8:
        return np.ascontiguousarray(records[:, 1:]).view(payload).reshape(len(records))
    shift = records.dtype.itemsize * 4
    return (records >> shift).astype(f"u{payload.itemsize}").view(payload)


def unpack_rows(
    records: NDArray[np.unsignedinteger], payload: np.dtype[np.generic]
) -> NDArray[np.int64]:
    """The rows, counted from the block's first, that records carry."""
    if payload.itemsize >= 8:
        return records[:, 0].astype(np.int64)
    mask = (1 << records.dtype.itemsize * 4) - 1
    return (records & records.dtype.type(mask)).astype(np.int64)


def pack_records(
    rows: NDArray[np.integer], values: NDArray[np.generic]
) -> NDArray[np.unsignedinteger]:
    """Records of these rows and values: the slow, plain counterpart of the scattering kernels."""
    if values.dtype.itemsize >= 8:
        return np.column_stack([rows.astype(np.uint64), payload_bits(values)])
    word = word_dtype(values.dtype).type
    shift = word(np.dtype(word).itemsize * 4)
    records: Records = (payload_bits(values).astype(word) << shift) | rows.astype(word)
    return records
