"""Where workers come from: a local cluster of single-threaded processes.

One task thread per process, because a task's memory is what the plan has budgeted for a
process. dask's own spilling and pausing look at memory that they could free, and there is
none here: tasks hold numpy buffers and return small reports. So both are off, and what is
left is the nanny's limit, far above what the plan projects.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dask

from dask_convert.plan import ConversionPlan

if TYPE_CHECKING:
    from distributed import Client

MEMORY_SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # One arena, and freed memory goes back to the system: else the heap keeps what it once had.
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 65536,
    "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": 1,
    "distributed.nanny.pre-spawn-environ.OPENBLAS_NUM_THREADS": 1,
    "distributed.nanny.pre-spawn-environ.NUMBA_NUM_THREADS": 1,
}


def default_workers() -> int:
    """One worker per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        dask.config.set(MEMORY_SETTINGS),
        tempfile.TemporaryDirectory(prefix="dask-convert-") as directory,
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=dashboard_address,
            memory_limit=plan.worker_bytes + share + plan.worker_bytes // 2,
            local_directory=directory,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
