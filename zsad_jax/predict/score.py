"""Scores of a user's own images: the model, whose weights are read when needed, and its results in order."""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from zsad_jax.backbones.load import describe_backbone
from zsad_jax.backbones.registry import RELEASES
from zsad_jax.data.issues import Issue
from zsad_jax.data.preprocess import (
    Preprocess,
    UnreadableImage,
    one_large_image,
    open_image,
    resize_image,
)
from zsad_jax.detector import Detector, choose_params, make_detector, resize
from zsad_jax.experiment.cache import inputs_key, prediction_key
from zsad_jax.experiment.config import Experiment
from zsad_jax.methods import config_class
from zsad_jax.methods.base import check_references
from zsad_jax.methods.shared import prompt_files
from zsad_jax.predict.figure import LONGEST_PANEL, resize_panel
from zsad_jax.predict.folders import Folders
from zsad_jax.predict.thresholds import Threshold
from zsad_jax.report import DEMONSTRATION
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.images import Picture
from zsad_jax.utils.progress import progress
from zsad_jax.utils.records import fingerprint, parse_json, unsealed
from zsad_jax.utils.threads import map_in_threads, num_cores

MAX_THREADS = 4  # that decode
PREPROCESS = ("image_size", "bit_depth", "resize", "rgb_first")  # kept in run.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command line besides the config; its help describes them."""

    paths: Sequence[str]
    out: pathlib.Path
    checkpoint: str | None = None
    folders: Folders = dataclasses.field(default_factory=Folders)
    references: str | None = None
    include_masks: bool = False
    prompt_family: str | None = None
    scale: tuple[float, float] | None = None
    threshold: Threshold | None = None
    pixel_threshold: float | None = None
    map_size: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """A model as run.json describes it; `image_size` to `rgb_first` are fields of `Preprocess`."""

    backbone: str
    weights_sha256: str
    image_size: int
    bit_depth: int
    resize: Literal["bilinear", "bicubic"]
    rgb_first: bool
    method: str
    method_config: Mapping[str, Any]
    prompts: str  # their source
    prompts_sha256: str | None  # of learned ones
    image_score: str
    score_range: Sequence[float] | None  # (low, high); None if it is unknown
    map_range: Sequence[float] | None
    demonstration: bool
    key: str  # of everything but the image and its category that scores and maps depend on
    # Of the options and files that the model is made of, known without reading the weights.
    inputs: str


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A detector whose weights are read for the first image to be scored.

    What is known of it without them comes from run.json, if an earlier run used the same files and options.
    A repeated run over CLIP ViT-L/14 with nothing to score takes 1.6 s instead of 7 to 9 s.

    """

    description: Description
    folders: Folders
    batch_size: int
    num_workers: int  # threads that decode
    load: Callable[[], Detector]
    references: Mapping[str, str]  # the SHA-256 of each image

    @functools.cached_property
    def detector(self) -> Detector:
        """The detector; its weights are read at the first access."""
        return self.load()

    @property
    def preprocess(self) -> Preprocess:
        """The preparation of images, without the normalization."""
        return Preprocess(**{name: getattr(self.description, name) for name in PREPROCESS})

    def key_of(self, image: str) -> str:
        """Returns the key of all that the score and the map of an image depend on, but its file."""
        category = self.folders.of(image).category
        return fingerprint(self.description.key, category, *self.references.values())

    @property
    def warning(self) -> str:
        """The warning in every output, or ""."""
        return DEMONSTRATION if self.description.demonstration else ""


class ImageFile(NamedTuple):
    """An image file, decoded once: at the model's size, and as a panel for its figure."""

    path: str
    pixels: UInt8[np.ndarray, "S S 3"]
    panel: Picture
    size: tuple[int, int]  # (width, height) in pixels
    sha256: str
    notes: tuple[Issue, ...] = ()  # what decoding changed


class ScoredImage(NamedTuple):
    """An image with its score, its map, and the seconds that the model took."""

    file: ImageFile
    score: float
    anomaly_map: Float[np.ndarray, "S S"]
    seconds: float


def prepare_model(
    experiment: Experiment, options: Options, references: Sequence[str], *, num_images: int
) -> Model:
    """Prepares the model; weights are not read if an earlier run with the same files described it.

    Prompts: the given checkpoint, else the config's for its auxiliary dataset, else those included with the
    backbone, else fixed prompts with a warning. `references` are image files of the only category, and
    `num_images` bounds the batch.

    Raises `UserError` if something is unknown, missing or does not fit.
    """
    if options.prompt_family is not None:
        name = experiment.method["name"]
        # The flag would otherwise fail as an unknown key of the config.
        if not hasattr(config_class(name), "prompt_family"):
            raise UserError(
                f"--prompts={options.prompt_family} selects a prompt family, but {name} has none. Remove the"
                " flag, or use a method with prompt families, such as tipsomaly."
            )
        method = {**experiment.method, "prompt_family": options.prompt_family}
        experiment = dataclasses.replace(experiment, method=method)
    if options.checkpoint:  # before weights are downloaded
        prompt_files.find(options.checkpoint)
    # Batches are padded to one size, so a single image would cost as much as a full batch.
    batch_size = min(experiment.batch_size, num_images)
    num_workers = experiment.num_workers or min(num_cores(), MAX_THREADS)
    digests = {image: files.digest(image) for image in references}
    load = functools.partial(_load, experiment, options, batch_size, references)
    earlier = _earlier_description(options.out)
    if earlier is None and experiment.backbone["name"] in RELEASES:  # before weights are downloaded
        over = describe_backbone(experiment.backbone["name"])
        check_references(experiment.main_method(over), bool(references), single=True)
    inputs = _describe_inputs(experiment, options)
    if earlier is None or earlier.inputs != inputs:
        detector = load()
        described = describe_detector(experiment, detector, inputs)
        return Model(described, options.folders, batch_size, num_workers, lambda: detector, digests)

    def load_known() -> Detector:
        detector = load()
        # Files may change and keep their size and date.
        if prediction_key(experiment, detector) != earlier.key:
            raise UserError(
                f"The weights or prompts of {earlier.backbone} differ from those in run.json, although their"
                f" dates are the same. Delete {options.out / 'run.json'}, or choose another --out."
            )
        return detector

    return Model(earlier, options.folders, batch_size, num_workers, load_known, digests)


def _load(
    experiment: Experiment, options: Options, batch_size: int, references: Sequence[str]
) -> Detector:
    backbone = experiment.load_backbone()
    method = experiment.main_method(backbone)
    default = experiment.checkpoints.get(experiment.auxiliary or "")
    params, file = choose_params(method, backbone, options.checkpoint, default=default)
    resized = [resize(image, backbone.preprocess) for image in references]
    return make_detector(
        backbone,
        method,
        params,
        prompts=file.description,
        categories=options.folders.categories,
        references=[np.stack(resized)] if resized else None,
        score=experiment.image_score,
        batch_size=batch_size,
        model_devices=experiment.model_devices,
    )


def describe_detector(experiment: Experiment, detector: Detector, inputs: str) -> Description:
    """Returns the description of a detector that was made of an experiment and `inputs`."""
    preprocess, method = detector.backbone.preprocess, detector.method
    return Description(
        backbone=detector.backbone.name,
        weights_sha256=detector.backbone.digest,
        **{name: getattr(preprocess, name) for name in PREPROCESS},
        method=method.name,
        method_config=dataclasses.asdict(method.config),
        prompts=detector.prompts,
        prompts_sha256=prompt_files.digest(detector.params) if detector.params else None,
        image_score=detector.image_score,
        score_range=method.score_range,
        map_range=method.map_range,
        demonstration=detector.backbone.demonstration,
        key=prediction_key(experiment, detector),
        inputs=inputs,
    )


def _earlier_description(out: pathlib.Path) -> Description | None:
    """Returns the model that a finished run's run.json describes; None if there is none."""
    try:
        stored = parse_json((out / "run.json").read_bytes())["model"]
        return Description(**(unsealed(stored) or {}))
    except (OSError, ValueError, KeyError, TypeError):  # missing, edited or older
        return None


def _describe_inputs(experiment: Experiment, options: Options) -> str:
    """Returns the key of all that a model is made of."""
    names = experiment.method["name"], experiment.backbone["name"]
    default = experiment.checkpoints.get(experiment.auxiliary or "")
    file = prompt_files.choose(*names, options.checkpoint, default=default)
    return inputs_key(experiment, file)


def score_images(
    model: Model, images: Sequence[str], issues: list[Issue], *, label: str, map_size: int
) -> Iterator[ScoredImage]:
    """Scores images in order; those that cannot be read are logged and added to `issues`.

    `label` is for the progress bar, and `map_size` is the longest side of figures in pixels.
    """
    read = functools.partial(read_image, preprocess=model.preprocess, map_size=map_size)
    decoded = map_in_threads(read, images, num_workers=model.num_workers)
    size = model.batch_size
    batches = iter(lambda: [*itertools.islice(decoded, size)], [])
    for batch in progress(batches, total=len(images), label=label, step=size):
        readable: list[ImageFile] = []
        for one in batch:
            if isinstance(one, ImageFile):
                readable.append(one)
                continue
            logging.warning("Skipping %s", one)
            issues.append(one)
        if not readable:
            continue
        detector = model.detector
        _ = detector.scorer  # compiled here for the first batch, not in the seconds below
        start = time.monotonic()
        shown = (model.folders.of(one.path).category for one in readable)
        predicted = detector.predict_resized(
            np.stack([one.pixels for one in readable]),
            np.array([detector.categories.index(one) for one in shown], np.int32),
        )
        seconds = (time.monotonic() - start) / len(readable)
        for one, score, anomaly_map in zip(readable, *predicted, strict=True):
            yield ScoredImage(one, float(score), anomaly_map, seconds)


def read_image(path: str, preprocess: Preprocess, map_size: int) -> ImageFile | Issue:
    """Decodes an image, or returns the issue of one that cannot be read."""
    try:
        with one_large_image(path):
            decoded = open_image(path, bit_depth=preprocess.bit_depth)
            image = decoded.image
            panel = resize_panel(image, fit_map(image.size, min(map_size, LONGEST_PANEL)))
            pixels, sha256 = resize_image(image, preprocess), files.digest(path)
            return ImageFile(path, pixels, panel, image.size, sha256, decoded.notes)
    except UnreadableImage as error:
        return Issue("image_unreadable", path, error.reason)
    except Exception as error:  # one file must not end the run, whatever a decoder raises
        return Issue("image_unreadable", path, f"{type(error).__name__}: {error}")


def fit_map(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Returns the (width, height) of an image's map: no larger than the image and than `longest`."""
    factor = min(longest / max(size), 1)
    width, height = (max(round(side * factor), 1) for side in size)
    return width, height
