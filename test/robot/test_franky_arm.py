"""Real franky over the real FCI protocol to a simulated controller of our own."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

franky = pytest.importorskip("franky")
pytest.importorskip("franky_sim")

from vipra_ros.config import ConfigError  # noqa: E402
from vipra_ros.control.chunk import ActionChunk, Waypoint  # noqa: E402
from vipra_ros.control.executor import ExecutorCore, ExecutorSettings  # noqa: E402
from vipra_ros.control.guard import State  # noqa: E402
from vipra_ros.control.profile import load_profile  # noqa: E402
from vipra_ros.control.sinks import PreviewHand  # noqa: E402
from vipra_ros.robot.arm import MODES, NO_WAY, PATIENCE, ArmError, FrankyArm, Refusals  # noqa: E402
from vipra_ros.robot.claim import Claim, Claimed  # noqa: E402
from vipra_ros.robot.connect import ConnectionSettings, connect  # noqa: E402
from vipra_ros.robot.hand import FrankyHand  # noqa: E402
from vipra_ros.robot.impedance import ImpedanceArm  # noqa: E402
from vipra_ros.robot.reported import tighten  # noqa: E402
from vipra_ros.robot.velocity import VelocityArm  # noqa: E402
from vipra_ros.sim.server import TableServer  # noqa: E402

T = 1 / 15
HOST = "127.0.7.21"
PROFILE = load_profile("fr3")


SIMULATION = """
import sys, time
from vipra_ros.sim.server import TableServer
with TableServer(sys.argv[1]) as server:
    print("up", flush=True)
    while server.failure is None:
        time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def server():
    """A simulated controller in a process of its own, as on the robot: it shares no interpreter with the loop."""
    process = subprocess.Popen([sys.executable, "-c", SIMULATION, HOST], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "up"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def arm(server):
    arm = FrankyArm(PROFILE, HOST, "ignore")
    # The controller's own clock: a simulated one falls behind the wall on a machine short of processors, by 17 %
    # at worst seen, and then wall time would measure the machine instead of the arm.
    arm._clock = lambda: arm._robot.state.time.to_sec()
    deadline = time.monotonic() + 3.0
    while np.abs(arm.state().dq).max() > 0.01 and time.monotonic() < deadline:
        time.sleep(0.05)
    yield arm
    arm.close()


def run(core, arm, seconds, each=None, rate=100.0):
    """The control loop for a while of the arm's clock; returns [(time, commanded by us, q_d, q)]."""
    log, begin = [], arm._clock()
    while (now := arm._clock()) - begin < seconds:
        if each:
            each(now)
        state = arm.state()
        core.tick(state.time, state)
        log.append((state.time, core.reference().at(state.time)[0], state.q_d, state.q))
        time.sleep(1 / rate)
    return log


def test_limits_are_clamped_at_connect(arm):
    robot = arm._robot
    assert np.all(robot.joint_velocity_limit.get() <= 2.0)
    assert np.all(robot.joint_acceleration_limit.get() <= 7.0)
    assert np.all(robot.joint_jerk_limit.get() <= 3500.0)
    assert robot.relative_dynamics_factor.velocity == pytest.approx(0.6)
    for own, arms in zip(PROFILE.limits, PROFILE.arm_limits):
        assert np.all(own < arms), "the arm's generator must be able to catch up"


def test_connecting_does_not_lift_the_whole_process_to_real_time(arm):
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_twelve_chunks_of_a_sine_are_tracked(arm):
    core = ExecutorCore(PROFILE, ExecutorSettings(), arm, PreviewHand(), recover_robot=arm.recover)
    core.tick(arm._clock(), arm.state())
    centre = arm.state().q_d
    assert core.arm(arm._clock()).success
    begin, sent = arm._clock(), 0
    amplitude = 0.2 * np.array([1, 0, 1, 1, 0, 1, 0])

    def path(t):
        return np.append(centre + amplitude * np.sin(2 * np.pi * 0.25 * (t - begin)), 1.0)

    def policy(now):
        nonlocal sent
        if sent < 12 and now - begin >= sent * 6 * T:
            stamp = begin + sent * 6 * T
            rows = np.array([path(stamp + (k + 1) * T) for k in range(14)])
            sent += 1
            verdict = core.offer(ActionChunk(stamp, sent, T, rows[:7], rows[7:], joint_names=PROFILE.joint_names), now)
            assert verdict, verdict

    log = run(core, arm, 12 * 6 * T, policy)
    times, ours, q_d, q = (np.array(column) for column in zip(*log))
    wanted = np.array([path(t)[:7] for t in times])
    status = core.status
    assert sent == 12 and status.accepted == 12 and status.faults == 0, status.reasons
    assert np.abs(q - wanted).max(1).mean() < 0.02
    assert np.abs(q_d - ours).max(1).mean() < 0.005, "franky goes the way that the limiter planned"
    assert status.limiter_active < 0.1
    core.stop(arm._clock())
    run(core, arm, 0.6)
    assert core.machine.state is State.IDLE, core.machine.reasons
    assert np.abs(arm.state().dq).max() < 0.02


PAUSES = """
import os, signal, sys, time
until = time.monotonic() + 3.0
while time.monotonic() < until:
    os.kill(int(sys.argv[1]), signal.SIGSTOP)
    time.sleep(0.004)
    os.kill(int(sys.argv[1]), signal.SIGCONT)
    time.sleep(0.036)
"""


def test_lost_control_cycles_leave_the_arm_no_further_behind(arm):
    """franky plans the way to a waypoint anew after each, with all the time it had at first."""
    begin, start = arm.state().q_d, arm._clock() + 0.1
    turn, slope = 0.4 * np.eye(7)[6], 0.4 * np.eye(7)[6]
    points = [Waypoint(start + k * 0.1, begin + (k * 0.1) * turn, slope) for k in range(1, 16)]
    points.append(Waypoint(start + 2.0, begin + 1.75 * turn, 0 * slope))
    pauses = subprocess.Popen([sys.executable, "-c", PAUSES, str(os.getpid())])
    behind = []
    try:
        arm.stream(points, arm._clock())
        while (now := arm._clock()) < start + 1.5:
            if now > start + 0.7:
                behind.append(now - start - (arm.state().q_d - begin)[6] / turn[6])
            time.sleep(0.01)
    finally:
        pauses.wait()
    assert np.median(behind) < 0.2, f"{np.median(behind):.2f} s"


def test_stop_brakes_and_gives_up_control(arm):
    core = ExecutorCore(PROFILE, ExecutorSettings(start_ramp=0.0, start_speed=1.0), arm, PreviewHand())
    core.tick(arm._clock(), arm.state())
    assert core.arm(arm._clock()).success
    start = arm.state().q_d
    rows = np.array([np.append(start + (k + 1) * 0.02 * np.array([1, 0, 0, 0, 0, 0, 1.0]), 1.0) for k in range(14)])
    chunk = ActionChunk(arm._clock(), 1, T, rows[:7], rows[7:], joint_names=PROFILE.joint_names)
    assert core.offer(chunk, arm._clock())
    run(core, arm, 0.3)
    moving = np.abs(arm.state().dq_d).max()
    asked = arm._clock()
    core.stop(asked)
    log = run(core, arm, 0.5)
    assert moving > 0.15
    rest = next(t for (t, _, a, _), (_, _, b, _) in zip(log, log[3:]) if np.abs(a - b).max() < 1e-5)
    assert rest - asked < core.limiter.stop_time(0.5) + 0.1
    assert core.machine.state is State.IDLE and not arm.state().error
    time.sleep(0.2)
    assert not arm.state().in_control


def test_a_motion_error_shows_and_recovery_clears_it(arm):
    state = arm.state()
    assert state.error == "" and np.isfinite(state.q_d).all()
    arm._failure = "joint_reflex"  # as poll_motion would have reported it
    assert arm.state().error == "joint_reflex"
    assert arm.recover() == "" and arm.state().error == ""


class Behind:
    """A robot that says something else than the real one behind it."""

    def __init__(self, robot, **changes):
        self._robot, self._changes = robot, changes

    def __getattr__(self, name):
        return self._changes[name] if name in self._changes else getattr(self._robot, name)


@pytest.mark.parametrize("said, error", [
    ("libfranka: Move command preempted!", ""),
    ("libfranka: Move command preempted due to activated safety function!", "safety function"),
])
def test_only_our_own_preemption_is_no_error(arm, said, error):
    def poll():
        raise RuntimeError(said)

    arm._robot = Behind(arm._robot, poll_motion=poll)
    assert error in arm.state().error and bool(arm.state().error) == bool(error)


@pytest.mark.parametrize("mode, said", [
    (franky.RobotMode.UserStopped, "user stop"), (franky.RobotMode.Guiding, "guiding"), (franky.RobotMode.Move, ""),
])
def test_a_robot_that_follows_nobody_says_so(arm, mode, said):
    arm._robot = Behind(arm._robot, state=Behind(arm._robot.state, robot_mode=mode))
    assert said in arm.state().error and bool(arm.state().error) == bool(said)


def test_a_state_that_is_not_renewed_grows_old(arm):
    """In control, franky answers at once with the last state it has."""
    arm._clock = time.monotonic
    first = arm.state().time
    time.sleep(0.05)
    assert arm.state().time > first
    arm._robot = Behind(arm._robot, state=arm._robot.state)
    last = arm.state().time
    time.sleep(0.05)
    assert arm.state().time == last


def refuse(arm):
    """Ask for what the generator cannot plan: to pass a waypoint faster than its velocity limit."""
    arm._feasible.choose = lambda waypoints, state, now: list(waypoints)  # which would leave it out
    state, now, joint = arm.state(), arm._clock(), np.eye(7)[6]
    end = Waypoint(now + 0.4, state.q_d + 0.03 * joint, 0 * joint)
    arm.stream([Waypoint(now + 0.1, state.q_d + 0.01 * joint, 1.5 * joint), end], now)
    before, deadline = arm.refusals.count, time.monotonic() + 2.0
    while arm.refusals.count == before and not arm.state().error and time.monotonic() < deadline:
        time.sleep(0.01)
    return arm.state().error


def test_a_refused_motion_is_followed_by_one_straight_to_rest(arm):
    assert refuse(arm) == "" and arm.refusals.straight and arm.refusals.count == 1
    begin, now, joint = arm.state().q_d, arm._clock(), np.eye(7)[6]
    # The same impossible waypoint again: left out, because the motion after a refusal has its last waypoint only.
    arm.stream([Waypoint(now + 0.1, begin, 1.5 * joint), Waypoint(now + 0.6, begin + 0.05 * joint, 0 * joint)], now)
    while arm._clock() < now + 1.0:
        assert arm.state().error == ""
        time.sleep(0.02)
    assert np.abs(arm.state().q_d - begin - 0.05 * joint).max() < 2e-3
    assert not arm.refusals.straight and arm.refusals.count == 1, "one motion is not yet a recovery"


def test_a_refusal_that_surfaces_while_the_next_motion_is_sent_is_no_fault(arm):
    """It comes out of whichever call is next: seen once in a minute of chunks."""
    class Once:
        def __init__(self, robot):
            self.robot, self.sent = robot, []

        def __getattr__(self, name):
            return getattr(self.robot, name)

        def move(self, motion, asynchronous):
            self.sent.append(motion)
            if len(self.sent) == 1:
                raise RuntimeError(f"{NO_WAY} with error code -111")
            self.robot.move(motion, asynchronous=asynchronous)

    begin, now, joint = arm.state().q_d, arm._clock(), np.eye(7)[6]
    arm._robot = once = Once(arm._robot)
    rest = Waypoint(now + 1.0, begin + 0.05 * joint, 0 * joint)
    arm.stream([Waypoint(now + 0.5, begin + 0.02 * joint, 0.05 * joint), rest], now)
    assert [len(m.waypoints) for m in once.sent] == [2, 1] and arm.refusals.total == 1
    while arm._clock() < now + 1.5:
        assert arm.state().error == ""
        time.sleep(0.02)
    assert np.abs(arm.state().q_d - begin - 0.05 * joint).max() < 2e-3
    once.sent.clear()
    arm.stop(arm._clock())
    assert len(once.sent) == 2, "a stop is sent again too"


def test_a_refusal_at_the_end_of_a_motion_is_none(arm):
    """The generator is asked for the way from the end to the end: the motion is over, the next one as any other."""
    class Ends:
        def __init__(self, robot):
            self.robot, self.ending = robot, ""

        def __getattr__(self, name):
            return getattr(self.robot, name)

        def poll_motion(self):
            if self.ending:
                self.ending = ""
                raise RuntimeError(f"{NO_WAY} with error code -111")
            return self.robot.poll_motion()

    begin, now, joint = arm.state().q_d, arm._clock(), np.eye(7)[6]
    arm.stream([Waypoint(now + 0.4, begin + 0.05 * joint, 0 * joint)], now)
    arm._robot = ends = Ends(arm._robot)
    ends.ending = "on the way"
    assert arm.state().error == "" and arm.refusals.total == 1 and arm.refusals.straight
    arm.refusals.clear()
    while arm._clock() < now + 0.7:
        assert arm.state().error == ""
        time.sleep(0.02)
    ends.ending = "at the end"
    assert arm.state().error == "" and arm.refusals.total == 1 and not arm.refusals.straight


def test_recovery_forgets_refusals_and_too_many_are_an_error(arm):
    arm.refusals.count, arm.refusals.since = PATIENCE, 0
    assert NO_WAY in refuse(arm)
    assert arm.recover() == "" and (arm.refusals.count, arm.refusals.straight) == (0, False)
    assert refuse(arm) == "" and arm.refusals.count == 1


def test_limits_that_the_robot_reports_win_when_stricter(arm):
    urdf = arm._robot.model_urdf
    own = tighten(PROFILE, urdf)
    assert own == arm.profile and (own.q_min[2], own.q_max[2]) == (-2.9007, 2.9007), "narrower than libfranka's 2.9065"
    assert [a == b for a, b in zip(own.q_max, PROFILE.q_max)] == [True, True, False, True, True, True, True]
    assert own.velocity == PROFILE.velocity
    narrow = urdf.replace('lower="-2.9007" upper="2.9007" velocity="2.62"', 'lower="-2" upper="2.1" velocity="0.5"', 1)
    narrow = narrow.replace('velocity_offset="0.652"', 'velocity_offset="0.3"', 1)
    tightened = tighten(PROFILE, narrow)
    assert (tightened.q_min[0], tightened.q_max[0], tightened.velocity[0]) == (-2.0, 2.1, 0.5)
    assert tightened.q_max[1:] == own.q_max[1:] and tightened.limits[0][0] < 0.26
    slow = urdf.replace('velocity_offset="0.652"', 'velocity_offset="2.5"', 1)
    with pytest.raises(ConfigError, match="fr3_joint1: the robot allows .* copy velocity_offset 2.5"):
        tighten(PROFILE, slow)
    for text in ("", "<robot/>"):
        with pytest.raises(ConfigError, match="robot"):
            tighten(PROFILE, text)


def test_no_arm_says_what_to_check():
    with pytest.raises(ArmError, match="no arm at 127.0.7.99"):
        connect(
            PROFILE,
            ConnectionSettings(host="127.0.7.99", realtime_config="ignore", connect_timeout=0.0),
            print,
        )
    with pytest.raises(ArmError, match="choose enforce or ignore"):
        FrankyArm(PROFILE, HOST, "maybe")


def test_no_hand_is_said_and_the_arm_let_go(monkeypatch):
    closed, claims = [], []

    class Arm:
        claim = None

        def __init__(self, *_):
            with pytest.raises(Claimed) as ours:
                Claim("127.0.7.97")
            claims.append(ours)

        def close(self):
            closed.append(self.claim)

    def nobody(*_):
        raise franky.NetworkException("libfranka gripper: Connection timeout")

    monkeypatch.setattr("vipra_ros.robot.arm.FrankyArm", Arm)
    monkeypatch.setattr("vipra_ros.robot.hand.FrankyHand", nobody)
    with pytest.raises(ArmError, match="no hand at 127.0.7.97: .*timeout; set the executor's parameter hand to false"):
        connect(PROFILE, ConnectionSettings(host="127.0.7.97", connect_timeout=0.6), print)
    assert len(claims) > 1 and closed == [None] * len(claims), "tried again, with the claim kept"
    Claim("127.0.7.97").release()


def test_every_mode_but_idle_and_move_has_its_text():
    modes = {value for name, value in vars(franky.RobotMode).items() if isinstance(value, franky.RobotMode)}
    assert modes - set(MODES) == {franky.RobotMode.Idle, franky.RobotMode.Move}


@pytest.mark.parametrize("kind", [FrankyArm, VelocityArm, ImpedanceArm])
def test_an_arm_that_was_not_found_again_says_so(kind):
    arm = kind.__new__(kind)
    arm.profile, arm.host, arm._clock, arm._realtime = PROFILE, "127.0.7.99", time.monotonic, "ignore"
    arm._lock, arm._failure, arm.refusals = threading.Lock(), "connection lost: x", Refusals()
    arm._robot = SimpleNamespace(is_in_control=False, has_errors=True)
    for _ in range(2):
        assert arm.recover().startswith("no arm at 127.0.7.99")
        assert arm.state().error.startswith("no arm at 127.0.7.99")
        with pytest.raises(ArmError, match="no arm at 127.0.7.99"):
            arm.stop(0.0)


def test_the_hand_never_blocks_and_ends_at_the_newest_wish(server):
    hand = FrankyHand(HOST, PROFILE.gripper_width)
    try:
        begin = time.monotonic()
        for opening in (-1.0, 1.0, -1.0, -1.0, 1.0, -1.0):
            hand.command(opening)
        assert time.monotonic() - begin < 0.02
        deadline = time.monotonic() + 6.0
        while not hand.width < 0.005 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert hand.width < 0.005 and hand.error == "" and hand.commands <= 2
        hand.command(1.0)
        while not hand.width > 0.07 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert hand.width > 0.07
    finally:
        hand.close()


def test_a_hanging_hand_is_given_up():
    class Hanging:
        """Accepts and never finishes."""

        width, stopped, begun, done, fresh = 0.04, 0, 0, False, 0

        def move_async(self, *_):
            self.begun += 1
            return self

        def wait(self, timeout):
            time.sleep(timeout)
            return self.done

        def get(self):
            return True

        def stop(self):  # as franky's, which waits for the command
            self.stopped += 1
            while not self.done:
                time.sleep(0.01)

    device = Hanging()
    hand = FrankyHand("nowhere", 0.08, timeout=0.2, connect=lambda host: device)
    begin = time.monotonic()
    hand.command(1.0)
    assert time.monotonic() - begin < 0.02
    while not hand.error and time.monotonic() - begin < 3.0:
        time.sleep(0.02)
    assert "did not finish in 0.2 s" in hand.error
    hand.command(1.0)  # franky would wait for the one before, whatever it is
    while "still at a command" not in hand.error and time.monotonic() - begin < 3.0:
        time.sleep(0.02)
    assert "still at a command" in hand.error and (device.begun, device.stopped) == (1, 1)
    device.done = True
    hand.command(1.0)
    while hand.error and time.monotonic() - begin < 6.0:
        time.sleep(0.02)
    assert hand.error == "" and device.begun == 2
    hand.close()
    assert threading.active_count() < 20


def test_a_hand_that_hangs_for_good_is_said_and_ends_soon():
    host = "127.0.7.34"
    with TableServer(host) as server:
        hand = FrankyHand(host, 0.08, timeout=0.5)
        server.hang_hand(True)
        hand.command(-1.0)
        begin = time.monotonic()
        while not hand.error and time.monotonic() - begin < 5.0:
            time.sleep(0.02)
        assert hand.error
        server.hang_hand(False)
        begin = time.monotonic()
        hand.close()
        assert time.monotonic() - begin < 1.5


def test_an_opening_that_is_refused_is_said_a_grasp_of_nothing_is_not():
    class Jammed:
        """Does nothing, and says so."""

        width = 0.04

        def move_async(self, *_):
            return self

        grasp_async = move_async

        def wait(self, timeout):
            return True

        def get(self):
            return False

    hand, end = FrankyHand("nowhere", 0.08, connect=lambda host: Jammed()), time.monotonic() + 5.0
    try:
        hand.command(-1.0)
        while not hand.commands and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        assert hand.error == ""
        hand.command(1.0)
        while not hand.error and time.monotonic() < end:
            time.sleep(0.01)
        assert hand.error == "hand did not open; look at its fingers"
    finally:
        hand.close()


def test_a_mute_hand_has_no_width(monkeypatch):
    from vipra_ros.robot import hand as module

    class Mute:
        """Answers once."""

        @property
        def width(self):
            self.asked = getattr(self, "asked", 0) + 1
            if self.asked > 1:
                raise RuntimeError("timeout")
            return 0.04

    monkeypatch.setattr(module, "STALE", 0.3)
    monkeypatch.setattr(module, "IDLE_PERIOD", 0.05)
    device = Mute()
    hand = FrankyHand("nowhere", 0.08, connect=lambda host: device)
    try:
        assert hand.width == 0.04
        time.sleep(0.5)
        assert np.isnan(hand.width) and "cannot be read" in hand.error
    finally:
        hand.close()


def test_a_wish_that_waits_is_withdrawn():
    begun, free = [], threading.Event()

    class Slow:
        """Goes on until it is free."""

        width = 0.04

        def move_async(self, *_):
            begun.append(1.0)
            return self

        def grasp_async(self, *_):
            begun.append(-1.0)
            return self

        def wait(self, timeout):
            return free.wait(timeout)

        def get(self):
            return True

    hand = FrankyHand("nowhere", 0.08, timeout=10.0, connect=lambda host: Slow())
    try:
        assert np.isnan(hand.cancel())
        hand.command(-1.0)
        deadline = time.monotonic() + 5.0
        while not begun and time.monotonic() < deadline:
            time.sleep(0.01)
        hand.command(1.0)
        assert hand.cancel() == -1.0
        free.set()
        time.sleep(0.3)
        assert begun == [-1.0]
        hand.command(1.0)
        while len(begun) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert begun == [-1.0, 1.0]
    finally:
        free.set()
        hand.close()


def test_a_command_that_failed_may_be_tried_again():
    begun = []

    class Unhomed:
        """Refuses until somebody has homed it."""

        width, homed = 0.04, False

        def grasp_async(self, *_):
            begun.append(-1.0)
            if not self.homed:
                raise RuntimeError("not homed")
            return self

        def wait(self, timeout):
            return True

        def get(self):
            return True

    device = Unhomed()
    hand, end = FrankyHand("nowhere", 0.08, connect=lambda host: device), time.monotonic() + 5.0
    try:
        hand.command(-1.0)
        while not hand.error and time.monotonic() < end:
            time.sleep(0.01)
        assert "not homed; home it in Desk" in hand.error and np.isnan(hand.cancel())
        time.sleep(0.7)
        assert begun == [-1.0]  # not by itself
        device.homed = True
        hand.command(-1.0)
        while hand.error and time.monotonic() < end:
            time.sleep(0.01)
        assert begun == [-1.0, -1.0] and hand.error == ""
    finally:
        hand.close()


def test_a_hand_that_was_silent_works_again_and_forgets_what_it_was_asked():
    host = "127.0.7.31"
    with TableServer(host) as server:
        hand, longest = FrankyHand(host, 0.08), 0.0
        try:
            server.hang_hand(True)
            begin = last = time.monotonic()
            while not hand.error and last - begin < 5.0:  # libfranka waits 1 s for a state
                time.sleep(0.005)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            assert "cannot be read" in hand.error
            assert longest < 0.5, "waiting for the hand must not hold up the interpreter, the arm's loop is in it"
            hand.command(-1.0)
            time.sleep(0.1)
            server.hang_hand(False)
            begin = time.monotonic()
            while hand.error and time.monotonic() - begin < 5.0:
                time.sleep(0.02)
            assert hand.error == ""
            time.sleep(0.5)
            assert hand.commands == 0 and hand.width > 0.07
            assert hand.forgot() and not hand.forgot()
            hand.command(-1.0)
            while hand.width > 0.01 and time.monotonic() - begin < 10.0:
                time.sleep(0.02)
            assert hand.width < 0.01
        finally:
            hand.close()


def test_an_arm_that_another_process_drives_is_left_alone():
    claim = Claim("127.0.7.32")
    try:
        with pytest.raises(ArmError, match=f"process {os.getpid()} of this machine drives the arm at 127.0.7.32"):
            connect(load_profile("fr3"), ConnectionSettings(host="127.0.7.32", connect_timeout=0.0), print)
    finally:
        claim.release()
