"""Quantiser training, both kinds, at toy size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stand_in import SIZE, StandIn

from vipra_ros.config import ConfigError
from vipra_ros.learning import vq
from vipra_ros.learning.loop import Interrupted

MODEL = dict(image_size=SIZE, codebook_size=16, code_dim=8)
CONV = MODEL | dict(kind="conv", widths=(24, 24), blocks=(0, 0), codebook_size=32)


@pytest.fixture(scope="module")
def many():
    return StandIn(episodes=40, length=4)


def training(model, **loop):
    loop = (
        dict(steps=150, batch=16, lr=0.003, warmup_steps=5, evaluate_every=75, log_every=1, bf16=False, save_seconds=0)
        | loop
    )
    return vq.build(
        vq.VQTraining, dict(loop=loop, model=model, object_weight=5.0, continuous=0.3, revive_every=10, holdout=0.2)
    )


def squared_error(folder, data):
    model = vq.load_vq(folder)
    images = np.stack([image for _, image in data.frames("front")])
    return ((model.decode(model.encode(images)).numpy().astype(float) - images) ** 2).mean(), images


def test_the_quantiser_of_a_checkpoint_is_one(tmp_path):
    for name in ("tiny", "tiny_pretrained"):
        folder = Path(__file__).parents[2] / "models" / name
        model = vq.load_vq(folder)
        kept = load_file(folder / "vq.safetensors")
        assert kept.keys() == model.state_dict().keys() and model.config.codes_per_frame == 256
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="holds no vq.json, nor a checkpoint"):
        vq.load_vq(tmp_path)


def test_convolutional_quantiser_learns(many, tmp_path):
    vq.train(many, tmp_path, training(CONV))
    error, images = squared_error(tmp_path, many)
    assert error < 0.75 * ((images - np.median(images, axis=0)) ** 2).mean()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "eval" and rows[-1]["codes_used"] >= 6
    assert (tmp_path / "vq.png").exists() and (tmp_path / "loss.png").exists()


def test_convolutional_quantiser_resumes_identically(many, tmp_path, monkeypatch):
    config = training(CONV, steps=30)
    vq.train(many, tmp_path / "whole", config)
    original = vq.run
    monkeypatch.setattr(vq, "run", lambda job, loop, out: original(job, loop, out, lambda s: s.step >= 17))
    with pytest.raises(Interrupted):
        vq.train(many, tmp_path / "cut", config)
    monkeypatch.setattr(vq, "run", original)
    other = StandIn(episodes=40, length=4)
    other.episodes[0].task = "another task"
    with pytest.raises(ConfigError, match="other data"):
        vq.train(other, tmp_path / "cut", config)
    vq.train(many, tmp_path / "cut", config)
    for name in ("whole", "cut"):
        assert len((tmp_path / name / "log.jsonl").read_text().splitlines()) == 31
    assert squared_error(tmp_path / "whole", many)[0] == squared_error(tmp_path / "cut", many)[0]


def test_patch_quantiser_is_fitted_in_closed_form(many, tmp_path):
    vq.train(many, tmp_path, training(MODEL | dict(kind="patch", patch=4, code_dim=12)))
    error, images = squared_error(tmp_path, many)
    assert error < 0.3 * ((images - np.median(images, axis=0)) ** 2).mean()
    assert vq.load_vq(tmp_path).config.codes_per_frame == 16


def test_pictures_of_another_size_are_cut_and_scaled(tmp_path):
    wide = StandIn(episodes=20, length=4)
    wide._images = np.pad(wide._images.repeat(2, 1).repeat(2, 2), ((0, 0), (0, 0), (8, 8), (0, 0)))
    vq.train(wide, tmp_path, training(MODEL | dict(kind="patch", patch=4, code_dim=12)))
    plain = StandIn(episodes=20, length=4)
    error, images = squared_error(tmp_path, plain)
    assert error < 0.3 * ((images - np.median(images, axis=0)) ** 2).mean()
    assert np.array_equal(vq.read_frames(wide, training(MODEL))[0], vq.read_frames(plain, training(MODEL))[0])


def test_blob_shift_measures_pixels():
    image = np.full((32, 32, 3), 128, np.uint8)
    image[4:10, 4:10] = (220, 30, 30)
    moved = np.roll(image, (3, 4), axis=(0, 1))
    assert vq.blob_shifts(image, moved) == [5.0]
    assert vq.blob_shifts(image, np.full_like(image, 128)) == [9.0]
    assert vq.blob_shifts(np.full_like(image, 128), image) == []
