"""One episode on its way to the disk: its writer, what was received so far, and its description at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vipra_ros.data import messages
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.messages import NS
from vipra_ros.data.preroll import Message
from vipra_ros.data.reception import Demands, Meter, judge
from vipra_ros.data.topics import latched

#: s; receipts of several threads are milliseconds apart, a clock that was set is further.
CLOCK_STEP = 0.1


@dataclass
class OpenEpisode:
    """What the operator said about an episode; times in ns, time of receipt."""

    name: str
    start: int  # the call
    begin: int  # first message
    end: int = 0
    success: bool | None = None
    instruction: str = ""  # given after the start; wins over what was heard
    keep: bool = True
    drops: Counter = field(default_factory=Counter)  # topic -> messages the disk was too slow for
    notes: list[str] = field(default_factory=list)


class Take:
    """Writes an episode and counts what it holds; for one thread.

    Attributes:
        said: last message of every latched topic.
        looked: ns, when disk and notes were last looked after.
    """

    def __init__(self, root: Path, episode: OpenEpisode, namespace: str, compress: bool):
        self.episode, self.said, self.looked = episode, {}, episode.begin
        self._namespace = namespace
        self._meters: dict[str, Meter] = {}
        self._newest = 0  # ns
        self._writer = EpisodeWriter(root, episode.name, namespace=namespace, compress=compress)

    def write(self, message: Message) -> None:
        """Append a message.

        Raises:
            BagError, OSError, MessageError: it cannot be written, or is not what it is said to be.
        """
        self._writer.write(message.topic, message.msgtype, message.raw, message.stamp)
        if self._newest - message.stamp > CLOCK_STEP * NS:
            back = (self._newest - message.stamp) / NS
            self.episode.notes.append(f"the clock went back by {back:.2f} s; record it again")
        self._newest = message.stamp
        stamped = messages.header_stamp(message.raw) if messages.has_header(message.msgtype) else 0
        if message.topic not in self._meters:
            self._meters[message.topic] = Meter()
        self._meters[message.topic].note(message.stamp, stamped, len(message.raw))
        if latched(message.topic):
            self.said[message.topic] = message.raw

    def note(self, described: dict[str, Any]) -> None:
        """Lay down what is known by now, for a repair after a kill."""
        self._writer.note(described | self._words() | {"namespace": self._namespace})

    def close(self, described: dict[str, Any], demands: Demands, images, joints, needed) -> dict[str, Any]:
        """Finish the episode; its description.

        Args:
            described: what the recording program knows about it.
            images, joints, needed: as in `reception.judge`.

        Raises:
            BagError, OSError: the episode cannot be finished; it is left to a repair.
        """
        e = self.episode
        receptions = {t: m.reception(e.start, e.end) for t, m in sorted(self._meters.items())}
        seconds = (e.end - e.begin) / NS
        flags = judge(receptions, images, joints, needed, seconds, demands)
        flags += [f"{t}: {n} messages dropped, the disk was too slow" for t, n in sorted(e.drops.items())]
        flags += [f"episode: {note}" for note in e.notes]
        meta = {"instruction": "", **described, **self._words()}
        if not meta["instruction"]:
            flags.append("episode: no instruction; publish policy/instruction, or relabel it")
        if e.success is not None:  # the converter flags what has no label
            meta["success"] = e.success
        report = {t: r.as_dict() for t, r in receptions.items()}
        meta |= {"seconds": round(seconds, 3), "good": not flags, "flags": flags, "reception": report}
        self._writer.close(meta)
        return meta

    def discard(self) -> None:
        """Throw the episode away."""
        self._writer.discard()

    def abandon(self) -> None:
        """Write nothing more; what is on disk is left to a repair."""
        self._writer.abandon()

    def _words(self) -> dict[str, str]:
        return {"instruction": self.episode.instruction} if self.episode.instruction else {}
