"""PyTorch's engine: observation in, chunk in raw units out, with the time of every stage; the base of the others."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vipra_ros.model.discrete import DiscretePolicy
from vipra_ros.model.policy import FlowPolicy, Prefix
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.device import device_of
from vipra_ros.policy.observation import NoAnswer, Observation, ObservationError, Prediction
from vipra_ros.policy.pictures import resize
from vipra_ros.policy.sampler import draw_noise
from vipra_ros.policy.text import MOST_TOKENS

#: Frames whose codes are remembered: at two cameras and 30 Hz this is a second.
REMEMBERED = 64
Sampler = Callable[[Prefix, torch.Tensor, Callable[[str], None]], torch.Tensor]


class TorchEngine:
    """PyTorch on the CPU or the GPU the checkpoint was loaded to."""

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int,
        euler_steps: int,
        sampler: Callable[[FlowPolicy | DiscretePolicy, int], Sampler],
    ):
        self.checkpoint = checkpoint
        self.steps = euler_steps or checkpoint.config.euler_steps
        self.normaliser, self.prompt = checkpoint.normaliser, checkpoint.prompt
        self._policy, self._vq = checkpoint.policy.eval().requires_grad_(False), checkpoint.vq
        weight = next(self._policy.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self.device = str(weight.device)
        self._sample = sampler(self._policy, self.steps)
        #: Called with a stage's name as it ends; a benchmark waits for a GPU here, and times single Euler steps.
        self.on_stage: Callable[[str], None] = lambda name: None
        self._between = torch.tensor(self.prompt.between, device=self._device)
        self._after = torch.tensor(self.prompt.after, device=self._device)
        self._codes: OrderedDict[tuple[str, float], torch.Tensor] = OrderedDict()
        if threads:
            torch.set_num_threads(threads)

    def warm_up(self) -> None:
        """Two inferences on blank frames."""
        c = self.checkpoint.config
        frames = np.zeros((c.policy.frames, c.image_size, c.image_size, 3), np.uint8)
        needs_joints = c.proprio_steps or c.relative_actions
        joints = np.zeros((max(c.proprio_steps, 1), c.policy.action_dim)) if needs_joints else None
        for _ in range(2):
            self.infer(Observation(0.0, dict.fromkeys(c.cameras, frames), "warm up", joints), seed=0)

    @property
    def trunk_bytes(self) -> int:
        """Bytes of the trunk's matrices that a pass reads; 0 of a sampler that does not say."""
        return getattr(self._sample, "trunk_bytes", 0)

    @property
    def batches(self) -> bool:
        """Whether `infer_many` answers several observations in one pass over the network."""
        return getattr(self._sample, "batches", False)

    @property
    def guided(self) -> bool:
        """Whether an observation's prior changes the answer."""
        return getattr(self._sample, "guided", False)

    def infer(self, observation: Observation, seed: int | None = None) -> Prediction:
        """Answer an observation.

        Raises:
            ObservationError: a camera, frame or joint vector is missing or has the wrong shape.
        """
        return self.infer_many([observation], [seed])[0]

    def infer_many(self, observations: Sequence[Observation], seeds: Sequence[int | None]) -> list[Prediction]:
        """Answer several observations, each as `infer` does, to rounding; in one pass where the sampler takes several.

        Every prediction carries the times of the whole pass. Raises as `infer`, without saying which one it was.
        """
        if len(observations) > 1 and not self.batches:
            return [self.infer(*pair) for pair in zip(observations, seeds)]
        clock = _Stages(self.on_stage)
        states, vectors = zip(*(self._joints(o) for o in observations))
        proprio = None if vectors[0] is None else torch.cat(vectors)
        # One after the other: codes are the nearest of thousands, and another rounding could pick others.
        codes = torch.cat([self._encode(o, clock) for o in observations])
        before, present = self._words([o.instruction for o in observations])
        prefix = Prefix(before, present, codes, self._between, self._after, proprio)
        noise = torch.cat([draw_noise(self._policy, 1, seed) for seed in seeds])
        noise = self.checkpoint.config.noise_scale * noise.to(self._device)
        normal = self._sample(prefix, noise, clock.mark, **self._guidance(observations, states))
        chunks = [self.normaliser.raw_actions(n, s) for n, s in zip(normal.double().cpu().numpy(), states)]
        for observation, chunk in zip(observations, chunks):
            if not np.isfinite(chunk).all():
                raise ObservationError(
                    "the policy answered with values that are not finite; check joints and checkpoint"
                )
            if self.guided and observation.prior is not None:  # what will have been done is not for discussion
                committed = observation.prior.committed
                chunk[:committed] = observation.prior.rows[:committed]
        clock.mark("denormalise")
        times = clock.finish()
        unknown = [self.prompt.strange_words(o.instruction) for o in observations]
        return [Prediction(chunk, dict(times), *rest) for chunk, *rest in zip(chunks, seeds, unknown)]

    def _words(self, instructions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens int64 (b, l) up to the frames, padded on the left, and bool (b, l), True where one stands."""
        tokens = [self.prompt.before(text) for text in instructions]
        length = max(map(len, tokens))
        if length > MOST_TOKENS:
            raise NoAnswer(f"instruction: {length} tokens, {MOST_TOKENS} at most; say it in fewer words")
        before = torch.tensor([[0] * (length - len(t)) + t for t in tokens], device=self._device)
        places = torch.arange(length, device=self._device)
        return before, places >= torch.tensor([[length - len(t)] for t in tokens], device=self._device)

    def _guidance(self, observations: Sequence[Observation], states: Sequence[np.ndarray | None]) -> dict:
        """target (b, h, a), normalised, and weights (b, h) of the priors, for a sampler that takes them."""
        if not self.guided or all(o.prior is None for o in observations):
            return {}
        c = self.checkpoint.config.policy
        target = np.zeros((len(observations), c.horizon, c.action_dim))
        weights = np.zeros((len(observations), c.horizon))
        for i, (observation, state) in enumerate(zip(observations, states)):
            if (prior := observation.prior) is None:
                continue
            known = len(prior.rows)
            if known > c.horizon or prior.rows.shape[1] != c.action_dim or not np.isfinite(prior.rows).all():
                raise ObservationError(f"prior: {prior.rows.shape}; expected up to {c.horizon} rows of {c.action_dim}")
            target[i, :known] = self.normaliser.actions(prior.rows, state)
            weights[i] = self._sample.weights(c.horizon, known, prior.committed)
        made = (torch.from_numpy(array).float().to(self._device) for array in (target, weights))
        return dict(zip(("target", "weights"), made))

    def _encode(self, observation: Observation, clock: _Stages) -> torch.Tensor:
        """Codes (1, frames, cameras, codes per frame); a frame with a known stamp is encoded once."""
        c = self.checkpoint.config
        table: dict[tuple[int, int], torch.Tensor] = {}
        fresh: list[tuple[int, int, tuple[str, float] | None, np.ndarray]] = []
        for k, camera in enumerate(c.cameras):
            frames = observation.frames.get(camera)
            if frames is None:
                raise ObservationError(f"no frames of camera {camera!r}; the checkpoint needs {', '.join(c.cameras)}")
            if (
                frames.dtype != np.uint8
                or frames.ndim != 4
                or frames.shape[0] != c.policy.frames
                or frames.shape[3] != 3
            ):
                raise ObservationError(
                    f"camera {camera}: {frames.dtype} {frames.shape}; expected uint8 ({c.policy.frames}, H, W, 3)"
                )
            for f, image in enumerate(frames):
                key = (camera, observation.frame_stamps[camera][f]) if observation.frame_stamps else None
                if key in self._codes:
                    table[f, k] = self._codes[key]
                else:
                    fresh.append((f, k, key, resize(image, c.image_size)))
        clock.mark("resize")
        if fresh:
            images = torch.from_numpy(np.stack([image for *_, image in fresh]))
            for (f, k, key, _), codes in zip(fresh, self._codes_of(images)):
                table[f, k] = codes
                if key is not None:
                    self._codes[key] = codes
                    if len(self._codes) > REMEMBERED:
                        self._codes.popitem(last=False)
        clock.mark("encode")
        rows = [torch.stack([table[f, k] for k in range(len(c.cameras))]) for f in range(c.policy.frames)]
        return torch.stack(rows)[None]

    def _codes_of(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, side, side, 3) on the CPU -> int64 (n, codes per frame) beside the policy's weights."""
        return self._vq.encode(images.to(device_of(self._vq))).to(self._device)

    def _joints(self, observation: Observation) -> tuple[np.ndarray | None, torch.Tensor | None]:
        """(state at the observation (a,), normalised proprio (1, n, a)), each None when not used."""
        c = self.checkpoint.config
        if not (c.proprio_steps or c.relative_actions):
            return None, None
        joints, needed = observation.joints, max(c.proprio_steps, 1)
        if joints is None or joints.ndim != 2 or joints.shape[1] != c.policy.action_dim or len(joints) < needed:
            given = "none" if joints is None else joints.shape
            raise ObservationError(
                f"joints: {given}; the checkpoint needs ({needed}, {c.policy.action_dim}), oldest first"
            )
        if not np.isfinite(joints).all():
            raise ObservationError("joints are not finite; check /joint_states")
        proprio = None
        if c.proprio_steps:
            proprio = (
                torch.from_numpy(self.normaliser.states(joints[-c.proprio_steps :]))[None].to(self._device, self._dtype)
            )
        return joints[-1], proprio


class _Stages:
    """Wall time of consecutive stages in ms."""

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self._begin = self._last = time.perf_counter()
        self._on_stage = on_stage
        self.stages: dict[str, float] = {}

    def mark(self, name: str) -> None:
        self._on_stage(name)
        now = time.perf_counter()
        self.stages[name] = self.stages.get(name, 0.0) + 1e3 * (now - self._last)
        self._last = now

    def finish(self) -> dict[str, float]:
        return {**self.stages, "total": 1e3 * (time.perf_counter() - self._begin)}
