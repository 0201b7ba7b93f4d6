"""A keyed digest of a sparse matrix that does not care in which order entries come.

Every entry (row, column, bits of its value) becomes a word, by a non-linear mix with random keys,
and the words are summed mod 2⁶⁴. Whoever reads a matrix by rows and whoever reads it by columns
come to the same sums. Sums are kept per *cell*, a group of rows times a group of columns, so that
a difference can be located.

    x     = row · k₁ + column · k₂ + (v ⊕ v ≫ 32) · k₃ + k₄       odd random keys, mod 2⁶⁴
    word  = splitmix64's finaliser of x                           (Steele, Lea and Flood 2014)

A value, a row or a column that is another one always changes x, since the keys are odd; an
exchange of values between two entries leaves the sum of x as it was, which is what the
finaliser is for. (A sum or XOR of CRCs, being linear, would not see it.) That two different
multisets of entries come to the same sum in a cell has a chance of about 2⁻⁶⁴ over the keys,
which are drawn anew for every run. Values of 16 bytes are mixed down to 8 first, with keys of
their own.

None of the engine's kernels is used here. The compiler is loaded where entries are added.
"""

from __future__ import annotations

import secrets
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Format = Literal["csr", "csc"]

GROUP_BITS = 6
"""An axis is cut into at most 2 to this power groups."""

WORDS = 2
"""Of a cell: the sum, and the number of entries."""

_KEYS = 6


class Keys(msgspec.Struct, frozen=True):
    """The keys of a run; all odd.

    Attributes
    ----------
    words
        Row, column, value, offset, and two for values of 16 bytes.
    """

    words: tuple[int, ...]

    @classmethod
    def random(cls) -> Keys:
        """New keys, from the system's source of randomness."""
        return cls(tuple(secrets.randbits(64) | 1 for _ in range(_KEYS)))

    def by_axis(self, matrix_format: Format) -> NDArray[np.uint64]:
        """Major axis, minor axis, value, offset, two wide; shape (6,)."""
        keys = np.array(self.words, np.uint64)
        return keys if matrix_format == "csr" else keys[[1, 0, 2, 3, 4, 5]]


class Grid(msgspec.Struct, frozen=True):
    """How a matrix is cut into cells: groups of a power of two of rows, and of columns."""

    n_obs: int
    n_vars: int

    @property
    def row_shift(self) -> int:
        """Binary logarithm of the rows of a group."""
        return _shift(self.n_obs)

    @property
    def column_shift(self) -> int:
        """Binary logarithm of the columns of a group."""
        return _shift(self.n_vars)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups of rows, groups of columns, words of a cell."""
        return (_groups(self.n_obs), _groups(self.n_vars), WORDS)

    def empty(self) -> NDArray[np.uint64]:
        """Cells without an entry."""
        return np.zeros(self.shape, np.uint64)


class Scan(msgspec.Struct):
    """What a digest notes of the entries that it passes.

    Attributes
    ----------
    descents
        Entries whose minor index is less than that of the one before, within a major slice.
    outside
        Entries whose minor index is no index of the matrix; they are left out of the sums.
    first, last
        Major and minor index of the first and of the last entry; None before there is any.
    """

    descents: int = 0
    outside: int = 0
    first: tuple[int, int] | None = None
    last: tuple[int, int] | None = None


def saved_cells(keys: Keys, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Cells as they are kept in a file, with the keys that they belong to."""
    return np.concatenate([np.array(keys.words, np.uint64), cells.reshape(-1)])


def loaded_cells(grid: Grid, keys: Keys, saved: NDArray[np.uint64]) -> NDArray[np.uint64] | None:
    """What `saved_cells` made; None if it is of other keys or of another matrix."""
    own, cells = saved[:_KEYS], saved[_KEYS:]
    expected = np.array(keys.words, np.uint64)
    if saved.dtype != np.uint64 or not np.array_equal(own, expected):
        return None
    return cells.reshape(grid.shape) if cells.size == np.prod(grid.shape) else None


class Digest:
    """Sums the entries of a matrix, or of a part of it, slab after slab.

    Parameters
    ----------
    grid, keys
        The same for all that is to be compared.
    matrix_format
        In which order entries come: ``csr`` if rows are the major axis.
    """

    def __init__(self, grid: Grid, keys: Keys, matrix_format: Format) -> None:
        self.cells = grid.empty()
        self.scan = Scan()
        self._keys = keys.by_axis(matrix_format)
        by_row = matrix_format == "csr"
        shifts = (grid.row_shift, grid.column_shift)
        n_minor = grid.n_vars if by_row else grid.n_obs
        self._axes = np.array([*shifts[:: 1 if by_row else -1], n_minor], np.int64)
        self._by_major = self.cells if by_row else self.cells.transpose(1, 0, 2)

    def add(
        self,
        minors: NDArray[np.integer[Any]],
        values: NDArray[Any],
        first_major: int,
        major_ends: NDArray[np.int64],
    ) -> None:
        """Add consecutive entries; O(n).

        Parameters
        ----------
        minors, values
            Their minor indices and values, of equal length.
        first_major
            The major index that the first element of `major_ends` belongs to.
        major_ends
            Where each major slice ends, counted from the first of these entries; ascending,
            the last one at or beyond the last entry.
        """
        if not minors.size:
            return
        from dask_convert.shuffle import digest_kernels

        minors = _signed(minors)
        noted = np.zeros(4, np.int64)
        digest_kernels.add_entries(
            minors,
            self._words(values),
            first_major,
            major_ends,
            self._keys,
            self._axes,
            self._by_major,
            noted,
        )
        descents, outside, *majors = noted.tolist()
        first, last = zip(majors, (int(minors[0]), int(minors[-1])), strict=True)
        scan = self.scan
        scan.descents += descents + descends(scan.last, first)
        scan.outside += outside
        scan.first = scan.first or first
        scan.last = last

    def _words(self, values: NDArray[Any]) -> NDArray[Any]:
        """The bits of values as unsigned integers; 16 bytes are mixed down to 8."""
        values = np.ascontiguousarray(values)
        if values.itemsize < 16:
            return values.view(f"u{values.itemsize}")
        from dask_convert.shuffle import digest_kernels

        folded = np.empty(values.size, np.uint64)
        digest_kernels.fold(values.view(np.uint64).reshape(-1, 2), self._keys[4:], folded)
        return folded


def descends(last: tuple[int, int] | None, first: tuple[int, int] | None) -> bool:
    """Whether an entry that follows another in the same major slice has a lesser minor index."""
    return last is not None and first is not None and last[0] == first[0] and last[1] > first[1]


def _signed(minors: NDArray[np.integer[Any]]) -> NDArray[np.signedinteger[Any]]:
    """Indices as int32 or int64; those too large for either become negative."""
    if minors.dtype in (np.int32, np.int64):
        return np.ascontiguousarray(minors)
    return minors.astype(np.int32 if minors.dtype == np.uint16 else np.int64)


def _shift(length: int) -> int:
    return max(max(length - 1, 0).bit_length() - GROUP_BITS, 0)


def _groups(length: int) -> int:
    return max(-(-length >> _shift(length)), 1)
