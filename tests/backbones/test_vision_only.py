"""Tests of a backbone family without text: its module is this file, plus one entry in the table of families."""

import sys
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import load_backbone
from zsad_jax.backbones import VisionFeatures
from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.family import Family, image_encoder, joint_digest
from zsad_jax.backbones.load import FAMILIES
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils.errors import UserError

PATCH, WIDTH = 7, 5


class Tower(nn.Module):
    """A tower with one linear patch embedding; the mean patch is the class token."""

    @nn.compact
    def __call__(self, images):
        kernel = self.param("kernel", nn.initializers.normal(), (PATCH * PATCH * 3, WIDTH))
        b, height, width, _ = images.shape
        h, w = height // PATCH, width // PATCH
        x = images.reshape(b, h, PATCH, w, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h, w, -1) @ kernel
        return VisionFeatures(x.mean((1, 2))[:, None], x[:, None])


def load(name, located, release, options):
    with np.load(located.weights) as arrays:
        params = {"vision": {"kernel": jnp.asarray(arrays["kernel"])}}
    return Backbone(
        name=name,
        family="toy",
        params=params,
        preprocess=Preprocess(image_size=options.image_size or 4 * PATCH),
        temperature=1.0,
        patch_size=PATCH,
        embed_dim=WIDTH,
        num_global_tokens=1,
        vision_width=WIDTH,
        vision_depth=1,
        digest=joint_digest([located.weights]),
        demonstration=False,
        encode_image=image_encoder(Tower(), depth=1, patch_size=1),
    )


@pytest.fixture
def backbone(monkeypatch, tmp_path):
    module = types.ModuleType("toy_family")
    module.FAMILY = Family("toy", load, "weights=PATH")
    monkeypatch.setitem(sys.modules, "toy_family", module)
    monkeypatch.setitem(FAMILIES, "toy", "toy_family")
    kernel = np.random.default_rng(0).normal(size=(PATCH * PATCH * 3, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "toy.npz", kernel=kernel)
    return load_backbone("toy", weights=tmp_path / "toy.npz")


def test_encodes_images(backbone):
    assert backbone.text is None
    images = np.random.default_rng(1).random((2, 14, 21, 3), np.float32)
    features = backbone.encode_image(backbone.params, images)
    assert features.patches.shape == (2, 1, 2, 3, WIDTH)
    np.testing.assert_allclose(
        features.global_tokens[:, 0], features.patches[:, 0].mean((1, 2)), rtol=1e-6
    )
    assert "no text side" in repr(backbone)


@pytest.mark.parametrize(
    "name", ["tokenize", "embed_tokens", "encode_text", "encode_prompts", "text_width"]
)
def test_text_functions_raise_error(backbone, name):
    with pytest.raises(UserError, match="toy has no text side"):
        getattr(backbone, name)


def test_requires_its_files(backbone):
    with pytest.raises(UserError, match=r"The family 'toy' needs its files\. Pass weights=PATH"):
        load_backbone("toy")
