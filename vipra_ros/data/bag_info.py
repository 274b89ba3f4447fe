"""What recorded episodes hold, for a terminal or as JSON: `vipra bags info BAGS...`."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vipra_ros.data.bags import PARTIAL, BagError, EpisodeReader, find_bags
from vipra_ros.data.reception import table
from vipra_ros.data.work import signature

WIDTH = 80
#: Columns of seconds, megabytes, success and flags; the name takes what it needs, the instruction what is left.
NUMBERS = {"s": 6, "MB": 7, "success": 7, "flags": 5}
#: What is said of a single episode, where it is known.
SAID = ("robot", "operator", "task", "colour", "seed", "version", "repaired")


def main(bags: Sequence[str], json: bool = False) -> int:
    """Print one row an episode; for a single one, its topics. 1 when a bag cannot be read."""
    found = find_bags([Path(b) for b in bags])
    if not found:
        raise BagError(f"no bags in {', '.join(bags)}; record some, or give the folder that holds them")
    left = [f for b in bags for f in Path(b).glob(f"{PARTIAL}/[0-9]*/*/*.mcap")]  # others are copies of episodes
    if len(found) == 1 and not json:
        _one(found[0])
        bad = 0
    else:
        rows = [_row(bag) for bag in found]
        bad = sum("error" in r for r in rows)
        if json:
            print(json_module.dumps({"episodes": rows, "unfinished": [str(f) for f in left]}, indent=1,
                                    ensure_ascii=False))
            return int(bad > 0)
        _many(rows, bad)
    if left:
        print(f"{len(left)} unfinished or being written; once no recorder runs: vipra bags repair {bags[0]}")
    return int(bad > 0)


def _row(bag: Path) -> dict[str, Any]:
    """What one episode holds, ready for JSON; of a broken one path, size and `error`."""
    row = {"episode": bag.name, "path": str(bag), "bytes": sum(size for _, size, _ in signature(bag))}
    try:
        with EpisodeReader(bag) as reader:
            meta, seconds, counts = reader.meta(), reader.duration, dict(reader.counts)
    except BagError as error:
        return row | {"error": str(error)}
    return row | {"seconds": round(seconds, 3), "instruction": str(meta.get("instruction", "")),
                  "success": meta.get("success"), "flags": meta.get("flags", []),
                  **{k: meta[k] for k in SAID if meta.get(k) is not None}, "messages": counts}


def _many(rows: Sequence[dict[str, Any]], bad: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    shown.add_column("episode", no_wrap=True)
    for name, width in NUMBERS.items():
        shown.add_column(name, justify="right", no_wrap=True, width=width)
    longest = max(len(r["episode"]) for r in rows)
    rest = WIDTH - longest - sum(w + 2 for w in NUMBERS.values()) - 2
    shown.add_column("instruction", overflow="ellipsis", no_wrap=True, width=max(rest, 12))
    for r in rows:
        name, size = Text(r["episode"]), f"{r['bytes'] / 1e6:.1f}"
        if "error" in r:
            shown.add_row(name, "", size, "", "", Text(r["error"], style="red"))
            continue
        success = {True: "yes", False: "no"}.get(r["success"], "?")
        flags = len(r["flags"])
        shown.add_row(name, f"{r['seconds']:.1f}", size, success, str(flags or ""), Text(r["instruction"]),
                      style="red" if flags else "")
    console = Console(width=max(WIDTH, WIDTH - rest + 12), highlight=False)
    console.print(shown)
    good = [r for r in rows if "error" not in r]
    seconds, size = sum(r["seconds"] for r in good), sum(r["bytes"] for r in good)
    console.print(f"{len(good)} episodes, {seconds / 60:.1f} min, {size / 1e6:.0f} MB; "
                  f"{sum(bool(r['flags']) for r in good)} flagged, {bad} broken")


def _one(bag: Path) -> None:
    with EpisodeReader(bag) as reader:
        meta, duration, counts = reader.meta(), reader.duration, dict(reader.counts)
    success = {True: "yes", False: "no"}.get(meta.get("success"), "not labelled")
    print(f"{bag.name}: {duration:.1f} s, {meta.get('instruction', '')!r}, success: {success}")
    said = [f"{k} {meta[k]}" for k in SAID if meta.get(k) not in (None, "")]
    if said:
        print(", ".join(said))
    if "reception" in meta:
        print(table(meta["reception"], meta.get("flags", []), WIDTH, colour=sys.stdout.isatty()))
        return
    for topic, count in sorted(counts.items()):
        print(f"  {topic:50} {count:8}")
