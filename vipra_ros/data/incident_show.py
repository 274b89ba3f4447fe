"""What happened before a fault, for people: `vipra incident FILE` prints it and draws it."""

from __future__ import annotations

import json as json_module
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vipra_ros.control.guard import State
from vipra_ros.control.reference import Limited
from vipra_ros.data import messages
from vipra_ros.data.bags import BagError, EpisodeReader
from vipra_ros.data.incident import ACCELERATION, ARM_COMMAND, FIGURES, VERDICT
from vipra_ros.data.messages import NS

#: Share of a limit from which on it counts as touched, and lines of the story that are printed.
TOUCHED, LINES = 0.98, 40


@dataclass
class Incident:
    """One incident as arrays; times in s before (negative) and after the fault.

    Attributes:
        joints: topic -> (times (N,), position (N, 7), velocity (N, 7) or none).
        figures: (times, list of mappings). verdicts, changes: [(time, mapping)].
    """

    path: Path
    meta: dict[str, Any]
    names: tuple[str, ...]
    joints: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    figures: tuple[np.ndarray, list[dict]]
    verdicts: list[tuple[float, dict]]
    changes: list[tuple[float, dict]]


def read(path: str | Path) -> Incident:
    """The incident in the bag `path`.

    Raises:
        BagError: no bag, a damaged one, or one of something else.
    """
    with EpisodeReader(Path(path)) as bag:
        meta = bag.meta()
        if meta.get("kind") != "incident":
            raise BagError(f"{path} is no incident; episodes are shown by: vipra bags info {path}")
        zero, raw = meta["fault_ns"], {}
        for topic, _, when, data in bag.messages():
            raw.setdefault(topic, []).append(((when - zero) / NS, data))
    joints, names = {}, ()
    for topic in ("joint_states", "executor/joint_command", ARM_COMMAND, ACCELERATION):
        rows = [messages.deserialize(data, messages.JOINT_STATE) for _, data in raw.get(topic, ())]
        if rows:
            names = tuple(rows[0].name)
            joints[topic] = (np.array([t for t, _ in raw[topic]]), np.array([r.position for r in rows]),
                             np.array([r.velocity for r in rows]))

    def said(topic: str) -> list[tuple[float, dict]]:
        return [(t, messages.read_json(data)) for t, data in raw.get(topic, ())]

    figures = said(FIGURES)
    return Incident(Path(path), meta, names, joints, (np.array([t for t, _ in figures]), [f for _, f in figures]),
                    said(VERDICT), said("flight/change"))


def story(incident: Incident) -> list[tuple[float, str]]:
    """What happened in which order: states, robot errors, refusals (equal ones in a row once), limits, faults."""
    lines = []
    for t, c in incident.changes:
        text = f"{c['text']}" + (f": {'; '.join(c['reasons'])}" if c["reasons"] else "")
        lines.append((t, text + (f" [robot: {c['error']}]" if c["error"] else "")))
    for fault in incident.meta["faults"]:
        lines.append(((fault["ns"] - incident.meta["fault_ns"]) / NS, f"FAULT latched: {fault['code']}"))
    last, count, began = "", 0, 0.0
    for t, v in [*incident.verdicts, (np.inf, {"verdict": ""})]:
        kind = v["verdict"].partition(":")[0]
        if kind != last:
            if count:
                lines.append((began, f"{count} chunk{'s' * (count > 1)} {last}"))
            last, count, began = kind, 0, t
        count += 1
    before = Limited.NO
    for t, f in zip(*incident.figures):
        now = Limited(int(f["limited"] or 0))
        if now & ~before:
            flags = [x.name for x in Limited if x and x in now & ~before]
            lines.append((t, f"limiter: {', '.join(flags)}"))
        before = now
    return sorted(lines)


def short(names: Sequence[str]) -> list[str]:
    """Names of joints without what all begin with, up to an underscore: fr3_joint1 is joint1."""
    shared = os.path.commonprefix(names).rpartition("_")[0]
    return [n[len(shared) + 1 :] if shared else n for n in names]


def limits_touched(incident: Incident) -> list[str]:
    """Limits that the reference reached, joint by joint, and how much of the time the limiter was at work."""
    found = []
    _, q, dq = incident.joints["executor/joint_command"]
    ddq = incident.joints[ACCELERATION][1]
    low, high = np.array(incident.meta["q_min"]), np.array(incident.meta["q_max"])
    limits = incident.meta["limits"]
    for k, name in enumerate(short(incident.names)):
        for what, values in (("velocity", dq), ("acceleration", ddq)):
            limit = limits[what]
            most = np.nanmax(np.abs(values[:, k]), initial=0.0)
            if most >= TOUCHED * limit[k]:
                found.append(f"{name}: {what} {most:.3g} of {limit[k]:.3g}")
        if np.nanmin(q[:, k], initial=np.inf) <= low[k] + 1e-3 or np.nanmax(q[:, k], initial=-np.inf) >= high[k] - 1e-3:
            found.append(f"{name}: position limit less its margin")
    flags = Counter(x.name for f in incident.figures[1] for x in Limited if x and x in Limited(int(f["limited"] or 0)))
    total = max(1, len(incident.figures[1]))
    return found + [f"limiter flag {name}: {100 * n / total:.1f} % of the time" for name, n in flags.items()]


def main(file: str, plot: str = "", json: bool = False) -> None:
    """Print the story, the last values and the limits touched; draw them. `json`: print, and draw only on request."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    incident, console = read(file), Console(highlight=False, soft_wrap=True)
    if json:
        told = [{"seconds": round(t, 4), "text": text} for t, text in story(incident)]
        print(json_module.dumps({**incident.meta, "story": told, "limits_touched": limits_touched(incident)}, indent=1,
                                ensure_ascii=False))
        if plot:
            draw(incident, Path(plot))
        return
    meta, span = incident.meta, incident.figures[0]
    console.print(Text(f"{incident.path.name}: {meta['robot']}, {span[0]:.1f} to {span[-1]:+.1f} s about the fault"))
    for fault in meta["faults"]:
        console.print(Text(f"  {fault['code']}: {fault['text']}", style="bold red"))
    lines = story(incident)
    if len(lines) > LINES:
        console.print(f"  ... {len(lines) - LINES} earlier")
    for t, text in lines[-LINES:]:
        console.print(Text(f"  {t:+8.3f} s  {text}"))
    rows = Table(box=None, padding=(0, 1), header_style="bold", title="at the fault", title_justify="left")
    for name in ("joint", "rad asked", "measured", "off", "rad/s asked", "of limit", "measured"):
        rows.add_column(name, justify="left" if name == "joint" else "right", no_wrap=True)
    times, q_ref, dq_ref = incident.joints["executor/joint_command"]
    at = int(np.argmin(np.abs(times)))
    q, dq = (incident.joints["joint_states"][k][at] for k in (1, 2))
    names = short(incident.names)
    for k in range(len(names)):
        share = abs(dq_ref[at, k]) / meta["limits"]["velocity"][k]
        rows.add_row(names[k], f"{q_ref[at, k]:.4f}", f"{q[k]:.4f}", f"{q_ref[at, k] - q[k]:+.4f}",
                     f"{dq_ref[at, k]:+.3f}", f"{100 * share:.0f} %", f"{dq[k]:+.3f}")
    console.print(rows)
    console.print("limits touched: " + ("none" if not limits_touched(incident) else ""))
    for text in limits_touched(incident):
        console.print(Text(f"  {text}"))
    path = Path(plot) if plot else incident.path.with_name(incident.path.name + ".png")
    draw(incident, path)
    console.print(Text(f"plot: {path}"))


def draw(incident: Incident, path: Path) -> None:
    """Joints before and after the fault: positions, velocities, distance; chunks, state and limiter below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t, figures = incident.figures
    limited = np.array([int(f["limited"] or 0) for f in figures])
    flags = [flag for flag in Limited if flag and (limited & flag).any()]
    rows = ["refused", "taken", *(s.name for s in State), *(flag.name for flag in flags)]
    figure, axes = plt.subplots(4, 1, figsize=(11, 9 + 0.22 * len(rows)), sharex=True, constrained_layout=True,
                                height_ratios=[2.6, 2.2, 2.2, 0.26 * len(rows)])
    times, q_ref, dq_ref = incident.joints["executor/joint_command"]
    measured, q, dq = incident.joints["joint_states"]
    for k, name in enumerate(short(incident.names)):
        line = axes[0].plot(times, q_ref[:, k], lw=0.9, label=name)[0]
        axes[0].plot(measured, q[:, k], lw=0.9, ls=":", color=line.get_color())
        axes[1].plot(times, dq_ref[:, k] / incident.meta["limits"]["velocity"][k], lw=0.9, color=line.get_color())
        axes[2].plot(measured, q_ref[:, k] - q[:, k], lw=0.9, color=line.get_color())
    faults = "; ".join(f["code"] for f in incident.meta["faults"])
    figure.suptitle(f"{incident.path.name}: {faults}", fontsize=11)
    axes[0].set_title("commanded position, and measured (dotted), rad", fontsize=9, loc="left")
    axes[0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes[1].set_title("commanded velocity, share of its limit", fontsize=9, loc="left")
    axes[2].set_title("commanded - measured, rad", fontsize=9, loc="left")
    axes[3].set_title("chunks refused and taken, state, what the limiter changed", fontsize=9, loc="left")
    axes[3].step(t, [rows.index(State(f["state"]).name) for f in figures], where="post", color="k")
    for row, taken, colour in ((0, False, "tab:red"), (1, True, "tab:green")):
        marks = [when for when, v in incident.verdicts if (v["verdict"] == "accepted") == taken]
        axes[3].plot(marks, np.full(len(marks), row), "|", color=colour)
    for flag in flags:
        marks = t[(limited & flag) > 0]
        axes[3].plot(marks, np.full(len(marks), rows.index(flag.name)), "s", ms=3, color="tab:orange")
    axes[3].set_yticks(range(len(rows)), rows, fontsize=8)
    axes[3].set_ylim(-0.7, len(rows) - 0.3)
    axes[3].set_xlabel("s from the fault")
    for one in axes:
        one.axvline(0.0, color="tab:red", lw=0.8, ls="--")
        one.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
