"""Checkpoints of strangers: every folder is loaded, or refused with a CheckpointError."""

import json
import shutil
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipra_ros.policy.checkpoint import HASHED, Checkpoint, CheckpointError
from vipra_ros.policy.text import Prompt, TokenizerError

from .conftest import examples, faults, spoil, watched

NUMBERS = (0, -1, 1, 3, 10**9, 10**400, 1.5, float("nan"), float("inf"), None, True, "x", [], [0], {}, [10**9] * 3)


@pytest.fixture
def folder(micro_checkpoint, tmp_path):
    return shutil.copytree(micro_checkpoint, tmp_path / "checkpoint")


def restored(micro_checkpoint, folder):
    for name in HASHED:
        shutil.copyfile(micro_checkpoint / name, folder / name)
    return folder


def use(folder):
    with watched(CheckpointError, TokenizerError):
        made = Checkpoint.load(folder)
        made.prompt.before("push the cube")
        assert made.normaliser.action_std.min() > 0


@examples(20)
@given(data=st.data())
def test_spoilt_files(micro_checkpoint, folder, data):
    file = restored(micro_checkpoint, folder) / data.draw(st.sampled_from(HASHED))
    whole = file.read_bytes()
    if file.suffix == ".safetensors" and data.draw(st.booleans()):  # most of it is numbers: the head is the parser's
        head = 8 + int.from_bytes(whole[:8], "little")
        file.write_bytes(spoil(whole[:head], data.draw(faults)) + whole[head:])
    else:
        file.write_bytes(spoil(whole, data.draw(faults)))
    use(folder)


def places(value, path=()):
    """Where the values of a JSON document are."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@examples(20)
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "statistics.json"])
def test_other_values(micro_checkpoint, folder, name, data):
    values = json.loads((restored(micro_checkpoint, folder) / name).read_text())
    *way, last = data.draw(st.sampled_from([p for p in places(values) if p]))
    inner = values
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(st.sampled_from(NUMBERS))
    (folder / name).write_text(json.dumps(values))
    use(folder)


@pytest.mark.parametrize("where, value", [
    (("policy", "backbone", "layers"), 10**9), (("policy", "backbone", "width"), 10**12),
    (("policy", "text_vocab"), 10**12), (("vq", "blocks"), [10**9] * 3), (("vq", "widths"), [8] * 10**4),
    (("vq", "widths"), []), (("horizon",), 10**12), (("euler_steps",), 10**9), (("seed",), "x" * 10**5)])
def test_sizes_that_no_network_has(folder, where, value):
    values = json.loads((folder / "config.json").read_text())
    inner = values
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (folder / "config.json").write_text(json.dumps(values))
    with watched(CheckpointError), pytest.raises(CheckpointError):
        Checkpoint.load(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"null", b"[1]", b'{"action": 3}'])
@pytest.mark.parametrize("name", ["config.json", "statistics.json", "tokenizer.json"])
def test_json_that_is_no_description(folder, name, content):
    (folder / name).write_bytes(content)
    with watched(CheckpointError), pytest.raises(CheckpointError):
        Checkpoint.load(folder)


def head(text: bytes, size=None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize("content", [
    b"", head(b"{}", 1 << 62), head(b"{}", 1 << 31), head(b"{}"), head(b"[" * 1000),
    head(b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
    head(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}') + bytes(4),
    head(b'{"w":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}') + bytes(8)])
def test_weights_that_are_none(folder, content):
    (folder / "policy.safetensors").write_bytes(content)
    with watched(CheckpointError), pytest.raises(CheckpointError):
        Checkpoint.load(folder)


def test_weights_of_another_kind_of_number(folder):
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "policy.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name].to(torch.int32)}, folder / "policy.safetensors")
    with pytest.raises(CheckpointError, match="int32"):
        Checkpoint.load(folder)


def test_a_template_is_filled_in_and_not_run(folder):
    tokenizer = Checkpoint.load(folder).tokenizer
    with watched():
        Prompt(tokenizer, "{task} {0} {task:>1000000000} {task.__class__}", False).before("push")
