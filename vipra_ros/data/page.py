"""The report of a conversion as one HTML page that needs nothing else: tables, plots, small pictures."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from vipra_ros.control.chunk import GRIPPER_CONVENTION
from vipra_ros.data import svg
from vipra_ros.data.checks import CODES
from vipra_ros.data.looks import Looks
from vipra_ros.data.report import Report

_STYLE = """
:root{--ink:#1d2530;--soft:#6a7585;--line:#e3e7ec;--bad:#c0392b;--warn:#b7791f;--good:#2b8a57;--back:#f5f7f9}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 24px 60px}h1{font-size:24px;margin:0}
h2{font-size:17px;margin:34px 0 10px}
.soft{color:var(--soft)}.tiles{display:flex;gap:10px;flex-wrap:wrap;margin:18px 0 0}
.tile{background:#fff;border:1px solid var(--line);border-radius:8px;padding:9px 15px;min-width:118px}
.tile b{display:block;font-size:21px;font-weight:650}.tile.bad b{color:var(--bad)}.tile.warn b{color:var(--warn)}
.card{background:#fff;border:1px solid var(--line);border-radius:8px;padding:12px 14px;margin:0 0 12px}
table{border-collapse:collapse;width:100%;background:#fff;border:1px solid var(--line);border-radius:8px}
th,td{text-align:left;padding:5px 10px;border-bottom:1px solid var(--line);vertical-align:top}tr:last-child td{border:0}
th{font-weight:600;color:var(--soft);font-size:12px;white-space:nowrap}td.n,th.n{text-align:right;white-space:nowrap}
.chip{display:inline-block;border-radius:9px;padding:0 8px;font-size:12px;line-height:18px;background:#eef1f4;
margin:0 3px 2px 0;white-space:nowrap}
.chip.converted{background:#e0f3e8;color:var(--good)}.chip.broken,.chip.refused{background:#fae3e0;color:var(--bad)}
.chip.flag{background:#fdf1d8;color:var(--warn)}.plots{display:grid;grid-template-columns:1.3fr 1fr 1fr;gap:12px}
.wide{display:grid;grid-template-columns:1fr 1fr 1fr;gap:12px}.wide .card{margin:0}
svg{width:100%;height:auto;display:block}
svg text{font:10px system-ui,sans-serif;fill:var(--soft)}svg .title{font-size:11px;fill:var(--ink)}
svg .end{text-anchor:end}svg .mid{text-anchor:middle}svg .grid{stroke:#edf0f3}
.strip{display:flex;gap:3px;align-items:center;margin:6px 0 0}.strip img{height:84px;border-radius:3px;display:block}
.strip span{width:58px;color:var(--soft);font-size:12px}
.head{display:flex;gap:10px;align-items:baseline;flex-wrap:wrap}
.head b{font-size:15px}
.strips{display:flex;flex-wrap:wrap;gap:0 22px;margin-bottom:8px}
ul{margin:6px 0 4px;padding-left:20px}
.key{display:flex;gap:12px;flex-wrap:wrap;font-size:12px;color:var(--soft)}
.key i{display:inline-block;width:14px;height:3px;margin:0 4px 3px 0;border-radius:2px}a{color:inherit}
@media (max-width:800px){.plots,.wide{grid-template-columns:1fr}}
"""


def render(report: Report, looks: Looks, settings: dict[str, Any], summary: dict[str, Any]) -> str:
    """The page.

    Args:
        settings: `ConvertSettings` as a dictionary. summary: of the data set (`DatasetWriter.summary`).
    """
    name = escape(report.path.name)
    body = [
        f"<h1>{name}</h1>",
        f'<div class="soft">{report.fps:g} Hz, actions {settings["action_space"]}, gripper {GRIPPER_CONVENTION}'
        f"{_refused(settings)}</div>",
        _tiles(report),
        _findings(report),
        _dataset(report, summary),
        "<h2>Bags</h2>",
        _bags(report, looks, settings["limits"]["sure"]),
        "<h2>Episodes</h2>",
        _note(looks),
        *(_episode(number, report.episodes[number], look) for number, look in looks.shown.items()),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}: conversion</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<main>{''.join(body)}</main></html>\n"
    )


def _refused(settings: dict[str, Any]) -> str:
    codes = settings["refuse"]
    return f", refused on {escape(', '.join(codes))}" if codes else ", findings are flagged, none refuses an episode"


def _tiles(report: Report) -> str:
    converted, flagged = report.count("converted"), sum(bool(e["flags"]) for e in report.episodes)
    out = report.count("broken") + report.count("refused")
    rows = [
        ("episodes", f"{converted} of {len(report.episodes)}", ""),
        ("minutes", f"{report.frames / report.fps / 60:.1f}", ""),
        ("frames", f"{report.frames}", ""),
        ("with findings", f"{flagged}", "warn" if flagged else ""),
        ("broken or refused", f"{out}", "bad" if out else ""),
        ("labelled failure", f"{report.count('failed')}", ""),
        ("seconds to convert", f"{report.seconds:.0f}" if report.seconds >= 10 else f"{report.seconds:.1f}", ""),
    ]
    tiles = (f'<div class="tile {c}"><b>{v}</b>{escape(k)}</div>' for k, v, c in rows)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _findings(report: Report) -> str:
    counts = sorted(report.flags().items(), key=lambda x: -x[1])
    if not counts:
        return "<h2>Findings</h2><div class='card soft'>None.</div>"
    rows = "".join(
        f'<tr><td><span class="chip flag">{escape(code)}</span></td><td class="n">{n}</td>'
        f"<td>{escape(CODES[code][0])}</td><td>{escape(CODES[code][1])}</td></tr>"
        for code, n in counts
    )
    head = '<tr><th>Code<th class="n">Episodes<th>What it means<th>What to do</tr>'
    return f"<h2>Findings</h2><table>{head}{rows}</table>"


def _dataset(report: Report, summary: dict[str, Any]) -> str:
    used = [e["frames"] / report.fps for e in report.episodes if e["status"] == "converted"]
    plots = [svg.histogram("Length of episodes, s", used)]
    for feature, title in (("observation.state", "State"), ("action", "Action")):
        s, names = summary["statistics"][feature], summary["features"][feature]["names"]
        columns = zip(names, s["min"], s["q01"], s["q99"], s["max"], strict=True)
        bars = [(n, *map(float, v)) for n, *v in columns]
        plots.append(svg.ranges(f"{title}: q01 to q99, thin line min to max", bars))
    tasks = sorted(summary["tasks"].items(), key=lambda x: -x[1])
    more = f"<tr><td class='soft'>and {len(tasks) - 20} more<td></tr>" if len(tasks) > 20 else ""
    rows = "".join(f'<tr><td>{escape(t)}</td><td class="n">{n}</td></tr>' for t, n in tasks[:20]) + more
    return (
        "<h2>Data set</h2><div class='wide'>"
        + "".join(f'<div class="card">{p}</div>' for p in plots)
        + f'</div><table style="margin-top:12px"><tr><th>Instruction<th class="n">Episodes</tr>{rows}</table>'
    )


def _bags(report: Report, looks: Looks, sure: float) -> str:
    rows = []
    for number, e in enumerate(report.episodes[:1000]):
        f = e["figures"]
        name = escape(Path(e["bag"]).name)
        link = f'<a href="#e{number}">{name}</a>' if number in looks.shown else name
        codes = "".join(f'<span class="chip flag">{escape(c)}</span>' for c in sorted({x["code"] for x in e["flags"]}))
        skew = ", ".join(f"{v['s'] * 1e3:+.0f}" for v in f.get("skew", {}).values() if v["r"] >= sure)
        lag = _ms(f.get("lag_s") if f.get("lag_r", 0.0) >= sure else None)
        hz = ", ".join(f"{s['hz']:g}" for s in f.get("streams", {}).values() if s["hz"])
        rows.append(
            f'<tr><td>{link}</td><td><span class="chip {e["status"]}">{e["status"]}</span></td>'
            f'<td class="n">{e["frames"] / report.fps:.1f}</td><td>{_success(e["success"])}</td>'
            f'<td class="n">{lag}</td><td class="n">{skew}</td><td class="n">{hz}</td>'
            f'<td>{codes}{escape(e["reason"]) if e["status"] != "converted" else ""}</td></tr>'
        )
    more = len(report.episodes) - 1000
    if more > 0:
        rows.append(f'<tr><td colspan="8" class="soft">and {more} more in report.json</td></tr>')
    return (
        '<table><tr><th>Bag<th>Became<th class="n">s<th>Success<th class="n">Lag, ms<th class="n">Skew of cameras, ms'
        '<th class="n">Joints, command, cameras, Hz<th>Findings</tr>' + "".join(rows) + "</table>"
    )


def _note(looks: Looks) -> str:
    left = f" {looks.left_out} more are not shown; their figures are in report.json." if looks.left_out else ""
    text = "Measured joints solid, commanded dashed; of pictures the longest interval in each stretch."
    return f'<div class="soft" style="margin-bottom:10px">{text}{left}</div>'


def _episode(number: int, entry: dict[str, Any], look: dict[str, Any]) -> str:
    index = entry["episode_index"]
    head = (
        f'<div class="head"><b id="e{number}">{escape(Path(entry["bag"]).name)}</b>'
        f'<span class="chip {entry["status"]}">{entry["status"]}</span>'
        f"<span>{escape(entry['instruction'] or '')}</span>"
        f'<span class="soft">{"" if index is None else f"episode {index}, "}{entry["frames"]} frames'
        f"{', ' + _success(entry['success']) if entry['success'] is not None else ''}</span></div>"
    )
    flags = "".join(
        f'<li><span class="chip flag">{escape(f["code"])}</span> {escape(f["text"])}</li>' for f in entry["flags"]
    )
    strips = "".join(
        f'<div class="strip"><span>{escape(c)}</span>'
        + "".join(f'<img alt="" src="data:image/jpeg;base64,{p}">' for p in pictures)
        + "</div>"
        for c, pictures in look["thumbnails"].items()
    )
    colour = svg.COLOURS
    joints = [
        (look["t"], row, colour[i % 8], dashed)
        for key, dashed in (("commanded", True), ("measured", False))
        for i, row in enumerate(look[key])
    ]
    hand = [(look["t"], look["gripper"], colour[1], True), (look["t"], look["opening"], colour[0], False)]
    gaps = [(*xy, colour[i % 8], False) for i, xy in enumerate(look["intervals"].values())]
    cameras = _key([*look["intervals"]])
    return (
        f'<div class="card">{head}{f"<ul>{flags}</ul>" if flags else ""}<div class="strips">{strips}</div>'
        f'<div class="plots"><div>{svg.lines("Joints, rad", joints, 440, 168)}{_key(look["joints"])}</div>'
        f"<div>{svg.lines('Gripper, +1 open', hand, height=168, floor=-1, ceiling=1)}{_key(['state', 'command'])}</div>"
        f"<div>{svg.lines('Between pictures, ms', gaps, height=168, floor=0)}{cameras}</div></div></div>"
    )


def _key(names: list[str]) -> str:
    items = (f'<span><i style="background:{svg.COLOURS[i % 8]}"></i>{escape(n)}</span>' for i, n in enumerate(names))
    return f'<div class="key">{"".join(items)}</div>'


def _success(value: bool | None) -> str:
    return {True: "success", False: "failure", None: ""}[value]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.0f}"
