"""Digests of entries: each cell has the sums that the formula says, whichever way they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_convert.shuffle.digests import Digest, Grid, Keys

WORD = 2**64


def mixed(x: int) -> int:
    """The finaliser of splitmix64, by Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def expected_cells(grid: Grid, keys: Keys, entries: list[tuple[int, int, int]]) -> np.ndarray:
    """Sums of the words of (row, column, bits of the value), by the formula."""
    cells = np.zeros(grid.shape, object)
    for row, column, bits in entries:
        cell = cells[row >> grid.row_shift, column >> grid.column_shift]
        rows, columns, values, offset = keys.words[:4]
        x = row * rows + column * columns + (bits ^ (bits >> 32)) * values + offset
        cell[0] = (cell[0] + mixed(x % WORD)) % WORD
        cell[1] += 1
    return cells


@st.composite
def slices(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Minor indices of a few major slices, where those end, and the length of the minor axis."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_minor = draw(st.sampled_from([1, 5, 64, 65, 700, 20_000]))
    lengths = rng.integers(0, draw(st.sampled_from([3, 40, 700])), draw(st.integers(1, 4)))
    minors = rng.integers(0, n_minor, lengths.sum())
    ends = np.cumsum(lengths)
    if draw(st.booleans()):
        for own in np.split(minors, ends[:-1]):
            own.sort()
    if draw(st.booleans()) and minors.size:
        minors[rng.integers(minors.size)] = draw(st.sampled_from([-1, n_minor, 2**31 - 1]))
    return minors, ends, n_minor


@settings(max_examples=60, deadline=None)
@given(slices(), st.sampled_from(["i4", "i8"]), st.sampled_from(["u1", "f4", "f8"]), st.data())
def test_sums_are_those_of_the_formula(
    case: tuple[np.ndarray, np.ndarray, int], index: str, dtype: str, data: st.DataObject
) -> None:
    """In order or not, inside of the matrix or not, at once or cut anywhere."""
    minors, ends, n_minor = case
    by_row = data.draw(st.booleans())
    cut = data.draw(st.integers(0, minors.size))
    keys = Keys.random()
    grid = Grid(ends.size + 3, n_minor) if by_row else Grid(n_minor, ends.size + 3)
    bits = np.random.default_rng(0).integers(0, 256, (minors.size, np.dtype(dtype).itemsize), "u1")
    values = bits.view(dtype).reshape(-1)
    digest = Digest(grid, keys, "csr" if by_row else "csc")
    for start, stop in ((0, cut), (cut, minors.size)):
        part: Any = minors[start:stop].astype(index)
        digest.add(part, values[start:stop], 3, ends - start)
    majors = 3 + np.searchsorted(ends, np.arange(minors.size), side="right")
    words = values.view(f"u{values.itemsize}").tolist()
    inside = (minors >= 0) & (minors < n_minor)
    pairs = (majors, minors) if by_row else (minors, majors)
    entries = list(zip(*(axis.tolist() for axis in pairs), words, strict=True))
    found = [entry for entry, good in zip(entries, inside, strict=True) if good]
    assert digest.cells.tolist() == expected_cells(grid, keys, found).tolist()
    assert digest.scan.outside == np.count_nonzero(~inside)
    descents = (np.diff(minors) < 0) & (np.diff(majors) == 0)
    assert digest.scan.descents == np.count_nonzero(descents)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16"])
def test_rows_and_columns_come_to_the_same(dtype: str) -> None:
    """A matrix and its transpose, as scipy orders them."""
    values = np.random.default_rng(1).random((900, 700))
    matrix = sp.csr_array(np.where(values < 0.3, values, 0)).astype(dtype)
    keys, grid = Keys.random(), Grid(*matrix.shape)
    found = []
    for stored in (matrix, matrix.tocsc()):
        digest = Digest(grid, keys, stored.format)
        digest.add(stored.indices, stored.data, 0, stored.indptr[1:].astype(np.int64))
        found.append(digest)
    np.testing.assert_array_equal(found[0].cells, found[1].cells)
    assert found[0].cells[..., 1].sum() == matrix.nnz
    assert [digest.scan.descents for digest in found] == [0, 0]
