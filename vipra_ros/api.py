"""What a program of yours needs of this package, beside `Dataset` and `EpisodeReader`: a policy, and what it looks at.

    from vipra_ros import Dataset, load_policy, observation_at

    dataset, policy = Dataset("out/dataset"), load_policy("models/tiny")
    chunk = policy.infer(observation_at(dataset, 0, policy)).actions  # (14, 8): rad, gripper +1 open .. -1 closed

No ROS is needed for any of it. A chunk is raw: the limits are the executor's (docs/safety.md), so send it there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vipra_ros.config import ConfigError

if TYPE_CHECKING:
    from vipra_ros.data.dataset import Dataset
    from vipra_ros.policy.engine import Engine
    from vipra_ros.policy.observation import Observation
    from vipra_ros.serving.remote import RemoteEngine


def load_policy(checkpoint: str | Path, engine: str = "torch", device: str = "auto", threads: int = 0) -> Engine:
    """A policy in this process, warmed up.

    Args:
        checkpoint: folder, or the name of a shipped one ("models/tiny").
        engine: "torch", or another one of `vipra_ros.policy.engine.ENGINES`.
        device: "auto" (a GPU where torch sees one), "cpu", "cuda", or "cuda:1".
        threads: of torch; 0 leaves them.

    Raises:
        ConfigError, CheckpointError: there is none, it is incomplete, or the engine or the device is not there.
    """
    from vipra_ros.policy.engine import open_engine
    from vipra_ros.policy.shipped import resolve

    policy = open_engine(resolve(checkpoint), engine, device, threads)
    policy.warm_up()
    return policy


def connect_policy(
    server: str, token_file: str = "", deadline: float = 1.0, describe: str = "", ca: str = ""
) -> RemoteEngine:
    """A policy behind `vipra serve` or an openpi server; used as the one of :func:`load_policy`, needs no torch.

    Args:
        server: ws://HOST:PORT, or wss:// for TLS.
        token_file: file with the token that the server asks for.
        deadline: s for an answer.
        describe: YAML file on a server that does not say what it serves (config/servers).
        ca: file of the certificate that signed the server's.

    Raises:
        NoAnswer: nobody there, or too slow.
        ConfigError: it refuses us, or is not described well enough.
    """
    from vipra_ros.serving.contract import read_token
    from vipra_ros.serving.remote import RemoteEngine, Server

    token = read_token(token_file) if token_file else ""
    policy = RemoteEngine(Server(server, token, deadline, describe=describe, ca=ca))
    policy.warm_up()
    return policy


def observation_at(dataset: Dataset, index: int, policy: Engine | RemoteEngine) -> Observation:
    """What `policy` would have seen at frame `index` of a data set: frames, instruction, joints.

    Frames before the episode's start are its first one, as in training.

    Raises:
        ConfigError: the data set has another rate, or lacks a camera.
        DatasetError: no such frame.
    """
    from vipra_ros.policy.observation import Observation

    config, episode = policy.checkpoint.config, dataset.episode_of(index)
    if abs(dataset.fps - config.rate) > 1e-6:
        raise ConfigError(f"{dataset.path} has {dataset.fps:g} Hz, the policy {config.rate:g}; convert the bags again")
    if missing := sorted(set(config.cameras) - set(dataset.cameras)):
        raise ConfigError(f"{dataset.path} has no camera {missing[0]!r}; it has {', '.join(dataset.cameras)}")
    earlier = max(episode.start, index - config.frame_stride)
    single = getattr(config, "frames", 2) == 1  # a foreign server without a history
    frames = {c: np.stack([dataset.frame(c, i) for i in ((index,) if single else (earlier, index))])
              for c in config.cameras}
    count, joints = max(config.proprio_steps, int(config.relative_actions)), None
    if count:
        rows = np.maximum(index - np.arange(count - 1, -1, -1), episode.start)
        joints = dataset.numeric("observation.state")[rows].astype(float)
    return Observation((index - episode.start) / dataset.fps, frames, episode.task, joints)
