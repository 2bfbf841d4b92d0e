"""Where the marks of drawings of intervals and curves go: positions in the units of an SVG view box, for a template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class IntervalBar:
    """A difference with its interval on a line on which better is to the right."""

    width: float
    zero: float
    """No difference."""
    estimate: float
    low: float
    """The interval's end on the worse side."""
    high: float
    limit: float | None
    """Left of it is what the run does not accept; None where the difference is not judged."""


def interval_bar(
    *, estimate: float, low: float, high: float, limit: float | None = None, width: float = 240.0
) -> IntervalBar:
    """The drawing of a difference; `limit`: the worst that is accepted."""
    marks = [0.0, estimate, low, high, *([] if limit is None else [limit])]
    least, most = min(marks), max(marks)
    margin = 0.08 * (most - least) or 1.0

    def position(value: float) -> float:
        return round(width * (value - least + margin) / (most - least + 2 * margin), 2)

    return IntervalBar(
        width=width,
        zero=position(0.0),
        estimate=position(estimate),
        low=position(low),
        high=position(high),
        limit=None if limit is None else position(limit),
    )


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A value in the drawing, and its words."""

    x: float
    y: float
    words: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series: a name, a path (`d` of an SVG path), its points."""

    name: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Several series over the same steps. The view box is (0, 0, width, height); the axes meet at (left, bottom)."""

    width: float
    height: float
    left: float
    bottom: float
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    lines: tuple[Line, ...]


def line_chart(series: dict[str, Sequence[tuple[float, float]]], *, width: float = 720.0) -> LineChart | None:
    """Draw (step, value) series. Values that are no numbers are left out; None where fewer than two are left."""
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    everything = [point for points in finite.values() for point in points]
    if len(everything) < 2:
        return None
    height, left, right, top, bottom = 266.0, 52.0, 12.0, 20.0, 232.0
    x_ticks = nice_ticks(min(x for x, _ in everything), max(x for x, _ in everything))
    y_ticks = nice_ticks(min(y for _, y in everything), max(y for _, y in everything))
    x_span, y_span = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def across(x: float) -> float:
        return round(left + (width - right - left) * (x - x_span[0]) / (x_span[1] - x_span[0]), 2)

    def up(y: float) -> float:
        return round(bottom - (bottom - top) * (y - y_span[0]) / (y_span[1] - y_span[0]), 2)

    lines = []
    for name, points in finite.items():
        kept = _thinned(points)
        if not kept:
            continue
        dots = tuple(Dot(x=across(x), y=up(y), words=f"{name} {y:.4g} at step {x:g}") for x, y in kept)
        path = "M" + " L".join(f"{dot.x:g} {dot.y:g}" for dot in dots)
        lines.append(Line(name=name, path=path, dots=dots))
    return LineChart(
        width=width,
        height=height,
        left=left,
        bottom=bottom,
        across=tuple(Tick(at=across(x), label=f"{x:,g}") for x in x_ticks),
        up=tuple(Tick(at=up(y), label=f"{y:g}") for y in y_ticks),
        lines=tuple(lines),
    )


def nice_ticks(least: float, most: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers, at least two, the first not above `least` and the last not below `most`."""
    if least == most:
        least, most = least - (abs(least) or 1.0) / 2, most + (abs(most) or 1.0) / 2
    rough = (most - least) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough * 0.999)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points that their strokes do not cover each other, the last always among them."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    stride = math.ceil(len(points) / _MOST_POINTS)
    return [*points[:-1:stride], points[-1]]
