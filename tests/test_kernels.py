"""Each compiled loop against the line of numpy that says the same."""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numba.core import caching
from numpy.typing import NDArray
from oracle import assert_same_bits
from strategies import DTYPES, INDEX_DTYPES, Csr, csr_matrices, random_values, sorted_rows

from dask_convert.planning.records import (
    payload_bits,
    record_words,
    unpack_payload,
    unpack_rows,
    word_dtype,
)
from dask_convert.shuffle import kernels, scans
from dask_convert.shuffle.compiling import kernel

KERNEL_INDEX_DTYPES = [dtype for dtype in INDEX_DTYPES if dtype != "uint64"]


COLUMN_DTYPES = ["uint16", "int32"]


@pytest.mark.parametrize("column_dtype", COLUMN_DTYPES)
@pytest.mark.parametrize("dtype", KERNEL_INDEX_DTYPES)
@given(st.data())
def test_check_and_count_copies_and_counts_or_finds_the_first_that_is_out_of_range(
    dtype: str, column_dtype: str, data: st.DataObject
) -> None:
    """The oracle is a comparison of every index with the limits, and `bincount`."""
    n_vars = data.draw(st.integers(1, 50))
    near = st.integers(0 if dtype[0] == "u" else -3, 60)
    some = data.draw(npst.arrays(dtype, st.integers(0, 20), elements=near))
    before = data.draw(st.sampled_from([0, 4090, 8192]))  # slices are looked at by themselves
    indices = np.concatenate([np.zeros(before, dtype), some])
    position = data.draw(st.integers(0, 9))  # of the first index in its block
    end = position + indices.size
    page_ends = np.array([*sorted(data.draw(st.lists(st.integers(0, end), max_size=3))), end + 1])
    columns = np.empty(indices.size, column_dtype)
    counts = np.ones((page_ends.size, n_vars), np.uint32)
    wrong = np.flatnonzero((indices < 0) | (indices >= n_vars))
    found = scans.check_and_count(indices, n_vars, columns, position, page_ends, counts)
    assert found == (wrong[0] if wrong.size else -1)
    if not wrong.size:
        np.testing.assert_array_equal(columns, indices)
        cuts = np.maximum(page_ends[:-1] - position, 0)
        for own, page in zip(counts, np.split(indices, cuts), strict=True):
            np.testing.assert_array_equal(own, 1 + np.bincount(page, minlength=n_vars))


@pytest.mark.parametrize("column_dtype", COLUMN_DTYPES)
@pytest.mark.parametrize("dtype", KERNEL_INDEX_DTYPES)
def test_check_and_count_refuses_the_limits_of_every_type(dtype: str, column_dtype: str) -> None:
    """No index wraps round into the valid range, whatever its width."""
    limits = np.iinfo(dtype)
    for wrong in {int(limits.min), int(limits.max), 2**16, 2**32} - {0}:
        if limits.min <= wrong <= limits.max:
            indices, columns = np.array([0, wrong], dtype), np.empty(2, column_dtype)
            counts = np.zeros((1, 7), np.uint32)
            assert scans.check_and_count(indices, 7, columns, 0, np.array([2]), counts) == 1


@given(st.data())
def test_find_from_finds_the_first_of_them(data: st.DataObject) -> None:
    """The oracle is numpy's `flatnonzero`; no more are found than there is room for."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    numbers = np.zeros(data.draw(st.sampled_from([0, 1, 255, 256, 257, 1000])), np.uint16)
    places = rng.integers(0, max(numbers.size, 1), data.draw(st.integers(0, 5)))
    numbers[places[: numbers.size]] = rng.integers(250, 260, min(places.size, numbers.size))
    found = np.empty(data.draw(st.integers(0, 6)), np.uint32)
    expected = np.flatnonzero(numbers >= 255)
    n_found = scans.find_from(numbers, 255, found)
    np.testing.assert_array_equal(found[:n_found], expected[: found.size])


@given(st.data())
def test_check_rows_counts_descents_and_repeats_column_by_column(data: st.DataObject) -> None:
    """The oracle is numpy's `diff`, column by column; the sum does not depend on the order."""
    rows = data.draw(npst.arrays(np.int32, st.integers(0, 30), elements=st.integers(0, 5)))
    inner = data.draw(st.lists(st.integers(0, rows.size), max_size=6))
    ends = np.array([*sorted(inner), rows.size])
    columns = np.split(rows, ends[:-1])
    descents = [int((np.diff(column) < 0).sum()) for column in columns]
    noted = np.zeros(3, np.int64)
    total = scans.check_rows(rows, ends, noted)
    assert noted[0] == sum(descents)
    assert noted[1] == (np.flatnonzero(descents)[0] if any(descents) else 0)
    assert noted[2] == sum(int((np.diff(column) == 0).sum()) for column in columns)
    assert total == scans.check_rows(np.sort(rows), np.array([rows.size]), np.zeros(3, np.int64))


def with_subnormals_as_zeros(work: Callable[[], Any]) -> Any:
    """Do something in a thread whose processor takes subnormal numbers for zeros (x86-64)."""
    room = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    room.write(b"\x0f\xae\x17\xc3")  # ldmxcsr [rdi]; ret
    place = ctypes.addressof(ctypes.c_char.from_buffer(room))
    set_control = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))(place)

    def told() -> Any:
        set_control(ctypes.c_uint32(0x9FC0))  # the usual word, and both flags
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(told).result()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="knows the instruction of one processor")
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_no_subnormal_is_narrowed_where_the_processor_takes_it_for_zero(dtype: str) -> None:
    """Libraries that were compiled for speed tell it to, for the whole thread that loads them."""
    values = np.array([1, 0, np.finfo(dtype).smallest_subnormal], dtype)
    bits, narrowed = values.view(f"u{dtype[1]}"), np.empty(3, np.uint16)
    top = values.dtype.type(65_535).view(bits.dtype)
    assert with_subnormals_as_zeros(partial(np.equal, values, 0)).tolist() == [0, 1, 1]
    assert not with_subnormals_as_zeros(lambda: scans.narrow_to_uint16(values, bits, top, narrowed))
    assert scans.narrow_to_uint16(values[:2], bits[:2], top, narrowed)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u4", "u8"])
@given(st.data())
def test_narrow_to_uint16_says_yes_exactly_if_every_bit_comes_back(
    dtype: str, data: st.DataObject
) -> None:
    """The oracle looks every value up among the 65,536 that fit."""
    fitting = np.arange(65536).astype(dtype)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(["special", "bits", "fitting"]))
    size = data.draw(st.integers(0, 3))
    values = (
        rng.choice(fitting, size) if kind == "fitting" else random_values(rng, size, dtype, kind)
    )
    bits = values.view(f"u{dtype[1]}")
    narrowed = np.empty(size, np.uint16)
    fits = bool(np.isin(bits, fitting.view(bits.dtype)).all())
    top = values.dtype.type(65_535).view(bits.dtype)
    assert scans.narrow_to_uint16(values, bits, top, narrowed) == fits
    if fits:
        assert_same_bits(narrowed.astype(dtype), values)


@given(npst.arrays(np.int32, st.integers(0, 50), elements=st.integers(0, 9)))
def test_count_descents_compares_neighbours(indices: NDArray[np.int32]) -> None:
    """Equal neighbours are no descent; they are counted by themselves."""
    steps = np.diff(indices)
    expected = np.count_nonzero(steps < 0), np.count_nonzero(steps == 0)
    assert scans.count_descents(indices) == expected


@given(csr_matrices())
def test_count_repeats_counts_all_but_the_first_of_a_place(matrix: Csr) -> None:
    """The oracle is numpy's `unique` of row and column; rows in any order."""
    places = matrix.rows * (matrix.shape[1] + 1) + matrix.indices
    _, firsts = np.unique(places, return_index=True)
    repeated = np.setdiff1d(np.arange(matrix.nnz), firsts)
    last_rows = np.full(matrix.shape[1], -1, np.int32)
    ends = matrix.indptr[1:].astype(np.int64)
    found = scans.count_repeats(matrix.indices.astype(np.int32), ends, last_rows)
    assert found == (repeated.size, repeated[0] if repeated.size else -1)


def scattered(matrix: Csr, tile_columns: int) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """Records in column order by the kernel for this type."""
    words = record_words(matrix.data.dtype)
    records = np.zeros((matrix.nnz, words), word_dtype(matrix.data.dtype))
    records = records.reshape(-1) if words == 1 else records
    indices, bits = matrix.indices.astype(np.int32), payload_bits(matrix.data)
    counts = np.bincount(indices, minlength=matrix.shape[1]).astype(np.uint32)
    cursors = (np.cumsum(counts) - counts).astype(np.uint32)
    starts, ends = matrix.indptr[:-1].astype(np.uint32), matrix.indptr[1:].astype(np.int64)
    if words == 1:
        shift = np.uint64(records.itemsize * 4)
        kernels.scatter_words(indices, bits, starts, ends, tile_columns, cursors, shift, records)
    else:
        kernels.scatter_wide(indices, bits, ends, cursors, records)
    np.testing.assert_array_equal(cursors, np.cumsum(counts))
    return records, counts


@given(csr_matrices(), st.integers(1, 50))
def test_scattering_is_a_stable_sort_by_column(matrix: Csr, tile_columns: int) -> None:
    """Rows and values are numpy's stable argsort of the columns, in tiles of any width."""
    matrix = sorted_rows(matrix)
    records, _ = scattered(matrix, tile_columns)
    order = np.argsort(matrix.indices, kind="stable")
    np.testing.assert_array_equal(unpack_rows(records, matrix.data.dtype), matrix.rows[order])
    assert_same_bits(unpack_payload(records, matrix.data.dtype), matrix.data[order])


@given(csr_matrices())
def test_scattering_rows_in_any_order_takes_one_tile(matrix: Csr) -> None:
    """Then repeated and unsorted entries keep their order as well."""
    records, _ = scattered(matrix, max(matrix.shape[1], 1))
    order = np.argsort(matrix.indices, kind="stable")
    np.testing.assert_array_equal(unpack_rows(records, matrix.data.dtype), matrix.rows[order])


@given(csr_matrices(), st.data())
def test_placing_fills_the_region_and_nothing_beside_it(matrix: Csr, data: st.DataObject) -> None:
    """A region cut anywhere gets its slice of the sorted entries; cursors move by all of them."""
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, matrix.nnz)] * 2)))
    records, counts = scattered(matrix, max(matrix.shape[1], 1))
    ends = np.cumsum(counts, dtype=np.int64)
    cursors = ends - counts - start
    rows = np.full(stop - start, -1, np.int32)
    values = np.empty(stop - start, matrix.data.dtype)
    where = (records, counts, cursors, stop - start, 1000)
    if record_words(matrix.data.dtype) == 1:
        kernels.place_words(*where, np.uint64(records.itemsize * 4), rows, payload_bits(values))
    else:
        kernels.place_wide(*where, rows, payload_bits(values))
    order = np.argsort(matrix.indices, kind="stable")[start:stop]
    np.testing.assert_array_equal(rows, 1000 + matrix.rows[order])
    assert_same_bits(values, matrix.data[order])
    np.testing.assert_array_equal(cursors, ends - start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_the_largest_block_fit_the_narrowest_record(dtype: str) -> None:
    """The last row of a block of 65,536 comes back, beside a value with every bit set."""
    rows = 65_536
    values = (
        np.array([True])
        if dtype == "?"
        else np.full(np.dtype(dtype).itemsize, 255, np.uint8).view(dtype)
    )
    indptr = np.zeros(rows + 1, np.int64)
    indptr[-1] = 1
    matrix = Csr(values, np.zeros(1, np.int64), indptr, (rows, 1))
    records, _ = scattered(matrix, max(matrix.shape[1], 1))
    assert unpack_rows(records, values.dtype).tolist() == [rows - 1]
    assert_same_bits(unpack_payload(records, values.dtype), values)


def test_kernels_compile_where_no_directory_can_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside the package, which is another user's, nor in a home, which is not there."""

    def added(left: int, right: int) -> int:
        return left + right

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert kernel(added)(1, 2) == 3
