"""True optical flow of the simulated table: where the point that a pixel shows is in a later picture.

Depth and segmentation give the point and the body it is on; bodies are rigid, so their poses in the later instant say
where the point has gone, and the camera of that instant where it is seen. Nothing is estimated.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from . import scene

#: m; a point that lies deeper than what is drawn at its place is hidden there.
HIDDEN = 0.01


@dataclass(frozen=True)
class Look:
    """What a camera sees in one instant. geom int (S, S), -1 for none; local (S, S, 3) m in the geom's own frame;
    depth (S, S) m along the camera's axis."""

    geom: np.ndarray
    local: np.ndarray
    depth: np.ndarray


class TrueFlow:
    """Looks at a world, and the flow from an earlier look to the present.

    Args:
        size: px, square; as the pictures.
    """

    def __init__(self, model: mujoco.MjModel, camera: str = "front", size: int = 128):
        self.size, self._camera = size, model.camera(camera).id
        self._focal = scene.focal_length(camera, size)
        self._name, self._renderer = camera, mujoco.Renderer(model, size, size)
        self._option = mujoco.MjvOption()  # the same bodies as `Eyes` draws
        self._option.geomgroup[:] = 0
        self._option.geomgroup[[0, 3]] = 1
        side = np.arange(size) + 0.5
        self._u, self._v = np.meshgrid(side, side)

    def look(self, data: mujoco.MjData) -> Look:
        """The present instant."""
        r = self._renderer
        r.update_scene(data, camera=self._name, scene_option=self._option)
        r.enable_depth_rendering()
        depth = r.render().astype(np.float64)
        r.disable_depth_rendering()
        r.enable_segmentation_rendering()
        seen = r.render()
        r.disable_segmentation_rendering()
        geom = np.where(seen[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), seen[..., 0], -1)
        x, y = ((p - self.size / 2) / self._focal * depth for p in (self._u, self._v))
        camera = np.stack((x, -y, -depth), axis=-1)  # its own axes: right, up, backwards
        world = camera @ data.cam_xmat[self._camera].reshape(3, 3).T + data.cam_xpos[self._camera]
        turn = data.geom_xmat.reshape(-1, 3, 3)[geom]
        return Look(geom, np.einsum("hwji,hwj->hwi", turn, world - data.geom_xpos[geom]), depth)

    def flow(self, before: Look, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """Flow (S, S, 2), px, (right, down), from an earlier look to the present, and bool (S, S) where it holds.

        It does where there is a body and its point is still in the picture and not hidden.
        """
        turn = data.geom_xmat.reshape(-1, 3, 3)[before.geom]
        world = np.einsum("hwij,hwj->hwi", turn, before.local) + data.geom_xpos[before.geom]
        camera = (world - data.cam_xpos[self._camera]) @ data.cam_xmat[self._camera].reshape(3, 3)
        depth = np.maximum(-camera[..., 2], 1e-6)
        u = self.size / 2 + self._focal * camera[..., 0] / depth
        v = self.size / 2 - self._focal * camera[..., 1] / depth
        inside = (u >= 0) & (u < self.size) & (v >= 0) & (v < self.size) & (before.geom >= 0)
        now = self.look(data)
        i, j = (np.where(inside, p, 0).astype(int) for p in (v, u))
        shown = depth <= now.depth[i, j] + HIDDEN
        return np.stack((u - self._u, v - self._v), axis=-1), inside & shown

    def close(self) -> None:
        """Free the GL context."""
        self._renderer.close()
