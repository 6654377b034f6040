"""CLIP and CLIP-AC as zero-shot detectors: hand-written sentences, nothing is learned.

Defined as baselines in the AnomalyCLIP paper (arXiv 2310.18961): one sentence per state, or the mean over
CLIP's 80 templates for ImageNet. The maps of raw CLIP are often inverted on objects: a pixel AUROC below
one half is what the papers print.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NoReturn

from zsad_jax.backbones.base import Backbone
from zsad_jax.errors import UserError
from zsad_jax.methods import anomaly_map
from zsad_jax.methods.base import Method, check_global_token
from zsad_jax.methods.blocks import check_blocks, scale_blocks
from zsad_jax.methods.config import check_fields, config_from, within
from zsad_jax.methods.pair_score import IMAGE_SCORES, pair_scorer, texts_of_category
from zsad_jax.methods.prompts import PromptFamily, encode_pairs
from zsad_jax.methods.similarity import temperature_of

# CLIP's 80 templates for ImageNet (Radford et al. 2021), which come in kinds.
_KINDS = "photo,painting,drawing,doodle,sketch,rendering,rendition,sculpture,tattoo"
_PHOTOS = (
    "bad,black and white,blurry,bright,close-up,cropped,dark,good,jpeg corrupted,low resolution,"
    "pixelated"
)
_SEEN = "clean,cool,dirty,hard to see,large,nice,small,weird"
_MADE = "cartoon,embroidered,origami,plastic,plushie,toy"
_ARTICLES = ("a", "the")
IMAGENET_TEMPLATES = (
    *(f"a {kind} of {article} {{}}." for kind in _KINDS.split(",") for article in _ARTICLES),
    *(
        f"a {photo} photo of {article} {{}}."
        for photo in _PHOTOS.split(",")
        for article in _ARTICLES
    ),
    *(
        f"{kind} of {article} {{}}."
        for kind in ("art", "graffiti", "itap")
        for article in _ARTICLES
    ),
    *(f"{article} {{}} in a video game." for article in _ARTICLES),
    *(f"a photo of {article} {seen} {{}}." for seen in _SEEN.split(",") for article in _ARTICLES),
    *(f"{article} {made} {{}}." for made in _MADE.split(",") for article in _ARTICLES),
    *(f"a photo of {whose} {{}}." for whose in ("many", "my", "one")),
    "itap of my {}.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The wording of CLIP's sentences, and how patches are compared.

    Attributes:
      normal, abnormal: the two states; `{}` is the class name.
      templates: sentences around a state, whose features are averaged; `{}` is the filled state.
      feature_layers: vision blocks, of a tower of 24, whose maps are added up.
      cls_norm: whether the global token passes the vision tower's last norm, as in CLIP.
      global_token: which of the backbone's global tokens gives the image score, counted from 0.
      sigma: of the map's Gaussian, in pixels of the map; 0 does not smooth.
      temperature: divides the cosine; None is the backbone's own.
    """

    normal: str = "a photo of a normal {}"
    abnormal: str = "a photo of an anomalous {}"
    templates: tuple[str, ...] = ("{}",)
    feature_layers: tuple[int, ...] = (24,)
    cls_norm: bool = True
    global_token: int = within(0, 0)
    sigma: float = within(4.0, 0)
    temperature: float | None = within(0.07, 1e-6)

    def __post_init__(self) -> None:
        check_fields(self)
        check_blocks("feature_layers", self.feature_layers)
        for key in ("normal", "abnormal"):
            if "{}" not in getattr(self, key):
                raise UserError(f"Config key '{key}' has no {{}} where the class name goes.")
        if not self.templates or not all("{}" in template for template in self.templates):
            raise UserError(
                "Config key 'templates' must hold sentences with a {} where the state goes."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipACConfig(ClipConfig):
    """The same with the states in CLIP's templates for ImageNet."""

    normal: str = "normal {}"
    abnormal: str = "anomalous {}"
    templates: tuple[str, ...] = IMAGENET_TEMPLATES


def clip(backbone: Backbone, config: ClipConfig | Mapping[str, Any] | None = None) -> Method:
    """Raw CLIP over a backbone; nothing is learned, so params are {}.

    Args:
      backbone: any with patch tokens in the joint space.
      config: the wording, or a mapping of its fields; None: the paper's.

    Raises:
      UserError: for an unknown key or a bad value.
    """
    return _make("clip", backbone, config_from(ClipConfig, config))


def clip_ac(backbone: Backbone, config: ClipACConfig | Mapping[str, Any] | None = None) -> Method:
    """CLIP-AC over a backbone: the mean over many templates; the rest as `clip`."""
    return _make("clip_ac", backbone, config_from(ClipACConfig, config))


def _make(name: str, backbone: Backbone, config: ClipConfig) -> Method:
    check_global_token(backbone, config.global_token)
    layers = scale_blocks(config.feature_layers, backbone.vision_depth)
    family = PromptFamily((config.normal,), (config.abnormal,), config.templates)
    return Method(
        name=name,
        config=config,
        init=lambda key, frozen: {},
        features=lambda frozen, params, images: backbone.encode_image(
            frozen, images, layers=layers, cls_norm=config.cls_norm
        ),
        prototypes=lambda frozen, params, class_names: encode_pairs(
            backbone, frozen, family, class_names
        ),
        score=pair_scorer(
            name,
            texts_of_category,
            token=config.global_token,
            temperature=temperature_of(backbone, config.temperature),
        ),
        anomaly_map=functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        loss=functools.partial(_refuse_training, name),
        groups=lambda params: {},
        group_names=(),
        image_scores=IMAGE_SCORES,
        map_range=(0.0, float(len(layers))),
        features_key=(layers, None, config.cls_norm),
    )


def _refuse_training(name: str, *_: Any) -> NoReturn:
    raise UserError(f"Method '{name}' has nothing to learn; leave config.train False.")
