r"""From a plan to a dask graph, and from a graph to results: N + 1 + M tasks, no data touched.

    split-0  split-1  …  split-N          one per row block
        \       |        /
             barrier
        /       |        \
    combine-0  combine-1  …  combine-M    one per region

The same graph runs on a client's cluster or, task after task, in the calling process.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from dask.callbacks import Callback
from dask.local import get_sync

from dask_convert.plans import MatrixPlan
from dask_convert.tasks import (
    BarrierReport,
    CombineReport,
    Job,
    SplitReport,
    barrier,
    combine,
    split,
)

if TYPE_CHECKING:
    from distributed import Client, Worker

DRAIN_SECONDS = 120.0

Key = tuple[str, int]
Graph = dict[Key, tuple[Any, ...]]
Report = SplitReport | BarrierReport | CombineReport
OnReport = Callable[[Report], None]


class Executor(Protocol):
    """Runs a graph."""

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """Run every task; hand each report over, in the calling thread, as it comes in.

        The first error of a task is raised, after the others have been called off.
        """


def conversion_graph(job: Job, plan: MatrixPlan) -> Graph:
    """The tasks of one matrix. Keys are unique to this call, so that runs never share any."""
    token = uuid.uuid4().hex[:8]
    splits: list[Key] = [(f"split-{token}", number) for number in range(len(plan.blocks))]
    barrier_key: Key = (f"barrier-{token}", 0)
    graph: Graph = {key: (split, job, key[1]) for key in splits}
    graph[barrier_key] = (barrier, job, list(splits))
    for number in range(len(plan.regions)):
        graph[f"combine-{token}", number] = (combine, job, number, barrier_key)
    return graph


class SynchronousExecutor:
    """Runs tasks one after the other in this thread."""

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """See `Executor.run`."""
        with Callback(posttask=lambda _key, result, *_: on_report(result)):
            get_sync(graph, list(graph))


class ClientExecutor:
    """Runs tasks on the cluster of a client.

    Parameters
    ----------
    client
        Connected; stays open.
    drain
        After an error, wait until no worker is busy with a task of ours, since running tasks
        cannot be called off. Not needed where the cluster is closed next.
    """

    def __init__(self, client: Client, *, drain: bool = True) -> None:
        self._client = client
        self._drain = drain

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """See `Executor.run`."""
        from distributed import as_completed

        futures = self._client.get(graph, list(graph), sync=False)
        try:
            for _, report in as_completed(futures, with_results=True):
                on_report(report)
        except BaseException:
            self._client.cancel(futures, force=True)
            if self._drain:
                self._wait_until_idle({name for name, _ in graph})
            raise

    def _wait_until_idle(self, names: set[str]) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        with suppress(OSError):  # workers that are gone are idle
            while any(self._client.run(_is_busy, names).values()):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.1)


def _is_busy(names: set[str], dask_worker: Worker) -> bool:
    """Whether a worker runs a task of these names; dask passes the worker by that parameter."""
    executing = (task.key for task in dask_worker.state.executing)
    return any(isinstance(key, tuple) and key[0] in names for key in executing)
