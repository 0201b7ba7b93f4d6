"""Statistics per gene and group: the oracle is pandas on the dense matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Csr, share, write_h5ad

from dask_convert import open_store
from dask_convert.api import convert
from dask_convert.errors import SelectionError
from dask_convert.places.local_cluster import local_client
from dask_convert.planning.planner import conversion_plan
from dask_convert.planning.plans import Settings
from dask_convert.reading import gene_stats as module
from dask_convert.reading.gene_stats import Groups, block_stats, groups_of
from dask_convert.reading.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

N_OBS, N_VARS = 90, 25


def by_pandas(dense: np.ndarray, labels: pd.Series) -> pd.DataFrame:
    """What is asked for, the slow and obvious way."""
    frame = pd.DataFrame(dense)
    groups = frame.groupby(labels.to_numpy(), observed=True)
    stacked = {
        "n_obs": groups.size().to_frame().reindex(columns=[0] * dense.shape[1]),
        "n_expressing": (frame != 0).groupby(labels.to_numpy(), observed=True).sum(),
        "fraction": (frame != 0).groupby(labels.to_numpy(), observed=True).mean(),
        "mean": groups.mean(),
        "variance": groups.var(),
    }
    return pd.DataFrame({name: table.to_numpy().T.ravel() for name, table in stacked.items()})


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, pd.Series]:
    """Small matrices of large and small values, and labels, some of them missing."""
    n_obs, n_vars = draw(st.integers(1, 30)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dense = rng.poisson(draw(st.sampled_from([0.1, 1, 5])), (n_obs, n_vars)).astype("f8")
    dense *= draw(st.sampled_from([1.0, 1e-3, 1e9]))
    dense += draw(st.sampled_from([0.0, 0.0, 1e6]))
    labels = draw(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=n_obs, max_size=n_obs))
    labels[draw(st.integers(0, n_obs - 1))] = "a"
    return dense, pd.Series(labels, dtype="category" if draw(st.booleans()) else object)


@settings(max_examples=share(200))
@given(cases())
def test_a_block_is_what_pandas_says(case: tuple[np.ndarray, pd.Series]) -> None:
    """Also where values are large and differ little, and where groups are of one obs."""
    dense, labels = case
    groups = groups_of(labels, None)
    n_obs = np.bincount(groups.codes[groups.codes >= 0])
    found = block_stats(sp.csc_array(dense), groups.codes, n_obs)
    wanted = by_pandas(dense, labels)
    np.testing.assert_array_equal(found.n_expressing.ravel(), wanted["n_expressing"])
    np.testing.assert_allclose(found.mean.ravel(), wanted["mean"], rtol=1e-12)
    scale = np.abs(dense).max(initial=1) ** 2
    np.testing.assert_allclose(
        found.variance.ravel(), wanted["variance"], rtol=1e-9, atol=1e-20 * scale
    )


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    return np.random.default_rng(0).poisson(0.6, (N_OBS, N_VARS)).astype("f4")


@pytest.fixture(scope="module")
def path(dense: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stats")
    csr = sp.csr_array(dense)
    matrix = Csr(csr.data, csr.indices, csr.indptr, csr.shape)
    source = write_h5ad(directory / "cells.h5ad", {"X": matrix, "raw/X": matrix})
    convert(source, directory / "genes.zarr", workers=0, chunk_nnz=20, shard_nnz=0, codec="lz4")
    return directory / "genes.zarr"


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that there are many."""
    monkeypatch.setattr(module.gene_stats, "__defaults__", (64,))


LABELS = pd.Series(["x", "y", "z"] * (N_OBS // 3))


def check(store: Store, dense: np.ndarray, **options: object) -> None:
    labels = LABELS.rename("kind")
    found = store.gene_stats(labels, **options)
    assert found.index.names == ["gene", "kind"]
    assert list(found.index.get_level_values(0)) == list(np.repeat(store.var_names, 3))
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), by_pandas(dense, LABELS), check_dtype=False
    )


def test_all_genes_in_all_groups(path: Path, dense: np.ndarray) -> None:
    """On dask's default scheduler, from X and from raw."""
    store = open_store(path)
    check(store, dense)
    check(store, dense, matrix="raw/X")


def column_sums(block: sp.csc_array) -> np.ndarray:
    """A function per gene, as a user would write it."""
    return np.asarray(block.sum(axis=0)).reshape(1, -1)


def test_on_a_cluster(path: Path, dense: np.ndarray) -> None:
    """Tasks and the reader travel to workers."""
    with local_client(conversion_plan([], Settings(memory=2**31, workers=2)), None) as client:
        check(open_store(path), dense, client=client)
        array = open_store(path).to_dask(block_nnz=60)
        sums = array.map_blocks(column_sums, chunks=((1,), array.chunks[1]), meta=np.empty((0, 0)))
        found = client.compute(sums).result()
    np.testing.assert_allclose(found[0], dense.sum(axis=0))


def test_without_groups_and_of_some_obs(path: Path, dense: np.ndarray) -> None:
    """One row per gene; obs outside of the selection do not count."""
    store = open_store(path)
    found = store.gene_stats(obs=slice(0, 40))
    assert list(found.index) == list(store.var_names)
    np.testing.assert_allclose(found["mean"], dense[:40].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["variance"], dense[:40].var(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_array_equal(found["n_obs"], 40)
    grouped = store.gene_stats(LABELS, obs=np.arange(N_OBS) % 3 != 1)
    assert list(grouped.index.get_level_values(1).unique()) == ["x", "z"]


def test_agrees_with_scanpy(path: Path, dense: np.ndarray) -> None:
    """Its aggregation of the matrix in memory gives the same numbers."""
    import anndata
    import scanpy

    obs = pd.DataFrame({"kind": pd.Categorical(LABELS)}, index=[f"c{n}" for n in range(N_OBS)])
    adata = anndata.AnnData(sp.csc_matrix(dense.astype("f8")), obs)
    wanted = scanpy.get.aggregate(adata, "kind", ["mean", "var", "count_nonzero"]).layers
    found = open_store(path).gene_stats(LABELS)
    names = {"mean": "mean", "variance": "var", "n_expressing": "count_nonzero"}
    for ours, theirs in names.items():
        np.testing.assert_allclose(
            found[ours].to_numpy().reshape(-1, 3).T, wanted[theirs], rtol=1e-12
        )


def test_wrong_groups_are_told_apart(path: Path) -> None:
    """A column that is not there, too few labels, no label at all, another index."""
    store = open_store(path)
    for labels, words in (
        ("kind", "obs has no column 'kind'"),
        (["a"], "1 labels to group 90"),
        ([None] * N_OBS, "nothing to group"),
        (pd.Series(["a"] * N_OBS, np.arange(N_OBS)[::-1]), "align it"),
    ):
        with pytest.raises(SelectionError, match=words):
            store.gene_stats(labels)  # type: ignore[arg-type]  # wrong on purpose


def test_missing_and_infinite_values_show() -> None:
    """They make the mean what pandas makes of it, and the variance NaN."""
    values = np.array([[np.nan, 1], [2, np.inf], [3, 1]])
    groups = Groups(pd.Index(["all"]), np.zeros(3, np.int64))
    found = block_stats(sp.csc_array(values), groups.codes, np.array([3]))
    assert np.isnan(found.mean[0, 0])
    assert found.mean[1, 0] == np.inf
    assert np.isnan(found.variance).all()
    assert found.n_expressing.tolist() == [[3], [3]]
