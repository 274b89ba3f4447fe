"""A rerun recording (.rrd) of an episode: pictures, the arm as lines, joints against limits, chunks, what was said.

Entities, all on the timeline `time` (s):
    camera/<name>                                 pictures
    arm/measured, arm/commanded                   lines through the frames of the kinematics, base frame, m
    arm/<which>/link<N>                           the arm as a body: the capsules of the profile, once, in the frame of
                                                  their link, and where that was; `which` also predicted: the rows of
                                                  the newest chunk at the times they were due
    arm/path, arm/predicted                       way of the TCP so far; way that the newest chunk predicts
    joints/<joint>/measured, commanded, limits    rad
    joints/<joint>/predicted/<lane>               rows of the chunks where they were due; a chunk keeps to one lane,
                                                  so that overlapping ones stay apart
    speed/<joint>/commanded, measured, limits     rad/s
    hand/measured, hand/commanded; figures/<name>; log
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from vipra_ros.control.kinematics import forward, frames
from vipra_ros.control.profile import Capsule, RobotProfile
from vipra_ros.view.sources import Chunk, Seen

TIMELINE = "time"
#: Hz at which the arm is drawn, and s of the way behind the TCP.
ARM_RATE, TAIL = 30.0, 3.0
#: Where the arm is looked at from, and to; m, base frame.
EYE, LOOK_AT = (0.85, -0.85, 0.75), (0.25, 0.0, 0.42)
SILENT = rrb.PlotLegend(visible=False)
#: Most lanes of chunks that overlap.
LANES = 6
GREY, BLUE, ORANGE, RED, GREEN = (130, 130, 130), (51, 102, 204), (220, 122, 30), (200, 56, 90), (47, 158, 91)
#: Colours of the bodies: what was is solid, what was asked for is seen through.
BODIES = {"measured": (*BLUE, 255), "commanded": (*ORANGE, 90), "predicted": (*GREEN, 70)}


def write(seen: Seen, path: str | Path) -> dict[str, int]:
    """Write `seen` to the file `path`; entity -> rows logged.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The viewer takes recordings of one id for one, and episodes of two folders may have the same name.
    place = hashlib.sha256(bytes(seen.path)).hexdigest()[:8]
    recording = rr.RecordingStream("vipra_ros", recording_id=f"{seen.name}-{place}")
    recording.send_recording_name(seen.name)
    recording.save(path, default_blueprint=blueprint(seen))
    recording.log("arm", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    out = _Out(recording)
    _joints(out, seen)
    _arm(out, seen)
    _chunks(out, seen)
    _foreseen(out, seen)
    for what, (times, values) in seen.hand.items():
        out.scalars(f"hand/{what}", times, values)
    for name, (times, values) in seen.figures.items():
        out.scalars(f"figures/{name}", times, values)
    for t, level, text in seen.texts:
        out.one("log", t, rr.TextLog(text, level=level))
    for t, camera, picture in seen.pictures():
        out.one(f"camera/{camera}", t, rr.EncodedImage(contents=picture, media_type=_media(picture)))
    recording.flush()
    recording.disconnect()
    return out.rows


class _Out:
    """Counts what goes into the recording."""

    def __init__(self, recording: rr.RecordingStream):
        self._recording, self.rows = recording, {}

    def scalars(self, entity: str, times: np.ndarray, values: np.ndarray, colour=None, dashed: bool = False) -> None:
        """Rows that are known; `values` (N,)."""
        known = np.isfinite(values)
        if not known.any():
            return
        if colour is not None:
            self.static(entity, rr.SeriesLines(colors=colour, widths=1.0 if dashed else 1.6))
        self.columns(entity, times[known], rr.Scalars.columns(scalars=np.asarray(values, float)[known]))

    def static(self, entity: str, what) -> None:
        """What holds at all times; no row."""
        self._recording.log(entity, what, static=True, strict=True)

    def columns(self, entity: str, times: np.ndarray, columns) -> None:
        """Many rows at once."""
        index = rr.TimeColumn(TIMELINE, duration=times)
        self._recording.send_columns(entity, indexes=[index], columns=columns, strict=True)
        self.rows[entity] = self.rows.get(entity, 0) + len(times)

    def one(self, entity: str, time: float, what) -> None:
        """One row."""
        self._recording.set_time(TIMELINE, duration=time)
        self._recording.log(entity, what, strict=True)
        self.rows[entity] = self.rows.get(entity, 0) + 1


def _joints(out: _Out, seen: Seen) -> None:
    """Positions and velocities of each joint, beside the limits of the profile."""
    p = seen.profile
    spans = [times[[0, -1]] for times, _, _ in seen.joints.values()]
    ends = np.array([min(s[0] for s in spans), max(s[1] for s in spans)]) if spans else np.zeros(0)
    for k, joint in enumerate(p.joint_names):
        for what, (times, q, dq) in seen.joints.items():
            colour = {"measured": BLUE, "commanded": ORANGE}.get(what, GREEN)
            out.scalars(f"joints/{joint}/{what}", times, q[:, k], colour)
            out.scalars(f"speed/{joint}/{what}", times, dq[:, k], colour)
        for kind, low, high in (("joints", p.lower[k], p.upper[k]), ("speed", -p.limits[0][k], p.limits[0][k])):
            for end, value in (("low", low), ("high", high)):
                if len(ends):
                    out.scalars(f"{kind}/{joint}/limits/{end}", ends, np.full(2, value), RED, dashed=True)


def _arm(out: _Out, seen: Seen) -> None:
    """Links as lines from the base through every frame to the TCP and as a body, and the way behind the TCP."""
    for what, colour, width in (("measured", BLUE, 0.012), ("commanded", ORANGE, 0.006)):
        if what not in seen.joints:
            continue
        times, q, _ = seen.joints[what]
        rows = _thinned(times, q)
        if not len(rows):
            continue
        poses = frames(seen.profile, q[rows])
        _body(out, seen.profile, what, times[rows], poses)
        points = poses[..., :3, 3]
        links = np.concatenate([np.zeros((len(rows), 1, 3)), points], axis=1)
        out.columns(f"arm/{what}", times[rows], rr.LineStrips3D.columns(
            strips=list(links), colors=[colour] * len(rows), radii=[width] * len(rows)))
        if what == "measured":
            begins = np.searchsorted(times[rows], times[rows] - TAIL)
            tails = [points[begin : n + 1, -1] for n, begin in enumerate(begins)]
            out.columns("arm/path", times[rows], rr.LineStrips3D.columns(
                strips=tails, colors=[GREY] * len(rows), radii=[0.002] * len(rows)))


def _body(out: _Out, profile: RobotProfile, what: str, times: np.ndarray, poses: np.ndarray) -> None:
    """Every link that has capsules: these once, and its `poses` (N, 9, 4, 4) from the base."""
    for link in sorted({c.link for c in profile.capsules}):
        entity = f"arm/{what}/link{link}"
        out.static(entity, _shape([c for c in profile.capsules if c.link == link], BODIES[what]))
        if link:  # the base stays
            pose = poses[:, link - 1]
            out.columns(entity, times, rr.Transform3D.columns(translation=pose[:, :3, 3], mat3x3=pose[:, :3, :3]))


def _shape(capsules: list[Capsule], colour: tuple[int, ...]) -> rr.Capsules3D:
    """rerun's capsules begin at the origin and go along z; each is turned about the axis normal to z and its own."""
    start = np.array([c.start for c in capsules])
    along = np.array([c.end for c in capsules]) - start
    lengths = np.linalg.norm(along, axis=1)
    unit = np.divide(along, lengths[:, None], out=np.tile([0.0, 0.0, 1.0], (len(along), 1)), where=lengths[:, None] > 0)
    turns = [rr.RotationAxisAngle([-y, x, 0.0] if x or y else [1.0, 0.0, 0.0], radians=np.arccos(np.clip(z, -1.0, 1.0)))
             for x, y, z in unit]
    return rr.Capsules3D(lengths=lengths, radii=[c.radius for c in capsules], translations=start,
                         rotation_axis_angles=turns, colors=[colour] * len(capsules), fill_mode="solid")


def _thinned(times: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Numbers of the rows to draw: known ones, `ARM_RATE` a second."""
    known = np.flatnonzero(np.isfinite(q).all(axis=1))
    if not len(known):
        return known
    bins = np.floor((times[known] - times[known[0]]) * ARM_RATE + 1e-6)
    return known[np.unique(bins, return_index=True)[1]]


def _chunks(out: _Out, seen: Seen) -> None:
    """Every chunk when it arrived: the TCP's way it predicts, and its joints where they were due."""
    lane_ends = [-np.inf] * LANES
    rows: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(LANES)]
    for chunk in seen.chunks:
        way = _way(seen, chunk)
        if way is not None:
            out.one("arm/predicted", chunk.arrival, rr.LineStrips3D([way], colors=[GREEN], radii=[0.004]))
        q = _positions(seen, chunk)
        if q is None or not len(q):
            continue
        due = chunk.due
        lane = next((i for i, end in enumerate(lane_ends) if end < due[0]), int(np.argmin(lane_ends)))
        lane_ends[lane] = due[-1]
        rows[lane].append((due, q))
    for lane, parts in enumerate(rows):
        if parts:
            times, q = (np.concatenate(x) for x in zip(*parts, strict=True))
            order = np.argsort(times, kind="stable")
            for k, joint in enumerate(seen.profile.joint_names):
                out.scalars(f"joints/{joint}/predicted/{lane}", times[order], q[order, k], GREEN)


def _foreseen(out: _Out, seen: Seen) -> None:
    """The body where the newest chunk wanted it: rows that were due after it came and before the next one did."""
    known = sorted(((c, q) for c in seen.chunks if (q := _positions(seen, c)) is not None), key=lambda p: p[0].arrival)
    until = [*(c.arrival for c, _ in known), np.inf][1:]
    rows = [(t, row) for (c, q), end in zip(known, until, strict=True) for t, row in zip(c.due, q, strict=True)
            if c.arrival <= t < end and np.isfinite(row).all()]
    if rows:
        times, q = (np.array(x) for x in zip(*rows, strict=True))
        _body(out, seen.profile, "predicted", times, frames(seen.profile, q))


def _positions(seen: Seen, chunk: Chunk) -> np.ndarray | None:
    """(H, 7) rad that a chunk of joints predicts; increments are summed from the measured joints."""
    if chunk.action_space == "joint_position":
        return chunk.rows[:, :7]
    if chunk.action_space == "joint_delta" and (start := _measured(seen, chunk.stamp)) is not None:
        return start + np.cumsum(chunk.rows[:, :7], axis=0)
    return None


def _way(seen: Seen, chunk: Chunk) -> np.ndarray | None:
    """(H, 3) m, where the TCP is to be at each row; None when it cannot be known."""
    q = _positions(seen, chunk)
    if q is not None:
        way = forward(seen.profile, q)[:, :3, 3]
    elif chunk.action_space == "ee_delta" and (start := _measured(seen, chunk.stamp)) is not None:
        way = forward(seen.profile, start)[:3, 3] + np.cumsum(chunk.rows[:, :3], axis=0)
    else:
        return None
    return way if np.isfinite(way).all() and len(way) > 1 else None


def _measured(seen: Seen, time: float) -> np.ndarray | None:
    """(7,) rad, the newest measured joints at `time`."""
    if "measured" not in seen.joints:
        return None
    times, q, _ = seen.joints["measured"]
    return q[max(0, int(np.searchsorted(times, time, side="right")) - 1)]


def _media(picture: bytes) -> str:
    return "image/png" if picture[:4] == b"\x89PNG" else "image/jpeg"


def blueprint(seen: Seen) -> rrb.Blueprint:
    """How the viewer lays it out: pictures and arm above, joints beside limits, then figures and words."""
    # Legends would hide the curves of seven small plots; the colours are those of the arms.
    joints, speeds = ([rrb.TimeSeriesView(origin=f"{kind}/{j}", name=j.rpartition("_")[2], plot_legend=SILENT)
                       for j in seen.profile.joint_names] for kind in ("joints", "speed"))
    return rrb.Blueprint(
        rrb.Vertical(
            rrb.Horizontal(*_views(seen)),
            rrb.Tabs(rrb.Grid(*joints, name="joints, rad"), rrb.Grid(*speeds, name="speed, rad/s"),
                     rrb.TimeSeriesView(origin="figures", name="figures"),
                     rrb.TimeSeriesView(origin="hand", name="hand")),
            rrb.TextLogView(origin="log", name="states and reasons"),
            row_shares=[4, 4, 1.5],
        ),
        collapse_panels=True,
    )


def _views(seen: Seen) -> Iterator:
    yield rrb.Spatial3DView(origin="arm", name=f"{seen.profile.name}: measured blue, commanded orange, predicted green",
                            eye_controls=rrb.EyeControls3D(position=EYE, look_target=LOOK_AT))
    for camera in seen.cameras:
        yield rrb.Spatial2DView(origin=f"camera/{camera}", name=camera)
