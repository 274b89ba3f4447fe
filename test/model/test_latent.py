"""Latent actions: who sees what in time, the quantiser's noise, shapes, the paper's size."""

import pytest
import torch

from vipra_ros.config import ConfigError, build, read_yaml, share
from vipra_ros.model.latent import LatentActions, LatentConfig, load_dinov2, to_frames
from vipra_ros.model.nsvq import NSVQ
from vipra_ros.model.spacetime import PositionBias, rotate

SMALL = LatentConfig(image_size=32, patch=4, image_layers=1, width=16, heads=2, inverse_blocks=1, forward_blocks=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = LatentActions(SMALL).eval()
    for block in made.dynamics.stack.blocks:  # zero at the start: then the condition would do nothing
        torch.nn.init.normal_(block.modulation.weight, std=0.3)
    return made


@pytest.fixture(scope="module")
def clip():
    return torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_shapes(model, clip):
    out = model(clip)
    assert out.prediction.shape == (2, 4, 3, 32, 32)
    assert out.codes.shape == (2, 4, SMALL.codes_per_step) == (2, 4, 4)
    assert model.encode(clip[:, :2]).shape == (2, 1, 4)
    assert model.encode(torch.cat([clip] * 3, 1)).shape == (2, 14, 4), "any length"
    assert to_frames(torch.full((1, 2, 4, 6, 3), 255, dtype=torch.uint8)).shape == (1, 2, 3, 4, 6)


def test_decoder_is_causal_in_frames_and_codes(model, clip):
    codes = model.encode(clip)
    with torch.no_grad():
        plain = model.decode(clip[:, :-1], codes)
        frames = clip[:, :-1].clone()
        frames[:, 2] = 1 - frames[:, 2]
        other = codes.clone()
        other[:, 2] = (other[:, 2] + 3) % 8
        for changed in (model.decode(frames, codes), model.decode(clip[:, :-1], other)):
            assert torch.allclose(changed[:, :2], plain[:, :2], atol=1e-6)
            for step in (2, 3):
                assert (changed[:, step] - plain[:, step]).abs().max() > 1e-4


def test_encoder_sees_the_future(model, clip):
    with torch.no_grad():
        changed = clip.clone()
        changed[:, 4] = 1 - changed[:, 4]
        a, b = (model.inverse(model.inverse.features(x)) for x in (clip, changed))
    assert (a[:, 0] - b[:, 0]).abs().max() > 1e-4


def test_roll_out_begins_as_teacher_forcing_does(model, clip):
    codes = model.encode(clip)
    with torch.no_grad():
        forced, rolled = model.decode(clip[:, :-1], codes), model.roll_out(clip[:, 0], codes)
    assert rolled.shape == forced.shape
    assert torch.allclose(rolled[:, 0], forced[:, 0].clamp(0, 1), atol=1e-5)
    again = model.decode(torch.cat((clip[:, :1], rolled[:, :-1]), 1), codes)
    assert torch.allclose(rolled, again.clamp(0, 1), atol=1e-5), "a roll-out is the fixed point of decoding"


def test_every_weight_learns(clip):
    torch.manual_seed(0)
    model = LatentActions(SMALL)
    out = model(clip, torch.Generator().manual_seed(0))
    (out.prediction - clip[:, 1:]).abs().mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None]
    assert not still
    assert model.quantiser.codebook.weight.grad.abs().sum() > 0
    assert model.inverse.image.patch.weight.grad.abs().sum() > 0


def test_noise_has_the_length_of_the_error():
    torch.manual_seed(0)
    vq = NSVQ(8, 6).train()
    x = torch.randn(500, 6)
    y, codes = vq(x, torch.Generator().manual_seed(0))
    q = vq.codebook(codes)
    assert torch.allclose((y - x).norm(dim=-1), (x - q).norm(dim=-1), rtol=1e-4)
    assert (torch.cdist(x, vq.codebook.weight).argmin(-1) == codes).all()
    cosine = torch.cosine_similarity(y - x, x - q, dim=-1)
    assert cosine.mean().abs() < 0.1 and cosine.std() > 0.2, "its direction is random, not that of the error"
    assert vq.usage.sum() == 500
    hard, _ = vq.eval()(x)
    assert torch.equal(hard, q)


def test_replacement_revives_dead_codes():
    generator = torch.Generator().manual_seed(0)
    vq = NSVQ(8, 4).train()
    with torch.no_grad():
        vq.codebook.weight[1:] = 100.0 + torch.arange(7.0)[:, None]  # far away: never the nearest
    x = torch.randn(4000, 4, generator=generator)
    _, codes = vq(x, generator)
    assert len(codes.unique()) == 1
    assert vq.replace(generator) == 7
    assert vq.usage.sum() == 0
    _, codes = vq(x, generator)
    assert len(codes.unique()) >= 7, "the one in the middle of the others may be nobody's nearest"
    assert NSVQ(8, 4).replace(generator) == 0, "nothing was counted yet"


def test_codebook_starts_from_data():
    generator = torch.Generator().manual_seed(0)
    groups = 10 * torch.eye(8)
    x = (groups[:, None] + 0.1 * torch.randn(8, 50, 8, generator=generator)).flatten(0, 1)
    vq = NSVQ(8, 8).eval()
    vq.start(x, generator)
    assert len(vq(x)[1].unique()) == 8
    means = x.reshape(8, 50, 8).mean(1)
    assert torch.cdist(means, vq.codebook.weight).amin(1).max() < 1e-4, "the middle of each cluster, not a point"


def test_codes_follow_the_data_and_take_no_gradient():
    generator = torch.Generator().manual_seed(0)
    vq = NSVQ(2, 3).train()
    vq.follow = 0.5
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]).repeat(100, 1)
    vq.start(x, generator)
    moved = x + torch.tensor([0.0, 0.4, 0])
    for _ in range(10):
        y, _ = vq(moved.requires_grad_(), generator)
    assert torch.cdist(vq.codebook.weight, moved[:2]).amin(0).max() < 1e-3
    y.square().sum().backward()
    assert vq.codebook.weight.grad is None and moved.grad.abs().sum() > 0


def test_continuous_vectors_pass():
    vq = NSVQ(8, 4).train()
    vq.continuous = True
    x = torch.randn(5, 4)
    y, codes = vq(x)
    assert torch.equal(x, y) and vq.usage.sum() == 0 and codes.shape == (5,)
    vq.continuous = False
    assert not torch.equal(vq(x)[0], x)
    vq.continuous = True
    assert torch.equal(vq.eval()(x)[0], vq.codebook(codes)), "held-out figures are always those of codes"


def test_bias_depends_on_the_offset_alone():
    bias = PositionBias(16, 3)(3, 4, extra=1)
    assert bias.shape == (3, 13, 13)
    assert torch.equal(bias[:, 0, 5], bias[:, 6, 11]), "both are one down and one right"
    assert not torch.allclose(bias[:, 0, 1], bias[:, 1, 0])
    assert bias[:, -1].abs().max() == 0 and bias[:, :, -1].abs().max() == 0


def test_rotation_makes_products_depend_on_distance():
    q, k = torch.randn(8).expand(6, 8), torch.randn(8).expand(6, 8)
    products = rotate(q) @ rotate(k).T
    assert torch.allclose(products[0, 2], products[3, 5], atol=1e-5)
    assert not torch.allclose(products[0, 2], products[2, 0], atol=1e-3)


def test_paper_preset_has_the_papers_size():
    config = build(LatentConfig, read_yaml(share("config", "learning", "paper", "latent.yaml"))["model"])
    assert (config.codes_per_step, config.codebook_size, config.grid) == (16, 8, 16)
    with torch.device("meta"):
        model = LatentActions(config)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    d, heads, ff = 768, 16, 2048
    attention = 4 * d * d + 2 * d // heads
    block = 27 * d + d + 3 * 2 * d + 2 * attention + 3 * d * ff
    bias = (2 * d + d) + (d * d + d) + (d * heads + heads)
    assert count(model.inverse.stack) == 6 * block + bias + 2 * d
    assert count(model.dynamics.stack) == 8 * (block + 9 * d * d + 9 * d) + bias + 2 * d
    assert count(model.inverse.image) == 86_583_552, "ViT-B/14 with 4 registers, mask token and 37 x 37 places"
    assert count(model.quantiser) == 8 * 32
    with torch.device("meta"):
        assert model(torch.empty(1, 8, 3, 224, 224)).prediction.shape == (1, 7, 3, 224, 224)


def test_wrong_configurations_are_told():
    with pytest.raises(ConfigError, match="no multiple of patch"):
        LatentConfig(image_size=65)
    with pytest.raises(ConfigError, match="dinov2 has patch 14"):
        LatentConfig(image_encoder="dinov2")
    with pytest.raises(ConfigError, match="codebook_size = 256"):  # labels keep a code in one byte
        build(LatentConfig, {"codebook_size": 256})


def test_encoder_weights_from_a_local_folder(tmp_path):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    with torch.device("meta"):
        model = LatentActions(LatentConfig(image_size=56, patch=14, image_encoder="dinov2", width=768, heads=16))
    with pytest.raises(ConfigError, match="no such model"):
        load_dinov2(model, tmp_path / "none")
    tiny = Dinov2WithRegistersConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                                     patch_size=14)
    Dinov2WithRegistersModel(tiny).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="give the folder of a DINOv2"):
        load_dinov2(model, tmp_path / "other")


def test_encoder_weights_of_which_some_are_missing_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    tiny = Dinov2WithRegistersConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                                     patch_size=14)
    whole = Dinov2WithRegistersModel(tiny)
    whole.save_pretrained(tmp_path)
    model = LatentActions(LatentConfig(image_size=56, patch=14))
    model.inverse.image.net = Dinov2WithRegistersModel(tiny)
    load_dinov2(model, tmp_path)
    assert torch.equal(model.inverse.image.net.layernorm.weight, whole.layernorm.weight)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="1 weights are missing, layernorm.weight first"):
        load_dinov2(model, tmp_path)
