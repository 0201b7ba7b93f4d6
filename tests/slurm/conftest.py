"""A SLURM for the session, and conversions on it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from local_slurm import LocalSlurm, local_slurm, wait_until

from dask_convert.conversion.run import run_conversion
from dask_convert.conversion.source_plan import plan_conversion
from dask_convert.display.progress import Silent
from dask_convert.engine.results import ConversionResult
from dask_convert.places.places import Patience, Run, placed
from dask_convert.places.slurm_settings import SlurmSettings
from dask_convert.planning.limits import Limits
from dask_convert.planning.plans import Settings

HERE = Path(__file__).parent
N_OBS, N_VARS = 400, 50
MANY_TASKS = {"chunk_nnz": 64, "shard_nnz": 128, "block_nnz": 500, "region_nnz": 640}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this directory needs SLURM; see the marker in pyproject.toml."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm() -> Iterator[LocalSlurm]:
    """Two nodes of two cores and 3 GB each."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))
    before = os.environ.copy()
    try:
        with local_slurm(directory / "run") as started:
            os.environ.update(started.environment)
            yield started
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(directory)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small h5ad file."""
    counts = sp.random(N_OBS, N_VARS, 0.3, format="csr", random_state=1, dtype="f4")
    path = tmp_path / "shared" / "cells.h5ad"
    path.parent.mkdir()
    ad.AnnData(counts).write_h5ad(path, compression="gzip")
    return path


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """The directory that `worker_faults` looks into; tasks take a while."""
    directory = tmp_path / "control"
    directory.mkdir()
    (directory / "seconds").write_text("0.2")
    return directory


@pytest.fixture
def convert(
    slurm: LocalSlurm, source: Path, control: Path
) -> Iterator[Callable[..., ConversionResult]]:
    """Converts the source on SLURM, cut into many tasks; no job is left afterwards."""

    def run(
        on_report: Callable[[str], None] = lambda _: None,
        *,
        on_any_report: Callable[[], object] = lambda: None,
        no_workers_seconds: float = 60.0,
        **settings: Any,
    ) -> ConversionResult:
        asked = SlurmSettings(**(job_settings(control) | settings))
        limits = Limits(wait_seconds=5.0)
        patience = Patience(no_workers_seconds=no_workers_seconds, wait_seconds=2.0)
        place = placed(
            cluster="slurm",
            scheduler=None,
            client=None,
            workers=None,
            slurm=asked,
            dashboard_address=None,
            patience=patience,
            limits=limits,
        )
        with place as found:
            chosen = Settings(
                memory=2**32,
                workers=found.workers,
                worker_memory=found.worker_memory,
                **MANY_TASKS,
            )
            plan = plan_conversion(source, chosen)
            target = source.parent / "genes.zarr"
            directories = (target.parent,)
            return run_conversion(
                source,
                target,
                plan,
                lambda agreed: found.executor(Run(source, directories, agreed)),
                scratch_parent=target.parent,
                overwrite=False,
                progress=Telling(on_report, on_any_report),
                limits=limits,
            )

    yield run
    wait_until(lambda: not slurm.run("squeue", "--noheader"), 20)


def job_settings(control: Path) -> dict[str, Any]:
    """Two jobs of one worker each, with the faults of `worker_faults`."""
    prologue = [
        f"export DASK_CONVERT_TEST_CONTROL={control}",
        f"export DASK_DISTRIBUTED__WORKER__PRELOAD={HERE / 'worker_faults.py'}",
    ]
    return {
        "jobs": 2,
        "cores": 1,
        "memory": "1GiB",
        "walltime": "10",
        "interface": "lo",
        "poll_seconds": 0.5,
        "prologue": prologue,
    }


class Telling(Silent):
    """Calls a function at the first report of each kind."""

    def __init__(self, tell: Callable[[str], None], tell_any: Callable[[], object]) -> None:
        self._tell = tell
        self._tell_any = tell_any
        self._told: set[str] = set()

    def report(self, _matrix: Any, report: Any) -> None:
        """See `run.Progress`."""
        self._tell_any()
        kind = type(report).__name__
        if kind not in self._told:
            self._told.add(kind)
            self._tell(kind)


def assert_equal(source: Path) -> None:
    """The target has what scipy makes of the source, and nothing is left beside it."""
    target = source.parent / "genes.zarr"
    expected = ad.read_h5ad(source).X.tocsc()
    found = ad.read_zarr(target).X
    assert found.format == "csc"
    for member in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, member), getattr(expected, member))
    assert sorted(path.name for path in source.parent.iterdir()) == ["cells.h5ad", "genes.zarr"]
