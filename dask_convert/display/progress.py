"""How far a run has come: as plain lines, or not at all; `dask_convert.display.bars` draws."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from dask_convert.display.telling import tell
from dask_convert.engine.tasks import CombineReport, SplitReport

if TYPE_CHECKING:
    from dask_convert.conversion.run import Progress
    from dask_convert.engine.graph import Report
    from dask_convert.planning.plans import ConversionPlan, MatrixPlan

LINE_SECONDS = 10.0
"""Between two plain lines."""


class Silent:
    """Shows nothing."""

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""

    def stop(self, *, failed: bool) -> None:
        """See `run.Progress`."""


class Several:
    """Passes on to several observers what one is told.

    Parameters
    ----------
    observers
        In the order in which they are told.
    """

    def __init__(self, *observers: Progress) -> None:
        self._observers = observers

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""
        for observer in self._observers:
            observer.start(plan)

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""
        for observer in self._observers:
            observer.report(matrix, report)

    def stop(self, *, failed: bool) -> None:
        """See `run.Progress`."""
        for observer in self._observers:
            observer.stop(failed=failed)


class Lines:
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._done: dict[tuple[str, bool], tuple[int, int]] = {}

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""
        self._started = self._last = time.monotonic()

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""
        if not isinstance(report, SplitReport | CombineReport):
            return
        is_split = isinstance(report, SplitReport)
        key = (matrix.source.name, is_split)
        tasks, moved = self._done.get(key, (0, 0))
        tasks, moved = tasks + 1, moved + moved_bytes(report)
        self._done[key] = (tasks, moved)
        total = len(matrix.blocks if is_split else matrix.regions)
        now = time.monotonic()
        if tasks == total or now - self._last >= LINE_SECONDS:
            self._last = now
            stage = "read " if is_split else "wrote"
            seconds = now - self._started
            tell(
                f"{seconds:7.1f} s  {stage} {matrix.source.name}: {tasks} of {total} parts, "
                f"{moved / 1e6:,.0f} MB"
            )

    def stop(self, *, failed: bool) -> None:
        """See `run.Progress`."""


class PartLines:
    """A line now and then on how far a verification has come.

    Parameters
    ----------
    quiet
        Show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._started = self._last = time.monotonic()

    def __call__(self, name: str, done: int, total: int) -> None:
        """See `verification.verify_store`."""
        now = time.monotonic()
        if not self._quiet and (done == total or now - self._last >= LINE_SECONDS):
            self._last = now
            tell(f"{now - self._started:7.1f} s  compared {name}: {done} of {total} parts")


def for_terminal(*, quiet: bool = False, plain: bool = False) -> Progress:
    """What suits the standard error stream: bars on a terminal, lines in a log or if `plain`."""
    if quiet:
        return Silent()
    if plain or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return Lines()
    from dask_convert.display.bars import Bars

    return Bars()


def moved_bytes(report: SplitReport | CombineReport) -> int:
    """What a task moved that people wait for: read from the source or written to the target."""
    step = "source" if isinstance(report, SplitReport) else "target"
    return report.meters.bytes.get(step, 0)
