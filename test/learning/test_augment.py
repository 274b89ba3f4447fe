"""Changed pictures: within bounds, alike within an episode, coded once, and drawn by the observation."""

import numpy as np
import pytest
import torch

from vipra_ros.learning import finetune
from vipra_ros.learning.augment import Augmentation, change
from vipra_ros.learning.tokenise import quantiser_hash, tokenise
from vipra_ros.learning.vq import load_vq

TWO = Augmentation(versions=2)


def ramp(size=64):
    """Brighter to the right and downwards."""
    x = np.arange(size, dtype=float)
    return np.clip((x[None] + x[:, None])[..., None] + np.array([20, 40, 60]), 0, 255).astype(np.uint8)


def test_the_changes_are_as_small_as_said_and_the_same_for_an_episode():
    image = ramp()
    assert np.array_equal(change(Augmentation(crop=1.0, colour=0.0), 1, 0, 0)(image), image)
    seen = []
    for episode in range(40):
        one, again = (change(Augmentation(crop=0.9, colour=0.0), 1, episode, 0) for _ in range(2))
        made = one(image)
        assert np.array_equal(made, again(image)) and made.shape == image.shape and made.dtype == np.uint8
        # A ramp's slope says how much was cut out, its first corner where.
        right, down = (float(np.diff(made[8:-8, 8:-8, 0].astype(float), axis=a).mean()) for a in (1, 0))
        corner = made[0, 0, 0] - 20.0
        assert right == pytest.approx(down, abs=0.03) and 0.87 < right < 1.02
        assert -0.6 <= corner <= 2 * 64 * (1 - right) + 3.0
        seen.append((right, corner))
    spread = np.ptp(np.array(seen), axis=0)
    assert spread[0] > 0.06 and spread[1] > 4.0
    light = [change(Augmentation(crop=1.0, colour=0.2), 1, e, 0)(image).mean() / image.mean() for e in range(40)]
    assert 0.79 < min(light) < 0.9 and 1.1 < max(light) < 1.21
    whole = change(TWO, 1, 0, 0)(image)
    assert all(not np.array_equal(whole, change(TWO, *other)(image)) for other in ((2, 0, 0), (1, 1, 0), (1, 0, 1)))


def test_versions_are_coded_beside_the_plain_frames_and_go_on_within_an_episode(data, quantiser, tmp_path, monkeypatch):
    vq = load_vq(quantiser)
    plain = tokenise(data, vq, tmp_path, ("front",), "id")
    codes = tokenise(data, vq, tmp_path, ("front",), "id", 2, TWO)
    images = np.stack([change(TWO, 2, e.index, 0)(image) for e in data.episodes
                       for _, image in data.frames("front", e.start, e.start + e.length)])
    assert np.array_equal(codes[:, 0], vq.encode(images).numpy()) and not np.array_equal(codes, plain)
    # More versions leave those that are there; another way of changing has files of its own.
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.npy")}
    assert np.array_equal(tokenise(data, vq, tmp_path, ("front",), "id", 2, Augmentation(versions=5)), codes)
    assert not np.array_equal(tokenise(data, vq, tmp_path, ("front",), "id", 2, Augmentation(colour=0.5)), codes)
    assert np.array_equal(tokenise(data, vq, tmp_path, ("front",), "id"), plain)
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in times.items())
    # Killed behind the first block of 64 frames, in the middle of the sixth episode.
    frames, left = data.frames, [70]

    def dying(*a):
        for item in frames(*a):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(data, "frames", dying)
    with pytest.raises(KeyboardInterrupt):
        tokenise(data, vq, tmp_path / "cut", ("front",), "id", 2, TWO)
    assert np.array_equal(tokenise(data, vq, tmp_path / "cut", ("front",), "id", 2, TWO), codes)


def test_each_observation_takes_a_version_for_all_its_frames(data, quantiser, preset, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(finetune, "run", lambda job, *_: jobs.append(job))
    finetune.train(data, tmp_path / "ft", preset, overrides={"augmentation.versions": 2})
    job, vq = jobs[0], load_vq(quantiser)
    assert not job.held.versions, "figures are of plain pictures"
    files = [tokenise(data, vq, next((tmp_path / "codes").iterdir()), ("front",), quantiser_hash(vq), v, TWO)
             for v in range(3)]
    index, version = job.data.usable[:6], np.array([0, 1, 2, 2, 1, 0])
    prefix, *_ = job.example(job.data, index, version)
    rows = job.data.history(index, job.frame_offsets)
    future = job._future(job.data, index, version).numpy()
    for i, v in enumerate(version):
        assert np.array_equal(prefix.codes[i].numpy(), files[v][rows[i]])
        assert np.array_equal(future[i], files[v][min(index[i] + job.ahead, job.data.last[index[i]])])
    drawn = []
    example = finetune.FinetuneJob.example
    monkeypatch.setattr(job, "example", lambda *a: drawn.append(a[2]) or example(job, *a))
    for step in range(8):
        loss, _ = job.loss(torch.Generator().manual_seed(step), 0.0)
        assert torch.isfinite(loss)
    counts = np.bincount(np.concatenate(drawn), minlength=3)
    assert len(counts) == 3 and counts.min() > 0.2 * counts.sum()
