"""Where a data set is made: a folder beside its place, of one process, renamed at the very end."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.lock import held

_LOCK = "lock"
#: What a disk says that takes no more; it is not the fault of what is being read.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """The folder `.OUT.partial`, for this process alone; its contents stay until they are thrown away.

    Raises:
        ConfigError: `out` exists, or another process makes it.
    """
    stage = out.parent / f".{out.name}.partial"
    stage.mkdir(parents=True, exist_ok=True)
    with held(stage / _LOCK) as ours:
        if not ours:
            raise ConfigError(f"{out} is being made by another process; wait for it, or end it")
        try:
            if out.exists():  # finished a moment ago
                raise ConfigError(f"{out} exists; choose another folder or delete it")
            yield stage
        finally:
            if stage.is_dir() and [p.name for p in stage.iterdir()] == [_LOCK]:
                shutil.rmtree(stage)


def clear(stage: Path) -> None:
    """Throw away what the folder holds; it stays ours."""
    for path in stage.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def full(error: BaseException) -> bool:
    """Whether the disk that is written to takes no more."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM
