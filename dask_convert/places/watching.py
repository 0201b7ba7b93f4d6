"""Keeps a run supplied with workers, and ends it where there is no hope of any.

A thread looks every few seconds whether jobs have ended and lets them be replaced. It gives up,
and the run with it, when there has been no worker for a set time, or when several generations
of jobs have ended without one task finished: a walltime shorter than a task, a job that dies at
once. Static dask clusters would wait for ever, and adaptive ones submit for ever.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, Self

from dask_convert.engine.graph import Executor, Graph, OnReport
from dask_convert.errors import (
    DaskConvertError,
    NoWorkersError,
    WorkerCheckError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from distributed import Client

REFUSALS = "dask-convert-refusals"
"""The topic of scheduler events under which late workers tell why they were refused."""

GENERATIONS = 4
"""So many times over may all jobs end without a task finished."""


class Jobs(Protocol):
    """What workers run in."""

    count: int
    """Jobs that there should be."""

    def replace_lost(self) -> int:
        """Start anew those that have ended; returns how many."""

    def describe(self) -> str:
        """What became of them, in words."""


class NoJobs:
    """Of a cluster that somebody else looks after."""

    count = 1

    def replace_lost(self) -> int:
        """See `Jobs.replace_lost`."""
        return 0

    def describe(self) -> str:
        """See `Jobs.describe`."""
        return "who runs the cluster must start some"


class LocalWorkers(NoJobs):
    """Of a cluster of this run's own, whose nannies start workers again."""

    def describe(self) -> str:
        """See `Jobs.describe`."""
        return "the last of its workers is lost, and none has come back"


class Watch:
    """Runs graphs on a client's cluster, and watches over its workers meanwhile.

    Parameters
    ----------
    client
        Connected to the cluster.
    executor
        Runs the tasks on it.
    jobs
        What its workers run in.
    no_workers_seconds
        Without any worker before giving up.
    poll_seconds
        Between two looks at the jobs.
    error
        What is raised when there are no workers.
    """

    def __init__(
        self,
        client: Client,
        executor: Executor,
        jobs: Jobs,
        *,
        no_workers_seconds: float,
        poll_seconds: float,
        error: type[DaskConvertError] = NoWorkersError,
    ) -> None:
        self.client = client
        self._executor = executor
        self._jobs = jobs
        self._no_workers_seconds = no_workers_seconds
        self._poll_seconds = min(poll_seconds, no_workers_seconds / 2)
        self._error: DaskConvertError | None = None
        self._kind = error
        self._graph: Graph = {}
        self._lost = 0
        self._last_seen = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch-workers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def wait_for_worker(self) -> None:
        """Return when there is a worker.

        Raises
        ------
        NoWorkersError
            There will be none.
        """
        self._raise_error()
        while not self.client.nthreads():
            self._raise_error()
            time.sleep(0.1)

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """See `graph.Executor.run`.

        Raises
        ------
        NoWorkersError
            There are no workers any more, or none that lives long enough.
        WorkerCheckError
            Workers that came later were refused, and none was left.
        """

        def on_progress(*report: Any) -> None:
            self._lost = 0
            self._raise_error()
            on_report(*report)

        self._graph = graph
        try:
            self._raise_error()
            self._executor.run(graph, on_progress)
        except Exception:
            self._raise_error()
            raise
        finally:
            self._graph = {}
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _watch(self) -> None:
        while not self._done.wait(self._poll_seconds):
            with suppress(OSError):  # the scheduler is gone or busy: others tell, or the next look
                if self._error is None:
                    self._look()
                else:
                    self._call_off()  # again: tasks may have been on their way to the scheduler

    def _look(self) -> None:
        with suppress(OSError):  # a scheduler that never answers has no workers either
            if self.client.nthreads():
                self._last_seen = time.monotonic()
        now = time.monotonic()
        self._lost += self._jobs.replace_lost()
        if self._lost >= GENERATIONS * self._jobs.count:
            self._give_up(
                f"{self._lost} jobs have ended without one task finished: is their walltime too "
                f"short, or their memory? {self._jobs.describe()}"
            )
        elif now - self._last_seen > self._no_workers_seconds:
            seconds = self._no_workers_seconds
            self._give_up(f"no worker for {seconds:g} seconds: {self._jobs.describe()}")

    def _give_up(self, why: str) -> None:
        """Keep the error for the thread that waits for tasks, and wake it."""
        refusals = self.client.get_events(REFUSALS)
        if refusals:
            self._error = WorkerCheckError(f"{refusals[-1][1]}; {why}")
        else:
            self._error = self._kind(why)
        self._call_off()

    def _call_off(self) -> None:
        from distributed import Future

        futures: list[Any] = [Future(key, client=self.client) for key in list(self._graph)]
        self.client.cancel(futures, force=True)


def local_watch(client: Client, executor: Executor, no_workers_seconds: float) -> Watch:
    """A watch over the workers of a local cluster, which may all have failed to start again."""
    return Watch(
        client,
        executor,
        LocalWorkers(),
        no_workers_seconds=no_workers_seconds,
        poll_seconds=min(no_workers_seconds / 4, 2.0),
        error=WorkerLostError,
    )
