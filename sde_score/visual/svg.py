"""Small inline SVG charts for the report: they follow the light or dark theme of the page and need no file and no
script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH = 540  # of the drawing, in about CSS pixels: small enough for the text to stay readable on a phone


def format_number(value: float | None) -> str:
    """Four significant digits, whole numbers as they are; a dash for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return f"{value:.4g}"


def format_with_error(value: float | None, stderr: float | None) -> tuple[str, str]:
    """Value and standard error with the same number of decimals: two significant digits of the error."""
    if value is None or stderr is None or not math.isfinite(stderr) or stderr <= 0 or not math.isfinite(value):
        return format_number(value), ""
    decimals = max(0, 1 - math.floor(math.log10(stderr)))
    if decimals > 8:
        return format_number(value), f"{stderr:.2g}"
    return f"{value:.{decimals}f}", f"{stderr:.{decimals}f}"


def nice_ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """About five round numbers within an interval; with ``log`` interval and ticks are logarithms to base 10."""
    if log and high - low >= 0.7:
        marks = (1, 2, 5) if high - low < 3 else (1,)
        stride = max(1, math.ceil((high - low) / 6))
        decades = range(math.floor(low), math.ceil(high) + 1, stride)
        return [t for k in decades for m in marks if low <= (t := k + math.log10(m)) <= high]
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _open(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" class="chart" aria-label="{escape(title, quote=True)}">'


def bar_chart(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    errors: Sequence[float | None] | None = None,
    highlight: Sequence[int] = (),
    unit: str = "",
    title: str = "",
) -> str:
    """Horizontal bars from zero, to the left where negative, with their values, e.g. bits/dim beside baselines.

    Args:
        labels, values: of the bars, from the top. One that is not finite, or None, has no bar, only its word.
        errors: standard errors, drawn as whiskers.
        highlight: indices of the bars in the accent colour.
        unit: written behind the values.
        title: what the chart shows, for readers who cannot see it.
    """
    if len(labels) != len(values) or not values:
        raise ValueError(
            f"bar_chart needs one label for each value, got {len(labels)} labels and {len(values)} values."
        )
    errors = [None] * len(values) if errors is None else errors
    errors = [e if e is not None and math.isfinite(e) else None for e in errors]
    drawn = [(v, e or 0.0) for v, e in zip(values, errors, strict=True) if v is not None and math.isfinite(v)]
    high, low = (max((v + e for v, e in drawn), default=0.0), min((v - e for v, e in drawn if v < 0), default=0.0))
    high, low = max(high, 0.0), min(low, 0.0)
    row, left, width = 26, 140, WIDTH
    room = width - left - (100 + 7 * len(unit))
    largest = max(high, -low) or 1.0  # divided first: high - low may overflow
    scale = room / (high / largest - low / largest or 1.0)

    def at(value: float) -> float:
        return left + (value / largest - low / largest) * scale

    parts = [_open(width, row * len(values) + 6, title)]
    for i, (label, value, error) in enumerate(zip(labels, values, errors, strict=True)):
        y = 3 + i * row
        kind = "bar accent" if i in highlight else "bar"
        parts.append(f'<text x="{left - 10}" y="{y + 17}" text-anchor="end">{escape(str(label))}</text>')
        tip = at(0.0)
        text, spread = format_with_error(value, error)
        if value is not None and math.isfinite(value):
            start, length = min(at(value), at(0.0)), max(abs(at(value) - at(0.0)), 1)
            parts.append(
                f'<rect class="{kind}" x="{start:.1f}" y="{y + 4}" width="{length:.1f}" height="{row - 8}" rx="3"/>'
            )
            tip = max(start + length, at(value + (error or 0)))
            if error:
                a, b = at(value - error), at(value + error)
                parts.append(
                    f'<path class="whisker" d="M{a:.1f} {y + 13}H{b:.1f}M{a:.1f} {y + 9}v8M{b:.1f} {y + 9}v8"/>'
                )
                text += f" ± {spread or format_number(error)}"
        parts.append(f'<text x="{tip + 8:.1f}" y="{y + 17}">{escape((text + " " + unit).strip())}</text>')
    return "".join(parts) + "</svg>"


def line_chart(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str = "", title: str = "", log: bool = False
) -> str:
    """Curves with a legend; at most 300 points of each are drawn.

    Args:
        curves: name -> (x, y); points that are not finite (or not positive, with ``log``) are left out.
        log: logarithmic vertical axis.
    """
    width, height, left, bottom, top = WIDTH, 270, 60, 42, 30
    cleaned = {}
    for name, (xs, ys) in curves.items():
        points = [(x, math.log10(y) if log else y) for x, y in zip(xs, ys, strict=True)
                  if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]  # fmt: skip
        if points:
            cleaned[name] = points[:: max(1, len(points) // 300)]
    if not cleaned:
        raise ValueError("line_chart has no finite point to draw.")
    xs, ys = zip(*[p for points in cleaned.values() for p in points])
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x1, y1 = x1 if x1 > x0 else x0 + 1, y1 if y1 > y0 else y0 + 1

    def at(x: float, y: float) -> str:
        u = left + (x - x0) / (x1 - x0) * (width - left - 12)
        v = height - bottom - (y - y0) / (y1 - y0) * (height - bottom - top)
        return f"{u:.1f} {v:.1f}"

    parts = [_open(width, height, title)]
    for y in nice_ticks(y0, y1, log=log):
        _, v = at(x0, y).split()
        parts.append(f'<path class="rule" d="M{left} {v}H{width - 12}"/>')
        parts.append(
            f'<text x="{left - 8}" y="{float(v) + 4:.1f}" text-anchor="end">{format_number(10**y if log else y)}</text>'
        )
    for x in nice_ticks(x0, x1):
        u, _ = at(x, y0).split()
        parts.append(f'<text x="{u}" y="{height - 22}" text-anchor="middle">{format_number(x)}</text>')
    parts.append(f'<text x="{width - 12}" y="{height - 4}" text-anchor="end">{escape(xlabel)}</text>')
    for i, (name, points) in enumerate(cleaned.items()):
        parts.append(f'<path class="line c{i % 4}" d="M{"L".join(at(*p) for p in points)}"/>')
        x = left + i * (width - left) / len(cleaned)
        parts.append(f'<path class="line c{i % 4}" d="M{x:.0f} 12h18"/>')
        parts.append(f'<text x="{x + 24:.0f}" y="16">{escape(name)}</text>')
    return "".join(parts) + "</svg>"
