"""How far a run has come, on a terminal as bars, elsewhere as plain lines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dask_convert.tasks import CombineReport, SplitReport

if TYPE_CHECKING:
    from dask_convert.graph import Report
    from dask_convert.planning import ConversionPlan, MatrixPlan

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


class Bars:
    """One bar per matrix and stage: tasks done, bytes moved, rate and time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed}/{task.total}"),
            _BytesColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[tuple[str, bool], TaskID] = {}

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""
        for matrix in plan.matrices:
            name = matrix.source.name
            for is_split, parts in ((True, matrix.blocks), (False, matrix.regions)):
                stage = "read " if is_split else "write"
                self._tasks[name, is_split] = self._progress.add_task(
                    f"{stage} {name}", total=len(parts), start=False, moved=0
                )
        self._progress.start()

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""
        name = matrix.source.name
        self._progress.start_task(self._tasks[name, True])
        if isinstance(report, SplitReport | CombineReport):
            is_split = isinstance(report, SplitReport)
            number = self._tasks[name, is_split]
            self._progress.start_task(number)
            task = next(t for t in self._progress.tasks if t.id == number)
            moved = task.fields["moved"] + _moved_bytes(report)
            self._progress.update(number, advance=1, moved=moved)

    def stop(self) -> None:
        """See `run.Progress`."""
        self._progress.stop()


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
        tasks, moved = tasks + 1, moved + _moved_bytes(report)
        self._done[key] = (tasks, moved)
        total = len(matrix.blocks if is_split else matrix.regions)
        now = time.monotonic()
        if tasks == total or now - self._last >= LINE_SECONDS:
            self._last = now
            stage = "read " if is_split else "wrote"
            seconds = now - self._started
            print(
                f"{seconds:7.1f} s  {stage} {matrix.source.name}: {tasks} of {total} parts, "
                f"{decimal(moved)}",
                file=sys.stderr,
                flush=True,
            )

    def stop(self) -> None:
        """See `run.Progress`."""


class _BytesColumn(ProgressColumn):
    """Bytes moved and their rate."""

    def render(self, task: Task) -> Text:
        moved = int(task.fields["moved"])
        rate = moved / task.elapsed if task.elapsed else 0.0
        return Text(f"{decimal(moved)}  {decimal(int(rate))}/s")


def for_terminal(*, quiet: bool = False) -> Silent | Bars | Lines:
    """What suits the standard error stream."""
    if quiet:
        return Silent()
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()


def _moved_bytes(report: SplitReport | CombineReport) -> int:
    step = "source" if isinstance(report, SplitReport) else "target"
    return report.meters.bytes.get(step, 0)
