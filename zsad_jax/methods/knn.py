"""Patches compared with those of normal reference images; nothing is learned, and no text is read.

The variant "neighbors" measures distances to the nearest reference patches, after AnomalyDINO (WACV 2025, arXiv
2405.14529); "subspace" measures what the principal components of the reference patches do not explain, after
SubspaceAD (CVPR 2026, arXiv 2602.23013). Images are squares of the model's size throughout. The published code
rotates references at their original size, and AnomalyDINO's keeps the aspect and makes maps of that size.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt8

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.backbones.feature_cache import Images
from zsad_jax.methods import base
from zsad_jax.methods.shared import anomaly_map
from zsad_jax.methods.shared.config import VISION_DEPTH, Fields, MethodConfig, Recipe
from zsad_jax.methods.shared.nearest import Metric, distances, patch_rows
from zsad_jax.utils.config import config_from, within

MAX_ANGLE = 345.0  # degrees, of random rotations
# A foreground fills more than this share of the middle of the grid, which is between these shares of its sides.
FILLED, MIDDLE = 0.35, (0.2, 0.8)
# The threshold is that of DINOv2 S/14 after its final norm.
MASKS = {"mask_threshold": 10.0, "mask_backbones": ("dinov2-s14",)}
MASKED = ("capsule", "hazelnut", "pill", "screw", "toothbrush")  # of MVTec AD
HIGHEST = jax.lax.Precision.HIGHEST  # others would hide small residuals
Features = Float[Array, "b h w d"]
References = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnnConfig(MethodConfig):
    """Options of the comparison with reference images; the defaults are those of AnomalyDINO's numbers.

    The settings of SubspaceAD are in `configs/knn.py:subspace`.

    Attributes:
      variant: distances to the nearest reference patches, or from the subspace of all.
      feature_layers: vision blocks whose patch tokens are averaged, each once if scaled to the same block.
      tower_depth: number of blocks of the tower in which these are counted.
      patch_norm: whether patch tokens pass the final norm (and the projection) of the vision tower.
      views: rotations in which references are compared as well: by equal angles, interpolated and mirrored at
        the borders ("even"), or by random angles, with nearest pixels and black corners ("random").
      num_views: number of views of a reference, including itself; 1: no rotations.
      top_share: share of the patches ("subspace": pixels of the map) with the highest scores, whose mean is the
        image score; at least one.
      smoothing: by the whole Gaussian, or by its 3 x 3 pixels in the middle.
      mask_threshold: of the first principal component of an image; below it is the background, whose patches
        have the score 0; None: no masks.
      mask_backbones: names of the backbones that have masks; (): all.
      mask_only: categories that have masks; (): all.
      k: "neighbors": number of nearest patches whose distances are averaged.
      metric: "neighbors": 1 - cosine, or the Euclidean distance.
      mask_references: "neighbors": whether the background of references is ignored.
      tau: "subspace": share of the variance that the principal components explain.
    """

    name: ClassVar[str] = "knn"
    title: ClassVar[str] = "kNN"
    needs_text: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = Recipe(
        backbone={"name": "dinov2-s14", "image_size": 448},
        method_for={"mvtec_ad": {**MASKS, "mask_only": MASKED}, "visa": MASKS},
    )
    cls_norm: ClassVar[bool] = True  # type: ignore[misc]
    global_token: ClassVar[int] = 0  # type: ignore[misc]
    temperature: ClassVar[None] = None  # type: ignore[misc]
    init_std: ClassVar[float] = 0.0  # type: ignore[misc]

    variant: Literal["neighbors", "subspace"] = "neighbors"
    tower_depth: int = within(VISION_DEPTH, 1)  # type: ignore[misc]
    patch_norm: bool = True
    views: Literal["even", "random"] = "even"
    num_views: int = within(8, 1, 360)
    top_share: float = within(0.01, 0, 1)
    smoothing: Literal["gaussian", "3x3"] = "gaussian"
    mask_threshold: float | None = within(None, 0)
    mask_backbones: tuple[str, ...] = ()
    mask_only: tuple[str, ...] = ()
    k: int = within(1, 1, 1000)
    metric: Metric = "cosine"
    mask_references: bool = False
    tau: float = within(0.99, 0.01, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        others = ("tau",) if self.variant == "neighbors" else ("k", "metric", "mask_references")
        self.reject_unused(f"with variant={self.variant!r}", *others)
        if self.mask_threshold is None:
            of_masks = "mask_backbones", "mask_only", "mask_references"
            self.reject_unused("without mask_threshold", *of_masks)


def knn(backbone: Backbone, config: KnnConfig | Fields | None = None) -> base.Method:
    """Returns the comparison with normal reference images over any backbone.

    Its params are {}; its features are patch tokens [b, h, w, d], its maps have one channel.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(KnnConfig, config)
    side = base.vision_side(backbone, config, patch_norm=config.patch_norm, distinct=True)
    size, subspace = backbone.preprocess.image_size, config.variant == "subspace"
    threshold = config.mask_threshold
    if config.mask_backbones and backbone.name not in config.mask_backbones:
        threshold = None
    show = jax.vmap(functools.partial(foreground, threshold=threshold or 0.0))
    with_masks = {name.replace("_", " ") for name in config.mask_only}

    def features(frozen: Params, params: Params, images: Images) -> Features:
        encoded: VisionFeatures = side["features"](frozen, params, images)
        return encoded.patches.mean(axis=1)

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> References:
        names = (name.replace("_", " ") for name in class_names)
        masked = np.array([not with_masks or name in with_masks for name in names])
        found: References = prepare(references, masked)
        return found

    @jax.jit  # once for all categories, whatever their names
    def prepare(references: Features, masked: Bool[Array, " c"]) -> References:
        if subspace:
            fit = functools.partial(fit_subspace, tau=config.tau)
            return {"masked": masked, **jax.lax.map(fit, references)}
        bank = patch_rows(references, config.metric)
        valid = jnp.ones(bank.shape[:3], bool)
        if config.mask_references and threshold is not None:
            shown = jax.lax.map(show, references).reshape(valid.shape)
            shown |= ~masked[:, None, None]
            # References without any foreground are compared as a whole.
            valid = shown | ~shown.any(axis=(1, 2), keepdims=True)
        return {"masked": masked, "bank": bank, "valid": valid}

    def smooth(patches: base.Patches, size: anomaly_map.Size) -> Float[Array, "b H W"]:
        if config.smoothing == "gaussian":
            return anomaly_map.anomaly_map(patches, size, sigma=config.sigma)
        return blur_3x3(anomaly_map.anomaly_map(patches, size, sigma=0.0), config.sigma)

    def compute(
        frozen: Params, params: Params, compared: tuple[References, base.Category], patches: Array
    ) -> base.Scores:
        references, category = compared
        if subspace:
            found = residuals(references, category, patches)
        else:
            options: Any = {"k": config.k, "metric": config.metric, "valid": references["valid"]}
            found = distances(references["bank"], category, patches, **options)
        if threshold is not None:
            unmasked = ~references["masked"][category][:, None, None]
            found = jnp.where(show(patches) | unmasked, found, 0)
        found = found[..., None]
        values = (smooth(found, size) if subspace else found).reshape(len(found), -1)
        count = max(int(config.top_share * values.shape[1]), 1)
        return base.Scores({"top_mean": jax.lax.top_k(values, count)[0].mean(axis=1)}, found)

    rotate = functools.partial(rotate_views, num_views=config.num_views, views=config.views)
    method = base.Method(
        prototypes=prototypes,
        score=base.score_fn(compute, whole=True),
        image_scores=("top_mean",),
        references="required",
        reference_views=rotate if config.num_views > 1 else None,
        **base.NOTHING_LEARNED,
        **side,
    )
    key = (*side["features_key"], "mean of patches")
    return method._replace(features=features, features_key=key, anomaly_map=smooth, map_range=None)


def rotate_views(
    images: UInt8[np.ndarray, "k S S 3"], key: Array, *, num_views: int, views: str
) -> UInt8[np.ndarray, "v*k S S 3"]:
    """Returns the images, then rotated copies of all; see `KnnConfig`."""
    import cv2

    shape, side = (num_views, len(images)), images.shape[1]
    if views == "even":
        angles = np.broadcast_to(np.arange(num_views)[:, None] * 360 / num_views, shape)
        center, flags, border = side / 2, cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101
    else:
        angles = np.array(jax.random.uniform(key, shape, maxval=MAX_ANGLE))
        angles[0] = 0
        center, flags, border = (side - 1) / 2, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT

    def rotate(image: UInt8[np.ndarray, "S S 3"], angle: float) -> np.ndarray:
        turn = cv2.getRotationMatrix2D((center, center), float(angle), 1.0)
        return np.asarray(cv2.warpAffine(image, turn, (side, side), flags=flags, borderMode=border))

    return np.stack([rotate(*pair) for row in angles for pair in zip(images, row, strict=True)])


def fit_subspace(references: Float[Array, "r h w d"], *, tau: float) -> References:
    """Returns the mean of patches, and the directions "outside" of the subspace that explains their variance.

    It has as many principal components as explain the share `tau`, for which columns are zeros.
    """
    mean, _, variances, directions = principal_components(references)
    variances *= variances > 1e-6 * variances[-1]  # the others may be due to rounding
    # Summed from the smallest, which would be lost in a sum from the largest.
    outside = jnp.cumsum(variances) <= (1 - tau) * variances.sum()
    return {"mean": mean, "outside": directions * outside}


def residuals(
    subspace: References, category: base.Category, patches: Features
) -> Float[Array, "b h w"]:
    """Returns the squared distance of patches from the subspace of their category, see `fit_subspace`."""
    centered = patches.astype(jnp.float32) - subspace["mean"][category][:, None, None]
    directions = subspace["outside"][category]  # rather than |x|² - |Pᵀ x|², which cancels
    parts = jnp.einsum("bhwd,bde->bhwe", centered, directions, precision=HIGHEST)
    return jnp.square(parts).sum(axis=-1)


def foreground(patches: Float[Array, "h w d"], *, threshold: float) -> Bool[Array, "h w"]:
    """Returns the patches of the object in an image.

    There the first principal component of the patches exceeds the threshold, or its negative does if the former
    hardly fills the middle of the image. Small gaps are closed.
    """
    _, rows, _, directions = principal_components(patches)
    first = directions[:, -1]
    # The sign is arbitrary: the entry with the largest magnitude is positive.
    first *= jnp.sign(first[jnp.argmax(jnp.abs(first))])
    component = jnp.matmul(rows, first, precision=HIGHEST).reshape(patches.shape[:2])
    middle = tuple(slice(*(int(share * n) for share in MIDDLE)) for n in component.shape)
    fills = (component > threshold)[middle].mean() > FILLED
    mask = jnp.where(fills, component, -component) > threshold
    dilate, erode = (False, jax.lax.bitwise_or), (True, jax.lax.bitwise_and)
    for step in (dilate, dilate, erode):
        mask = jax.lax.reduce_window(mask, *step, (3, 3), (1, 1), "SAME")
    return mask


def blur_3x3(maps: Float[Array, "b H W"], sigma: float) -> Float[Array, "b H W"]:
    """Returns maps smoothed by the middle 3 x 3 pixels of a Gaussian, as OpenCV's GaussianBlur does it."""
    weights = np.exp(-0.5 * np.array([1, 0, 1]) / max(sigma, 1e-3) ** 2)
    weights /= weights.sum()
    _, height, width = maps.shape
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="reflect")  # at the outermost pixels
    rows = sum(weights[i] * padded[:, i : i + height] for i in range(3))
    blurred: Array = sum(weights[i] * rows[:, :, i : i + width] for i in range(3))
    return blurred


def principal_components(patches: Float[Array, "*n d"]) -> tuple[Array, Array, Array, Array]:
    """Returns mean and centered rows of patches, variances (of sums, ascending) and components as columns."""
    rows = patches.astype(jnp.float32).reshape(-1, patches.shape[-1])
    mean = rows.mean(axis=0)
    rows -= mean
    products = jnp.einsum("nd,ne->de", rows, rows, precision=HIGHEST)
    return mean, rows, *jnp.linalg.eigh(products)
