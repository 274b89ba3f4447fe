"""The one training loop: schedule, accumulation, mixed precision, averaging, log, plot, resume.

A job gives the loop a model, a loss on random batches and an evaluation. The loop owns the rest and can be
killed at any moment: started again on the same folder it goes on from the last saved state with the same
random numbers, so a resumed run gives the losses the uninterrupted one would have given. Of several processes
(`parallel.py`) each draws batches of its own; the first one evaluates, logs and saves. Weights are whole in each of
them or sharded (`sharding.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vipra_ros.config import ConfigError, param
from vipra_ros.learning import precision, resume
from vipra_ros.learning.log import Log, Silent, board_writer
from vipra_ros.learning.optimiser import learning_rate_scale, optimisers
from vipra_ros.learning.parallel import team
from vipra_ros.learning.resume import State
from vipra_ros.learning.sharding import local, place


@dataclass(frozen=True)
class LoopConfig:
    """How to train, whatever the model."""

    steps: int = param(0, doc="optimiser steps; 0 when `minutes` sets the end", low=0)
    minutes: float = param(
        0.0, doc="wall-clock budget the schedule is fitted to; 0 when `steps` sets the end", unit="min", low=0.0
    )
    batch: int = param(64, doc="observations of a pass, of each process", low=1)
    accumulate: int = param(1, doc="passes whose gradients make one step", low=1)
    lr: float = param(1e-3, doc="peak learning rate (AdamW)", low=0.0)
    muon_lr: float = param(0.0, doc="peak rate of Muon for 2-D hidden matrices; 0 gives them to AdamW too", low=0.0)
    weight_decay: float = param(0.01, doc="decoupled weight decay of matrices", low=0.0)
    beta2: float = param(0.99, doc="AdamW second-moment decay", low=0.0, high=1.0)
    schedule: str = param("cosine", doc="learning rate after the warm-up", choices=("cosine", "constant"))
    warmup_steps: int = param(200, doc="steps of linear warm-up", low=0)
    final_lr: float = param(0.02, doc="last learning rate as a fraction of the peak", low=0.0, high=1.0)
    clip: float = param(1.0, doc="largest gradient norm", low=0.0)
    ema: float = param(
        0.0, doc="decay of the weights' moving average, evaluated and saved; 0 is off", low=0.0, high=1.0
    )
    bf16: bool = param(True, doc="bfloat16 autocast where the device has it")
    checkpointing: bool = param(False, doc="layers keep only their input and are computed again in the backward pass")
    shard: bool = param(False, doc="divide weights, gradients and moments among the processes (FSDP2)")
    seed: int = param(0, doc="seed of weights, batches and noise", low=0)
    threads: int = param(0, doc="torch threads; 0 leaves torch's choice", low=0)
    log_every: int = param(20, doc="steps between log lines", low=1)
    evaluate_every: int = param(1000, doc="steps between evaluations", low=1)
    save_seconds: float = param(60.0, doc="time between saved states", unit="s", low=0.0)
    tensorboard: bool = param(False, doc="write the log for TensorBoard too, into the folder `tensorboard`")

    def __post_init__(self) -> None:
        if bool(self.steps) == bool(self.minutes):
            raise ConfigError(f"steps = {self.steps}, minutes = {self.minutes}: give exactly one of them")


class Job(Protocol):
    """What a training script provides."""

    model: nn.Module
    hidden_matrices: list[nn.Parameter]
    #: Text that changes with anything a resumed run may not change.
    identity: str
    # Optional: `by_hand`, parameters that the job changes itself; several processes then take those of the first.
    # `rates`, id of a parameter -> fraction of the learning rate. `layers`, the modules that are sharded and computed
    # again one by one. `device`, where the model is to compute: the loop moves it there.

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Loss of one random batch, made within `drawing`, under autocast, and figures to log; `progress` is the share
        of the run done."""

    def after_step(self, generator: torch.Generator, step: int, progress: float) -> None:
        """Called after each optimiser step."""

    def evaluate(self) -> dict[str, float]:
        """Held-out figures with the weights to be shipped."""

    def export(self, figures: dict[str, float], state: State) -> None:
        """Write the artefact of the run with the weights now in the model."""


def identity_of(config: Any, *more: str) -> str:
    """Text of a training configuration (a dataclass with a `loop`) without what a resumed run may change."""
    values = dataclasses.asdict(config)
    values.pop("vq", None)  # a path; the quantiser's hash is among `more`
    for free in ("steps", "minutes", "threads", "log_every", "evaluate_every", "save_seconds", "checkpointing", "shard",
                 "tensorboard"):
        del values["loop"][free]
    if values["loop"]["accumulate"] == 1:  # as the states say that were saved before there was such a key
        del values["loop"]["accumulate"]
    return json.dumps([values, *more], sort_keys=True)


#: s this process has spent on drawing batches since the loop last asked.
_drawing = 0.0


@contextlib.contextmanager
def drawing():
    """A job puts its batch together within this `with`: the log says which share of the time that takes."""
    global _drawing
    began = time.monotonic()
    try:
        yield
    finally:
        _drawing += time.monotonic() - began


def _drawn() -> float:
    global _drawing
    seconds, _drawing = _drawing, 0.0
    return seconds


class Interrupted(RuntimeError):
    """The loop was told to stop before its end; start it again to go on."""


def run(job: Job, config: LoopConfig, out: Path, should_stop: Callable[[State], bool] = lambda state: False) -> State:
    """Train `job` to its end in folder `out` (state.pt, log.jsonl, loss.png), resuming what is there.

    Raises:
        Interrupted: `should_stop` said so, or SIGINT or SIGTERM came; the state is saved.
    """
    with noted_signals() as signals:
        return _run(job, config, out, lambda state: bool(signals) or should_stop(state))


def _run(job: Job, config: LoopConfig, out: Path, should_stop: Callable[[State], bool]) -> State:
    out.mkdir(parents=True, exist_ok=True)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.tensorboard:
        board_writer()  # every process finds out, or the others would wait for the first
    us = team()
    generator = torch.Generator().manual_seed(config.seed + 1 + 1_000_003 * us.rank)
    saved = out / "state.pt"
    kept = resume.read(saved, job, us) if saved.exists() else None
    us.same([*job.model.parameters(), *job.model.buffers()])
    weights = place(job, config, us)
    steppers = optimisers(job, config)
    average = [p.detach().clone() for p in job.model.parameters()] if config.ema else None
    state = resume.restore(saved, kept, steppers, average, generator, us) if kept else State()
    del kept  # as large as weights, moments and average together
    by_hand = getattr(job, "by_hand", [])
    end = f"/{config.steps}" if config.steps else f" of {config.minutes:g} min"
    log = Log(out / "log.jsonl", end, state.step, config.tensorboard) if us.main else Silent()
    device = next(job.model.parameters()).device
    per_step = config.batch * config.accumulate * us.world
    start, last_save, began = time.monotonic() - state.seconds, time.monotonic(), (state.step, time.monotonic())
    _drawn()

    def progress() -> float:
        return state.step / config.steps if config.steps else state.seconds / (60.0 * config.minutes)

    def save() -> None:
        resume.save(saved, job, steppers, average, generator, state, us)

    def gradients() -> tuple[Tensor, dict[str, float]]:
        """Mean loss and figures of the passes of a step, whose gradients add up in the weights."""
        passes = []
        for _ in range(config.accumulate):
            with precision.autocast(device, config.bf16):
                loss, figures = weights.loss(generator, progress())
            (loss / config.accumulate).backward()
            passes.append({"loss": loss.detach(), **figures})
        mean = {name: sum(p[name] for p in passes) / len(passes) for name in passes[-1]}
        return mean.pop("loss"), mean

    def examine() -> None:
        with averaged(job.model, average), weights.whole():
            if us.main:
                job.model.eval()
                figures = job.evaluate()
                job.export(figures, state)
                job.model.train()
                log.write("eval", state.step, state.seconds, state.samples, figures)
            us.wait()

    job.model.train()
    while progress() < 1.0:
        scale = learning_rate_scale(config, state.step, progress())
        for optimiser in steppers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * scale
        loss, figures = gradients()
        weights.reduce()
        norm = weights.clip(config.clip)
        if not torch.isfinite(norm):
            raise RuntimeError(
                f"step {state.step}: the gradient is not finite; lower lr (now {config.lr}) or check the data"
            )
        for optimiser in steppers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        state.step += 1
        state.samples += per_step
        if average is not None:
            decay = min(config.ema, (1 + state.step) / (10 + state.step))
            torch._foreach_lerp_([local(a) for a in average], [local(p) for p in job.model.parameters()], 1.0 - decay)
        job.after_step(generator, state.step, progress())
        us.same([*by_hand, *job.model.buffers()])
        now = time.monotonic()
        # Decided together: a process that went on alone would wait for the others for ever.
        state.seconds, due, stop = us.most(now - start, now - last_save >= config.save_seconds, should_stop(state))
        if state.step % config.log_every == 0 or state.step == 1:
            spent = max(now - began[1], 1e-9)
            rate, share = (state.step - began[0]) * per_step / spent, _drawn() / spent
            began = (state.step, now)
            log.write(
                "train",
                state.step,
                state.seconds,
                state.samples,
                {
                    "loss": us.total([loss])[0].item() / us.world,
                    "grad_norm": norm.item(),
                    "lr_scale": scale,
                    "samples_per_s": rate,
                    "drawing_share": share,
                    "progress": progress(),
                    **figures,
                },
            )
        if state.step % config.evaluate_every == 0 and progress() < 1.0:
            examine()
            # Evaluation is not training throughput, but it does count against the budget.
            began = (state.step, time.monotonic())
            _drawn()
        if due:
            save()
            last_save = time.monotonic()
        if stop:
            save()
            raise Interrupted(f"stopped at step {state.step}; run the same command to go on")
    save()
    examine()
    return state


@contextlib.contextmanager
def noted_signals():
    """Collects SIGINT and SIGTERM in a list, so that they end the loop between two steps; a second acts at once.

    Elsewhere than in the main thread signals are left alone.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def averaged(model: nn.Module, average: list[Tensor] | None):
    """The moving average of the weights in place of the weights, for the length of a `with`."""
    if average is None:
        yield
        return
    parameters = [local(p) for p in model.parameters()]
    kept = [p.clone() for p in parameters]
    torch._foreach_copy_(parameters, [local(a) for a in average])
    try:
        yield
    finally:
        torch._foreach_copy_(parameters, kept)
