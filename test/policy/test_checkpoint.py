"""A checkpoint folder survives a round trip and refuses everything that does not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vipra_ros.control.profile import load_profile
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError, folder_hash


@pytest.fixture
def made(micro_checkpoint):
    return micro_checkpoint


@pytest.fixture
def folder(made, tmp_path):
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_round_trip(made, tmp_path):
    loaded = Checkpoint.load(made)
    assert loaded.hash == folder_hash(made) and len(loaded.hash) == 64
    assert loaded.save(tmp_path) == loaded.hash
    again = Checkpoint.load(tmp_path)
    assert again.config == loaded.config and again.statistics == loaded.statistics
    for name in ("policy", "vq"):
        mine, theirs = getattr(again, name).state_dict(), getattr(loaded, name).state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert not loaded.policy.training and not loaded.vq.training


def test_every_hashed_file_changes_the_hash_and_the_card_does_not(folder):
    before = folder_hash(folder)
    (folder / "card.md").write_text("other words")
    assert folder_hash(folder) == before
    (folder / "statistics.json").write_text((folder / "statistics.json").read_text() + " ")
    assert folder_hash(folder) != before


@pytest.mark.parametrize(
    "name", ["config.json", "policy.safetensors", "vq.safetensors", "statistics.json", "tokenizer.json"]
)
def test_incomplete_folder(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.load(folder)


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda c: c.pop("frame_stride"), "frame_stride"),
        (lambda c: c.update(extra=1), "extra"),
        (lambda c: c.update(horizon=10), "horizon"),
        (lambda c: c.update(gripper="open=0"), "gripper"),
        (lambda c: c.update(format=2), "format"),
        (lambda c: c["policy"].update(unheard=1), "unheard"),
        (lambda c: c.update(execute_steps=15), "execute_steps"),
        (lambda c: c.update(joint_names=["a", "b"]), "action columns"),
        (lambda c: c["policy"]["backbone"].update(layers=2), "layers.1"),
        (lambda c: c["policy"]["backbone"].update(ffn=64), "expected"),
    ],
)
def test_edited_config(folder, change, word):
    edit(folder / "config.json", change)
    with pytest.raises(CheckpointError, match=word):
        Checkpoint.load(folder)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda s: s.pop("action"), "action"),
        (lambda s: s["action"].pop("std"), "std"),
        (lambda s: s["action"]["mean"].pop(), "mean"),
        (lambda s: s["action"].update(std=[float("nan")] * 8), "not finite"),
    ],
)
def test_broken_statistics(folder, change, word):
    edit(folder / "statistics.json", change)
    with pytest.raises(CheckpointError, match=word):
        Checkpoint.load(folder)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda w: w.pop("head.bias"), "missing"),
        (lambda w: w.update(surplus=torch.zeros(1)), "unknown"),
        (lambda w: w["head.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_broken_weights(folder, change, word):
    weights = load_file(folder / "policy.safetensors")
    change(weights)
    save_file(weights, folder / "policy.safetensors")
    with pytest.raises(CheckpointError, match=word):
        Checkpoint.load(folder)


@pytest.mark.parametrize("name", ["policy.safetensors", "tokenizer.json", "config.json", "statistics.json"])
def test_cut_files(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.load(folder)


def test_robot_profile_must_match(made):
    loaded = Checkpoint.load(made)
    loaded.check(load_profile("fr3"))
    with pytest.raises(CheckpointError, match="panda_joint1"):
        loaded.check(load_profile("panda"))
