"""A stand-in for a data set on disk: a dot on a plane, and an arm of seven joints that goes to it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

SIZE = 16
COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220)}


class StandIn:
    """The interface of vipra_ros.data.dataset.Dataset: episodes, numeric(column), frames(camera)."""

    def __init__(self, episodes=8, length=12, seed=0):
        rng = np.random.default_rng(seed)
        self.path, self.fps, self.cameras = Path("stand-in"), 15.0, ["front"]
        names = [f"fr3_joint{i}" for i in range(1, 8)] + ["gripper"]
        self.features = {"action": {"names": names}, "observation.state": {"names": names}}
        self.episodes, images, states, actions = [], [], [], []
        for e in range(episodes):
            colour = list(COLOURS)[e % 2]
            spot = rng.integers(2, SIZE - 6, 2)
            target = np.concatenate([(spot - 6) / 10.0, np.full(5, 0.1 * (e % 2)), [1.0]])
            q = np.concatenate([np.zeros(7), [1.0]])
            picture = np.full((SIZE, SIZE, 3), 128, np.uint8)
            picture[spot[0] : spot[0] + 4, spot[1] : spot[1] + 4] = COLOURS[colour]
            self.episodes.append(
                SimpleNamespace(
                    index=e,
                    task=f"go to the {colour} dot",
                    length=length,
                    start=e * length,
                    task_key="go" if e % 4 < 2 else "stay",
                )
            )
            for k in range(length):
                images.append(picture)
                states.append(q.copy())
                q = q + 0.2 * (target - q)
                q[-1] = 1.0 if k < length // 2 else -1.0
                actions.append(q.copy())
        self._images = np.stack(images)
        self._columns = {
            "action": np.stack(actions).astype(np.float32),
            "observation.state": np.stack(states).astype(np.float32),
        }

    def __len__(self):
        return len(self._images)

    def numeric(self, column):
        return self._columns[column]

    def frames(self, camera, start=0, stop=None):
        assert camera in self.cameras
        for i in range(start, len(self) if stop is None else stop):
            yield i, self._images[i]
