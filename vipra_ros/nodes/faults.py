"""`vipra faults --sim`: break things on purpose while the arm moves, and see what becomes of it.

Each row of the table injects one fault into a moving arm and measures when executor or policy say so, when the
commanded velocity is zero, what state it ends in, and whether the arm moves again once it is mended.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.json_file import json_writer
from vipra_ros.machine import machine
from vipra_ros.nodes.fault_bench import Bench, Row
from vipra_ros.nodes.fault_list import chosen

#: Letters of the table; where it is printed may be wider.
WIDTH = 180


def run(sim: bool = False, only: str = "", json_path: str = "") -> int:
    """Print the table; 1 when a row is not as expected."""
    from rich.console import Console
    from rich.text import Text

    if not sim:
        raise ConfigError("vipra faults breaks things on purpose; add --sim, there is no way to do it to a real arm")
    wanted = chosen(only)
    if not wanted:
        raise ConfigError(f"--only {only!r} names no fault; give a word of a name, such as policy, images or second")
    save, on = json_writer(json_path), machine()
    folder, console = Path(tempfile.mkdtemp(prefix="vipra-faults-")), Console(highlight=False, soft_wrap=True)
    rows: list[Row] = []
    with Bench(folder) as bench:
        for fault in wanted:
            rows.append(bench.measure(fault))
            said = "as expected" if rows[-1].as_expected else "NOT as expected"
            console.print(Text(f"... {fault.name}: {said}; {rows[-1].reason or 'nothing to say'}"))
            save({"machine": on, "rows": [asdict(r) for r in rows]})  # an interrupted run has measured something too
    console.width = max(console.width, WIDTH)
    console.print(_table(rows))
    console.print(Text(f"logs: {folder}"))
    return int(not all(r.as_expected for r in rows))


def _table(rows: list[Row]) -> object:
    from rich.table import Table

    shown = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("fault", "detected ms", "stopped ms", "then", "again s", "by", "outside", "expected", "operator"):
        shown.add_column(name, justify="right" if name.endswith((" ms", " s", "outside")) else "left")
    for r in rows:
        shown.add_row(r.fault, *("-" if x is None else f"{x:.0f}" for x in (r.detected, r.stopped)), r.state,
                      "-" if r.again is None else f"{r.again:.1f}", r.by, f"{r.outside} of {r.samples}",
                      "yes" if r.as_expected else "NO", r.operator, style="" if r.as_expected else "red")
    return shown
