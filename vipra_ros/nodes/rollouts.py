"""`vipra rollouts`: policies compared on a robot, trial by trial, with an operator who does not know which is which.

Plan, order and letters are `learning/trials.py`, the journal is `learning/trial_journal.py`; this is the part with an
arm. Each policy is a `vipra up policy` of its own, restarted when the next trial is another policy's. On an arm of
metal nothing moves before the operator's key; in simulation the scene lays itself out and the simulator says who
succeeded. What the keys say, buttons say too (`trial_buttons.py`): those of `vipra console`.
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
from vipra_ros.learning.trial_film import film
from vipra_ros.learning.trial_journal import FAILURE, INVALID, RESULTS, SUCCESS, Journal, Trial, interruptions
from vipra_ros.learning.trials import Plan, Slot, brief, load_plan, schedule
from vipra_ros.lock import held
from vipra_ros.msg import ExecutorStatus
from vipra_ros.nodes.session import CAMERA_TOPIC, ENDED, OPEN_FINGER, Session
from vipra_ros.nodes.system import SessionError, System
from vipra_ros.nodes.terminal import QUIT, Terminal, Unattended
from vipra_ros.nodes.trial_buttons import LABELS, TrialButtons

KEYS = {"y": SUCCESS, "n": FAILURE, "i": INVALID}
GO, STOP, BACK = ("\n", "\r"), " ", "u"
#: s between two looks at keys and states.
TICK = 0.02
#: s for a policy to get ready; a large one is read from disk for minutes.
START_TIMEOUT = 600.0
#: Columns of the line that is shown while the operator is asked; a longer one would be broken.
COLUMNS = 120


class RolloutError(RuntimeError):
    """The evaluation cannot go on; one line, without a policy's name."""


class Leave(Exception):
    """The operator wants to go on another time."""


class Rollouts:
    """Does what is left of a plan.

    Args:
        folder: of results, logs and videos.
        operator: a `Terminal`, or what has its say, show, key and forget.
        video: keep a video of each trial.
    """

    def __init__(self, plan: Plan, folder: Path, operator, video: bool = False):
        self.plan, self.folder, self._operator, self._video = plan, folder, operator, video
        self.journal, self.slots = Journal(folder, plan), schedule(plan)
        self.blind = self.journal.blind
        self._session: Session | None = None
        self._buttons: TrialButtons | None = None
        self._model = ""  # that runs, as the journal keeps it
        self._last: list[str] = []  # how the last trial went, for who sees one page and not the terminal
        self._states: list[str] | None = None  # of the executor, in a trial
        self._pictures: list[tuple[float, bytes]] | None = None

    def run(self) -> bool:
        """Until all trials are done, or the operator leaves (False); then the same call goes on.

        Raises:
            RolloutError: a system does not start, or ends.
            ConfigError: a policy's checkpoint has changed since its trials so far.
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
        self._say(f"starting policy {code} ...")
        began = time.monotonic()
        with System(log=self._log(f"{slot.number + 1:04d}-{code}"), **self.plan.launch(slot.policy)) as system:
            self._session = Session(
                system.domain, system.check, self._on_image if self._video else None, self._on_status,
                (self.plan.camera,), self.plan.simulated)
            self._buttons = TrialButtons(self._session.node)
            self._buttons.tell([f"starting policy {code}", *self._last])
            try:
                self._operator.forget()
                self._session.wait_ready(START_TIMEOUT, lambda: self._starting(code))
                self._model = self.journal.model(code, self._session.policy_status.checkpoint)
                self._say(f"policy {code} is ready after {time.monotonic() - began:.0f} s")
                yield
            finally:
                self._session.close()

    def _log(self, stem: str) -> Path:
        """A file for each start: what a crash has said stays when its trial is repeated."""
        folder = self.folder / "logs"
        return folder / f"{stem}-{1 + len(list(folder.glob(f'{stem}-*.log')))}.log"

    def _starting(self, code: str) -> None:
        """What a policy that gets ready still waits for."""
        status = self._session.policy_status
        why = self.blind.scrub("; ".join(status.reasons) or status.state_text) if status else "not heard of yet"
        self._operator.show(f"q quit   starting policy {code}: {why}"[:COLUMNS])
        self._leave_on_key()

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
        elif session.finger < OPEN_FINGER and not self._granted(
                f"the hand is not open ({2e3 * session.finger:.0f} mm): open it; begin with it as it is", lambda: None):
            return  # a policy that sees a closed hand believes that it holds something
        try:
            if not self._granted("the scene is laid out: begin", lambda: self._begin(words)):
                return
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            before, began = session.executor_status, time.monotonic()
            with self._buttons.asking("how did it go?", *LABELS):
                label, by, asked = self._watch(slot, began)
            seconds, after = time.monotonic() - began, session.executor_status
        finally:  # here the trial ends: neither the stop nor the time that a label takes to think of belongs to it
            states, pictures, self._states, self._pictures = self._states, self._pictures, None, None
            self._halt()
        label = label or self._label(asked)
        stalls, stops = interruptions(states)
        reason = "; ".join(after.reasons) or after.state_text if after.state in ENDED else ""
        trial = Trial(slot.number, self.blind.codes[slot.policy], task.label, slot.block, slot.seed, label, by, seconds,
                      stalls, stops, self.blind.scrub(reason), after.accepted - before.accepted,
                      after.rejected - before.rejected, after.limited - before.limited, began=date, words=words,
                      model=self._model)
        self.journal.add(trial)
        how = f"{label} ({by}) after {seconds:.1f} s, {stalls} stalls, {stops} stops"
        how += f": {trial.stopped}" if trial.stopped else ""
        self._say(f"  {how}")
        self._last = [f"  before: trial {slot.number + 1}, {how}"]
        if self._video:
            self._film(trial, pictures)

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
        self._operator.forget()  # not later: who stops an arm that is being armed is heard
        self._session.instruct(words)
        time.sleep(0.2)  # a frame of the new scene for every camera
        self._session.arm()
        self._states, self._pictures = [], []

    def _halt(self) -> None:
        """Stop the arm. One that does not obey is told of, and costs the trial no label."""
        try:
            self._session.halt()
        except SessionError as error:
            self._say(f"  {self.blind.scrub(str(error))}")

    def _watch(self, slot: Slot, began: float) -> tuple[str, str, str]:
        """Until the end of the trial: (label, by whom, ""), or ("", by whom, question) when it is asked at rest."""
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
                return KEYS[key], "operator", ""
            if key == STOP or state == ExecutorStatus.IDLE:  # or somebody pressed STOP elsewhere
                return "", "operator", "stopped"
            if session.outcome.get("success") and self.plan.simulated:
                return SUCCESS, "simulator", ""
            if state in ENDED:
                why = self.blind.scrub("; ".join(session.executor_status.reasons) or "no reason given")
                if self.plan.simulated:
                    return FAILURE, "executor", ""
                return "", "operator", f"the arm stopped by itself: {why}"
            if elapsed > limit:
                return FAILURE, "time limit", ""

    def _label(self, what: str) -> str:
        """The operator's word when the arm stands; unattended it is a failure."""
        if isinstance(self._operator, Unattended):
            return FAILURE
        self._operator.forget()
        with self._buttons.asking(what, *LABELS):
            while True:
                self._operator.show(f"y success  n failure  i invalid   {what}"[:COLUMNS])
                key = self._key()
                if key in QUIT:
                    raise Leave
                if key in KEYS:
                    return KEYS[key]

    def _wait(self, what: str, refused: str = "") -> str:
        """On an arm of metal wait for the operator's key: GO, or BACK when the last trial is taken back."""
        if self.plan.simulated:
            self._leave_on_key()
            return GO[0]
        self._operator.forget()
        with self._buttons.asking(what, "start", refused=refused):
            while True:
                status = self._session.executor_status
                fault = f"FAULT: {'; '.join(status.reasons)}   " if status.state == ExecutorStatus.FAULT else ""
                self._operator.show(f"{self.blind.scrub(fault)}Enter: {what}   u take the last trial back   q quit")
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

    def _film(self, trial: Trial, pictures: list[tuple[float, bytes]]) -> None:
        """Write the video of a trial that is in the journal; without one say why."""
        attempt = sum(t.slot == trial.slot for t in self.journal.trials)
        name = f"videos/trial-{trial.slot + 1:04d}-{attempt}.mp4"
        try:
            if not pictures:
                topic = CAMERA_TOPIC.format(self.plan.camera)
                raise ValueError(f"no picture came on {topic}; is it published, is it the plan's camera?")
            film(self.folder / name, pictures, f"trial {trial.slot + 1} of {len(self.slots)}: {trial.words}")
            trial.video = name
            self.journal.write()
        except Exception as error:  # whatever a codec, a picture or a disk says: the label is kept, the trials go on
            self._say(f"  no video: {self.blind.scrub(str(error))}")


def run(plan: str, out: str, video: bool = False, report: bool = False, unblind: bool = False, json: bool = False,
        say: Callable[[str], None] = print) -> int:
    """The command: do the trials that are left, then write the report; 1 when trials are still missing.

    Args:
        report: only write the report of what is there.
        unblind: name the policies though trials are missing.
        json: print the report's figures as JSON, and all else on stderr.
    """
    read, folder = load_plan(plan), Path(out)
    if report and not (folder / RESULTS).exists():
        raise ConfigError(f"{folder} has no {RESULTS}, so there is nothing to report: give the folder of the trials")
    with redirect_stdout(sys.stderr) if json else nullcontext():
        if not report:
            read.check()
            attended = sys.stdin.isatty()
            if not attended and not read.simulated:
                raise ConfigError("vipra rollouts on a robot needs a terminal: the operator's keys start and label "
                                  "trials")
            folder.mkdir(parents=True, exist_ok=True)
            with held(folder / "rollouts.lock") as mine:
                if not mine:
                    raise ConfigError(f"{folder} is in use by another vipra rollouts; end that one, or give another "
                                      "folder")
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
