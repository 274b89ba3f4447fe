"""Figures as JSON files. Whether there can be such a file is known before minutes are spent on what goes in."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.whole_file import write_whole


def json_writer(path: str | Path | None) -> Callable[[object], None]:
    """What writes figures to `path`, whose folder is made now. Without a path: nothing.

    Raises:
        ConfigError: there can be no such file. Nothing is opened: it may be a pipe that nobody reads yet.
    """
    if not path:
        return lambda figures: None
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a file in a folder that can be written") from None
    if path.is_dir() or not os.access(path if _stays(path) else path.parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written; give a file in a folder that can be")
    return lambda figures: write_json(figures, path)


def write_json(figures: object, path: str | Path) -> None:
    """Write `figures`, a regular file in whole; NaN becomes null, so that every JSON reader takes it."""
    path = Path(path)
    text = json.dumps(clean(figures), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if _stays(path):
        path.write_text(text, encoding="utf-8")
    else:
        write_whole(path, text)


def _stays(path: Path) -> bool:
    """Whether nothing may take the place of `path`, which is there: a pipe, a device, a link, /dev/stdout."""
    return path.exists() and (path.is_symlink() or not path.is_file())


def clean(value):
    """Plain Python for JSON: NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, np.ndarray):
        return clean(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
