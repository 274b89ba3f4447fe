"""How to reach the robot, and waiting for it at start. Imports franky only when it connects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING

from vipra_ros.config import param
from vipra_ros.control.profile import RobotProfile

if TYPE_CHECKING:
    from vipra_ros.robot.arm import FrankyArm
    from vipra_ros.robot.hand import FrankyHand

#: s between two attempts.
RETRY = 0.5
#: s after which it is worth a word that a simulated arm is not there.
SIMULATED_START = 10.0


@dataclass(frozen=True)
class ConnectionSettings:
    """Which robot, and how to talk to it."""

    host: str = param("172.16.0.2", doc="address of the arm's control unit")
    profile: str = param("fr3", doc="robot profile: a name in config/robots or the path of a YAML file")
    realtime_config: str = param(
        "enforce",
        doc="enforce needs a real-time kernel, ignore is for simulated arms",
        choices=("enforce", "ignore"),
    )
    hand: bool = param(True, doc="whether the arm has a hand")
    connect_timeout: float = param(30.0, doc="how long to wait for the arm at start", unit="s", low=0.0, high=600.0)


def connect(
    profile: RobotProfile, settings: ConnectionSettings, say: Callable[[str], None], sink: str = "waypoints"
) -> tuple[FrankyArm, FrankyHand | None]:
    """Arm and hand; `say` is told why it takes time, `sink` is how motions reach the arm.

    Raises:
        ArmError: no arm, or no hand, within the time allowed, or another process of this machine drives it.
    """
    from vipra_ros.robot.arm import ArmError, FrankyArm
    from vipra_ros.robot.claim import Claim, Claimed
    from vipra_ros.robot.hand import FrankyHand
    from vipra_ros.robot.impedance import ImpedanceArm
    from vipra_ros.robot.velocity import VelocityArm

    kind = {"waypoints": FrankyArm, "velocity": VelocityArm, "impedance": ImpedanceArm}[sink]
    begun, said = monotonic(), False
    give_up = begun + settings.connect_timeout
    # A simulated arm is started at the same time as this, and takes some seconds.
    usual = SIMULATED_START if settings.host.startswith("127.") else 0.0
    claim = None
    while True:
        try:
            claim = claim or Claim(settings.host)  # before anything is sent: the first must not notice the second
            arm = kind(profile, settings.host, settings.realtime_config)
            try:
                hand = FrankyHand(settings.host, profile.gripper_width) if settings.hand else None
            except Exception as error:  # franky raises its own kinds
                arm.close()
                raise ArmError(f"no hand at {settings.host}: {error}; set the executor's parameter hand to false "
                               "if there is none") from None
            arm.claim = claim  # only now: closing gives it back, and we try again
            return arm, hand
        except (ArmError, Claimed) as error:
            if monotonic() > give_up:
                if claim:
                    claim.release()
                raise ArmError(str(error)) from None
            if not said and monotonic() >= begun + usual:
                say(f"{error}; trying for {settings.connect_timeout:.0f} s")
                said = True
            sleep(RETRY)
