"""The patch quantiser: exact where it can be, close where it must be."""

import numpy as np
import pytest
import torch

from vipra_ros.model.patch_vq import PatchVQ, make_quantiser
from vipra_ros.model.vq import VQ, VQConfig

CONFIG = VQConfig(kind="patch", image_size=32, patch=8, codebook_size=64, code_dim=16)


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    images = np.full((count, 32, 32, 3), 128, np.uint8)
    for image in images:
        y, x = rng.integers(0, 26, 2)
        image[y : y + 6, x : x + 6] = ((220, 30, 30), (30, 220, 30), (30, 30, 220))[rng.integers(3)]
    return images


@pytest.fixture(scope="module")
def fitted():
    made = PatchVQ(CONFIG)
    made.fit(pictures(400), torch.Generator().manual_seed(0))
    return made


def test_shapes_and_kinds(fitted):
    codes = fitted.encode(pictures(3))
    assert codes.shape == (3, 16) and codes.dtype == torch.int64
    assert fitted.decode(codes).shape == (3, 32, 32, 3) and fitted.decode(codes).dtype == torch.uint8
    assert fitted.code_vectors().shape == (1, 64, 16)
    assert type(make_quantiser(CONFIG)) is PatchVQ and type(make_quantiser(VQConfig())) is VQ


def test_unseen_pictures_come_back_close(fitted):
    images = pictures(50, seed=9)
    error = ((fitted.decode(fitted.encode(images)).numpy().astype(float) - images) ** 2).mean()
    assert error < 0.5 * ((images.astype(float) - 128) ** 2).mean()


def test_with_all_components_only_the_codebook_loses_anything():
    images = pictures(2)
    made = PatchVQ(VQConfig(kind="patch", image_size=32, patch=4, codebook_size=128, code_dim=48))
    made.fit(np.tile(images, (4, 1, 1, 1)), torch.Generator().manual_seed(0))
    made.codebook[0] = made.latents(made.patches(torch.from_numpy(images)))
    assert np.abs(made.decode(made.encode(images)).numpy().astype(int) - images).max() <= 1


def test_a_code_is_the_nearest_one(fitted):
    z = torch.randn(700, 16, generator=torch.Generator().manual_seed(1)) * fitted.codebook.std()
    assert torch.equal(fitted.nearest(z), torch.cdist(z, fitted.codebook[0]).argmin(1))


def test_fit_is_repeatable_and_needs_enough_patches(fitted):
    again = PatchVQ(CONFIG)
    again.fit(pictures(400), torch.Generator().manual_seed(0))
    assert torch.equal(again.codebook, fitted.codebook)
    with pytest.raises(ValueError, match="more frames"):
        PatchVQ(CONFIG).fit(pictures(2), torch.Generator())
    with pytest.raises(ValueError, match="expected uint8"):
        fitted.encode(np.zeros((1, 16, 16, 3), np.uint8))
