"""``python -m benchmarks.idle_workers ADDRESS COUNT``: workers whose tasks do nothing.

The tasks that arrive are those of a real graph, and all workers are in this process. What they
would call returns at once, with reports as large as real ones.
"""

from __future__ import annotations

import asyncio
import sys

import dask

from dask_convert.engine import attempts
from dask_convert.engine.meters import Meters
from dask_convert.engine.tasks import BarrierReport, CombineReport, SplitReport
from dask_convert.planning.layout import TargetFile
from dask_convert.shuffle.findings import Findings
from dask_convert.shuffle.integrity import RegionCheck

STEPS = ("read indices", "read data", "check and count", "digest", "narrow", "order", "write")
FILES = tuple(TargetFile(f"X/{name}/c/{n}", 9, 9) for name in ("data", "indices") for n in range(7))


def _meters() -> Meters:
    return Meters(dict.fromkeys(STEPS, 1.25), {"source": 10**8, "fragments": 10**8})


async def _serve(address: str, count: int) -> None:
    from distributed import Worker

    workers = [
        Worker(address, nthreads=1, host="127.0.0.1", dashboard=False, name=f"idle-{number}")
        for number in range(count)
    ]
    for worker in workers:
        await worker
    await asyncio.gather(*(worker.finished() for worker in workers))


def _do_nothing() -> None:
    split = SplitReport("<u2", 3, Findings(), _meters())
    barrier = BarrierReport("<u2", "<f8", 1, Findings(), _meters())
    combine = CombineReport(RegionCheck(2**63, 0, 9, 99, 999, 9999), _meters(), FILES)
    attempts.split = lambda *_: split
    attempts.barrier = lambda *_: barrier
    attempts.combine = lambda *_: combine


if __name__ == "__main__":
    _do_nothing()
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
