"""Scores and anomaly maps of images from Python: a method over a backbone with its prompts."""

import dataclasses
import functools
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree, UInt8

from zsad_jax.backbones import Backbone, load_backbone
from zsad_jax.backbones.feature_cache import CompiledEncoders
from zsad_jax.backbones.transformer import place
from zsad_jax.data.issues import DOUBTFUL
from zsad_jax.data.preprocess import Decoded, Preprocess, image_from_array, open_image, resize_image
from zsad_jax.evaluate import Contender, encode_prototypes, make_scorer
from zsad_jax.methods import Method, image_score, make_method, param_shapes
from zsad_jax.methods.base import check_references, encoder_of
from zsad_jax.methods.shared import prompt_files
from zsad_jax.utils import sharding
from zsad_jax.utils.arrays import is_array, is_real, to_numpy
from zsad_jax.utils.config import checked
from zsad_jax.utils.errors import UserError, plural

References = Sequence[UInt8[np.ndarray, "k S S 3"]]
Image = np.ndarray | jax.Array | PIL.Image.Image | str | os.PathLike[str]


class Prediction(NamedTuple):
    """Scores and maps of a batch of images.

    Attributes:
      score: higher = more anomalous.
      anomaly_map: at the model's size S, in the method's `map_range`.
    """

    score: Float[np.ndarray, " b"]
    anomaly_map: Float[np.ndarray, "b S S"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Detector:
    """A method over a backbone with its prompts; see `load_detector`.

    Attributes:
      prompts: origin of the learned prompts in words, or "fixed prompts".
      categories: what the images may show, for the fixed prompts.
      references: resized normal images of each category; None: none are given.
      image_score: the image score that `predict` returns.
      batch_size: images per compiled call; smaller batches are padded.
      mesh: the devices over which a batch is split; frozen weights and prompts are on each.
    """

    backbone: Backbone
    method: Method
    params: PyTree
    prompts: str
    categories: tuple[str, ...]
    references: References | None
    image_score: str
    batch_size: int
    mesh: Mesh

    def __repr__(self) -> str:
        return (
            f"Detector({self.method.name!r}, {self.backbone!r}, prompts={self.prompts!r},"
            f" categories={self.categories!r})"
        )

    @functools.cached_property
    def prototypes(self) -> PyTree:
        """The encoded prompts and references."""
        own, rows = Contender(self.method, self.params), self.batch_size
        given = self.backbone.params, self.categories, self.references, self.mesh
        return encode_prototypes(own, self.encoders, *given, rows=rows)

    @functools.cached_property
    def encoders(self) -> CompiledEncoders:
        """The encoder of the method's features by its key, as `make_scorer` takes it."""
        key, encode = encoder_of(self.method)
        normalize = self.backbone.preprocess.normalize
        return {key: encode and (lambda frozen, x: encode(frozen, {}, normalize(x)))}

    @functools.cached_property
    def scorer(self) -> jax.stages.Compiled:
        """The function of `make_scorer` on images, compiled for batches of `batch_size`."""
        score = make_scorer(
            [self.method], self.backbone, self.encoders, mesh=self.mesh, binned=False
        )
        # Compiled ahead, so that the measured time of the first images does not include it.
        size = self.backbone.preprocess.image_size
        images = np.zeros((self.batch_size, size, size, 3), np.uint8)
        return score.lower(*self._arguments(images, np.zeros(self.batch_size, np.int32))).compile()

    def predict(self, images: Image | Iterable[Image]) -> Prediction:
        """Scores images.

        Args:
          images: an array [b, H, W, 3], an image, or an iterable of images, each of any size. An image is an
            array or a tensor [H, W, 3], [H, W, 4] (alpha is ignored) or [H, W] (gray), a Pillow image, or the
            path of a file. Values of arrays are 8-bit, or floats in [0, 1], which are rounded to 8 bits; wider
            integers are scaled as those of files.

        Raises:
          UserError: an image cannot be read, or has the wrong shape, type or range; or a score is not finite.

        Example:
          >>> detector = load_detector(backbone="tips-nano", category="metal nut")
          >>> score, anomaly_map = detector.predict(np.zeros((1, 300, 200, 3), np.uint8))
          >>> anomaly_map.shape
          (1, 252, 252)
        """
        resized = resize_all(images, self.backbone.preprocess)
        if not resized:
            raise UserError("There are no images to score. Pass at least one.")
        return self.predict_resized(np.stack(resized))

    def predict_resized(
        self, images: UInt8[np.ndarray, "b S S 3"], category: Int[np.ndarray, " b"] | None = None
    ) -> Prediction:
        """Scores images of the backbone's size, as `resize_image` returns them.

        `category` holds their indices in `categories`; None: all are of the first.

        Raises:
          UserError: a score or a map is not finite.
        """
        size = self.batch_size
        category = np.zeros(len(images), np.int32) if category is None else category
        scores, maps = [], []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            # A last, smaller batch of another shape would compile anew.
            padded = np.zeros((size, *batch.shape[1:]), np.uint8)
            padded[: len(batch)] = batch
            indices = np.pad(category[start : start + size], (0, size - len(batch)))
            [result] = self.scorer(*self._arguments(padded, indices))
            scores.append(np.asarray(result.image[self.image_score])[: len(batch)])
            maps.append(np.asarray(result.maps)[: len(batch)])
            finite = np.isfinite(scores[-1]) & np.isfinite(maps[-1]).all(axis=(1, 2))
            if not finite.all():
                raise UserError(
                    f"{self.method.name} over {self.backbone.name} produced non-finite scores for"
                    f" {np.sum(~finite)} of {plural(len(finite), 'image')}. Check the weights of"
                    f" {self.backbone.name} and the prompts in use ({self.prompts})."
                )
        return Prediction(np.concatenate(scores), np.concatenate(maps))

    def _arguments(
        self, images: UInt8[np.ndarray, "b S S 3"], category: Int[np.ndarray, " b"]
    ) -> tuple[Any, ...]:
        split = sharding.split_batch((images, category), self.mesh)
        return self.backbone.params, [self.params], [self.prototypes], [None], *split


def resize_all(
    images: Image | Iterable[Image], preprocess: Preprocess
) -> list[UInt8[np.ndarray, "S S 3"]]:
    """Resizes images in one of the forms of `Detector.predict`, which may be an iterable without any."""
    given: Any = images
    if isinstance(given, str | os.PathLike | PIL.Image.Image) or (
        is_array(given) and given.ndim != 4
    ):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes | io.IOBase):
        raise UserError(
            f"The images have the type {type(given).__name__}. Pass arrays, Pillow images or paths of files."
        )
    return [resize(image, preprocess) for image in given]


def resize(image: Image, preprocess: Preprocess) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes an image to the backbone's size, still 8-bit; see `Detector.predict`."""
    name = "image"
    if is_array(image):
        decoded = _open_array(to_numpy(image, "Images"), preprocess)
    elif isinstance(image, str | os.PathLike | PIL.Image.Image):
        decoded = open_image(image, bit_depth=preprocess.bit_depth)
        name = name if isinstance(image, PIL.Image.Image) else os.fspath(image)
    else:
        raise UserError(
            f"An image has the type {type(image).__name__}. Pass an array, a Pillow image or a path."
        )
    for note in decoded.notes:
        level = logging.WARNING if note.kind in DOUBTFUL else logging.INFO
        logging.log(level, "%s", note._replace(file=name))
    return resize_image(decoded.image, preprocess)


@checked
def load_detector(
    method: str = "tipsomaly",
    backbone: str | Backbone = "tips-nano",
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    category: str = "object",
    references: Image | Iterable[Image] | None = None,
    score: str | None = None,
    batch_size: int = 1,
    backbone_options: Mapping[str, Any] | None = None,
    **method_options: Any,
) -> Detector:
    """Loads a detector for images of one category.

    Args:
      method: a key of `zsad_jax.methods.METHODS`.
      backbone: a name for `load_backbone`, or a loaded backbone.
      checkpoint: learned prompts: a released name or a file. None: those included with the backbone, else
        fixed prompts, with a warning, if the method works with them.
      category: what the images show ("metal nut"), for the fixed prompts.
      references: normal images of the category, as for `Detector.predict`, for methods that compare with them.
      score: the image score to return; None: the method's first.
      batch_size: images per compiled call, split over this process's devices; rounded up to a multiple of them.
      backbone_options: for `load_backbone`; not for a loaded backbone.
      **method_options: fields of the method's config.

    Raises:
      UserError: something is unknown, missing or does not fit.

    Example:
      >>> detector = load_detector("tipsomaly", "tips-nano", category="metal nut")
      >>> detector.predict(["part_1.png", "part_2.png"]).score.shape
      (2,)
    """
    if isinstance(backbone, Backbone) and backbone_options:
        raise UserError(
            f"backbone_options={backbone_options} has no effect on a loaded backbone. Pass it to load_backbone."
        )
    if "name" in (backbone_options or {}):
        raise UserError("backbone_options contains 'name'. Pass it as backbone instead.")
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, **(backbone_options or {}))
    made = make_method(method, backbone, method_options)
    given = None if checkpoint is None else os.fspath(checkpoint)
    params, file = choose_params(made, backbone, given)
    resized = None if references is None else resize_all(references, backbone.preprocess)
    if resized == []:
        raise UserError("references is empty. Pass normal images of the category, or None.")
    detector = make_detector(
        backbone,
        made,
        params,
        prompts=file.description,
        categories=(category,),
        references=resized and [np.stack(resized)],
        score=score,
        batch_size=batch_size,
    )
    _ = detector.prototypes  # a text that cannot be encoded is an error now
    return detector


def make_detector(
    backbone: Backbone,
    method: Method,
    params: PyTree,
    *,
    prompts: str,
    categories: Sequence[str] = ("object",),
    references: References | None = None,
    score: str | None = None,
    batch_size: int = 1,
    model_devices: int = 1,
) -> Detector:
    """Makes a detector of its parts; prompts are encoded and the method is compiled when first needed.

    Args:
      backbone, method, params: the frozen model, a method made over it, and its parameters ({}: fixed prompts).
      prompts: origin of the parameters, in words.
      categories: what the images may show, for the fixed prompts.
      references: normal images of each category, the same number, that `resize` returned.
      score, batch_size: as for `load_detector`.
      model_devices: number of devices over which each tower is split.

    Raises:
      UserError: the method has no such score, a number is out of range, or a category is empty.
    """
    if not all(map(str.strip, categories)):
        raise UserError(
            f"A category of {categories} is empty. Describe what the images show, for example 'metal nut'."
        )
    if not 1 <= batch_size <= sharding.MAX_BATCH:
        raise UserError(f"batch_size={batch_size} must be between 1 and {sharding.MAX_BATCH}.")
    check_references(method, references is not None, single=True)
    groups = sharding.make_mesh(jax.local_devices(), model_devices).devices
    mesh = sharding.make_mesh(groups[:batch_size].ravel().tolist(), model_devices)
    return Detector(
        backbone=dataclasses.replace(backbone, params=place(backbone.params, mesh)),
        method=method,
        params=sharding.replicate(params, mesh),
        prompts=prompts,
        categories=tuple(categories),
        references=references,
        image_score=image_score(method, score),
        batch_size=sharding.round_up(batch_size, mesh),
        mesh=mesh,
    )


def choose_params(
    method: Method, backbone: Backbone, given: str | None, *, default: str | None = None
) -> tuple[PyTree, prompt_files.PromptFile]:
    """Returns the learned parameters ({} for fixed prompts) and their file; see `prompt_files.choose`."""
    learns = bool(param_shapes(method, backbone))
    file = prompt_files.choose(method.name, backbone.name, given, default=default, learns=learns)
    if file.source:
        return jax.tree.map(jnp.asarray, prompt_files.load(file, method, backbone)), file
    if learns and not method.works_untrained:
        raise UserError(
            f"{method.name} requires learned prompts, and none are included with {backbone.name}. Train them"
            " with python -m zsad_jax.main, and pass the prompts.npz that it writes as the checkpoint."
        )
    if learns:
        logging.warning(
            "No learned prompts are included with %s. Using fixed prompts, which are less accurate.",
            backbone.name,
        )
    return {}, file


def _open_array(array: np.ndarray, preprocess: Preprocess) -> Decoded:
    """Returns the 8-bit image of an array; unlike a file, it must have the usual range of values."""
    if not is_real(array.dtype) or array.dtype == bool:
        raise UserError(
            f"An image has the type {array.dtype}; expected integers, or floats in [0, 1]. Convert it first."
        )
    if array.dtype.kind not in "uif":  # bfloat16
        array = array.astype(np.float32)
    array = array[..., 0] if array.shape[2:] == (1,) else array
    decoded = image_from_array(array, bit_depth=preprocess.bit_depth)
    if any(note.kind in ("image_stretched", "image_gaps") for note in decoded.notes):
        found = f"values from {array.min():.6g} to {array.max():.6g}"
        if not np.isfinite(array).all():
            found = "values that are not finite"
        raise UserError(
            f"An image of the type {array.dtype} has {found}; expected 8-bit values, or floats in [0, 1]. Clip"
            " floats to that range, divide those up to 255 by 255, and pass images that are not normalized."
        )
    return decoded
