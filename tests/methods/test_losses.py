"""Tests of the losses by hand."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.methods.base import Batch
from zsad_jax.methods.shared import losses
from zsad_jax.methods.shared.anomaly_map import upsample

ONES = jnp.ones(1)


def both(anomalous):
    return 1 - anomalous, anomalous


def labeled(labels, valid, has_mask=None):
    """Returns a batch of these labels with empty masks."""
    count = len(labels)
    return Batch(
        category=jnp.zeros(count, int),
        labels=jnp.array(labels),
        masks=jnp.zeros((count, 2, 2)),
        has_mask=jnp.array(has_mask or [True] * count),
        valid=jnp.array(valid),
        class_names=("object",),
    )


def test_focal_of_one_pixel():
    for p, mask in [(0.8, 1.0), (0.8, 0.0), (0.5, 1.0)]:
        right = p if mask else 1 - p
        pt = (1 - 1e-5) * right + 1e-5 * (1 - right) + 1e-5
        value = losses.focal_loss(*both(jnp.full((1, 1, 1), p)), jnp.full((1, 1, 1), mask), ONES)
        np.testing.assert_allclose(value, -((1 - pt) ** 2) * np.log(pt), rtol=1e-5)


def test_focal_is_finite_at_extreme_probabilities():
    masks = jnp.array([[[0.0, 1.0, 0.0, 1.0]]])
    anomalous = jnp.array([[[0.0, 1.0, 1.0, 0.0]]])
    loss = lambda x: losses.focal_loss(*both(x), masks, ONES)  # noqa: E731
    assert jnp.isfinite(loss(anomalous))
    assert jnp.isfinite(jax.grad(loss)(anomalous)).all()


def test_dice_by_hand():
    probabilities, masks = jnp.array([[[0.5, 0.25]]]), jnp.array([[[1.0, 0.0]]])
    value = losses.dice_loss(probabilities, masks, ONES)
    np.testing.assert_allclose(value, 1 - (2 * 0.5 + 1) / (0.75 + 1 + 1), rtol=1e-6)
    assert losses.dice_loss(masks, masks, ONES) == 0


def test_cross_entropy_by_hand():
    logits = jnp.array([[0.0, np.log(3.0)], [5.0, 5.0], [9.0, 0.0]])
    batch = labeled([1, 0, 1], valid=[True, True, False])
    value = losses.image_cross_entropy(logits[:, None], batch)
    np.testing.assert_allclose(value, (-np.log(0.75) - np.log(0.5)) / 2, rtol=1e-6)
    twice = losses.image_cross_entropy(jnp.stack([logits, logits], axis=1), batch)
    np.testing.assert_allclose(twice, 2 * value, rtol=1e-6)


@pytest.mark.parametrize("name", ["focal_loss", "dice_loss"])
def test_weights_select_rows(name):
    generator = np.random.default_rng(0)
    anomalous = jnp.asarray(generator.random((3, 4, 4)), jnp.float32)
    masks = jnp.asarray(generator.random((3, 4, 4)) > 0.5, jnp.float32)
    arguments = {
        "focal_loss": (*both(anomalous), masks),
        "dice_loss": (anomalous, masks),
    }[name]
    loss = getattr(losses, name)
    some = loss(*arguments, jnp.array([1.0, 0.0, 1.0]))
    kept = loss(*(x[np.array([0, 2])] for x in arguments), jnp.ones(2))
    np.testing.assert_allclose(some, kept, rtol=1e-6)
    assert abs(some - loss(*arguments, jnp.ones(3))) > 1e-4
    assert loss(*arguments, jnp.zeros(3)) == 0


def test_segmentation_losses_select_rows():
    batch = labeled(
        [0, 0, 1, 1, 1],
        valid=[True, True, True, True, False],
        has_mask=[True, False, True, False, True],
    )
    # Normal images need no mask; anomalous images without ground truth are excluded.
    assert losses.segmentation_rows(batch).tolist() == [True, True, True, False, False]


def test_margin_terms_are_those_of_the_softmax_of_each_layer():
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 3, (3, 2, 2, 2, 2)).astype(np.float32)
    masks = generator.random((3, 5, 5)) > 0.5
    batch = dataclasses.replace(labeled([1, 0, 1], [True, True, False]), masks=masks.astype(float))
    found = losses.margin_terms(logits[..., 1] - logits[..., 0], batch)
    softmax = lambda x: jax.nn.softmax(upsample(x, 5, align_corners=True))  # noqa: E731
    pixels = [softmax(logits[..., layer, :]) for layer in (0, 1)]
    of_layers = [losses.pixel_terms(one[..., 0], one[..., 1], batch) for one in pixels]
    for name, value in found.items():
        np.testing.assert_allclose(value, sum(one[name] for one in of_layers), rtol=1e-5)


def test_losses_and_gradients_match_published_code():
    """Includes probabilities of exactly 0 and 1."""
    path = pathlib.Path(__file__).parents[1] / "goldens" / "anomalyclip" / "losses.npz"
    with np.load(path) as arrays:
        golden = {name: arrays[name] for name in arrays.files}
    maps, masks = np.moveaxis(golden["prob_maps"], 1, -1), golden["gt"]
    assert (maps == 0).any()
    assert (maps == 1).any()

    def dice(x):
        anomalous = losses.dice_loss(x[..., 1], masks, jnp.ones(3))
        normal = losses.dice_loss(x[..., 0], 1 - masks, jnp.ones(3))
        return anomalous + normal, (anomalous, normal)

    def focal_loss(x):
        return losses.focal_loss(x[..., 0], x[..., 1], masks, jnp.ones(3))

    focal, of_focal = jax.value_and_grad(focal_loss)(maps)
    (_, (anomalous, normal)), of_dice = jax.value_and_grad(dice, has_aux=True)(maps)
    np.testing.assert_allclose(focal, golden["focal"], rtol=1e-5)
    np.testing.assert_allclose(anomalous, golden["dice_abnormal"], rtol=1e-5)
    np.testing.assert_allclose(normal, golden["dice_normal"], rtol=1e-5)
    for found, name in ((of_focal, "focal_grad"), (of_dice, "dice_sum_grad")):
        expected = np.moveaxis(golden[name], 1, -1)
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest)
