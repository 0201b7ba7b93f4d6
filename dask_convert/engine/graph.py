r"""From a plan to a dask graph, and from a graph to results: N + 1 + M tasks, no data touched.

    split-0  split-1  …  split-N          one per row block
        \       |        /
             barrier
        /       |        \
    combine-0  combine-1  …  combine-M    one per region

The same graph runs on a client's cluster or, task after task, in the calling process. Reports
that are there already, from before some fragments turned out to be damaged, stand in it in place
of their tasks.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from dask.callbacks import Callback
from dask.local import get_sync

from dask_convert.engine.tasks import (
    BarrierReport,
    CombineReport,
    Job,
    SplitReport,
    barrier,
    combine,
    split,
)
from dask_convert.errors import WorkerLostError
from dask_convert.planning.plans import MatrixPlan

if TYPE_CHECKING:
    from distributed import Client, Worker

DRAIN_SECONDS = 120.0

Key = tuple[str, int]
Graph = dict[Key, tuple[Any, ...]]
Report = SplitReport | BarrierReport | CombineReport
OnReport = Callable[[Key, Report], None]
"""Is given what a task is, by kind and number, and what it says."""


class Executor(Protocol):
    """Runs a graph."""

    @property
    def client(self) -> Client | None:
        """Of the cluster that it runs on, if there is one."""

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """Run every task; hand each report over, in the calling thread, as it comes in.

        The first error of a task is raised, after the others have been called off.
        """


def conversion_graph(
    job: Job,
    plan: MatrixPlan,
    *,
    done_blocks: Mapping[int, SplitReport] | None = None,
    done_regions: Collection[int] = (),
    shuffled: BarrierReport | None = None,
) -> Graph:
    """The tasks of one matrix that are still to be done; by default all of them.

    With `shuffled`, from a barrier that an earlier run passed, only regions are left. Keys
    are unique to this call, so that runs never share any.
    """
    token = uuid.uuid4().hex[:8]
    barrier_key: Key = (f"barrier-{token}", 0)
    graph: Graph = {}
    if shuffled is None:
        graph = _until_barrier(job, plan, token, done_blocks or {})
    for number in range(len(plan.regions)):
        if number not in done_regions:
            graph[f"combine-{token}", number] = (combine, job, number, shuffled or barrier_key)
    return graph


def _until_barrier(
    job: Job, plan: MatrixPlan, token: str, done: Mapping[int, SplitReport]
) -> Graph:
    splits: list[Key] = [(f"split-{token}", number) for number in range(len(plan.blocks))]
    graph: Graph = {key: (split, job, key[1]) for key in splits if key[1] not in done}
    graph[f"barrier-{token}", 0] = (barrier, job, [done.get(key[1], key) for key in splits])
    return graph


def task_name(graph: Graph, key: Any) -> str:
    """What a task works at, in words."""
    task = graph.get(key) if isinstance(key, tuple) else None
    if task is None:
        return f"task {key}"
    function, job, number = task[:3]
    if function is split:
        return str(job.block_name(number))
    if function is combine:
        return str(job.region_name(number))
    return "the barrier" if function is barrier else f"task {key}"


class SynchronousExecutor:
    """Runs tasks one after the other in this thread."""

    client = None

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """See `Executor.run`."""
        with Callback(posttask=lambda key, result, *_: on_report(key, result)):
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
        self.client = client
        self._drain = drain

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """See `Executor.run`.

        Raises
        ------
        WorkerLostError
            A task has ended several workers, or the scheduler or all workers are gone.
        """
        from distributed import CancelledError, KilledWorker, as_completed
        from distributed.comm.core import CommClosedError

        futures = self._send(graph)
        try:
            loop = self.client.loop  # or dask would look for a client of its own choice
            for future, report in as_completed(futures, loop=loop, with_results=True):
                on_report(future.key, _a_report(report))
        except KilledWorker as error:
            self._call_off(graph, futures)
            msg = (
                f"{task_name(graph, error.task)}: ended {error.allowed_failures + 1} workers, one "
                "after the other: out of memory? Give more memory, or as much to fewer workers"
            )
            raise WorkerLostError(msg) from error
        except (CancelledError, CommClosedError) as error:
            msg = "the connection to the dask scheduler, or the last of its workers, is lost"
            raise WorkerLostError(msg) from error
        except BaseException:
            self._call_off(graph, futures)
            raise

    def _send(self, graph: Graph) -> list[Any]:
        """Submit all tasks; those that wait for the barrier as a graph of their own.

        Dask puts a graph in order before it runs, and notes for every task which first and which
        last tasks it is connected with: N × M entries in one graph with a barrier, 0.4 GB for
        3,200 row blocks and 1,559 regions.
        """
        barriers = [key for key, task in graph.items() if task[0] is barrier]
        first = {k: task for k, task in graph.items() if not barriers or task[0] is not combine}
        futures: list[Any] = self.client.get(first, list(first), sync=False)
        if len(first) < len(graph):
            shuffled = next(future for future in futures if future.key == barriers[0])
            rest = {k: (*task[:3], shuffled) for k, task in graph.items() if k not in first}
            futures += self.client.get(rest, list(rest), sync=False)
        return futures

    def _call_off(self, graph: Graph, futures: list[Any]) -> None:
        self.client.cancel(futures, force=True)
        if self._drain:
            self._wait_until_idle({name for name, _ in graph})

    def _wait_until_idle(self, names: set[str]) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        with suppress(OSError):  # workers that are gone are idle
            while any(self.client.run(_is_busy, names).values()):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.1)


def _a_report(result: Any) -> Report:
    """The result of a task; for one that was cancelled, dask gives the error in its place."""
    if isinstance(result, BaseException):
        raise result
    report: Report = result
    return report


def _is_busy(names: set[str], dask_worker: Worker) -> bool:
    """Whether a worker runs a task of these names; dask passes the worker by that parameter."""
    executing = (task.key for task in dask_worker.state.executing)
    return any(isinstance(key, tuple) and key[0] in names for key in executing)
