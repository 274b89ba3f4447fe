"""Where a checkpoint is: a folder, or the name of one that comes with the package."""

from __future__ import annotations

from pathlib import Path

from vipra_ros.config import ConfigError, share


def resolve(checkpoint: str | Path) -> Path:
    """A checkpoint folder from its path, or from the name of a shipped one ("tiny" or "models/tiny").

    Raises:
        ConfigError: there is none.
    """
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    parts = tuple(p for p in Path(checkpoint).parts if p not in ("/", "models"))
    if parts and not Path(checkpoint).is_absolute():
        try:
            return share("models", *parts)
        except ConfigError:
            pass
    home = "; no shell turns ~ into your folder behind :=, write $HOME" * str(checkpoint).startswith("~")
    raise ConfigError(
        f"checkpoint {str(checkpoint)!r} is no folder and none of the shipped models; give a path, or "
        f"a name under models/{home}"
    )
