"""Write the measured tables of docs/safety.md from the JSON files that the benches wrote into docs/results.

    python docs/measured.py

`vipra faults --sim --json docs/results/faults.json`, `vipra bench stop --json docs/results/stop.json`, `vipra bench
control --json docs/results/control.json` and `JSON=docs/results/strict.json make test-strict` make those files; a test
compares the page with them. docs/stop.png is drawn, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "safety.md", ROOT / "docs" / "results"
#: Lanes of `vipra bench stop` as the page calls them.
LANES = {"core": "core, fake time", "node": "node in dry run", "node, busy": "node, all processors busy"}


def faults(found: dict | list[dict]) -> list[str]:
    """A row a fault; older files hold the rows alone."""
    rows = found if isinstance(found, list) else found["rows"]
    lines = ["| fault | detected, ms | stopped, ms | then | moves again, s | by | outside | the operator |",
             "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        cells = (r["fault"], _number(r["detected"]), _number(r["stopped"]), r["state"], _number(r["again"], 1),
                 r["by"], f"{r['outside']} of {r['samples']}", r["operator"])
        lines.append(_row(*cells))
    return lines


def strict(rows: list[dict]) -> list[str]:
    """A row a part of the strict lane."""
    lines = ["| part | min | chunks | taken | samples | faults | refused | reflexes | "
             "q_d from ours, p50 / p99 / max, rad | cycles answered |", "|---|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        errors = " / ".join(f"{x:.3f}" for x in r["error_p50_p99_max"])
        starved = f" ({r['starved']} starved)" if r["starved"] else ""
        answered = f"{r['answered_mean_min'][0]:.2%}"
        lines.append(_row(r["part"], f"{r['minutes']:.1f}", r["chunks"], r["taken"], r["samples"],
                          f"{r['faults']}{starved}", r["refused"], r["reflexes"], errors, answered))
    counts = ("minutes", "chunks", "taken", "samples", "faults", "refused", "reflexes")
    total = {k: sum(r[k] for r in rows) for k in counts}
    lines.append(_row("**all**", f"{total['minutes']:.1f}", *(total[k] for k in counts[1:]), "", ""))
    return lines


def stop(found: dict) -> list[str]:
    """A row a lane and cause."""
    lines = ["| lane | from | n | rad/s | p50 / p99 / max, ms | longest specified, ms | over theirs | worst, ms |",
             "|---|---|---|---|---|---|---|---|"]
    for lane, causes in found["results"].items():
        for cause, f in causes.items():
            ms = " / ".join(f"{1000 * x:.0f}" for x in f["seconds"])
            lines.append(_row(LANES[lane], cause, f["n"], "{:.2f} to {:.2f}".format(*f["speed"]), ms,
                              f"{1000 * f['specified'][2]:.0f}", f["exceeded"], f"{1000 * f['worst_excess']:+.0f}"))
    return lines


def control(found: dict) -> list[str]:
    """A row an action rate; older files hold the share of the last 5 s and the boundary of the last chunk alone."""
    whole = all("boundaries" in r for r in found["rates"].values())
    lines = ["| actions/s | n | period p50 / p95 / p99 / max | jitter p50 / p95 / p99 / max | executor, cores | "
             f"controller, cores | pictures/s | stalled | boundary{' mean / max' * whole}, rad |",
             "|---|---|---|---|---|---|---|---|---|"]
    for rate, r in found["rates"].items():
        period, jitter = (" / ".join(f"{x:.1f}" for x in r[key]) for key in ("period_ms", "jitter_ms"))
        pictures = " + ".join(f"{x:.0f}" for x in r["pictures_hz"].values())
        lines.append(_row(rate, r["n"], period, jitter, r["cpu"]["executor"], r["cpu"]["controller"], pictures,
                          _number(r["stall_fraction"] and 100 * r["stall_fraction"]) + " %",
                          " / ".join(_number(r[k], 4) for k in ("boundary_mean", "boundary_max"))
                          if whole else r["boundary_step"]))
    return [*lines, "", *_histogram(found)]


def _histogram(found: dict) -> list[str]:
    """How many passes of the loop took how long."""
    rates = found["rates"]
    names = list(next(iter(rates.values()))["histogram"])
    lines = ["| actions/s | " + " | ".join(f"{n} ms" for n in names) + " |", "|---" * (len(names) + 1) + "|"]
    return lines + [_row(rate, *(r["histogram"][n] for n in names)) for rate, r in rates.items()]


TABLES: dict[str, Callable[..., list[str]]] = {"faults": faults, "strict": strict, "stop": stop, "control": control}


def page(text: str) -> str:
    """`text` with what stands between `<!-- NAME -->` and `<!-- /NAME -->` written anew."""
    for name, table in TABLES.items():
        new = "\n".join(table(json.loads((RESULTS / f"{name}.json").read_text())))
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if not re.search(pattern, text, re.S):
            raise ValueError(f"{PAGE.name} has no place for {name}: add <!-- {name} --> and <!-- /{name} -->")
        text = re.sub(pattern, lambda m, new=new: m[1] + new + "\n" + m[2], text, flags=re.S)
    return text


def plot_stops(found: dict, path: Path) -> None:
    """Every stop: how long it took over how long it may take."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found["stops"]), figsize=(10, 3.6), sharex=True, sharey=True)
    for ax, (lane, stops) in zip(axes, found["stops"].items(), strict=True):
        for cause in dict.fromkeys(s["cause"] for s in stops):
            xy = [(1000 * s["specified"], 1000 * s["seconds"]) for s in stops if s["cause"] == cause]
            ax.scatter(*zip(*xy, strict=True), s=8, label=f"{cause}, n = {len(xy)}")
        ax.axline((100, 100), slope=1, color="black", linewidth=0.8)
        ax.set(title=LANES[lane], xlabel="specified: v/a + one pass, ms")
        ax.legend(fontsize=8, loc="upper left")
    axes[0].set_ylabel("measured, ms")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    plot_stops(json.loads((RESULTS / "stop.json").read_text()), PAGE.parent / "stop.png")
