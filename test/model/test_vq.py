"""The frame quantiser: shapes, codebook start and revival, training on small pictures."""

import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.model.vq import VQ, VQConfig

SMALL = dict(image_size=32, widths=(8, 12, 16), blocks=(0, 1, 1), codebook_size=32, code_dim=8)


def pictures(count, seed=0, size=32):
    """Coloured squares on grey."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((count, size, size, 3), 128, dtype=torch.uint8)
    for i in range(count):
        x, y = torch.randint(0, size - 8, (2,), generator=generator)
        images[i, y : y + 8, x : x + 8] = torch.randint(0, 256, (3,), generator=generator).to(torch.uint8)
    return images


@pytest.mark.parametrize("groups", [1, 2])
def test_codes_and_pictures_have_the_documented_shapes(groups):
    torch.manual_seed(0)
    vq = VQ(VQConfig(**SMALL, groups=groups)).eval()
    codes = vq.encode(pictures(3))
    assert codes.shape == (3, 4 * groups) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 32
    decoded = vq.decode(codes)
    assert decoded.shape == (3, 32, 32, 3) and decoded.dtype == torch.uint8
    assert vq.code_vectors().shape == (groups, 32, 8 // groups)


def test_tiny_preset_gives_64_codes():
    config = VQConfig()
    assert (config.grid, config.codes_per_frame) == (8, 64)


def test_code_of_a_frame_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    vq = VQ(VQConfig(**SMALL)).eval()
    images = pictures(8)
    assert torch.equal(vq.encode(images)[5:6], vq.encode(images[5:6]))


def test_encoding_a_code_vector_finds_it():
    torch.manual_seed(0)
    quantiser = VQ(VQConfig(**SMALL, groups=2)).quantiser.eval()
    indices = torch.randint(0, 32, (2, 50))
    vectors = quantiser.lookup(indices)
    assert torch.equal(quantiser.nearest(quantiser.split(3.0 * vectors)), indices)


def test_codebook_starts_from_data_and_unused_codes_are_revived():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    quantiser = VQ(VQConfig(**SMALL)).quantiser
    centres = torch.randn(40, 8)
    z = centres[torch.randint(0, 40, (2000,), generator=generator)] + 0.01 * torch.randn(2000, 8)
    quantiser.initialise(z, generator)
    served = (quantiser.split(z)[0] @ quantiser.codebook[0].T).max(-1).values
    assert served.mean() > 0.9  # 40 clusters for 32 codes; random unit vectors reach 0.75
    quantiser.usage[:, :20] = 0.0
    quantiser.codebook[:, :20] = quantiser.codebook[:, 20:21]
    before = (quantiser.split(z)[0] @ quantiser.codebook[0].T).max(-1).values.mean()
    assert quantiser.revive(z, 0.01, generator) == 20
    after = (quantiser.split(z)[0] @ quantiser.codebook[0].T).max(-1).values.mean()
    assert after > before


def test_too_few_latents_for_a_codebook_are_refused():
    quantiser = VQ(VQConfig(**SMALL)).quantiser
    with pytest.raises(ValueError, match="more frames"):
        quantiser.initialise(torch.randn(10, 8), torch.Generator())


def test_gradient_passes_straight_through_the_codebook():
    torch.manual_seed(0)
    vq = VQ(VQConfig(**SMALL))
    decoded, indices, commitment = vq(VQ.to_input(pictures(4)))
    (decoded.mean() + commitment).backward()
    assert indices.shape == (1, 16)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vq.parameters())
    assert vq.encoder[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "change, word", [(dict(image_size=50), "multiple"), (dict(widths=(8,)), "length"), (dict(groups=3), "groups")]
)
def test_impossible_sizes_are_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        VQConfig(**{**SMALL, **change})


def test_wrong_pictures_are_refused():
    vq = VQ(VQConfig(**SMALL))
    with pytest.raises(ValueError, match="expected uint8"):
        vq.encode(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
