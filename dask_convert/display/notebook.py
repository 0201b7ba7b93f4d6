"""What a notebook shows of a conversion while it runs: bars, rates and the dashboard's address.

It needs nothing but IPython, which every kernel has: a display that is updated in place. So it
looks the same with and without ipywidgets, and what is saved with the notebook is its last state,
as text and HTML.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from dask_convert.display.board import STEPS, Board, Ended, Run
from dask_convert.display.board_feed import started, task_done
from dask_convert.display.progress import Silent
from dask_convert.planning.sizes import bytes_text, seconds_text

if TYPE_CHECKING:
    from dask_convert.conversion.run import Progress
    from dask_convert.engine.graph import Report
    from dask_convert.planning.plans import ConversionPlan, MatrixPlan

UPDATE_SECONDS = 0.25
"""Between two updates of what is shown, at least."""

Show = Callable[[dict[str, str]], object]
"""Shows the same thing by MIME type, in the place of what it showed before."""


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def default_progress(
    progress: Progress | None, on_dashboard: Callable[[str], object] | None
) -> tuple[Progress, Callable[[str], object] | None]:
    """What shows a run where the caller has said nothing, and what is told the dashboard's address.

    Parameters
    ----------
    progress, on_dashboard
        What the caller has said.
    """
    if progress is not None:
        return progress, on_dashboard
    if not in_notebook():
        return Silent(), on_dashboard
    bars = NotebookBars(updated_display())
    return bars, on_dashboard or bars.show_link


def updated_display() -> Show:
    """A place in the output of the cell that runs now."""
    from IPython.display import display

    handle: Any = display({"text/plain": "starting"}, raw=True, display_id=True)

    def show(content: dict[str, str]) -> None:
        handle.update(content, raw=True)

    return show


@contextmanager
def short_interrupt() -> Iterator[None]:
    """Let a notebook show one line, and no traceback, where its kernel is interrupted."""
    try:
        yield
    except KeyboardInterrupt as error:
        line = "; ".join(["interrupted", *getattr(error, "__notes__", ())])
        error._render_traceback_ = lambda: [line]  # type: ignore[attr-defined]  # IPython's hook
        raise


class NotebookBars:
    """Bars of tasks, bytes moved, time left and the dashboard's address; a `run.Progress`.

    Parameters
    ----------
    show
        Where to show it.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._link: str | None = None
        self._board = Board()
        self._shown = 0.0

    def show_link(self, link: str) -> None:
        """Have the address of the dashboard's page among what is shown."""
        self._link = link
        self._update()

    def start(self, plan: ConversionPlan) -> None:
        """See `run.Progress`."""
        self._board.apply(started(plan, "", ""), time.time())
        self._update()

    def report(self, matrix: MatrixPlan, report: Report) -> None:
        """See `run.Progress`."""
        self._board.apply(task_done(matrix, report), time.time())
        if time.monotonic() - self._shown > UPDATE_SECONDS:
            self._update()

    def stop(self, *, failed: bool) -> None:
        """See `run.Progress`."""
        ended = Ended("", "stopped" if failed else "all parts are done")
        self._board.apply(ended, time.time())
        self._update()

    def _update(self) -> None:
        self._shown = time.monotonic()
        what = self._board.newest(), time.time(), self._link
        self._show({"text/html": bars_html(*what), "text/plain": bars_text(*what)})


def bars_html(run: Run | None, now: float, link: str | None) -> str:
    """What there is to see of a run, for browsers."""
    rows = "".join(
        f'<tr><td style="text-align:left">{escape(name)}</td>'
        f'<td><progress value="{done}" max="{max(total, 1)}"></progress></td>'
        f'<td style="text-align:left">{done:,} of {total:,}</td></tr>'
        for name, done, total in (run.stages() if run else ())
    )
    words = f"<p>{escape(_words(run, now))}</p>"
    address = escape(link or "")
    anchor = f'<a href="{address}" target="_blank">{address}</a>'
    where = f"<p>dashboard, while it runs: {anchor}</p>" if link else ""
    return f"<table><tbody>{rows}</tbody></table>{words}{where}"


def bars_text(run: Run | None, now: float, link: str | None) -> str:
    """What there is to see of a run, as lines of text."""
    stages = run.stages() if run else ()
    lines = [f"{name}: {done:,} of {total:,}" for name, done, total in stages]
    where = [f"dashboard, while it runs: {link}"] if link else []
    return "\n".join([*lines, _words(run, now), *where])


def _words(run: Run | None, now: float) -> str:
    if run is None:
        return "starting"
    left = run.seconds_left(now) if run.ended is None else None
    steps = [f"{word} {bytes_text(run.bytes.get(name, 0))}" for name, word in STEPS.items()]
    time_left = "" if left is None else f", about {seconds_text(left)} left"
    state = "" if run.ended is None else f"{run.state}: "
    return f"{state}{', '.join(steps)}; {seconds_text(run.seconds(now))}{time_left}"
