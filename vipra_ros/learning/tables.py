"""Rows of a results table from evaluations, and their picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vipra_ros.learning import metrics

#: Keys of a row, in this order.
KEYS = ("variant", "demos", "task", "success_rate", "n", "wilson_low", "wilson_high", "train_seed", "machine",
        "minutes")


def rows_of(parts: Sequence[dict], variant: str, demos: int, seed: int, trained: Path,
            more: dict | None = None) -> list[dict]:
    """A row per task and `average`, the episodes of all tasks together.

    Args:
        parts: results of `evaluate.main`, one per task.
        trained: folder of the fine-tuning, whose log says how long it took.
        more: further entries of every row.
    """
    lines = (trained / "log.jsonl").read_text().splitlines()
    minutes = json.loads(lines[-1])["seconds"] / 60
    machine = parts[0]["machine"]
    named = f"{machine['cpu']} x {machine['cores']}"
    counts = [(p["task"], round(p["success_rate"] * p["n"]), p["n"]) for p in parts]
    counts.append(("average", sum(good for _, good, _ in counts), sum(n for *_, n in counts)))
    rows = []
    for task, good, n in counts:
        low, high = metrics.wilson(good, n)
        rows.append(dict(zip(KEYS, (variant, demos, task, good / n, n, low, high, seed, named, round(minutes, 2))))
                    | (more or {}))
    return rows


def plot(rows: Sequence[dict], path: str | Path) -> None:
    """Bars of the success of every policy, all tasks together, with Wilson intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [r for r in rows if r["task"] == "average"]
    figure, axis = pyplot.subplots(figsize=(7, 1 + 0.35 * len(shown)))
    place = range(len(shown))
    rates = [r["success_rate"] for r in shown]
    below = [max(0.0, r["success_rate"] - r["wilson_low"]) for r in shown]
    above = [max(0.0, r["wilson_high"] - r["success_rate"]) for r in shown]
    axis.barh(place, rates, xerr=[below, above], color="#4477aa", ecolor="#222222", capsize=3)
    axis.set_yticks(place, [f"{r['variant']}, {r['demos']} demos, seed {r['train_seed']}" for r in shown])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="success on unseen starts, 95 % Wilson interval")
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
