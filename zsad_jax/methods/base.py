"""The contract of every method: a NamedTuple of pure functions, as an optimizer is in optax."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, TypedDict

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from zsad_jax.backbones.base import AnyArray, Backbone, Params, VisionFeatures, VisionOptions
from zsad_jax.backbones.checkpoints.read import Arrays
from zsad_jax.backbones.feature_cache import FeaturesFn, Images
from zsad_jax.methods.shared import anomaly_map
from zsad_jax.methods.shared.config import MethodConfig, scale_block
from zsad_jax.metrics import Thresholds
from zsad_jax.utils.errors import UserError, plural, suggest

Terms = dict[str, Float[Array, ""]]
Loss = tuple[Float[Array, ""], Terms]  # the loss and its terms by name
Category = Int[AnyArray, " b"]
Patches = Float[Array, "b h w c"]
Blocks = Callable[[], Iterable[tuple[Any, Bool[np.ndarray, " b"]]]]


class Scores(NamedTuple):
    """Scores of a batch of images.

    Attributes:
      image: image scores by name, higher = more anomalous.
      patches: per-patch scores; the method decides what the C channels mean.
      extras: per-layer maps, attention and the like, only those that were requested.
    """

    image: dict[str, Float[Array, " b"]]
    patches: Patches
    extras: dict[str, Array] = {}  # noqa: RUF012 - never written to


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The ground truth of a training batch; rows with `valid=False` are ignored.

    `class_names` is static: the prompt names that `category` indexes, for methods whose prompts are
    conditioned on the class. `key` is that of the step and member, for losses that draw random numbers; draws
    for single images do not depend on padding if each has a key of `jax.random.split(key, b)`. `fixed` is what
    `Stage.fixed` returned.
    """

    category: Category
    labels: Int[AnyArray, " b"]
    masks: Float[AnyArray, "b H W"]
    has_mask: Bool[AnyArray, " b"]
    valid: Bool[AnyArray, " b"]
    class_names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    key: Array | None = None
    fixed: PyTree = None


class InitFn(Protocol):
    """A function that returns what is learned, as nested dicts of arrays; {} if nothing is learned."""

    def __call__(self, key: Array, frozen: Params, /) -> Params: ...


class PrototypesFn(Protocol):
    """A function that computes what images are compared with: any pytree with leading axis = category.

    It is called once per params. `class_names` is static. `references` are the features of the reference
    images, with leading axes [category, image], for few-shot methods; None otherwise. Every category has the
    same number of them: its K normal images in each of the views of `Method.reference_views`, view by view.
    """

    def __call__(
        self, frozen: Params, params: Params, class_names: Sequence[str], references: PyTree = None
    ) -> PyTree: ...


class ScoreFn(Protocol):
    """A function that returns the scores of images of the given categories, with the requested `extras`."""

    def __call__(
        self,
        frozen: Params,
        params: Params,
        prototypes: PyTree,
        features: PyTree,
        category: Category,
        /,
        *,
        extras: Collection[str] = (),
    ) -> Scores: ...


class ComputeScoresFn(Protocol):
    """A function that returns the scores of images with all extras.

    `prototypes` are those of each image's category, along the axis of images, or what `score_fn` says.
    """

    def __call__(
        self, frozen: Params, params: Params, prototypes: Any, features: Any, /
    ) -> Scores: ...


class AnomalyMapFn(Protocol):
    """A function that returns the anomaly maps of patch scores at `size`: (H, W), or the side of a square."""

    def __call__(self, patches: Patches, size: anomaly_map.Size, /) -> Float[Array, "b H W"]: ...


class LossFn(Protocol):
    """A function that returns the training loss and its terms by name.

    Rows with `valid=False` must have no effect; their features are zero.
    """

    def __call__(
        self, frozen: Params, params: Params, features: PyTree, batch: Batch, /
    ) -> Loss: ...


class GroupsFn(Protocol):
    """A function that returns the params with the name of a parameter group at each leaf."""

    def __call__(self, params: Params, /) -> PyTree: ...


class AcrossFn(Protocol):
    """A function that returns the scores of all images of one category, which may depend on one another.

    It runs on the host, once per category; `prototypes` are those of all categories. `blocks()` yields the
    features of consecutive images (8-bit images if features are not `Method.cacheable`), in the order of the
    dataset, and which of them are valid, anew at each call: those of all images need not fit into memory. The
    returned arrays have a row for each valid image.
    """

    def __call__(
        self, frozen: Params, params: Params, prototypes: Any, blocks: Blocks, category: int, /
    ) -> Scores: ...


class ImportParamsFn(Protocol):
    """A function that returns the params in the authors' checkpoint, whose nested names are joined by ".".

    Raises:
      KeyError: naming an array that is missing.
    """

    def __call__(self, state: Arrays, /) -> Params: ...


class ReferenceViewsFn(Protocol):
    """A function that returns V views of each of K reference images, view by view, on the host."""

    def __call__(
        self, images: UInt8[np.ndarray, "k S S 3"], key: Array, /
    ) -> UInt8[np.ndarray, "v*k S S 3"]: ...


class AugmentFn(Protocol):
    """A function that returns a changed image, with values in [0, 1], and its mask; it is vmapped."""

    def __call__(
        self, key: Array, image: Float[Array, "S S 3"], mask: Float[Array, "S S"], /
    ) -> tuple[Float[Array, "S S 3"], Float[Array, "S S"]]: ...


class Stage(NamedTuple):
    """A stage of training: which parameter groups are trained, on which loss and images, and for how long.

    Attributes:
      groups: names of the parameter groups that are trained; None: all.
      loss: replaces the method's loss; None: the method's.
      training: fields of the training config that differ in this stage, such as epochs and batch_size.
      features: replaces the method's features by ones that do not depend on `params`; None: the method's.
      features_key: as `Method.features_key`, for `features`.
      cacheable: whether `features` depends on single images, not on the batch.
      augment: changes every image and its mask in every step; None: none is changed.
      mosaic: probability that an image is replaced by a mosaic of four random images of its category, of half
        the size, which is anomalous if any of them is.
      mosaic_of: which images of the category; one that has none of them stays without mosaics.
      fixed: computes what losses read and the stage does not change, such as texts: once, from the parameters
        of the groups that it does not train; None: nothing.
    """

    groups: tuple[str, ...] | None = None
    loss: LossFn | None = None
    training: Mapping[str, Any] = {}
    features: FeaturesFn | None = None
    features_key: Hashable = None
    cacheable: bool = True
    augment: AugmentFn | None = None
    mosaic: float = 0.0
    mosaic_of: Literal["all", "anomalous"] = "all"
    fixed: PrototypesFn | None = None


def grouped(**groups: str) -> GroupsFn:
    """Returns `Method.groups` for params by name: the group of each name, "prompts" where none is given."""

    def group(path: Sequence[jax.tree_util.DictKey], _: Array) -> str:
        return groups.get(path[0].key, "prompts")

    return functools.partial(jax.tree.map_with_path, group)


class Method(NamedTuple):
    """A zero-shot anomaly detector over a frozen backbone.

    `frozen` is `backbone.params` and always an argument: a jitted function never closes over weights. Each
    function is documented by its protocol above.

    Attributes:
      name: the method's key ("tipsomaly").
      config: its checked config dataclass, for records; the defaults are those of its type.
      group_names: all parameter groups of the method, including those that its config disables; each has its
        learning rate in the training config.
      image_scores: names in Scores.image; the first is the default of `config.image_score`.
      map_range: (low, high) of the anomaly maps, for color scales; None if it is unknown.
      score_range: (low, high) of the image scores; None if it is unknown.
      features_key: equal (and not None) for methods that compute the same features over one backbone,
        which are then computed once for all of them.
      cacheable: whether `features` ignores `params`.
      stages: the stages of training.
      across: used in place of `score` where no references are given; None if the scores of an image do not
        depend on other images. Of a method that takes no references, `score` serves images alone.
      min_images: number of images of a category that `across` needs.
      references: whether `prototypes` takes the features of normal images of each category.
      reference_views: the views in which reference images are encoded; None: the images themselves.
      works_untrained: whether empty params ({}) mean fixed prompts, for a method that can learn.
      import_params: None if there is no released checkpoint.
      aupro_thresholds: library whose `arange` spaces the 200 AUPRO thresholds in the published code.
      unused_parameters: number of parameters without effect that the published code trains and counts.
    """

    name: str
    config: MethodConfig
    init: InitFn
    features: FeaturesFn
    prototypes: PrototypesFn
    score: ScoreFn
    anomaly_map: AnomalyMapFn
    loss: LossFn
    image_scores: tuple[str, ...] = ("global",)
    groups: GroupsFn = grouped()
    group_names: tuple[str, ...] = ("prompts",)
    map_range: tuple[float, float] | None = (0.0, 1.0)
    score_range: tuple[float, float] | None = None
    features_key: Hashable = None
    cacheable: bool = True
    stages: tuple[Stage, ...] = (Stage(),)
    across: AcrossFn | None = None
    min_images: int = 1
    references: Literal["unused", "optional", "required"] = "unused"
    reference_views: ReferenceViewsFn | None = None
    works_untrained: bool = False
    import_params: ImportParamsFn | None = None
    aupro_thresholds: Thresholds = "torch"
    unused_parameters: int = 0


def param_shapes(method: Method, backbone: Backbone) -> Params:
    """Returns the learnable parameters with shapes in place of arrays; {} if nothing is learned.

    Example:
      >>> from zsad_jax.backbones import load_backbone
      >>> from zsad_jax.methods import make_method
      >>> backbone = load_backbone("clip-nano")
      >>> param_shapes(make_method("anomalyclip", backbone), backbone)["normal"].shape
      (12, 128)
    """
    return jax.eval_shape(method.init, jax.random.key(0), backbone.params)


def untrained(method: Method, stage: Stage, params: Params) -> Params:
    """Returns the entries of `params` that a stage does not train."""
    trained = set(method.group_names if stage.groups is None else stage.groups)
    groups = method.groups(params)
    return {k: x for k, x in params.items() if trained.isdisjoint(jax.tree.leaves(groups[k]))}


def encoder_of(method: Method, stage: Stage | None = None) -> tuple[Hashable, FeaturesFn | None]:
    """Returns the key of a method's features and their encoder, to score images, or in a stage of training.

    Both are None if features depend on parameters or on the batch, or the stage changes images: they cannot
    be stored.
    """
    cacheable, encode, key = method.cacheable, method.features, method.features_key
    if stage and stage.features:
        cacheable, encode, key = stage.cacheable, stage.features, stage.features_key
    if not cacheable or (stage and (stage.augment or stage.mosaic)):
        return None, None
    # The function is a key that no other method has.
    return encode if key is None else key, encode


def check_references(method: Method, given: bool, *, single: bool = False) -> None:
    """Raises `UserError` if a method requires references and none are given, or takes none.

    With `single`, images are scored one by one, for which a method with `across` requires references.
    """
    if given and method.references == "unused":
        raise UserError(
            f"{method.name} takes no reference images. Remove them (config.shots, references, --references), or"
            " use a method that does, such as knn."
        )
    if not given and method.references == "required":
        raise UserError(
            f"{method.name} requires normal reference images of each category. Draw them from the train splits"
            " of the targets (--config.shots=4), or give your own: references=[PATH, …] from Python, or"
            " --references FOLDER for python -m zsad_jax.predict."
        )
    if single and not given and method.across and method.references != "unused":
        raise UserError(
            f"Without references, {method.name} scores the images of a category together, so it cannot score"
            " single images. Pass references, or evaluate a folder of images with python -m zsad_jax.main."
        )


def score_fn(compute: ComputeScoresFn, *, whole: bool = False) -> ScoreFn:
    """Returns `Method.score`, which returns only the requested extras of `compute`.

    Where it is compiled, extras that are not requested are never computed. With `whole`, the prototypes that
    `compute` receives are (those of all categories, the categories of images), since copies for each image may
    be large.
    """

    def score(
        frozen: Params,
        params: Params,
        prototypes: PyTree,
        features: PyTree,
        category: Category,
        *,
        extras: Collection[str] = (),
    ) -> Scores:
        of_images: Any = prototypes, category
        if not whole:
            of_images = jax.tree.map(lambda x: x[category], prototypes)
        scores = compute(frozen, params, of_images, features)
        if unknown := sorted({*extras} - {*scores.extras}):
            hint = suggest(unknown[0], scores.extras)
            raise UserError(f"Unknown extra '{unknown[0]}'. {hint}")
        return scores._replace(extras={name: scores.extras[name] for name in extras})

    return score


def _no_loss(*_: Any) -> NoReturn:
    raise UserError("The method has nothing to learn. Set config.train=False.")


# The fields of a `Method` whose params are always {}.
NOTHING_LEARNED: dict[str, Any] = {
    "init": lambda key, frozen: {},
    "loss": _no_loss,
    "group_names": (),
}


class VisionSide(TypedDict):
    """The fields of `Method` that follow from the options that all methods share."""

    name: str
    config: MethodConfig
    features: FeaturesFn
    anomaly_map: AnomalyMapFn
    map_range: tuple[float, float]
    features_key: tuple[Any, ...]


def vision_side(
    backbone: Backbone,
    config: MethodConfig,
    *,
    num_maps: int | None = None,
    patch_norm: bool = True,
    windows: tuple[int, ...] = (),
    distinct: bool = False,
) -> VisionSide:
    """Returns name and config of a `Method`, and its fields that follow from the shared options.

    `num_maps` is the number of maps in [0, 1] that are summed; None: one per layer. `patch_norm` and `windows`
    are those of `VisionOptions`. With `distinct`, blocks that are scaled to the same one are one layer.

    Raises:
      UserError: if the backbone does not have the global token.
    """
    if config.global_token >= backbone.num_global_tokens:
        raise UserError(
            f"Config key 'global_token' is {config.global_token}, but {backbone.name} has"
            f" {plural(backbone.num_global_tokens, 'global token')}, counted from 0. Use"
            f" {' or '.join(map(str, range(backbone.num_global_tokens)))}."
        )
    layers = config.layers_of(backbone.vision_depth)
    if distinct:
        layers = tuple(dict.fromkeys(layers))
    options: VisionOptions = {
        "layers": layers,
        "vv_from": config.vv_from and scale_block(config.vv_from, backbone.vision_depth),
        "cls_norm": config.cls_norm,
        "patch_norm": patch_norm,
    }
    if windows:
        options["windows"] = windows

    def features(frozen: Params, params: Params, images: Images) -> VisionFeatures:
        return backbone.encode_image(frozen, images, **options)

    return {
        "name": config.name,
        "config": config,
        "features": features,
        "anomaly_map": functools.partial(anomaly_map.anomaly_map, sigma=config.sigma),
        "map_range": (0.0, float(num_maps or len(layers))),
        "features_key": (*options.values(), backbone.form),
    }
