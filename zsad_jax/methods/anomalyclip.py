"""AnomalyCLIP (arXiv 2310.18961): object-agnostic learned prompts over value-value features.

One learned pair of prompts, "... object." and "... damaged object.", serves every class. The image score
compares a global token with the pair; the anomaly map compares patches of the value-value stream.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.methods.base import Batch, Loss, Method, Scores, score_fn, vision_side
from zsad_jax.methods.shared import learner, losses, prompts, similarity
from zsad_jax.methods.shared.config import VISION_DEPTH, Fields
from zsad_jax.methods.shared.similarity import normalize, same_for_each
from zsad_jax.utils.config import config_from, within


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnomalyCLIPConfig(learner.LearnerConfig):
    """Options of AnomalyCLIP; the defaults are those of the published numbers.

    Attributes:
      normal_text, abnormal_text: the words after the learned tokens.
      feature_layers: the published numbers use the last block alone; the paper says (6, 12, 18, 24).
      lam: weight of the segmentation losses.
    """

    name: ClassVar[str] = "anomalyclip"
    title: ClassVar[str] = "AnomalyCLIP"
    scoring_only: ClassVar[tuple[str, ...]] = ("sigma",)

    normal_text: str = "object."
    abnormal_text: str = "damaged object."
    vv_from: int | None = within(6, 1, VISION_DEPTH)
    cls_norm: bool = False
    lam: float = within(4.0, 0)


def anomalyclip(backbone: Backbone, config: AnomalyCLIPConfig | Fields | None = None) -> Method:
    """Returns AnomalyCLIP over a backbone with patch tokens in the joint space.

    Its prompts are [v_1] ... [v_P] "object." and [w_1] ... [w_P] "damaged object.", v and w learned. Scores are
    those of `similarity.pair_scores`, the loss that of `losses.pair_loss`.

    Its params are {"normal", "abnormal": [P, e], "deep": [depth - 1, p, e]}; its maps have one channel per
    layer; its extras are the fields of `similarity.Comparison` and "text_features".

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(AnomalyCLIPConfig, config)
    learner.check_deep_prompts(backbone, config)
    compare = similarity.pair_comparer(backbone, config)
    texts = (config.normal_text, config.abnormal_text)
    words = functools.cache(lambda: prompts.tokenize(backbone, texts))  # only when text is needed

    def init(key: Array, frozen: Params) -> Params:
        return learner.init_learner(key, backbone, config)

    def encode(frozen: Params, params: Params) -> Float[Array, "2 d"]:
        """Returns the unit-norm features of the learned pair."""
        pair = learner.encode_learners(backbone, config, frozen, words(), [params])
        return normalize(pair)

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Float[Array, "c 2 d"]:
        """Returns the learned pair, the same for every class."""
        return same_for_each(encode(frozen, params), len(class_names))

    def compute(
        frozen: Params, params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> Scores:
        return similarity.pair_scores(compare(text, features), text_features=text)

    def loss(frozen: Params, params: Params, features: VisionFeatures, batch: Batch) -> Loss:
        text = same_for_each(encode(frozen, params), len(batch.labels))
        return losses.pair_loss(compare(text, features), batch, lam=config.lam)

    return Method(
        init=init,
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 1.0),
        loss=loss,
        import_params=import_params,
        aupro_thresholds="numpy",
        unused_parameters=learner.count_unused_projections(backbone, config),
        **vision_side(backbone, config),
    )


def import_params(state: Arrays) -> Params:
    """Reads the learned prompts of the authors' checkpoint; arrays without effect are dropped."""
    return learner.learner_from_torch(learner.without_prefix(state, "prompt_learner"))
