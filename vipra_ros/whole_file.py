"""Files that are there in whole or not at all, whenever the process that writes them ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def in_whole(path: str | Path, *, shared: bool = False, sync: bool = False) -> Iterator[Path]:
    """Where to write instead of `path`: a file beside it, which replaces it when the block has ended.

    Killed in the middle, `path` is what it was before, and the next attempt writes over the remains. After an error
    they are removed.

    Args:
        shared: several processes may write `path` at once; the last one's stays.
        sync: the file is on the disk before it replaces `path`, so that a power cut leaves one of the two.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    try:
        yield beside
        if sync:
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, text: str, *, shared: bool = False, sync: bool = False) -> None:
    """Write `text` (UTF-8) to `path`, as `in_whole` does."""
    with in_whole(path, shared=shared, sync=sync) as beside:
        beside.write_text(text, encoding="utf-8")
