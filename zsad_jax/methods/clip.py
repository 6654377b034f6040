"""CLIP and CLIP-AC as zero-shot detectors: hand-written sentences, nothing is learned.

Defined as baselines in the AnomalyCLIP paper (arXiv 2310.18961): one sentence per state, or the mean over
CLIP's 80 templates for ImageNet. The maps of raw CLIP are often inverted on objects: a pixel AUROC below
one half is what the papers print.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from jaxtyping import Array, Float, PyTree

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods.base import NOTHING_LEARNED, Method, Scores, score_fn, vision_side
from zsad_jax.methods.shared import prompts, similarity
from zsad_jax.methods.shared.config import Fields, MethodConfig, check_texts
from zsad_jax.utils.config import config_from

# CLIP's 80 templates for ImageNet (Radford et al. 2021), which come in kinds.
_KINDS = "photo,painting,drawing,doodle,sketch,rendering,rendition,sculpture,tattoo"
_PHOTOS = (
    "bad,black and white,blurry,bright,close-up,cropped,dark,good,jpeg corrupted,low resolution,"
    "pixelated"
)
_OTHERS = "art,graffiti,itap"
_SEEN = "clean,cool,dirty,hard to see,large,nice,small,weird"
_MADE = "cartoon,embroidered,origami,plastic,plushie,toy"
_ARTICLES = ("a", "the")
IMAGENET_TEMPLATES = (
    *(f"a {kind} of {article} {{}}." for kind in _KINDS.split(",") for article in _ARTICLES),
    *(f"a {how} photo of {article} {{}}." for how in _PHOTOS.split(",") for article in _ARTICLES),
    *(f"{kind} of {article} {{}}." for kind in _OTHERS.split(",") for article in _ARTICLES),
    *(f"{article} {{}} in a video game." for article in _ARTICLES),
    *(f"a photo of {article} {seen} {{}}." for seen in _SEEN.split(",") for article in _ARTICLES),
    *(f"{article} {made} {{}}." for made in _MADE.split(",") for article in _ARTICLES),
    *(f"a photo of {whose} {{}}." for whose in ("many", "my", "one")),
    "itap of my {}.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig(MethodConfig):
    """Options of CLIP.

    Attributes:
      normal_text, abnormal_text: the two states; `{}` is the class name.
      templates: sentences around a state, whose features are averaged; `{}` is the filled state.
    """

    name: ClassVar[str] = "clip"
    title: ClassVar[str] = "CLIP"
    renamed: ClassVar[Mapping[str, str]] = {"normal": "normal_text", "abnormal": "abnormal_text"}
    vv_from: ClassVar[None] = None  # type: ignore[misc]
    init_std: ClassVar[float] = 0.0  # type: ignore[misc]

    normal_text: str = "a photo of a normal {}"
    abnormal_text: str = "a photo of an anomalous {}"
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_texts(self, "normal_text", "abnormal_text", "templates", place="{}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipACConfig(ClipConfig):
    """Options of CLIP-AC: the states are in CLIP's templates for ImageNet."""

    name: ClassVar[str] = "clip_ac"
    title: ClassVar[str] = "CLIP-AC"

    normal_text: str = "normal {}"
    abnormal_text: str = "anomalous {}"
    templates: tuple[str, ...] = IMAGENET_TEMPLATES


def clip(backbone: Backbone, config: ClipConfig | Fields | None = None) -> Method:
    """Returns raw CLIP or, given its config, CLIP-AC over a backbone with patch tokens in the joint space.

    Texts are those of `prompts.ensemble`, scores those of `similarity.pair_scores`. Its params are {}.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    config = config_from(ClipConfig, config)
    compare = similarity.pair_comparer(backbone, config)
    family = prompts.PromptFamily((config.normal_text,), (config.abnormal_text,), config.templates)

    def prototypes(
        frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> Float[Array, "c 2 d"]:
        return prompts.encode_pairs(backbone, frozen, family, class_names)

    def compute(
        frozen: Params, params: Params, text: Float[Array, "b 2 d"], features: VisionFeatures
    ) -> Scores:
        return similarity.pair_scores(compare(text, features), text_features=text)

    return Method(
        prototypes=prototypes,
        score=score_fn(compute),
        score_range=(0.0, 1.0),
        **NOTHING_LEARNED,
        **vision_side(backbone, config),
    )
