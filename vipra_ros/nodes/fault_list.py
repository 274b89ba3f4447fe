"""What `vipra faults --sim` breaks, how it is mended, and what is to become of it."""

from __future__ import annotations

import resource
import signal
import time

from vipra_ros.nodes.fault_bench import STANDS, START, Bench, Fault, end
from vipra_ros.nodes.fault_camera import SimulatedClock

#: s a stopped policy is left stopped, and that a restarted executor is looked at.
FROZEN, LOOKED = 3.0, 3.0
#: bytes a file of the executor may have when its disk is to be full.
FULL = 4096


def faults() -> list[Fault]:
    """Every row, in order; the last one changes the clock of all and ends the bench."""
    return [*_policy(), *_chunks(), *_images(), *_others(), *_arm(), _clock()]


def spoil(words: str) -> dict:
    """By a word to the policy, until it is told to be well."""
    return dict(inject=lambda b: b.tell(words), mend=lambda b: b.tell("well"))


def camera(**changes: object) -> dict:
    """By something that is wrong with the camera."""
    def inject(bench: Bench) -> None:
        for name, value in changes.items():
            setattr(bench.camera, name, value)

    return dict(inject=inject, mend=lambda b: b.camera.well())


def _policy() -> list[Fault]:
    def restart(bench: Bench) -> None:
        bench.policy = bench.start_policy()

    def freeze(bench: Bench) -> None:
        """In the middle of an inference, so that its answer is old when it comes."""
        bench.tell("think 0.4")
        bench.until(lambda: bench.said("thinks", "policy.log"), 10.0, "an inference")
        bench.mark()
        bench.policy.send_signal(signal.SIGSTOP)

    def thaw(bench: Bench) -> None:
        freeze(bench)
        time.sleep(FROZEN)
        bench.policy.send_signal(signal.SIGCONT)
        bench.tell("well")
        bench.mended = time.monotonic()

    def cont(bench: Bench) -> None:
        bench.policy.send_signal(signal.SIGCONT)
        bench.tell("well")

    return [
        Fault("policy SIGKILL", lambda b: b.policy.kill(), "ARMED", "no acceptable chunk",
              "start the policy; no arming needed", mend=restart),
        Fault("policy SIGSTOP", freeze, "ARMED", "no acceptable chunk", "look why the policy hangs", mend=cont),
        Fault(f"policy SIGSTOP, SIGCONT after {FROZEN:.0f} s", thaw, "RUNNING", "no acceptable chunk",
              seconds=FROZEN + 4.0),
    ]


def _chunks() -> list[Fault]:
    return [
        Fault("policy answers NaN", says="not finite", expect="ARMED", operator="reload the checkpoint",
              **spoil("nan")),
        Fault("policy answers 2 s late", says="stale", expect="ARMED", operator="speed the policy up",
              **spoil("late 2")),
        Fault("policy answers 0.2 s late", expect="RUNNING", **spoil("late 0.2")),
        Fault("30 % of chunks lost", expect="RUNNING", **spoil("drop 0.3")),
        Fault("every chunk twice", says="old chunk id", expect="RUNNING", **spoil("twice")),
        Fault("policy's clock +1 s", says="from the future", expect="ARMED", operator="synchronise the clocks",
              **spoil("jump 1")),
        Fault("policy's clock -1 s", says="too late", expect="ARMED", operator="synchronise the clocks",
              **spoil("jump -1")),
        Fault("chunks best effort: quality of service", says="quality of service", expect="ARMED",
              operator="publish policy/chunk reliable", **spoil("besteffort")),
    ]


def _images() -> list[Fault]:
    look = "look at the camera"
    return [
        Fault("images 1 s late", says="s old", expect="ARMED", operator=look, **camera(delay=1.0)),
        Fault("images 0.2 s late", expect="RUNNING", **camera(delay=0.2)),
        Fault("10 % of images lost", says="lost", expect="RUNNING", **camera(drop=0.1)),
        Fault("50 % of images lost", says="lost", expect="RUNNING", **camera(drop=0.5)),
        Fault("every image twice", expect="RUNNING", **camera(twice=True)),
        Fault("pictures frozen", says="frozen", expect="ARMED", operator=look, **camera(frozen=True)),
        Fault("image stamps frozen", says="s old", expect="ARMED", operator=look, **camera(stamped=True)),
    ]


def _others() -> list[Fault]:
    second: list = []

    def quiet(bench: Bench) -> None:
        second.append(bench.start_policy("second_policy.log"))
        bench.tell("drop 1", second[-1])
        bench.until(lambda: bench.said("ready", "second_policy.log"), START, "the second policy")

    def over(bench: Bench) -> None:
        end(second.pop())

    def executor(bench: Bench) -> None:
        second.append(bench.start_executor("second_executor.log", connect_timeout=0.0))
        bench.until(lambda: second[-1].poll() is not None, START, "the end of the second executor")
        bench.noticed = time.monotonic()
        time.sleep(0.2)
        bench.remarks.append(bench.said("executor:", "second_executor.log"))
        if second[-1].returncode != 1:
            bench.wrong.append(f"the second executor ended with status {second[-1].returncode}")

    return [
        Fault("second policy", lambda b: b.tell("well", second[-1]), "RUNNING", "another policy is served",
              "end one of them", prepare=quiet, mend=over),
        Fault("second executor", executor, "RUNNING", "drives the arm", "end one of them", mend=over, seconds=1.0),
    ]


def _arm() -> list[Fault]:
    def hang(bench: Bench) -> None:
        bench.server.hang_hand(True)
        bench.tell("grip")

    def unhang(bench: Bench) -> None:
        bench.server.hang_hand(False)
        bench.tell("well")
        bench.until(lambda: not any("hand" in r for r in bench.status.reasons), 10.0, "the end of the hand's error")

    def dies(bench: Bench) -> None:
        bench.server.__exit__(None, None, None)

    def full_disk(bench: Bench) -> None:
        resource.prlimit(bench.executor.pid, resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))
        bench.server.__exit__(None, None, None)
        time.sleep(4.0)
        if not bench.said("could not be written"):
            bench.wrong.append("the log does not say that the incident could not be written")

    def mend_disk(bench: Bench) -> None:
        resource.prlimit(bench.executor.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        bench.start_controller()

    def killed(bench: Bench) -> None:
        end(bench.executor)
        bench.rest()
        bench.executor = bench.start_executor()
        bench.until(lambda: bench.status is not None, START, "the executor")
        fastest, until = 0.0, time.monotonic() + LOOKED
        while time.monotonic() < until:
            fastest = max(fastest, bench.speed())
            time.sleep(0.01)
        bench.remarks.append(f"started again it stays in {bench.status.state_text} while the policy speaks: arm at "
                             f"most {fastest:.4f} rad/s in {LOOKED:.0f} s")
        if fastest > STANDS:
            bench.wrong.append("the arm moved before it was armed")
        bench.mended = time.monotonic()

    back = "start it, executor/recover, executor/arm"
    return [
        Fault("hand hangs while it is to grip", hang, "RUNNING", "hand", "look at its power and cable", mend=unhang),
        Fault("controller ends, and comes back", dies, "FAULT", "robot", back, mend=lambda b: b.start_controller(),
              alone=False),
        Fault("controller ends, disk of the flight recorder full", full_disk, "FAULT", "robot", f"make room; {back}",
              mend=mend_disk, alone=False),
        Fault("executor SIGKILL, started again", killed, "IDLE", "", "executor/arm", alone=False),
    ]


def _clock() -> Fault:
    def use_clock(bench: Bench) -> None:
        for process in (bench.policy, bench.executor):
            end(process)
        bench.simulated = SimulatedClock(bench.node)
        bench.simulated.__enter__()
        bench.executor, bench.policy = bench.start_executor(), bench.start_policy()

    return Fault("/clock stands still, use_sim_time", lambda b: b.simulated.pause(True), "ARMED", "/clock",
                 "let the simulation go on", prepare=use_clock, mend=lambda b: b.simulated.pause(False))


def chosen(only: str) -> list[Fault]:
    """Those whose name contains one of the words of `only`, all without."""
    return [f for f in faults() if not only or any(word in f.name for word in only.split(","))]
