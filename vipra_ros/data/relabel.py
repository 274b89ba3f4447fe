"""Another instruction or label for a finished episode."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from vipra_ros.data import messages
from vipra_ros.data.bags import META_TOPIC, PARTIAL, BagError, EpisodeReader
from vipra_ros.data.rawbag import RawBag, take_place

#: Beginnings and ends of flags that a new label answers.
_NO_WORDS, _NO_LABEL = "episode: no instruction", "label it"


def relabel(path: Path, instruction: str | None = None, success: bool | None = None) -> dict[str, Any]:
    """Write the bag at `path` anew with another description; what is not given stays. Returns the description.

    Safe against a kill at any moment: the messages are copied beside, then take their place.

    Raises:
        BagError: not a bag of one MCAP file, or damaged.
        OSError: no room for the copy.
    """
    path = Path(path)
    with EpisodeReader(path) as reader:
        if not (path / f"{path.name}.mcap").exists():
            raise BagError(f"{path}: only bags of one MCAP file named after their folder can be relabelled")
        meta = _described(reader)
        old = {k: meta.get(k) for k in ("instruction", "success")}
        flags = list(meta.get("flags", []))
        if instruction is not None:
            meta["instruction"] = instruction
            flags = [f for f in flags if not f.startswith(_NO_WORDS)]
        if success is not None:
            meta["success"] = success
            flags = [f for f in flags if not f.endswith(_NO_LABEL)]
        if "flags" in meta:
            meta |= {"flags": flags, "good": not flags}
        meta["relabelled"] = [*meta.get("relabelled", []), old]
        new = path.parent / PARTIAL / f"relabel-{path.name}" / path.name
        shutil.rmtree(new.parent, ignore_errors=True)  # of an attempt that was killed
        new.parent.mkdir(parents=True)
        try:
            bag, prefix = RawBag(new, compress=reader.compressed), "/"
            for connection, stamp, raw in reader.raw():
                if connection.topic.endswith("/" + META_TOPIC):
                    prefix = connection.topic.removesuffix(META_TOPIC)
                    continue
                bag.write(connection.topic, connection.msgtype, stamp, raw, connection.msgdef.data,
                          connection.ext.offered_qos_profiles)
            bag.close(meta, prefix)
            take_place(new, path)
        finally:
            shutil.rmtree(new.parent, ignore_errors=True)
            try:
                new.parent.parent.rmdir()
            except OSError:  # something is being recorded
                pass
    return meta


def _described(reader: EpisodeReader) -> dict[str, Any]:
    """The description; where metadata.yaml has lost it the last one of its topic that can be read, in any namespace."""
    with contextlib.suppress(BagError):  # a damaged description is what a new one is for
        if meta := reader.meta():
            return meta
    meta = {}
    for connection, _, raw in reader.raw():
        if connection.topic.endswith("/" + META_TOPIC):
            with contextlib.suppress(messages.MessageError):
                meta = messages.read_json(raw)
    return meta


def main(bag: str, instruction: str | None, success: str | None) -> None:
    """The command `vipra bags relabel`."""
    if instruction is None and success is None:
        raise BagError("nothing to change; give --instruction TEXT or --success yes|no")
    meta = relabel(Path(bag), instruction, {"yes": True, "no": False, None: None}[success])
    print(f"{Path(bag).name}: {meta.get('instruction', '')!r}, success {meta.get('success')}")
