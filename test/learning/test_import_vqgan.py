"""LWM's VQGAN: the pickle refuses programs, and codes and pictures equal numpy's."""

import collections
import pickle

import lwm_files as lwm
import numpy as np
import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.learning.arrays_pickle import load
from vipra_ros.learning.import_vqgan import config_of, import_vqgan, to_module
from vipra_ros.learning.vq import load_vq
from vipra_ros.model.patch_vq import make_quantiser
from vipra_ros.model.vqgan import LWM, VQGAN


@pytest.fixture
def tree():
    return lwm.make_vqgan()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_protocol_is_read(tmp_path, tree, protocol):
    (tmp_path / "vqgan").write_bytes(pickle.dumps(tree, protocol=protocol))
    assert np.array_equal(load(tmp_path / "vqgan")["quantize/embeddings"], tree["quantize"]["embeddings"])


def test_codes_and_pictures_equal_numpy(tmp_path, tree):
    (tmp_path / "vqgan").write_bytes(pickle.dumps({"params": tree}))
    import_vqgan(tmp_path / "vqgan", tmp_path, image_size=32)
    model = load_vq(tmp_path)
    assert isinstance(model, VQGAN) and model.config.grid == 16 and model.config.widths == (32, 64)
    images = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = np.stack([lwm.vqgan_encode(tree, image) for image in images])
    codes = model.encode(images)
    assert np.array_equal(codes.numpy(), expected.reshape(2, -1))
    assert len(np.unique(expected)) > 8  # a collapsed test would prove nothing
    with torch.inference_mode():
        pixels = model.reconstruct(codes).permute(0, 2, 3, 1).numpy()
    truth = np.stack([lwm.vqgan_decode(tree, code) for code in expected])
    assert np.abs(pixels - truth).max() < 2e-5 and (np.abs(truth) < 1).mean() > 0.2
    decoded = model.decode(codes)
    assert decoded.dtype == torch.uint8 and decoded.shape == images.shape
    assert np.abs(decoded.numpy() - (truth + 1) * 127.5).max() <= 0.51


def test_lwm_size_on_the_meta_device():
    """The published network: 16 x 16 codes of a 256 px frame."""
    with torch.device("meta"):
        model = make_quantiser(LWM)
        z = model.latents(torch.empty(1, 3, 256, 256))
        pixels = model.reconstruct(torch.empty(1, 256, dtype=torch.long))
    assert z.shape == (1, 16, 16, 64) and pixels.shape == (1, 3, 256, 256)
    assert LWM.codes_per_frame == 256 and model.codebook.shape == (1, 8192, 64)


def test_wrong_input_is_named():
    with torch.device("meta"):
        model = make_quantiser(LWM)
    with pytest.raises(ValueError, match="expected uint8"):
        model.encode(np.zeros((1, 128, 128, 3), np.uint8))
    with pytest.raises(ValueError, match="expected"):
        model.decode(np.zeros((1, 64), np.int64))


class Shout:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("where", ["whole", "leaf", "list", "object array"])
def test_a_program_is_refused_and_not_run(tmp_path, tree, where):
    mark = tmp_path / "ran"
    evil = Shout(mark)
    whole = {
        "whole": evil,
        "leaf": tree | {"quant_conv": {"kernel": evil}},
        "list": tree | {"x": [evil]},
        "object array": tree | {"x": np.array([evil], object)},
    }[where]
    (tmp_path / "vqgan").write_bytes(pickle.dumps(whole))
    with pytest.raises(ConfigError, match="refused: it asks for .*open"):
        load(tmp_path / "vqgan")
    assert not mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c__builtin__\ngetattr\n.",
        # A dotted name must not reach past an allowed module.
        b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        # jax's constructor around something that is not numpy's.
        b"cjax._src.array\n_reconstruct_array\n(cbuiltins\ndict\n(t(ttR.",
        b"Pstored elsewhere\n.",
    ],
    ids=range(7),
)
def test_hand_written_pickles_are_refused(tmp_path, code):
    (tmp_path / "vqgan").write_bytes(code)
    with pytest.raises(ConfigError, match="refused"):
        load(tmp_path / "vqgan")


def test_damage_is_one_line(tmp_path, tree):
    data = pickle.dumps(tree)
    rng = np.random.default_rng(0)
    for at in rng.integers(1, len(data), 60):
        (tmp_path / "vqgan").write_bytes(data[:at])
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "vqgan")
        assert "\n" not in str(caught.value)


def test_plain_containers_and_jax_arrays_are_read(tmp_path):
    """FrozenDict and jax arrays are pickled by name; their modules need not be there."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    build, args, state = array.__reduce__()
    text = pickle.dumps((build, args, state, {"weak_type": False}), protocol=2)
    # _reconstruct_array(*tuple) around the pickled tuple, inside FrozenDict({"a": .})
    body = text[2:-1]
    front = b"\x80\x02cflax.core.frozen_dict\nFrozenDict\n(}U\x01acjax._src.array\n_reconstruct_array\n"
    code = front + body + b"RstR."
    (tmp_path / "p").write_bytes(code)
    assert np.array_equal(load(tmp_path / "p")["a"], array)
    (tmp_path / "p").write_bytes(pickle.dumps(collections.OrderedDict(params={"b": array})))
    assert np.array_equal(load(tmp_path / "p")["b"], array)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("encoder/Conv_0/kernel", np.zeros((3, 3, 4, 32), np.float32), "encoder/Conv_0/kernel is"),
        ("decoder/MidBlock_0/ResnetBlock_1/GroupNorm_1/scale", None, "GroupNorm_1/scale is missing"),
        ("encoder/AttnBlock_0/Conv_0/bias", np.zeros(32, np.float32), "AttnBlock_0/Conv_0/bias has no place"),
        ("quant_conv/bias", np.full(8, np.nan, np.float32), "quant_conv/bias has values that are not finite"),
        ("quantize/embeddings", None, "no quantize/embeddings"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, tree, key, value, named):
    (tmp_path / "vqgan").write_bytes(pickle.dumps(tree))
    flat = {k: v for k, v in (load(tmp_path / "vqgan") | {key: value}).items() if v is not None}
    with pytest.raises(ConfigError, match=named):
        to_module(flat, config_of(flat, 32))
