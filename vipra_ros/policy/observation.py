"""What a policy looks at, and the history of frames it is taken from, by time.

Cameras run at their own rates and drop frames, so "two steps ago" is a time, not a count: the frames of an
observation are the ones nearest to t and t - stride * period, refused when none is near enough.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from vipra_ros.config import param
from vipra_ros.policy.prior import Prior


@dataclass(frozen=True)
class Observation:
    """One decision's input.

    Attributes:
        stamp: s, time of the newest frame, on the cameras' clock.
        frames: camera -> uint8 (frames, H, W, 3) RGB, oldest first (t - stride * period, t).
        instruction: what to do, in words.
        joints: (n, a) most recent joint vectors with the gripper's opening (-1 .. 1) last, oldest first, when
            the checkpoint asks for proprio or relative actions.
        prior: what the chunk before this one has for its steps; for an engine that is guided by it.
        frame_stamps: camera -> what tells its frames from all others, as their stamps in s do while the clock is not
            set back; lets the engine encode a frame once. None: encode all.
    """

    stamp: float
    frames: dict[str, np.ndarray]
    instruction: str
    joints: np.ndarray | None = None
    frame_stamps: dict[str, tuple[Hashable, ...]] | None = None
    prior: Prior | None = None


@dataclass(frozen=True)
class Prediction:
    """A chunk: float64 (horizon, a) in raw units (rad and gripper +-1, or as the action space says).

    timing: ms by stage, `total` included. seed: of the noise, None when it was fresh. unknown_words: those of the
    instruction that were read as one and the same: such a chunk is no answer to it.
    """

    actions: np.ndarray
    timing: dict[str, float] = field(default_factory=dict)
    seed: int | None = None
    unknown_words: tuple[str, ...] = ()


class ObservationError(ValueError):
    """An observation cannot be answered; the message names what is wrong with it."""


class NoAnswer(RuntimeError):
    """The engine cannot be reached now, or was too slow this time; asking again later may help."""


@dataclass(frozen=True)
class HistorySettings:
    """How frames are kept and when a camera is not to be trusted."""

    tolerance: float = param(0.05, doc="largest distance of a frame from the time it stands for", unit="s", low=0.0)
    stale_after: float = param(0.5, doc="age of the newest frame at which a camera counts as lost", unit="s", low=0.0)
    frozen_after: float = param(
        1.0,
        doc="time of bit-identical frames, while the robot moves, at which a camera counts as frozen; 0 is off",
        unit="s",
        low=0.0,
    )
    frozen_motion: float = param(
        0.05, doc="joint path in that time that must have changed the picture", unit="rad", low=0.0
    )
    keep: float = param(1.0, doc="time that frames are kept", unit="s", low=0.05)


@dataclass(frozen=True)
class Selection:
    """Frames for one observation, or the reasons why there are none (then `frames` is empty)."""

    stamp: float
    frames: dict[str, np.ndarray]
    frame_stamps: dict[str, tuple[float, ...]]
    reasons: tuple[str, ...] = ()


@dataclass
class _Camera:
    stamps: deque[float] = field(default_factory=deque)
    images: deque[np.ndarray] = field(default_factory=deque)
    changed: float = float("nan")
    path_at_change: float = 0.0
    dropped: int = 0


class FrameHistory:
    """Recent frames of every camera of a policy.

    Args:
        offsets: s, times of an observation's frames relative to its newest one, oldest first, e.g. (-2/15, 0).
    """

    def __init__(
        self, cameras: tuple[str, ...], offsets: tuple[float, ...], settings: HistorySettings = HistorySettings()
    ):
        self.settings, self.offsets = settings, offsets
        self._cameras = {name: _Camera() for name in cameras}
        self._path = 0.0
        self._joints: np.ndarray | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras kept."""
        return tuple(self._cameras)

    def add(self, camera: str, stamp: float, image: np.ndarray) -> bool:
        """Keep a frame; False when it is older than the newest one (late or repeated) and was dropped."""
        mine = self._cameras[camera]
        if mine.stamps and stamp <= mine.stamps[-1]:
            mine.dropped += 1
            return False
        if not mine.images or image.shape != mine.images[-1].shape or not np.array_equal(image, mine.images[-1]):
            mine.changed, mine.path_at_change = stamp, self._path
        mine.stamps.append(stamp)
        mine.images.append(image)
        oldest = stamp - self.settings.keep + min(self.offsets)
        while mine.stamps[0] < oldest:
            mine.stamps.popleft()
            mine.images.popleft()
        return True

    def oldest(self, camera: str) -> float:
        """Stamp of the oldest frame kept, s; infinite where there is none."""
        stamps = self._cameras[camera].stamps
        return stamps[0] if stamps else math.inf

    def moved(self, joints: np.ndarray) -> None:
        """Tell the measured joints (rad): identical frames are suspicious only while the robot moves.

        A picture may show nothing new for minutes while everything stands still. Without any call of this, no
        camera is ever called frozen.
        """
        joints = np.asarray(joints, float)
        if self._joints is not None:
            self._path += float(np.abs(joints - self._joints).max())
        self._joints = joints

    def forget(self, camera: str, stamp: float) -> None:
        """Drop one frame, which turned out to be unreadable."""
        mine = self._cameras[camera]
        kept = [(s, i) for s, i in zip(mine.stamps, mine.images) if s != stamp]
        mine.stamps, mine.images = deque(s for s, _ in kept), deque(i for _, i in kept)

    def clear(self) -> None:
        """Forget all frames (after a clock jump or a scene reset)."""
        for name in self._cameras:
            self._cameras[name] = _Camera(dropped=self._cameras[name].dropped)

    def age(self, camera: str, now: float) -> float:
        """s since the newest frame of a camera on its own clock; infinite before the first."""
        stamps = self._cameras[camera].stamps
        return now - stamps[-1] if stamps else float("inf")

    def dropped(self, camera: str) -> int:
        """Frames that came late or twice."""
        return self._cameras[camera].dropped

    def frozen(self, camera: str) -> bool:
        """Whether its picture has stayed the same, bit by bit, while the robot moved."""
        s, mine = self.settings, self._cameras[camera]
        return bool(
            s.frozen_after
            and mine.stamps
            and mine.stamps[-1] - mine.changed > s.frozen_after
            and self._path - mine.path_at_change > s.frozen_motion
        )

    def problems(self, now: float) -> tuple[str, ...]:
        """Why a camera is not to be trusted at `now` (the cameras' clock): missing, stale or frozen."""
        s, found = self.settings, []
        for name, camera in self._cameras.items():
            age = self.age(name, now)
            if not camera.stamps:
                found.append(f"camera {name}: no frame yet; check that it publishes and the topic's name")
            elif age > s.stale_after:
                found.append(
                    f"camera {name}: newest frame is {age:.2f} s old (limit {s.stale_after:g} s); check the camera"
                )
            elif self.frozen(name):
                found.append(
                    f"camera {name}: picture frozen for {camera.stamps[-1] - camera.changed:.2f} s while the "
                    "robot moved; restart the camera"
                )
        return tuple(found)

    def select(self, now: float) -> Selection:
        """The frames of one observation at the newest time all cameras have reached."""
        reasons = self.problems(now)
        if reasons:
            return Selection(float("nan"), {}, {}, reasons)
        newest = min(camera.stamps[-1] for camera in self._cameras.values())
        frames, stamps, missing = {}, {}, []
        for name, camera in self._cameras.items():
            picked = []
            for offset in self.offsets:
                distance = np.abs(np.asarray(camera.stamps) - (newest + offset))
                best = int(distance.argmin())
                if distance[best] > self.settings.tolerance:
                    missing.append(
                        f"camera {name}: no frame {-offset:.3f} s back, nearest is {distance[best]:.3f} s away "
                        f"(tolerance {self.settings.tolerance:g} s)"
                    )
                picked.append(best)
            if not missing and len(set(picked)) < len(set(self.offsets)):
                missing.append(f"camera {name}: one picture stands for two times; the policy needs one every "
                               f"{np.diff(self.offsets).min():.3f} s, raise the camera's rate")
            frames[name] = np.stack([camera.images[i] for i in picked])
            stamps[name] = tuple(camera.stamps[i] for i in picked)
        if missing:
            return Selection(newest, {}, {}, tuple(missing))
        return Selection(newest, frames, stamps)
