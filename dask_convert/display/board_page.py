"""The page ``/conversion``: what a board knows, drawn with bokeh and kept up to date."""

from __future__ import annotations

import time
from html import escape
from typing import Any

from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    DataRange1d,
    FactorRange,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.models.annotations import Span
from bokeh.models.widgets import Div
from bokeh.plotting import figure

from dask_convert.display.board import STEPS, Board, Run
from dask_convert.planning.sizes import bytes_text, seconds_text

UPDATE_MILLISECONDS = 500
_COLOURS = {"source": "#4c78a8", "fragments": "#f58518", "target": "#54a24b"}
_WORKER_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d")
_GIB = 2**30


def show(board: Board, document: Any, extra: dict[str, Any]) -> None:
    """Fill a browser's document, and keep it up to date.

    Parameters
    ----------
    board
        What is shown: the run that began last, and a line for every other.
    document
        bokeh's document.
    extra
        Variables of the dashboard's template, which has the navigation bar.
    """
    page = _Page()
    page.update(board)
    document.title = "Dask: Conversion"
    document.add_root(page.root)
    document.add_periodic_callback(lambda: page.update(board), UPDATE_MILLISECONDS)
    _use_template(document, extra)


def _use_template(document: Any, extra: dict[str, Any]) -> None:
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    document.template = env.get_template("simple.html")
    document.template_variables.update(extra)
    document.theme = BOKEH_THEME


class _Page:
    """The widgets, and the data behind them."""

    def __init__(self) -> None:
        self._words = Div(styles={"font-size": "14px"})
        self._stages = ColumnDataSource({"stage": [], "share": [], "text": []})
        self._moved = ColumnDataSource({"xs": [], "ys": [], "name": [], "colour": []})
        self._memory = ColumnDataSource({"xs": [], "ys": [], "name": [], "colour": []})
        self._budget = Span(dimension="width", line_dash="dashed", line_color="#e45756")
        self._bars = self._bar_figure()
        bytes_drawn = self._lines("Bytes moved", "GiB", self._moved)
        memory_drawn = self._lines(
            "Memory of workers; dashed: the budget of all processes", "GiB", self._memory
        )
        memory_drawn.add_layout(self._budget)
        self._memory_top = memory_drawn.y_range = Range1d(start=0, end=1)
        self.root = column(
            self._words,
            self._bars,
            row(bytes_drawn, memory_drawn, sizing_mode="stretch_both"),
            sizing_mode="stretch_both",
        )

    def update(self, board: Board) -> None:
        """Bring everything up to what the board knows now."""
        run = board.newest()
        if run is None:
            self._words.text = "No conversion has begun on this scheduler."
            return
        now = time.time()
        others = [other for other in board.runs.values() if other is not run]
        self._words.text = words(run, now) + "".join(
            f"<p>{escape(other.started.target)}: {other.state}</p>" for other in others
        )
        stages = list(run.stages())
        names = [name for name, _, _ in stages]
        if list(self._bars.y_range.factors) != names[::-1]:
            self._bars.y_range.factors = names[::-1]
        self._stages.data = {
            "stage": names,
            "share": [done / total if total else 1.0 for _, done, total in stages],
            "text": [f"{done:,} of {total:,}" for _, done, total in stages],
        }
        self._moved.data = _moved_lines(run)
        self._memory.data = _memory_lines(run)
        budget = run.started.memory_bytes / _GIB
        self._budget.location = budget
        self._memory_top.end = 1.05 * max(
            [budget, *(y for ys in self._memory.data["ys"] for y in ys)]
        )

    def _bar_figure(self) -> Any:
        drawn = figure(
            title="Tasks done",
            y_range=FactorRange(),
            x_range=Range1d(start=0, end=1),
            height=160,
            sizing_mode="stretch_width",
            toolbar_location=None,
        )
        drawn.hbar(y="stage", right="share", height=0.7, source=self._stages, color="#4c78a8")
        drawn.text(
            x=0.01, y="stage", text="text", source=self._stages, text_baseline="middle",
            text_color="black", text_font_size="12px",
        )  # fmt: skip
        drawn.xaxis.formatter = NumeralTickFormatter(format="0%")
        return drawn

    def _lines(self, title: str, unit: str, source: ColumnDataSource) -> Any:
        drawn = figure(
            title=title,
            sizing_mode="stretch_both",
            min_height=260,
            toolbar_location=None,
            y_range=DataRange1d(start=0),
        )
        drawn.multi_line(
            xs="xs", ys="ys", color="colour", legend_field="name", line_width=2, source=source
        )
        drawn.xaxis.axis_label = "seconds"
        drawn.yaxis.axis_label = unit
        drawn.legend.location = "top_left"
        drawn.legend.label_text_font_size = "10px"
        return drawn


def words(run: Run, now: float) -> str:
    """What a run comes to so far, as HTML."""
    started = run.started
    left = run.seconds_left(now) if run.state == "running" else None
    in_use = sum(_last(run).values())
    lines = [
        f"<b>{escape(started.source)}</b> to <b>{escape(started.target)}</b>: {run.state}, "
        f"{seconds_text(run.seconds(now))}"
        + ("" if left is None else f", about {seconds_text(left)} left"),
        ", ".join(
            f"{word} {bytes_text(run.bytes.get(name, 0))}"
            + (f" ({bytes_text(int(run.rate(name)))}/s)" if run.state == "running" else "")
            for name, word in STEPS.items()
        ),
        f"memory of workers {bytes_text(int(in_use))} of {bytes_text(started.memory_bytes)} "
        f"for all processes; workers lost: {run.lost_workers}",
    ]
    return "".join(f"<p>{line}</p>" for line in lines)


def _last(run: Run) -> dict[str, float]:
    rows = list(run.memory.rows())
    return rows[-1][1] if rows else {}


def _moved_lines(run: Run) -> dict[str, list[Any]]:
    lines = [(word, run.moved.of(name), _COLOURS[name]) for name, word in STEPS.items()]
    return _line_data(lines)


def _memory_lines(run: Run) -> dict[str, list[Any]]:
    names = run.memory.names()
    colours = [_WORKER_COLOURS[n % len(_WORKER_COLOURS)] for n in range(len(names))]
    lines = [
        (f"worker {name}", run.memory.of(name), colour)
        for name, colour in zip(names, colours, strict=True)
    ]
    rows = list(run.memory.rows())
    together = ([seconds for seconds, _ in rows], [sum(values.values()) for _, values in rows])
    return _line_data([*lines, ("all", together, "#222222")])


def _line_data(lines: list[tuple[str, tuple[list[float], list[float]], str]]) -> dict[str, Any]:
    return {
        "xs": [seconds for _, (seconds, _), _ in lines],
        "ys": [[value / _GIB for value in values] for _, (_, values), _ in lines],
        "name": [name for name, _, _ in lines],
        "colour": [colour for _, _, colour in lines],
    }
