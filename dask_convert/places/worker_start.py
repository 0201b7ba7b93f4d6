"""The process that local workers are forked from: begun as early as can be.

It has half a second of imports to do, and nothing can run before. So this module imports nothing
slow itself, dask's configuration included: the command line starts that process before anything
else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from importlib import import_module
from multiprocessing import forkserver, resource_tracker

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


def prepare_workers(*, verifying: bool = False) -> None:
    """Start the process that local workers will be forked from, if that is how they start.

    It imports what workers need while the caller goes on; calling this early hides most of
    the start of a cluster. Does nothing if it runs already.

    Parameters
    ----------
    verifying
        Whether workers will read stores, with zarr, and digest them as well.
    """
    if not start_method():
        return
    names = ["dask_convert.engine.preload"]
    if verifying:
        names.append("dask_convert.verification.preload")
    multiprocessing.set_forkserver_preload(names)
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)  # the C library reads its own only when a process starts
    # A terminal's Ctrl-C is for the caller, and the other process cannot ignore it from the first.
    resource_tracker.ensure_running()  # which unblocks the signal as it starts
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
        if "distributed" in names:
            # Scheduler and workers compare the versions of what they need; it remembers them.
            versions = import_module("distributed.versions")
            versions.get_package_info([*versions.required_packages, *versions.optional_packages])

    threading.Thread(target=load, name="load-libraries").start()


def start_method() -> dict[str, str]:
    """Dask's setting for how workers start; forking is safe from a single-threaded server."""
    if sys.platform != "linux":
        return {}
    return {"distributed.worker.multiprocessing-method": "forkserver"}
