"""Small pictures of numbers as SVG text: lines over time, joints within their limits, a plan over a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Side of the square in which a plan is drawn.
SIDE = 1000


def sparkline(times: Sequence[float], values: Sequence[float], now: float, span: float, least: float,
              colour: str = "#4dd0e1") -> str:
    """A line of the last `span` s; times in s, gaps where a value is not finite.

    Args:
        least: the top of the picture is this value, or the largest one when that is larger.
    """
    width, height = 300.0, 40.0
    finite = [v for v in values if math.isfinite(v)]
    top = max([least, *finite]) or 1.0
    parts, run = [], []
    for t, v in [*zip(times, values), (now, math.nan)]:
        if math.isfinite(v):
            x, y = width * (1 - (now - t) / span), height - 2 - (height - 4) * max(v, 0.0) / top
            run.append(f"{x:.1f},{y:.1f}")
        elif run:
            parts.append(f'<polyline points="{" ".join(run)}" fill="none" stroke="{colour}" stroke-width="2" '
                         'vector-effect="non-scaling-stroke"/>')
            run = []
    return (f'<svg viewBox="0 0 {width:.0f} {height:.0f}" preserveAspectRatio="none" class="v-spark">'
            f'<line x1="0" x2="{width:.0f}" y1="{height - 1:.0f}" y2="{height - 1:.0f}" stroke="#3a4652"/>'
            f'{"".join(parts)}</svg>')


def joint_bars(measured: np.ndarray | None, commanded: np.ndarray | None, low: Sequence[float], high: Sequence[float],
               margin: float) -> str:
    """A bar a joint: the range, the margins in red, measured as a block and commanded as a line.

    Args:
        measured, commanded: (7,) rad; None: not heard.
        low, high: limits, rad.
        margin: what the limiter keeps from them, rad.
    """
    row, left, width = 32, 30, 318
    out = [f'<svg viewBox="0 0 420 {row * len(low) + 2}" class="v-joints">']
    for i, (a, b) in enumerate(zip(low, high)):
        y = row * i + 3

        def x(value: float, a: float = a, b: float = b) -> float:
            return left + width * min(max((value - a) / (b - a), 0.0), 1.0)

        edge = width * margin / (b - a)
        out.append(f'<text x="2" y="{y + 18}" class="v-axis">J{i + 1}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{width}" height="24" rx="3" fill="#24303b"/>')
        for start in (left, left + width - edge):
            out.append(f'<rect x="{start:.1f}" y="{y}" width="{edge:.1f}" height="24" fill="#b3404a"/>')
        if measured is not None and np.isfinite(measured[i]):
            near = min(measured[i] - a, b - measured[i]) < 2 * margin
            colour = "#ff8a65" if near else "#4dd0e1"
            out.append(f'<rect x="{x(measured[i]) - 4:.1f}" y="{y + 1}" width="8" height="22" rx="2" fill="{colour}"/>')
            out.append(f'<text x="416" y="{y + 18}" text-anchor="end" class="v-axis">{measured[i]:+.2f}</text>')
        if commanded is not None and np.isfinite(commanded[i]):
            at = x(commanded[i])
            out.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 2}" y2="{y + 26}" stroke="#ffd54f" '
                       'stroke-width="2"/>')
    return "".join([*out, "</svg>"])


def plan(points: np.ndarray, execute: int) -> str:
    """The rows of a chunk over its picture: those to execute yellow, the rest lilac.

    Args:
        points: (H, 2), x right and y down as shares 0 to 1 of the picture's sides.
    """
    if not len(points) or not np.isfinite(points).all():
        return ""
    p = np.round(SIDE * np.asarray(points, float)).astype(int)
    out = [f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" class="v-plan">']
    for colour, part in (("#aaaaff", p[max(execute - 1, 0):]), ("#ffd200", p[:execute])):
        text = " ".join(f"{x},{y}" for x, y in part)
        out.append(f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="7"/>')
    out += [f'<circle cx="{x}" cy="{y}" r="9" fill="#ffd200"/>' for x, y in p[:execute]]
    return "".join([*out, "</svg>"])
