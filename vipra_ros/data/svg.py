"""Small line and range plots as SVG text: sharp at any size, a few kilobytes each, no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

COLOURS = ("#3366cc", "#dc7a1e", "#2f9e5b", "#c8385a", "#7d55c7", "#8a6d3b", "#0e9aa7", "#555555")
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 8, 20, 18  # px around the axes


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values within [low, high]."""
    span = max(high - low, 1e-9)
    step = 10.0 ** np.floor(np.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = np.ceil(low / step - 1e-9) * step
    return [round(float(v), 12) + 0.0 for v in np.arange(first, high + 1e-9 * span, step)]  # + 0.0: no -0


def lines(
    title: str,
    curves: Sequence[tuple[Sequence[float], Sequence[float], str, bool]],
    width: int = 340,
    height: int = 150,
    floor: float | None = None,
    ceiling: float | None = None,
) -> str:
    """A line plot. `curves`: (x, y, colour, dashed); `floor`, `ceiling`: the y axis reaches at least there."""
    xs = np.concatenate([np.asarray(c[0], float) for c in curves] or [np.zeros(1)])
    ys = np.concatenate([np.asarray(c[1], float) for c in curves] or [np.zeros(1)])
    low, high = (float(ys.min()), float(ys.max())) if len(ys) else (0.0, 1.0)
    low, high = min(low, low if floor is None else floor), max(high, high if ceiling is None else ceiling)
    pad = 0.05 * max(high - low, 1e-3)
    low, high = low - pad, high + pad
    left, right = (float(xs.min()), max(float(xs.max()), float(xs.min()) + 1e-3)) if len(xs) else (0.0, 1.0)
    inner_w, inner_h = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def px(x):
        return _LEFT + (np.asarray(x, float) - left) / (right - left) * inner_w

    def py(y):
        return _TOP + (high - np.asarray(y, float)) / (high - low) * inner_h

    out = [_open(width, height, title)]
    for v in ticks(low, high):
        y = float(py(v))
        out.append(f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        out.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" class="tick end">{v:g}</text>')
    for v in ticks(left, right, 6):
        out.append(f'<text x="{float(px(v)):.1f}" y="{height - 5}" class="tick mid">{v:g}</text>')
    for x, y, colour, dashed in curves:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px(x), py(y), strict=True))
        dash = ' stroke-dasharray="3 2" opacity="0.75"' if dashed else ""
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"{dash}/>')
    return "".join(out) + "</svg>"


def ranges(title: str, rows: Sequence[tuple[str, float, float, float, float]], width: int = 340) -> str:
    """One bar a row: (name, lowest, first, last, highest); thin from lowest to highest, thick in between."""
    height = _TOP + 16 * len(rows) + _BOTTOM
    low, high = min(r[1] for r in rows), max(r[4] for r in rows)
    high = max(high, low + 1e-6)
    left = 84

    def px(v: float) -> float:
        return left + (v - low) / (high - low) * (width - left - 12)

    out = [_open(width, height, title)]
    for v in ticks(low, high, 5):
        out.append(f'<line x1="{px(v):.1f}" x2="{px(v):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" class="grid"/>')
        out.append(f'<text x="{px(v):.1f}" y="{height - 5}" class="tick mid">{v:g}</text>')
    for i, (name, lowest, first, last, highest) in enumerate(rows):
        y, colour = _TOP + 16 * i + 8, COLOURS[i % len(COLOURS)]
        out.append(f'<text x="{left - 6}" y="{y + 3}" class="tick end">{escape(name)}</text>')
        out.append(f'<line x1="{px(lowest):.1f}" x2="{px(highest):.1f}" y1="{y}" y2="{y}" stroke="{colour}"/>')
        wide = max(px(last) - px(first), 1.0)
        out.append(f'<rect x="{px(first):.1f}" y="{y - 4}" width="{wide:.1f}" height="8" rx="2" fill="{colour}"/>')
    return "".join(out) + "</svg>"


def histogram(title: str, values: Sequence[float], width: int = 340, height: int = 150, bins: int = 24) -> str:
    """How often which value occurs."""
    counts, edges = np.histogram(values, bins=min(bins, max(4, len(values))))
    inner_w, inner_h = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    top = max(1, int(counts.max()))
    out = [_open(width, height, title)]
    for v in ticks(0, top, 3):
        y = _TOP + (1 - v / top) * inner_h
        out.append(f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        out.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" class="tick end">{v:g}</text>')
    step = inner_w / len(counts)
    for i, n in enumerate(counts):
        h = n / top * inner_h
        out.append(
            f'<rect x="{_LEFT + i * step + 0.5:.1f}" y="{_TOP + inner_h - h:.1f}" width="{max(step - 1, 1):.1f}" '
            f'height="{h:.1f}" fill="{COLOURS[0]}"/>'
        )
    for v in ticks(edges[0], edges[-1], 6):
        x = _LEFT + (v - edges[0]) / (edges[-1] - edges[0]) * inner_w
        out.append(f'<text x="{x:.1f}" y="{height - 5}" class="tick mid">{v:g}</text>')
    return "".join(out) + "</svg>"


def _open(width: int, height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<text x="2" y="12" class="title">{escape(title)}</text>'
    )
