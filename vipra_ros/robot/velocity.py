"""The arm by streamed joint velocities: for teleoperation, where a motion must not outlive its sender.

Every 33 ms one JointVelocityMotion that ends by itself: v = dq_ref + GAIN (q_ref - q_d), held for HOLD, then
braked by franky's generator, in a thread of this process beside Python. A loop that dies or stalls is therefore a
stop within the arm's limits, within HOLD and a braking time, without any message. A process that dies, or a machine
that freezes, takes the generator along: the control unit misses its cycles and stops the arm hard, with the reflex
communication_constraints_violation.
"""

from __future__ import annotations

from collections.abc import Sequence

import franky
import numpy as np

from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.profile import RobotProfile
from vipra_ros.control.reference import Reference
from vipra_ros.robot.arm import FrankyArm

#: s between two motions, and s for which each holds its velocity when it is not replaced: two may be lost.
PERIOD, HOLD = 0.03, 0.1
#: s for which a motion on its own goes on at most: reaching the velocity and the way to the arm come on top of HOLD.
ALONE = 0.17
#: s in which a joint reaches its next velocity at most.
STEP = 0.06
#: s by which the reference is read ahead: a motion takes over some ms after it was sent and then accelerates.
AHEAD = 0.03
#: 1/s, of the distance from the reference.
GAIN = 5.0
#: rad and rad/s; nearer than this behind the reference's end the arm has arrived.
ARRIVED, SLOW = 5e-4, 2e-3
#: s behind the reference's end after which the rest of the way is given up.
SETTLE = 1.0
#: Share of the robot's own position-dependent velocity limit that is used.
OWN_SHARE = 0.9


def room_speed(profile: RobotProfile, q: np.ndarray, alone: float) -> tuple[np.ndarray, np.ndarray]:
    """Largest speeds (7,) down and up from which a motion that goes on for `alone` s still ends inside the limits.

    v <= room / alone, and for the robot's own limit (v + offset)^2 = 2 dec (room - v alone). The reference keeps
    `position_margin` from the limits; half of it is given to a motion that is on its own.
    """
    speeds = []
    for room in (q - np.asarray(profile.q_min), np.asarray(profile.q_max) - q):
        speed = np.maximum(0.0, room - 0.5 * profile.position_margin) / alone
        if profile.velocity_offset:
            off, dec = np.asarray(profile.velocity_offset), np.asarray(profile.velocity_deceleration)
            lag = off + dec * alone
            own = np.sqrt(np.maximum(0.0, lag * lag - off * off + 2 * dec * np.maximum(0.0, room))) - lag
            speed = np.minimum(speed, OWN_SHARE * np.maximum(0.0, own))
        speeds.append(speed)
    return speeds[0], speeds[1]


def command(
    profile: RobotProfile, reference: Reference, q: np.ndarray, dq: np.ndarray, measured: np.ndarray, now: float
) -> np.ndarray:
    """The velocity (7,), rad/s, that takes an arm commanded to `q` and `dq` along the reference.

    How fast it may be near a joint limit is judged where it is commanded to be and where it is `measured`: velocities
    are integrated by the arm, and nothing but the arm itself keeps the two together.

    The arm's generator lets all joints arrive at the same time. A step that one joint needs long for would keep the
    others from braking, so no step is larger than what every joint manages in :data:`STEP`.
    """
    target, _, _ = reference.at(now)
    _, ahead, _ = reference.at(now + AHEAD)
    top, acceleration, _ = profile.arm_limits
    braking = float(np.max(np.maximum(np.abs(dq), np.abs(ahead)) / acceleration))  # s, all joints together
    rooms = [room_speed(profile, place, ALONE + 0.5 * braking) for place in (q, measured)]
    down, up = np.minimum(rooms[0][0], rooms[1][0]), np.minimum(rooms[0][1], rooms[1][1])
    wish = np.clip(ahead + GAIN * (target - q), -np.minimum(down, 0.98 * top), np.minimum(up, 0.98 * top))
    return np.clip(wish, dq - STEP * acceleration, dq + STEP * acceleration)


class VelocityArm(FrankyArm):
    """:class:`FrankyArm` whose last hop is a velocity; the core calls :meth:`follow` at every pass."""

    #: s; see :class:`vipra_ros.control.limits.Limiter`.
    reaction = ALONE + 0.14
    _sent, _moving = -np.inf, False

    def stream(self, waypoints: Sequence[Waypoint], now: float) -> None:
        """Nothing: the next :meth:`follow` sees the new reference."""

    def follow(self, reference: Reference, state: RobotState, now: float) -> None:
        """Send the next velocity when it is due, until the arm has arrived."""
        now = max(now, self._clock())
        if now - self._sent < PERIOD - 2e-3:
            return
        q, final = np.asarray(state.q_d, float), reference.at(now)[0]
        if not np.isfinite((q, state.q)).all():
            return
        if not reference.moving(now):
            rests = np.abs(np.asarray(state.dq_d, float)).max() < SLOW
            if not self._moving or (rests and np.abs(final - q).max() < ARRIVED) or now - reference.end > SETTLE:
                if self._moving:
                    self.stop(now)
                return
        velocity = command(self.profile, reference, q, np.asarray(state.dq_d, float), np.asarray(state.q, float), now)
        self._sent, self._moving = now, True
        self.refusals.sending()  # a velocity that was refused is followed by the next one anyway
        with self._lock:
            self._move(franky.JointVelocityMotion(velocity, franky.Duration(round(1000 * HOLD))))

    def stop(self, now: float) -> None:
        """Brake within franky's clamped limits and give up control."""
        del now
        self._moving = False
        self._brake(franky.JointVelocityStopMotion())
