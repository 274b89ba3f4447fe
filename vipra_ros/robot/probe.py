"""Looks at an arm without moving it: mode, errors, joints, and the limits in the model it sends."""

from __future__ import annotations

import os
from dataclasses import replace

import franky

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import RobotProfile
from vipra_ros.doctor.robot import ArmReport
from vipra_ros.robot.arm import ArmError, _names
from vipra_ros.robot.reported import tighten


def ask(host: str, profile: RobotProfile) -> ArmReport:
    """What the arm at `host` says; the connection is closed again.

    Raises:
        ArmError: no connection.
    """
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        robot = franky.Robot(host, realtime_config=franky.RealtimeConfig.Ignore)
    except Exception as error:  # franky raises its own kinds, and RuntimeError
        raise ArmError(f"no arm at {host}: {error}") from None
    finally:
        os.sched_setscheduler(0, *scheduling)  # libfranka lifts its caller to real-time priority
    state = robot.state
    mode = getattr(state.robot_mode, "name", str(state.robot_mode))
    report = ArmReport(mode, _names(state.current_errors), tuple(state.q))
    try:
        urdf = robot.model_urdf
    except Exception:  # old system images send none
        return report
    try:
        return replace(report, tightened=tighten(profile, urdf))
    except ConfigError as error:
        return replace(report, refusal=str(error))
