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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dask

from dask_convert.errors import WorkerLostError
from dask_convert.places.closing import closing_quietly
from dask_convert.places.worker_start import WORKER_ENVIRONMENT, start_method
from dask_convert.planning.limits import Limits

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

    from dask_convert.planning.plans import ConversionPlan

ALLOWED_FAILURES = 3
"""Workers that a task may end before it counts as the reason; one more is told."""

WORKER_SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.profile.interval": "100ms",  # every 10 ms takes a worker 1 % of its time
    # How often each scheduler, nanny and worker looks whether it is late; 20 ms takes another 1 %.
    "distributed.admin.tick.interval": "500ms",
    **{
        f"distributed.nanny.pre-spawn-environ.{name}": text
        for name, text in WORKER_ENVIRONMENT.items()
    },
}
"""Dask's configuration for clusters of ours."""


def default_workers() -> int:
    """One worker per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs_locally(
    workers: int | None, cluster: str | None, scheduler: str | None, client: object
) -> bool:
    """Whether these options of `dask_convert.convert` ask for processes of this machine."""
    if client is not None or scheduler is not None or cluster not in {None, "local"}:
        return False
    if cluster is None and workers is None:
        return dask.config.get("scheduler-address", None) is None
    return workers != 0


@contextmanager
def local_client(
    plan: ConversionPlan,
    dashboard_address: str | None,
    limits: Limits | None = None,
) -> Iterator[Client]:
    """A client of a new local cluster, sized by the plan; closed with the block.

    Parameters
    ----------
    plan
        Says how many workers there are and what each may need.
    dashboard_address
        Host and port of the dashboard; None for no dashboard.
    limits
        How long a worker may be silent.

    Raises
    ------
    WorkerLostError
        It cannot start.
    """
    from distributed import Client

    limits = limits or Limits()
    ttl = f"{limits.worker_ttl_seconds}s"
    with (
        closing_quietly() as hush,
        _no_stragglers(),
        dask.config.set(WORKER_SETTINGS),
        dask.config.set({"distributed.scheduler.worker-ttl": ttl}),
        dask.config.set(start_method()),
        # Not on scratch: workers that start late make it again, with all its parents.
        tempfile.TemporaryDirectory(prefix="dask-convert-") as directory,
        _local_cluster(plan, dashboard_address, directory, limits.start_seconds) as cluster,
        Client(cluster) as client,
    ):
        try:
            yield client
        finally:
            hush()


@contextmanager
def _no_stragglers() -> Iterator[None]:
    """Kill workers that are left at the end: one that hangs would keep this process from ending."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        for process in multiprocessing.active_children():
            if process not in before and "Dask Worker" in process.name:
                process.kill()


def _local_cluster(
    plan: ConversionPlan, dashboard_address: str | None, directory: str, start_seconds: float
) -> LocalCluster:
    from distributed import LocalCluster, SpecCluster, utils

    from dask_convert.places.lazy_dashboard import load_when_asked_for
    from dask_convert.places.nannies import SureNanny

    if start_method():
        # Else dask would import pandas and all else that it may send, here, and for nothing: the
        # process that workers are forked from runs already.
        utils._forkserver_preload_set = True  # noqa: SLF001  (it has no setting for it)
    settings = plan.settings
    share = max((settings.memory - plan.projected_bytes) // settings.workers, 0)
    others = set(SpecCluster._instances)  # noqa: SLF001
    try:
        cluster = LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            worker_class=SureNanny,
            host="127.0.0.1",
            # Without an address dask would still listen, on all interfaces.
            dashboard_address=dashboard_address or "127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=plan.worker_bytes + share + plan.worker_bytes // 2,
            local_directory=directory,
            death_timeout=start_seconds,
            silence_logs=logging.ERROR,
        )
    except KeyboardInterrupt:
        # At exit dask would close what never opened, and fail; `_no_stragglers` ends the workers.
        for begun in set(SpecCluster._instances) - others:  # noqa: SLF001  (it has no other list)
            begun.shutdown_on_close = False
        raise
    except Exception as error:  # even assertions of dask's own
        name = type(error).__name__
        msg = f"the local cluster cannot start: {name}: {error}: was a worker killed meanwhile?"
        raise WorkerLostError(msg) from error
    if dashboard_address is not None:
        load_when_asked_for(cluster)
    return cluster
