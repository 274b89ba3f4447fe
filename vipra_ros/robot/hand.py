"""The hand, through franky: one worker thread, because a command takes a second and a read 0.1 s.

Commands are deduplicated and never overlap: the newest wish is taken up when the running command has
ended. The width is cached by the worker; nobody waits for the hand. A hand that falls silent, or whose control
unit was started again, is connected anew; what was wished in between is forgotten. A command it had already been
sent may still be carried out then: that is the hand's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

import franky

#: m/s and N of opening and closing.
SPEED, FORCE = 0.1, 30.0
#: s after which a command is given up and stopped.
TIMEOUT = 3.0
#: s between two looks at the width while nothing moves.
IDLE_PERIOD = 0.5


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
        self._width = float("nan")
        self._look()
        self._worker = threading.Thread(target=self._work, name="hand", daemon=True)
        self._worker.start()

    @property
    def error(self) -> str:
        """What is wrong with the hand and what to do, "" when nothing is."""
        return self._silent or self._failed

    @property
    def width(self) -> float:
        """m, as last seen; NaN before the first look."""
        return self._width

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

    def close(self) -> None:
        """End the worker; a running command is left to the hand."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._worker.join(timeout=self._timeout + 1.0)

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
        self._gripper = None  # the old connection must be closed first
        try:
            self._gripper = self._connect(self._host)
        except Exception:
            return  # the next look fails, and its words stand
        with self._wake:
            self._wanted = self._done = None
        self._failed = ""
        self._look()

    def _run(self, opening: float) -> None:
        self.commands += 1
        try:
            if opening > 0:
                future = self._gripper.move_async(self._open, self._speed)
            else:
                future = self._gripper.grasp_async(0.0, self._speed, self._force, self._open, self._open)
            start = monotonic()
            while not future.wait(0.02):
                self._look()
                if monotonic() - start > self._timeout:
                    self._gripper.stop_async()
                    self._fail(opening, f"hand did not finish in {self._timeout} s; was stopped, look at its fingers")
                    return
            future.get()  # a failed grasp returns False: nothing between the fingers is no error
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

    def _look(self) -> None:
        try:
            if self._gripper is not None:
                self._width = float(self._gripper.width)
                self._silent = ""
        except Exception as error:
            self._silent = f"hand cannot be read: {error}; look at its power and cable, it is tried again"
