"""The strict lane: our executor core and real franky against a controller that raises the robot's reflexes.

    lane.py [--minutes 1] [--patience 200] [--only "adversarial@15;policy@22"] [--json FILE]

The controller runs in a process and virtual environment of its own (serve.py, build/strict-venv) and enforces the
motion limits of an FR3 as the robot does. Prints a row a part: chunks offered and taken, samples, reflexes. All times
are the controller's, which waits some ms for the answer to each of its cycles: what is left are our own commands, and
not the pauses of a machine that is short of processors. --patience 0 waits no longer than a robot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import deque
from pathlib import Path

import franky_sim
import numpy as np

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.executor import ExecutorCore, ExecutorSettings
from vipra_ros.control.guard import FaultCode, State
from vipra_ros.control.profile import load_profile
from vipra_ros.control.sinks import PreviewHand
from vipra_ros.robot.arm import FrankyArm
from vipra_ros.robot.impedance import ImpedanceArm
from vipra_ros.robot.velocity import VelocityArm

ROOT = Path(__file__).parents[2]
PROFILE = load_profile("fr3")
KINDS = {"waypoints": FrankyArm, "velocity": VelocityArm, "impedance": ImpedanceArm}
LOOP = 100.0
#: s; the simulator shares the processors with what it tests: a pause of the loop is no fault here.
PATIENCE = dict(overrun_fault=5.0, state_timeout=5.0, tracking_limit=0.4)


#: Share of answered cycles below which the robot would have stopped for the network (20 lost in a row): the simulator
#: goes on by itself instead, past limits too. Such a reflex is counted apart: it judges the machine, not the commands.
LOST = 0.8


class Strict:
    """The strict controller as a child process."""

    def __init__(self, host: str, patience: float):
        python = ROOT / "build" / "strict-venv" / "bin" / "python"
        assets = Path(franky_sim.__file__).parent / "assets"
        self.log = open(ROOT / "build" / "strict-server.log", "w")
        self.process = subprocess.Popen(
            [python, Path(__file__).with_name("serve.py"), host, assets, str(patience)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        if self.process.stdout.readline().strip() != "up":
            raise SystemExit(f"the strict controller did not start; see {self.log.name}")

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait(5)


def path(rng: np.random.Generator, size: float):
    """A smooth way about home, as a policy or a hand would go: sum of two sines a joint."""
    amplitude = size * rng.uniform(0.3, 1.0, (2, 7)) * np.array([1, 0.7, 1, 0.7, 1, 1, 1.5])
    rate, phase = rng.uniform(0.05, 0.35, (2, 7)), rng.uniform(0, 6.28, (2, 7))

    def at(t: float) -> np.ndarray:
        return PROFILE.home_q + (amplitude * np.sin(2 * np.pi * rate * t + phase)).sum(0)

    return at


def adversarial(rng: np.random.Generator, q: np.ndarray, rows: int) -> np.ndarray:
    """Rows no policy should send: noise, sign flips each step, jumps, corners of the joint space, NaN, 1e6 rad."""
    low, high, k = np.array(PROFILE.q_min), np.array(PROFILE.q_max), np.arange(1, rows + 1)[:, None]
    kind, size = rng.integers(8), rng.uniform(0.02, 2.0)
    out = (
        q + rng.normal(0, size, (rows, 7)),
        q + size * np.where(k % 2, 1, -1) * rng.uniform(-1, 1, 7),
        np.tile(rng.uniform(low, high), (rows, 1)),
        np.where(rng.random(7) < 0.5, low, high) + 0 * k,
        q + (np.where(rng.random(7) < 0.5, low, high) - q) * np.minimum(1, k * size / 10),
        q + np.array([0, 0.1, 0, 0.05, 0, 0.05, 0]) * k * size,
        PROFILE.home_q + 0.2 * size * np.sin(0.4 * k + rng.uniform(0, 6, 7)),
        np.tile(PROFILE.home_q, (rows, 1)),
    )[kind]
    out = np.clip(out, low - 0.19, high + 0.19)
    if rng.random() < 0.05:
        out[rng.integers(rows), rng.integers(7)] = rng.choice([np.nan, np.inf, 1e6, -1e6])
    return out


class Run:
    """One part of the lane: an arm, a core, a source of chunks, counts."""

    def __init__(self, name: str, host: str, sink: str, period: float, seed: int = 0, **settings):
        self.name, self.period, self.rng = name, period, np.random.default_rng(seed)
        self.arm = KINDS[sink](PROFILE, host, "ignore")
        # The controller's own clock: a simulated one falls behind the wall on a machine short of processors.
        self.arm._clock = lambda: self.arm._robot.state.time.to_sec()
        self.arm.recover()
        settings = dict(PATIENCE, sink=sink, start_action="blend", limiter_share=1.0, **settings)
        self.core = ExecutorCore(
            PROFILE, ExecutorSettings(**settings), self.arm, PreviewHand(), recover_robot=self.arm.recover
        )
        state = self.arm.state()
        self.core.tick(state.time, state)
        self.counts = dict(chunks=0, taken=0, samples=0, reflexes=0, faults=0, stops=0, starved=0)
        self.errors: list[float] = []
        self.texts: list[str] = []
        self.success, self.answered = deque([1.0], maxlen=round(LOOP)), []
        self.ids, self.wanted = 0, None

    def go_home(self, seconds: float = 20.0) -> None:
        """Where every part begins, wherever the one before has left the arm."""
        self.core.home(self.arm._clock())
        end = time.monotonic() + seconds
        while self.core.machine.state is not State.IDLE and time.monotonic() < end:
            state = self.arm.state()
            self.core.tick(state.time, state)
            time.sleep(1 / LOOP)
        away = float(np.abs(self.arm.state().q - PROFILE.home_q).max())
        if away > 0.02:
            self.texts.append(f"began {away:.2f} rad from home, {'; '.join(self.core.machine.reasons) or 'no reason'}")

    def offer(self, stamp: float, rows: np.ndarray, execute: int, now: float) -> None:
        """A chunk of joint rows (H, 7)."""
        self.ids += 1
        rows = np.column_stack([rows, np.ones(len(rows))])
        chunk = ActionChunk(
            stamp,
            self.ids,
            self.period,
            rows[:execute],
            rows[execute:],
            joint_names=PROFILE.joint_names,
            epoch=self.core.epoch,
        )
        self.counts["chunks"] += 1
        self.counts["taken"] += bool(self.core.offer(chunk, now))

    def loop(self, seconds: float, each) -> None:
        """The control loop for `seconds` of the controller's clock; `each(now)` may offer, stop, hold."""
        now = self.arm._clock()
        end, give_up = now + seconds, time.monotonic() + 5 * seconds + 30
        while now < end:
            if time.monotonic() > give_up:
                raise SystemExit(f"{self.name}: the controller's clock stands; see build/strict-server.log")
            state = self.arm.state()
            now = state.time
            core = self.core
            if core.machine.state in (State.IDLE, State.ARMED, State.HOLD):
                answer = core.arm(now)
                if not answer.success and "wait until" not in answer.message and answer.message not in self.texts:
                    self.texts.append(answer.message)
            each(now)
            before = core.machine.state
            core.tick(now, state)
            self.counts["samples"] += 1
            if core.machine.state is State.RUNNING and state.in_control:
                self.success.append(float(self.arm._robot.state.control_command_success_rate))
                self.answered.append(self.success[-1])
            if core.machine.state is State.RUNNING and np.isfinite(state.q_d).all():
                seen = state.q if core.settings.sink == "impedance" else state.q_d
                self.errors.append(float(np.abs(seen - core.reference().at(now)[0]).max()))
            if core.machine.state is State.FAULT and before is not State.FAULT:
                self.counts["faults"] += 1
                reflex = any(f.code in (FaultCode.ROBOT, FaultCode.SINK) for f in core.machine.faults)
                least = min(self.success)
                self.counts["starved" if reflex and least < LOST else "reflexes"] += reflex
                self.success.clear()
                self.success.append(1.0)
                where = np.asarray(state.q).round(3).tolist(), np.asarray(state.dq).round(2).tolist()
                self.texts.append(f"{now:.2f} s at {where}, {least:.0%} of cycles answered:")
                self.texts.append(f"    {'; '.join(core.machine.reasons)}")
                time.sleep(0.3)
                result = core.recover(self.arm._clock())
                if not result.success:
                    self.texts.append(result.message)
                    time.sleep(1.0)
            time.sleep(1 / LOOP)
        self.counts["stops"] += 1
        self.core.stop(self.arm._clock())
        give_up = time.monotonic() + 3.0
        while time.monotonic() < give_up:
            state = self.arm.state()
            self.core.tick(state.time, state)
            time.sleep(0.02)
            if self.core.machine.state is State.IDLE and np.abs(state.dq).max() < 0.01:
                break

    def close(self) -> dict:
        """The row of the table."""
        self.arm.close()
        p = (50, 99, 100)
        errors = np.percentile(self.errors, p).round(4).tolist() if self.errors else [None] * 3
        self.counts["refused"] = self.arm.refusals.total
        answered = [round(float(x), 4) for x in (np.mean(self.answered), min(self.answered))] if self.answered else None
        return {"part": self.name, **self.counts, "error_p50_p99_max": errors, "answered_mean_min": answered,
                "texts": self.texts[:8]}


def chunks(run: Run, seconds: float, kind: str) -> None:
    """A policy's chunks of 14 rows, 7 executed, every 6 rows, 0.1 to 0.3 s after their observation; or adversarial
    ones at changing intervals, with stops and holds in between."""
    way, due, rng = path(run.rng, 0.25), -np.inf, run.rng
    pending: list[tuple[float, float]] = []

    def each(now: float) -> None:
        nonlocal due
        if now < due and not pending:
            return
        if kind == "adversarial":
            if now < due:
                return
            execute = 7
            run.offer(now - rng.uniform(0, 0.2), adversarial(rng, run.core.reference().at(now)[0], 14), execute, now)
            due = now + rng.uniform(0.5, 7.0) * run.period
            if rng.random() < 0.03:
                run.counts["stops"] += 1
                getattr(run.core, str(rng.choice(["stop", "hold"])))(now)
            return
        if now >= due:
            pending.append((now, now + rng.uniform(0.1, 0.3)))
            due = now + 6 * run.period
        if now >= pending[0][1]:
            stamp, _ = pending.pop(0)
            rows = np.array([way(stamp + (k + 1) * run.period) for k in range(14)])
            run.offer(stamp, rows + rng.normal(0, 0.003, rows.shape), 7, now)

    run.loop(seconds, each)


def teleop(run: Run, seconds: float) -> None:
    """A hand's readings at the rate: the pose now, to be reached one period later, held for five more; moved by
    smooth ways, with pauses, snatches to another pose, and silences longer than the chunk time-out."""
    way, due, quiet, shift = path(run.rng, 0.3), -np.inf, -np.inf, np.zeros(7)
    rng = run.rng

    def each(now: float) -> None:
        nonlocal due, quiet, shift
        if now < due or now < quiet:
            return
        due = now + run.period
        if rng.random() < 0.004:
            quiet = now + rng.uniform(0.2, 1.5)
        if rng.random() < 0.01:
            shift = rng.normal(0, 0.3, 7)
        run.offer(now, np.tile(way(now) + shift, (6, 1)), 6, now)

    run.loop(seconds, each)


def limit(run: Run, seconds: float) -> None:
    """As fast as allowed from near home towards a joint limit, joint by joint, both ways; silence in full motion.

    From home, because with other joints in their corners the arm would meet itself before the limit.
    """
    since, due, joint, way = -np.inf, -np.inf, 0, 1

    def each(now: float) -> None:
        nonlocal since, due, joint, way
        if now - since > 6.0:
            since, joint, way = now, int(run.rng.integers(7)), int(run.rng.choice([-1, 1]))
        if now - since > 5.0 or now < due:
            return
        due = now + run.period
        q, ahead = run.core.reference().at(now)[0], run.period * np.arange(1, 9)[:, None]
        if now - since < 2.8:
            rows = q + np.clip(PROFILE.home_q - q, -0.9 * ahead, 0.9 * ahead)
        else:
            rows = np.tile(q, (8, 1))
            rows[:, joint] += way * 2.0 * ahead[:, 0]
        low, high = np.array(PROFILE.q_min) - 0.19, np.array(PROFILE.q_max) + 0.19
        run.offer(now, np.clip(rows, low, high), 8, now)

    run.loop(seconds, each)


PARTS = {
    "adversarial@15": (chunks, "waypoints", 1 / 15, ("adversarial",), {}),
    "adversarial@22": (chunks, "waypoints", 1 / 22, ("adversarial",), {}),
    "policy@15": (chunks, "waypoints", 1 / 15, ("policy",), {}),
    "policy@22": (chunks, "waypoints", 1 / 22, ("policy",), {}),
    "teleop@25": (teleop, "velocity", 1 / 25, (), dict(chunk_timeout=0.4)),
    "limit, velocity": (limit, "velocity", 1 / 25, (), dict(chunk_timeout=0.3)),
    "limit, waypoints": (limit, "waypoints", 1 / 15, (), dict(chunk_timeout=0.3)),
    "policy@15, velocity": (chunks, "velocity", 1 / 15, ("policy",), {}),
    "policy@15, impedance": (chunks, "impedance", 1 / 15, ("policy",), {}),
}


def main() -> None:
    """Run the parts chosen, print the table, exit 1 when there was a reflex."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="of each part")
    parser.add_argument("--patience", type=float, default=200.0, help="ms for which the controller waits for an answer")
    parser.add_argument("--only", default="", help="parts, separated by ;, e.g. 'policy@15;teleop@25'")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", default="127.0.77.1")
    given = parser.parse_args()
    names = [n.strip() for n in given.only.split(";")] if given.only else list(PARTS)
    if unknown := [n for n in names if n not in PARTS]:
        raise SystemExit(f"no part {unknown[0]!r}; choose from {'; '.join(PARTS)}")
    strict, rows = Strict(given.host, given.patience), []
    try:
        print(
            f"{'part':22} {'min':>5} {'chunks':>7} {'taken':>7} {'samples':>8} {'stops':>5} "
            f"{'faults':>6} {'starved':>7} {'refused':>7} reflexes",
            flush=True,
        )
        for name in names:
            source, sink, period, more, settings = PARTS[name]
            run = Run(name, given.host, sink, period, given.seed, **settings)
            run.go_home()
            began = run.arm._clock()
            source(run, 60 * given.minutes, *more)
            minutes = (run.arm._clock() - began) / 60
            row = run.close() | {"minutes": round(minutes, 2), "patience": given.patience}
            rows.append(row)
            print(
                f"{name:22} {row['minutes']:5.2f} {row['chunks']:7} {row['taken']:7} {row['samples']:8} "
                f"{row['stops']:5} {row['faults']:6} {row['starved']:7} {row['refused']:7} {row['reflexes']:8}   "
                f"|q_d - ours| p50 p99 max rad: {row['error_p50_p99_max']}, cycles answered {row['answered_mean_min']}",
                flush=True,
            )
            for text in row["texts"]:
                print(f"    {text}", flush=True)
    finally:
        strict.close()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    raise SystemExit(any(r["reflexes"] or r["faults"] for r in rows))


if __name__ == "__main__":
    main()
