"""What a scheduler is given: all tasks, and never both sides of the barrier at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import dask
import numpy as np
import pytest
import scipy.sparse as sp
from distributed import Client, LocalCluster
from engine import TINY, convert

from dask_convert.engine.graph import ClientExecutor


def test_dask_never_orders_both_sides_of_the_barrier_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes memory for each pair of a first and a last task: N × M."""
    source, target = tmp_path / "cells.h5ad", tmp_path / "genes.zarr"
    counts = sp.random(60, 30, 0.3, format="csr", random_state=1, dtype="f4")
    ad.AnnData(counts).write_h5ad(source)
    ordered: list[set[str]] = []
    order = dask.order.order

    def noted(dsk: Any, *arguments: Any, **options: Any) -> Any:
        ordered.append({str(key[0]).partition("-")[0] for key in dsk})
        return order(dsk, *arguments, **options)

    monkeypatch.setattr(dask.order, "order", noted)
    with (
        LocalCluster(
            n_workers=1, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        convert(source, target, executor=lambda: ClientExecutor(client), **TINY)
    assert {"split", "barrier"} in ordered
    assert {"combine"} in ordered
    assert not [kinds for kinds in ordered if {"split", "combine"} <= kinds]
    expected, found = counts.tocsc(), ad.read_zarr(target).X
    for member in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, member), getattr(expected, member))
