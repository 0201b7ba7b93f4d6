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
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import forkserver
from typing import TYPE_CHECKING

import dask

from dask_convert.errors import WorkerLostError
from dask_convert.planning.limits import Limits

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

    from dask_convert.planning.plans import ConversionPlan

WORKER_ENVIRONMENT = {
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
"""Of every worker process."""

ALLOWED_FAILURES = 3
"""Workers that a task may end before it counts as the reason; one more is told."""

WORKER_SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.profile.interval": "100ms",  # every 10 ms takes a worker 1 % of its time
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


def prepare_workers(*, verifying: bool = False) -> None:
    """Start the process that local workers will be forked from, if that is how they start.

    It imports what workers need while the caller goes on; calling this early hides most of
    the start of a cluster. Does nothing if it runs already.

    Parameters
    ----------
    verifying
        Whether workers will read stores, with zarr, and digest them as well.
    """
    if not _start_method():
        return
    names = ["dask_convert.engine.preload"]
    if verifying:
        names.append("dask_convert.verification.preload")
    multiprocessing.set_forkserver_preload(names)
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)  # the C library reads its own only when a process starts
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def load_libraries(*names: str) -> None:
    """Import libraries that will be needed soon, half a second's worth, while the caller goes on.

    Not modules of ours: they might wait for one that the caller is about to import, and it for
    them.
    """

    def load() -> None:
        for name in names:
            import_module(name)

    threading.Thread(target=load, name="load-libraries").start()


def _start_method() -> dict[str, str]:
    """Dask's setting for how workers start; forking is safe from a single-threaded server."""
    if sys.platform != "linux":
        return {}
    return {"distributed.worker.multiprocessing-method": "forkserver"}


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
        _level_kept(logging.getLogger("tornado.application")) as log,
        _no_stragglers(),
        dask.config.set(WORKER_SETTINGS),
        dask.config.set({"distributed.scheduler.worker-ttl": ttl}),
        dask.config.set(_start_method()),
        # Not on scratch: workers that start late make it again, with all its parents.
        tempfile.TemporaryDirectory(prefix="dask-convert-") as directory,
        _local_cluster(plan, dashboard_address, directory, limits.start_seconds) as cluster,
        Client(cluster) as client,
    ):
        try:
            yield client
        except BaseException:
            # What is under way fails when all is closed, and tornado would say so.
            log.setLevel(logging.CRITICAL)
            raise


@contextmanager
def _level_kept(log: logging.Logger) -> Iterator[logging.Logger]:
    """A log whose level is what it was when the block ends."""
    before = log.level
    try:
        yield log
    finally:
        log.setLevel(before)


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

    if _start_method():
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
