"""The moment before an episode: messages of the last tenths of a second, and what latched topics said."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from vipra_ros.data.messages import NS
from vipra_ros.data.topics import latched


class Message(NamedTuple):
    """One message as received; `stamp` in ns, `raw` is CDR."""

    topic: str
    msgtype: str
    stamp: int
    raw: bytes


class PreRoll:
    """The last `seconds` of all messages, and what latched topics said before.

    Args:
        seconds: time kept. size: bytes kept at most; then the oldest go first.
    """

    def __init__(self, seconds: float, size: int):
        self._span, self._limit, self._size = round(seconds * NS), size, 0
        self._ring: deque[Message] = deque()
        self._held: dict[str, Message] = {}

    def add(self, message: Message) -> None:
        """Keep a message. A clock that jumped back by more than the window empties the ring."""
        if self._ring and message.stamp < self._ring[-1].stamp - self._span:
            self._evict(len(self._ring))
        self._ring.append(message)
        self._size += len(message.raw)
        self._forget(message.stamp)

    def begin(self, now: int) -> tuple[int, list[Message]]:
        """Stamp at which an episode started `now` begins, and its messages: the latched values in force first."""
        self._forget(now)
        first = min([now, *(m.stamp for m in self._ring)])
        return first, [m._replace(stamp=first) for m in self._held.values()] + list(self._ring)

    @property
    def rate(self) -> float:
        """Bytes a second that came in of late; 0 while less than a tenth of a second is known."""
        seconds = (self._ring[-1].stamp - self._ring[0].stamp) / NS if self._ring else 0.0
        return self._size / seconds if seconds > 0.1 else 0.0

    def _forget(self, now: int) -> None:
        while self._ring and (self._ring[0].stamp < now - self._span or self._size > self._limit):
            self._evict(1)

    def _evict(self, count: int) -> None:
        for _ in range(count):
            old = self._ring.popleft()
            self._size -= len(old.raw)
            if latched(old.topic):
                self._held[old.topic] = old
