"""Recording of episodes: what comes in is kept for a moment, and from `start` on written to disk.

    take (any thread, never waits) -> ring buffer + queue -> run (one thread) -> EpisodeWriter

The ring buffer is the pre-roll: an episode begins some tenths of a second before `start`, with the value
that every latched topic had at that moment. Stamps are times of receipt in ns on the caller's clock.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from vipra_ros.config import param
from vipra_ros.data import disk, relabel
from vipra_ros.data.bags import BagError
from vipra_ros.data.disk import MB
from vipra_ros.data.messages import NS, MessageError
from vipra_ros.data.preroll import Message, PreRoll
from vipra_ros.data.reception import Demands, table
from vipra_ros.data.take import OpenEpisode, Take

#: s between looks at the free space while recording.
LOOK_EVERY = 1.0
#: Share of `min_free` at which a running episode is ended while it can still be finished.
SPACE_LOW = 0.25


@dataclass(frozen=True)
class RecordingSettings:
    """How to record."""

    pre_roll: float = param(0.5, doc="time kept from before the start", unit="s", low=0.0, high=10.0)
    pre_roll_size: int = param(64, doc="largest pre-roll in memory", unit="MB", low=1, high=4000)
    queue_size: int = param(256, doc="most that waits for the disk; beyond it messages are dropped", unit="MB", low=1)
    min_free: int = param(1000, doc="free disk space without which no episode begins", unit="MB", low=0)
    speed_test: int = param(32, doc="written at the start to learn the disk's speed, 0: not at all", unit="MB", low=0)
    compress: bool = param(False, doc="zstd; images do not shrink, joint states do")


class Result(NamedTuple):
    """Whether a command was taken, and a sentence."""

    success: bool
    message: str


class Recorder:
    """State machine of the recording; thread-safe. `run` is for a thread of its own.

    Args:
        root: folder of the episodes, made when absent.
        images, joints, needed: topics an episode needs: streams of images, of joints, latched ones.
        describe: fields of the episode's description beyond success and reception; called by the writing
            thread at the end of an episode with the last message of every latched topic.
        say: takes (severity, text), severity "info", "warning" or "error"; called by the writing thread.
        show: takes the table of what an episode received; called by the writing thread.
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
        show: Callable[[str], None] = lambda text: None,
        changed: Callable[[], None] = lambda: None,
        free: Callable[[Path], int] = disk.free_space,
    ):
        self.root, self.settings, self.demands = Path(root), settings, demands
        self.images, self.joints, self.needed = tuple(images), tuple(joints), tuple(needed)
        self._namespace, self._describe, self._changed = namespace, describe, changed
        self._say, self._show, self._free = say, show, free
        self._lock = threading.Condition()
        self._ring = PreRoll(settings.pre_roll, settings.pre_roll_size * MB)
        self._queue: deque[Message | Callable[[], None]] = deque()
        self._newest = self._queued = self._busy = 0  # ns; bytes that wait; commands that are not done
        self._open: OpenEpisode | None = None
        self._seen: Counter = Counter()  # messages of the episode under way, or of the last one
        self._last: dict[str, Any] = {}
        self._ended: OpenEpisode | None = None  # the last one, while it is not on disk
        self._ending = False
        self._words = ""  # of the episodes to come
        self._speed = 0.0  # bytes/s that the disk takes, 0: not known
        self._take: Take | None = None  # of the writing thread alone
        self.root.mkdir(parents=True, exist_ok=True)

    # --- any thread ----------------------------------------------------------------------------------------

    def take(self, topic: str, msgtype: str, raw: bytes, stamp: int) -> None:
        """A message came in at `stamp`. Never waits for the disk."""
        message = Message(topic, msgtype, stamp, raw)
        with self._lock:
            self._ring.add(message)
            self._newest = stamp
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
            wanted, rate = self.settings.min_free * MB, self._ring.rate
            refused = disk.refusal(self.root, self._free(self.root), wanted, rate, self._speed)
            if refused:
                return Result(False, refused)
            begin, early = self._ring.begin(now)
            self._open = episode = OpenEpisode(self._name(now), now, begin)
            episode.instruction = self._words
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

    def relabel(self, instruction: str) -> Result:
        """Other words for the episode under way, or for the last one when none is; before there is one, and after one
        that was thrown away, for those to come."""
        instruction = instruction.strip()
        if not instruction:
            return Result(False, "no words; say what the demonstration does")
        with self._lock:
            episode, last = self._open, self._last.get("episode") if self._last.get("saved") else None
            if self._ended is not None:  # what is put now is done behind its end
                last = self._ended.name if self._ended.keep else None
            if episode is not None:
                episode.instruction = instruction
                self._put(self._note)
                return Result(True, f"{episode.name} will be {instruction!r}")
            if last is None:
                self._words = instruction
                return Result(True, f"the next episodes will be {instruction!r}")
            self._put(lambda: self._relabel(last, instruction))
        return Result(True, f"{last} becomes {instruction!r}")

    def status(self) -> dict[str, Any]:
        """What an operator wants to know; JSON values."""
        free = self._free(self.root)
        with self._lock:
            episode = self._open
            return {
                "state": "RECORDING" if episode else "SAVING" if self._busy else "IDLE",
                "episode": episode.name if episode else "",
                "counts": dict(self._seen),
                "dropped": sum(episode.drops.values()) if episode else 0,
                "queued_mb": round(self._queued / MB, 1),
                "seconds": round((self._newest - episode.begin) / NS, 1) if episode else 0.0,
                "rate_mb": round(self._ring.rate / MB, 2),
                "free_mb": free // MB,
                "disk_mb": round(self._speed / MB),
                "instruction": episode.instruction if episode else self._words,
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
            self._ended = episode
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
        """Try the disk, then write what comes until `close`."""
        self.try_disk()
        while True:
            with self._lock:
                while not self._queue and not self._ending:
                    self._lock.wait()
                if not self._queue:
                    return
            self.step()

    def try_disk(self) -> None:
        """Learn how much a second the disk takes."""
        if not self.settings.speed_test:
            return
        try:
            speed = disk.write_speed(self.root, self.settings.speed_test * MB)
        except OSError as error:
            self._say("error", f"{self.root}: {error.strerror}; no episode can be written there")
            return
        with self._lock:
            self._speed = speed
        self._say("info", f"{self.root}: {self._free(self.root) // MB} MB free, {speed / MB:.0f} MB/s")

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

    def _begin(self, episode: OpenEpisode) -> None:
        try:
            self._take = Take(self.root, episode, self._namespace, self.settings.compress)
        except (BagError, OSError) as error:
            self._fail(episode.name, error)

    def _write(self, message: Message) -> None:
        take = self._take
        if take is None:
            return
        try:
            take.write(message)
        except (BagError, OSError, MessageError) as error:
            self._fail(take.episode.name, error)
            return
        if abs(message.stamp - take.looked) > LOOK_EVERY * NS:
            take.looked = message.stamp
            self._note()
            free = self._free(self.root)
            if free < SPACE_LOW * self.settings.min_free * MB:
                self.finish(message.stamp, None, f"ended early: {free // MB} MB were free on the disk; label it")

    def _note(self) -> None:
        """Keep what is known beside the open bag, for a repair after a kill."""
        if self._take is None:
            return
        try:
            self._take.note(self._describe(dict(self._take.said)))
        except Exception as error:  # a full disk, most likely: the next message will say so
            self._say("warning", f"{self._take.episode.name}: {error}")

    def _relabel(self, name: str, instruction: str) -> None:
        try:
            meta = relabel.relabel(self.root / name, instruction=instruction)
        except (BagError, OSError) as error:
            self._say("error", str(error))
            return
        with self._lock:
            if self._last.get("episode") == name:
                self._last |= {"flags": meta.get("flags", []), "instruction": instruction}
        self._say("info", f"{name} is {instruction!r} now")

    def _fail(self, name: str, error: Exception) -> None:
        """Writing is not possible: give the episode up, but not what is on disk of it, nor other episodes."""
        take, self._take = self._take, None
        if take is not None:
            take.abandon()
        with self._lock:
            if self._open is not None and self._open.name == name:
                self._open = None
            if self._ended is not None and self._ended.name == name:
                self._ended = None
            self._last = {"episode": name, "saved": False, "flags": [f"episode: lost, {error}"]}
        self._say("error", f"{name} is lost: {error}; what was written: vipra bags repair {self.root}")
        self._changed()

    def _end(self, episode: OpenEpisode) -> None:
        take = self._take
        if take is None:  # it was lost, and that was said
            self._on_disk(episode)
            return
        if not episode.keep:
            self._take = None
            take.discard()
            self._on_disk(episode, {"episode": episode.name, "saved": False, "flags": []})
            self._say("info", f"{episode.name}: thrown away")
            return
        try:
            described = self._describe(dict(take.said))
            meta = take.close(described, self.demands, self.images, self.joints, self.needed)
        except Exception as error:  # the thread must live for the next episode
            self._fail(episode.name, error)
            return
        self._take = None
        told = {k: meta[k] for k in ("instruction", "seconds", "flags", "reception")}
        self._on_disk(episode, {"episode": episode.name, "saved": True, "success": episode.success, **told})
        self._show(table(meta["reception"], meta["flags"]))
        size = sum(r["size"] for r in meta["reception"].values()) / MB
        self._say("info", f"{episode.name}: {meta['seconds']:.1f} s, {size:.1f} MB, success {episode.success}")
        for flag in meta["flags"]:
            self._say("warning", f"{episode.name} is flagged: {flag}")

    def _on_disk(self, episode: OpenEpisode, last: dict[str, Any] | None = None) -> None:
        """The episode's end is done; `last`: what became of it."""
        with self._lock:
            self._last = last or self._last
            if self._ended is episode:
                self._ended = None
