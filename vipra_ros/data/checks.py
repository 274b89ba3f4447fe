"""What can be wrong with an episode that still converts: flags for the eye, each with figures and a remedy.

A flag never stops a conversion unless the caller refuses its code. Thresholds are those of real arms: no
Franka joint turns faster than 5.3 rad/s, so a faster step between two measurements is a jump of the data,
not of the arm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vipra_ros.config import param
from vipra_ros.data import measure, messages
from vipra_ros.data.episode import Episode
from vipra_ros.data.measure import at
from vipra_ros.data.resample import Track, hold

#: Every finding: what it means, what to do.
CODES = {
    "clock": ("stamps go backwards or repeat", "check the clock of the driver that stamps"),
    "rate": ("a stream is slower than the data set", "convert at a lower fps"),
    "gap": ("a stream paused, within what interpolation bridges", "check the network and the load of the recorder"),
    "lost": ("pictures are missing", "check bandwidth and disk; use compressed pictures"),
    "jitter": ("pictures come irregularly", "fix the exposure time; check the load"),
    "skew": ("a camera and the joints do not show the same moment", "let the driver stamp the exposure; one clock"),
    "lag": ("the arm follows its command too late, or too early", "check the control path and the mapped command"),
    "still": ("the arm does not move", "leave it out"),
    "constant": ("a joint is commanded but does not move", "check encoder and joint order"),
    "jump": ("a joint moves faster than joints can", "lost messages or a switched source"),
    "tracking": ("the arm is far from its command", "collision, wrong joint order, or two arms"),
    "polarity": ("the gripper moves against its command", "swap open and closed in the topic map"),
    "frozen": ("a camera repeats a picture while the arm moves", "check the camera"),
    "unlabelled": ("success is not recorded", "label the episode"),
}


@dataclass(frozen=True)
class Limits:
    """Thresholds of the checks."""

    max_speed: float = param(6.0, doc="fastest believable joint", unit="rad/s", low=0.1)
    min_motion: float = param(1e-3, doc="a joint or an arm that moves less is still", unit="rad", low=0.0)
    frozen_motion: float = param(0.05, doc="arm motion while the picture stays the same", unit="rad", low=0.0)
    tracking: float = param(0.25, doc="largest believable |command - measured|", unit="rad", low=0.0)
    gripper_delay: float = param(1.0, doc="time the hand takes to obey", unit="s", low=0.0)
    jitter: float = param(
        0.25, doc="95th percentile of a step's distance from whole steps, in steps", low=0.0
    )
    gap: float = param(0.05, doc="longest pause of a stream of joints", unit="s", low=0.0)
    lag: float = param(0.3, doc="longest believable delay from command to motion", unit="s", low=0.0)
    lead: float = param(0.04, doc="the arm may seem ahead of its command by this", unit="s", low=0.0)
    skew: float = param(0.1, doc="largest shift between a camera and the joints", unit="s", low=0.0)
    sure: float = param(0.6, doc="a time shift counts from this correlation on", low=0.0, high=1.0)
    lost: float = param(0.02, doc="fraction of pictures missing by their stamps", low=0.0, high=1.0)


@dataclass(frozen=True)
class Flag:
    """One finding: `code` groups findings in a report, `text` says what, where and how much."""

    code: str
    text: str


def check(episode: Episode, limits: Limits = Limits()) -> list[Flag]:
    """All findings about an episode but frozen pictures: those show while they are read (`FrozenCheck`)."""
    flags = [
        *_clocks(episode),
        *_rates(episode, limits),
        *_shifts(episode, limits),
        *_joints(episode, limits),
        *_gripper(episode, limits),
    ]
    if "success" not in episode.meta:
        flags.append(Flag("unlabelled", "success is not recorded; label the episode"))
    return flags


def _streams(episode: Episode) -> Iterator[tuple[str, Track]]:
    """Joints as measured and as commanded; once where the command was not recorded, as of an arm led by hand."""
    yield "measured joints", episode.measured
    if episode.commanded is not episode.measured:
        yield "commanded joints", episode.commanded


def _clocks(episode: Episode) -> list[Flag]:
    flags = []
    for name, track in _streams(episode):
        if track.back_steps:
            flags.append(
                Flag(
                    "clock",
                    f"{name}: {track.back_steps} stamps do not grow (by up to "
                    f"{track.worst_back_step:.3f} s); those messages were left out",
                )
            )
    for camera, stamps in episode.image_ns.items():
        steps = np.diff(stamps)
        if (steps <= 0).any():
            flags.append(
                Flag(
                    "clock",
                    f"camera {camera}: {int((steps <= 0).sum())} stamps do not grow (by up to "
                    f"{-steps.min() / messages.NS:.3f} s); check the driver's clock",
                )
            )
    return flags


def _rates(episode: Episode, limits: Limits) -> list[Flag]:
    flags = []
    for camera, stamps in episode.image_ns.items():
        steps = np.diff(np.sort(stamps)) / messages.NS
        steps = steps[steps > 0]
        if not len(steps):
            continue
        median = float(np.median(steps))
        if 1.0 / median < 0.95 * episode.fps:
            flags.append(
                Flag(
                    "rate",
                    f"camera {camera}: {1.0 / median:.1f} Hz, below the {episode.fps:g} Hz of the data "
                    "set: frames repeat; convert at a lower fps",
                )
            )
        lost = float(np.rint(steps / median - 1.0).clip(0).sum()) / (len(steps) + 1)
        if lost > limits.lost:
            flags.append(
                Flag(
                    "lost",
                    f"camera {camera}: {lost:.1%} of the pictures are missing (largest gap "
                    f"{steps.max():.3f} s); check bandwidth and disk",
                )
            )
        whole = np.rint(steps / median).clip(1)  # a lost picture makes a step of two: that is not jitter
        jitter = float(np.percentile(np.abs(steps / median - whole), 95))
        if jitter > limits.jitter:
            flags.append(
                Flag("jitter", f"camera {camera}: steps vary by {jitter:.0%} of {median * 1e3:.0f} ms")
            )
    for name, track in _streams(episode):
        steps = np.diff(track.time)
        median, worst = float(np.median(steps)), int(steps.argmax())
        if steps[worst] > max(limits.gap, 3 * median):
            flags.append(Flag("gap", f"{name}: nothing for {steps[worst]:.3f} s at {track.time[worst]:.2f} s"))
        if 1.0 / median < episode.fps:
            flags.append(
                Flag("rate", f"{name}: {1.0 / median:.1f} Hz, below the {episode.fps:g} Hz of the data set")
            )
    return flags


def _shifts(episode: Episode, limits: Limits) -> list[Flag]:
    flags = []
    late = measure.lag(episode.commanded, episode.measured)
    if late is not None and late[1] >= limits.sure and not -limits.lead <= late[0] <= limits.lag:
        flags.append(
            Flag("lag", f"the arm follows its command by {late[0] * 1e3:.0f} ms (correlation {late[1]:.2f})")
        )
    for camera in episode.image_ns:
        apart = episode.delay.get(camera, 0.0) - episode.delay.get("joints", 0.0)
        if abs(apart) > limits.skew:
            flags.append(
                Flag("skew", f"camera {camera} took {apart * 1e3:+.0f} ms longer than the joints from stamp to receipt")
            )
    return flags


def _joints(episode: Episode, limits: Limits) -> list[Flag]:
    flags = []
    moved = np.ptp(episode.measured.value, axis=0)
    asked = np.ptp(episode.commanded.value, axis=0)
    if (moved < limits.min_motion).all():
        flags.append(
            Flag("still", f"the arm moved by {moved.max():.1e} rad in {episode.measured.time[-1]:.1f} s")
        )
    else:
        for i in np.flatnonzero((moved < limits.min_motion) & (asked > 10 * limits.min_motion)):
            flags.append(
                Flag(
                    "constant",
                    f"{episode.joint_names[i]} was commanded over {asked[i]:.3f} rad but measured "
                    f"over {moved[i]:.1e} rad; check the encoder or the joint order",
                )
            )
    for name, track in _streams(episode):
        flags += _jumps(name, track, limits.max_speed)
    if episode.commanded is episode.measured:
        return flags
    error = np.abs(episode.commanded.value - at(episode.measured, episode.commanded.time))
    inside = (episode.commanded.time >= episode.measured.time[0]) & (
        episode.commanded.time <= episode.measured.time[-1]
    )
    if inside.any() and error[inside].max() > limits.tracking:
        joint = int(error[inside].max(axis=0).argmax())
        flags.append(
            Flag(
                "tracking",
                f"{episode.joint_names[joint]} is up to {error[inside].max():.2f} rad from its "
                "command; collision, wrong joint order, or two arms",
            )
        )
    return flags


def _jumps(name: str, track: Track, max_speed: float) -> list[Flag]:
    # A stamp that comes early makes an honest step look fast: a jump must also be one at 1 ms at least.
    speed = np.abs(np.diff(track.value, axis=0)) / np.maximum(np.diff(track.time), 1e-3)[:, None]
    fast = (speed > max_speed).any(axis=1)
    if not fast.any():
        return []
    i = int(speed.max(axis=1).argmax())
    joint = int(speed[i].argmax())
    step = abs(track.value[i + 1, joint] - track.value[i, joint])
    return [
        Flag(
            "jump",
            f"{name}: {track.names[joint]} steps by {step:.3f} rad in "
            f"{track.time[i + 1] - track.time[i]:.3f} s at {track.time[i]:.2f} s "
            f"({int(fast.sum())} such steps); lost messages or a switched source",
        )
    ]


def _gripper(episode: Episode, limits: Limits) -> list[Flag]:
    """Polarity: a while after "open" the hand must be wider than a while after "close"."""
    grid = (episode.stamp_ns - episode.zero_ns) / messages.NS
    settled = grid[grid - limits.gripper_delay >= max(episode.gripper.time[0], grid[0])]
    if len(settled) < 2:
        return []
    asked = hold(episode.gripper, settled - limits.gripper_delay)[:, 0]
    steady = asked == hold(episode.gripper, settled)[:, 0]
    opening = at(episode.opening, settled)[:, 0]
    wide, narrow = opening[steady & (asked > 0)], opening[steady & (asked < 0)]
    if len(wide) > 1 and len(narrow) > 1 and wide.mean() < narrow.mean() - 0.02:
        return [
            Flag(
                "polarity",
                f"the hand is narrower ({wide.mean():+.2f}) after open than after close "
                f"({narrow.mean():+.2f}); the convention is +1 open, -1 closed",
            )
        ]
    if len(wide) > 1 and not len(narrow) and wide.mean() < -0.9:
        return [Flag("polarity", f"open is commanded throughout but the hand is closed ({wide.mean():+.2f})")]
    return []


class FrozenCheck:
    """Finds a picture that stays the same, byte for byte, while the arm moves. Feed it frames in order."""

    def __init__(self, camera: str, state: np.ndarray, picks: np.ndarray, limits: Limits = Limits()):
        self._camera, self._state, self._picks, self._limit = (
            camera,
            state[:, :-1],
            picks,
            limits.frozen_motion,
        )
        self._last: bytes | None = None
        self._since = 0
        self._worst, self._where = 0.0, (0, 0)

    def add(self, index: int, picture: bytes | memoryview) -> None:
        """Take in the encoded picture of frame `index`."""
        if self._last is None or self._last != picture:
            self._last, self._since = picture, index
            return
        moved = float(np.ptp(self._state[self._since : index + 1], axis=0).max())
        if moved > self._worst and self._picks[index] != self._picks[self._since]:
            self._worst, self._where = moved, (self._since, index)

    def flags(self) -> list[Flag]:
        """The finding, if there is one."""
        if self._worst <= self._limit:
            return []
        return [
            Flag(
                "frozen",
                f"camera {self._camera}: the same picture from frame {self._where[0]} to "
                f"{self._where[1]} while a joint moved by {self._worst:.2f} rad; check the camera",
            )
        ]


class SkewCheck:
    """Compares the change between a camera's pictures with the motion of the arm. Feed it frames in order."""

    def __init__(self, camera: str, episode: Episode, limits: Limits = Limits()):
        self._camera, self._episode, self._limits = camera, episode, limits
        self._change = np.zeros(len(episode))
        self._last: np.ndarray | None = None
        self.found: tuple[float, float, float] | None = None

    def add(self, index: int, image: np.ndarray) -> None:
        """Take in the RGB picture of frame `index`: every eighth pixel tells enough."""
        step = max(1, min(image.shape[:2]) // 60)
        small = image[::step, ::step].astype(np.int16)
        if self._last is not None and self._last.shape == small.shape:
            self._change[index] = np.abs(small - self._last).mean()
        self._last = small

    def flags(self) -> list[Flag]:
        """The finding, if there is one; the shift itself is `found`."""
        e, limits = self._episode, self._limits
        exposed = (e.image_ns[self._camera][e.picks[self._camera]] - e.zero_ns) / messages.NS
        self.found = measure.skew(self._change, exposed, e.measured)
        if self.found is None:
            return []
        where, r, unshifted = self.found
        if abs(where) <= limits.skew or r < limits.sure or r - unshifted < 0.1:
            return []
        return [
            Flag(
                "skew",
                f"camera {self._camera} shows the arm {abs(where) * 1e3:.0f} ms {'later' if where > 0 else 'earlier'} "
                f"than its stamps say (correlation {r:.2f}, {unshifted:.2f} without shift)",
            )
        ]
