"""Pictures of plans and stores as SVG text, in colours that suit light and dark pages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_convert.display.charts import COLOURS, WIDTH, picture

_LEFT, _BOTTOM, _TOP = 96, 34, 10
_DRAWN_CELLS = 64
_HISTOGRAM_BINS = 40


class Grid(NamedTuple):
    """A matrix cut by rows and columns.

    Attributes
    ----------
    row_borders, column_borders
        Where parts begin and end: from 0 to the number of rows or columns.
    """

    row_borders: Sequence[int]
    column_borders: Sequence[int]


def grid_picture(grid: Grid, region_borders: Sequence[int]) -> str:
    """Row blocks times column ranges, and below them the regions of the target.

    Parameters
    ----------
    grid
        Row blocks and column ranges; of very many, one line stands for several.
    region_borders
        Where regions begin and end among the entries.
    """
    width, height, left = 520, 220, _LEFT
    rows, columns = _thinned(grid.row_borders), _thinned(grid.column_borders)
    parts = [_rectangle(left, _TOP, width, height, 0, 0.18)]
    for y in (_TOP + share * height for share in rows[1:-1]):
        parts += [_line(left, y, left + width, y)]
    for x in (left + share * width for share in columns[1:-1]):
        parts += [_line(x, _TOP, x, _TOP + height, 0.25)]
    parts += [_rectangle(left, _TOP, width, rows[1] * height, 1, 0.55)]
    parts += [_words(left - 8, _TOP + 14, "rows", "end")]
    top = _TOP + height + 44
    regions = _thinned(region_borders)
    for number, (start, stop) in enumerate(itertools.pairwise(regions)):
        opacity = 0.75 if number % 2 else 0.45
        parts.append(_rectangle(left + start * width, top, (stop - start) * width, 26, 2, opacity))
    parts += [
        _words(left + width / 2, _TOP + height + 16, "columns, in ranges", "middle"),
        _words(left - 8, top + 17, "entries", "end"),
        _words(left + width / 2, top + 42, "of the target, gene after gene, in regions", "middle"),
    ]
    return picture(parts, top + 52)


def bars_picture(bars: Sequence[tuple[str, float, str]]) -> str:
    """Bars from zero, one below the other.

    Parameters
    ----------
    bars
        Name, length and what is written beside it.
    """
    longest = max([1e-9, *(value for _, value, _ in bars)])
    parts = []
    for number, (name, value, text) in enumerate(bars):
        y = 4 + 30 * number
        length = (WIDTH - 2 * _LEFT - 40) * value / longest
        parts += [
            _words(_LEFT - 8, y + 16, name, "end"),
            _rectangle(_LEFT, y, max(length, 1), 22, number, 0.9),
            _words(_LEFT + max(length, 1) + 8, y + 16, text, "start"),
        ]
    return picture(parts, 8 + 30 * len(bars))


def histogram_picture(counts: NDArray[np.int64]) -> str:
    """How many genes have how many entries, in bins that grow by a constant factor.

    Genes without any entry have the bar at the left.
    """
    filled = counts[counts > 0]
    top = float(filled.max()) if filled.size else 1.0
    edges = np.geomspace(1, max(top, 1) + 1, min(_HISTOGRAM_BINS, int(top) + 1) + 1)
    genes, _ = np.histogram(filled, edges)
    heights = [int((counts == 0).sum()), *(int(n) for n in genes)]
    chart = _Frame(edges.size, max([1, *heights]))
    parts = chart.axes("genes")
    for number, n in enumerate(heights):
        what = "none" if not number else f"{edges[number - 1]:,.0f} to {edges[number]:,.0f} entries"
        parts.append(chart.bar(number, n, f"{n:,} genes: {what}", 1 if not number else 0))
    parts.append(chart.words(0.5, "0"))
    for power in range(1, int(np.log10(edges[-1])) + 1):
        place = 1 + np.log(10**power) / np.log(edges[-1]) * (edges.size - 1)
        parts.append(chart.words(float(place), f"{10**power:,}"))
    parts.append(_words(_LEFT + 320, chart.height + 30, "entries of a gene", "middle"))
    return picture(parts, chart.height + 36)


def ranked_picture(counts: NDArray[np.int64], n_obs: int) -> str:
    """Genes from the fullest to the emptiest, by the share of obs that have them."""
    shares = np.sort(counts)[::-1] / max(n_obs, 1)
    chart = _Frame(1, 1.0)
    places = np.unique(np.linspace(0, max(shares.size - 1, 0), 300).astype(int))
    points = " ".join(
        f"{chart.x(place / max(shares.size - 1, 1)):.1f},{chart.y(float(shares[place])):.1f}"
        for place in places
    )
    parts = chart.axes("of all obs", "{:.0%}")
    parts += [
        f'<polyline points="{points}" fill="none" stroke="{COLOURS[0]}" stroke-width="2"/>',
        _words(_LEFT, chart.height + 14, "fullest gene", "start"),
        _words(WIDTH - 12, chart.height + 14, f"gene {shares.size:,}", "end"),
    ]
    return picture(parts, chart.height + 20)


class _Frame:
    """Axes: x in numbers of bins, y from zero to a top."""

    def __init__(self, bins: int, top: float) -> None:
        self.height = 200
        self._bins, self._top = bins, top

    def x(self, place: float) -> float:
        return _LEFT + (WIDTH - _LEFT - 12) * place / self._bins

    def y(self, value: float) -> float:
        return self.height - (self.height - _TOP) * value / self._top

    def bar(self, number: int, value: float, title: str, colour: int) -> str:
        x, y = self.x(number), self.y(value)
        width = self.x(number + 1) - x - 1
        rectangle = _rectangle(x, y, width, self.height - y, colour, 0.9)
        return rectangle.replace("/>", f"><title>{escape(title)}</title></rect>")

    def words(self, place: float, text: str) -> str:
        return _words(self.x(place), self.height + 14, text, "middle")

    def axes(self, unit: str, form: str = "{:,.0f}") -> list[str]:
        """Lines and words at zero, half and all of the height."""
        parts = []
        for value in (0.0, self._top / 2, self._top):
            y = self.y(value)
            parts.append(_line(_LEFT, y, WIDTH - 12, y, 0.3))
            parts.append(_words(_LEFT - 6, y + 4, form.format(value), "end"))
        return [*parts, _words(8, self.height + 14, unit, "start")]


def _thinned(borders: Sequence[int]) -> list[float]:
    """Some of the borders, first and last among them, as shares of the whole."""
    places = np.unique(np.linspace(0, len(borders) - 1, _DRAWN_CELLS + 1).astype(int))
    whole = max(borders[-1], 1)
    return [borders[place] / whole for place in places] if len(borders) > 1 else [0.0, 1.0]


def _rectangle(x: float, y: float, width: float, height: float, colour: int, opacity: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" '
        f'fill="{COLOURS[colour % len(COLOURS)]}" fill-opacity="{opacity}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, opacity: float = 0.6) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor" '
        f'stroke-opacity="{opacity}"/>'
    )


def _words(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" '
        f'font-size="12">{escape(text)}</text>'
    )
