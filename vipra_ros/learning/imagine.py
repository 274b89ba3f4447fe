"""What a pre-trained model thinks will be seen, beside what was: `imagine(checkpoint, dataset, out)`.

A row per moment, drawn evenly over the data set: the frame now, the imagined future, the true future as the quantiser
draws it (the best that can be imagined), the true future.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from vipra_ros.config import ConfigError
from vipra_ros.learning.pretrain import closing
from vipra_ros.learning.vq import open_dataset
from vipra_ros.model.joint import JointBatch
from vipra_ros.policy.pictures import resize
from vipra_ros.policy.pretrained import Pretrained
from vipra_ros.policy.text import Prompt


def imagine(checkpoint: str | Path, dataset, out: str | Path, count: int = 6) -> dict[str, float]:
    """Write the sheet to `out` (PNG) and return `codes_right` and `codes_same_as_now`: the shares of the true future's
    codes that were imagined, and that already stand in the frame now.

    Raises:
        ConfigError: no pre-trained model with a future frame, the data set has no such camera, `count` is none, or
            `out` is no PNG.
    """
    if count < 1:
        raise ConfigError(f"count = {count}: give the number of moments, 1 or more")
    if Path(out).suffix.lower() != ".png" or not Path(out).absolute().parent.is_dir():  # known before the work is done
        raise ConfigError(f"{out} cannot be written; give a file that ends in .png in an existing folder")
    made, opened = Pretrained.load(checkpoint), open_dataset(dataset)
    c = made.config
    missing = [camera for camera in c.cameras if camera not in opened.cameras]
    if missing:
        raise ConfigError(f"{opened.path} has no camera {missing[0]!r}; it has {', '.join(opened.cameras)}")
    prompt = Prompt(made.tokenizer, c.prompt, False)
    close, begin, end = closing(prompt, c.joint.latent_steps > 0)
    rows, right, same = [], [], []
    for at in np.linspace(0, len(opened) - 1, count + 2).round().astype(int)[1:-1]:
        episode = next(e for e in opened.episodes if e.start <= at < e.start + e.length)
        frames = np.arange(1 - c.joint.policy.frames, 1) * c.frame_stride + at
        wanted = [*np.maximum(frames, episode.start), min(at + c.ahead, episode.start + episode.length - 1)]
        pictures = [[resize(next(p for _, p in opened.frames(camera, int(i), int(i) + 1)), c.vq.image_size)
                     for camera in c.cameras] for i in wanted]
        codes = torch.stack([made.vq.encode(torch.from_numpy(np.stack(p))).long() for p in pictures])
        before = torch.tensor([prompt.before(episode.task)])
        batch = JointBatch(before, torch.ones_like(before, dtype=torch.bool), codes[None, :-1], None, None,
                           close, begin, end)
        future = made.model.imagine(batch)[0]
        right.append(float((future == codes[-1]).float().mean()))
        same.append(float((codes[-2] == codes[-1]).float().mean()))
        drawn = np.asarray(made.vq.decode(torch.stack([future[0], codes[-1, 0]])))
        rows.append(np.concatenate([pictures[-2][0], *drawn, pictures[-1][0]], axis=1))
    if not cv2.imwrite(str(out), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)):
        raise ConfigError(f"{out} cannot be written; give a file that ends in .png in an existing folder")
    return {"codes_right": float(np.mean(right)), "codes_same_as_now": float(np.mean(same))}


def main(checkpoint: str | Path, dataset: str | Path, out: str | Path, count: int) -> None:
    """`vipra imagine`."""
    figures = imagine(checkpoint, dataset, out, count)
    print(f"{out}: now, imagined, true as the quantiser draws it, true; {figures['codes_right']:.1%} of the codes "
          f"right, {figures['codes_same_as_now']:.1%} the same as now (n = {count})")
