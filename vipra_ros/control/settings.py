"""Settings of the executor core: the YAML schema, the checks, and the ROS parameters in one table."""

from __future__ import annotations

from dataclasses import dataclass

from vipra_ros.config import param
from vipra_ros.control.chunk import ACTION_SPACES
from vipra_ros.control.sinks import SINKS
from vipra_ros.control.timeline import BLENDINGS, MODES
from vipra_ros.control.validate import Bounds


@dataclass(frozen=True)
class ExecutorSettings:
    """Every value is read-only while the executor runs; the defaults are the safe ones."""

    # chunks on the time axis
    mode: str = param(
        "async",
        doc="async: rows are due by the observation's stamp; sync: a chunk begins when it arrives",
        choices=MODES,
    )
    blending: str = param("linear", doc="how the overlap of two chunks is joined", choices=BLENDINGS)
    ensemble_decay: float = param(
        0.01, doc="weights exp(-decay i), i = 0 the oldest, of blending ensemble", low=0.0, high=10.0
    )
    # what a chunk may say
    action_space: str = param("joint_position", doc="action space taken; any other is refused", choices=ACTION_SPACES)
    max_observation_age: float = param(
        1.5, doc="older observations are refused on arrival", unit="s", low=0.01, high=10.0
    )
    future_tolerance: float = param(0.1, doc="stamps further ahead are refused", unit="s", low=0.0, high=1.0)
    range_margin: float = param(
        0.2,
        doc="targets further beyond a joint limit refuse the chunk; nearer ones are clipped",
        unit="rad",
        low=0.0,
        high=1.0,
    )
    lease: float = param(3.0, doc="silence after which another policy is served", unit="s", low=0.1, high=60.0)
    # limits
    speed: float = param(1.0, doc="share of the profile's velocity limit", low=0.05, high=1.0)
    start_speed: float = param(0.3, doc="share of the velocity limit at the start of a motion", low=0.05, high=1.0)
    start_ramp: float = param(0.5, doc="time from start_speed to the full limit", unit="s", low=0.0, high=10.0)
    start_distance: float = param(
        0.5, doc="largest joint distance of the arm from the first target", unit="rad", low=0.01, high=3.0
    )
    start_action: str = param(
        "refuse",
        doc="what to do beyond start_distance: refuse, or approach slowly",
        choices=("refuse", "blend"),
    )
    home_speed: float = param(0.4, doc="share of the velocity limit on the way home", low=0.05, high=1.0)
    home_gripper: str = param(
        "keep", doc="what the hand does on the way home: keep its grip, or open", choices=("keep", "open")
    )
    # watchdogs, on the monotonic clock
    chunk_timeout: float = param(
        1.5, doc="no accepted chunk for this long: limited stop, then ARMED", unit="s", low=0.05, high=30.0
    )
    observation_timeout: float = param(
        2.5, doc="newest observation older than this: limited stop, then ARMED", unit="s", low=0.05, high=30.0
    )
    state_timeout: float = param(0.3, doc="no robot state for this long: fault", unit="s", low=0.01, high=5.0)
    overrun_warning: float = param(
        0.05, doc="passes of the loop further apart are counted", unit="s", low=0.001, high=5.0
    )
    overrun_fault: float = param(0.5, doc="passes of the loop further apart are a fault", unit="s", low=0.01, high=10.0)
    deadman_timeout: float = param(
        0.0, doc="silence of the dead-man that holds the arm, 0: no dead-man", unit="s", low=0.0, high=5.0
    )
    tracking_limit: float = param(0.25, doc="largest |commanded - measured| of a joint", unit="rad", low=0.01, high=1.0)
    tracking_time: float = param(0.1, doc="how long tracking_limit must be exceeded", unit="s", low=0.0, high=2.0)
    limiter_share: float = param(
        0.95, doc="share of rows missed by over 0.05 rad that holds the arm, 1: never", low=0.1, high=1.0
    )
    limiter_window: float = param(3.0, doc="time over which limiter_share is judged", unit="s", low=0.2, high=60.0)
    # the last hop
    sink: str = param(
        "waypoints",
        doc="waypoints: one motion a chunk; velocity: short motions that end by themselves, for teleoperation; "
        "impedance: compliant; trajectory: to a joint trajectory controller of franka_ros2",
        choices=SINKS,
    )
    # flight recorder
    incident_folder: str = param("", doc="where the last seconds before a fault are written; empty: ~/.ros/incidents")
    incident_keep: int = param(20, doc="newest incidents that are kept, 0: none is written", low=0, high=10000)
    # hand
    gripper_threshold: float = param(
        0.3, doc="the hand changes above +threshold and below -threshold", low=0.0, high=0.99
    )
    gripper_dwell: float = param(0.5, doc="least time between two changes of the hand", unit="s", low=0.0, high=5.0)

    def bounds(self) -> Bounds:
        """The part the validator needs."""
        return Bounds(
            action_space=self.action_space,
            max_age=self.max_observation_age,
            future=self.future_tolerance,
            range_margin=self.range_margin,
            lease=self.lease,
        )
