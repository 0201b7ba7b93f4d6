"""The synthetic source is a valid AnnData file, says the truth about itself, and looks real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from dask_convert.example import synthetic
from dask_convert.example.synthetic import write_synthetic_h5ad
from dask_convert.example.synthetic_model import SyntheticModel, sample_rows

if TYPE_CHECKING:
    from pathlib import Path

N_OBS, N_VARS, DENSITY = 700, 900, 0.15


def matrix_of(path: Path) -> sp.csr_matrix:
    """Read `X` with h5py and scipy only."""
    with h5py.File(path) as file:
        group = file["X"]
        members = group["data"][:], group["indices"][:], group["indptr"][:]
        return sp.csr_matrix(members, shape=tuple(group.attrs["shape"]))


def assert_same_members(first: sp.csr_matrix, second: sp.csr_matrix) -> None:
    """Equal entry by entry, in the same order, with the same types."""
    for name in ("data", "indices", "indptr"):
        a, b = getattr(first, name), getattr(second, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("synthetic") / "small.h5ad"
    nnz = write_synthetic_h5ad(target, n_obs=N_OBS, n_vars=N_VARS, density=DENSITY, processes=1)
    assert nnz == matrix_of(target).nnz
    return target


def test_anndata_reads_what_anndata_would_have_written(path: Path, tmp_path: Path) -> None:
    adata = ad.read_h5ad(path)
    assert adata.shape == (N_OBS, N_VARS)
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert list(adata.obs) == ["cell_type", "batch", "total_counts", "n_genes"]
    assert adata.obs["cell_type"].dtype == "category"
    assert adata.obs["batch"].dtype == "category"
    assert adata.var["highly_abundant"].dtype == bool
    assert adata.obsm["X_umap"].shape == (N_OBS, 2)
    assert adata.obsm["X_umap"].dtype == np.float32
    assert adata.uns["synthetic"]["seed"] == 0

    rewritten = tmp_path / "rewritten.h5ad"
    adata.write_h5ad(rewritten, compression="gzip", compression_opts=4)
    with h5py.File(path) as ours, h5py.File(rewritten) as theirs:
        assert set(ours) == set(theirs)
        assert dict(ours.attrs) == dict(theirs.attrs)
        for key in ("encoding-type", "encoding-version"):
            assert ours["X"].attrs[key] == theirs["X"].attrs[key]
        for name in ("data", "indices", "indptr"):
            a, b = ours["X"][name], theirs["X"][name]
            for trait in ("shape", "dtype", "chunks", "maxshape", "compression"):
                assert getattr(a, trait) == getattr(b, trait), (name, trait)
            assert a.compression_opts == b.compression_opts
            assert a.id.get_num_chunks() == b.id.get_num_chunks()
            np.testing.assert_array_equal(a[:], b[:])


def test_annotations_are_those_of_the_matrix(path: Path) -> None:
    adata = ad.read_h5ad(path)
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(adata.obs["total_counts"].to_numpy(), totals)
    np.testing.assert_array_equal(adata.obs["n_genes"].to_numpy(), np.diff(adata.X.indptr))


def test_members_are_canonical_small_positive_counts(path: Path) -> None:
    x = matrix_of(path)
    rows = np.repeat(np.arange(N_OBS), np.diff(x.indptr))
    assert np.all(np.diff(rows * N_VARS + x.indices) > 0)
    assert x.indices.min() >= 0
    assert x.indices.max() < N_VARS
    assert x.data.dtype == np.float64
    assert x.data.min() == 1
    np.testing.assert_array_equal(x.data, np.round(x.data))


@pytest.mark.parametrize("density", [0.01, 0.15, 0.6])
def test_density_is_the_one_asked_for(density: float) -> None:
    model = SyntheticModel(3000, 2000, density, 5, 1).calibrated()
    nnz = model.row_nnz(0, 3000).sum(dtype=np.int64)
    assert nnz / (3000 * 2000) == pytest.approx(density, rel=0.05)


def test_values_are_skewed_and_over_dispersed(path: Path) -> None:
    x = matrix_of(path)
    assert 0.4 < np.mean(x.data == 1) < 0.75
    assert x.data.max() > 100
    dense = x.toarray()
    means, variances = dense.mean(axis=0), dense.var(axis=0)
    common = means > 0.5
    assert np.all(variances[common] > means[common])
    share_of_cells = (dense > 0).mean(axis=0)
    assert share_of_cells.max() > 0.95
    assert np.median(share_of_cells) < DENSITY / 2


def test_counts_follow_the_negative_binomial_of_the_model() -> None:
    """One gene, one type, one library size: compare with the distribution in closed form."""
    model = SyntheticModel(1, 60_000, 0.5, 1, 3)
    cells = model.cells(np.arange(1))
    half = 4.0
    n_vars = model.n_vars
    indices, data = np.empty(n_vars + 1, np.int32), np.empty(n_vars + 1)
    totals = np.empty(1, np.int64)
    profile = np.full((1, n_vars), half, np.float32)
    library = np.ones(1, np.float32)
    nnz = sample_rows(cells.keys, cells.types, library, profile, indices, data, totals)
    counts = np.bincount(data[:nnz].astype(int), minlength=200)
    counts[0] = n_vars - nnz
    p, k = 1 / (1 + half), np.arange(counts.size)
    expected = n_vars * (k + 1) * (1 - p) ** k * p**2
    common = expected > 20
    chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert chi2 < 2 * common.sum()
    assert totals[0] / n_vars == pytest.approx(2 * half, rel=0.03)


def test_the_matrix_does_not_depend_on_processes_or_tasks(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"n_obs": N_OBS, "n_vars": N_VARS, "density": DENSITY}
    write_synthetic_h5ad(tmp_path / "two.h5ad", **arguments, processes=2)
    assert_same_members(matrix_of(path), matrix_of(tmp_path / "two.h5ad"))

    monkeypatch.setattr(synthetic, "_COUNT_ROWS", 37)
    monkeypatch.setattr(synthetic, "_RUN_NNZ", 10_000)
    write_synthetic_h5ad(tmp_path / "cut.h5ad", **arguments, processes=1)
    assert_same_members(matrix_of(path), matrix_of(tmp_path / "cut.h5ad"))
    np.testing.assert_array_equal(
        ad.read_h5ad(path).obs["total_counts"],
        ad.read_h5ad(tmp_path / "cut.h5ad").obs["total_counts"],
    )


def test_seed_and_dtype(path: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"n_obs": N_OBS, "n_vars": N_VARS, "density": DENSITY}
    write_synthetic_h5ad(
        tmp_path / "narrow.h5ad", **arguments, data_dtype="uint32", compression_level=1, processes=1
    )
    narrow = matrix_of(tmp_path / "narrow.h5ad")
    assert narrow.data.dtype == np.uint32
    np.testing.assert_array_equal(narrow.data, matrix_of(path).data)

    write_synthetic_h5ad(tmp_path / "other.h5ad", **arguments, seed=1, processes=1)
    assert matrix_of(tmp_path / "other.h5ad").nnz != narrow.nnz


@pytest.mark.parametrize(("n_obs", "n_vars", "density"), [(1, 1, 0.5), (3, 1, 0.1), (40, 5, 1e-9)])
def test_tiny_and_empty_matrices(tmp_path: Path, n_obs: int, n_vars: int, density: float) -> None:
    target = tmp_path / "tiny.h5ad"
    nnz = write_synthetic_h5ad(target, n_obs=n_obs, n_vars=n_vars, density=density, processes=1)
    adata = ad.read_h5ad(target)
    assert adata.shape == (n_obs, n_vars)
    assert adata.X.nnz == nnz
    assert adata.obs["total_counts"].sum() == adata.X.sum()


def test_refuses_an_existing_path(tmp_path: Path) -> None:
    target = tmp_path / "taken.h5ad"
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"taken\.h5ad exists; pass overwrite=True"):
        write_synthetic_h5ad(target, n_obs=5, n_vars=5, processes=1)
    assert target.read_bytes() == b"precious"
    write_synthetic_h5ad(target, n_obs=5, n_vars=5, processes=1, overwrite=True)
    assert ad.read_h5ad(target).shape == (5, 5)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(synthetic, "_write_annotations", fail)
    with pytest.raises(OSError, match="disk full"):
        write_synthetic_h5ad(tmp_path / "failed.h5ad", n_obs=5, n_vars=5, processes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_obs", 0),
        ("n_vars", 0),
        ("density", 0.0),
        ("density", 0.95),
        ("n_types", 0),
        ("seed", -1),
        ("compression_level", 10),
        ("processes", 0),
        ("data_dtype", "uint8"),
    ],
)
def test_refuses_what_it_cannot_make(tmp_path: Path, name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"n_obs": 5, "n_vars": 5, "processes": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} is"):
        write_synthetic_h5ad(tmp_path / "never.h5ad", **arguments)


def test_markers_are_more_abundant_in_their_type() -> None:
    """By a factor of about e², against the gene's other types; ordinary genes are not."""
    model = SyntheticModel(n_obs=1, n_vars=4_000, density=0.1, n_types=6, seed=1)
    is_marker, logs = model.markers(), np.log(model.abundance())
    assert is_marker.mean() == pytest.approx(0.02, rel=0.2)
    excess = logs - np.median(logs, axis=0)
    assert np.median(excess[is_marker]) == pytest.approx(2.0, abs=0.2)
    assert np.median(excess[~is_marker]) == pytest.approx(0.0, abs=0.1)
