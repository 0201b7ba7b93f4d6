"""``dask-convert gene`` and ``inspect`` as people use them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner, Result

from dask_convert.api import convert
from dask_convert.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
    pytest.mark.filterwarnings("ignore:This setting will be removed in 0.14"),
    pytest.mark.filterwarnings("ignore:zarr v3 will become the only option"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
]


@pytest.fixture(scope="module")
def expected() -> ad.AnnData:
    """Fifty cells of two types."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"kind": ["a", "b"] * 25}, index=[f"cell{n}" for n in range(50)])
    var = pd.DataFrame({"symbol": [f"S{n}" for n in range(20)]}, index=[f"g{n}" for n in range(20)])
    counts = rng.poisson(0.5, (50, 20)).astype("f8")
    return ad.AnnData(sp.csr_matrix(counts), obs, var, obsm={"umap": rng.random((50, 2))})


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, expected: ad.AnnData) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    expected.write_h5ad(directory / "cells.h5ad")
    convert(directory / "cells.h5ad", directory / "genes.zarr", workers=0, chunk_nnz=100)
    return directory / "genes.zarr"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_gene_prints_csv(target: Path, expected: ad.AnnData) -> None:
    """One line per obs that the query is true of, one column per name."""
    result = run("gene", target, "g3", "g1", "--obs", "kind == 'b'")
    assert result.exit_code == 0, result.output
    found = pd.read_csv(io.StringIO(result.stdout), index_col="obs")
    wanted = expected.to_df()[expected.obs["kind"] == "b"][["g3", "g1"]]
    pd.testing.assert_frame_equal(found, wanted, check_names=False)
    by_symbol = run("gene", target, "S3", "--by", "symbol")
    assert by_symbol.stdout.splitlines()[0] == "obs,S3"


@pytest.mark.parametrize("file_format", ["csv", "parquet", "npz"])
def test_gene_writes_files(
    target: Path, expected: ad.AnnData, tmp_path: Path, file_format: str
) -> None:
    """Each format as its own reader has it; the suffix says which, or the option does."""
    wanted = expected.to_df()[["g7", "g0"]]
    for number, arguments in enumerate(([], ["--format", file_format])):
        out = tmp_path / (f"{number}.{file_format}" if not arguments else "genes")
        result = run("gene", target, "g7", "g0", "--out", out, *arguments)
        assert (result.exit_code, result.output) == (0, "")
        if file_format == "npz":
            matrix = sp.load_npz(out)
            with np.load(out) as names:
                found = pd.DataFrame(matrix.toarray(), names["obs"], names["genes"])
        elif file_format == "csv":
            found = pd.read_csv(out, index_col="obs")
        else:
            found = pd.read_parquet(out)
        pd.testing.assert_frame_equal(
            found, wanted, check_names=False, check_index_type=False, check_column_type=False
        )
    assert len(list(tmp_path.iterdir())) == 2


def test_gene_errors(target: Path, tmp_path: Path) -> None:
    """One line, a code, and nothing left behind."""
    (tmp_path / "there.csv").write_text("mine")
    cases = [
        (("gene", target, "g99"), 16, "near it"),
        (("gene", target, "g1", "--out", "genes.xlsx"), 16, "say which by --format"),
        (("gene", target, "g1", "--obs", "kin == 1"), 16, "columns of obs: kind"),
        (("gene", target, "g1", "--by", "none"), 16, "there are: symbol"),
        (("gene", target, "g1", "--matrix", "layers/x"), 16, "there are: X"),
        (("gene", target, "g1", "--format", "npz"), 16, "--out FILE"),
        (("gene", target, "g1", "--out", tmp_path / "there.csv"), 4, "exists already"),
        (("gene", target, "g1", "--out", tmp_path / "no" / "x.csv"), 4, "cannot be written"),
        (("gene", target, "g1", "g1", "--out", tmp_path / "x.parquet"), 16, "as parquet"),
        (("gene", tmp_path / "none", "g1"), 15, "no such directory"),
        (("inspect", tmp_path / "none"), 15, "no such directory"),
    ]
    for arguments, code, words in cases:
        result = run(*arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert words in result.stderr
        assert result.stderr.startswith("dask-convert: ")
        assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_inspect_says_what_is_there(target: Path, expected: ad.AnnData) -> None:
    """As JSON and as text: shapes, types, bytes on disk, chunks, what a gene takes."""
    found = json.loads(run("inspect", target, "--json").stdout)
    (matrix,) = found["matrices"]
    assert (found["zarr_format"], found["n_obs"], found["n_vars"]) == (3, 50, 20)
    assert found["created_by"].startswith("dask_convert")
    assert (found["obs"].keys(), found["other"]) == ({"kind": None}.keys(), ["obsm/umap"])
    csc = expected.X.tocsc()
    assert (matrix["name"], matrix["nnz"]) == ("X", csc.nnz)
    files = [path for path in (target / "X" / "data").rglob("*") if path.is_file()]
    assert matrix["data"]["stored_bytes"] == sum(path.stat().st_size for path in files)
    assert matrix["data"]["codecs"] == ["blosc-zstd", "crc32c"]
    assert (matrix["data"]["chunk_nnz"], matrix["data"]["checksums"]) == (100, True)
    touched = [
        len({entry // 100 for entry in range(start, stop)})
        for start, stop in zip(csc.indptr[:-1], csc.indptr[1:], strict=True)
    ]
    assert matrix["gene"]["mean_chunks"] == pytest.approx(np.mean(touched))
    assert matrix["gene"]["median_nnz"] == int(np.median(np.diff(csc.indptr)))
    assert matrix["gene"]["median_ms"] > 0
    text = run("inspect", target).stdout
    for words in (f"{csc.nnz:,} entries", "blosc-zstd + crc32c", "kind (", "obsm/umap"):
        assert words in text


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_inspect_of_anndatas_stores(tmp_path: Path, expected: ad.AnnData, zarr_format: int) -> None:
    """CSC of another writer, and a store in which nothing can be read gene by gene."""
    with ad.settings.override(zarr_write_format=zarr_format):
        ad.AnnData(expected.X.tocsc()).write_zarr(tmp_path / "csc")
        expected.write_zarr(tmp_path / "csr")
    assert "not dask_convert" in run("inspect", tmp_path / "csc").stdout
    assert "no checksums" in run("inspect", tmp_path / "csc").stdout
    nothing = run("inspect", tmp_path / "csr").stdout
    assert "no matrix is CSC" in nothing
    assert "other      X, " in nothing
