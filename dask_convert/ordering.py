"""From entries in row order to records in column order, and from records to a region.

The two halves of the column shuffle without their I/O:

    BlockRecords     entries of a row block, piece by piece  →  its records, column by column
    RegionEntries    records of all blocks, block by block   →  rows and values of a region

Ordering is a counting sort: the block's columns are counted first, which gives every column's
place, and then each entry goes to its place in one pass. Rows are read in ascending order, so
rows ascend within every column and entries that are stored twice keep their order, whatever
the order of columns within a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_convert import kernels
from dask_convert.records import (
    pack_records,
    payload_bits,
    payload_dtypes,
    record_bytes,
    record_words,
    unpack_payload,
    unpack_rows,
    word_dtype,
)

_WIDEN_RECORDS = 2**16


class BlockRecords:
    """Collects a row block's entries as records, ordered by column.

    Parameters
    ----------
    indices
        Columns of all entries of the block, checked; shape (nnz,), int32.
    counts
        Entries of each column; shape (n_vars,), uint32.
    row_ends
        Where each row ends within the block; shape (rows,), int64.
    data_dtype
        The source's type of values, native byte order.

    Notes
    -----
    Values are kept in the narrowest payload that has held all of them so far. When one does
    not fit, what is there already is widened in place: the buffer is as large as the widest
    records need, and the memory beyond what narrower ones use is never touched.
    """

    def __init__(
        self,
        indices: NDArray[np.int32],
        counts: NDArray[np.uint32],
        row_ends: NDArray[np.int64],
        data_dtype: np.dtype[Any],
    ) -> None:
        self._indices = indices
        self._row_ends = row_ends
        self._payloads = list(payload_dtypes(data_dtype))
        self._buffer = np.empty(indices.size * record_bytes(self._payloads[-1]), np.uint8)
        ends = np.cumsum(counts, dtype=np.int64)
        self._cursors = (ends - counts).astype(np.uint32)

    @property
    def payload(self) -> np.dtype[Any]:
        """Type of the values in the records."""
        return self._payloads[0]

    @property
    def records(self) -> NDArray[np.unsignedinteger[Any]]:
        """All records; shape (nnz,), or (nnz, words) for values of 8 bytes and more."""
        return self._view(self.payload)

    def add(self, position: int, values: NDArray[Any]) -> None:
        """Take the values of the entries from `position` on, counted from the block's start."""
        bits = self._narrow(values)
        indices = self._indices[position : position + values.size]
        row = int(np.searchsorted(self._row_ends, position, side="right"))
        where = (indices, bits, self._row_ends, row, position, self._cursors)
        if record_words(self.payload) == 1:
            shift = np.uint64(self.records.itemsize * 4)
            kernels.scatter_words(*where, shift, self.records)
        else:
            kernels.scatter_wide(*where, self.records)

    def _narrow(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values as payload bits, after widening the payload until they fit."""
        while (bits := narrowed(values, self.payload)) is None:
            self._widen(self._payloads[0], self._payloads[1])
            del self._payloads[0]
        return bits

    def _widen(self, old: np.dtype[Any], new: np.dtype[Any]) -> None:
        # From the end: a wide record never lies on a narrow one that is still to be read.
        source, target = self._view(old), self._view(new)
        for start in reversed(range(0, len(source), _WIDEN_RECORDS)):
            part = source[start : start + _WIDEN_RECORDS].copy()
            with np.errstate(all="ignore"):  # places that are not filled yet hold anything
                values = unpack_payload(part, old).astype(new)
            target[start : start + len(part)] = pack_records(unpack_rows(part, old), values)

    def _view(self, payload: np.dtype[Any]) -> NDArray[Any]:
        n_bytes = self._indices.size * record_bytes(payload)
        words = self._buffer[:n_bytes].view(word_dtype(payload))
        count = record_words(payload)
        return words if count == 1 else words.reshape(-1, count)


def narrowed(values: NDArray[Any], payload: np.dtype[Any]) -> NDArray[Any] | None:
    """The values' payload bits if every one of them comes back bit by bit, else None."""
    if payload == values.dtype:
        return payload_bits(values)
    bits = values.view(f"u{values.itemsize}")
    if payload == np.uint16:
        small = np.empty(values.size, np.uint16)
        return small if kernels.narrow_to_uint16(values, bits, small) else None
    with np.errstate(all="ignore"):
        narrow = values.astype(payload)
        same = np.array_equal(narrow.astype(values.dtype).view(bits.dtype), bits)
    return payload_bits(narrow) if same else None


class RegionEntries:
    """Collects the rows and values of a region, row block after row block.

    Parameters
    ----------
    length
        Entries of the region.
    row_dtype
        Type of the rows.
    payload
        Type to keep values in: that of the blocks if they agree, else the source's.
    cursors
        For each column, in the order of its records, where it begins relative to the region's
        start; int64. Negative, or beyond the end, where it is (partly) a neighbour's.
    """

    def __init__(
        self,
        length: int,
        row_dtype: np.dtype[Any],
        payload: np.dtype[Any],
        cursors: NDArray[np.int64],
    ) -> None:
        self.cursors = cursors
        self._length = length
        self._payload = payload
        self._rows = np.empty(length, row_dtype)
        self._values = np.empty(length, payload)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows of the entries ``[start, stop)`` of the region."""
        return self._rows[start:stop]

    def values(self, start: int, stop: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Values of the entries ``[start, stop)`` of the region, in the target's type."""
        return self._values[start:stop].astype(dtype, copy=False)

    def place(
        self,
        records: NDArray[Any],
        payload: np.dtype[Any],
        counts: NDArray[np.uint32],
        columns: slice,
        first_row: int,
    ) -> None:
        """Put the records of one fragment at their places.

        Parameters
        ----------
        records, payload, counts
            The fragment: its records, the type of their values, and how many are of each column.
        columns
            Which of the region's cursors these columns are.
        first_row
            First row of the fragment's row block.
        """
        if payload != self._payload:
            values = unpack_payload(records, payload).astype(self._payload)
            records = pack_records(unpack_rows(records, payload), values)
        where = (records, counts, self.cursors[columns], self._length, first_row)
        bits = payload_bits(self._values)
        if record_words(self._payload) == 1:
            kernels.place_words(*where, np.uint64(records.itemsize * 4), self._rows, bits)
        else:
            kernels.place_wide(*where, self._rows, bits)
