"""Who tells boards, here and on a scheduler, how a run comes along, and in which words."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from dask_convert.display.board import (
    TOPIC,
    Ended,
    Event,
    MatrixTasks,
    PartsDone,
    Started,
    TaskDone,
)
from dask_convert.display.dashboard_link import dashboard_link
from dask_convert.engine.tasks import CombineReport, SplitReport, is_reused

if TYPE_CHECKING:
    from distributed import Client

    from dask_convert.engine.graph import Report
    from dask_convert.planning.plans import ConversionPlan, MatrixPlan

_log = logging.getLogger(__name__)


class BoardFeed:
    """Tells the scheduler of a client how a run comes along; a `run.Progress`.

    Parameters
    ----------
    source, target
        Shown as they are.
    """

    def __init__(self, source: str, target: str) -> None:
        self._run = uuid.uuid4().hex
        self._where = (source, target)
        self._client: Client | None = None

    def connect(self, client: Client) -> str | None:
        """Begin to tell; returns the address of the page, if there is one.

        A scheduler that cannot load this package is left alone.
        """
        try:
            from dask_convert.display.board_plugin import ConversionPlugin  # loads distributed

            client.register_plugin(ConversionPlugin())
            link = dashboard_link(client)
        except Exception as error:  # noqa: BLE001  (whatever: a page is not worth a conversion)
            _log.warning("conversions are not shown on this dashboard: %r", error)
            return None
        self._client = client
        return link

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""
        self._tell(started(plan, *self._where, run=self._run))

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""
        self._tell(task_done(matrix, report, run=self._run))

    def part(self, name: str, done: int, total: int) -> None:
        """So many parts of a matrix are compared, of so many."""
        self._tell(PartsDone(self._run, name, done, total))

    def stop(self, *, failed: bool) -> None:
        """See `run.Progress`; what follows may be a verification, and `ended` tells of the end."""

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Tell that the run has ended when the block does, and how."""
        state = "failed"
        try:
            yield
            state = "done"
        finally:
            self._tell(Ended(self._run, state))

    def _tell(self, event: Event) -> None:
        if self._client is None:
            return
        # In a thread: dask, in the caller's, takes an interrupt with a NameError of its own.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._client.log_event, TOPIC, msgspec.to_builtins(event)).result()


def stage_of(report: Report) -> str:
    """The stage of the task that reports."""
    if isinstance(report, SplitReport):
        return "split"
    return "combine" if isinstance(report, CombineReport) else "barrier"


def started(plan: ConversionPlan, source: str, target: str, *, run: str = "") -> Started:
    """The beginning of a run, as boards are told it: how much there is to do."""
    matrices = tuple(
        MatrixTasks(m.source.name, len(m.blocks), len(m.regions), m.source.stored_bytes)
        for m in plan.matrices
    )
    return Started(run, source, target, plan.settings.memory, plan.worker_bytes, matrices)


def task_done(matrix: MatrixPlan, report: Report, *, run: str = "") -> TaskDone:
    """The end of a task, as boards are told it; work that was found has moved nothing."""
    moved = {} if is_reused(report) else dict(report.meters.bytes)
    return TaskDone(run, matrix.source.name, stage_of(report), moved)
