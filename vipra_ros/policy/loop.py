"""The policy's own thread: waits for a complete, fresh observation that is due, infers, hands out the chunk.

Knows no ROS. Inputs may come from any thread; times are in s on the clock of the camera stamps and given by
`now`. Inference runs in `run` alone, so no input ever waits for it. A chunk that was overtaken while the
network was thinking (other instruction, executor stopped or recovered) is thrown away.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

import numpy as np

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.guard import State as Executor
from vipra_ros.policy.observation import FrameHistory, HistorySettings, NoAnswer, Observation
from vipra_ros.policy.plan import Plan, Timing
from vipra_ros.policy.prior import Prior, prior_of
from vipra_ros.policy.report import CameraReport, Phase, Report
from vipra_ros.policy.scheduler import Latency, Scheduler
from vipra_ros.policy.streams import JointHistory, StreamMonitor

#: States of the executor in which a chunk is of use.
READY = (Executor.ARMED, Executor.RUNNING)
#: s over which the chunk rate is taken.
RATE_WINDOW = 5.0
#: s after a chunk went out before an empty queue is believed to be the state after it.
SETTLE = 0.1
#: s without a word from the executor after which it counts as gone; it speaks at 10 Hz.
EXECUTOR_TIMEOUT = 1.0
#: s between two attempts at an engine that gives no answer.
RETRY = 0.2
#: s; a stamp further back than this is a clock set back, not an image that came late.
CLOCK_JUMP = 1.0


class PolicyLoop:
    """See the module's text.

    Args:
        load: () -> (engine, plan); runs in the loop's thread, since it takes seconds.
        publish: takes every finished chunk, in the loop's thread.
        decode: stored image -> uint8 RGB (H, W, 3); only called for the frames that are used.
        now: s, clock of the camera stamps.
        policy_id: names this process to the executor.
        changed: called when the phase changes, from any thread.
    """

    def __init__(
        self,
        load: Callable[[], tuple[object, Plan]],
        publish: Callable[[ActionChunk], None],
        decode: Callable[[object], np.ndarray],
        now: Callable[[], float],
        policy_id: str,
        timing: Timing = Timing(),  # noqa: B008 - frozen
        history: HistorySettings = HistorySettings(),  # noqa: B008 - frozen
        instruction: str = "",
        changed: Callable[[], None] = lambda: None,
    ):
        self._load, self._publish, self._decode, self._now = load, publish, decode, now
        self._changed, self.policy_id, self.timing, self._settings = changed, policy_id, timing, history
        self._wake = threading.Condition()
        self._stopped = self._paused = False
        self.plan: Plan | None = None
        self._history: FrameHistory | None = None
        self._encoded: dict[str, OrderedDict[float, object]] = {}
        self._monitors: dict[str, StreamMonitor] = {}
        self._joints, self._clock = JointHistory(), 0  # the latter counts how often the clock was set back
        self._scheduler: Scheduler | None = None
        self._phase, self._reasons = Phase.LOADING, ()
        self._unanswered: tuple[str, ...] = ()
        self._unreadable: tuple[str, ...] = ()
        self._task_id, self._instruction = 0, ""
        self._executor: tuple[int, int, int] | None = None  # state, epoch, queue
        self._executor_seen = self._published_at = -math.inf
        self._empty_since: float | None = None
        self._sent: deque[float] = deque(maxlen=256)
        self._last: tuple[float, np.ndarray, int, int] | None = None  # stamp, rows, task, epoch of the newest chunk
        self._inference, self._chunks = Latency(), 0
        self.instruct(instruction)

    # --- inputs --------------------------------------------------------------------------------------------

    def image(self, camera: str, stamp: float, encoded: object, fingerprint: int) -> None:
        """An image arrived: `encoded` is what `decode` takes, `fingerprint` changes with the picture."""
        with self._wake:
            if self._history is None or camera not in self._monitors:
                return
            kept, newest = self._encoded[camera], next(reversed(self._encoded[camera]), -math.inf)
            if stamp < newest - CLOCK_JUMP:
                self._set_back()
            self._monitors[camera].image(stamp)
            # The history chooses by stamps and compares fingerprints; only chosen pictures are decoded.
            if self._history.add(camera, stamp, np.array([fingerprint])):
                kept[stamp] = encoded
                while next(iter(kept)) < self._history.oldest(camera):
                    kept.popitem(last=False)
                self._wake.notify_all()

    def _set_back(self) -> None:
        """The clock was: nothing of before is of any time now."""
        self._history.clear()
        for images in self._encoded.values():
            images.clear()
        self._scheduler.reset()
        self._joints, self._last, self._clock = JointHistory(), None, self._clock + 1

    def joints(self, stamp: float, vector: np.ndarray) -> None:
        """Measured joints (rad) and the gripper's opening in [-1, 1], (n + 1,); not finite is as good as unsaid."""
        if not np.isfinite(vector).all():
            return
        with self._wake:
            self._joints.add(stamp, vector)
            if self._history is not None:
                self._history.moved(vector[:-1])

    def executor(self, state: int, epoch: int, queue: int) -> None:
        """The executor said how it is."""
        with self._wake:
            moment, before = time.monotonic(), self._executor
            self._executor, self._executor_seen = (state, epoch, queue), moment
            if state not in READY or queue > 0:
                self._empty_since = None
            elif self._empty_since is None and moment - self._published_at > SETTLE:
                self._empty_since = self._now()
            armed = state in READY and (before is None or before[0] not in READY)
            if self._scheduler and (armed or before is not None and before[1] != epoch):
                self._scheduler.reset()
            self._wake.notify_all()

    def instruct(self, text: str) -> bool:
        """Another instruction; the next chunk answers it. False when it is the present one."""
        text = " ".join(text.split())
        with self._wake:
            if text == self._instruction:
                return False
            self._instruction = text
            self._task_id += 1
            if self._scheduler:
                self._scheduler.reset()
            self._wake.notify_all()
        return True

    def pause(self, paused: bool) -> None:
        """Switch publication off or on."""
        with self._wake:
            self._paused = paused
            self._wake.notify_all()

    def stop(self) -> None:
        """End `run` at the next opportunity: at once when it waits, after the inference when it thinks."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()

    # --- the thread ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Load, warm up, answer observations until stopped. Ends in FAULT, with the reason, on any error."""
        try:
            engine = self._prepare()
            while not self._stopped:
                self._answer(engine)
        except Exception as error:  # the node stays up to tell; nothing is published any more
            self._set(Phase.FAULT, (f"{type(error).__name__}: {error}",))

    def _insist(self, attempt: Callable[[], object], phase: Phase) -> object:
        """Do what the engine can only do when it is within reach, as soon as it is."""
        while not self._stopped:
            try:
                return attempt()
            except NoAnswer as error:
                self._set(phase, (str(error),))
                with self._wake:
                    self._wake.wait(RETRY)
        return None

    def _prepare(self) -> object:
        if (loaded := self._insist(self._load, Phase.LOADING)) is None:
            return None
        engine, plan = loaded
        t = self.timing
        scheduler = Scheduler(plan.execute, plan.period, t.mode, t.rate, t.margin)
        with self._wake:
            self.plan, self._scheduler = plan, scheduler
            self._history = FrameHistory(plan.cameras, (-plan.stride * plan.period, 0.0), self._settings)
            self._encoded = {c: OrderedDict() for c in plan.cameras}
            self._monitors = {c: StreamMonitor() for c in plan.cameras}
        self._set(Phase.WARMING, ())
        self._insist(engine.warm_up, Phase.WARMING)
        return engine

    def _answer(self, engine: object) -> None:
        """Answer the observation that is due, or wait a twentieth of a second for one."""
        with self._wake:
            chosen, held = self._history.select(self._now()), self._holds()
            problems = (*chosen.reasons, *self._problems(chosen.stamp))
            if problems or held:
                problems += self._unreadable if problems else ()
                self._set(Phase.WAITING if problems else Phase.PAUSED, (*problems, *held))
                self._wake.wait(0.05)
                return
            # After no answer, RUNNING is believed with the next one only.
            self._set(Phase.WAITING if self._unanswered else Phase.RUNNING, self._unanswered)
            stamp, plan, number = chosen.stamp, self.plan, self._chunks + 1
            if stamp < self._scheduler.due(self._empty_since):
                self._wake.wait(0.05)
                return
            pictures = {c: [self._encoded[c][t] for t in stamps] for c, stamps in chosen.frame_stamps.items()}
            vectors = self._joints.at(stamp, plan.joints, plan.period) if plan.joints else None
            task, words, epoch, clock = self._task_id, self._instruction, self._epoch(), self._clock
            prior = self._prior(stamp) if getattr(engine, "guided", False) else None
        frames = self._frames(pictures, chosen.frame_stamps)
        if frames is None:
            return
        began, seed = time.monotonic(), None if self.timing.seed is None else self.timing.seed + number
        try:
            seen = {c: tuple((clock, t) for t in stamps) for c, stamps in chosen.frame_stamps.items()}
            prediction = engine.infer(Observation(stamp, frames, words, vectors, seen, prior), seed)
            if unknown := prediction.unknown_words:
                raise NoAnswer(f"instruction: the policy knows no word {unknown[0]!r}; say it in others")
        except NoAnswer as error:
            self._unanswered = (str(error),)
            self._set(Phase.WAITING, self._unanswered)
            with self._wake:
                if not self._stopped:
                    self._wake.wait(RETRY)
            return
        if self._unanswered:
            self._unanswered = ()
            self._set(Phase.RUNNING, ())
        self._inference.add(time.monotonic() - began)
        with self._wake:
            now = self._task_id, self._epoch(), self._clock
            if self._stopped or (task, epoch, clock) != now or self._holds():
                return
            self._chunks, self._empty_since, self._published_at = number, None, time.monotonic()
            self._sent.append(self._published_at)
            self._scheduler.published(stamp, self._now() - stamp)
            rows = np.asarray(prediction.actions, float)
            self._last = stamp, rows, task, epoch
        self._publish(
            ActionChunk(
                stamp, number, plan.period, actions=rows[: plan.execute], lookahead=rows[plan.execute :],
                action_space=plan.action_space, joint_names=plan.joint_names, task_id=task, instruction=words,
                checkpoint=plan.checkpoint, epoch=epoch, policy_id=self.policy_id,
            )
        )

    def _frames(self, pictures: dict[str, list], stamps: Mapping[str, tuple]) -> dict[str, np.ndarray] | None:
        """The chosen pictures, (frames, H, W, 3) a camera; None when one is broken, which then counts as lost."""
        frames = {}
        for camera, pair in pictures.items():
            for picture, stamp in zip(pair, stamps[camera]):
                try:
                    seen = self._decode(picture)
                    if any(seen.shape != other.shape for other in frames.setdefault(camera, [])):
                        raise ValueError(f"a picture of another size, {seen.shape[:2]} (h, w)")
                    frames[camera].append(seen)
                except ValueError as error:
                    self._unreadable = (f"camera {camera}: {error}",)
                    with self._wake:
                        self._history.forget(camera, stamp)
                        self._encoded[camera].pop(stamp, None)
                        self._monitors[camera].lost += 1
                    self._set(Phase.WAITING, self._unreadable)
                    return None
        self._unreadable = ()
        return {camera: np.stack(pair) for camera, pair in frames.items()}

    def _prior(self, stamp: float) -> Prior | None:
        """What the arm is doing by the newest chunk, for the observation at `stamp`; None where it does nothing.

        Committed is what is reached within the longest of the last delays, as the paper's algorithm 1 takes it.
        """
        moves = self.timing.mode == "async" and (self._executor is None or self._executor[0] == Executor.RUNNING)
        if self._last is None or self._last[2:] != (self._task_id, self._epoch()) or not moves:
            return None
        delay = self._scheduler.latency.percentile(100)
        return prior_of(self._last[1], self._last[0], stamp, self.plan.period, delay, self.plan.action_space)

    def _problems(self, stamp: float) -> tuple[str, ...]:
        """What an observation of that stamp lacks besides pictures, each with the remedy."""
        found, s = [], self._settings
        if self.plan.joints and (problem := self._joints.problem(
                self._now(), stamp, self.plan.joints, self.plan.period, s.stale_after, s.tolerance)):
            found.append(problem)
        if not self._instruction:
            found.append("no instruction; set the parameter instruction or publish on policy/instruction")
        return tuple(found)

    def _holds(self) -> tuple[str, ...]:
        """Why a chunk would be of no use now."""
        if self._paused:
            return ("paused by the operator",)
        if not self.timing.follow_executor:
            return ()
        if time.monotonic() - self._executor_seen > EXECUTOR_TIMEOUT:
            return ("no executor/status; start the executor, or set follow_executor to false",)
        if self._executor[0] not in READY:
            name = Executor(self._executor[0]).name
            return (f"the executor is {name}; call executor/{'recover' if name == 'FAULT' else 'arm'}",)
        return ()

    def _epoch(self) -> int:
        return self._executor[1] if self._executor else 0

    def _set(self, phase: Phase, reasons: tuple[str, ...]) -> None:
        """Enter a phase; a change is told at once, another wording of the same reasons is not a change."""
        with self._wake:
            changed = phase is not self._phase or len(reasons) != len(self._reasons)
            self._phase, self._reasons = phase, reasons
        if changed:
            self._changed()

    # --- output --------------------------------------------------------------------------------------------

    def report(self) -> Report:
        """How the loop is."""
        with self._wake:
            now, moment = self._now(), time.monotonic()
            recent = sum(moment - t < RATE_WINDOW for t in self._sent)
            ages = [m.age(now) for m in self._monitors.values()]
            latency = self._scheduler.latency if self._scheduler else Latency()
            figures = [tuple(x.percentile(p) for p in (50, 95, 99)) for x in (latency, self._inference)]
            cameras = {
                c: CameraReport(m.age(now), m.rate(now), m.lost, self._history.frozen(c))
                for c, m in self._monitors.items()
            }
            checkpoint = self.plan.checkpoint if self.plan else ""
            return Report(
                self._phase,
                self._reasons,
                checkpoint,
                self._task_id,
                self._instruction,
                self._chunks,
                recent / RATE_WINDOW,
                float(np.max(ages)) if ages else math.nan,
                *figures,
                cameras,
            )
