"""Drawings as SVG text: small functions over numbers, no library, so that the page stands alone and stays the same.

Every drawing takes the colours of its series from `colour`, draws each seed thinly and the mean strongly,
and scales with the page. Coordinates are in the drawing's own units, about one CSS pixel on a phone.
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

INK, MUTED, GRID = "#1c2430", "#5d6776", "#e4e8ee"
NAMED = {
    "base": "#7c8594",
    "sft": "#2a9d6f",
    "frozen": "#2f6fc4",
    "coevolved": "#e07b1a",
    "real": "#1c2430",
    "reconstruction": "#8f6bb3",
}
OTHERS = ("#6b4a2f", "#b0457e", "#8a7a1f", "#5b57c9", "#0f8ea3")
EDGE, BETTER, BETTER_INK = "#fff", "#edf6f0", "#3c7d58"
DARK = {
    INK: "#e7ebf1",
    MUTED: "#9ca8b8",
    GRID: "#2c3542",
    EDGE: "#181d25",
    BETTER: "#1b3026",
    BETTER_INK: "#7fc79d",
    "#7c8594": "#97a1b1",
    "#2a9d6f": "#45bd8c",
    "#2f6fc4": "#6ba3ee",
    "#e07b1a": "#f09a45",
    "#8f6bb3": "#b394d6",
    "#6b4a2f": "#c39a74",
    "#b0457e": "#dd7db1",
    "#8a7a1f": "#c4b350",
    "#5b57c9": "#9b98f2",
    "#0f8ea3": "#3fbcd0",
}
"""Each colour of a drawing as the page shows it on a dark ground; a drawing alone stays light."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One polyline: the series' name (for its colour), its points, and whether it is the mean or a single seed.

    rounds: of each point, where no axis shows them.
    """

    name: str
    points: Sequence[Point]
    strong: bool
    label: str
    rounds: Sequence[int] = ()


def colour(name: str) -> str:
    """A series' colour: fixed for the usual names; for another arm one that its name always gets."""
    return NAMED.get(name) or OTHERS[sum(name.encode()) % len(OTHERS)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float, spacing: float) -> str:
    """A tick's text with just the decimals that its spacing needs, and a real minus sign."""
    decimals = max(0, -math.floor(math.log10(spacing) + 1e-9)) if spacing > 0 else 2
    return f"{value + 0.0:.{decimals}f}".replace("-", "−")


def padded(values: Iterable[float], share: float = 0.08) -> tuple[float, float]:
    """The range of `values` with a margin; never empty, also for equal values."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    margin = (high - low) * share or max(abs(high) * 0.05, 1e-6)
    return low - margin, high + margin


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = 12,
    fill: str = MUTED,
    anchor: str = "start",
    weight: int = 400,
) -> str:
    """One line of text with its baseline at (x, y)."""
    style = f'font-size="{size:g}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(words)}</text>'


def rule(a: Point, b: Point, stroke: str = GRID, width: float = 1, dash: str = "") -> str:
    """A straight line from a to b."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    ends = f'x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"'
    return f'<line {ends} stroke="{stroke}" stroke-width="{width:g}"{dashes}/>'


def dot(x: float, y: float, radius: float, fill: str, title: str, opacity: float = 1) -> str:
    """A point that tells its values when hovered."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" fill-opacity="{opacity:g}" '
        f'stroke="{EDGE}" stroke-width="1"><title>{html.escape(title)}</title></circle>'
    )


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """The drawing with a viewBox, so that the page decides its size; `label` is read to those who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(label, quote=True)}" font-family="system-ui, sans-serif">'
        f"{''.join(parts)}</svg>"
    )


def scale(low: float, high: float, start: float, end: float):
    """The linear map that takes low to start and high to end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def path(points: Sequence[Point], stroke: str, width: float, opacity: float) -> str:
    """A polyline with round joins."""
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{where}" fill="none" stroke="{stroke}" stroke-width="{width:g}" '
        f'stroke-opacity="{opacity:g}" stroke-linejoin="round" stroke-linecap="round"/>'
    )


def line_chart(
    title: str, note: str, lines: Sequence[Line], x_label: str = "round", percent: bool = False, marked: bool = True
) -> str:  # fmt: skip
    """Values over rounds or steps: seeds thin, means thick. `note` says which way is better; marked: each point."""
    width, height, left, right, top, bottom = 360, 232, 52, 14, 46, 36
    lines = [line for line in lines if line.points]
    parts = [text(2, 16, title, size=14, fill=INK, weight=600), text(2, 33, note, size=11.5)]
    if not lines:
        return svg(
            width,
            height,
            f"{title}: no values yet",
            [*parts, text(width / 2, 130, "no values yet", anchor="middle")],
        )
    xs = sorted({x for line in lines for x, _ in line.points})
    low, high = padded(y for line in lines for _, y in line.points)
    x_low, x_high = (xs[0], xs[-1]) if len(xs) > 1 else (xs[0] - 1, xs[0] + 1)
    to_x, to_y = scale(x_low, x_high, left + 6, width - right - 6), scale(low, high, height - bottom, top)
    marks = ticks(low, high)
    spacing = marks[1] - marks[0] if len(marks) > 1 else abs(high - low)
    for mark in marks:
        shown = number(mark * 100, spacing * 100) + "%" if percent else number(mark, spacing)
        parts += [
            rule((left, to_y(mark)), (width - right, to_y(mark))),
            text(left - 6, to_y(mark) + 4, shown, size=11, anchor="end"),
        ]
    below = xs[:: math.ceil(len(xs) / 8)] if marked else ticks(x_low, x_high)
    parts += [text(to_x(x), height - bottom + 17, f"{x:g}", size=11, anchor="middle") for x in below]
    parts.append(text((left + width - right) / 2, height - 4, x_label, size=11, anchor="middle"))
    for line in sorted(lines, key=lambda item: item.strong):
        points = [(to_x(x), to_y(y)) for x, y in line.points]
        parts.append(path(points, colour(line.name), 2.6 if line.strong else 1.1, 1 if line.strong else 0.42))
        for (x, y), (round_id, value) in zip(points, line.points, strict=True) if marked else ():
            words = f"{line.label}, {x_label} {round_id:g}: {value:.5g}"
            parts.append(dot(x, y, 3.4 if line.strong else 2, colour(line.name), words, 1 if line.strong else 0.5))
    return svg(width, height, f"{title} by {x_label}; {note}", parts)


def path_chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], start: str, percent: bool = False
) -> str:  # fmt: skip
    """The way of each arm from its `start` through a plane, round by round (x, perhaps shares: higher is better; y:
    lower is better)."""
    width, height, left, right, top, bottom = 460, 372, 52, 16, 30, 46
    lines = [line for line in lines if line.points]
    parts = [text(2, 16, title, size=14, fill=INK, weight=600)]
    if not lines:
        return svg(
            width,
            height,
            f"{title}: no values yet",
            [*parts, text(width / 2, 180, "no values yet", anchor="middle")],
        )
    x_low, x_high = padded(x for line in lines for x, _ in line.points)
    y_low, y_high = padded(y for line in lines for _, y in line.points)
    to_x, to_y = scale(x_low, x_high, left, width - right), scale(y_low, y_high, height - bottom, top)
    for axis_low, axis_high, across in ((x_low, x_high, False), (y_low, y_high, True)):
        marks = ticks(axis_low, axis_high, 5)
        spacing = marks[1] - marks[0] if len(marks) > 1 else axis_high - axis_low
        for mark in marks:
            if across:
                parts += [rule((left, to_y(mark)), (width - right, to_y(mark)))]
                parts += [text(left - 6, to_y(mark) + 4, number(mark, spacing), size=11, anchor="end")]
            else:
                parts += [rule((to_x(mark), top), (to_x(mark), height - bottom))]
                shown = number(mark * 100, spacing * 100) + "%" if percent else number(mark, spacing)
                parts += [text(to_x(mark), height - bottom + 16, shown, size=11, anchor="middle")]
    parts.append(text((left + width - right) / 2, height - 8, f"{x_label} →  better", size=12, anchor="middle"))
    parts.append(
        f'<g transform="translate(13 {(top + height - bottom) / 2:.1f}) rotate(-90)">'
        f"{text(0, 0, f'better  ← {y_label}', size=12, anchor='middle')}</g>"
    )
    for line in sorted(lines, key=lambda item: item.strong):
        points = [(to_x(x), to_y(y)) for x, y in line.points]
        parts.append(path(points, colour(line.name), 2.8 if line.strong else 1, 1 if line.strong else 0.38))
        for index, ((x, y), (first, second), round_id) in enumerate(zip(points, line.points, line.rounds, strict=True)):
            words = f"{line.label}, round {round_id}: {x_label} {first:.4g}, {y_label} {second:.4g}"
            last = index == len(points) - 1
            radius = (5.5 if last or index == 0 else 3.2) if line.strong else (2.6 if last else 1.7)
            parts.append(
                dot(
                    x,
                    y,
                    radius,
                    colour(start if index == 0 else line.name),
                    words,
                    1 if line.strong else 0.5,
                )
            )
    return svg(width, height, f"{title}: {x_label} against {y_label}", parts)
