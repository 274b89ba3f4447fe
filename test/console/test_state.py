"""What the console shows: silence is a state, history has gaps, episodes are counted once."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from vipra_ros.console import drawing
from vipra_ros.console.state import COLOURS, POLICY_SILENT, SILENT, SPAN, UNKNOWN, ConsoleState
from vipra_ros.control.profile import load_profile

PROFILE = load_profile("fr3")


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def executor(state="RUNNING", **changes):
    values = dict(state_text=state, reasons=["first", "newest"], robot="fr3 at 1.2.3.4", dry_run=False, in_control=True,
                  chunk_rate=3.0, action_rate=15.0, obs_to_action_p50=0.12, limiter_active=0.5)
    return SimpleNamespace(**values | changes)


@pytest.fixture
def state():
    return ConsoleState(PROFILE, ("front", "wrist"), Clock())


def test_a_state_that_was_true_is_not_shown_as_if_it_were(state):
    assert state.banner().text == "NO EXECUTOR"
    state.on_executor(executor())
    banner = state.banner()
    assert banner.text == "RUNNING" and banner.colour == COLOURS["RUNNING"] and banner.reasons[0] == "newest"
    state.now.now += SILENT + 0.1
    banner = state.banner()
    assert banner.text == "SILENT" and banner.colour == UNKNOWN and "in RUNNING" in banner.reasons[0]


def test_words_are_those_of_the_page(state):
    state.on_executor(executor("ARMED", in_control=False, reasons=["held; call executor/arm to go on"]))
    banner = state.banner()
    assert "not in control" not in banner.detail and banner.reasons == ("held; press Arm to go on",)
    state.on_executor(executor("RUNNING", in_control=False))
    assert "not in control" in state.banner().detail
    assert state.words_line() == ("The policy has no words yet.", "")
    for text, said in (("LOADING", "The policy loads, and will answer: "), ("READY", "The policy answers: ")):
        state.on_policy(SimpleNamespace(state_text=text, instruction="lift", reasons=[]))
        assert state.words_line() == (said, "lift")
    state.now.now += POLICY_SILENT + 0.1
    assert state.words_line() == ("The policy is silent; its words were: ", "lift")
    last = {"episode": "a", "saved": True, "success": True, "seconds": 3.0, "flags": ["front: gap", "wrist: gap"]}
    state.on_recorder({"state": "IDLE", "last": last})
    assert state.recorder_line()[1] == "a: 3.0 s, success, flags: front: gap; wrist: gap"


def test_a_trial_is_shown_while_it_is_heard_and_names_no_policy(state):
    state.on_policy(SimpleNamespace(state_text="FAULT", instruction="lift", reasons=["ours-to-win is no folder"]))
    assert state.trial_lines() == () and "ours" in state.policy_line()
    told = {"lines": ["trial 3 of 20: policy B", "  lay out: a towel"], "refused": "", "asks": "", "buttons": []}
    state.on_trial(told)
    assert state.trial_lines() == ("trial 3 of 20: policy B", "  lay out: a towel")
    assert state.policy_line() == "policy FAULT", "the terminal tells the reason, with a letter for the name"
    assert state.trial_question() == ("", "")
    state.on_trial(told | {"refused": "held; call executor/arm", "asks": "begin", "buttons": ["start"]})
    assert state.trial_lines()[2:] == ("held; press Arm",) and state.trial_question() == ("Go: begin", "go")
    state.on_trial(told | {"asks": "how did it go?", "buttons": ["success"]})
    assert state.trial_question() == ("how did it go?", "label")
    state.now.now += POLICY_SILENT + 0.1
    assert state.trial_lines() == () and state.trial_question() == ("", "")


def test_history_is_thinned_and_its_gaps_are_gaps(state):
    for i in range(400):
        state.on_executor(executor("ARMED" if 100 <= i < 200 else "RUNNING"))
        state.now.now += 0.1
    times, values = state.series()["latency"]
    assert 100 <= len(times) <= 140 and min(np.diff(times)) >= 0.25 - 1e-9
    text = drawing.sparkline(times, values, state.now(), SPAN, 200.0)
    assert text.count("<polyline") == 2 and "nan" not in text


def test_episodes_are_counted_once_and_not_those_before_us(state):
    old = {"episode": "a", "saved": True, "success": True}
    for last in (old, old, {"episode": "b", "saved": True, "success": False}, {"episode": "c", "saved": False},
                 {"episode": "c", "saved": False}, {"episode": "d", "saved": True, "success": True},
                 {"episode": "d", "saved": True, "success": True, "instruction": "relabelled"}):
        state.on_recorder({"state": "IDLE", "last": last})
    assert state.counts == {"success": 1, "failure": 1, "no label": 0, "discarded": 1}
    state.now.now += 10.0
    assert state.recorder_line()[0] == ""


def test_old_pictures_are_called_old(state):
    assert state.blind("front") == "no picture yet"
    state.on_image("front", b"jpeg")
    assert state.blind("front") == "" and state.picture("front").data == b"jpeg"
    state.now.now += 3.0
    assert "3 s old" in state.blind("front")


def test_bars_stand_where_the_joint_stands():
    low, high = np.array(PROFILE.q_min), np.array(PROFILE.q_max)
    text = drawing.joint_bars((low + high) / 2, None, low, high, 0.05)
    blocks = re.findall(r'<rect x="([\d.]+)" y="\d+" width="8"', text)
    assert len(blocks) == 7 and all(float(x) + 4 == pytest.approx(30 + 318 / 2) for x in blocks)
    assert 'stroke="#ffd54f"' not in text and "#ff8a65" not in text
    assert drawing.joint_bars(high, high, low, high, 0.05).count("#ff8a65") == 7
    assert "nan" not in drawing.joint_bars(np.full(7, math.nan), None, low, high, 0.05)


def test_the_plan_is_drawn_in_the_simulators_front_camera_only(state):
    rows = np.tile([*PROFILE.home_q, 1.0], (14, 1))
    state.on_chunk(rows, 7)
    assert state.plan_points("front") is None  # a real camera: nobody knows where it stands
    state.outcome = {"task": "push"}
    points, execute = state.plan_points("front")
    assert points.shape == (14, 2) and execute == 7 and ((points > 0) & (points < 1)).all()
    assert state.plan_points("wrist") is None
    assert drawing.plan(points, execute).count("<circle") == 7
    assert drawing.plan(np.full((14, 2), math.nan), 7) == ""
    state.now.now += 2.0
    assert state.plan_points("front") is None


def test_figures_of_an_executor_that_is_silent_are_not_shown(state):
    page = pytest.importorskip("vipra_ros.console.page")
    view = SimpleNamespace(state=state)
    state.on_executor(executor(limited=0, rejected=0, late=0))
    assert "<b>3.0 /s</b>" in page._View._lines(view)
    state.now.now += SILENT + 0.1
    assert "/s</b>" not in page._View._lines(view)
