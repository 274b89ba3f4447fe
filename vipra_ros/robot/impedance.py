"""The arm as springs that follow the reference: compliant, for contact. Joint torques, through franky's tracker.

The target is renewed at every pass. An executor that stalls leaves the springs at the last target; one that dies
takes the connection with it, and the arm brakes by its own rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import franky
import numpy as np

from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.reference import Reference
from vipra_ros.robot.arm import FrankyArm

#: N m/rad of joints 1 to 7; damping is critical. Soft enough to be pushed away by hand.
STIFFNESS = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)
#: s behind the reference's end during which the target is still renewed.
SETTLE = 0.5


class ImpedanceArm(FrankyArm):
    """:class:`FrankyArm` whose last hop is a moving spring; the core calls :meth:`follow` at every pass."""

    #: Nothing is commanded but torques: q_d is a leftover of the motion before.
    compliant = True
    _motion: franky.JointImpedanceTrackingMotion | None = None

    def stream(self, waypoints: Sequence[Waypoint], now: float) -> None:
        """Nothing: the next :meth:`follow` sees the new reference."""

    def follow(self, reference: Reference, state: RobotState, now: float) -> None:
        """Move the springs' rest positions; begin when the reference begins to move."""
        now = max(now, self._clock())
        if self._motion is None and not reference.moving(now):
            return
        q, dq, _ = reference.at(now)
        with self._lock:
            if self._motion is None or not self._robot.is_in_control:
                self.refusals.sending()
                self._motion = franky.JointImpedanceTrackingMotion(stiffness=np.array(STIFFNESS))
                self._motion.set_reference(franky.JointReference(np.asarray(state.q, float)))
                self._move(self._motion)
            self._motion.set_reference(franky.JointReference(q, dq))

    def stop(self, now: float) -> None:
        """Ramp the torques down to damping and give up control."""
        del now
        self._motion = None
        self._brake(franky.TorqueStopMotion())
