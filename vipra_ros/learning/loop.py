"""The one training loop: schedule, optimiser, mixed precision, averaging, log, plot, resume.

A job gives the loop a model, a loss on random batches and an evaluation. The loop owns the rest and can be
killed at any moment: started again on the same folder it goes on from the last saved state with the same
random numbers, so a resumed run gives the losses the uninterrupted one would have given. Of several processes
(`parallel.py`) each draws batches of its own; the first one evaluates, logs and saves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
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
from vipra_ros.learning import precision
from vipra_ros.learning.log import Log, Silent
from vipra_ros.learning.parallel import Team, team


@dataclass(frozen=True)
class LoopConfig:
    """How to train, whatever the model."""

    steps: int = param(0, doc="optimiser steps; 0 when `minutes` sets the end", low=0)
    minutes: float = param(
        0.0, doc="wall-clock budget the schedule is fitted to; 0 when `steps` sets the end", unit="min", low=0.0
    )
    batch: int = param(64, doc="observations per step, of each process", low=1)
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
    seed: int = param(0, doc="seed of weights, batches and noise", low=0)
    threads: int = param(0, doc="torch threads; 0 leaves torch's choice", low=0)
    log_every: int = param(20, doc="steps between log lines", low=1)
    evaluate_every: int = param(1000, doc="steps between evaluations", low=1)
    save_seconds: float = param(60.0, doc="time between saved states", unit="s", low=0.0)

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

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Loss of one random batch, under autocast, and figures to log; `progress` is the share of the run done."""

    def after_step(self, generator: torch.Generator, step: int, progress: float) -> None:
        """Called after each optimiser step."""

    def evaluate(self) -> dict[str, float]:
        """Held-out figures with the weights to be shipped."""

    def export(self, figures: dict[str, float], state: State) -> None:
        """Write the artefact of the run with the weights now in the model."""


@dataclass
class State:
    """Where a run stands; saved with it."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0


def identity_of(config: Any, *more: str) -> str:
    """Text of a training configuration (a dataclass with a `loop`) without what a resumed run may change."""
    values = dataclasses.asdict(config)
    for free in ("steps", "minutes", "threads", "log_every", "evaluate_every", "save_seconds"):
        del values["loop"][free]
    return json.dumps([values, *more], sort_keys=True)


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
    us = team()
    generator = torch.Generator().manual_seed(config.seed + 1 + 1_000_003 * us.rank)
    optimisers = _optimisers(job, config)
    average = [p.detach().clone() for p in job.model.parameters()] if config.ema else None
    state = State()
    saved = out / "state.pt"
    if saved.exists():
        state = _restore(saved, job, optimisers, average, generator, us)
    us.same([*job.model.parameters(), *job.model.buffers()])
    by_hand = getattr(job, "by_hand", [])
    end = f"/{config.steps}" if config.steps else f" of {config.minutes:g} min"
    log = Log(out / "log.jsonl", end, state.step) if us.main else Silent()
    parameters = [p for p in job.model.parameters() if p.requires_grad]
    device = next(job.model.parameters()).device.type
    start, last_save, began = time.monotonic() - state.seconds, time.monotonic(), (state.step, time.monotonic())

    def progress() -> float:
        return state.step / config.steps if config.steps else state.seconds / (60.0 * config.minutes)

    def save() -> None:
        _save(saved, job, optimisers, average, generator, state, us)

    def examine() -> None:
        if us.main:
            with averaged(job.model, average):
                job.model.eval()
                figures = job.evaluate()
                job.export(figures, state)
            job.model.train()
            log.write("eval", state.step, state.seconds, state.samples, figures)
        us.wait()

    job.model.train()
    while progress() < 1.0:
        scale = learning_rate_scale(config, state.step, progress())
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * scale
        with precision.autocast(device, config.bf16):
            loss, figures = job.loss(generator, progress())
        loss.backward()
        us.average(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
        if not torch.isfinite(norm):
            raise RuntimeError(
                f"step {state.step}: the gradient is not finite; lower lr (now {config.lr}) or check the data"
            )
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        state.step += 1
        state.samples += config.batch * us.world
        if average is not None:
            decay = min(config.ema, (1 + state.step) / (10 + state.step))
            torch._foreach_lerp_(average, [p.detach() for p in job.model.parameters()], 1.0 - decay)
        job.after_step(generator, state.step, progress())
        us.same([*by_hand, *job.model.buffers()])
        now = time.monotonic()
        # Decided together: a process that went on alone would wait for the others for ever.
        state.seconds, due, stop = us.most(now - start, now - last_save >= config.save_seconds, should_stop(state))
        if state.step % config.log_every == 0 or state.step == 1:
            rate = (state.step - began[0]) * config.batch * us.world / max(now - began[1], 1e-9)
            began = (state.step, now)
            log.write(
                "train",
                state.step,
                state.seconds,
                state.samples,
                {
                    "loss": loss.item(),
                    "grad_norm": norm.item(),
                    "lr_scale": scale,
                    "samples_per_s": rate,
                    "progress": progress(),
                    **figures,
                },
            )
        if state.step % config.evaluate_every == 0 and progress() < 1.0:
            examine()
            # Evaluation is not training throughput, but it does count against the budget.
            began = (state.step, time.monotonic())
        if due:
            save()
            last_save = time.monotonic()
        if stop:
            save()
            raise Interrupted(f"stopped at step {state.step}; run the same command to go on")
    save()
    examine()
    log.plot()
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


def learning_rate_scale(config: LoopConfig, step: int, progress: float) -> float:
    """Warm-up by steps, then cosine in the fraction of the budget spent, whether counted in steps or minutes."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "constant":
        return warm
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (config.final_lr + (1.0 - config.final_lr) * cosine)


def _optimisers(job: Job, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024) for the hidden matrices when asked; norms, biases, tables do not decay."""
    hidden = {id(p) for p in job.hidden_matrices} if config.muon_lr else set()
    rest = [p for p in job.model.parameters() if p.requires_grad and id(p) not in hidden]
    tables = {id(m.weight) for m in job.model.modules() if isinstance(m, nn.Embedding)}
    groups = []
    # A job may slow some parameters down: `rates`, id of a parameter -> fraction of the learning rate.
    rates = getattr(job, "rates", {})
    for rate in sorted({rates.get(id(p), 1.0) for p in rest}, reverse=True):
        some, lr = [p for p in rest if rates.get(id(p), 1.0) == rate], config.lr * rate
        decaying = [p for p in some if p.ndim >= 2 and id(p) not in tables]
        others = [p for p in some if p.ndim < 2 or id(p) in tables]
        groups.append({"params": decaying, "weight_decay": config.weight_decay, "lr": lr})
        groups.append({"params": others, "weight_decay": 0.0, "lr": lr})
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)]
    if hidden:
        made.append(
            precision.muon(
                job.hidden_matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    for optimiser in made:
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return made


@contextlib.contextmanager
def averaged(model: nn.Module, average: list[Tensor] | None):
    """The moving average of the weights in place of the weights, for the length of a `with`."""
    if average is None:
        yield
        return
    kept = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        torch._foreach_copy_([p.detach() for p in model.parameters()], average)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_([p.detach() for p in model.parameters()], kept)


def _save(path: Path, job: Job, optimisers, average, generator, state: State, us: Team) -> None:
    generators = us.everyone(generator.get_state())
    if us.main:
        # Written beside and renamed, so that a kill in the middle leaves the previous state whole.
        beside = path.with_suffix(".tmp")
        torch.save(
            {
                "model": job.model.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers],
                "average": average,
                "generators": generators,
                "state": vars(state),
                "identity": job.identity,
            },
            beside,
        )
        os.replace(beside, path)
    us.wait()  # until it is written: one that began the next run earlier would find nothing and start anew


def _restore(path: Path, job: Job, optimisers, average, generator, us: Team) -> State:
    kept = torch.load(path, weights_only=True)
    remedy = "give a new output folder or delete it"
    if kept.get("identity", job.identity) != job.identity:
        raise ConfigError(f"{path}: belongs to a run with another configuration or other data; {remedy}")
    try:
        job.model.load_state_dict(kept["model"])
        for optimiser, values in zip(optimisers, kept["optimisers"], strict=True):
            optimiser.load_state_dict(values)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{path}: belongs to another network ({str(error).splitlines()[0]}); {remedy}") from None
    if average is not None:
        for mine, theirs in zip(average, kept["average"], strict=True):
            mine.copy_(theirs)
    generators = kept["generators"] if "generators" in kept else [kept["generator"]]
    if len(generators) != us.world:
        raise ConfigError(f"{path}: belongs to a run of {len(generators)} processes, not {us.world}; start as many, or "
                          f"{remedy}")
    generator.set_state(generators[us.rank])
    return State(**kept["state"])
