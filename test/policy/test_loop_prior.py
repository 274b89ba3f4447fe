"""The loop gives a guided engine the chunk that the arm executes, moved to the new observation, and no other."""

import threading

import numpy as np
import pytest

from vipra_ros.control.guard import State
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.loop import PolicyLoop
from vipra_ros.policy.plan import Plan, Timing
from vipra_ros.policy.report import Phase

WORDS = "reach above the red cube"


class Watched:
    """A real engine, remembering observations and answers; its answers are waited for by `until`."""

    def __init__(self, engine):
        self.engine, self.checkpoint, self.guided = engine, engine.checkpoint, engine.guided
        self.asked = []

    def warm_up(self):
        self.engine.warm_up()

    def infer(self, observation, seed=None):
        made = self.engine.infer(observation, 7)
        self.asked.append((observation, made.actions))
        return made


class Rig:
    """A loop on a clock of its own; `step` gives it pictures up to a time and waits for its chunk."""

    def __init__(self, engine):
        self.engine, self.clock, self.said = Watched(engine), 0.0, threading.Event()
        self.loop = PolicyLoop(
            lambda: (self.engine, Plan.of(engine.checkpoint)), lambda chunk: self.said.set(), lambda picture: picture,
            lambda: self.clock, "rig", Timing(), instruction=WORDS,
        )  # fmt: skip
        self.count, self.thread = 0, threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()

    def step(self, until, state=State.RUNNING, epoch=0, patience=60):
        with self.loop._wake:  # else a quick loop answers a picture on the way
            self.said.clear()
            self.loop.executor(int(state), epoch, 0)
            while self.clock < until - 1e-9:
                self.clock += 1 / 15
                self.count += 1
                self.loop.image("front", self.clock, np.full((32, 32, 3), self.count, np.uint8), self.count)
        for _ in range(patience):  # the executor's word must stay fresh while a busy machine thinks
            self.loop.executor(int(state), epoch, 0)
            if self.said.wait(0.5):
                return self.engine.asked[-1]
        raise AssertionError(self.loop.report())


@pytest.fixture
def rig(request, micro_checkpoint):
    made = Rig(load_engine(Checkpoint.load(micro_checkpoint), threads=1, rtc=request.param))
    for _ in range(3000):
        if made.loop.plan is not None:
            break
        threading.Event().wait(0.01)
    yield made
    made.loop.stop()
    made.thread.join(10)


@pytest.mark.parametrize("rig", ["guided"], indirect=True)
def test_a_clock_that_is_set_back_begins_anew(rig):
    """Neither is the next chunk waited for until the old time comes again, nor is a picture taken for one of before."""
    first, _ = rig.step(0.4)
    rig.step(1.0)
    rig.clock -= 1.0
    while rig.clock > -1.0:  # far enough to be no late picture
        rig.clock -= 1.0
    second, _ = rig.step(rig.clock + 0.4)
    assert second.prior is None and second.stamp < first.stamp
    assert not set(first.frame_stamps["front"]) & set(second.frame_stamps["front"])


@pytest.mark.parametrize("rig", ["guided"], indirect=True)
def test_joints_that_are_not_finite_are_unsaid(rig):
    rig.loop.joints(0.0, np.full(8, np.nan))
    rig.loop.joints(0.1, np.zeros(8))
    rig.loop.joints(0.2, np.full(8, 0.5))
    assert rig.loop._history._path == pytest.approx(0.5) and len(rig.loop._joints._stamps) == 2


@pytest.mark.parametrize("rig", ["none"], indirect=True)
def test_pictures_are_kept_as_long_as_their_stamps(micro_checkpoint, rig):
    """A stride of seconds at a quick camera: what is chosen must be there."""
    loop = rig.loop
    loop._history.offsets = (-2.2, 0.0)
    for k in range(400):
        loop.image("front", k / 60, np.zeros((8, 8, 3), np.uint8), k)
    chosen = loop._history.select(399 / 60)
    assert not chosen.reasons and set(chosen.frame_stamps["front"]) <= set(loop._encoded["front"])
    assert list(loop._encoded["front"]) == list(loop._history._cameras["front"].stamps)


@pytest.mark.parametrize("rig", ["guided"], indirect=True)
def test_the_running_chunk_is_the_prior_of_the_next(rig):
    first, rows = rig.step(0.4)
    assert first.prior is None
    second, later = rig.step(1.0)
    shift = (second.stamp - first.stamp) * 15
    assert shift == pytest.approx(round(shift)) and shift >= 1
    assert np.allclose(second.prior.rows, rows[round(shift) :]) and second.prior.committed <= len(second.prior.rows)
    assert np.array_equal(later[: second.prior.committed], second.prior.rows[: second.prior.committed])
    assert rig.step(1.6, State.ARMED)[0].prior is None  # at rest: nothing is going on
    assert rig.step(2.2)[0].prior is not None
    assert rig.step(2.8, epoch=1)[0].prior is None  # recovered: what was published before is void
    rig.loop.instruct("push the blue cube")
    assert rig.step(3.4, epoch=1)[0].prior is None
    assert rig.step(4.0, epoch=1)[0].prior is not None


@pytest.mark.parametrize("rig", ["none"], indirect=True)
def test_a_broken_picture_is_lost_and_the_next_one_answered(rig):
    rig.step(0.4)

    def decode(picture):
        if picture[0, 0, 0] in broken:
            raise ValueError("7 bytes are no image; publish JPEG or PNG")
        return picture

    rig.loop._decode, broken = decode, range(10, 16)
    first = rig.loop.report().cameras["front"].lost
    with pytest.raises(AssertionError):
        rig.step(1.0, patience=3)  # its newest picture is number 15
    report = rig.loop.report()
    assert report.phase is Phase.WAITING and "camera front: 7 bytes are no image; publish JPEG or PNG" in report.reasons
    assert report.cameras["front"].lost > first
    observation, _ = rig.step(1.6)
    assert observation.stamp == pytest.approx(1.6) and rig.loop.report().phase is Phase.RUNNING
    before, sizes = rig.loop.report().cameras["front"].lost, [np.zeros((32, 32, 3)), np.zeros((16, 32, 3))]
    assert rig.loop._frames({"front": sizes}, {"front": (9.0, 9.1)}) is None
    assert rig.loop.report().cameras["front"].lost == before + 1
    assert rig.loop._frames({"front": sizes[:1] * 2}, {"front": (9.0, 9.1)})["front"].shape == (2, 32, 32, 3)


@pytest.mark.parametrize("rig", ["none"], indirect=True)
def test_a_plain_engine_is_given_none(rig):
    assert all(rig.step(until)[0].prior is None for until in (0.4, 1.0, 1.6))
