"""Pictures shifted and recoloured lightly, as the published fine-tuning has them, in coded versions of every frame.

Training reads codes and not pictures, so a picture cannot be changed anew each time it is drawn. Instead every frame is
coded several times over, and each observation of a batch takes one of these versions. Within a version all frames of an
episode are changed alike: the two frames of an observation, and the future one, belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from vipra_ros.config import param

#: Red, green and blue as seen (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Augmentation:
    """How pictures are changed while training."""

    versions: int = param(0, doc="coded versions of every frame beside the plain one; each costs one more pass of the "
                                 "quantiser; 0 is off", low=0, high=1000)
    crop: float = param(0.92, doc="side of the smallest part that is cut out and scaled up, of the picture's", low=0.5,
                        high=1.0)
    colour: float = param(0.15, doc="largest relative change of brightness, contrast and saturation", low=0.0, high=0.9)
    seed: int = param(0, doc="of the changes", low=0)


def change(settings: Augmentation, version: int, episode: int, camera: int) -> Callable[[np.ndarray], np.ndarray]:
    """The change of all frames of an episode in a version: uint8 RGB (S, S, 3) -> the same."""
    rng = np.random.default_rng([settings.seed, version, episode, camera])
    side = rng.uniform(settings.crop, 1.0)
    left, top = rng.uniform(0.0, 1.0 - side, 2)
    brightness, contrast, saturation = 1.0 + rng.uniform(-settings.colour, settings.colour, 3)

    def changed(image: np.ndarray) -> np.ndarray:
        size = len(image)
        # Corners in pixels; sampled at the centres of the new ones, edges repeated.
        cut = np.float32([[side, 0.0, left * size + (side - 1.0) / 2], [0.0, side, top * size + (side - 1.0) / 2]])
        moved = cv2.warpAffine(image, cut, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        moved *= brightness
        middle = np.float32(moved.mean())
        moved = middle + contrast * (moved - middle)
        grey = (moved @ _LUMA)[..., None]
        return np.clip(grey + saturation * (moved - grey) + 0.5, 0, 255).astype(np.uint8)

    return changed
