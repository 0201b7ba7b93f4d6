"""Where workers come from: a local cluster of single-threaded processes.

One task thread per process, because a task's memory is what the plan has budgeted for a
process. dask's own spilling and pausing look at memory that they could free, and there is
none here: tasks hold numpy buffers and return small reports. So both are off, and what is
left is the nanny's limit, far above what the plan projects.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import TYPE_CHECKING

import dask

if TYPE_CHECKING:
    from distributed import Client

    from dask_convert.plans import ConversionPlan

_ENVIRONMENT = {
    # One arena, and freed memory is used again: fetching pages from the system anew for every
    # chunk and every task took a third of a worker's time. Only the largest buffers go back.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    # A worker has one core.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}

_SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    **{f"distributed.nanny.pre-spawn-environ.{name}": text for name, text in _ENVIRONMENT.items()},
}


def default_workers() -> int:
    """One worker per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_workers() -> None:
    """Start the process that local workers will be forked from, if that is how they start.

    It imports what workers need while the caller goes on; calling this early hides most of
    the start of a cluster. Does nothing if it runs already.
    """
    if not _start_method():
        return
    multiprocessing.set_forkserver_preload(["dask_convert.preload"])
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)  # the C library reads its own only when a process starts
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_method() -> dict[str, str]:
    """Dask's setting for how workers start; forking is safe from a single-threaded server."""
    if sys.platform != "linux":
        return {}
    return {"distributed.worker.multiprocessing-method": "forkserver"}


@contextmanager
def local_client(plan: ConversionPlan, dashboard_address: str | None) -> Iterator[Client]:
    """A client of a new local cluster, sized by the plan; closed with the block.

    Parameters
    ----------
    plan
        Says how many workers there are and what each may need.
    dashboard_address
        Host and port of the dashboard; None for no dashboard.
    """
    from distributed import Client, LocalCluster

    settings = plan.settings
    share = max((settings.memory - plan.projected_bytes) // settings.workers, 0)
    with (
        dask.config.set(_SETTINGS),
        dask.config.set(_start_method()),
        tempfile.TemporaryDirectory(prefix="dask-convert-") as directory,
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # Without an address dask would still listen, on all interfaces.
            dashboard_address=dashboard_address or "127.0.0.1:0",
            scheduler_kwargs={"dashboard": dashboard_address is not None},
            memory_limit=plan.worker_bytes + share + plan.worker_bytes // 2,
            local_directory=directory,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
