"""Local workers are ended whatever state they are in."""

from __future__ import annotations

import asyncio
import multiprocessing

import pytest
from distributed import Nanny, Scheduler, Status
from distributed.process import AsyncProcess

from dask_convert.places.nannies import SureNanny


async def closed_while_a_worker_starts(
    kind: type[Nanny], monkeypatch: pytest.MonkeyPatch
) -> Status:
    """Kill a worker, and close its nanny as soon as that begins to start the next one.

    Returns the state that the nanny is in then.
    """
    closing: asyncio.Future[asyncio.Task[str]] = asyncio.get_running_loop().create_future()
    options = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    async with Scheduler(**options) as scheduler, kind(scheduler.address, nthreads=1) as nanny:
        begin = AsyncProcess.start

        def start(self: AsyncProcess) -> asyncio.Future[None]:
            begun = begin(self)
            nanny.process.status = Status.running  # what a late word of the first one makes of it
            closing.set_result(asyncio.ensure_future(nanny.close()))
            return begun

        monkeypatch.setattr(AsyncProcess, "start", start)
        await nanny.process.process.kill()
        await (await closing)
        return nanny.status


def test_a_worker_that_is_only_about_to_start_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nanny believes that it runs already; dask's own fails there, and leaves it."""
    before = set(multiprocessing.active_children())
    assert asyncio.run(closed_while_a_worker_starts(SureNanny, monkeypatch)) == Status.closed
    assert set(multiprocessing.active_children()) <= before
