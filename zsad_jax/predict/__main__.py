"""The command for a user's own images: a score, a map and a picture of each.

python -m zsad_jax.predict PATH ... --config configs/tipsomaly.py --out DIR

PATH is a file, a folder (with all its subfolders) or a pattern. DIR gets predictions.jsonl, maps/, figures/
and run.json. The same command again scores only new images.
"""

import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging

from zsad_jax.data.folder import Found, find_images
from zsad_jax.data.issues import Issue, group_issues, issues_to_json, summarize_issues
from zsad_jax.experiment import config_flag
from zsad_jax.experiment.cache import fingerprint
from zsad_jax.experiment.config import Experiment
from zsad_jax.experiment.run_info import Stopwatch, describe_run
from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES
from zsad_jax.predict import thresholds
from zsad_jax.predict.outputs import COLUMNS, FILES, Journal, Record, Writer, is_output
from zsad_jax.predict.score import Model, Options, ScoredImage, prepare_model, score_images
from zsad_jax.utils import command_line, files
from zsad_jax.utils.command_line import log_plainly
from zsad_jax.utils.errors import UserError, plural
from zsad_jax.utils.threads import map_in_threads

flags.adopt_module_key_flags(config_flag)
_OUT = flags.DEFINE_string("out", None, "Folder of the results.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Learned prompts, a released name or a file; default: the config's."
)
_CATEGORY = flags.DEFINE_string("category", "object", "What the images show ('metal nut').")
_PROMPTS = flags.DEFINE_enum(
    "prompts", None, list(PROMPT_FAMILIES), "The sentences' family; default: the config's."
)
_SCALE = flags.DEFINE_string(
    "scale", None, "LOW,HIGH of the pictures' colours; default: the method's fixed range."
)
_THRESHOLD = flags.DEFINE_string(
    "threshold",
    None,
    "Images with score >= threshold are anomalous. A number (0.6), or FOLDER:QUANTILE (good_images:0.99): the"
    " lowest threshold with this share of known-good images below it. Default: scores only, no decision.",
)
_PIXEL_THRESHOLD = flags.DEFINE_float(
    "pixel_threshold", None, "Also write a mask and the regions where map >= pixel_threshold."
)
_MAP_SIZE = flags.DEFINE_integer(
    "map_size", 1024, "Longest side of maps and pictures, in pixels.", lower_bound=1
)
_DEPTH = flags.DEFINE_integer(
    "depth",
    None,
    "Bits in use in 16-bit images (12 for many cameras); default: the config's, 16.",
    lower_bound=8,
    upper_bound=16,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images at a time; default: the config's.", lower_bound=1
)
MAX_WRITERS = 4


class Outcome(NamedTuple):
    """The images of a run, records of those that are scored (`reused` of them earlier), and issues."""

    images: Sequence[str]
    records: Sequence[Record]
    reused: int
    issues: Sequence[Issue]
    ignored: Sequence[Issue]


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
    shown = (issue for issue in (*found.ignored, *good.ignored) if issue.kind != "hidden")
    for kind in group_issues(dict.fromkeys(shown)):
        logging.warning("Ignoring %s", summarize_issues(kind))
    with files.alone(options.out, (*FILES, "masks")):
        num_images = max(len(found.images), len(good.images))
        model = prepare_model(experiment, options, num_images=num_images)
        _check_pixel_threshold(options, model)
        _print_model(model)
        _write_warning(options.out, model.warning)
        clock.lap("start")
        threshold, described = _settle_threshold(options, model, good, experiment.num_workers)
        clock.lap("known-good images")
        low, high = model.facts["map_range"]
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
        _write_run(model, clock, writer, outcome, described)
    if not outcome.records:
        raise UserError(
            f"None of the {len(found.images)} images could be read; the first: {outcome.issues[0]}."
        )
    _print_outcome(outcome, writer)


def _without_outputs(found: Found, out: pathlib.Path) -> Found:
    """Ignores the results of earlier runs, if they are among the images."""
    outputs = {image: Issue("output", image) for image in found.images if is_output(image, out)}
    if len(outputs) == len(found.images):
        raise UserError(f"All of the {len(outputs)} images are results of an earlier run in {out}.")
    ignored = [
        Issue("output", issue.file) if is_output(issue.file, out) else issue
        for issue in found.ignored
    ]
    images = [image for image in found.images if image not in outputs]
    return Found(images, [*outputs.values(), *ignored])


def _check_pixel_threshold(options: Options, model: Model) -> None:
    low, high = model.facts["map_range"]
    if options.pixel_threshold is not None and not low < options.pixel_threshold <= high:
        raise UserError(
            f"--pixel_threshold={options.pixel_threshold:g} is outside the range of the maps of"
            f" {model.facts['method']}; give more than {low:g} and at most {high:g}."
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
    if asked is None or asked.value is not None:
        value = None if asked is None else asked.value
        return value, None if value is None else {"value": value, "from": "the command line"}
    journal = Journal(options.out / "known_good.jsonl", model.facts["key"])
    journal.reuse(good.images)
    pending = [image for image in good.images if image not in journal]
    issues: list[Issue] = []
    for one in score_images(
        model, pending, issues, label="known-good images", map_size=1, num_workers=num_workers
    ):
        score = thresholds.shortest(one.score)
        journal.add({"path": one.file.path, "score": score, "sha256": one.file.sha256})
    scores = [record["score"] for record in journal.finish(good.images)]
    if not scores:
        raise UserError(
            f"None of the known-good images in {asked.good} could be read; the first: {issues[0]}."
        )
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


def _settings(writer: Writer) -> dict[str, Any]:
    names = ("scale", "threshold", "pixel_threshold", "map_size")
    return {name: getattr(writer, name) for name in names}


def _score_all(model: Model, found: Found, writer: Writer, num_workers: int | None) -> Outcome:
    """Scores the images that are not finished."""
    images = found.images
    key = fingerprint(model.facts["key"], _settings(writer), model.warning)
    journal = Journal(writer.folder / "predictions.jsonl", key)
    reused = journal.reuse(images)
    others = journal.others(images)
    if others:
        rows = plural(others, "earlier row")
        remedy = "Give other images an --out of their own."
        logging.warning("Removing %s of other images from %s. %s", rows, journal.path, remedy)
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
                f"Cannot write to {writer.folder} ({error.strerror or error}). Make room or choose"
                " another --out. Nothing finished is lost."
            ) from error
        except Exception as error:  # one image must not end the run
            return Issue("image_unreadable", one.file.path, f"{type(error).__name__}: {error}")
        return None

    num_writers = min(os.cpu_count() or 1, MAX_WRITERS)
    for issue in map_in_threads(write, scored, num_workers=num_writers):
        if issue is not None:
            logging.warning("Skipped %s", issue)
            issues.append(issue)


def _write_run(
    model: Model,
    clock: Stopwatch,
    writer: Writer,
    outcome: Outcome,
    threshold: dict[str, Any] | None,
) -> None:
    facts = model.facts
    digest, demonstration = facts["weights_sha256"], facts["demonstration"]
    run = describe_run(clock, (), digest=digest, demonstration=demonstration) | {
        "warning": model.warning or None,
        "num_files": len(outcome.images) + len(outcome.ignored),
        "num_images": len(outcome.images),
        "num_scored": len(outcome.records) - outcome.reused,
        "num_reused": outcome.reused,
        "num_unreadable": len(outcome.issues),
        "num_ignored": len(outcome.ignored),
        "issues": issues_to_json(outcome.issues),
        "ignored": issues_to_json(outcome.ignored),
        "model": facts,
        "settings": _settings(writer),
        "threshold": threshold,
        "columns": COLUMNS,
    }
    files.write_json(writer.folder / "run.json", run)


def _print_model(model: Model) -> None:
    facts = model.facts
    family = facts["method_config"].get("prompt_family")
    print(f"model    {facts['method']} over {facts['backbone']}, {facts['image_size']} pixels")
    print(f"prompts  {facts['prompts']}" + (f"; {family} words" if family else ""))
    print(f'category "{facts["category"]}", image score {facts["image_score"]}')
    if model.warning:
        print(model.warning)


def _print_outcome(outcome: Outcome, writer: Writer) -> None:
    count = len(outcome.records)
    print(
        f"Scored {plural(count - outcome.reused, 'image')} ({outcome.reused} reused from an earlier run,"
        f" {len(outcome.issues)} unreadable, {plural(len(outcome.ignored), 'file')} ignored)."
    )
    if writer.threshold is not None:
        found = sum(record["decision"] == "anomalous" for record in outcome.records)
        threshold = f"{writer.threshold:.9g}"
        print(f"{found} anomalous, {count - found} normal; the threshold is {threshold}.")
    warning = f" {writer.warning}" if writer.warning else ""
    print(f"The results are in {writer.folder}.{warning}")


def main(argv: list[str]) -> None:
    """Scores the images of the command line."""

    def body() -> None:
        if _OUT.value is None:
            raise UserError("Name a folder for the results: --out DIR.")
        if len(argv) < 2:
            raise UserError("Name images: files, folders or patterns.")
        experiment = config_flag.read_experiment()
        keys = re.compile(r"-*[\w.]+=[^*?]*")
        missing = [path for path in argv[1:] if not os.path.lexists(path)]
        config_flag.reject_strays([path for path in missing if keys.fullmatch(path)])
        if _BATCH_SIZE.value is not None:
            experiment = dataclasses.replace(experiment, batch_size=_BATCH_SIZE.value)
        if _DEPTH.value is not None:
            backbone = {**experiment.backbone, "bit_depth": _DEPTH.value}
            experiment = dataclasses.replace(experiment, backbone=backbone)
        options = Options(
            paths=argv[1:],
            out=pathlib.Path(_OUT.value),
            checkpoint=_CHECKPOINT.value,
            category=_CATEGORY.value,
            prompt_family=_PROMPTS.value,
            scale=None if _SCALE.value is None else thresholds.parse_scale(_SCALE.value),
            threshold=(
                None if _THRESHOLD.value is None else thresholds.parse_threshold(_THRESHOLD.value)
            ),
            pixel_threshold=_PIXEL_THRESHOLD.value,
            map_size=_MAP_SIZE.value,
        )
        log_plainly()
        predict(experiment, options)

    sys.exit(command_line.guarded(body))


if __name__ == "__main__":
    app.run(main, flags_parser=config_flag.flags_parser("zsad_jax.predict"))
