"""Hold-to-run: held only as long as the browser keeps proving that it is there, with answers younger than a moment.

Every answer carries the time; the next renewal brings it back. So renewals that a network kept and delivers late,
all at once, hold nothing: what counts is when the answer that they prove was given, not when they arrive.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable

#: s that one proof holds. A page renews every 0.1 s; a lost packet on a good wireless network costs 0.2 s.
PROOF = 0.4
#: Hz of executor/deadman while held.
RATE = 20.0


class DeadMan:
    """One button, held by one page at a time.

    Args:
        now: s, monotonic.
        proof: s that one proof holds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, proof: float = PROOF):
        self._now, self._proof, self._lock = now, proof, threading.Lock()
        self._holder, self._until = "", -math.inf

    @property
    def held(self) -> bool:
        """Whether it is held at this moment."""
        with self._lock:
            return self._now() <= self._until

    def press(self) -> tuple[str, float]:
        """A page begins to press: its name and first ticket; nothing is held before the first renewal.

        Raises:
            PermissionError: another page holds it.
        """
        with self._lock:
            now = self._now()
            if now <= self._until:
                raise PermissionError("another page holds it")
            self._holder, self._until = secrets.token_urlsafe(9), -math.inf
            return self._holder, now

    def renew(self, holder: str, ticket: float) -> float:
        """Hold until `proof` s after `ticket` was given; the next ticket.

        Raises:
            PermissionError: released meanwhile, or the ticket is too old.
        """
        with self._lock:
            now = self._now()
            if not holder or holder != self._holder:
                raise PermissionError("released; press again")
            if not 0.0 <= now - ticket <= self._proof:
                self._holder, self._until = "", -math.inf
                raise PermissionError(f"the network took {now - ticket:.1f} s; press again")
            self._until = ticket + self._proof
            return now

    def release(self, holder: str = "") -> None:
        """Let go; without a name whoever holds it."""
        with self._lock:
            if holder in ("", self._holder):
                self._holder, self._until = "", -math.inf


class Pulse:
    """Calls `beat` at `RATE` in a thread of its own while the dead-man is held; silence otherwise."""

    def __init__(self, deadman: DeadMan, beat: Callable[[], None]):
        self._deadman, self._beat = deadman, beat
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dead-man", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._deadman.release()
        self._ending.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._ending.wait(1.0 / RATE):
            if self._deadman.held:
                self._beat()
