"""What an evaluation says: one record per episode, a summary per task, JSON and tables. Pure.

Both lanes, in-process and through the running nodes, fill the same record, so their figures compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from vipra_ros.json_file import clean
from vipra_ros.learning import metrics

#: Hz, grid on which jerk is computed in both lanes: the executor's passes in the stepped world, at most rates.
JERK_RATE = 60.0


@dataclass
class EpisodeRecord:
    """One episode. Times in s, joints in rad.

    Attributes:
        acted_on: colour of the first cube whose condition held, None for no cube.
        rows: action rows executed; limited: rows that a limit changed.
        latencies: observation to first action of its chunk, one per accepted chunk.
        boundaries: joint difference of two plans where they meet, one per boundary.
        commanded: (n, 7) on the grid of `JERK_RATE`.
    """

    task: str
    seed: int
    instruction: str
    colour: str
    zone: str
    success: bool
    acted_on: str | None
    time_to_success: float
    seconds: float
    chunks: int = 0
    rejected: int = 0
    rows: int = 0
    limited: int = 0
    stopped: str = ""
    latencies: Sequence[float] = ()
    boundaries: Sequence[float] = ()
    commanded: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)), repr=False)

    def row(self) -> dict:
        """The episode as it stands in the JSON."""
        rms, peak = metrics.jerk_figures([self.commanded], 1 / JERK_RATE)
        return clean(
            {
                "task": self.task,
                "seed": self.seed,
                "instruction": self.instruction,
                "colour": self.colour,
                "zone": self.zone,
                "success": bool(self.success),
                "acted_on": self.acted_on,
                "time_to_success": self.time_to_success if self.success else None,
                "seconds": self.seconds,
                "chunks": self.chunks,
                "rejected_chunks": self.rejected,
                "rows": self.rows,
                "limited_rows": self.limited,
                "stopped": self.stopped,
                "obs_to_action_ms": {k: 1e3 * v for k, v in metrics.percentiles(self.latencies).items()},
                "boundary_step_rad": max(self.boundaries, default=math.nan),
                "rms_jerk": rms,
                "peak_jerk": peak,
            }
        )


def summarise(task: str, records: Sequence[EpisodeRecord], colours: Sequence[str], **about) -> dict:
    """The figures of `records` in one dictionary, ready for JSON.

    Args:
        about: further entries: checkpoint, machine, lane, latency and so on.
    """
    n, good = len(records), sum(r.success for r in records)
    low, high = metrics.wilson(good, n)
    seconds = sum(r.seconds for r in records)
    rows, accepted = sum(r.rows for r in records), sum(r.chunks - r.rejected for r in records)
    rms, peak = metrics.jerk_figures([r.commanded for r in records], 1 / JERK_RATE)
    boundaries = [b for r in records for b in r.boundaries]
    times = [r.time_to_success for r in records if r.success]
    episodes = [r.row() for r in records]
    return clean(
        {
            "task": task,
            "n": n,
            "success_rate": good / n if n else 0.0,
            "wilson_low": low,
            "wilson_high": high,
            "seeds": [r.seed for r in records],
            "chunk_rate_hz": accepted / seconds if seconds else math.nan,
            "action_rate_hz": rows / seconds if seconds else math.nan,
            "obs_to_action_ms": {
                k: 1e3 * v for k, v in metrics.percentiles([x for r in records for x in r.latencies]).items()
            },
            "rms_jerk": rms,
            "peak_jerk": peak,
            "jerk_rate_hz": JERK_RATE,
            "boundary_step_rad": metrics.percentiles(boundaries)["p95"],
            "boundary_step_max_rad": max(boundaries, default=math.nan),
            "limiter_active_fraction": sum(r.limited for r in records) / rows if rows else 0.0,
            "rejected_chunks": sum(r.rejected for r in records),
            "stopped_episodes": sum(bool(r.stopped) for r in records),
            "time_to_success": {
                "mean": sum(times) / len(times) if times else math.nan,
                **metrics.percentiles(times),
            },
            "by_colour": metrics.by_colour(episodes, colours),
            "units": {
                "rms_jerk": "rad/s^3, third difference of the commanded joints at jerk_rate_hz",
                "boundary_step_rad": "95th percentile over the boundaries",
                "time_to_success": "s",
            },
            **about,
            "episodes": episodes,
        }
    )


def print_tables(results: Sequence[Mapping], colours: Sequence[str], console: Console | None = None) -> None:
    """Success and figures per task, then the confusion by colour, within 80 columns."""
    console = console or Console(width=80)
    table = Table(title="success on unseen starts, 95 % Wilson interval")
    for name in ("task", "n", "success", "interval", "seconds", "chunks/s", "actions/s"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for r in results:
        table.add_row(
            r["task"],
            str(r["n"]),
            f"{100 * r['success_rate']:.0f} %",
            f"{100 * r['wilson_low']:.0f} - {100 * r['wilson_high']:.0f} %",
            number(r["time_to_success"]["p50"], ".1f"),
            number(r["chunk_rate_hz"], ".1f"),
            number(r["action_rate_hz"], ".1f"),
        )
    console.print(table)
    table = Table(title="how it moved")
    for name in ("task", "obs-to-action p50/p95/p99 ms", "jerk rms/peak", "step rad", "limited", "refused"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for r in results:
        late = "/".join(number(r["obs_to_action_ms"][p], ".0f") for p in ("p50", "p95", "p99"))
        table.add_row(
            r["task"],
            late,
            f"{number(r['rms_jerk'], '.0f')}/{number(r['peak_jerk'], '.0f')}",
            number(r["boundary_step_rad"], ".3f"),
            f"{100 * r['limiter_active_fraction']:.0f} %",
            str(r["rejected_chunks"]),
        )
    console.print(table)
    for r in results:
        table = Table(title=f"{r['task']}: colour asked for (rows) and acted on (columns)")
        table.add_column("asked")
        for name in ("n", *colours, metrics.NOBODY, "success"):
            table.add_column(name, justify="right")
        for colour in colours:
            entry = r["by_colour"][colour]
            share = f"{100 * entry['success'] / entry['n']:.0f} %" if entry["n"] else "-"
            seen = (str(entry["acted_on"][c]) for c in (*colours, metrics.NOBODY))
            table.add_row(colour, str(entry["n"]), *seen, share)
        console.print(table)


def number(value: float | None, form: str) -> str:
    """`value` for people; "-" for one that does not exist."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)
