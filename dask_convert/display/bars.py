"""How far a run has come, as bars on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO, cast

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

from dask_convert.display.progress import moved_bytes
from dask_convert.display.telling import Steady
from dask_convert.engine.tasks import CombineReport, SplitReport

if TYPE_CHECKING:
    from dask_convert.engine.graph import Report
    from dask_convert.planning.plans import ConversionPlan, MatrixPlan


class Bars:
    """One bar per matrix and stage: tasks done, bytes moved, rate and time left."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed}/{task.total}"),
            _BytesColumn(),
            TimeRemainingColumn(),
            console=console or Console(file=cast("TextIO", Steady(sys.stderr))),
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
            moved = task.fields["moved"] + moved_bytes(report)
            self._progress.update(number, advance=1, moved=moved)

    def stop(self, *, failed: bool) -> None:  # noqa: ARG002  (for others)
        """See `run.Progress`."""
        self._progress.stop()


class _BytesColumn(ProgressColumn):
    """Bytes moved and their rate."""

    def render(self, task: Task) -> Text:
        moved = int(task.fields["moved"])
        rate = moved / task.elapsed if task.elapsed else 0.0
        return Text(f"{decimal(moved)}  {decimal(int(rate))}/s")
