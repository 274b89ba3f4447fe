"""Which policies may drive an arm of metal. Needs neither torch nor ROS.

Discrete actions jump from bin to bin; on a real Franka such steps tripped its safety stop (ViPRA, section 5), so only
continuous decoders go to hardware. In simulation both do.
"""

from __future__ import annotations

import json
from pathlib import Path

from vipra_ros.config import ConfigError


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
    """`check_deployment` of a checkpoint folder before anything is started; a folder that cannot be read is left to
    those who load it."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        decoder, variant = config["policy"].get("decoder", "flow"), config.get("variant", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    check_deployment(decoder, variant, simulated)
