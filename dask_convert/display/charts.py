"""Small charts as SVG text, for pages that have to open without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 760, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 12, 36
_ROW = 22
_LONGEST = 32
"""Characters of a lane's name that are shown: the last ones, with the process."""
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#222222")


class Line(NamedTuple):
    """Values over seconds, under a name."""

    name: str
    seconds: Sequence[float]
    values: Sequence[float]


class Part(NamedTuple):
    """A share of a whole, under a name."""

    name: str
    value: float


class Mark(NamedTuple):
    """Something that happened in a lane, at a time."""

    lane: str
    seconds: float
    text: str


class Bar(NamedTuple):
    """A stretch of time in a lane."""

    lane: str
    start: float
    stop: float
    kind: str


def line_chart(lines: Sequence[Line], unit: str, limit: float | None = None) -> str:
    """Lines over time, from zero up; with a dashed one at a limit.

    Parameters
    ----------
    lines
        What is drawn.
    unit
        Of the values.
    limit
        A value that they should stay below.
    """
    end = max([1e-9, *(s for line in lines for s in line.seconds)])
    top = 1.05 * max([1e-9, limit or 0.0, *(v for line in lines for v in line.values)])
    parts = [_axes(end, top, unit)]
    for number, line in enumerate(lines):
        points = " ".join(
            f"{_x(seconds, end):.1f},{_y(value, top):.1f}"
            for seconds, value in zip(line.seconds, line.values, strict=True)
        )
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    if limit is not None:
        y = _y(limit, top)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#e45756" stroke-dasharray="6 4"/>'
        )
    return _svg(parts, HEIGHT, [line.name for line in lines])


def lane_chart(bars: Sequence[Bar], marks: Sequence[Mark] = ()) -> str:
    """Who did what when: a lane for each, a bar for each stretch, a colour for each kind.

    Parameters
    ----------
    bars
        What was done.
    marks
        What happened meanwhile: a cross each, that tells its text where a mouse rests on it.
    """
    names = dict.fromkeys([bar.lane for bar in bars] + [mark.lane for mark in marks])
    lanes = {name: _TOP + _ROW * number for number, name in enumerate(names)}
    kinds = list(dict.fromkeys(bar.kind for bar in bars))
    left = max([_LEFT, *(_text_width(_shortened(name)) + 16 for name in lanes)])
    end = max([1e-9, *(bar.stop for bar in bars), *(mark.seconds for mark in marks)])
    height = _TOP + _ROW * len(lanes) + _BOTTOM
    parts = [_time_axis(end, height, left)]
    parts += [
        f'<text x="{left - 8:.0f}" y="{y + 15}" text-anchor="end">{escape(_shortened(name))}</text>'
        for name, y in lanes.items()
    ]
    for bar in bars:
        x, width = _x(bar.start, end, left), _x(bar.stop, end, left) - _x(bar.start, end, left)
        colour = COLOURS[kinds.index(bar.kind) % len(COLOURS)]
        parts.append(
            f'<rect x="{x:.1f}" y="{lanes[bar.lane] + 2}" width="{max(width, 0.5):.1f}" '
            f'height="{_ROW - 4}" fill="{colour}" fill-opacity="0.8"/>'
        )
    for mark in marks:
        x, y = _x(mark.seconds, end, left), lanes[mark.lane] + _ROW / 2
        parts.append(
            f'<path d="M{x - 5:.1f},{y - 5}l10,10m0,-10l-10,10" stroke="#b00020" '
            f'stroke-width="2.5"><title>{escape(mark.text)}</title></path>'
        )
    return _svg(parts, height, kinds)


def part_bar(parts: Sequence[Part], whole: float) -> str:
    """Parts of a whole side by side, inside its outline; for light and dark pages.

    Parameters
    ----------
    parts
        In the order in which they are drawn, in the order of `COLOURS`.
    whole
        What they should not exceed; if they do, a dashed line shows where it ends.
    """
    scale = (WIDTH - 2) / max([1e-9, whole, sum(part.value for part in parts)])
    drawn, x = [], 1.0
    for number, (name, value) in enumerate(parts):
        width = value * scale
        drawn.append(
            f'<rect x="{x:.1f}" y="1" width="{width:.1f}" height="22" '
            f'fill="{COLOURS[number % len(COLOURS)]}"><title>{escape(name)}</title></rect>'
        )
        x += width
    outline = (
        f'<rect x="1" y="1" width="{whole * scale:.1f}" height="22" fill="none" '
        'stroke="currentColor" stroke-dasharray="6 4"/>'
    )
    return picture([*drawn, outline], 24)


def column_map(
    densities: Sequence[float], small_borders: Sequence[float], large_borders: Sequence[float]
) -> str:
    """A matrix from its first column to its last; for light and dark pages.

    Parameters
    ----------
    densities
        Share of entries in strips of equal numbers of columns: the more, the stronger.
    small_borders, large_borders
        Places in ``[0, 1]`` that get a tick above, or a line across.
    """
    top, height, inner = 8, 72, WIDTH - 2
    width, densest = inner / max(len(densities), 1), max([1e-9, *densities])
    drawn = [
        f'<rect x="{1 + number * width:.2f}" y="{top}" width="{width:.2f}" height="{height}" '
        f'fill="{COLOURS[0]}" fill-opacity="{0.05 + 0.95 * (density / densest) ** 0.5:.2f}">'
        f"<title>{density:.1%}</title></rect>"
        for number, density in enumerate(densities)
    ]
    for borders, stop in ((small_borders, top), (large_borders, top + height)):
        drawn += [
            f'<line x1="{1 + place * inner:.1f}" x2="{1 + place * inner:.1f}" y1="2" y2="{stop}" '
            'stroke="currentColor"/>'
            for place in borders
        ]
    outline = (
        f'<rect x="1" y="{top}" width="{inner}" height="{height}" fill="none" '
        'stroke="currentColor"/>'
    )
    return picture([*drawn, outline], top + height + 2)


def picture(parts: Sequence[str], height: float) -> str:
    """A picture of SVG elements, as wide as there is room for."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="100%" style="max-width:{WIDTH}px" '
        f'role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _svg(parts: Sequence[str], height: int, legend: Sequence[str]) -> str:
    """A picture, and what its colours mean below it, in as many lines as that takes."""
    key, x, y = [], float(_LEFT), height + 12
    for number, name in enumerate(legend):
        width = _text_width(name) + 26
        if x + width > WIDTH and x > _LEFT:
            x, y = float(_LEFT), y + 16
        colour = COLOURS[number % len(COLOURS)]
        key.append(
            f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{x + 14:.0f}" y="{y}">{escape(name)}</text>'
        )
        x += width
    return (
        f'<svg viewBox="0 0 {WIDTH} {y + 8}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}{''.join(key)}</svg>"
    )


def _text_width(text: str) -> float:
    """About how wide a text of 11 pixels is, rather too wide."""
    return 6.5 * len(text)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else "…" + text[-_LONGEST + 1 :]


def _axes(end: float, top: float, unit: str) -> str:
    parts = [_time_axis(end, HEIGHT)]
    for tick in _ticks(top):
        y = _y(tick, top)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g} {unit}</text>'
        )
    return "".join(parts)


def _time_axis(end: float, height: int, left: float = _LEFT) -> str:
    y = height - _BOTTOM
    parts = [f'<line x1="{left:.0f}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="#888"/>']
    parts += [
        f'<text x="{_x(tick, end, left):.1f}" y="{y + 16}" text-anchor="middle">{tick:g} s</text>'
        for tick in _ticks(end)
    ]
    return "".join(parts)


def _ticks(top: float) -> list[float]:
    """Up to six round numbers from 0 on."""
    step = 10.0 ** len(str(int(top)))
    while step / 2 > top / 6:
        step /= 2
        if step / 2.5 > top / 6:
            step /= 2.5
        if step / 2 > top / 6:
            step /= 2
    return [round(step * number, 10) for number in range(int(top / step) + 1)]


def _x(seconds: float, end: float, left: float = _LEFT) -> float:
    return left + (WIDTH - left - _RIGHT) * seconds / end


def _y(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top
