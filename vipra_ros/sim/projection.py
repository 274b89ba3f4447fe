"""From metres in the base frame to pixels of a fixed camera, to draw a plan over its picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import scene

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True)
class Pinhole:
    """An ideal camera: focal length and centre in pixels, pose in the base frame.

    The camera's own axes are x right, y up, looking along -z.
    """

    focal: float
    centre: float
    position: np.ndarray  # (3,) m
    rotation: np.ndarray  # (3, 3)

    @classmethod
    def of(cls, model: mujoco.MjModel, camera: str, size: int) -> Pinhole:
        """The camera of the scene that stands on the world, at `size` x `size` pixels.

        Raises:
            ValueError: the camera moves with the arm.
        """
        body = model.cam_bodyid[model.camera(camera).id]
        if body != 0:
            raise ValueError(
                f"camera {camera!r} moves with the arm; only a fixed one (front) has a constant projection"
            )
        index = model.camera(camera).id
        return cls(
            scene.focal_length(camera, size),
            size / 2,
            model.cam_pos[index].copy(),
            model.cam_mat0[index].reshape(3, 3).copy(),
        )

    @classmethod
    def front(cls, size: int) -> Pinhole:
        """The scene's fixed camera at `size` x `size` pixels, without a model of the scene."""
        right, up = (np.asarray(axis) / np.linalg.norm(axis) for axis in scene.FRONT_AXES)
        rotation = np.stack([right, up, np.cross(right, up)], axis=1)
        return cls(scene.focal_length("front", size), size / 2, np.asarray(scene.FRONT_POSITION), rotation)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) in m -> (..., 2) pixels, x right and y down; NaN behind the camera."""
        local = (np.asarray(points, float) - self.position) @ self.rotation
        depth = -local[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            xy = np.stack(
                [
                    self.centre + self.focal * local[..., 0] / depth,
                    self.centre - self.focal * local[..., 1] / depth,
                ],
                -1,
            )
        return np.where(depth[..., None] > 1e-6, xy, np.nan)
