"""Drawings of values beside each other on one axis: paired differences of the seeds, and a metric by category."""

from collections.abc import Callable, Sequence

from stages.report.figures import (
    BETTER,
    BETTER_INK,
    EDGE,
    INK,
    MUTED,
    colour,
    dot,
    number,
    padded,
    rule,
    scale,
    svg,
    text,
    ticks,
)


def difference_chart(
    title: str, note: str, values: dict[int, float], mean: float, interval: tuple[float, float] | None,
    better_right: bool | None, name: str, percent: bool = False,
) -> str:  # fmt: skip
    """Paired differences on one axis: a dot for each seed, the mean, its 95 % interval, and zero."""
    width, height, left, right, middle = 360, 132, 16, 16, 72
    factor = 100 if percent else 1
    shown = {seed: value * factor for seed, value in values.items()}
    ends = [0.0, *shown.values(), *(end * factor for end in interval or ())]
    low, high = padded(ends, 0.1)
    to_x = scale(low, high, left, width - right)
    parts = [text(2, 16, title, size=14, fill=INK, weight=600), text(2, 33, note, size=11.5)]
    if better_right is not None:
        start, end = (to_x(0), width - right) if better_right else (left, to_x(0))
        parts.append(f'<rect x="{start:.1f}" y="46" width="{end - start:.1f}" height="52" fill="{BETTER}"/>')
        # Written where there is room: in the half that is better, or not at all when that half is a sliver.
        if end - start > 44:
            parts.append(
                text(
                    end - 5 if better_right else start + 5,
                    58,
                    "better",
                    size=10.5,
                    fill=BETTER_INK,
                    anchor="end" if better_right else "start",
                )
            )
    marks = ticks(low, high, 5)
    spacing = marks[1] - marks[0] if len(marks) > 1 else high - low
    parts.append(rule((left, 98), (width - right, 98)))
    for mark in marks:
        parts += [
            rule((to_x(mark), 98), (to_x(mark), 102), MUTED),
            text(to_x(mark), 115, number(mark, spacing), size=11, anchor="middle"),
        ]
    parts.append(rule((to_x(0), 46), (to_x(0), 98), INK, 1, "3 3"))
    if interval is not None:
        parts.append(
            rule(
                (to_x(interval[0] * factor), middle + 12),
                (to_x(interval[1] * factor), middle + 12),
                colour(name),
                4,
            )
        )
    centre = to_x(mean * factor)
    corners = ((0, 5), (7, 12), (0, 19), (-7, 12))
    diamond = " ".join(f"{centre + across:.1f},{middle + down}" for across, down in corners)
    parts.append(f'<polygon points="{diamond}" fill="{colour(name)}" stroke="{EDGE}" stroke-width="1"/>')
    for seed, value in shown.items():
        parts.append(dot(to_x(value), middle - 8, 4.5, colour(name), f"seed {seed}: {value:+.4g}", 0.75))
    return svg(width, height, f"{title}: mean {mean * factor:+.4g}; {note}", parts)


def category_chart(
    title: str, rows: Sequence[tuple[str, dict[str, list[float]]]], words: Callable[[float], str], percent: bool
) -> str:  # fmt: skip
    """A metric by category: for each category a row, for each series its seeds (faint) and their mean (strong).

    `words` writes a value; shares have an axis from 0 to 1, other metrics one that their values fill.
    """
    width, left, right, top = 460, 128, 18, 14
    step = max([40, *(9 * len(series) + 13 for _, series in rows)])
    height = top + step * max(len(rows), 1) + 26
    low, high = (0.0, 1.0) if percent else padded(v for _, series in rows for values in series.values() for v in values)
    to_x = scale(low, high, left, width - right)
    marks = [0, 0.25, 0.5, 0.75, 1] if percent else ticks(low, high)
    spacing = marks[1] - marks[0] if len(marks) > 1 else high - low
    parts: list[str] = []
    for mark in marks:
        shown = f"{mark * 100:g}%" if percent else number(mark, spacing)
        parts += [
            rule((to_x(mark), top), (to_x(mark), height - 26)),
            text(to_x(mark), height - 8, shown, size=11, anchor="middle"),
        ]
    for index, (name, series) in enumerate(rows):
        y = top + step * (index + 0.5)
        parts += [
            rule((left, y), (width - right, y)),
            text(left - 10, y + 4, name if len(name) <= 19 else name[:18] + "…", size=12, fill=INK, anchor="end"),
        ]
        for place, (who, values) in enumerate(series.items()):
            offset = y + (place - (len(series) - 1) / 2) * 9
            for value in values if len(values) > 1 else ():
                parts.append(dot(to_x(value), offset, 2.4, colour(who), f"{who}, {name}: {words(value)}", 0.45))
            if values:
                centre = sum(values) / len(values)
                parts.append(dot(to_x(centre), offset, 5, colour(who), f"{who}, {name}, mean: {words(centre)}"))
    return svg(width, height, title, parts)
