"""AnomalyCLIP (arXiv 2310.18961): object-agnostic learned prompts over value-value features.

One learned pair of prompts, "... object." and "... damaged object.", serves every class. The image score
compares a global token with the pair; the anomaly map compares patches of the value-value stream.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods import anomaly_map, losses
from zsad_jax.methods.base import Batch, Method, check_global_token
from zsad_jax.methods.blocks import (
    TEXT_DEPTH,
    VISION_DEPTH,
    check_blocks,
    scale_block,
    scale_blocks,
)
from zsad_jax.methods.config import check_fields, config_from, within
from zsad_jax.methods.learner import (
    count_deep_blocks,
    encode_learners,
    init_learner,
    learner_from_torch,
    without_prefix,
)
from zsad_jax.methods.pair_score import IMAGE_SCORES, pair_scorer, texts_of_category
from zsad_jax.methods.prompts import check_deep_prompts, count_unused_projections, tokenize
from zsad_jax.methods.similarity import cosine_softmax, cosines, normalize, temperature_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnomalyCLIPConfig:
    """The switches of AnomalyCLIP; the defaults made the published numbers.

    Block numbers count from 1 in a vision tower of 24 blocks and a text tower of 12, and are scaled to the
    depth of the backbone's.

    Attributes:
      num_prompts: learned tokens of each of the two prompts.
      normal_text, abnormal_text: the words behind the learned tokens.
      deep_prompt_depth: text blocks with learned tokens of their own, the first one's being the prompts
        themselves; 1: no deep prompts.
      num_deep_prompts: deep prompts of each such block, shared by both states; 0: none.
      deep_prompts_float16: the deep prompts are rounded to float16 on their way into the tower, as in
        the published code; their gradient is not.
      feature_layers: vision blocks whose patches are compared; their maps are added up. The published
        numbers come from the last one alone, the paper speaks of (6, 12, 18, 24).
      vv_from: the block from which patches are those of the value-value stream; None: ordinary ones.
      cls_norm: whether the global token passes the vision tower's last norm.
      global_token: which of the backbone's global tokens gives the image score, counted from 0.
      lam: weight of the segmentation losses beside the images' cross-entropy.
      sigma: of the map's Gaussian, in pixels of the map; 0 does not smooth.
      temperature: divides the cosine; None is the backbone's own.
      init_std: of the learned tokens' initial normal distribution.
    """

    num_prompts: int = within(12, 1)
    normal_text: str = "object."
    abnormal_text: str = "damaged object."
    deep_prompt_depth: int = within(9, 1, TEXT_DEPTH)
    num_deep_prompts: int = within(4, 0)
    deep_prompts_float16: bool = False
    feature_layers: tuple[int, ...] = (24,)
    vv_from: int | None = within(6, 1, VISION_DEPTH)
    cls_norm: bool = False
    global_token: int = within(0, 0)
    lam: float = within(4.0, 0)
    sigma: float = within(4.0, 0)
    temperature: float | None = within(0.07, 1e-6)
    init_std: float = within(0.02, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_blocks("feature_layers", self.feature_layers)


def anomalyclip(
    backbone: Backbone, config: AnomalyCLIPConfig | Mapping[str, Any] | None = None
) -> Method:
    """AnomalyCLIP over a backbone.

    Args:
      backbone: any with patch tokens in the joint space.
      config: the switches, or a mapping of them; None: the published setting.

    Returns:
      A method whose params are {"normal", "abnormal": [P, e], "deep": [depth - 1, p, e]}, all of group
      "prompts". `patches` of its scores has a channel per layer; `score` takes `extras`, names out of
      `pair_score.EXTRAS`.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(AnomalyCLIPConfig, config)
    check_global_token(backbone, config.global_token)
    deep = count_deep_blocks(backbone, config.deep_prompt_depth, config.num_deep_prompts)
    if deep:
        check_deep_prompts(backbone, config.num_deep_prompts, config.num_prompts)
    temperature = temperature_of(backbone, config.temperature)
    layers = scale_blocks(config.feature_layers, backbone.vision_depth)
    vv_from = config.vv_from and scale_block(config.vv_from, backbone.vision_depth)
    encode_pair = _pair_encoder(backbone, config)
    return Method(
        name="anomalyclip",
        config=config,
        init=lambda key, frozen: init_learner(
            key,
            backbone.text_width,
            num_prompts=config.num_prompts,
            deep=(deep, config.num_deep_prompts),
            std=config.init_std,
        ),
        features=lambda frozen, params, images: backbone.encode_image(
            frozen, images, layers=layers, vv_from=vv_from, cls_norm=config.cls_norm
        ),
        prototypes=functools.partial(_prototypes, encode_pair),
        score=pair_scorer(
            "anomalyclip", texts_of_category, token=config.global_token, temperature=temperature
        ),
        anomaly_map=functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        loss=functools.partial(_loss, config, temperature, encode_pair),
        groups=lambda params: jax.tree.map(lambda _: "prompts", params),
        image_scores=IMAGE_SCORES,
        map_range=(0.0, float(len(layers))),
        features_key=(layers, vv_from, config.cls_norm),
        import_params=import_params,
        aupro_thresholds="numpy",
        unused_parameters=count_unused_projections(backbone.text_width, deep),
    )


def import_params(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The prompts in the authors' checkpoint; what can be computed again or has no effect is left out.

    Raises:
      KeyError: when one is missing.
    """
    return learner_from_torch(without_prefix(state), "")


def _pair_encoder(
    backbone: Backbone, config: AnomalyCLIPConfig
) -> Callable[[Params, Params], Float[Array, "2 d"]]:
    """The function (frozen, params) -> the (normal, abnormal) text features, unit norm."""

    @functools.lru_cache(maxsize=1)
    def words() -> tuple[np.ndarray, np.ndarray]:
        """Ids and paddings of the fixed words; tokenised once, when needed."""
        return tokenize(backbone, [config.normal_text, config.abnormal_text])

    def encode(frozen: Params, params: Params) -> Float[Array, "2 d"]:
        float16 = config.deep_prompts_float16
        return normalize(encode_learners(backbone, frozen, words(), [params], float16=float16))

    return encode


def _prototypes(
    encode_pair: Callable[[Params, Params], Float[Array, "2 d"]],
    frozen: Params,
    params: Params,
    class_names: Sequence[str],
) -> Float[Array, "c 2 d"]:
    """The learned pair, the same for every class."""
    pair = encode_pair(frozen, params)
    return jnp.broadcast_to(pair, (len(class_names), *pair.shape))


def _loss(
    config: AnomalyCLIPConfig,
    temperature: float,
    encode_pair: Callable[[Params, Params], Float[Array, "2 d"]],
    frozen: Params,
    params: Params,
    features: VisionFeatures,
    batch: Batch,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """lam times focal and dice losses of each layer's unsmoothed map, plus the images' cross-entropy.

    The terms are sums over the layers.
    """
    features = losses.zero_invalid(features, batch.valid)
    pair = encode_pair(frozen, params)
    text = jnp.broadcast_to(pair, (batch.labels.shape[0], *pair.shape))

    local = losses.layer_terms(cosine_softmax(features.patches, text, temperature), batch)
    logits = cosines(features.global_tokens[:, config.global_token], text) / temperature
    image = losses.cross_entropy(logits, batch.labels, batch.valid.astype(jnp.float32))
    return config.lam * sum(local.values()) + image, {**local, "cross_entropy": image}
