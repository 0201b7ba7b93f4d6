"""Exact means bit by bit: the vectorised rules against Python's own numbers, value by value."""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import bits
from strategies import DTYPES, random_values, special_values

from dask_convert.errors import PlanError
from dask_convert.planning.dtypes import (
    SUPPORTED,
    auto_dtypes,
    exact_mask,
    first_changed,
    requested_dtype,
)
from dask_convert.planning.records import payload_dtypes

FLOAT_CODES = {2: "e", 4: "f", 8: "d"}


def holds_exactly(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a type has this value, without numpy's casts: the oracle."""
    if value.dtype.kind == "c":
        real_kind = np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
        imaginary = (
            holds_exactly(value.imag, real_kind)
            if dtype.kind == "c"
            else is_positive_zero(value.imag)
        )
        return imaginary and holds_exactly(value.real, real_kind)
    if dtype.kind == "c":
        return holds_exactly(value, np.dtype(f"f{dtype.itemsize // 2}"))
    number = value.item()
    if dtype.kind == "b":
        return number in (0, 1) and not is_negative_zero(number)
    if dtype.kind in "iu":
        whole = math.isfinite(number) and number == int(number) and not is_negative_zero(number)
        return whole and np.iinfo(dtype).min <= int(number) <= np.iinfo(dtype).max
    return float_holds(value, number, dtype)


def float_holds(value: Any, number: float, dtype: np.dtype[Any]) -> bool:
    """Whether a float type has this number; a NaN must keep its payload."""
    if value.dtype.kind == "f" and math.isnan(number):
        return dtype.itemsize == value.dtype.itemsize or nan_fits(value, dtype)
    try:
        packed = struct.pack(FLOAT_CODES[dtype.itemsize], number)
    except (OverflowError, struct.error):
        return False
    back = struct.unpack(FLOAT_CODES[dtype.itemsize], packed)[0]
    return back == number  # Python compares integers and floats exactly


def nan_fits(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a NaN is a quiet one (casts make it so) and ends in as many zeros as are cut off."""
    mantissa = {2: 10, 4: 23, 8: 52}
    own, other = mantissa[value.dtype.itemsize], mantissa[dtype.itemsize]
    payload = int(value.view(f"u{value.dtype.itemsize}")) & ((1 << own) - 1)
    return bool(payload >> (own - 1)) and not payload & ((1 << max(own - other, 0)) - 1)


def is_negative_zero(number: float) -> bool:
    return number == 0 and math.copysign(1, number) < 0


def is_positive_zero(number: float) -> bool:
    return number == 0 and math.copysign(1, number) > 0


def first_changed_slowly(values: NDArray[Any], dtype: np.dtype[Any]) -> int:
    """Value by value."""
    return next((at for at, value in enumerate(values) if not holds_exactly(value, dtype)), -1)


@pytest.mark.parametrize(("source", "asked"), list(itertools.product(DTYPES, DTYPES)))
def test_every_special_value_in_every_type(source: str, asked: str) -> None:
    """Limits of all types, −0.0, infinities and NaN payloads are told exactly."""
    values = np.array([False, True]) if source == "?" else special_values(source)
    dtype = np.dtype(asked)
    for value in values:
        alone = np.array([value])
        assert (first_changed(alone, dtype) < 0) == holds_exactly(alone[0], dtype), repr(value)


@pytest.mark.parametrize("asked", DTYPES)
def test_a_signalling_nan_is_told_without_a_warning(asked: str) -> None:
    """Processors call its cast to a wider type invalid; integers hold none."""
    values = np.array([0x3F800000, 0x7F800001], "u4").view("f4")
    expected = first_changed_slowly(values, np.dtype(asked))
    assert first_changed(values, np.dtype(asked)) == expected
    assert first_changed(np.repeat(values, 7), np.dtype(asked)) == (7 if expected >= 0 else -1)


@given(st.data())
def test_first_changed_is_the_first_value_that_does_not_come_back(data: st.DataObject) -> None:
    """The position is that of the first value the oracle refuses, among many."""
    source, asked = data.draw(st.tuples(*[st.sampled_from(DTYPES)] * 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(["counts", "bits", "special"]))
    values = random_values(rng, data.draw(st.integers(0, 20)), source, kind)
    dtype = np.dtype(asked)
    assert first_changed(values, dtype) == first_changed_slowly(values, dtype)


@given(st.data())
def test_exact_mask_is_the_and_over_values_and_pieces(data: st.DataObject) -> None:
    """Every payload that holds a piece leads to the same mask, and masks add up over pieces."""
    source = data.draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(["counts", "bits", "special"]))
    pieces = [
        random_values(rng, size, source, kind) for size in data.draw(st.lists(st.integers(0, 5)))
    ]
    candidates = auto_dtypes(np.dtype(source))
    mask = (1 << len(candidates)) - 1
    for piece in pieces:
        holding = [p for p in payload_dtypes(piece.dtype) if first_changed_slowly(piece, p) < 0]
        masks = {exact_mask(piece, payload, candidates, mask) for payload in holding}
        assert len(masks) == 1
        (mask,) = masks
    everything = np.concatenate([np.empty(0, source), *pieces])
    exact = [first_changed_slowly(everything, candidate) < 0 for candidate in candidates]
    assert [bool(mask >> number & 1) for number in range(len(candidates))] == exact


@pytest.mark.parametrize("dtype", [np.dtype(dtype) for dtype in DTYPES], ids=str)
def test_auto_tries_smaller_types_first_and_ends_with_its_own(dtype: np.dtype[Any]) -> None:
    """No candidate is larger than the source's type or larger than the one after it."""
    sizes = [candidate.itemsize for candidate in auto_dtypes(dtype)]
    assert sizes == sorted(sizes)
    assert auto_dtypes(dtype)[-1] == dtype
    assert len(set(auto_dtypes(dtype))) == len(sizes)


@pytest.mark.parametrize("code", SUPPORTED)
def test_every_supported_type_can_be_asked_for(code: str) -> None:
    """By its name, in native byte order; `same` and `auto` stand for the source's and for none."""
    dtype = np.dtype(code) if code != "b1" else np.dtype(bool)
    assert requested_dtype(dtype.name, np.dtype("f8")) == dtype
    assert requested_dtype(dtype.newbyteorder().str, np.dtype("f8")) == dtype
    assert requested_dtype("same", dtype) is dtype
    assert requested_dtype("auto", dtype) is None


@pytest.mark.parametrize(
    "name",
    [
        *("", "flaot32", "U5", "O", "datetime64[s]", "V8", "longdouble", "f8,f8", "3f8"),
        *("(2,", "('f4',", "99999999999999999999f4", "f4\0", "(2,)f4,", "[", "f4" * 1000),
    ],
)
def test_a_name_that_is_no_type_of_a_matrix_is_refused(name: str) -> None:
    """The message has the name."""
    with pytest.raises(PlanError, match="data_dtype") as caught:
        requested_dtype(name, np.dtype("f8"))
    assert repr(name) in str(caught.value)


def test_oracle_tells_bits_apart() -> None:
    """The tests' own comparison is not fooled by equal values."""
    assert bits(np.array([0.0])).tolist() != bits(np.array([-0.0])).tolist()
    assert bits(special_values("f8")[-1:]).tolist() != bits(special_values("f8")[-2:-1]).tolist()
