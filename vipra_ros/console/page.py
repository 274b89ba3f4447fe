"""The page, in NiceGUI: it shows. What acts is plain HTML that `script.py` posts past this page's own loop."""

from __future__ import annotations

import math
from html import escape

from fastapi import FastAPI, Response
from nicegui import app as gui
from nicegui import ui

from vipra_ros.console import drawing
from vipra_ros.console.access import Access
from vipra_ros.console.script import FIXED, head
from vipra_ros.console.state import SILENT, SPAN, ConsoleState

#: s between two looks at the state.
PERIOD = 0.25
#: Series -> (words, unit, form of the number, least top of the line).
SERIES = {"chunks": ("chunks", "/s", ".1f", 5.0), "actions": ("actions", "/s", ".1f", 20.0),
          "latency": ("observation to action, p50", "ms", ".0f", 200.0),
          "limiter": ("rows a limit changed", "%", ".0f", 100.0)}


def make_app(state: ConsoleState, access: Access) -> FastAPI:
    """The ASGI application: `/` and `/camera/NAME`; `web.Guard` stands before it."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/camera/{name}")
    async def camera(name: str) -> Response:
        found = state.picture(name)
        if found is None:
            return Response(status_code=404)
        kind = "image/png" if found.data[:4] == b"\x89PNG" else "image/jpeg"
        return Response(found.data, media_type=kind, headers={"Cache-Control": "no-store"})

    @ui.page("/", title="vipra console", dark=True, response_timeout=10.0)
    def index() -> None:
        ui.add_head_html(head(access))
        ui.add_body_html(FIXED)
        view = _View(state)
        view.refresh()
        ui.timer(PERIOD, view.refresh)

    gui.on_exception(lambda error: None)  # a browser that went away is no error of the robot's
    ui.run_with(api, title="vipra console", reconnect_timeout=5.0)
    return api


def _html(text: str = "", classes: str = "") -> ui.html:
    return ui.html(text, sanitize=False).classes(classes)  # our own text; what comes from topics is escaped


class _View:
    """Elements of one browser's page, and what they show."""

    def __init__(self, state: ConsoleState):
        self.state, self._beats = state, 0
        ui.query(".nicegui-content").classes("p-0 gap-0")
        with ui.element("div").classes("v-grid"):
            self.banner = ui.element("div").classes("v-banner")
            with self.banner:
                self.text, self.reasons = _html(classes="v-state"), _html(classes="v-reasons")
                self.detail = _html(classes="v-detail")
            with ui.element("div").classes("v-eyes"):
                self.eyes = {name: self._eye(name) for name in state.cameras}
            with ui.element("div").classes("v-acts"):
                self._acts()
            with ui.element("div").classes("v-plots"):
                with ui.element("div").classes("v-card"):
                    _html("<h3>Joints, rad: measured, commanded, limits</h3>")
                    self.joints = _html()
                with ui.element("div").classes("v-card"):
                    _html(f"<h3>Last {SPAN:.0f} s</h3>")
                    self.series = _html()
        self.beat = ui.label().classes("v-beat hidden")

    def _eye(self, name: str) -> tuple[ui.html, ui.html]:
        with ui.element("div").classes("v-eye"):
            _html(f'<img data-camera="{escape(name)}" alt="" style="visibility: visible">', "w-full h-full")
            plan = _html()
            _html(escape(name), "v-name")
            return plan, _html(classes="v-blind")

    def _acts(self) -> None:
        _html('<button class="v-held" data-hold>HOLD TO RUN<small>this button or the space bar; '
              "released, closed or cut off: controlled stop</small></button>")
        self.hold = _html(classes="v-line")
        _html('<div class="v-buttons"><button class="v-arm" data-command="arm">Arm</button>'
              '<button data-command="hold">Hold</button><button data-command="home">Home</button>'
              '<button data-command="recover">Recover</button></div>')
        with ui.element("div").classes("v-card") as self.instruction:
            _html("<h3>Instruction</h3>")
            _html('<div class="v-words"><input data-words maxlength="500" placeholder="lift the red cube" '
                  'aria-label="instruction"><button class="v-act" data-command="instruction">Give</button></div>')
            self.words = _html(classes="v-line")
        with ui.element("div").classes("v-card v-trial") as self.trial:
            _html("<h3>Trial</h3>")
            _html('<div class="v-buttons"><button data-command="trial_start">Go</button>'
                  '<button class="v-good" data-command="trial_success">Success</button>'
                  '<button class="v-bad" data-command="trial_failure">Failure</button>'
                  '<button data-command="trial_invalid">Invalid</button></div>')
            self.asked = _html(classes="v-line v-asked")
        with ui.element("div").classes("v-card") as self.episode:
            _html("<h3>Episode</h3>")
            _html('<div class="v-buttons"><button data-command="start">Start</button>'
                  '<button class="v-good" data-command="success">Success</button>'
                  '<button class="v-bad" data-command="failure">Failure</button>'
                  '<button data-command="discard">Discard</button></div>')
            self.recorder = _html(classes="v-line")
            self.counts = _html(classes="v-line")

    def refresh(self) -> None:
        """Show the present state; NiceGUI sends what has changed."""
        s = self.state
        banner = s.banner()
        self.banner.style(f"background: {banner.colour}")
        self.text.set_content(escape(banner.text))
        self.reasons.set_content(escape("\n".join(banner.reasons[:3])))
        self.detail.set_content(escape(f"{banner.detail} · {s.policy_line()}" if banner.detail else s.policy_line()))
        for name, (plan, blind) in self.eyes.items():
            found = s.plan_points(name)
            plan.set_content(drawing.plan(*found) if found else "")
            blind.set_content(escape(s.blind(name)))
        self.hold.set_content(
            "" if s.listened or s.age("executor") > SILENT else
            "The executor does not ask for it: start it with deadman_timeout:=0.3 to make this button count."
        )
        said, told = s.words_line()
        self.words.set_content(f"{said}<b>{escape(told)}</b>" if told else said)
        trial = s.trial_lines()
        self.trial.set_visibility(bool(trial))
        self.instruction.set_visibility(not trial)  # a trial has its own words; others would spoil it
        self.episode.set_visibility(not trial or bool(s.recorder_line()[0]))
        asked, answered = s.trial_question()
        self.trial.classes(remove="v-go v-label", add=f"v-{answered}" if answered else "")
        self.asked.set_content(escape("\n".join(trial)) + (f"<b>{escape(asked)}</b>" if asked else ""))
        self.recorder.set_content(escape(s.recorder_line()[1]))
        self.counts.set_content(" &nbsp; ".join(f"{k} <b>{v}</b>" for k, v in s.counts.items()))
        p = s.profile
        self.joints.set_content(drawing.joint_bars(s.joint("measured"), s.joint("commanded"), p.q_min, p.q_max,
                                                   p.position_margin))
        self.series.set_content(self._lines())
        self._beats += 1  # last: the page calls itself old when any of the above fails
        self.beat.set_text(str(self._beats))

    def _lines(self) -> str:
        out = []
        for name, (times, values) in self.state.series().items():
            words, unit, form, least = SERIES[name]
            last = values[-1] if values else math.nan
            known = math.isfinite(last) and self.state.age("executor") <= SILENT
            number = f"{last:{form}} {unit}" if known else "-"
            colour = "#ffb74d" if name == "limiter" else "#4dd0e1"
            out.append(f'<div class="v-number"><span>{words}</span><b>{number}</b></div>'
                       f"{drawing.sparkline(times, values, self.state.now(), SPAN, least, colour)}")
        e = self.state.executor
        if e is not None:
            out.append(f'<div class="v-number"><span>limited / refused / late</span>'
                       f"<b>{e.limited} / {e.rejected} / {e.late}</b></div>")
        return "".join(out)
