"""The live view stays within 80 columns and says what is going on."""

import math
from types import SimpleNamespace

import pytest
from rich.console import Console

pytest.importorskip("rclpy")

from vipra_ros.msg import ExecutorStatus, PolicyStatus

from vipra_ros.nodes.monitor import Monitor


def session(executor, policy):
    return SimpleNamespace(executor_status=executor, policy_status=policy, trace=None)


@pytest.fixture
def monitor():
    made = Monitor(Console(width=80, no_color=True, force_terminal=False))
    made.session = session(
        ExecutorStatus(
            state_text="FAULT",
            reasons=["tracking error: a joint is 0.3 rad from [its] command; " * 5],
            obs_to_action_p50=0.123,
            boundary_step=math.nan,
            chunk_rate=3.21,
            limiter_active=0.5,
        ),
        PolicyStatus(
            state_text="WAITING",
            instruction="push the green cube into the yellow zone",
            reasons=["x"],
            cameras=["front", "wrist"],
            camera_rate=[29.8, math.nan],
            frames_lost=[2, 0],
        ),
    )
    return made


def test_view_fits_80_columns(monitor):
    with monitor.console.capture() as captured:
        monitor.console.print(monitor.view())
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 80
    for said in (
        "FAULT",
        "[its]",
        "WAITING",
        "push the green cube",
        "3.2 chunks/s",
        "123/",
        "50 %",
        "front 30 Hz, 2 lost",
    ):
        assert said in text, said


def test_plain_line_where_there_is_no_terminal(monitor):
    assert len(monitor.line()) <= 80 and "FAULT" in monitor.line() and "123 ms" in monitor.line()
    monitor.session = session(None, None)
    assert monitor.line() == ""
    with monitor.console.capture() as captured:
        monitor.console.print(monitor.view())
    assert "starting" in captured.get()


def test_images_are_kept_during_an_episode_only(monitor):
    monitor.on_image("front", 1.0, b"a")
    monitor.session.trace = object()
    monitor.on_image("front", 2.0, b"b")
    assert monitor.take() == {"front": [(2.0, b"b")]} and monitor.take() == {}
