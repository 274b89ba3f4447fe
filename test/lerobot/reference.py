"""Episodes, their data set, and what it must hold, worked out from the bags by other means than the converter's.

`reference.py OUT` runs in the project's venv, `compare.py OUT` in lerobot's.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from vipra_ros.data import messages as m
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.convert import convert
from vipra_ros.data.dataset import Dataset
from vipra_ros.sim.collect import collect

OPEN_WIDTH = 0.08  # m


def main(out: Path) -> None:
    collect(out / "bags", ["reach", "lift"], episodes=3, seed=20)
    convert([out / "bags"], out / "dataset", fps=15.0)
    d = Dataset(out / "dataset")
    for e in d.episodes:
        rows = slice(e.start, e.start + e.length)
        stamps = d.numeric("stamp_ns")[rows, 0]
        seen = {c: d.numeric(f"stamp_ns.{c}")[rows, 0] for c in d.cameras}
        np.savez(out / f"episode{e.index}.npz", task=e.task, **expected(out / "bags" / e.source, stamps, seen, d.fps))


def expected(bag: Path, stamps: np.ndarray, seen: dict[str, np.ndarray], fps: float) -> dict[str, np.ndarray]:
    """State and action at `stamps` (ns), and the pictures with the stamps `seen`, straight from the messages."""
    joints, commands, hand, pictures = [], [], [], {}
    with EpisodeReader(bag) as reader:
        for topic, msgtype, stamp, raw in reader.messages():
            if topic == "joint_states":
                joints.append((m.header_stamp(raw), m.deserialize(raw, msgtype).position))
            elif topic == "executor/joint_command":
                commands.append((m.header_stamp(raw), m.deserialize(raw, msgtype).position))
            elif topic == "executor/gripper_command":
                hand.append((stamp, m.deserialize(raw, msgtype).data))
            elif topic.endswith("compressed"):
                message = m.deserialize(raw, msgtype)
                pictures[topic.split("/")[1], m.header_stamp(raw)] = cv2.imdecode(message.data, cv2.IMREAD_COLOR)

    def at(stream, when):
        time = np.array([t for t, _ in stream]) - stamps[0]
        value = np.array([v for _, v in stream])
        return np.stack([np.interp(when - stamps[0], time, column) for column in value.T], axis=1)

    state, later = at(joints, stamps), stamps + round(1e9 / fps)
    opening = np.clip(2 * state[:, 7:] / OPEN_WIDTH * 2 - 1, -1, 1)
    grip = [[v for t, v in hand if t <= when + 1000][-1] for when in later]
    return {
        "observation.state": np.hstack([state[:, :7], opening]),
        "action": np.column_stack([at(commands, later), grip]),
        **{f"observation.images.{c}": np.stack([pictures[c, s][..., ::-1] for s in seen[c]]) for c in seen},
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
