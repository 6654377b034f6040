"""The contract of every method: a NamedTuple of pure functions, as an optimiser is in optax."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zsad_jax.backbones.base import Backbone, Params, VisionFeatures
from zsad_jax.methods.shared import anomaly_map
from zsad_jax.methods.shared.blocks import scale_block, scale_blocks
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.metrics import Thresholds
from zsad_jax.utils.errors import UserError

PyTree = Any
AnyArray = jax.Array | np.ndarray


class Scores(NamedTuple):
    """What a method says of a batch of images.

    Attributes:
      image: image scores by name, higher = more anomalous.
      patches: per-patch scores; what the C channels mean is the method's affair.
      extras: per-layer maps, attention and the like, only when asked for.
    """

    image: dict[str, Float[Array, " b"]]
    patches: Float[Array, "b h w c"]
    extras: dict[str, Array] = {}  # noqa: RUF012 - never written to


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The ground truth of a training batch; rows with valid False count nowhere.

    `class_names` is static: the prompt names that `category` indexes, for methods whose prompts are
    conditioned on the class.
    """

    category: Int[AnyArray, " b"]
    labels: Int[AnyArray, " b"]
    masks: Float[AnyArray, "b H W"]
    has_mask: Bool[AnyArray, " b"]
    valid: Bool[AnyArray, " b"]
    class_names: tuple[str, ...] = dataclasses.field(metadata={"static": True})


class Stage(NamedTuple):
    """A part of training: which parameter groups move, on which loss, and how long.

    Attributes:
      groups: names of the parameter groups that train; None = all.
      loss: in place of the method's loss; None = that.
      epochs: how long; None = the config's.
    """

    groups: tuple[str, ...] | None = None
    loss: Callable[..., tuple[Array, dict[str, Array]]] | None = None
    epochs: int | None = None


def grouped(**groups: str) -> Callable[[PyTree], PyTree]:
    """Returns `Method.groups` for params by name: the group of each name, "prompts" where none is given."""

    def groups_of(params: PyTree) -> PyTree:
        return {
            name: jax.tree.map(lambda _, name=name: groups.get(name, "prompts"), part)
            for name, part in params.items()
        }

    return groups_of


class Method(NamedTuple):
    """A zero-shot anomaly detector over a frozen backbone.

    `frozen` is `backbone.params` and always an argument: a jitted function never closes over
    weights.

    Attributes:
      name: the method's key ("tipsomaly").
      config: its checked config dataclass, for records; the defaults are those of its type.
      init: (key, frozen) -> params: the learnable pytree, nothing else ({}: nothing is learned).
      features: (frozen, params, images [b H W 3]) -> features, any pytree with leading axis b.
      prototypes: (frozen, params, class_names: sequence of str) -> pytree, leading axis = category.
        Called once per params; class_names is static.
      score: (frozen, params, prototypes, features, category [b], *, extras=()) -> Scores; `extras`
        names what is wanted in Scores.extras.
      anomaly_map: (patches [b h w c], size (H, W) or S) -> [b H W].
      loss: (frozen, params, features, batch: Batch) -> (loss, {name: term}).
      groups: params -> pytree of names out of `group_names`; each has its learning rate in the config.
      group_names: all parameter groups of the method, those that its config switches off included.
      image_scores: names in Scores.image; the first is the default of `config.image_score`.
      map_range: (low, high) between which anomaly maps lie, for colour scales and histograms.
      features_key: equal (and not None) for methods that compute the same features over one backbone,
        which are then computed once for all of them.
      cacheable: True when `features` ignores `params` and nothing is augmented.
      stages: the stages of training.
      across: None, or a host function over all scores or features of one category.
      works_untrained: whether empty params ({}) mean fixed prompts, for a method that can learn.
      import_params: {name: array} of the authors' released checkpoint (names joined by ".") -> params;
        raises KeyError(name) for an array that is missing. None where there is no such checkpoint.
      aupro_thresholds: whose `arange` the published code takes the 200 thresholds of its AUPRO from.
      unused_parameters: numbers that the published code's optimiser holds without any effect; published
        counts include them.
    """

    name: str
    config: Any
    init: Callable[..., PyTree]
    features: Callable[..., PyTree]
    prototypes: Callable[[PyTree, PyTree, Sequence[str]], PyTree]
    score: Callable[..., Scores]
    anomaly_map: Callable[..., Array]
    loss: Callable[..., tuple[Array, dict[str, Array]]]
    image_scores: tuple[str, ...]
    groups: Callable[[PyTree], PyTree] = grouped()
    group_names: tuple[str, ...] = ("prompts",)
    map_range: tuple[float, float] = (0.0, 1.0)
    features_key: Hashable = None
    cacheable: bool = True
    stages: tuple[Stage, ...] = (Stage(),)
    across: Callable[..., Any] | None = None
    works_untrained: bool = False
    import_params: Callable[[Mapping[str, np.ndarray]], PyTree] | None = None
    aupro_thresholds: Thresholds = "torch"
    unused_parameters: int = 0


def scorer(
    method: str, known: Collection[str], compute: Callable[..., Scores]
) -> Callable[..., Scores]:
    """Returns `Method.score`, which gives only the requested extras.

    Args:
      method: name of the method, for messages.
      known: names of the extras that the method has.
      compute: (frozen, params, prototypes, features, category) -> scores with all extras. Where it is
        compiled, extras that nobody requests are never computed.
    """

    def score(*arguments: PyTree, extras: Collection[str] = ()) -> Scores:
        for name in extras:
            if name not in known:
                raise UserError(
                    f"Method '{method}' has no extra '{name}'; there are: {', '.join(known)}."
                )
        scores = compute(*arguments)
        return scores._replace(extras={name: scores.extras[name] for name in extras})

    return score


def vision_side(
    backbone: Backbone, config: MethodConfig, *, num_maps: int | None = None
) -> dict[str, Any]:
    """Returns the fields of a `Method` that follow from the shared options of its config.

    Args:
      backbone: the frozen model.
      config: the options.
      num_maps: number of maps in [0, 1] that are summed; None: one per layer.

    Raises:
      UserError: if the backbone does not have the global token.
    """
    check_global_token(backbone, config.global_token)
    layers = scale_blocks(config.feature_layers, backbone.vision_depth)
    vv_from = config.vv_from and scale_block(config.vv_from, backbone.vision_depth)
    options = {"layers": layers, "vv_from": vv_from, "cls_norm": config.cls_norm}

    def features(frozen: Params, params: Params, images: Float[Array, "b H W 3"]) -> VisionFeatures:
        del params
        return backbone.encode_image(frozen, images, **options)

    return {
        "features": features,
        "anomaly_map": functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        "map_range": (0.0, float(num_maps or len(layers))),
        "features_key": tuple(options.values()),
    }


def check_global_token(backbone: Backbone, token: int) -> None:
    """Refuses a config's `global_token` (counted from 0) that a backbone does not have.

    Raises:
      UserError: naming how many there are.
    """
    if token >= backbone.num_global_tokens:
        raise UserError(
            f"Config key 'global_token' is {token}, but {backbone.name} has {backbone.num_global_tokens}"
            f" global token{'s' * (backbone.num_global_tokens > 1)}, counted from 0."
        )
