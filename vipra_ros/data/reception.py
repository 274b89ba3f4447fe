"""What arrived of what should have: rate, gaps and losses of the streams of one episode.

A stream's period is the median distance of its stamps. A distance of about n periods means that n - 1
messages are missing, lost on the way or never sent: to a data set it is the same. Stamps are those of the
headers where there are any, so that a burst on the network is no gap.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vipra_ros.config import param
from vipra_ros.data import topics
from vipra_ros.data.messages import NS

#: ns; transport takes milliseconds, more between stamp and receipt means two clocks.
CLOCK_SKEW = 5 * NS


@dataclass(frozen=True)
class Demands:
    """When an episode is good; the defaults are those the conversion to a data set needs."""

    image_rate: float = param(14.0, doc="least images per second and camera", unit="Hz", low=0.0)
    joint_rate: float = param(25.0, doc="least joint states and commands per second", unit="Hz", low=0.0)
    gap: float = param(0.1, doc="widest gap of images, joint states and commands", unit="s", low=0.0)
    lost: float = param(0.05, doc="largest share of messages missing of a stream", low=0.0, high=1.0)
    seconds: float = param(0.5, doc="shortest episode", unit="s", low=0.0)


@dataclass(frozen=True)
class Reception:
    """One stream over one episode.

    Attributes:
        received, lost, expected: messages; `expected` is the sum of the other two.
        rate: Hz, 1 / median distance of stamps; 0 below two messages.
        gap: s, widest distance of stamps, or from the start of the episode or to its end.
        jitter: s, standard deviation of the distance of stamps.
        skew: s, largest difference of stamp and receipt.
        size: bytes.
    """

    received: int
    lost: int
    expected: int
    rate: float
    gap: float
    jitter: float
    skew: float
    size: int

    def as_dict(self) -> dict[str, int | float]:
        """For JSON; times to the tenth of a millisecond."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in vars(self).items()}


class Meter:
    """Counts one stream; stamps in ns. 8 bytes a message are kept."""

    def __init__(self) -> None:
        self._stamps = array("q")
        self._first = self._last = 0
        self._skew = self._size = 0

    def note(self, received: int, stamped: int, size: int) -> None:
        """A message of `size` bytes was received; `stamped` is its header's stamp, 0 when it has none."""
        self._first = received if not self._stamps else self._first
        self._last = received
        self._skew = max(self._skew, abs(received - stamped)) if stamped else self._skew
        self._size += size
        self._stamps.append(stamped or received)

    def reception(self, begin: int, end: int) -> Reception:
        """The stream over the episode from `begin` to `end` (ns, time of receipt)."""
        steps = np.diff(np.sort(np.asarray(self._stamps, dtype=np.int64))) / NS
        period = float(np.median(steps)) if len(steps) else 0.0
        lost = int(np.maximum(np.rint(steps / period) - 1, 0).sum()) if period > 0 else 0
        received = len(self._stamps)
        ends = [(self._first - begin) / NS, (end - self._last) / NS] if received else [(end - begin) / NS, 0.0]
        return Reception(
            received=received,
            lost=lost,
            expected=received + lost,
            rate=1.0 / period if period > 0 else 0.0,
            gap=float(max(*ends, steps.max(initial=0.0), 0.0)),
            jitter=float(steps.std()) if len(steps) else 0.0,
            skew=self._skew / NS,
            size=self._size,
        )


def judge(
    receptions: dict[str, Reception],
    images: Sequence[str],
    joints: Sequence[str],
    latched: Sequence[str],
    seconds: float,
    demands: Demands,
) -> list[str]:
    """What is wrong with an episode of `seconds`; empty when it is good. One line each, topic first.

    Args:
        images, joints: streams that must meet the demands.
        latched: topics that must have spoken at least once.
    """
    flags = []
    if seconds < demands.seconds:
        flags.append(f"episode: {seconds:.2f} s long, at least {demands.seconds:g} s are wanted")
    for topic in (*images, *joints, *latched):
        if topic not in receptions:
            flags.append(f"{topic}: nothing received; is its publisher up, and is the name right?")
    for topic in (*images, *joints):
        r = receptions.get(topic)
        if r is None:
            continue
        least = demands.image_rate if topic in images else demands.joint_rate
        if r.rate < least:
            flags.append(f"{topic}: {r.rate:.1f} Hz, at least {least:g} Hz are wanted")
        if r.gap > demands.gap:
            flags.append(f"{topic}: gap of {r.gap:.3f} s, {demands.gap:g} s is allowed")
        if r.lost > demands.lost * r.expected:
            flags.append(f"{topic}: {r.lost} of {r.expected} messages missing, {demands.lost:.0%} is allowed")
    for topic, r in receptions.items():
        if r.skew > CLOCK_SKEW / NS:
            flags.append(f"{topic}: stamped {r.skew:.1f} s away from its receipt: two clocks; synchronise the hosts")
    return flags


def short(topic: str) -> str:
    """A topic for a narrow column: camera/front/image_raw/compressed is `front image`."""
    parts = topic.split("/")
    if parts[0] == "camera" and len(parts) > 2:
        return f"{parts[1]} {'info' if parts[-1] == 'camera_info' else 'image' if parts[-1] == 'compressed' else 'raw'}"
    return topic if len(topic) <= 24 else f"..{topic[-22:]}"


def table(reception: dict[str, dict[str, Any]], flags: Sequence[str], width: int = 66, colour: bool = False) -> str:
    """What an episode received, for a terminal; topics with a flag carry a mark, and flags stand below.

    Args:
        reception: topic -> `Reception.as_dict`, as a bag's description holds it.
        width: columns; the default leaves room for the name a launcher puts before every line of a node.
    """
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    rows.add_column("", min_width=1)
    rows.add_column("topic", no_wrap=True)
    for name, columns in (("got", 6), ("of", 6), ("lost", 5), ("Hz", 5), ("gap ms", 6), ("jit ms", 6)):
        rows.add_column(name, justify="right", no_wrap=True, min_width=columns)
    for topic, r in reception.items():
        marked = any(f.startswith(f"{topic}:") for f in flags)
        times = [f"{r['rate']:.1f}", f"{r['gap'] * 1000:.0f}", f"{r['jitter'] * 1000:.1f}"]
        if topics.latched(topic):  # spoken at a change, not at a rate
            times, r = ["", "", ""], r | {"lost": "", "expected": ""}
        cells = [short(topic), f"{r['received']}", f"{r['expected']}", f"{r['lost']}", *times]
        rows.add_row("!" if marked else " ", *cells, style="red" if marked else "")
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    console.print(rows)
    for flag in flags:
        console.print(Text(f"! {flag}", style="red"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
