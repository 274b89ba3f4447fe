"""What recorded episodes hold, for a terminal: `vipra bags info BAGS...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vipra_ros.data.bags import PARTIAL, BagError, EpisodeReader, find_bags
from vipra_ros.data.reception import table

WIDTH = 80


def main(bags: Sequence[str]) -> int:
    """Print one row an episode; for a single one, its topics. 1 when a bag cannot be read."""
    found = find_bags([Path(b) for b in bags])
    if not found:
        raise BagError(f"no bags in {', '.join(bags)}; record some, or give the folder that holds them")
    left = [f for b in bags for f in Path(b).glob(f"{PARTIAL}/*/*/*.mcap")]
    if len(found) == 1:
        _one(found[0])
        bad = 0
    else:
        bad = _many(found)
    if left:
        print(f"{len(left)} unfinished or being written; once no recorder runs: vipra bags repair {bags[0]}")
    return int(bad > 0)


def _many(found: Sequence[Path]) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    rows.add_column("episode", no_wrap=True)
    for name in ("s", "MB", "success", "flags"):
        rows.add_column(name, justify="right", no_wrap=True)
    rows.add_column("instruction", overflow="ellipsis", no_wrap=True)
    seconds = size = bad = flagged = 0.0
    for bag in found:
        bytes_ = sum(f.stat().st_size for f in bag.iterdir() if f.is_file())
        try:
            with EpisodeReader(bag) as reader:
                meta, duration = reader.meta(), reader.duration
        except BagError as error:
            bad += 1
            rows.add_row(Text(bag.name), "", f"{bytes_ / 1e6:.1f}", "", "", Text(str(error), style="red"))
            continue
        seconds, size, flags = seconds + duration, size + bytes_, len(meta.get("flags", []))
        flagged += flags > 0
        success = {True: "yes", False: "no"}.get(meta.get("success"), "?")
        words = Text(str(meta.get("instruction", "")))
        cells = (Text(bag.name), f"{duration:.1f}", f"{bytes_ / 1e6:.1f}", success, str(flags or ""), words)
        rows.add_row(*cells, style="red" if flags else "")
    console = Console(width=WIDTH, highlight=False)
    console.print(rows)
    what = f"{len(found) - int(bad)} episodes, {seconds / 60:.1f} min, {size / 1e6:.0f} MB"
    console.print(f"{what}; {flagged:.0f} flagged, {bad:.0f} broken")
    return int(bad)


def _one(bag: Path) -> None:
    with EpisodeReader(bag) as reader:
        meta, duration, counts = reader.meta(), reader.duration, dict(reader.counts)
    success = {True: "yes", False: "no"}.get(meta.get("success"), "not labelled")
    print(f"{bag.name}: {duration:.1f} s, {meta.get('instruction', '')!r}, success: {success}")
    said = ("robot", "operator", "task", "colour", "seed", "version", "repaired")
    print(", ".join(f"{k} {meta[k]}" for k in said if meta.get(k) is not None))
    if "reception" in meta:
        import sys

        print(table(meta["reception"], meta.get("flags", []), WIDTH, colour=sys.stdout.isatty()))
        return
    for topic, count in sorted(counts.items()):
        print(f"  {topic:50} {count:8}")
