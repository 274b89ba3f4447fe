"""A recorded episode as chunks in real time: the same commands, through the same executor.

Row r of a replay is what the arm was commanded to be at `begin + (r + 1) / fps` of the recording, and is due
at `start + (r + 1) / fps` of the replay: the convention of `control.chunk.ActionChunk`, with `start` as the
stamp of the first chunk. Behind its end an episode stands still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.data.bags import EpisodeReader, robots_in
from vipra_ros.data.dataset import Dataset, DatasetError
from vipra_ros.data.episode import load_commands
from vipra_ros.data.resample import EpisodeError, Resampling, Track, hold, interpolate


@dataclass(frozen=True)
class Replay:
    """Commands of one episode.

    Attributes:
        name, instruction: of the episode.
        joint_names: order of the joint columns.
        rows: float64 (N, J + 1), rad and gripper (+1 open, -1 closed), one every `period` s.
        first: float64 (J,), rad, the command at the beginning: where the arm has to be.
        recorded: the commands as recorded, `recorded.time` in s from the beginning.
    """

    name: str
    instruction: str
    joint_names: tuple[str, ...]
    period: float
    rows: np.ndarray
    first: np.ndarray
    recorded: Track

    @property
    def duration(self) -> float:
        """s from the start to the last row."""
        return len(self.rows) * self.period

    def chunk(self, first: int, execute: int, lookahead: int, start: float, **identity) -> ActionChunk:
        """Rows `first` and following as a chunk, for an episode that starts at `start` (s).

        Args:
            execute, lookahead: rows of each; behind the end the last row is repeated.
            identity: chunk_id, policy_id, epoch, checkpoint and the like.
        """
        rows = self.rows[np.minimum(np.arange(first, first + execute + lookahead), len(self.rows) - 1)]
        return ActionChunk(
            stamp=start + first * self.period,
            step_period=self.period,
            actions=rows[:execute],
            lookahead=rows[execute:],
            joint_names=self.joint_names,
            instruction=self.instruction,
            **identity,
        )

    def distance(self, names: Sequence[str], q: Sequence[float]) -> tuple[float, str]:
        """rad from the joints `q` (named `names`) to the beginning, and the joint that is furthest.

        Raises:
            EpisodeError: a joint of the episode is not among `names`: another robot.
        """
        at = dict(zip(names, q))
        missing = [n for n in self.joint_names if n not in at]
        if missing:
            raise EpisodeError(
                f"{self.name}: the robot has no joint {missing[0]!r}, it has {', '.join(names)}; "
                "replay the episode on the kind of arm it was recorded on"
            )
        off = np.abs(np.array([at[n] for n in self.joint_names]) - self.first)
        return float(off.max()), self.joint_names[int(off.argmax())]

    def deviation(self, times: np.ndarray, q: np.ndarray) -> tuple[float, float]:
        """Largest and root mean square |q - recorded|, rad, over joints and times within the episode.

        Args:
            times: (M,) s since the start of the replay; q: (M, J) rad, in the order of `joint_names`.

        Returns:
            NaN twice when no time lies within.
        """
        inside = (times >= 0.0) & (times <= min(self.duration, self.recorded.time[-1]))
        if not inside.any():
            return float("nan"), float("nan")
        error = np.abs(q[inside] - interpolate(self.recorded, times[inside], np.inf))
        return float(error.max()), float(np.sqrt((error**2).mean()))


def load_replay(path: Path, resampling: Resampling = Resampling(), namespace: str = "") -> Replay:  # noqa: B008
    """Read the commands of the bag `path`; rows at `resampling.fps`.

    Args:
        namespace: of the robot, where the bag has several; the only one is found without.

    Raises:
        EpisodeError: several robots, none in `namespace`; commands are missing, have a gap wider than allowed, or are
            too few.
        BagError, MessageError: the bag or a message is damaged.
    """
    robots, wanted = robots_in(path), f"/{namespace.strip('/')}".rstrip("/")
    if len(robots) > 1 and wanted not in robots:
        raise EpisodeError(f"{Path(path).name} holds several robots; give namespace:= one of {', '.join(robots)}")
    if robots and wanted not in robots:
        wanted = robots[0]
    with EpisodeReader(path, namespace=wanted) as reader:
        commanded, gripper, _ = load_commands(reader)
        meta = reader.meta()
    period = 1.0 / resampling.fps
    # As in a data set: an episode begins when joints and hand are both commanded.
    begin = max(commanded.time[0], gripper.time[0] - period)
    count = int(np.floor((commanded.time[-1] - begin) / period + 1e-6))
    if count < resampling.min_frames:
        raise EpisodeError(
            f"{Path(path).name}: {commanded.time[-1] - begin:.2f} s of commands are {max(count, 0)} rows; at least "
            f"{resampling.min_frames} are needed"
        )
    times = begin + period * np.arange(1, count + 1)
    joints = interpolate(commanded, np.append(begin, times), resampling.joint_gap, "executor/joint_command")
    return Replay(
        name=Path(path).name,
        instruction=str(meta.get("instruction") or ""),
        joint_names=commanded.names,
        period=period,
        rows=np.column_stack([joints[1:], hold(gripper, times)]),
        first=joints[0],
        recorded=Track(commanded.time - begin, commanded.value, commanded.names),
    )


def dataset_replay(path: Path, episode: int) -> Replay:
    """The actions of one episode of a data set, as they stand in it.

    Raises:
        DatasetError: no such episode, or its actions are not absolute joint positions.
    """
    dataset = Dataset(path)
    if not 0 <= episode < len(dataset.episodes):
        raise DatasetError(f"episode {episode}: {path} has episodes 0 to {len(dataset.episodes) - 1}")
    space = (dataset.info.get("vipra_ros") or {}).get("action_space", "not named")
    names = tuple((dataset.features.get("action") or {}).get("names") or ())
    if space != "joint_position" or len(names) < 2 or names[-1] != "gripper":
        raise DatasetError(
            f"{path}: actions are {space} of {', '.join(names) or 'nameless columns'}; joint_position of joints and "
            "gripper can be replayed: convert without an action option"
        )
    info = dataset.episodes[episode]
    rows = slice(info.start, info.start + info.length)
    actions = dataset.numeric("action")[rows].astype(np.float64)
    first = dataset.numeric("observation.state")[rows.start, : len(names) - 1].astype(np.float64)
    period = 1.0 / dataset.fps
    times = period * np.arange(info.length + 1)
    return Replay(
        name=f"{dataset.path.name}/{episode}",
        instruction=info.task,
        joint_names=names[:-1],
        period=period,
        rows=actions,
        first=first,
        recorded=Track(times, np.vstack([first, actions[:, :-1]]), names[:-1]),
    )
