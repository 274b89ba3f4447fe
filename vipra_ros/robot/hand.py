"""The hand, through franky: one worker thread, because a command takes a second and a read 0.1 s.

Commands are deduplicated and never overlap: the newest wish is taken up when the running command has
ended. The width is cached by the worker; nobody waits for the hand. A hand that falls silent, or whose control
unit was started again, is connected anew; what was wished in between is forgotten, and `forgot` says so. A command
it had already been sent may still be carried out then: that is the hand's.

A command that does not end stays franky's: whatever is begun behind it, a stop too, waits for it, and letting go of the
connection does so with the interpreter's lock held. So a hand that is at one is given no other, and not connected anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import franky

#: m/s and N of opening and closing.
SPEED, FORCE = 0.1, 30.0
#: s after which a command is given up and stopped.
TIMEOUT = 3.0
#: s between two looks at the width while nothing moves.
IDLE_PERIOD = 0.5
#: s after which a width that could not be read again is none.
STALE = 2.0


class FrankyHand:
    """Opening +1, closing -1 with a grasp that accepts any object.

    Args:
        host: address of the control unit.
        width: of the open hand, m.
        speed, force: of the fingers, m/s and N.
        connect: makes the gripper; for tests of a hand that hangs.
    """

    def __init__(
        self,
        host: str,
        width: float,
        speed: float = SPEED,
        force: float = FORCE,
        timeout: float = TIMEOUT,
        connect: Callable[[str], franky.Gripper] = franky.Gripper,
    ):
        self._connect, self._host = connect, host
        self._gripper = connect(host)
        self._open, self._speed, self._force, self._timeout = width, speed, force, timeout
        self._wanted: float | None = None
        self._done: float | None = None
        self._wake, self._closing = threading.Condition(), False
        self._failed = self._silent = ""  # how the last command, and the last look at the width, went wrong
        self.commands = 0  # sent to the hand, after deduplication
        self._pending: Any = None  # the future of a command that was given up
        self._forgot = False
        self._width, self._seen = float("nan"), -math.inf
        self._look()
        self._worker = threading.Thread(target=self._work, name="hand", daemon=True)
        self._worker.start()

    @property
    def error(self) -> str:
        """What is wrong with the hand and what to do, "" when nothing is."""
        return self._silent or self._failed

    @property
    def width(self) -> float:
        """m, as seen a moment ago, else NaN."""
        return self._width if monotonic() - self._seen < STALE else float("nan")

    def command(self, opening: float) -> None:
        """Wish for +1 (open) or -1 (closed); returns at once."""
        with self._wake:
            self._wanted = 1.0 if opening > 0 else -1.0
            self._wake.notify()

    def cancel(self) -> float:
        """Withdraw a wish that waits for the running command; the opening that was last begun, NaN for none."""
        with self._wake:
            self._wanted = self._done
            return float("nan") if self._done is None else self._done

    def forgot(self) -> bool:
        """Whether a wish was forgotten since this was asked last."""
        with self._wake:
            forgot, self._forgot = self._forgot, False
            return forgot

    def close(self) -> None:
        """End the worker; a running command is left to the hand."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._worker.join(timeout=1.0)

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._wanted != self._done, timeout=IDLE_PERIOD)
                if self._closing:
                    return
                wanted, begins = self._wanted, self._wanted != self._done
                self._done = wanted
            if begins and self._gripper is not None:
                self._run(wanted)
            self._look()
            if self._silent:
                self._again()

    def _again(self) -> None:
        """Connect anew; blocks, in the worker's thread, as long as the hand takes the connection but says nothing."""
        if self._busy():
            return
        self._gripper = None  # the old connection must be closed first
        try:
            self._gripper = self._connect(self._host)
        except Exception:
            return  # the next look fails, and its words stand
        with self._wake:
            self._forgot |= self._wanted is not None
            self._wanted = self._done = None
        self._failed = ""
        self._look()

    def _run(self, opening: float) -> None:
        if self._busy():
            self._fail(opening, "hand is still at a command that it did not finish; look at its fingers and its power")
            return
        self.commands += 1
        try:
            if opening > 0:
                future = self._gripper.move_async(self._open, self._speed)
            else:
                future = self._gripper.grasp_async(0.0, self._speed, self._force, self._open, self._open)
            start = monotonic()
            while not future.wait(0.02):
                self._look()
                if self._closing:
                    self._give_up(future)
                    return
                if monotonic() - start > self._timeout:
                    self._fail(opening, f"hand did not finish in {self._timeout} s; was stopped, look at its fingers")
                    self._give_up(future)
                    threading.Thread(target=self._stop, args=(self._gripper,), name="hand stop", daemon=True).start()
                    return
            # A failed grasp returns False, too: nothing between the fingers is no error.
            if not future.get() and opening > 0:
                self._fail(opening, "hand did not open; look at its fingers")
                return
            self._failed = ""
        except Exception as error:
            self._fail(opening, f"hand: {error}; home it in Desk")

    def _fail(self, opening: float, text: str) -> None:
        """It was not done: the same wish is one to try once it is made again, after a stop and `executor/reset`."""
        self._failed = text
        with self._wake:
            self._done = None
            if self._wanted == opening:
                self._wanted = None

    def _busy(self) -> bool:
        """Whether a command that was given up is still under way."""
        if self._pending is not None and self._pending.wait(0.0):
            self._pending = None
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._gripper))
        return self._pending is not None

    def _give_up(self, future: Any) -> None:
        """Leave a command to the hand, and the connection with it, even at this program's end."""
        self._pending = future
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._gripper))

    @staticmethod
    def _stop(gripper: franky.Gripper) -> None:
        with contextlib.suppress(Exception):  # what is wrong stands in `error`
            gripper.stop()  # not `stop_async`, which waits for the command that it is to stop

    def _look(self) -> None:
        try:
            if self._gripper is not None:
                self._width = float(self._gripper.width)
                self._silent, self._seen = "", monotonic()
        except Exception as error:
            self._silent = f"hand cannot be read: {error}; look at its power and cable, it is tried again"
