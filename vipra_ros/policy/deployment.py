"""Which policies may drive an arm of metal, and how their chunks are played. Needs neither torch nor ROS.

Discrete actions jump from bin to bin; on a real Franka such steps tripped its safety stop (ViPRA, section 5), so only
continuous decoders go to hardware. In simulation both do.
"""

from __future__ import annotations

import json
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.policy.shipped import resolve


def check_deployment(decoder: str, variant: str, simulated: bool) -> None:
    """Refuse a discrete policy where the arm is real.

    Raises:
        ConfigError: with the reason.
    """
    if decoder == "discrete" and not simulated:
        raise ConfigError(
            f"{variant or 'this policy'} has a discrete decoder: its actions spike and trip the safety stop of a real "
            "arm; take a continuous policy (decoder: flow), or robot:=sim"
        )


def check_folder(folder: str | Path, simulated: bool) -> None:
    """`check_deployment` of a checkpoint before anything is started; one that cannot be read is left to its loader."""
    config = _read(folder)
    check_deployment(config.get("policy", {}).get("decoder", "flow"), config.get("variant", ""), simulated)


def mode_of(execute_steps: int) -> str:
    """How the executor plays chunks of this many rows: async, or sync where there is one row only.

    The next observation of `async` is taken while rows are left to bridge the thinking. A single row is over, and its
    successor late, before the policy has answered; in `sync` it begins when it arrives.
    """
    return "async" if execute_steps > 1 else "sync"


def mode_of_folder(folder: str | Path) -> str:
    """`mode_of` a checkpoint, empty when it cannot be read."""
    steps = _read(folder).get("execute_steps")
    return mode_of(steps) if isinstance(steps, int) else ""


def _read(folder: str | Path) -> dict:
    try:
        config = json.loads((resolve(folder) / "config.json").read_text())
        return config if isinstance(config, dict) and isinstance(config.get("policy", {}), dict) else {}
    except (ConfigError, OSError, ValueError):
        return {}
