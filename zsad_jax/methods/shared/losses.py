"""Losses on anomaly maps and scores, with `weights` of images: 0 ignores padded or unlabeled ones.

The segmentation losses are those of AnomalyCLIP and its successors: they take probabilities, not logits.
Masks are 1 where a pixel is anomalous.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zsad_jax.backbones.base import AnyArray
from zsad_jax.methods.base import Batch, Loss, Terms
from zsad_jax.methods.shared.anomaly_map import upsample
from zsad_jax.methods.shared.similarity import Comparison

Pixels = Float[AnyArray, "b H W"]
FOCAL_SMOOTHING = 1e-5


def total(terms: Terms) -> Loss:
    """Returns the sum of the terms of a loss, and the terms."""
    return sum(terms.values(), start=jnp.zeros(())), terms


def weighted_mean(values: Float[Array, " b"], weights: Float[AnyArray, " b"]) -> Float[Array, ""]:
    """Returns sum(w v) / sum(w) for values v and weights w; 0 if all weights are 0."""
    # The floor only matters where all weights are 0: otherwise their sum is at least 1.
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1e-12)


def segmentation_rows(batch: Batch) -> Bool[AnyArray, " b"]:
    """Returns which rows a segmentation loss learns from.

    Normal images have an all-zero mask. Anomalous images without ground truth are ignored (the published
    codes learn from them as if they had no defect).
    """
    return batch.valid & (batch.has_mask | (batch.labels == 0))


def focal_loss(
    normal: Pixels, anomalous: Pixels, masks: Pixels, weights: Float[AnyArray, " b"]
) -> Float[Array, ""]:
    """Returns the mean of -(1 - pt)² ln(pt) over all pixels.

    pt = sum_c t_c P_c + 1e-5 with the one-hot ground truth t clipped to [1e-5, 1 - 1e-5], and P the
    probabilities of both states, which sum to 1. They are separate arguments because the gradient of one
    stacked array takes twice as long on a CPU.
    """
    masks = masks.astype(jnp.float32)
    # Both states are clipped, since 1 - (1 - 1e-5) is off by 0.1 % in float32, as would be the gradient of
    # the most wrong pixels.
    is_normal, is_anomalous = (
        jnp.clip(state, FOCAL_SMOOTHING, 1 - FOCAL_SMOOTHING) for state in (1 - masks, masks)
    )
    pt = is_normal * normal + is_anomalous * anomalous + FOCAL_SMOOTHING
    # pt may exceed 1 by 1e-5. It is not clipped, as in the published code: the square is then 1e-10.
    values = -((1 - pt) ** 2) * jnp.log(pt)
    return weighted_mean(values.mean(axis=(1, 2)), weights)


def dice_loss(
    probabilities: Pixels, masks: Pixels, weights: Float[AnyArray, " b"], *, by_rows: bool = False
) -> Float[Array, ""]:
    """Returns the mean over images of 1 - (2 sum(P m) + 1) / (sum(P) + sum(m) + 1).

    P are the probabilities that a pixel belongs to the region whose mask m is. With `by_rows`, sums are those
    of each row of pixels, and the mean is over rows as well.
    """
    axes = (2,) if by_rows else (1, 2)
    # With the ones, an empty region and an all-zero map have the loss 0, where the ratio would be 0 / 0.
    overlap = (probabilities * masks).sum(axes)
    both = probabilities.sum(axes) + masks.sum(axes)
    values = 1 - (2 * overlap + 1) / (both + 1)
    return weighted_mean(values.reshape(len(values), -1).mean(axis=1), weights)


def segmentation_terms(probabilities: Float[Array, "b h w 2"], batch: Batch) -> Terms:
    """Returns {"focal", "dice_abnormal", "dice_normal"} of one unsmoothed map at the size of the masks."""
    # Probabilities are up-sampled, not cosines, and not smoothed, as in the published training.
    pixels = upsample(probabilities, _size(batch))
    return pixel_terms(pixels[..., 0], pixels[..., 1], batch)


def margin_terms(
    margins: Float[Array, "b h w l"], batch: Batch, *, dice_rows: bool = False
) -> Terms:
    """Returns the terms of `pixel_terms`, summed over l maps as in `margin_map`.

    This is the segmentation loss of APRIL-GAN and its successors, of which some use no "dice_normal".
    """
    logits = jnp.moveaxis(upsample(margins, _size(batch), align_corners=True), -1, 0)
    # A loop: `jax.vmap` takes twice the time on a CPU.
    of_maps = [pixel_terms(*_both_states(one), batch, dice_rows=dice_rows) for one in logits]
    summed: Terms = jax.tree.map(lambda *values: sum(values), *of_maps)
    return summed


def _both_states(margins: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns the probabilities of (normal, anomalous) from margins, see `margin_probabilities`."""
    # Of both signs: 1 - p would round small probabilities to 0.
    return jax.nn.sigmoid(-margins), jax.nn.sigmoid(margins)


def _size(batch: Batch) -> tuple[int, int]:
    return batch.masks.shape[1], batch.masks.shape[2]


def pixel_terms(
    normal: Pixels, anomalous: Pixels, batch: Batch, *, dice_rows: bool = False
) -> Terms:
    """Returns {"focal", "dice_abnormal", "dice_normal"} of probabilities at each pixel of the masks.

    With `dice_rows`, the Dice losses are means over rows of pixels in place of images.
    """
    rows = segmentation_rows(batch).astype(jnp.float32)
    dice = functools.partial(dice_loss, weights=rows, by_rows=dice_rows)
    return {
        "focal": focal_loss(normal, anomalous, batch.masks, rows),
        "dice_abnormal": dice(anomalous, batch.masks),
        "dice_normal": dice(normal, 1 - batch.masks),
    }


def image_focal(margins: Float[Array, " b"], batch: Batch) -> Float[Array, ""]:
    """Returns the focal loss of image labels; a margin is the logit of anomalous less that of normal."""
    both = _both_states(margins[:, None, None])
    return focal_loss(*both, batch.labels[:, None, None], batch.valid.astype(jnp.float32))


def image_cross_entropy(logits: Float[Array, "b m k"], batch: Batch) -> Float[Array, ""]:
    """Returns the mean over images of -log_softmax(logits)[label], summed over m predictions."""
    labels = batch.labels[:, None, None]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1)
    return weighted_mean(-chosen.sum(axis=(1, 2)), batch.valid.astype(jnp.float32))


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
      lam: weight of the segmentation losses; 0: they are not computed.
    """
    image = image_cross_entropy(logits, batch)
    if not lam:
        return image, {"cross_entropy": image}
    of_layers = jax.vmap(segmentation_terms, in_axes=(1, None))(probabilities, batch)
    local = {name: values.sum() for name, values in of_layers.items()}
    return lam * sum(local.values()) + image, {**local, "cross_entropy": image}


def pair_loss(found: Comparison, batch: Batch, *, lam: float = 1.0) -> Loss:
    """Returns the joint loss of what `similarity.compare` returns for one global token of each image.

    L = lam sum_l (focal + dice_abnormal + dice_normal) of the patches of layer l + cross-entropy of the token.
    """
    logits = found.global_logits[:, None]
    return joint_loss(found.patch_probabilities, logits, batch, lam=lam)
