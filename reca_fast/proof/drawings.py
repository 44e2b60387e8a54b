"""Drawings inside a page: small SVGs that take their colours from the page, so that they follow its light or dark."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from markupsafe import Markup

from reca_fast.evaluation.intervals import Estimate

STEPS_SMOOTHED = 20
"""How many steps a smoothed loss is the mean of, about."""


def interval_bars(before: Estimate, after: Estimate, width: int = 160) -> Markup:
    """Two bars from 0 to 1, one below the other, each with a whisker over its interval."""
    bars = [
        f'<rect class="{name}" x="0" y="{top}" width="{_x(each.value, width)}" height="7" rx="1.5"/>'
        f'<line class="whisker" x1="{_x(each.low, width)}" x2="{_x(each.high, width)}" y1="{top + 3.5}" '
        f'y2="{top + 3.5}"/>'
        for name, each, top in (("before", before, 1), ("after", after, 11))
    ]
    said = f"before {before.value:.2f}, after {after.value:.2f}"
    return Markup(
        f'<svg class="bars" viewBox="0 0 {width} 19" role="img" aria-label="{said}">'
        f'<line class="axis" x1="0.5" x2="0.5" y1="0" y2="19"/><line class="axis" x1="{width - 0.5}" '
        f'x2="{width - 0.5}" y1="0" y2="19"/>{"".join(bars)}</svg>'
    )


def score_chart(rows: Mapping[str, tuple[Estimate, Estimate]], width: int = 640) -> Markup:
    """One line for each name, on a scale from 0 to 1: the value before as a ring, the value after as a disc, with
    a line between them and their intervals below and above it.
    """
    left, right, row = 190, 24, 30
    height = 26 + row * len(rows)
    inner = width - left - right

    def x(value: float) -> float:
        return round(left + inner * value, 1)

    parts = [
        f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="4" y2="{height - 22}"/>'
        f'<text class="tick" x="{x(tick)}" y="{height - 6}" text-anchor="middle">{tick:g}</text>'
        for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)
    ]
    for number, (name, (before, after)) in enumerate(rows.items()):
        y = 4 + row * number + row / 2
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<line class="between" x1="{x(before.value)}" x2="{x(after.value)}" y1="{y}" y2="{y}"/>'
            f'<line class="whisker" x1="{x(before.low)}" x2="{x(before.high)}" y1="{y + 6}" y2="{y + 6}"/>'
            f'<line class="whisker" x1="{x(after.low)}" x2="{x(after.high)}" y1="{y - 6}" y2="{y - 6}"/>'
            f'<circle class="ring" cx="{x(before.value)}" cy="{y}" r="5"/>'
            f'<circle class="after" cx="{x(after.value)}" cy="{y}" r="5"/>'
        )
    said = "; ".join(f"{name} {b.value:.2f} before, {a.value:.2f} after" for name, (b, a) in rows.items())
    return _svg(width, height, said, parts)


def loss_chart(losses: Sequence[tuple[int, float]], width: int = 640, height: int = 260) -> Markup:
    """The loss over the steps, as it was and smoothed; (step, loss) in the order of the steps, at least one."""
    left, right, top, bottom = 56, 16, 10, 34
    steps = [step for step, _ in losses]
    raw = [loss for _, loss in losses]
    smooth = smoothed(raw)
    # The first steps of a run may be far above the rest, and would flatten all that follows.
    highest = max([*smooth[1:], *sorted(raw)[: max(1, round(0.98 * len(raw)))]])
    lowest = min(raw)
    ticks = _ticks(lowest, highest)
    low, high = min(lowest, ticks[0]), max(highest, ticks[-1])
    span, length = (high - low) or 1.0, (steps[-1] - steps[0]) or 1

    def at(step: int, loss: float) -> str:
        x = left + (width - left - right) * (step - steps[0]) / length
        y = top + (height - top - bottom) * (1 - (min(loss, high) - low) / span)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for tick in ticks:
        y = at(steps[0], tick).partition(",")[2]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step in sorted({steps[0], steps[(len(steps) - 1) // 2], steps[-1]}):
        x = at(step, low).partition(",")[0]
        parts.append(f'<text class="tick" x="{x}" y="{height - 16}" text-anchor="middle">{step}</text>')
    parts.append(
        f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 2}" text-anchor="middle">step</text>'
    )
    for name, values in (("raw", raw), ("smooth", smooth)):
        points = " ".join(at(step, loss) for step, loss in zip(steps, values, strict=True))
        parts.append(f'<polyline class="{name}" points="{points}"/>')
    said = f"loss {smooth[0]:.4f} in step {steps[0]}, about {smooth[-1]:.4f} in step {steps[-1]}"
    return _svg(width, height, said, parts)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Each loss as a mean of about the last STEPS_SMOOTHED ones, exponentially weighted."""
    out: list[float] = []
    value = 0.0
    for number, loss in enumerate(losses, start=1):
        value += (loss - value) / min(number, STEPS_SMOOTHED)
        out.append(value)
    return out


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from about `low` to about `high`."""
    wanted = (high - low) / 5 or abs(high) / 5 or 1.0
    size = 10.0 ** float(f"{wanted:e}".partition("e")[2])
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= wanted)
    first, last = round(low / step), round(high / step)
    ticks = [float(f"{number * step:.12g}") for number in range(first, last + 1)]
    assert all(a < b for a, b in pairwise(ticks))
    return ticks


def _x(value: float, width: int) -> float:
    return round(value * width, 1)


def _svg(width: int, height: int, said: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
