"""How far a run has come: as plain lines, or not at all; `dask_convert.bars` draws."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from dask_convert.tasks import CombineReport, SplitReport

if TYPE_CHECKING:
    from dask_convert.graph import Report
    from dask_convert.plans import ConversionPlan, MatrixPlan
    from dask_convert.run import Progress

LINE_SECONDS = 10.0
"""Between two plain lines."""


class Silent:
    """Shows nothing."""

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""

    def stop(self) -> None:
        """See `run.Progress`."""


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
            print(
                f"{seconds:7.1f} s  {stage} {matrix.source.name}: {tasks} of {total} parts, "
                f"{moved / 1e6:,.0f} MB",
                file=sys.stderr,
                flush=True,
            )

    def stop(self) -> None:
        """See `run.Progress`."""


def for_terminal(*, quiet: bool = False) -> Progress:
    """What suits the standard error stream: bars on a terminal, lines in a log."""
    if quiet:
        return Silent()
    if not sys.stderr.isatty():
        return Lines()
    from dask_convert.bars import Bars

    return Bars()


def moved_bytes(report: SplitReport | CombineReport) -> int:
    """What a task moved that people wait for: read from the source or written to the target."""
    step = "source" if isinstance(report, SplitReport) else "target"
    return report.meters.bytes.get(step, 0)
