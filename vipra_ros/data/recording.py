"""Recording of episodes: what comes in is kept for a moment, and from `start` on written to disk.

    take (any thread, never waits) -> ring buffer + queue -> run (one thread) -> EpisodeWriter

The ring buffer is the pre-roll: an episode begins some tenths of a second before `start`, with the value
that every latched topic had at that moment. Stamps are times of receipt in ns on the caller's clock.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from vipra_ros.config import param
from vipra_ros.data import messages
from vipra_ros.data.bags import BagError, EpisodeWriter
from vipra_ros.data.messages import NS, MessageError
from vipra_ros.data.reception import Demands, Meter, judge
from vipra_ros.data.topics import latched

MB = 10**6
#: s between looks at the free space while recording.
SPACE_EVERY = 1.0
#: Share of `min_free` at which a running episode is ended while it can still be finished.
SPACE_LOW = 0.25


@dataclass(frozen=True)
class RecordingSettings:
    """How to record."""

    pre_roll: float = param(0.5, doc="time kept from before the start", unit="s", low=0.0, high=10.0)
    pre_roll_size: int = param(64, doc="largest pre-roll in memory", unit="MB", low=1, high=4000)
    queue_size: int = param(256, doc="most that waits for the disk; beyond it messages are dropped", unit="MB", low=1)
    min_free: int = param(1000, doc="free disk space without which no episode begins", unit="MB", low=0)
    compress: bool = param(False, doc="zstd; images do not shrink, joint states do")


class Message(NamedTuple):
    """One message as received; `stamp` in ns, `raw` is CDR."""

    topic: str
    msgtype: str
    stamp: int
    raw: bytes


class Result(NamedTuple):
    """Whether a command was taken, and a sentence."""

    success: bool
    message: str


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

    def _forget(self, now: int) -> None:
        while self._ring and (self._ring[0].stamp < now - self._span or self._size > self._limit):
            self._evict(1)

    def _evict(self, count: int) -> None:
        for _ in range(count):
            old = self._ring.popleft()
            self._size -= len(old.raw)
            if latched(old.topic):
                self._held[old.topic] = old


@dataclass
class _Open:
    """An episode under way: what the taking threads and the writing one share about it."""

    name: str
    start: int  # ns, the call
    begin: int  # ns, first message
    end: int = 0
    success: bool | None = None
    keep: bool = True
    drops: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


class Recorder:
    """State machine of the recording; thread-safe. `run` is for a thread of its own.

    Args:
        root: folder of the episodes, made when absent.
        images, joints, needed: topics an episode needs: streams of images, of joints, latched ones.
        describe: fields of the episode's description beyond success and reception; called by the writing
            thread at the end of an episode with the last message of every latched topic.
        say: takes (severity, text), severity "info", "warning" or "error"; called by the writing thread.
        changed: called by the writing thread when `status` changed.
        free: free bytes on the disk of a folder.
    """

    def __init__(
        self,
        root: Path,
        settings: RecordingSettings,
        demands: Demands,
        *,
        images: Sequence[str] = (),
        joints: Sequence[str] = (),
        needed: Sequence[str] = (),
        namespace: str = "",
        describe: Callable[[dict[str, bytes]], dict[str, Any]] = lambda said: {},
        say: Callable[[str, str], None] = lambda severity, text: None,
        changed: Callable[[], None] = lambda: None,
        free: Callable[[Path], int] = lambda root: shutil.disk_usage(root).free,
    ):
        self.root, self.settings, self.demands = Path(root), settings, demands
        self.images, self.joints, self.needed = tuple(images), tuple(joints), tuple(needed)
        self._namespace, self._describe, self._say, self._changed = namespace, describe, say, changed
        self._free = free
        self._lock = threading.Condition()
        self._ring = PreRoll(settings.pre_roll, settings.pre_roll_size * MB)
        self._queue: deque[Message | Callable[[], None]] = deque()
        self._queued = self._busy = 0  # bytes that wait; commands that are not done
        self._open: _Open | None = None
        self._seen: Counter = Counter()  # messages of the episode under way, or of the last one
        self._last: dict[str, Any] = {}
        self._ending = False
        # Of the writing thread alone:
        self._writer: EpisodeWriter | None = None
        self._meters: dict[str, Meter] = {}
        self._said: dict[str, bytes] = {}
        self._looked = 0
        self.root.mkdir(parents=True, exist_ok=True)

    # --- any thread ----------------------------------------------------------------------------------------

    def take(self, topic: str, msgtype: str, raw: bytes, stamp: int) -> None:
        """A message came in at `stamp`. Never waits for the disk."""
        message = Message(topic, msgtype, stamp, raw)
        with self._lock:
            self._ring.add(message)
            if self._open is None:
                return
            if self._queued + len(raw) > self.settings.queue_size * MB:
                self._open.drops[topic] += 1
                return
            self._put(message)

    def start(self, now: int) -> Result:
        """Begin an episode at `now`, with the pre-roll."""
        with self._lock:
            if self._open is not None:
                return Result(False, f"{self._open.name} is being recorded; end it with success, failure or discard")
            free = self._free(self.root)
            if free < self.settings.min_free * MB:
                return Result(
                    False,
                    f"{free // MB} MB are free at {self.root}, {self.settings.min_free} MB are needed; make room, "
                    "or lower min_free",
                )
            begin, early = self._ring.begin(now)
            self._open = episode = _Open(self._name(now), now, begin)
            self._seen = Counter()
            self._put(lambda: self._begin(episode))
            for message in early:
                self._put(message)
            missing = [t for t in (*self.images, *self.joints, *self.needed) if t not in self._seen]
        return Result(True, f"recording {episode.name}" + f"; nothing yet of {', '.join(missing)}" * bool(missing))

    def finish(self, now: int, success: bool | None, note: str = "") -> Result:
        """End the episode with its label; None when nobody knows. Its report is in `status` when it is on disk."""
        return self._finish(now, success, True, note)

    def discard(self, now: int) -> Result:
        """End the episode and throw it away."""
        return self._finish(now, None, False, "")

    def status(self) -> dict[str, Any]:
        """What an operator wants to know; JSON values."""
        with self._lock:
            episode = self._open
            return {
                "state": "RECORDING" if episode else "SAVING" if self._busy else "IDLE",
                "episode": episode.name if episode else "",
                "counts": dict(self._seen),
                "dropped": sum(episode.drops.values()) if episode else 0,
                "queued_mb": round(self._queued / MB, 1),
                "last": dict(self._last),
            }

    def close(self, now: int) -> None:
        """End: an episode under way is kept, without a label. `run` returns when all is on disk."""
        self.finish(now, None, "ended with the recorder; label it")
        with self._lock:
            self._ending = True
            self._lock.notify()

    def _finish(self, now: int, success: bool | None, keep: bool, note: str) -> Result:
        with self._lock:
            episode, self._open = self._open, None
            if episode is None:
                return Result(False, "nothing is being recorded; call start first")
            episode.end, episode.success, episode.keep = now, success, keep
            episode.notes += [note] * bool(note)
            self._put(lambda: self._end(episode))
            count = sum(self._seen.values())
        what = "is being saved" if keep else "is thrown away"
        return Result(True, f"{episode.name} {what}: {count} messages, {(now - episode.begin) / NS:.1f} s")

    def _put(self, item: Message | Callable[[], None]) -> None:
        self._queue.append(item)
        if isinstance(item, Message):
            self._queued += len(item.raw)
            self._seen[item.topic] += 1
        else:
            self._busy += 1
        self._lock.notify()

    def _name(self, now: int) -> str:
        name = f"{datetime.fromtimestamp(now / NS, timezone.utc):%Y%m%d-%H%M%S}"
        taken = (n for n in range(2, 10**6))
        free = name
        while (self.root / free).exists() or free == self._last.get("episode"):
            free = f"{name}-{next(taken)}"
        return free

    # --- the writing thread --------------------------------------------------------------------------------

    def run(self) -> None:
        """Write what comes until `close`."""
        while True:
            with self._lock:
                while not self._queue and not self._ending:
                    self._lock.wait()
                if not self._queue:
                    return
            self.step()

    def step(self) -> None:
        """Write what waits now."""
        while True:
            with self._lock:
                if not self._queue:
                    return
                item = self._queue.popleft()
                if isinstance(item, Message):
                    self._queued -= len(item.raw)
            if isinstance(item, Message):
                self._write(item)
                continue
            item()
            with self._lock:
                self._busy -= 1
            self._changed()

    def _begin(self, episode: _Open) -> None:
        self._meters, self._said, self._looked = {}, {}, episode.begin
        try:
            self._writer = EpisodeWriter(
                self.root, episode.name, namespace=self._namespace, compress=self.settings.compress
            )
        except (BagError, OSError) as error:
            self._fail(episode.name, error)

    def _write(self, message: Message) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(message.topic, message.msgtype, message.raw, message.stamp)
            stamped = messages.header_stamp(message.raw) if messages.has_header(message.msgtype) else 0
        except (BagError, OSError, MessageError) as error:
            self._fail(self._writer.path.name, error)
            return
        if message.topic not in self._meters:
            self._meters[message.topic] = Meter()
        self._meters[message.topic].note(message.stamp, stamped, len(message.raw))
        if latched(message.topic):
            self._said[message.topic] = message.raw
        if message.stamp - self._looked > SPACE_EVERY * NS:
            self._looked = message.stamp
            free = self._free(self.root)
            if free < SPACE_LOW * self.settings.min_free * MB:
                self.finish(message.stamp, None, f"ended early: {free // MB} MB were free on the disk; label it")

    def _fail(self, name: str, error: Exception) -> None:
        """Writing is not possible: give the episode up, but not what is on disk of it, nor other episodes."""
        self._writer = None
        with self._lock:
            if self._open is not None and self._open.name == name:
                self._open = None
            self._last = {"episode": name, "saved": False, "flags": [f"episode: lost, {error}"]}
        self._say("error", f"{name} is lost: {error}; what was written is in {self.root / '.partial'}")
        self._changed()

    def _end(self, episode: _Open) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if not episode.keep:
            writer.discard()
            with self._lock:
                self._last = {"episode": episode.name, "saved": False, "flags": []}
            self._say("info", f"{episode.name}: thrown away")
            return
        receptions = {t: m.reception(episode.start, episode.end) for t, m in sorted(self._meters.items())}
        seconds = (episode.end - episode.begin) / NS
        flags = judge(receptions, self.images, self.joints, self.needed, seconds, self.demands)
        flags += [f"{t}: {n} messages dropped, the disk was too slow" for t, n in sorted(episode.drops.items())]
        flags += [f"episode: {note}" for note in episode.notes]
        report = {t: r.as_dict() for t, r in receptions.items()}
        try:
            meta = {"instruction": "", **self._describe(dict(self._said)), "success": episode.success}
            if not meta["instruction"]:
                flags.append("episode: no instruction; publish policy/instruction, or relabel it")
            meta |= {"seconds": round(seconds, 3), "good": not flags, "flags": flags, "reception": report}
            if episode.success is None:
                del meta["success"]  # the converter flags what has no label
            writer.close(meta)
        except Exception as error:  # the thread must live for the next episode
            self._fail(episode.name, error)
            return
        with self._lock:
            self._last = {"episode": episode.name, "saved": True, "success": episode.success, "flags": flags,
                          "reception": report}
        size = sum(r.size for r in receptions.values()) / MB
        self._say("info", f"{episode.name}: {seconds:.1f} s, {size:.1f} MB, success {episode.success}")
        for topic, r in receptions.items():
            self._say("info", f"  {topic}: {r.received} of {r.expected}, {r.rate:.1f} Hz, widest gap {r.gap:.3f} s")
        for flag in flags:
            self._say("warning", f"{episode.name} is flagged: {flag}")
