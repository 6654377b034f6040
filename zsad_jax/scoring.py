"""From a config to scores of a user's own images: the model, made when needed, and its results in order."""

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float

from zsad_jax import __version__, learned
from zsad_jax.backbones import Backbone
from zsad_jax.data.base import Fault, Sample, Samples
from zsad_jax.data.loader import load_batches
from zsad_jax.detector import Detector, choose_params, make_detector
from zsad_jax.errors import UserError
from zsad_jax.experiment import Experiment, fingerprint, to_json
from zsad_jax.methods import Method, image_score, released
from zsad_jax.methods.base import PyTree
from zsad_jax.progress import progress
from zsad_jax.report import DEMONSTRATION


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

    @property
    def warning(self) -> str:
        """What every output has to say, or ""."""
        return DEMONSTRATION if self.backbone.demonstration else ""

    def describe(self) -> dict[str, Any]:
        """What was used, for people and for run.json."""
        preprocess = self.backbone.preprocess
        return {
            "backbone": self.backbone.name,
            "weights_sha256": self.backbone.digest,
            "image_size": preprocess.image_size,
            "method": self.method.name,
            "method_config": dataclasses.asdict(self.method.config),
            "prompts": self.prompts,
            "prompts_sha256": learned.digest(self.params) if self.params else None,
            "category": self.category,
            "image_score": self.score,
        }


class Scored(NamedTuple):
    """An image's score and map, and the seconds that they took."""

    path: str
    score: float
    anomaly_map: Float[np.ndarray, "S S"]
    seconds: float


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
      checkpoint: learned prompts: a released name or a file.
      category: what the images show.
      prompt_family: of the sentences; None: the config's.
      num_images: bounds the batch.

    Raises:
      UserError: something is unknown, missing or does not fit.
    """
    _check_checkpoint(checkpoint)
    changes = {} if prompt_family is None else {"prompt_family": prompt_family}
    backbone = experiment.load_backbone()
    method = experiment.make_method(backbone, **changes)
    score = image_score(method, experiment.image_score)
    if checkpoint is None and learned.learns(method, backbone):
        checkpoint = experiment.checkpoints.get(experiment.auxiliary or "")
    params, prompts = choose_params(method, backbone, checkpoint)
    key = fingerprint(
        [__version__, backbone.digest, to_json(experiment)["backbone"]],
        [method.name, dataclasses.asdict(method.config), score],
        [learned.digest(params), category],
    )
    return Model(
        backbone=backbone,
        method=method,
        params=params,
        prompts=prompts,
        category=category,
        score=score,
        batch_size=min(experiment.batch_size, num_images),
        key=key,
    )


def score_images(
    model: Model,
    images: Sequence[str],
    faults: list[Fault],
    *,
    label: str,
    num_workers: int | None = None,
) -> Iterator[Scored]:
    """Scores images in order; those that cannot be read are told and added to `faults`.

    Args:
      model: what scores.
      images: paths.
      faults: is added to.
      label: what is being done, for the progress bar.
      num_workers: decoding processes; None chooses.
    """
    if not images:
        return
    samples = [Sample(image=image, file_name=image) for image in images]
    size = model.batch_size
    batches = load_batches(
        Samples(label, samples), model.backbone.preprocess, batch_size=size, num_workers=num_workers
    )
    for batch in progress(batches, total=len(images), label=label, step=size):
        for fault in batch.faults:
            logging.warning("Skipped: %s.", fault.reason)
        faults += batch.faults
        rows = np.flatnonzero(batch.valid)
        if not len(rows):
            continue
        detector = model.detector  # made now, if it is the first time: not to be counted below
        start = time.monotonic()
        predicted = detector.predict_resized(batch.images[rows])
        seconds = (time.monotonic() - start) / len(rows)
        for row, score, anomaly_map in zip(rows, *predicted, strict=True):
            yield Scored(images[batch.index[row]], float(score), anomaly_map, seconds)


def _check_checkpoint(checkpoint: str | None) -> None:
    """Tells a wrong name before weights are fetched."""
    if checkpoint and not os.path.exists(checkpoint) and checkpoint not in released.names():
        raise UserError(
            f"--checkpoint {checkpoint} is neither a file nor a released name; known are"
            f" {', '.join(released.names())}."
        )
