"""The column shuffle without its I/O: a block's records, and a region's entries, in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import assert_same_bits, tocsc
from strategies import DTYPES, Csr, csr_from_rows, csr_matrices, special_values

from dask_convert.ordering import BlockRecords, RegionEntries, narrowed
from dask_convert.records import pack_records, payload_dtypes, unpack_payload, unpack_rows


def counts_of(matrix: Csr) -> NDArray[np.uint32]:
    """Entries of each column."""
    return np.bincount(matrix.indices, minlength=matrix.shape[1]).astype(np.uint32)


def block_records(matrix: Csr, cuts: list[int]) -> BlockRecords:
    """The records of a matrix that is one row block, its values given in pieces."""
    indices, row_ends = matrix.indices.astype(np.int32), matrix.indptr[1:].astype(np.int64)
    block = BlockRecords(indices, counts_of(matrix), row_ends, matrix.data.dtype)
    for start, stop in zip([0, *cuts], [*cuts, matrix.nnz], strict=True):
        block.add(start, matrix.data[start:stop])
    return block


def rows_slice(matrix: Csr, start: int, stop: int) -> Csr:
    """The rows ``[start, stop)``."""
    entries = slice(int(matrix.indptr[start]), int(matrix.indptr[stop]))
    indptr = matrix.indptr[start : stop + 1] - matrix.indptr[start]
    return Csr(matrix.data[entries], matrix.indices[entries], indptr, (stop - start, matrix.shape[1]))


def draw_cuts(data: st.DataObject, length: int) -> list[int]:
    return sorted(data.draw(st.lists(st.integers(0, length), max_size=4)))


@given(csr_matrices(), st.data())
def test_block_records_are_a_stable_sort_by_column(matrix: Csr, data: st.DataObject) -> None:
    """Whatever the pieces, and whenever the payload had to be widened."""
    block = block_records(matrix, draw_cuts(data, matrix.nnz))
    order = np.argsort(matrix.indices, kind="stable")
    np.testing.assert_array_equal(unpack_rows(block.records, block.payload), matrix.rows[order])
    values = unpack_payload(block.records, block.payload)
    assert_same_bits(values.astype(matrix.data.dtype), matrix.data[order])


@given(csr_matrices(), st.data())
def test_block_records_keep_the_narrowest_payload(matrix: Csr, data: st.DataObject) -> None:
    """It is the first type that every value survives, and records are packed as the plain way does."""
    block = block_records(matrix, draw_cuts(data, matrix.nnz))
    surviving = [p for p in payload_dtypes(matrix.data.dtype) if narrowed(matrix.data, p) is not None]
    assert block.payload == surviving[0]
    order = np.argsort(matrix.indices, kind="stable")
    with np.errstate(all="ignore"):
        plain = pack_records(matrix.rows[order], matrix.data[order].astype(block.payload))
    np.testing.assert_array_equal(block.records, plain)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@given(st.data())
def test_narrowed_is_all_bits_or_nothing(dtype: str, data: st.DataObject) -> None:
    """What it gives comes back bit by bit; what it refuses would not."""
    value = data.draw(st.sampled_from(special_values(dtype).tolist()))
    values = np.array([1, value], dtype)
    for payload in payload_dtypes(values.dtype):
        with np.errstate(all="ignore"):
            back = values.astype(payload).astype(dtype)
        bits = narrowed(values, payload)
        inside = bits is not None
        if inside:
            assert_same_bits(bits.reshape(-1).view(payload).astype(dtype), values)
        if not inside and 0 <= value.real <= 65535:
            assert back.tobytes() != values.tobytes()


@given(csr_matrices(), st.data())
def test_region_entries_are_their_slice_of_the_matrix_in_csc(matrix: Csr, data: st.DataObject) -> None:
    """Blocks of any rows, ranges of any width, payloads that differ, and a region cut anywhere."""
    n_obs, n_vars = matrix.shape
    expected_data, expected_rows, indptr = tocsc(matrix)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, matrix.nnz)] * 2)))
    cuts = draw_cuts(data, n_obs)
    blocks = list(zip([0, *cuts], [*cuts, n_obs], strict=True))
    parts = [rows_slice(matrix, *block) for block in blocks]
    records = [block_records(part, []) for part in parts]
    payloads = {block.payload for block in records}
    payload = payloads.pop() if len(payloads) == 1 else matrix.data.dtype
    entries = RegionEntries(stop - start, np.dtype(np.int32), payload, indptr[:-1].astype(np.int64) - start)
    width = data.draw(st.integers(1, max(n_vars, 1)))
    for (first_row, _), part, block in zip(blocks, parts, records, strict=True):
        ends = np.cumsum(np.append(0, counts_of(part)), dtype=np.int64)
        for column in range(0, n_vars, width):
            columns = slice(column, min(column + width, n_vars))
            own = block.records[ends[columns.start] : ends[columns.stop]]
            entries.place(own, block.payload, counts_of(part)[columns], columns, first_row)
    np.testing.assert_array_equal(entries.rows(0, stop - start), expected_rows[start:stop])
    values = entries.values(0, stop - start, matrix.data.dtype)
    assert_same_bits(values, expected_data[start:stop])
    np.testing.assert_array_equal(entries.cursors, indptr[1:] - start)


@given(csr_matrices(dtypes=("f8", "i8", "u8", "f4", "i4", "u4")), st.data())
def test_one_word_and_wide_records_place_the_same(matrix: Csr, data: st.DataObject) -> None:
    """Any payload that holds the values leads to the same region."""
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, matrix.nnz)] * 2)))
    counts, everything = counts_of(matrix), slice(0, matrix.shape[1])
    cursors = np.cumsum(counts, dtype=np.int64) - counts - start
    block = block_records(matrix, [])

    def region(payload: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        entries = RegionEntries(stop - start, np.dtype(np.int64), payload, cursors.copy())
        entries.place(block.records, block.payload, counts, everything, 5)
        return entries.rows(0, stop - start), entries.values(0, stop - start, matrix.data.dtype)

    rows, values = region(block.payload)
    wide_rows, wide_values = region(matrix.data.dtype)
    np.testing.assert_array_equal(rows, wide_rows)
    assert_same_bits(values, wide_values)


def test_widening_happens_as_late_as_the_last_value() -> None:
    """uint16 until a value needs float32, and that until one needs float64."""
    n = 3000
    matrix = csr_from_rows([[2, 0, 1] * (n // 3)], 3, np.arange(n, dtype="f8"))
    data = matrix.data
    data[1500], data[-1] = 0.5, 0.1
    block = block_records(matrix, [1000])
    assert block.payload == np.float64
    order = np.argsort(matrix.indices, kind="stable")
    assert_same_bits(unpack_payload(block.records, block.payload), data[order])
