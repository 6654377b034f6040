"""Zero-shot anomaly detectors: one file per method, all with the contract of `Method`."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import jax

from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.methods.base import Batch, Method, Scores, Stage
from zsad_jax.methods.shared.config import Fields, MethodConfig, Recipe
from zsad_jax.utils.config import config_from
from zsad_jax.utils.errors import UserError, suggest

Factory = Callable[[Backbone, Any], Method]
# Name -> "module:factory:config class", imported when the method is used; of `register`, the two themselves.
METHODS: dict[str, str | tuple[Factory, type[MethodConfig]]] = {
    "tipsomaly": "zsad_jax.methods.tipsomaly:tipsomaly:TIPSomalyConfig",
    "anomalyclip": "zsad_jax.methods.anomalyclip:anomalyclip:AnomalyCLIPConfig",
    "faprompt": "zsad_jax.methods.faprompt:faprompt:FAPromptConfig",
    "tps": "zsad_jax.methods.tps:tps:TPSConfig",
    "vip2clip": "zsad_jax.methods.vip2clip:vip2clip:ViP2CLIPConfig",
    "clip": "zsad_jax.methods.clip:clip:ClipConfig",
    "clip_ac": "zsad_jax.methods.clip:clip:ClipACConfig",
    "coop": "zsad_jax.methods.coop:coop:CoOpConfig",
    "cocoop": "zsad_jax.methods.coop:coop:CoCoOpConfig",
}

__all__ = [
    # Methods by name
    "METHODS",
    "make_method",
    "register",
    "config_class",
    "recipe_of",
    # The contract
    "Method",
    "Batch",
    "Scores",
    "Stage",
    # Properties of a method
    "count_learned",
    "count_parameters",
    "image_score",
]


def register(name: str, factory: Factory, config: type[MethodConfig]) -> None:
    """Adds a method that is defined outside of the package.

    Afterwards its name works wherever that of an included method does. A config file that calls this makes the
    method known to the commands that load it. Registering a name again replaces the method.

    Args:
      name: the key of the method, as in its `Method.name`.
      factory: (backbone, config) -> `Method`; `make_method` passes an instance of `config`.
      config: the dataclass of the options.

    Raises:
      UserError: the name is that of an included method.

    Example:
      >>> from zsad_jax.methods.clip import ClipConfig, clip
      >>> register("my_clip", clip, ClipConfig)
      >>> config_class("my_clip").title
      'CLIP'
    """
    if isinstance(METHODS.get(name), str):
        raise UserError(f"{name!r} is the name of an included method. Choose another name.")
    METHODS[name] = (factory, config)


def make_method(
    name: str, backbone: Backbone, config: MethodConfig | Fields | None = None
) -> Method:
    """Returns the method of this name over a backbone.

    Args:
      name: a key of `METHODS`.
      backbone: the frozen model.
      config: the method's config dataclass, or a mapping of its keys; None: the defaults.

    Raises:
      UserError: for an unknown name, an unknown config key or a bad value, or if the backbone lacks the text
        side that the method needs.

    Example:
      >>> from zsad_jax.backbones import load_backbone
      >>> method = make_method("anomalyclip", load_backbone("clip-nano"), {"sigma": 8.0})
      >>> method.name, method.image_scores
      ('anomalyclip', ('global',))
    """
    factory, config_type = _registered(name)
    if config_type.needs_text:
        backbone.need_text(f"the method {name}")
    return factory(backbone, config_from(config_type, config))


def count_parameters(
    method: str,
    *,
    backbone: str,
    published: bool = False,
    config: Fields | None = None,
) -> int:
    """Returns the number of parameters that a method learns over a released backbone, from shapes alone.

    Args:
      method: a key of `METHODS`.
      backbone: a released checkpoint ("clip-vit-l14-336"); no weights are read.
      published: count as the published code does, including parameters without effect.
      config: fields of the method's config; None: the defaults.

    Raises:
      UserError: for an unknown name, an unknown config key or a bad value.

    Example:
      >>> count_parameters("tipsomaly", backbone="tips-l14-hr")
      16384
    """
    described = describe_backbone(backbone)
    made = make_method(method, described, config)
    return count_learned(made, described) + (made.unused_parameters if published else 0)


def count_learned(method: Method, backbone: Backbone) -> int:
    """Returns the number of parameters that a method learns over a backbone.

    Example:
      >>> from zsad_jax.backbones import load_backbone
      >>> backbone = load_backbone("clip-nano")
      >>> count_learned(make_method("clip", backbone), backbone)
      0
    """
    shapes = jax.eval_shape(method.init, jax.random.key(0), backbone.params)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def config_class(name: str) -> type[MethodConfig]:
    """Returns the dataclass of a method's config.

    Raises:
      UserError: for an unknown name.

    Example:
      >>> config_class("tipsomaly")(sigma=8.0).sigma
      8.0
    """
    return _registered(name)[1]


def recipe_of(name: str) -> Recipe:
    """Returns the setting of a method's published numbers; for one that is not implemented, AnomalyCLIP's.

    Example:
      >>> recipe_of("anomalyclip").backbone["name"]
      'clip-vit-l14-336'
    """
    return config_class(name).recipe if name in METHODS else Recipe()


def _registered(name: str) -> tuple[Factory, type[MethodConfig]]:
    """Returns the factory and the config class of a method."""
    if name not in METHODS:
        raise UserError(f"Unknown method '{name}'. {suggest(name, sorted(METHODS))}")
    entry = METHODS[name]
    if not isinstance(entry, str):
        return entry
    module, *attributes = entry.split(":")
    factory, config = (getattr(importlib.import_module(module), one) for one in attributes)
    return factory, config


def image_score(method: Method, name: str | None = None) -> str:
    """Returns the checked name of an image score; None: the method's default.

    Raises:
      UserError: if this method, over its backbone, has no score of that name.

    Example:
      >>> from zsad_jax.backbones import load_backbone
      >>> image_score(make_method("clip", load_backbone("clip-nano")))
      'global'
    """
    if name is None:
        return method.image_scores[0]
    if name not in method.image_scores:
        raise UserError(
            f"Image score '{name}' does not exist for method '{method.name}' over this backbone."
            f" {suggest(name, method.image_scores)}"
        )
    return name
