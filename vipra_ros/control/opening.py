"""A gripper that is not a servo: hysteresis and a least time between two changes."""

from __future__ import annotations

import math


class Opening:
    """The last command given to the hand.

    Args:
        threshold: the hand opens above it and closes below its negative; between, nothing changes.
        dwell: s between two changes; a wish that lasts is granted when it is over.
    """

    def __init__(self, threshold: float, dwell: float):
        self.threshold, self.dwell = threshold, dwell
        self.forget()

    def forget(self) -> None:
        """The next clear wish is a change, whatever it is."""
        self.value, self._since = math.nan, -math.inf

    def settle(self, value: float) -> None:
        """What the hand was told last, NaN for nothing: a change that it did not come to is taken back."""
        if value != self.value and not math.isnan(self.value):
            self.value, self._since = value, -math.inf

    def set(self, now: float, value: float) -> None:
        """An operator's wish, +1 or -1: at once, whatever was before."""
        self.value, self._since = value, now

    def changes(self, now: float, wish: float) -> bool:
        """Take the wish in [-1, 1]; True when :attr:`value` (+1 open, -1 closed) became another."""
        wanted = 1.0 if wish > self.threshold else -1.0 if wish < -self.threshold else self.value
        if math.isnan(wanted) or wanted == self.value or now - self._since < self.dwell:
            return False
        self.value, self._since = wanted, now
        return True
