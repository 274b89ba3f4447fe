"""`vipra rollouts`: policies compared on a robot, trial by trial, with an operator who does not know which is which.

The plan, the order, the letters and the journal are `learning/trials.py`; this is the part with an arm. Each policy
is a `vipra up policy` of its own, restarted when the next trial is another policy's. On an arm of metal nothing moves
before the operator's key; in simulation the scene lays itself out and the simulator says who succeeded. What the keys
say, buttons say too (`trial_buttons.py`): those of `vipra console`.
"""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import datetime, timezone
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.learning import trial_page
from vipra_ros.learning.trials import (
    FAILURE,
    INVALID,
    SUCCESS,
    Blind,
    Journal,
    Plan,
    Slot,
    Trial,
    brief,
    interruptions,
    load_plan,
    schedule,
)
from vipra_ros.msg import ExecutorStatus
from vipra_ros.nodes.session import Session
from vipra_ros.nodes.system import SessionError, System
from vipra_ros.nodes.terminal import QUIT, Terminal, Unattended
from vipra_ros.nodes.trial_buttons import LABELS, TrialButtons

KEYS = {"y": SUCCESS, "n": FAILURE, "i": INVALID}
GO, STOP, BACK = ("\n", "\r"), " ", "u"
#: s between two looks at keys and states.
TICK = 0.02
#: s for a policy to get ready; a large one is read from disk for minutes.
START_TIMEOUT = 600.0
#: px; smaller pictures are enlarged for the videos.
WIDE = 320
_ENDED = (ExecutorStatus.HOLD, ExecutorStatus.FAULT)


class RolloutError(RuntimeError):
    """The evaluation cannot go on; one line, without a policy's name."""


class Leave(Exception):
    """The operator wants to go on another time."""


class Rollouts:
    """Does what is left of a plan.

    Args:
        folder: of results, logs and videos.
        operator: a `Terminal`, or what has its say, show and key.
        video: keep a video of each trial.
    """

    def __init__(self, plan: Plan, folder: Path, operator, video: bool = False):
        self.plan, self.folder, self._operator, self._video = plan, folder, operator, video
        self.journal, self.slots, self.blind = Journal(folder, plan), schedule(plan), Blind(plan)
        self._session: Session | None = None
        self._buttons: TrialButtons | None = None
        self._last: list[str] = []  # how the last trial went, for who sees one page and not the terminal
        self._states: list[str] | None = None  # of the executor, in a trial
        self._pictures: list[tuple[float, bytes]] | None = None

    def run(self) -> bool:
        """Until all trials are done, or the operator leaves (False); then the same call goes on.

        Raises:
            RolloutError: a system does not start, or ends.
        """
        try:
            while rest := self.journal.remaining(self.slots):
                with self._system(rest[0]):
                    policy = rest[0].policy
                    while rest and rest[0].policy == policy:
                        self._slot(rest[0])
                        rest = self.journal.remaining(self.slots)
        except (Leave, KeyboardInterrupt):
            return False
        except SessionError as error:
            raise RolloutError(f"{self.blind.scrub(str(error))}; the trials so far are kept, the same command goes on"
                               ) from None
        return True

    @contextmanager
    def _system(self, slot: Slot):
        """The nodes of the policy of `slot`, and a session with them."""
        code = self.blind.codes[slot.policy]
        arguments = {**{k: str(v) for k, v in self.plan.arguments.items()}, "robot": self.plan.robot,
                     **self.plan.policies[slot.policy].launch()}
        self._say(f"starting policy {code} ...")
        began = time.monotonic()
        with System(log=self.folder / "logs" / f"{slot.number + 1:04d}-{code}.log", **arguments) as system:
            self._session = Session(
                system.domain, system.check, self._on_image if self._video else None, self._on_status,
                (self.plan.camera,), self.plan.simulated)
            self._buttons = TrialButtons(self._session.node)
            self._buttons.tell([f"starting policy {code}", *self._last])
            try:
                self._session.wait_ready(START_TIMEOUT, self._leave_on_key)
                self._say(f"policy {code} is ready after {time.monotonic() - began:.0f} s")
                yield
            finally:
                self._session.close()

    # --- one trial -----------------------------------------------------------------------------------------

    def _slot(self, slot: Slot) -> None:
        """One trial, or one step back when the operator asks for it."""
        session, task = self._session, self.plan.tasks[slot.task]
        lines = brief(self.plan, self.blind, slot, len(self.slots))
        self._buttons.tell([*lines, *self._last])
        for line in lines:
            self._say(line)
        if not self._granted("the arm goes home", lambda: session.home(self._leave_on_key)):
            return
        words = task.instruction
        if self.plan.simulated:
            session.open_hand(self._leave_on_key)
            own = session.reset(task.sim, slot.seed)
            words = words or own
        try:
            if not self._granted("the scene is laid out: begin", lambda: self._begin(words)):
                return
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            before, began = session.executor_status, time.monotonic()
            with self._buttons.asking("how did it go?", *LABELS):
                label, by = self._watch(slot, began)
            seconds = time.monotonic() - began
        finally:
            states, pictures, self._states, self._pictures = self._states, self._pictures, None, None
            if session.executor_status.state not in _ENDED:
                session.halt()
        stalls, stops = interruptions(states)
        after = session.executor_status
        reason = "; ".join(after.reasons) or after.state_text if after.state in _ENDED else ""
        trial = Trial(slot.number, self.blind.codes[slot.policy], task.label, slot.block, slot.seed, label, by, seconds,
                      stalls, stops, self.blind.scrub(reason), after.accepted - before.accepted,
                      after.rejected - before.rejected, after.limited - before.limited,
                      self._film(slot, words, pictures), date, words)
        self.journal.add(trial)
        how = f"{label} ({by}) after {seconds:.1f} s, {stalls} stalls, {stops} stops"
        how += f": {trial.stopped}" if trial.stopped else ""
        self._say(f"  {how}")
        self._last = [f"  before: trial {slot.number + 1}, {how}"]

    def _granted(self, what: str, motion: Callable[[], None]) -> bool:
        """Do `motion` when the operator says so; on an arm of metal a refusal is told, and asked again. False: BACK."""
        refused = ""
        while self._wait(what, refused) != BACK:
            try:
                motion()
                return True
            except SessionError as error:
                if self.plan.simulated:
                    raise
                self._session.check()  # a system that has ended asks nobody
                refused = self.blind.scrub(str(error))
                self._say(f"  {refused}")
        return False

    def _begin(self, words: str) -> None:
        """Tell the policy what to do and arm; what is seen from here on belongs to the trial."""
        self._session.instruct(words)
        time.sleep(0.2)  # a frame of the new scene for every camera
        self._session.arm()
        self._states, self._pictures = [], []

    def _watch(self, slot: Slot, began: float) -> tuple[str, str]:
        """Until somebody says how it went: (label, by whom)."""
        session, limit = self._session, self.plan.limit(self.plan.tasks[slot.task])
        while True:
            session.check()
            elapsed = time.monotonic() - began
            state = session.executor_status.state
            self._operator.show(f"{session.executor_status.state_text:8} {elapsed:5.1f} of {limit:.0f} s   "
                                "space STOP   y success  n failure  i invalid  q quit")
            key = self._key()
            if key in QUIT:
                raise Leave
            if key in KEYS:
                return KEYS[key], "operator"
            if key == STOP:
                session.call("stop")
            if key == STOP or state == ExecutorStatus.IDLE:  # or somebody pressed STOP elsewhere
                return self._label("stopped"), "operator"
            if session.outcome.get("success") and self.plan.simulated:
                return SUCCESS, "simulator"
            if state in _ENDED:
                why = self.blind.scrub("; ".join(session.executor_status.reasons) or "no reason given")
                if self.plan.simulated:
                    return FAILURE, "executor"
                return self._label(f"the arm stopped by itself: {why}"), "operator"
            if elapsed > limit:
                return FAILURE, "time limit"

    def _label(self, what: str) -> str:
        """The operator's word when the arm stands; unattended it is a failure."""
        if isinstance(self._operator, Unattended):
            return FAILURE
        with self._buttons.asking(what, *LABELS):
            while True:
                self._operator.show(f"{what}   y success  n failure  i invalid"[:120])
                key = self._key()
                self._session.check()
                if key in QUIT:
                    raise Leave
                if key in KEYS:
                    return KEYS[key]

    def _wait(self, what: str, refused: str = "") -> str:
        """On an arm of metal wait for the operator's key: GO, or BACK when the last trial is taken back."""
        if self.plan.simulated:
            self._leave_on_key()
            return GO[0]
        with self._buttons.asking(what, "start", refused=refused):
            while True:
                status = self._session.executor_status
                fault = f"FAULT: {'; '.join(status.reasons)}   " if status.state == ExecutorStatus.FAULT else ""
                self._operator.show(self.blind.scrub(f"{fault}Enter: {what}   u take the last trial back   q quit"))
                key = self._key()
                self._session.check()
                if key in QUIT:
                    raise Leave
                if key in GO:
                    return GO[0]
                if key == BACK:
                    last = self.journal.take_back()
                    again = f"trial {last.slot + 1} is to be done again" if last else "there is no trial to take back"
                    self._say(again)
                    if last:
                        return BACK

    def _leave_on_key(self) -> None:
        """While the arm goes home, or nodes start: q and the space bar stop the arm and leave."""
        if self._operator.key(0.0) in (*QUIT, STOP):
            if self._session.executor_status is not None:
                self._session.call("stop")
            raise Leave

    # --- in and out ----------------------------------------------------------------------------------------

    def _key(self) -> str:
        return self._buttons.key() or self._operator.key(TICK)

    def _say(self, text: str) -> None:
        self._operator.say(text)

    def _on_status(self, status: ExecutorStatus) -> None:
        states = self._states
        if states is not None:
            states.append(status.state_text)

    def _on_image(self, camera: str, stamp: float, jpeg: bytes) -> None:
        pictures = self._pictures
        if pictures is not None:
            pictures.append((stamp, jpeg))

    def _film(self, slot: Slot, words: str, pictures: list[tuple[float, bytes]]) -> str:
        """Write the pictures as an MP4 that browsers play; its name beside the results, empty without."""
        if len(pictures) < 2 or pictures[-1][0] <= pictures[0][0]:
            return ""
        import cv2

        from vipra_ros.data.video import Codec, captioned, encode_video
        from vipra_ros.policy.pictures import from_jpeg

        attempt = 1 + sum(t.slot == slot.number for t in self.journal.trials)
        name = f"videos/trial-{slot.number + 1:04d}-{attempt}.mp4"
        (self.folder / "videos").mkdir(parents=True, exist_ok=True)
        first = from_jpeg(pictures[0][1])
        scale = max(1.0, WIDE / first.shape[1])
        size = tuple(2 * round(scale * n / 2) for n in first.shape[1::-1])  # 4:2:0 wants even sides
        text = f"trial {slot.number + 1} of {len(self.slots)}: {words}"
        frames = (captioned(cv2.resize(from_jpeg(p), size, interpolation=cv2.INTER_NEAREST), text) for _, p in pictures)
        fps = (len(pictures) - 1) / (pictures[-1][0] - pictures[0][0])
        encode_video(self.folder / name, frames, fps,
                     Codec(crf=23, preset="veryfast", pixel_format="yuv420p", keyframe_interval=30))
        return name


def run(plan: str, out: str, video: bool = False, report: bool = False, unblind: bool = False, json: bool = False,
        say: Callable[[str], None] = print) -> int:
    """The command: do the trials that are left, then write the report; 1 when trials are still missing.

    Args:
        report: only write the report of what is there.
        unblind: name the policies though trials are missing.
        json: print the report's figures as JSON, and all else on stderr.
    """
    read, folder = load_plan(plan), Path(out)
    _check(read)
    with redirect_stdout(sys.stderr) if json else nullcontext():
        if not report:
            attended = sys.stdin.isatty()
            if not attended and not read.simulated:
                raise ConfigError("vipra rollouts on a robot needs a terminal: the operator's keys start and label "
                                  "trials")
            with Terminal() if attended else nullcontext(Unattended()) as operator:
                Rollouts(read, folder, operator, video).run()
        journal = Journal(folder, read)
        page = trial_page.write(read, journal, folder, unblind)
        figures = trial_page.summary(read, journal, unblind)
        for line in trial_page.lines(figures):
            say(line)
        say(f"report: {page}" + (f"; {figures['missing']} trials are left, the same command goes on"
                                 if figures["missing"] else ""))
    if json:
        print(json_module.dumps(figures, indent=1, ensure_ascii=False))
    return int(bool(figures["missing"]) and not report)


def _check(plan: Plan) -> None:
    """Refuse a plan whose launch arguments or checkpoints are wrong before the first trial."""
    from vipra_ros import graph
    from vipra_ros.policy.shipped import resolve

    for policy in plan.policies:
        if policy.checkpoint:
            resolve(policy.checkpoint)
        given = {k: str(v) for k, v in plan.arguments.items()}
        graph.resolve("policy", {**given, "robot": plan.robot, **policy.launch()})
