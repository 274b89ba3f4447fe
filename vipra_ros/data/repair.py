"""Episodes that a recorder did not finish, made readable: `vipra bags repair FOLDER`.

A recorder that was killed, or whose disk was full, leaves its bag in `.partial` without index and metadata. What
is in it becomes an episode of its own, flagged and without a label. So does a bag of any other MCAP writer that was
cut; the damaged original of such a bag stays where it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from vipra_ros.data import messages
from vipra_ros.data.bags import META_TOPIC, NOTES, PARTIAL, BagError, EpisodeReader, find_bags
from vipra_ros.data.messages import NS, MessageError
from vipra_ros.data.rawbag import RawBag
from vipra_ros.data.reception import Meter
from vipra_ros.data.salvage import Salvage
from vipra_ros.whole_file import write_whole

WORDS = "policy/instruction"
#: Beside an unfinished bag: the name of the episode that was made of it.
DONE = "repaired_as"


@dataclass(frozen=True)
class Repaired:
    """What became of one unfinished bag.

    Attributes:
        path: the readable bag, None when there is none. text: what happened, one line.
        count, seconds: messages in it and the time between the first and the last.
    """

    source: Path
    path: Path | None
    text: str
    count: int = 0
    seconds: float = 0.0


def repair(folder: Path) -> Iterator[Repaired]:
    """Repair what is unfinished or cut in `folder` (of episodes, or one bag), one after the other.

    Raises:
        BagError: no such folder.
    """
    folder = Path(folder)
    for bag in find_bags([folder]):
        files = [bag] if bag.suffix == ".mcap" and bag.is_file() else sorted(bag.glob("*.mcap"), key=_natural)
        name = f"{bag.stem if bag.is_file() else bag.name}-repaired"
        if _readable(bag) or (bag.parent / name).exists():
            continue
        if not files:  # sqlite3
            yield Repaired(bag, None, "is no MCAP bag; `ros2 bag reindex -s sqlite3` makes its metadata anew")
            continue
        yield _restore(files, bag.parent, name, keep=True)
    for stage in sorted((folder / PARTIAL).glob("*")):
        if stage.name.startswith("repair-") and not Path("/proc", stage.name.removeprefix("repair-")).exists():
            _clear(stage)  # of a repair that was killed
        if stage.name.startswith(("relabel-", "repair-")):
            continue  # a copy of an episode; the next relabel clears its own away
        for file in sorted(stage.glob("*/*.mcap")):
            yield _restore([file], folder, file.parent.name, keep=False)


def forget(folder: Path, names: Collection[str]) -> None:
    """Throw away what killed writers have left of the episodes `names` in `folder`, which are to be recorded anew."""
    for bag in (Path(folder) / PARTIAL).glob("[0-9]*/*"):
        if bag.name in names and not any(map(_in_use, bag.glob("*.mcap"))):
            shutil.rmtree(bag)
            _clear(bag.parent)


def _natural(file: Path) -> list:
    """The tenth file of a bag comes behind the second."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]


def _restore(files: list[Path], root: Path, name: str, keep: bool) -> Repaired:
    file = files[0]
    if any(map(_in_use, files)):
        return Repaired(file.parent, None, "is being written; nothing to repair")
    there = _made_of(file.parent.parent, root) if not keep else None
    if there is not None:  # a repair was killed before it tidied up
        shutil.rmtree(file.parent)
        _clear(file.parent.parent)
        return Repaired(file.parent, there, "was repaired before", *_extent(there))
    target = _free_name(root, name)
    if not keep and _readable(file.parent):  # complete: only the last rename is missing
        count, seconds = _extent(file.parent)
        os.rename(file.parent, target)
        _clear(file.parent.parent)
        return Repaired(file.parent, target, "was complete", count, seconds)
    new = root / PARTIAL / f"repair-{os.getpid()}" / target.name
    shutil.rmtree(new.parent, ignore_errors=True)
    new.parent.mkdir(parents=True)
    try:
        return _rewrite(files, new, target, keep)
    except OSError as error:
        return Repaired(file.parent, None, f"{error.strerror}; the copy needs room")
    finally:
        _clear(new.parent)


def _rewrite(files: list[Path], new: Path, target: Path, keep: bool) -> Repaired:
    """Copy what can be read of a bag's `files` into the bag `new`, describe it, and give it its name."""
    file, parts, notes = files[0], [Salvage(f) for f in files], _notes(files[0])
    namespace = str(notes.pop("namespace", "")).strip("/")
    prefix = f"/{namespace}/" if namespace else "/"
    meters: dict[str, Meter] = {}
    words, described, first = "", None, 0
    bag, count = RawBag(new, compress=False), 0
    for channel, stamp, raw in chain.from_iterable(part.messages() for part in parts):
        name = channel.topic.removeprefix(prefix)
        if name == META_TOPIC:
            with contextlib.suppress(MessageError):
                described = messages.read_json(raw)  # the operator had ended the episode
            continue
        if name == WORDS:
            with contextlib.suppress(MessageError):
                words = messages.read_string(raw)
        bag.write(channel.topic, channel.msgtype, stamp, raw, channel.definition, channel.qos)
        meters.setdefault(name, Meter()).note(stamp, _stamped(channel.msgtype, raw), len(raw))
        first, count = min(first or stamp, stamp), count + 1
    reason, missing = next((p.reason for p in parts if p.reason), ""), sum(p.size - p.read for p in parts)
    if not count:
        bag.abort()
        return Repaired(file.parent, None, f"holds no message ({reason}); delete it")
    seconds = (bag.last - first) / NS
    meta = described or {"instruction": words, **notes}
    meta["instruction"] = meta.get("instruction") or words
    if described is None:
        lost = f", {missing} bytes were lost" if missing > 0 else ""
        flags = [f"episode: repaired, {reason or 'it was never ended'}{lost}; label it"]
        flags += ["episode: no instruction; relabel it"] * (not meta["instruction"])
        report = {t: m.reception(first, bag.last).as_dict() for t, m in sorted(meters.items())}
        meta |= {"seconds": round(seconds, 3), "good": False, "flags": flags, "reception": report}
    meta["repaired"] = True
    bag.close(meta, prefix)
    if not keep:
        write_whole(file.parent.parent / DONE, target.name)
    os.rename(new, target)
    if not keep:
        shutil.rmtree(file.parent)
        _clear(file.parent.parent)
    return Repaired(file.parent, target, reason or "was never ended", count, seconds)


def _readable(bag: Path) -> bool:
    """Whether the bag has its end: metadata, footer and index."""
    try:
        with EpisodeReader(bag):
            return True
    except BagError:
        return False


def _made_of(stage: Path, root: Path) -> Path | None:
    """The episode that was made of what the stage holds, if there is one."""
    with contextlib.suppress(OSError, BagError):
        there = root / (stage / DONE).read_text(encoding="utf-8")
        with EpisodeReader(there) as reader:
            return there if reader.meta().get("repaired") else None
    return None


def _extent(bag: Path) -> tuple[int, float]:
    with EpisodeReader(bag) as reader:
        return sum(reader.counts.values()), reader.duration


def _in_use(file: Path) -> bool:
    """Whether a recorder holds its lock on the file."""
    with file.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a disk without locks
            pass
    return False


def _notes(file: Path) -> dict[str, Any]:
    """What the recorder had laid down about the episode."""
    try:
        return messages.json_object((file.parent.parent / NOTES).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, MessageError):
        return {}


def _stamped(msgtype: str, raw: bytes) -> int:
    try:
        return messages.header_stamp(raw) if messages.has_header(msgtype) else 0
    except (KeyError, MessageError):  # a type of somebody else
        return 0


def _free_name(root: Path, name: str) -> Path:
    number, path = 1, root / name
    while path.exists():
        number += 1
        path = root / f"{name}-{number}"
    return path


def _clear(stage: Path) -> None:
    """Remove a stage whose bag has gone, and `.partial` when it was the last."""
    if stage.name.startswith("repair-"):
        shutil.rmtree(stage, ignore_errors=True)
    elif stage.is_dir():
        for name in (NOTES, DONE):
            (stage / name).unlink(missing_ok=True)
    for folder in (stage, stage.parent):
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone
            pass


def main(folder: str) -> int:
    """The command `vipra bags repair`; 1 when something could not be repaired."""
    bad = done = 0
    for one in repair(Path(folder)):
        done += 1
        if one.path is None:
            bad += "being written" not in one.text
            print(f"{one.source}: {one.text}")
        else:
            print(f"{one.path}: {one.count} messages, {one.seconds:.1f} s ({one.text})")
    if not done:
        print(f"{folder}: nothing to repair")
    return int(bad > 0)
