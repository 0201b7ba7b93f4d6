"""What is checked of every conversion before it is published: each error of its kind is found.

The oracle makes regions of the entries that numpy sorts into columns; then one thing is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from engine import TINY, convert, names
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import Csr, random_csr, write_h5ad

from dask_convert.cli import main
from dask_convert.conversion import run
from dask_convert.errors import IntegrityError
from dask_convert.shuffle.integrity import check_regions
from dask_convert.shuffle.placing import RegionEntries
from dask_convert.shuffle.row_checks import expected_row_sum, region_check

Sorted = tuple[NDArray[np.int64], NDArray[np.int64]]


def by_column(matrix: Csr) -> Sorted:
    """Columns and rows of all entries, column by column, in the order of rows."""
    order = np.lexsort((matrix.rows, matrix.indices))
    return matrix.indices[order], matrix.rows[order]


def check(matrix: Csr, entries: Sorted, region_nnz: int) -> None:
    """Check entries in regions, against row ends in slabs of 7 and duplicates that numpy counts."""
    _, rows = entries
    ends = np.cumsum(np.bincount(matrix.indices, minlength=matrix.shape[1]))
    checks = [
        region_check("X", start // region_nnz, 0, ends - start, rows[start : start + region_nnz])
        for start in range(0, rows.size, region_nnz)
    ]
    slabs = (matrix.indptr[at : at + 7] for at in range(1, matrix.indptr.size, 7))
    places = matrix.rows * matrix.shape[1] + matrix.indices
    duplicates = matrix.nnz - np.unique(places).size
    check_regions("X", checks, expected_row_sum(slabs), duplicates)


@st.composite
def matrices(draw: st.DrawFn) -> Csr:
    """Small matrices with empty rows and columns, and duplicates."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_obs, n_vars = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    return random_csr(rng, (n_obs, n_vars), rng.integers(0, 9, n_obs), "f4")


@given(matrices(), st.integers(1, 50))
def test_what_is_right_is_let_through(matrix: Csr, region_nnz: int) -> None:
    """Duplicates too, and columns that go on across borders."""
    check(matrix, by_column(matrix), region_nnz)


@given(matrices(), st.integers(1, 50), st.data())
def test_a_row_that_is_wrong_is_found(matrix: Csr, region_nnz: int, data: st.DataObject) -> None:
    """An entry that went to another row, which may be one of its own column."""
    assume(matrix.nnz > 0 and matrix.shape[0] > 1)
    columns, rows = by_column(matrix)
    at = data.draw(st.integers(0, rows.size - 1))
    rows[at] = data.draw(st.integers(0, matrix.shape[0] - 1).filter(lambda row: row != rows[at]))
    with pytest.raises(IntegrityError, match=r"nothing was published|across their border"):
        check(matrix, (columns, rows), region_nnz)


@given(matrices(), st.integers(1, 50), st.data())
def test_entries_out_of_order_are_found(matrix: Csr, region_nnz: int, data: st.DataObject) -> None:
    """Two neighbours of one column, in the same region or on either side of a border."""
    columns, rows = by_column(matrix)
    within = np.flatnonzero((np.diff(columns) == 0) & (np.diff(rows) > 0))
    assume(within.size)
    at = int(data.draw(st.sampled_from(list(within))))
    rows[[at, at + 1]] = rows[[at + 1, at]]
    with pytest.raises(IntegrityError, match=r"do not ascend|across their border"):
        check(matrix, (columns, rows), region_nnz)


@given(matrices(), st.integers(1, 50), st.data())
def test_two_entries_that_exchange_columns_and_so_lose_a_duplicate_are_found(
    matrix: Csr, region_nnz: int, data: st.DataObject
) -> None:
    """Rows keep their numbers of entries, columns theirs: only the duplicate tells."""
    columns, rows = by_column(matrix)
    repeated = np.flatnonzero((np.diff(columns) == 0) & (np.diff(rows) == 0))
    assume(repeated.size)
    at = int(data.draw(st.sampled_from(list(repeated))))
    others = np.flatnonzero(columns != columns[at])
    assume(others.size)
    other = int(data.draw(st.sampled_from(list(others))))
    rows[[at, other]] = rows[[other, at]]
    order = np.lexsort((rows, columns))
    places = rows * matrix.shape[1] + columns
    assume(np.unique(places).size != np.unique(by_place(matrix)).size)
    with pytest.raises(IntegrityError, match="at the place of another one"):
        check(matrix, (columns[order], rows[order]), region_nnz)


def by_place(matrix: Csr) -> NDArray[np.int64]:
    """One number for row and column of each entry."""
    places: NDArray[np.int64] = matrix.rows * matrix.shape[1] + matrix.indices
    return places


@pytest.fixture
def source(tmp_path: Path) -> Path:
    matrix = random_csr(np.random.default_rng(0), (30, 9), np.full(30, 4), "f4")
    return write_h5ad(tmp_path / "source.h5ad", matrix)


def test_a_bit_that_flips_in_memory_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the fragments and the target, where no checksum sees it; exit code 13."""
    rows_of = RegionEntries.rows
    bits = iter([1])

    def flipped(self: RegionEntries, start: int, stop: int) -> Any:
        rows = rows_of(self, start, stop)
        rows[17] ^= next(bits, 0)
        return rows

    monkeypatch.setattr(RegionEntries, "rows", flipped)
    arguments = ["convert", str(source), str(tmp_path / "genes.zarr"), "--workers", "0"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 13
    assert "error of this program or of this machine" in done.output
    assert names(tmp_path) == ["source.h5ad"]


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:5]), "is not as written"),
        (lambda path: path.with_name("999").write_bytes(b"strange"), "is not as written"),
    ],
    ids=["gone", "cut short", "a stranger"],
)
def test_a_file_that_somebody_changed_meanwhile_is_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, what: str
) -> None:
    """Nothing is published, and nothing is left."""
    check_files = run.check_matrix_files

    def spoilt(store: Path, plan: Any) -> None:
        spoil(store / "X" / "data" / "c" / "1")
        check_files(store, plan)

    monkeypatch.setattr(run, "check_matrix_files", spoilt)
    with pytest.raises(IntegrityError, match=what):
        convert(source, tmp_path / "genes.zarr", **TINY)
    assert names(tmp_path) == ["source.h5ad"]
