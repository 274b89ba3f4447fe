"""A lock of one process on a file. It ends with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: str | Path, wait: bool = False) -> Iterator[bool]:
    """Whether the lock on `path`, which is made where it is missing, is ours for the length of a `with`; it is once
    nobody else has it, where we `wait`."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file)  # and the lock with it
