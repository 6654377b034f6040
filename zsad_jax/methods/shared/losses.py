"""Losses on anomaly maps and scores, each with weights that leave padded or unlabelled rows out.

The segmentation losses are those of AnomalyCLIP and its successors: they take probabilities, not
logits.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zsad_jax.methods.base import AnyArray, Batch, PyTree
from zsad_jax.methods.shared.anomaly_map import upsample

FOCAL_SMOOTHING = 1e-5
Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]  # the loss and its terms by name


def weighted_mean(values: Float[Array, " b"], weights: Float[AnyArray, " b"]) -> Float[Array, ""]:
    """Mean over the rows of positive weight; 0 where there is none."""
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1e-12)


def zero_invalid(features: PyTree, valid: Bool[AnyArray, " b"]) -> PyTree:
    """Features with the rows zeroed that count nowhere, so that not even a NaN in them is felt."""

    def zero(x: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
        return jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    return jax.tree.map(zero, features)


def segmentation_rows(batch: Batch) -> Bool[AnyArray, " b"]:
    """The rows that a segmentation loss may learn from.

    Normal images count with their all-zero mask. Anomalous images without ground truth are left
    out (the published codes learn from them as if they had no defect).
    """
    return batch.valid & (batch.has_mask | (batch.labels == 0))


def focal_loss(
    probabilities: Float[Array, "b H W 2"],
    masks: Float[AnyArray, "b H W"],
    weights: Float[AnyArray, " b"],
    *,
    gamma: int = 2,
) -> Float[Array, ""]:
    """Mean of -(1 - pt)^gamma ln(pt) over all pixels of the counted images.

    pt = sum_c t_c P_c + 1e-5 with the one-hot ground truth t clipped to [1e-5, 1 - 1e-5].

    Args:
      probabilities: of (normal, anomalous), summing to 1.
      masks: ground truth, 1 anomalous.
      weights: of each image; 0 leaves it out.
      gamma: how much easy pixels are discounted.
    """
    masks = masks.astype(jnp.float32)
    # Each state is clipped by itself: 1 - (1 - 1e-5) is 0.1 % off in float32, and so would be the gradient
    # of the most wrong pixels.
    normal, abnormal = (
        jnp.clip(state, FOCAL_SMOOTHING, 1 - FOCAL_SMOOTHING) for state in (1 - masks, masks)
    )
    pt = normal * probabilities[..., 0] + abnormal * probabilities[..., 1] + FOCAL_SMOOTHING
    values = -((1 - pt) ** gamma) * jnp.log(pt)
    return weighted_mean(values.mean(axis=(1, 2)), weights)


def dice_loss(
    probabilities: Float[Array, "b H W"],
    masks: Float[AnyArray, "b H W"],
    weights: Float[AnyArray, " b"],
    *,
    smoothing: float = 1.0,
) -> Float[Array, ""]:
    """One minus the soft Dice overlap of each image, meaned over the counted images.

    Args:
      probabilities: that a pixel belongs to the region.
      masks: the region, 1 inside.
      weights: of each image; 0 leaves it out.
      smoothing: added to numerator and denominator.
    """
    overlap = (probabilities * masks).sum(axis=(1, 2))
    total = probabilities.sum(axis=(1, 2)) + masks.sum(axis=(1, 2))
    return weighted_mean(1 - (2 * overlap + smoothing) / (total + smoothing), weights)


def cross_entropy(
    logits: Float[Array, "b k"], labels: Int[AnyArray, " b"], weights: Float[AnyArray, " b"]
) -> Float[Array, ""]:
    """Softmax cross-entropy, meaned over the counted rows."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
    return weighted_mean(-chosen, weights)


def segmentation_terms(
    probabilities: Float[Array, "b h w 2"], batch: Batch
) -> dict[str, Float[Array, ""]]:
    """Returns the segmentation losses of AnomalyCLIP and its successors for one unsmoothed map.

    Args:
      probabilities: of (normal, anomalous) on the patch grid, which are up-sampled to the masks' size.
      batch: the ground truth; rows without it are ignored.

    Returns:
      {"focal", "dice_abnormal", "dice_normal"}.
    """
    rows = segmentation_rows(batch).astype(jnp.float32)
    pixels = upsample(probabilities, (batch.masks.shape[1], batch.masks.shape[2]))
    return {
        "focal": focal_loss(pixels, batch.masks, rows),
        "dice_abnormal": dice_loss(pixels[..., 1], batch.masks, rows),
        "dice_normal": dice_loss(pixels[..., 0], 1 - batch.masks, rows),
    }


def layer_terms(
    probabilities: Float[Array, "b l h w 2"], batch: Batch
) -> dict[str, Float[Array, ""]]:
    """Returns the same three terms, summed over the maps of several layers."""
    terms = jax.vmap(segmentation_terms, in_axes=(1, None))(probabilities, batch)
    return jax.tree.map(jnp.sum, terms)


def image_cross_entropy(logits: Float[Array, "b m k"], batch: Batch) -> Float[Array, ""]:
    """Returns the sum of the cross-entropies of m predictions of the image labels."""
    each = jax.vmap(cross_entropy, in_axes=(1, None, None))
    return each(logits, batch.labels, batch.valid.astype(jnp.float32)).sum()


def joint_loss(
    probabilities: Float[Array, "b l h w 2"],
    logits: Float[Array, "b m 2"],
    batch: Batch,
    *,
    lam: float = 1.0,
) -> Loss:
    """Returns lam (focal + dice_abnormal + dice_normal) + cross-entropy, and its terms.

    Args:
      probabilities: of (normal, anomalous) for the patches of each layer; the terms are summed over layers.
      logits: m predictions of the image label, whose cross-entropies are summed.
      batch: the ground truth.
      lam: weight of the segmentation losses.
    """
    local = layer_terms(probabilities, batch)
    image = image_cross_entropy(logits, batch)
    return lam * sum(local.values()) + image, {**local, "cross_entropy": image}
