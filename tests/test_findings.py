"""Unusual entries are counted as numpy counts them, kept, and refused by `strict` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine import MEMORY_BYTES, TINY, convert, names
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_converted
from strategies import (
    DTYPES,
    Csr,
    csr_from_rows,
    csr_matrices,
    random_csr,
    random_values,
    share,
    write_h5ad,
)

import dask_convert
from dask_convert.display import summary
from dask_convert.errors import SourceWarning, StrictError
from dask_convert.shuffle.duplicates import first_duplicate, order_and_duplicates
from dask_convert.shuffle.findings import (
    Findings,
    first_unusual,
    value_findings,
)


def expected_findings(matrix: Csr) -> Findings:
    """By numpy, and the definition."""
    places = matrix.rows * (matrix.shape[1] + 1) + matrix.indices
    with np.errstate(invalid="ignore"):  # of signalling NaN
        values = matrix.data.astype("c16") if matrix.data.dtype.kind == "c" else matrix.data
        nan, infinite, zero = np.isnan(values), np.isinf(values), values == 0
    return Findings(
        duplicate_nnz=matrix.nnz - np.unique(places).size,
        zero_nnz=int(zero.sum()),
        nan_nnz=int(nan.sum()),
        infinite_nnz=int((infinite & ~nan).sum()),
    )


@given(csr_matrices(min_obs=1))
def test_order_and_duplicates_are_those_of_numpy(matrix: Csr) -> None:
    """Sorted rows take the fast way, by neighbours; others the general one."""
    indices, ends = matrix.indices.astype(np.int32), matrix.indptr[1:].astype(np.int64)
    ascending, duplicates = order_and_duplicates(indices, ends, matrix.shape[1])
    within = np.diff(matrix.rows) == 0
    assert ascending == bool((np.diff(matrix.indices)[within] >= 0).all())
    assert duplicates == expected_findings(matrix).duplicate_nnz
    assert (first_duplicate(indices, ends, matrix.shape[1]) >= 0) == (duplicates > 0)


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_values_are_counted_as_numpy_counts_them(dtype: str, seed: int, size: int) -> None:
    """Every type, limits and any bits; the first unusual one is found."""
    rng = np.random.default_rng(seed)
    kind = "counts" if dtype == "?" else str(rng.choice(["special", "bits", "counts"]))
    values = random_values(rng, size, dtype, kind)
    with np.errstate(invalid="ignore"):
        nan, infinite, zero = np.isnan(values), np.isinf(values), values == 0
    found = value_findings(values)
    assert (found.zero_nnz, found.nan_nnz) == (zero.sum(), nan.sum())
    assert found.infinite_nnz == (infinite & ~nan).sum()
    unusual = np.flatnonzero(nan | infinite | zero)
    assert first_unusual(values) == (unusual[0] if unusual.size else -1)


@settings(max_examples=share(50))
@given(st.integers(0, 2**32 - 1))
def test_a_conversion_counts_and_keeps_them(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Over many blocks and pieces, narrowed or not: the sums, and the same bits."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(["counts", "special"]))
    matrix = random_csr(rng, (40, 9), rng.integers(0, 9, 40), str(rng.choice(["f4", "f8"])), kind)
    directory = tmp_path_factory.mktemp("findings")
    source = write_h5ad(directory / "source.h5ad", matrix)
    (result,) = convert(source, directory / "target.zarr", **TINY).matrices
    assert result.findings == expected_findings(matrix)
    assert_converted(directory / "target.zarr", matrix)


@pytest.mark.parametrize(
    ("columns", "values", "words"),
    [
        ([[0, 2], [1, 2, 1]], [1, 2, 3, 4, 5], ["X/indices[4] is 1", "row 1", "duplicates"]),
        ([[0, 2], [1, 2]], [1, 2, 0, 4], ["X/data[2] is 0.0,", "row 1, column 1"]),
        ([[0, 2], [1, 2]], [1, np.nan, 3, 4], ["X/data[1] is nan,", "row 0, column 2"]),
        ([[0, 2], [1, 2]], [1, 2, 3, -np.inf], ["X/data[3] is -inf,", "row 1"]),
    ],
)
def test_strict_refuses_them_by_name(
    tmp_path: Path, columns: Any, values: list[float], words: list[str]
) -> None:
    """Position, value, row and rule are told; without `strict` the same file is converted."""
    matrix = csr_from_rows(columns, 3, np.array(values, "f8"))
    source = write_h5ad(tmp_path / "source.h5ad", matrix)
    with pytest.raises(StrictError) as caught:
        convert(source, tmp_path / "target.zarr", strict=True)
    assert [word for word in words if word not in str(caught.value)] == []
    assert "--strict" in str(caught.value)
    assert names(tmp_path) == ["source.h5ad"]
    result = convert(source, tmp_path / "target.zarr")
    assert "kept     1 entries that" in summary.of_result(result)


def test_strict_converts_what_is_in_order(tmp_path: Path) -> None:
    """And the summary has nothing to tell."""
    matrix = csr_from_rows([[0, 2], [1]], 3, np.ones(3))
    source = write_h5ad(tmp_path / "source.h5ad", matrix)
    result = convert(source, tmp_path / "target.zarr", strict=True)
    assert result.matrices[0].findings == Findings()
    assert "kept" not in summary.of_result(result)


def test_a_square_matrix_is_a_warning(tmp_path: Path) -> None:
    """Its shape does not tell CSR from CSC."""
    matrix = csr_from_rows([[0, 2], [1], []], 3, np.ones(3))
    source = write_h5ad(tmp_path / "source.h5ad", matrix)
    with pytest.warns(SourceWarning, match="X: as many obs as vars"):
        plan = dask_convert.plan(source, workers=0, memory=MEMORY_BYTES)
    assert "note     as many obs as vars" in summary.of_plan(plan)
