"""A record carries its row and every bit of its value, and is as small as promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same_bits
from strategies import DTYPES, random_values

from dask_convert.planning.dtypes import SUPPORTED
from dask_convert.planning.records import (
    MAX_BLOCK_ROWS,
    native_dtype,
    pack_records,
    payload_bits,
    payload_dtypes,
    record_bytes,
    record_words,
    type_code,
    unpack_payload,
    unpack_rows,
    word_dtype,
)

ALL = [np.dtype(dtype) for dtype in DTYPES]


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["counts", "special", "bits"]))
def test_records_give_back_what_they_were_packed_from(dtype: str, seed: int, kind: str) -> None:
    """Rows and the bits of values survive, up to the last row that a block can have."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, MAX_BLOCK_ROWS, 20)
    rows[0] = MAX_BLOCK_ROWS - 1
    values = random_values(rng, 20, dtype, kind)
    records = pack_records(rows, values)
    np.testing.assert_array_equal(unpack_rows(records, values.dtype), rows)
    assert_same_bits(unpack_payload(records, values.dtype), values)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_size_of_a_record_is_that_of_its_words(dtype: np.dtype) -> None:
    """`record_bytes`, `record_words`, `word_dtype` and a packed record agree."""
    record = pack_records(np.zeros(1, np.int64), np.zeros(1, dtype))
    assert record.nbytes == record_bytes(dtype) == record_words(dtype) * word_dtype(dtype).itemsize
    assert record.dtype == word_dtype(dtype)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_payloads_get_wider_and_end_in_the_type_itself(dtype: np.dtype) -> None:
    """Widening always goes on and always ends; no step makes a record smaller."""
    payloads = payload_dtypes(dtype)
    sizes = [record_bytes(payload) for payload in payloads]
    assert payloads[-1] == dtype
    assert sizes == sorted(set(sizes))
    assert all(np.can_cast(narrow, dtype, "same_kind") for narrow in payloads)


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_payload_bits_share_memory_with_the_values(dtype: np.dtype) -> None:
    """They are a view, and one word per 8 bytes."""
    values = np.zeros(6, dtype)
    bits = payload_bits(values)
    assert np.shares_memory(bits, values)
    assert bits.shape == ((6,) if dtype.itemsize < 8 else (6, dtype.itemsize // 8))


def test_type_codes_know_no_byte_order() -> None:
    """The supported types are named alike in both byte orders."""
    for dtype in ALL:
        swapped = dtype.newbyteorder()
        assert type_code(dtype) == type_code(swapped) in SUPPORTED
        assert native_dtype(swapped.str) == dtype
