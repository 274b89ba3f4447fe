"""What `vipra bench policy` shows: a table for a terminal of 80 columns, and a page of two plots."""

from __future__ import annotations

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

#: Stages in the order of a chunk: name in the figures -> column. Decoding stands beside the chunk.
STAGES = {"resize": "resize", "encode": "encode", "prefill": "prefill", "denoise": "Euler", "tokens": "tokens",
          "denormalise": "rad"}  # fmt: skip
#: Those that a terminal has room for, by decoder.
SHOWN = {"flow": ("encode", "prefill", "denoise"), "discrete": ("encode", "prefill", "tokens")}


def show(figures: dict) -> None:
    """Print the figures of `bench.report`."""
    console, machine = Console(highlight=False), figures["machine"]
    where = machine["card"] or machine["processor"]
    shown = SHOWN[figures["decoder"]]
    length = f"{figures['euler_steps']} Euler steps" if "euler_steps" in figures else f"{figures['tokens']} tokens"
    console.print(
        f"{figures['checkpoint']} ({figures['preset']}, {figures['dtype']}), {figures['prefix_tokens']} tokens before "
        f"the chunk, {length} in it, n = {figures['n']}"
    )
    console.print(
        f"{where}, {machine['processors']} processors, {machine['threads']} used, load "
        f"{machine['load_before']:.1f} to {machine['load_after']:.1f}"
    )
    columns = ("p50", "p95", "p99", "CPU", *(STAGES[name] for name in shown), "/floor")
    table = Table("engine", *columns, title="a chunk, ms", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in sorted(figures["engines"], key=lambda r: r["p50_ms"]):
        stages = [row["stages"].get(name, {}).get("p50_ms") for name in shown]
        table.add_row(
            row["engine"],
            *(_ms(row[k]) for k in ("p50_ms", "p95_ms", "p99_ms", "cpu_p50_ms")),
            *("-" if v is None else _ms(v) for v in stages),
            f"{row['ratio_to_floor']:.1f}",
        )
    console.print(table)
    started = ", ".join(f"{r['engine']} {r['operations']}" for r in figures["engines"] if r["operations"] > 100)
    if started:
        console.print(f"Operations of torch in a chunk, each a kernel or more on a GPU: {started}.")
    decode = figures["stages"]["decode"]["p50_ms"]
    console.print(f"Decoding the JPEGs of an observation: {decode:.1f} ms, as they arrive, not in the chunk.")
    floor = Table("floor", "GFLOP", "MB", "times", "ms", title="what this machine cannot go below")
    for column in floor.columns[1:]:
        column.justify = "right"
    for p in figures["work"]:
        numbers = f"{p['gflop']:.3g}", f"{p['mbytes']:.3g}", str(p["count"]), f"{p['floor_ms']:.2f}"
        floor.add_row(p["pass"], *numbers)
    floor.add_row("sum", "", "", "", f"{figures['floor_ms']:.2f}")
    console.print(floor)
    console.print(
        f"Measured in this run: {machine['gflops']:.1f} GFLOP/s (a product by {machine['routine']}), "
        f"copies {machine['copy_gbytes_per_s']:.1f} GB/s."
    )
    if "steps" in figures:
        columns = ("n", "p50 ms", "to 10: mean", "p95", "max", "to 100: mean", "p95", "max")
        title = f"time by engine {figures['steps'][0]['engine']}, difference of the chunk in rad"
        errors = Table("steps", *columns, title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        for column in errors.columns[1:]:
            column.justify = "right"
        for row in figures["steps"]:
            numbers = [row[f"to_{k}_rad"][what] for k in (10, 100) for what in ("mean", "p95", "max")]
            errors.add_row(str(row["steps"]), str(row["n"]), f"{row['p50_ms']:.1f}", *(f"{v:.4f}" for v in numbers))
        console.print(errors, f"Frames: {figures['error_frames']}.")
    if "weight_errors" in figures:
        _weight_errors(console, figures)


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _weight_errors(console: Console, figures: dict) -> None:
    rows = figures["weight_errors"]
    title = f"difference of the chunk to float32 with full weights, mrad, n = {rows[0]['n']}"
    columns = ("times", "MB", "mean", "p50", "p95", "max", "a chunk's max: p50", "p95")
    table = Table("weights", *columns, title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        numbers = [*row["rad"].values(), row["chunk_max_rad"]["p50"], row["chunk_max_rad"]["p95"]]
        table.add_row(row["weights"], row["activations"], f"{row['trunk_mbytes']:.1f}",
                      *(f"{1e3 * v:.2f}" for v in numbers))
    console.print(table, f"Frames: {figures['error_frames']}.")


def plot(figures: dict, totals: dict[str, list[float]], path: str) -> None:
    """Left: median of every stage, stacked, with the floor. Right: share of chunks done within a time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = sorted(figures["engines"], key=lambda r: -r["p50_ms"])
    drawn, (left, right) = plt.subplots(1, 2, figsize=(11, 0.55 * len(rows) + 2.6), layout="constrained")
    starts, places = np.zeros(len(rows)), np.arange(len(rows))
    for stage, colour in zip(STAGES, plt.get_cmap("tab10").colors):
        widths = np.array([r["stages"].get(stage, {}).get("p50_ms", 0.0) for r in rows])
        left.barh(places, widths, 0.6, starts, color=colour, label=STAGES[stage])
        starts += widths
    left.axvline(figures["floor_ms"], color="black", ls="--", lw=1)
    left.text(figures["floor_ms"], len(rows) - 0.55, f" floor {figures['floor_ms']:.1f} ms", va="bottom", fontsize=8)
    for y, row, end in zip(places, rows, starts):
        left.text(end, y, f" {row['p50_ms']:.1f}", va="center", fontsize=8)
    left.set(xlabel="ms, medians of the stages", ylim=(-0.6, len(rows) - 0.1), xlim=(0, 1.12 * starts.max()))
    left.set_yticks(places, [r["engine"] for r in rows])
    left.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.16 - 0.25 / len(rows)), frameon=False)
    for row in rows[::-1]:
        values = np.sort(totals[row["engine"]])
        right.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=row["engine"])
    right.axvline(figures["floor_ms"], color="black", ls="--", lw=1)
    right.set(xlabel="ms", ylabel="share of chunks done", xlim=(0, None), ylim=(0, 1.02))
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    machine = figures["machine"]
    drawn.suptitle(
        f"{figures['checkpoint']}, {machine['card'] or machine['processor']}, {machine['threads']} threads, "
        f"n = {figures['n']}, load {machine['load_before']:.1f} to {machine['load_after']:.1f}", fontsize=10,
    )  # fmt: skip
    drawn.savefig(path, dpi=110)
    plt.close(drawn)
