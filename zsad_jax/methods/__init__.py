"""Zero-shot anomaly detectors: one file per method, all with the contract of `Method`."""

import dataclasses
import importlib
import inspect
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.methods.base import Batch, Method, Scores, Stage, param_shapes
from zsad_jax.methods.shared.config import Fields, MethodConfig
from zsad_jax.utils.config import checked, config_from
from zsad_jax.utils.errors import UserError, suggest

Factory = Callable[[Backbone, Any], Method]


class MethodEntry(NamedTuple):
    """A method that `make_method` knows.

    Attributes:
      load: returns the factory and the class of its config; it imports those of an included method.
      included: whether the package contains it, so that `register` cannot replace it.
    """

    load: Callable[[], tuple[Factory, type[MethodConfig]]]
    included: bool


def _included(module: str, config: str) -> MethodEntry:
    """Returns the entry of a method of this package, whose factory has the name of its module."""

    def load() -> tuple[Factory, type[MethodConfig]]:
        found = importlib.import_module(f"{__name__}.{module}")
        return getattr(found, module), getattr(found, config)

    return MethodEntry(load, included=True)


METHODS = {
    "tipsomaly": _included("tipsomaly", "TIPSomalyConfig"),
    "anomalyclip": _included("anomalyclip", "AnomalyCLIPConfig"),
    "faprompt": _included("faprompt", "FAPromptConfig"),
    "tps": _included("tps", "TPSConfig"),
    "vip2clip": _included("vip2clip", "ViP2CLIPConfig"),
    "clip": _included("clip", "ClipConfig"),
    "clip_ac": _included("clip", "ClipACConfig"),
    "coop": _included("coop", "CoOpConfig"),
    "cocoop": _included("coop", "CoCoOpConfig"),
    "winclip": _included("winclip", "WinCLIPConfig"),
    "aaclip": _included("aaclip", "AACLIPConfig"),
    "anovl": _included("anovl", "AnoVLConfig"),
    "musc": _included("musc", "MuScConfig"),
    "knn": _included("knn", "KnnConfig"),
    "aprilgan": _included("aprilgan", "AprilGANConfig"),
    "vcpclip": _included("vcpclip", "VCPCLIPConfig"),
    "adaclip": _included("adaclip", "AdaCLIPConfig"),
}

__all__ = [
    # Methods by name
    "METHODS",
    "make_method",
    "register",
    "config_class",
    # The contract
    "Method",
    "Batch",
    "Scores",
    "Stage",
    # Properties of a method
    "param_shapes",
    "count_learned",
    "count_parameters",
    "image_score",
]


def register(factory: Factory, config: type[MethodConfig]) -> None:
    """Adds a method that is defined outside of the package, under the name in its config class.

    Its name then works wherever that of an included method does; a config file may call this. Registering a
    name again replaces the method.

    Args:
      factory: (backbone, config) -> `Method`; `make_method` passes an instance of `config`.
      config: the dataclass of the options.

    Raises:
      UserError: not a factory and its config class, or the name is not usable or is an included method's.

    Example:
      >>> from zsad_jax.methods.clip import ClipConfig, clip
      >>> class MyConfig(ClipConfig):
      ...     name = "my_clip"
      >>> register(clip, MyConfig)
      >>> config_class("my_clip").title
      'CLIP'
    """
    is_config = isinstance(config, type) and issubclass(config, MethodConfig)
    if not is_config or isinstance(factory, type) or not callable(factory):
        raise UserError(
            f"Cannot register {factory!r} with {config!r}. Expected a function and a class that extends"
            " MethodConfig."
        )
    name, fields = getattr(config, "name", None), {one.name for one in dataclasses.fields(config)}
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise UserError(
            f"{config.__name__}.name is {name!r}. Expected letters, digits and underscores."
        )
    for key, hint in inspect.get_annotations(config).items():
        if key not in fields and "ClassVar" not in str(hint):
            raise UserError(
                f"{config.__name__}.{key} is not a field. Decorate {config.__name__} with"
                " @dataclasses.dataclass(frozen=True, kw_only=True)."
            )
    if name in METHODS and METHODS[name].included:
        raise UserError(f"{name!r} is the name of an included method. Choose another name.")
    METHODS[name] = MethodEntry(lambda: (factory, config), included=False)


@checked
def make_method(
    name: str, backbone: Backbone, config: MethodConfig | Fields | None = None
) -> Method:
    """Returns the method of this name over a backbone.

    Args:
      name: a key of `METHODS`.
      backbone: the frozen model.
      config: the method's config dataclass, or a mapping of its keys; None: the defaults.

    Raises:
      UserError: for an unknown name, an unknown config key or a bad value, or if the backbone lacks what the
        method needs.

    Example:
      >>> from zsad_jax.backbones import load_backbone
      >>> method = make_method("anomalyclip", load_backbone("clip-nano"), {"sigma": 8.0})
      >>> method.name, method.image_scores
      ('anomalyclip', ('global',))
    """
    factory, config_type = _registered(name)
    if config_type.needs_text:
        backbone.need_text(f"the method {name}")
    if config_type.needs_joint_text and backbone.text_width != backbone.embed_dim:
        raise UserError(
            f"The method {name} adds image features to text tokens, but those of {backbone.name} have"
            f" {backbone.embed_dim} and {backbone.text_width} numbers. Use a backbone where both are equal, for"
            " example clip-vit-l14-336."
        )
    return factory(backbone, config_from(config_type, config))


@checked
def count_parameters(
    method: str, *, backbone: str, published: bool = False, config: Fields | None = None
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
    leaves = jax.tree.leaves(param_shapes(method, backbone))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def config_class(name: str) -> type[MethodConfig]:
    """Returns the dataclass of a method's config.

    Raises:
      UserError: for an unknown name.

    Example:
      >>> config_class("tipsomaly")(sigma=8.0).sigma
      8.0
    """
    return _registered(name)[1]


def _registered(name: str) -> tuple[Factory, type[MethodConfig]]:
    """Returns the factory and the config class of a method."""
    if name not in METHODS:
        raise UserError(
            f"Unknown method '{name}'. {suggest(name, sorted(METHODS))} To add one:"
            " zsad_jax.methods.register."
        )
    return METHODS[name].load()


@checked
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
