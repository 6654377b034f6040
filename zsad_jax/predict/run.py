"""Scores a user's images: known-good images for the threshold, then the images, then run.json."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import logging

from zsad_jax.data.folder import Found, find_images
from zsad_jax.data.issues import UNREADABLE, Issue, group_issues, issues_to_json, summarize_issues
from zsad_jax.experiment.cache import outputs_key
from zsad_jax.experiment.config import Experiment
from zsad_jax.experiment.run_info import Stopwatch, describe_process
from zsad_jax.predict import thresholds
from zsad_jax.predict.outputs import COLUMNS, FILES, OUTPUTS, Journal, Record, Writer, is_output
from zsad_jax.predict.score import Model, Options, ScoredImage, prepare_model, score_images
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError, plural
from zsad_jax.utils.threads import map_in_threads

MAX_WRITERS = 4
SETTINGS = ("scale", "threshold", "pixel_threshold", "map_size")  # of a `Writer`, for run.json


class Outcome(NamedTuple):
    """The images of a run, records of those that are scored (`reused` of them earlier), and issues."""

    images: Sequence[str]
    records: Sequence[Record]
    reused: int
    issues: Sequence[Issue]
    ignored: Sequence[Issue]

    @property
    def num_unreadable(self) -> int:
        """The number of images that cannot be read."""
        return sum(issue.kind in UNREADABLE for issue in self.issues)

    @property
    def num_failed(self) -> int:
        """The number of images whose outputs could not be written."""
        return len(self.issues) - self.num_unreadable


def predict(experiment: Experiment, options: Options) -> None:
    """Scores images and writes the results to a folder.

    Raises:
      UserError: something is wrong or missing, raised before long work; or no image can be read.
    """
    clock = Stopwatch()
    found = _without_outputs(find_images(options.paths), options.out)
    good = Found([], [])
    if options.threshold is not None and options.threshold.good:
        good = _without_outputs(find_images([options.threshold.good]), options.out)
    ignored = (issue for issue in (*found.ignored, *good.ignored) if issue.kind != "hidden")
    # A file may be among the images and among the known-good ones.
    for kind in group_issues(dict.fromkeys(ignored)):
        logging.warning("Ignoring %s", summarize_issues(kind))
    # Two runs that share a folder would replace each other's records.
    with files.alone(options.out, (*FILES, "masks")):
        files.sweep(options.out, [folder for folder, _ in OUTPUTS.values()])
        # One compilation serves both.
        num_images = max(len(found.images), len(good.images))
        model = prepare_model(experiment, options, num_images=num_images)
        _check_pixel_threshold(options, model)
        _print_model(model)
        _write_warning(options.out, model.warning)
        clock.lap("start")
        threshold, description = _settle_threshold(options, model, good, experiment.num_workers)
        clock.lap("known-good images")
        low, high = model.description.map_range
        writer = Writer(
            folder=options.out,
            scale=options.scale or (low, high),
            map_size=options.map_size,
            threshold=threshold,
            pixel_threshold=options.pixel_threshold,
            warning=model.warning,
        )
        outcome = _score_all(model, found, writer, experiment.num_workers)
        clock.lap("images")
        _write_run(model, clock, writer, outcome, description)
    if not outcome.records:
        raise _none_readable("images", outcome.issues)
    _print_outcome(outcome, writer)


def _without_outputs(found: Found, out: pathlib.Path) -> Found:
    """Moves the results of earlier runs from the images to the ignored files."""
    outputs = {image: Issue("output", image) for image in found.images if is_output(image, out)}
    if len(outputs) == len(found.images):
        raise UserError(
            f"Found only results of an earlier run in {out} ({plural(len(outputs), 'image')}). Pass the"
            " folder of the original images."
        )
    ignored = [
        Issue("output", issue.file) if is_output(issue.file, out) else issue
        for issue in found.ignored
    ]
    images = [image for image in found.images if image not in outputs]
    return Found(images, [*outputs.values(), *ignored])


def _check_pixel_threshold(options: Options, model: Model) -> None:
    low, high = model.description.map_range
    # At the low end every pixel is anomalous, above the high end none can be.
    if options.pixel_threshold is not None and not low < options.pixel_threshold <= high:
        raise UserError(
            f"--pixel_threshold={options.pixel_threshold:g} is outside the range of the anomaly maps of"
            f" {model.description.method}. Give a number above {low:g} and at most {high:g}."
        )


def _write_warning(out: pathlib.Path, warning: str) -> None:
    """Writes a file for the outputs that cannot hold the warning: maps and scores of known-good images."""
    path = out / "WARNING.txt"
    if warning:
        files.write_text(path, warning + "\n")
    else:
        path.unlink(missing_ok=True)  # of an earlier run with another model


def _settle_threshold(
    options: Options, model: Model, good: Found, num_workers: int | None
) -> tuple[float | None, dict[str, Any] | None]:
    """Returns the threshold as a number, and its description in run.json."""
    asked = options.threshold
    if asked is None:
        return None, None
    if asked.value is not None:
        return asked.value, {"value": asked.value, "from": "the command line"}
    journal = Journal(options.out / "known_good.jsonl", model.description.key)
    journal.reuse(good.images)
    pending = [image for image in good.images if image not in journal]
    issues: list[Issue] = []
    # The maps are not used: figures of one pixel cost nothing.
    for one in score_images(
        model, pending, issues, label="known-good images", map_size=1, num_workers=num_workers
    ):
        score = thresholds.shortest(one.score)
        journal.add({"path": one.file.path, "score": score, "sha256": one.file.sha256})
    scores = [record["score"] for record in journal.finish(good.images)]
    if not scores:
        raise _none_readable(f"known-good images in {asked.good}", issues)
    value = thresholds.quantile_threshold(scores, asked.quantile)
    doubt = thresholds.describe_support(len(scores), asked.quantile)
    if doubt:
        logging.warning(doubt)
    return value, {
        "value": value,
        "from": asked.good,
        "quantile": asked.quantile,
        "num_images": len(scores),
        "issues": issues_to_json(issues),
        "ignored": issues_to_json(good.ignored),
        "warning": doubt or None,
    }


def _none_readable(what: str, issues: Sequence[Issue]) -> UserError:
    return UserError(
        f"Cannot score any of the {what} ({len(issues)} failed, the first: {issues[0]}). Pass at least one"
        " readable image."
    )


def _settings(writer: Writer) -> dict[str, Any]:
    return {name: getattr(writer, name) for name in SETTINGS}


def _score_all(model: Model, found: Found, writer: Writer, num_workers: int | None) -> Outcome:
    """Scores the images that are not finished."""
    images = found.images
    # Threshold and color scale are part of the outputs, so results of other settings are not reused.
    key = outputs_key(model.description.key, _settings(writer), model.warning)
    journal = Journal(writer.folder / "predictions.jsonl", key)
    reused = journal.reuse(images)
    others = journal.others(images)
    if others:
        logging.warning(
            "Removing %s of other images from %s. Use a separate --out for each set of images.",
            plural(others, "row"),
            journal.path,
        )
    pending = [image for image in images if image not in journal]
    issues: list[Issue] = []
    if pending:  # until all is done, no run.json describes these records
        (writer.folder / "run.json").unlink(missing_ok=True)
        scored = score_images(
            model, pending, issues, label="score", map_size=writer.map_size, num_workers=num_workers
        )
        _write_all(scored, journal, writer, issues)
    return Outcome(images, journal.finish(images), reused, issues, found.ignored)


def _write_all(
    scored: Iterator[ScoredImage], journal: Journal, writer: Writer, issues: list[Issue]
) -> None:
    """Writes outputs while the next batch is computed."""

    def write(one: ScoredImage) -> Issue | None:
        try:
            journal.add(writer.write(one))
        except OSError as error:
            raise UserError(
                f"Cannot write to {writer.folder} ({error.strerror or error}). Free disk space or choose"
                " another --out. Finished images are kept."
            ) from error
        except Exception as error:  # one image must not end the run
            return Issue("output_failed", one.file.path, f"{type(error).__name__}: {error}")
        return None

    num_writers = min(os.cpu_count() or 1, MAX_WRITERS)
    for issue in map_in_threads(write, scored, num_workers=num_writers):
        if issue is not None:
            logging.warning("Skipping %s", issue)
            issues.append(issue)


def _write_run(
    model: Model,
    clock: Stopwatch,
    writer: Writer,
    outcome: Outcome,
    threshold: dict[str, Any] | None,
) -> None:
    run = describe_process(clock) | {
        "backbone_sha256": model.description.weights_sha256,
        "demonstration": model.description.demonstration,
        "warning": model.warning or None,
        "num_files": len(outcome.images) + len(outcome.ignored),
        "num_images": len(outcome.images),
        "num_scored": len(outcome.records) - outcome.reused,
        "num_reused": outcome.reused,
        "num_unreadable": outcome.num_unreadable,
        "num_failed": outcome.num_failed,
        "num_ignored": len(outcome.ignored),
        "issues": issues_to_json(outcome.issues),
        "ignored": issues_to_json(outcome.ignored),
        "model": dataclasses.asdict(model.description),
        "settings": _settings(writer),
        "threshold": threshold,
        "columns": COLUMNS,
    }
    files.write_json(writer.folder / "run.json", run)


def _print_model(model: Model) -> None:
    shown = model.description
    family = shown.method_config.get("prompt_family")
    print(f"model     {shown.method} on {shown.backbone}, {shown.image_size} px")
    print(f"prompts   {shown.prompts}" + (f"; prompt family: {family}" if family else ""))
    print(f'category  "{shown.category}"; image score: {shown.image_score}')
    if model.warning:
        print(model.warning)


def _print_outcome(outcome: Outcome, writer: Writer) -> None:
    count = len(outcome.records)
    counts = [
        f"{outcome.reused} reused from an earlier run",
        f"{outcome.num_unreadable} unreadable",
        *[f"{outcome.num_failed} failed"] * bool(outcome.num_failed),
        f"{plural(len(outcome.ignored), 'file')} ignored",
    ]
    print(f"Scored {plural(count - outcome.reused, 'image')} ({', '.join(counts)}).")
    if writer.threshold is not None:
        found = sum(record["decision"] == "anomalous" for record in outcome.records)
        print(f"{found} anomalous, {count - found} normal at the threshold {writer.threshold:.9g}.")
    warning = f" {writer.warning}" if writer.warning else ""
    print(f"Results are in {writer.folder}.{warning}")
