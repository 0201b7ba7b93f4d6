"""Stores of ``--profile vitessce`` through what reads them in browsers: zarrita and Vitessce.

Needs node, and the packages of package.json in the directory that ``JAVASCRIPT_DIRECTORY`` names:

    cp -r tests/javascript DIRECTORY
    npm ci --prefix DIRECTORY --ignore-scripts --legacy-peer-deps
    JAVASCRIPT_DIRECTORY=DIRECTORY python -m pytest -m javascript
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from dask_convert.api import convert

pytestmark = pytest.mark.javascript

N_OBS, N_VARS = 300, 40


class Silent(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name there)
        """Not a word."""


class Server(ThreadingHTTPServer):
    """Has room for all that a client asks for at once."""

    request_queue_size = 128


@pytest.fixture(scope="module", params=["f8", "i8", "f4"])
def cells(request: pytest.FixtureRequest) -> ad.AnnData:
    """Genes of all fillings, one of them empty; counts, or values that are none."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.linspace(0, 3, N_VARS), (N_OBS, N_VARS)).astype(request.param)
    if request.param == "f4":
        counts *= np.float32(0.37)
    obs = pd.DataFrame({"kind": ["a", "b"] * 150}, index=[f"cell{n}" for n in range(N_OBS)])
    var = pd.DataFrame(index=[f"Gene {n}/ä" for n in range(N_VARS)])
    matrix = sp.csr_matrix(counts)
    return ad.AnnData(matrix, obs, var, layers={"more": matrix * 2})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, cells: ad.AnnData) -> Iterator[str]:
    """Of a store that was made of them, in many chunks, on the loopback."""
    directory = tmp_path_factory.mktemp("browser")
    cells.write_h5ad(directory / "cells.h5ad")
    target = directory / "genes.zarr"
    convert(directory / "cells.h5ad", target, workers=0, profile="vitessce", chunk_nnz=250)
    handler = partial(Silent, directory=directory)
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/genes.zarr"
        server.shutdown()
        thread.join()


def node(script: str, *arguments: object) -> Any:
    """What a script prints."""
    directory = Path(os.environ["JAVASCRIPT_DIRECTORY"])
    words = ["node", directory / script, *map(str, arguments)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("matrix", ["X", "layers/more"])
def test_zarrita_reads_what_scipy_has(url: str, cells: ad.AnnData, matrix: str) -> None:
    """Rows and values of every gene, through the chunks that a browser fetches."""
    expected = (cells.X if matrix == "X" else cells.layers["more"]).tocsc()
    found = node("zarrita_gene.mjs", url, matrix, *range(N_VARS))
    assert len(found) == N_VARS
    for number, gene in enumerate(found):
        column = expected[:, [number]]
        assert gene["rows"] == column.indices.tolist()
        assert gene["values"] == column.data.tolist()


def test_vitessce_reads_what_scipy_has(url: str, cells: ad.AnnData) -> None:
    """Genes by name, as the loader hands them to Vitessce's views."""
    chosen = [N_VARS - 1, 0, 7]
    found = node("vitessce_genes.mjs", url, "X", *cells.var_names[chosen])
    assert found["obs"] == cells.obs_names.tolist()
    expected = cells.X[:, chosen].toarray().T.astype(np.float32)
    np.testing.assert_array_equal(np.array(found["genes"], np.float32), expected)
