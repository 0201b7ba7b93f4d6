"""The column shuffle without its I/O: a block's records, and a region's entries, in order."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import assert_same_bits, tocsc
from strategies import DTYPES, Csr, csr_from_rows, csr_matrices, random_csr, special_values

from dask_convert.planning.dtypes import first_changed
from dask_convert.planning.records import pack_records, payload_dtypes, unpack_payload, unpack_rows
from dask_convert.shuffle import ordering
from dask_convert.shuffle.duplicates import order_and_duplicates
from dask_convert.shuffle.narrowing import narrow_into
from dask_convert.shuffle.ordering import BlockColumns, BlockRecords
from dask_convert.shuffle.pages import PagedRecords
from dask_convert.shuffle.placing import RegionEntries


def counts_of(matrix: Csr) -> NDArray[np.uint32]:
    """Entries of each column."""
    return np.bincount(matrix.indices, minlength=matrix.shape[1]).astype(np.uint32)


def block_records(
    matrix: Csr, cuts: list[int], *, paged: bool, column_width: int = 2, at_once: int = 10_000
) -> BlockRecords:
    """The records of a matrix that is one row block, its indices and values given in pieces."""
    row_ends, n_vars = matrix.indptr[1:].astype(np.int64), matrix.shape[1]
    columns = BlockColumns(row_ends, n_vars, paged=paged)
    for start in range(0, matrix.nnz, at_once):
        assert columns.add(start, matrix.indices[start : start + at_once]) < 0
    ascending, _ = order_and_duplicates(columns.columns, row_ends, n_vars)
    block = BlockRecords(columns, matrix.data.dtype, column_width=column_width, ascending=ascending)
    for start, stop in zip([0, *cuts], [*cuts, matrix.nnz], strict=True):
        block.add(start, matrix.data[start:stop])
    return block


def words_of(block: BlockRecords) -> NDArray[Any]:
    """The block's records, out of their pages."""
    records = block.records()
    return records.to_words() if isinstance(records, PagedRecords) else records


def rows_slice(matrix: Csr, start: int, stop: int) -> Csr:
    """The rows ``[start, stop)``."""
    entries = slice(int(matrix.indptr[start]), int(matrix.indptr[stop]))
    indptr = matrix.indptr[start : stop + 1] - matrix.indptr[start]
    return Csr(
        matrix.data[entries], matrix.indices[entries], indptr, (stop - start, matrix.shape[1])
    )


def draw_cuts(data: st.DataObject, length: int) -> list[int]:
    return sorted(data.draw(st.lists(st.integers(0, length), max_size=4)))


@given(csr_matrices(min_obs=1), st.data(), st.booleans(), st.sampled_from([1, 3, 16, 1024]))
def test_block_records_are_a_stable_sort_by_column(
    matrix: Csr, data: st.DataObject, paged: bool, tile_columns: int
) -> None:
    """Whatever the pieces, ranges and tiles, rows in order or not, whenever values were widened."""
    width = data.draw(st.integers(1, max(matrix.shape[1], 1)))
    cuts = draw_cuts(data, matrix.nnz)
    block = block_records(matrix, cuts, paged=paged, column_width=width)
    order = np.argsort(matrix.indices, kind="stable")
    with mock.patch.object(ordering, "_TILE_COLUMNS", tile_columns):
        records = words_of(block)
    np.testing.assert_array_equal(unpack_rows(records, block.payload), matrix.rows[order])
    values = unpack_payload(records, block.payload)
    assert_same_bits(values.astype(matrix.data.dtype), matrix.data[order])


@given(csr_matrices(min_obs=1), st.data(), st.booleans())
def test_block_records_keep_the_narrowest_payload(
    matrix: Csr, data: st.DataObject, paged: bool
) -> None:
    """It is the first type that every value survives; records are those of the plain way."""
    block = block_records(matrix, draw_cuts(data, matrix.nnz), paged=paged)
    surviving = [
        payload
        for payload in payload_dtypes(matrix.data.dtype)
        if narrow_into(np.empty(matrix.nnz, payload), matrix.data)
    ]
    assert block.payload == surviving[0]
    order = np.argsort(matrix.indices, kind="stable")
    with np.errstate(all="ignore"):
        plain = pack_records(matrix.rows[order], matrix.data[order].astype(block.payload))
    np.testing.assert_array_equal(words_of(block), plain)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@given(st.data())
def test_narrow_into_is_all_bits_or_nothing(dtype: str, data: st.DataObject) -> None:
    """What it copies comes back bit by bit; what it refuses would not."""
    value = data.draw(st.sampled_from(list(special_values(dtype))))
    values = np.array([1, value], dtype)
    for payload in payload_dtypes(values.dtype):
        narrow = np.empty(values.size, payload)
        fits = narrow_into(narrow, values)
        assert fits == (first_changed(values, payload) < 0)
        if fits:
            assert_same_bits(narrow.astype(dtype), values)


def placed(
    matrix: Csr, blocks: list[tuple[int, BlockRecords, Csr]], width: int, entries: RegionEntries
) -> None:
    """Place the fragments of all blocks, as a combine task does."""
    for first_row, block, part in blocks:
        records, counts = block.records(), counts_of(part)
        for column in range(0, matrix.shape[1], width):
            columns = slice(column, min(column + width, matrix.shape[1]))
            own = fragment(records, counts, columns)
            entries.place(own, block.payload, counts[columns], columns, first_row)


def fragment(records: Any, counts: NDArray[np.uint32], columns: slice) -> Any:
    """The records of some columns."""
    ends = np.cumsum(np.append(0, counts), dtype=np.int64)
    start, stop = ends[columns.start], ends[columns.stop]
    if not isinstance(records, PagedRecords):
        return records[start:stop]
    inside = (records.escape_places >= start) & (records.escape_places < stop)
    return PagedRecords(
        records=records.records[start:stop],
        page_counts=records.page_counts[columns],
        column_width=records.column_width,
        escape_places=(records.escape_places[inside] - start).astype(np.uint32),
        escape_values=records.escape_values[inside],
    )


@given(csr_matrices(min_obs=1), st.data(), st.booleans())
def test_region_entries_are_their_slice_of_the_matrix_in_csc(
    matrix: Csr, data: st.DataObject, paged: bool
) -> None:
    """Blocks of any rows, ranges of any width, payloads that differ, and a region cut anywhere."""
    n_obs, n_vars = matrix.shape
    expected_data, expected_rows, indptr = tocsc(matrix)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, matrix.nnz)] * 2)))
    cuts = sorted({0, n_obs, *draw_cuts(data, n_obs)})
    parts = [(row, rows_slice(matrix, row, end)) for row, end in itertools.pairwise(cuts)]
    width = data.draw(st.integers(1, max(n_vars, 1)))
    blocks = [
        (row, block_records(part, [], paged=paged, column_width=width), part) for row, part in parts
    ]
    payloads = {block.payload for _, block, _ in blocks}
    payload = payloads.pop() if len(payloads) == 1 else matrix.data.dtype
    entries = RegionEntries(
        stop - start, np.dtype(np.int32), payload, indptr[:-1].astype(np.int64) - start
    )
    placed(matrix, blocks, width * data.draw(st.integers(1, 3)), entries)
    np.testing.assert_array_equal(entries.rows(0, stop - start), expected_rows[start:stop])
    values = entries.values(0, stop - start, matrix.data.dtype)
    assert_same_bits(values, expected_data[start:stop])
    np.testing.assert_array_equal(entries.cursors, indptr[1:] - start)


@given(csr_matrices(dtypes=("f8", "i8", "u8", "f4", "i4", "u4", "u2"), min_obs=1), st.data())
def test_paged_one_word_and_wide_records_place_the_same(matrix: Csr, data: st.DataObject) -> None:
    """Pages or words, and any payload that holds the values: the region is the same."""
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, matrix.nnz)] * 2)))
    counts, everything = counts_of(matrix), slice(0, matrix.shape[1])
    cursors = np.cumsum(counts, dtype=np.int64) - counts - start
    regions = []
    for paged in (True, False):
        block = block_records(matrix, [], paged=paged)
        for payload in (block.payload, matrix.data.dtype):
            entries = RegionEntries(stop - start, np.dtype(np.int64), payload, cursors.copy())
            entries.place(block.records(), block.payload, counts, everything, 5)
            regions.append(entries)
    for entries in regions[1:]:
        np.testing.assert_array_equal(
            entries.rows(0, stop - start), regions[0].rows(0, stop - start)
        )
        values = [e.values(0, stop - start, matrix.data.dtype) for e in (entries, regions[0])]
        assert_same_bits(*values)


@given(st.data())
def test_pages_and_ranges_of_any_number_come_together(data: st.DataObject) -> None:
    """Several pages, escapes among them, ranges of any width, a region cut anywhere."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n_obs, n_vars = (
        data.draw(st.sampled_from([1, 255, 256, 257, 600])),
        data.draw(st.integers(1, 9)),
    )
    row_nnz = rng.integers(0, 6, n_obs)
    matrix = random_csr(rng, (n_obs, n_vars), row_nnz, "f8", "counts")
    n_large = data.draw(st.integers(0, matrix.nnz // 64))
    matrix.data[rng.integers(0, max(matrix.nnz, 1), n_large)] = rng.integers(255, 65_536, n_large)
    width = data.draw(st.integers(1, n_vars))
    block = block_records(matrix, [], paged=True, column_width=width, at_once=97)
    assert isinstance(block.records(), PagedRecords)
    expected_data, expected_rows, indptr = tocsc(matrix)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, matrix.nnz)] * 2)))
    cursors = indptr[:-1].astype(np.int64) - start
    entries = RegionEntries(stop - start, np.dtype(np.int32), block.payload, cursors)
    placed(matrix, [(0, block, matrix)], width * data.draw(st.integers(1, 3)), entries)
    np.testing.assert_array_equal(entries.rows(0, stop - start), expected_rows[start:stop])
    values = entries.values(0, stop - start, matrix.data.dtype)
    assert_same_bits(values, expected_data[start:stop])
    order = np.argsort(matrix.indices, kind="stable")
    words = words_of(block)
    np.testing.assert_array_equal(unpack_rows(words, block.payload), matrix.rows[order])
    np.testing.assert_array_equal(unpack_payload(words, block.payload), matrix.data[order])


@pytest.mark.parametrize("paged", [False, True])
def test_widening_happens_as_late_as_the_last_value(paged: bool) -> None:
    """Small counts until a value needs float32, and that until one needs float64."""
    n = 3000
    matrix = csr_from_rows([[2, 0, 1]] * (n // 3), 3, np.arange(n, dtype="f8"))
    data = matrix.data
    data[1500], data[-1] = 0.5, 0.1
    block = block_records(matrix, [1000], paged=paged)
    assert block.payload == np.float64
    order = np.argsort(matrix.indices, kind="stable")
    assert_same_bits(unpack_payload(words_of(block), block.payload), data[order])


@pytest.mark.parametrize(("n_large", "stays"), [(0, True), (10, True), (47, False)])
def test_pages_are_kept_while_few_values_escape(n_large: int, stays: bool) -> None:
    """Up to one value in 64 may be 255 or more; nothing but the kind of records changes."""
    n = 3000
    values = np.ones(n, "f4")
    values[np.linspace(0, n - 1, n_large).astype(int)] = np.arange(255, 255 + n_large)
    matrix = csr_from_rows([[2, 0, 1]] * (n // 3), 3, values)
    block = block_records(matrix, [1500], paged=True)
    assert isinstance(block.records(), PagedRecords) == stays
    order = np.argsort(matrix.indices, kind="stable")
    np.testing.assert_array_equal(
        words_of(block), pack_records(matrix.rows[order], values[order].astype("u2"))
    )


def test_pages_are_left_where_one_column_has_more_than_can_be_counted() -> None:
    """A row that stores one column 70,000 times still comes out in order."""
    n = 70_000
    matrix = csr_from_rows([[0] * 5, [0] * n], 1, np.arange(n + 5, dtype="u4") % 250)
    block = block_records(matrix, [], paged=True)
    assert not isinstance(block.records(), PagedRecords)
    assert_same_bits(unpack_payload(words_of(block), block.payload).astype("u4"), matrix.data)
    np.testing.assert_array_equal(unpack_rows(words_of(block), block.payload), matrix.rows)
