"""The report of an evaluation on a robot: figures as JSON, and one HTML page with a video per trial. Pure."""

from __future__ import annotations

import dataclasses
import json
from html import escape
from pathlib import Path
from typing import Any

from vipra_ros.data.svg import COLOURS
from vipra_ros.json_file import clean
from vipra_ros.learning import trial_statistics as statistics
from vipra_ros.learning.results import number
from vipra_ros.learning.trial_journal import INVALID, Journal
from vipra_ros.learning.trials import Plan, schedule

_STYLE = """
:root{--ink:#1d2530;--soft:#6a7585;--line:#e3e7ec;--bad:#c0392b;--good:#2b8a57;--warn:#b7791f;--back:#f5f7f9}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 24px 60px}h1{font-size:24px;margin:0}
h2{font-size:17px;margin:32px 0 10px}.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%;background:#fff;border:1px solid var(--line)}
th,td{text-align:left;padding:5px 10px;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);font-size:12px}td.n,th.n{text-align:right;white-space:nowrap}
tr.all td{background:#fafbfc;font-weight:600}.success{color:var(--good)}.failure{color:var(--bad)}
.invalid{color:var(--warn)}svg{display:block}svg text{font:10px system-ui,sans-serif;fill:var(--soft)}
.films{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:12px}
.film{background:#fff;border:1px solid var(--line);border-radius:8px;padding:10px}
.film video{width:100%;border-radius:4px;background:#000;display:block;margin-bottom:6px}
"""
#: px of the drawn intervals.
_WIDTH, _HEIGHT = 260, 18


def summary(plan: Plan, journal: Journal, unblind: bool = False) -> dict[str, Any]:
    """Every figure of the report, ready for JSON; policies by name once all trials are done, before by letter.

    Args:
        unblind: name the policies though trials are missing.
    """
    slots = schedule(plan)
    trials, missing = journal.counted(), len(journal.remaining(slots))
    shown = unblind or not missing
    called = dict(zip(journal.blind.codes, (p.name for p in plan.policies), strict=True))
    codes = list(called) if shown else sorted(called)  # in the order of the plan they would tell which is which
    tasks = [t.label for t in plan.tasks]
    return clean({
        "plan": plan.fingerprint,
        "robot": plan.robot,
        "trials": len(slots),
        "missing": missing,
        "invalid": sum(t.label == INVALID for t in journal.trials),
        "unblinded": shown,
        "names": {c: called[c] if shown else f"policy {c}" for c in codes},
        "tasks": tasks,
        "cells": [vars(c) for c in statistics.cells(trials, codes, tasks)],
        "comparisons": [vars(c) for c in statistics.comparisons(trials, codes, tasks)],
        "rows": [dataclasses.asdict(t) for t in journal.trials],
    })


def write(plan: Plan, journal: Journal, folder: str | Path, unblind: bool = False) -> Path:
    """Write FOLDER/report.json and FOLDER/report.html; returns the page."""
    figures, folder = summary(plan, journal, unblind), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render(plan, figures), encoding="utf-8")
    return page


def render(plan: Plan, figures: dict[str, Any]) -> str:
    """The page for what :func:`summary` returns."""
    done = figures["trials"] - figures["missing"]
    state = f"{done} of {figures['trials']} trials, {figures['invalid']} invalid ones left out"
    if figures["missing"]:
        state += "; unfinished" + ("" if figures["unblinded"] else ", so policies go by their letters")
    body = [
        f'<h1>Rollouts</h1><div class="soft">{escape(_where(plan))}, {state}</div>'
        f'<div class="soft">{_when(figures)}plan {figures["plan"]}</div>',
        "<h2>Success</h2>", _success(figures),
        '<div class="soft">Interval: Wilson, 95 %. Time: median of the successes. Stall: no chunk for the '
        "executor's chunk_timeout, the arm stopped and waited for one; shorter waits are not counted. Stop: it held or "
        "faulted by itself.</div>",
        *(["<h2>Pairs</h2>", _pairs(figures),
           '<div class="soft">Matched by task and block: the same words, the same layout. p: exact McNemar test, two '
           "sided; Holm: corrected for the number of pairs. Faster: of the trials that both won, with an exact sign "
           "test.</div>"] if figures["comparisons"] else []),
        "<h2>Tasks</h2>", _tasks(plan),
        "<h2>Trials</h2>", _trials(figures),
        *_films(figures),
    ]
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Rollouts</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
            f"<main>{''.join(body)}</main></html>\n")


def lines(figures: dict[str, Any]) -> list[str]:
    """The result for a terminal."""
    out = []
    for c in figures["cells"]:
        out.append(f"{figures['names'][c['code']]:20} {c['task'] or 'all':14} {c['successes']:3d}/{c['n']:<3d} "
                   f"{_percent(c)}  stalls {c['stalls']}, stops {c['stops']}")
    for c in figures["comparisons"]:
        if not c["task"]:
            one, two = figures["names"][c["first"]], figures["names"][c["second"]]
            out.append(f"{one} / {two}: {c['pairs']} pairs, won alone {c['first_only']} / {c['second_only']}, "
                       f"p = {c['p']:.3g}" + (f", after Holm {c['p_holm']:.3g}" if len(figures["names"]) > 2 else ""))
    return out


def _where(plan: Plan) -> str:
    return "simulated arm" if plan.simulated else f"arm at {plan.robot}"


def _when(figures: dict[str, Any]) -> str:
    """First and last day of the trials."""
    days = sorted({t["began"][:10] for t in figures["rows"] if t["began"]})
    return escape(" to ".join(dict.fromkeys((days[0], days[-1])))) + " (UTC), " if days else ""


def _success(figures: dict[str, Any]) -> str:
    rows = []
    for c in figures["cells"]:
        colour = COLOURS[list(figures["names"]).index(c["code"]) % len(COLOURS)]
        share = f"{100 * c['successes'] / c['n']:.0f} %" if c["n"] else "-"
        rows.append(
            f'<tr class="{"" if c["task"] else "all"}"><td>{escape(figures["names"][c["code"]])}</td>'
            f"<td>{escape(c['task'] or 'all')}</td>"
            f'<td class="n">{c["successes"]} of {c["n"]}</td><td class="n">{share}</td><td class="n">{_percent(c)}</td>'
            f'<td>{_bar(c, colour)}</td><td class="n">{number(c["seconds"], ".1f")}</td><td class="n">{c["stalls"]}'
            f'</td><td class="n">{c["stops"]}</td></tr>')
    head = ('<tr><th>Policy<th>Task<th class="n">Success<th class="n">Share<th class="n">Interval<th>0 to 100 %'
            '<th class="n">Time, s<th class="n">Stalls<th class="n">Stops</tr>')
    return f"<table>{head}{''.join(rows)}</table>"


def _bar(cell: dict[str, Any], colour: str) -> str:
    """The interval as a line, the share as a dot, on an axis from 0 to 1."""
    low, high = (4 + cell[k] * (_WIDTH - 8) for k in ("low", "high"))
    middle = _HEIGHT / 2
    dot = ""
    if cell["n"]:
        at = 4 + cell["successes"] / cell["n"] * (_WIDTH - 8)
        dot = f'<circle cx="{at:.1f}" cy="{middle}" r="4" fill="{colour}"/>'
    return (f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">'
            f'<line x1="4" x2="{_WIDTH - 4}" y1="{middle}" y2="{middle}" stroke="#e3e7ec"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="{colour}" stroke-width="3"/>'
            f"{dot}</svg>")


def _pairs(figures: dict[str, Any]) -> str:
    rows = []
    for c in figures["comparisons"]:
        one, two = (escape(figures["names"][c[k]]) for k in ("first", "second"))
        rows.append(
            f'<tr class="{"" if c["task"] else "all"}"><td>{one}</td><td>{two}</td>'
            f'<td>{escape(c["task"] or "all")}</td><td class="n">{c["pairs"]}</td>'
            f'<td class="n">{c["first_only"]}</td><td class="n">{c["second_only"]}</td>'
            f'<td class="n">{c["p"]:.3g}</td><td class="n">{number(c["p_holm"], ".3g")}</td>'
            f'<td class="n">{c["faster"]} : {c["slower"]}, p {c["p_time"]:.3g}</td></tr>')
    head = ('<tr><th>First<th>Second<th>Task<th class="n">Pairs<th class="n">First alone<th class="n">Second alone'
            '<th class="n">p<th class="n">Holm<th class="n">Faster first : second</tr>')
    return f"<table>{head}{''.join(rows)}</table>"


def _tasks(plan: Plan) -> str:
    rows = "".join(
        f"<tr><td>{escape(t.label)}</td><td>{escape(t.instruction or f'words of the scene ({t.sim})')}</td>"
        f'<td>{escape(t.layout)}</td><td class="n">{plan.limit(t):g} s</td></tr>' for t in plan.tasks)
    return f'<table><tr><th>Task<th>Instruction<th>Layout<th class="n">Limit</tr>{rows}</table>'


def _trials(figures: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td class="n">{t["slot"] + 1}</td><td>{escape(figures["names"][t["code"]])}</td>'
        f'<td>{escape(t["task"])}</td><td>{escape(t["words"])}</td><td class="n">{t["block"] + 1}</td>'
        f'<td class="n">{t["seed"]}</td><td class="n">{escape(t["began"][:16].replace("T", " "))}</td>'
        f'<td class="{t["label"]}">{t["label"]}</td>'
        f'<td>{escape(t["by"])}</td><td class="n">{t["seconds"]:.1f}</td><td class="n">{t["stalls"]}</td>'
        f'<td class="n">{t["stops"]}</td><td>{escape(t["stopped"])}</td></tr>' for t in figures["rows"])
    head = ('<tr><th class="n">Trial<th>Policy<th>Task<th>Words<th class="n">Block<th class="n">Seed'
            '<th class="n">Began<th>Label<th>By<th class="n">s'
            '<th class="n">Stalls<th class="n">Stops<th>Reason of the stop</tr>')
    return f"<table>{head}{rows}</table>"


def _films(figures: dict[str, Any]) -> list[str]:
    # With a time in its address a browser draws the picture of that time; without one a film is a black square.
    films = [
        f'<div class="film"><video controls muted preload="metadata" '
        f'src="{escape(t["video"], quote=True)}#t=0.1"></video>'
        f'trial {t["slot"] + 1}, {escape(figures["names"][t["code"]])}, {escape(t["task"])}: '
        f'<span class="{t["label"]}">{t["label"]}</span></div>' for t in figures["rows"] if t["video"]]
    return ["<h2>Videos</h2>", f'<div class="films">{"".join(films)}</div>'] if films else []


def _percent(cell: dict[str, Any]) -> str:
    return f"{100 * cell['low']:.0f} - {100 * cell['high']:.0f} %"
