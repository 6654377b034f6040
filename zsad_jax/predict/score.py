"""From a config to scores of a user's own images: the model, made when needed, and its results in order."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float

from zsad_jax import __version__
from zsad_jax.backbones import Backbone
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.issues import Issue
from zsad_jax.data.loader import load_batches
from zsad_jax.data.preprocess import UnreadableImage, open_image
from zsad_jax.detector import Detector, choose_params, make_detector
from zsad_jax.experiment.cache import fingerprint
from zsad_jax.experiment.config import Experiment, to_json
from zsad_jax.methods import Method, config_class, image_score
from zsad_jax.methods.base import PyTree
from zsad_jax.methods.shared import prompt_files
from zsad_jax.report import DEMONSTRATION
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.progress import progress


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """What scores, made ready for images only when there is one to score.

    Attributes:
      params: the learned prompts, {} for none.
      prompts: where they are from, in words.
      category: what the images show.
      score: the image score's name.
      batch_size: images per compiled call.
      key: stands for all that scores and maps depend on beside the image.
    """

    backbone: Backbone
    method: Method
    params: PyTree
    prompts: str
    category: str
    score: str
    batch_size: int
    key: str

    @functools.cached_property
    def detector(self) -> Detector:
        """Prompts encoded, compiled once for images of all sizes."""
        return make_detector(
            self.backbone,
            self.method,
            self.params,
            prompts=self.prompts,
            category=self.category,
            score=self.score,
            batch_size=self.batch_size,
        ).compiled()

    def describe(self) -> dict[str, Any]:
        """What was used, for people and for run.json."""
        preprocess = self.backbone.preprocess
        return {
            "backbone": self.backbone.name,
            "weights_sha256": self.backbone.digest,
            "image_size": preprocess.image_size,
            "bit_depth": preprocess.bit_depth,
            "method": self.method.name,
            "method_config": dataclasses.asdict(self.method.config),
            "prompts": self.prompts,
            "prompts_sha256": prompt_files.digest(self.params) if self.params else None,
            "category": self.category,
            "image_score": self.score,
            "map_range": list(self.method.map_range),
            "demonstration": self.backbone.demonstration,
            "key": self.key,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A model as far as it is known without its weights, which are read for the first image to be scored.

    Attributes:
      facts: `Model.describe`, and what stands for the files that it is made of.
      load: reads the weights.
    """

    facts: Mapping[str, Any]
    load: Callable[[], Model]

    @functools.cached_property
    def model(self) -> Model:
        """The model itself."""
        model = self.load()
        if model.key != self.key:
            raise UserError(
                f"The weights or prompts of {self.facts['backbone']} are not what the earlier run.json says,"
                " although their dates are the same; delete it, or choose another --out."
            )
        return model

    @property
    def key(self) -> str:
        """Stands for all that scores and maps depend on beside the image."""
        return self.facts["key"]

    @property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return self.facts["weights_sha256"]

    @property
    def demonstration(self) -> bool:
        """Whether outputs are not for decisions."""
        return self.facts["demonstration"]

    @property
    def warning(self) -> str:
        """What every output has to say, or ""."""
        return DEMONSTRATION if self.demonstration else ""

    @property
    def map_range(self) -> tuple[float, float]:
        """(low, high) between which maps lie."""
        low, high = self.facts["map_range"]
        return low, high


class Scored(NamedTuple):
    """An image's score and map, and the seconds that they took."""

    path: str
    score: float
    anomaly_map: Float[np.ndarray, "S S"]
    seconds: float


def prepare_model(
    experiment: Experiment,
    *,
    earlier: Mapping[str, Any],
    checkpoint: str | None,
    category: str,
    prompt_family: str | None,
    num_images: int,
) -> Prepared:
    """The model, not read where an earlier run with the same files has left what is known of it.

    Args:
      earlier: the facts that an earlier run has left; {}: none.
      experiment, checkpoint, category, prompt_family, num_images: as for `load_model`.

    Raises:
      UserError: something is unknown, missing or does not fit.
    """
    load = functools.partial(
        load_model,
        experiment,
        checkpoint=checkpoint,
        category=category,
        prompt_family=prompt_family,
        num_images=num_images,
    )
    options = (checkpoint, category, prompt_family)
    if "inputs" in earlier and earlier["inputs"] == _describe_inputs(experiment, *options):
        return Prepared(earlier, load)
    model = load()
    inputs = _describe_inputs(experiment, *options)
    return Prepared(model.describe() | {"inputs": inputs}, lambda: model)


def load_model(
    experiment: Experiment,
    *,
    checkpoint: str | None,
    category: str,
    prompt_family: str | None,
    num_images: int,
) -> Model:
    """The backbone and the method with its prompts, nothing computed yet.

    Prompts: the given checkpoint, else the config's for its auxiliary set, else those that ship with the
    backbone, else fixed prompts with a warning.

    Args:
      experiment: the config.
      checkpoint, category, prompt_family: as in the command's options.
      num_images: bounds the batch.

    Raises:
      UserError: something is unknown, missing or does not fit.
    """
    if checkpoint:  # before weights are downloaded
        prompt_files.find(checkpoint)
    name = experiment.method["name"]
    changes = {} if prompt_family is None else {"prompt_family": prompt_family}
    if not set(changes) <= {field.name for field in dataclasses.fields(config_class(name))}:
        raise UserError(
            f"--prompts chooses among TIPSomaly's sentences, and {name} has none of them; leave it out."
        )
    experiment = dataclasses.replace(experiment, method={**experiment.method, **changes})
    backbone = experiment.load_backbone()
    method = experiment.variants()[0].make(backbone)
    score = image_score(method, experiment.image_score)
    if checkpoint is None and prompt_files.expected(method, backbone):
        checkpoint = _configured_checkpoint(experiment)
    params, prompts = choose_params(method, backbone, checkpoint)
    return Model(
        backbone=backbone,
        method=method,
        params=params,
        prompts=prompts,
        category=category,
        score=score,
        batch_size=min(experiment.batch_size, num_images),
        key=fingerprint(
            [__version__, backbone.digest, experiment.tokenizer_digest()],
            to_json(experiment)["backbone"],
            [method.name, dataclasses.asdict(method.config), score],
            [prompt_files.digest(params), category],
        ),
    )


def score_images(
    prepared: Prepared,
    images: Sequence[str],
    issues: list[Issue],
    *,
    label: str,
    num_workers: int | None = None,
) -> Iterator[Scored]:
    """Scores images in order; those that cannot be read are reported and added to `issues`.

    Args:
      prepared: what scores; loaded when an image can be read.
      images: paths.
      issues: is added to.
      label: what is being done, for the progress bar.
      num_workers: decoding processes; None chooses.
    """
    images = _from_first_readable(images, issues)
    if not images:
        return
    model = prepared.model
    samples = [Sample(image=image, file_name=image) for image in images]
    size = model.batch_size
    batches = load_batches(
        Samples(label, samples), model.backbone.preprocess, batch_size=size, num_workers=num_workers
    )
    for batch in progress(batches, total=len(images), label=label, step=size):
        for issue in batch.issues:
            logging.warning("Skipped %s", issue)
        issues += batch.issues
        rows = np.flatnonzero(batch.valid)
        if not len(rows):
            continue
        detector = model.detector  # made now, if it is the first time: not to be counted below
        start = time.monotonic()
        predicted = detector.predict_resized(batch.images[rows])
        seconds = (time.monotonic() - start) / len(rows)
        for row, score, anomaly_map in zip(rows, *predicted, strict=True):
            yield Scored(images[batch.index[row]], float(score), anomaly_map, seconds)


def _from_first_readable(images: Sequence[str], issues: list[Issue]) -> Sequence[str]:
    """Skips what cannot be read before the first image that can, so that no model is loaded for it."""
    for position, image in enumerate(images):
        try:
            open_image(image)
        except UnreadableImage as error:
            issues.append(Issue("image_unreadable", image, error.reason))
            logging.warning("Skipped %s", issues[-1])
        else:
            return images[position:]
    return []


def _configured_checkpoint(experiment: Experiment) -> str | None:
    return experiment.checkpoints.get(experiment.auxiliary or "")


def _describe_inputs(
    experiment: Experiment, checkpoint: str | None, category: str, prompt_family: str | None
) -> str:
    """Stands for the options and, by place, size and date, for all files that a model is made of."""
    configured = _configured_checkpoint(experiment)
    names = experiment.method["name"], experiment.backbone["name"]
    chosen = [prompt_files.choose(*names, given) for given in (checkpoint, configured)]
    paths = [*experiment.locate_backbone(), *(one.path for one in chosen if one)]
    config = to_json(experiment)
    return fingerprint(
        __version__,
        [config[part] for part in ("method", "backbone", "image_score")],
        [checkpoint, configured, category, prompt_family],
        [_stamp(path) for path in paths if path is not None],
    )


def _stamp(path: files.PathLike) -> list[Any]:
    try:
        found = os.stat(path)
    except OSError:
        return [os.fspath(path)]
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns]
