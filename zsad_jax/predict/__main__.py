"""The command for a user's own images: a score, a map and a picture of each.

python -m zsad_jax.predict PATH ... --config configs/tipsomaly.py --out DIR

PATH is a file, a folder (with all its subfolders) or a pattern. DIR gets predictions.jsonl, maps/, figures/
and run.json. The same command again does only what is new.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import app, flags, logging

from zsad_jax.data.folder import Found, find_images
from zsad_jax.data.issues import Issue, group_issues, issues_to_json, summarize_issues
from zsad_jax.data.preprocess import UnreadableImage
from zsad_jax.experiment import config_flag
from zsad_jax.experiment.cache import fingerprint
from zsad_jax.experiment.config import Experiment
from zsad_jax.experiment.run_info import Stopwatch, describe_run
from zsad_jax.methods.shared.prompts import FAMILIES
from zsad_jax.predict import thresholds
from zsad_jax.predict.outputs import COLUMNS, FILES, Journal, Row, Writer, is_output
from zsad_jax.predict.score import Prepared, Scored, prepare_model, score_images
from zsad_jax.utils import command_line, files
from zsad_jax.utils.command_line import log_plainly
from zsad_jax.utils.errors import UserError, plural

flags.adopt_module_key_flags(config_flag)
_OUT = flags.DEFINE_string("out", None, "Folder of the results.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Learned prompts, a released name or a file; default: the config's."
)
_CATEGORY = flags.DEFINE_string("category", "object", "What the images show ('metal nut').")
_PROMPTS = flags.DEFINE_enum(
    "prompts", None, list(FAMILIES), "The sentences' family; default: the config's."
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says beside the config.

    Attributes:
      paths: files, folders and patterns.
      out: folder of the results.
      checkpoint: learned prompts: a released name or a file; None: the config's, or those that ship.
      category: what the images show.
      prompt_family: of the sentences; None: the config's.
      scale: (low, high) of the colours; None: the method's range.
      threshold: image scores from it on are anomalous; None: nothing is decided.
      pixel_threshold: map values from it on are anomalous; None: no masks and regions.
      map_size: longest side of maps and pictures, in pixels.
    """

    paths: Sequence[str]
    out: pathlib.Path
    checkpoint: str | None = None
    category: str = "object"
    prompt_family: str | None = None
    scale: tuple[float, float] | None = None
    threshold: thresholds.Threshold | None = None
    pixel_threshold: float | None = None
    map_size: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a run.

    Attributes:
      images: all that were asked for.
      rows: of those that were scored, now or by an earlier run.
      reused: how many an earlier run has scored.
      issues: those that could not be read.
      ignored: other files that were found.
    """

    images: Sequence[str]
    rows: Sequence[Row]
    reused: int
    issues: Sequence[Issue]
    ignored: Sequence[Issue]


def predict(experiment: Experiment, options: Options) -> None:
    """Scores images and leaves the results in a folder.

    Raises:
      UserError: something is wrong or missing, told before long work; or no image can be read.
    """
    clock = Stopwatch()
    images, ignored = _without_outputs(find_images(options.paths), options.out)
    asked = options.threshold
    good = Found([], [])
    if asked is not None and asked.good:
        good = _without_outputs(find_images([asked.good]), options.out)
    shown = (issue for issue in (*ignored, *good.ignored) if issue.kind != "hidden")
    for kind in group_issues(dict.fromkeys(shown)):
        logging.warning("Ignoring %s", summarize_issues(kind))
    with files.alone(options.out, (*FILES, "masks")):
        model = prepare_model(
            experiment,
            earlier=_earlier_facts(options.out),
            checkpoint=options.checkpoint,
            category=options.category,
            prompt_family=options.prompt_family,
            num_images=max(len(images), len(good.images)),
        )
        _check_pixel_threshold(options, model)
        _tell(model)
        _leave_warning(options.out, model.warning)
        clock.lap("start")
        threshold, words = _settle_threshold(options, model, good, experiment.num_workers)
        clock.lap("known-good images")
        writer = _make_writer(options, model, threshold)
        outcome = _score_all(model, images, ignored, writer, experiment.num_workers)
        clock.lap("images")
        _write_run(model, clock, writer, outcome, words)
    if not outcome.rows:
        raise UserError(
            f"None of the {len(images)} images could be read; the first: {outcome.issues[0]}."
        )
    _tell_results(outcome, writer)


def _earlier_facts(out: pathlib.Path) -> dict[str, Any]:
    """What a finished run has said of its model; {} where there is none."""
    try:
        facts = json.loads((out / "run.json").read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _make_writer(options: Options, model: Prepared, threshold: float | None) -> Writer:
    return Writer(
        folder=options.out,
        bit_depth=model.facts["bit_depth"],
        scale=options.scale or model.map_range,
        map_size=options.map_size,
        threshold=threshold,
        pixel_threshold=options.pixel_threshold,
        warning=model.warning,
    )


def _settings(writer: Writer) -> dict[str, Any]:
    names = ("scale", "threshold", "pixel_threshold", "map_size")
    return {name: getattr(writer, name) for name in names}


def _score_all(
    model: Prepared,
    images: Sequence[str],
    ignored: Sequence[Issue],
    writer: Writer,
    num_workers: int | None,
) -> Outcome:
    """Scores what is not finished."""
    key = fingerprint(model.key, _settings(writer), model.warning)
    journal = Journal(writer.folder / "predictions.jsonl", key)
    reused = journal.take_over(images)
    others = journal.others(images)
    if others:
        logging.warning(
            "%d earlier rows in %s are of other images and are left out; give other images an --out of"
            " their own.", others, journal.path,
        )  # fmt: skip
    pending = [image for image in images if image not in journal]
    issues: list[Issue] = []
    if pending:  # until all is done, no run.json speaks for these rows
        (writer.folder / "run.json").unlink(missing_ok=True)
        scored = score_images(model, pending, issues, label="score", num_workers=num_workers)
        _write_all(scored, journal, writer, issues)
    rows = journal.finish(images)
    return Outcome(images=images, rows=rows, reused=reused, issues=issues, ignored=ignored)


def _write_all(
    scored: Iterator[Scored], journal: Journal, writer: Writer, issues: list[Issue]
) -> None:
    """Writes outputs while the next batch is computed."""
    writers = min(os.cpu_count() or 1, MAX_WRITERS)
    waiting: collections.deque[tuple[str, concurrent.futures.Future[None]]] = collections.deque()

    def wait(limit: int) -> None:
        while len(waiting) > limit:
            path, future = waiting.popleft()
            try:
                future.result()
            except UnreadableImage as error:  # gone or changed since it was scored
                issues.append(Issue("image_changed", path, error.reason))
                logging.warning("Skipped %s", issues[-1])
            except OSError as error:
                raise UserError(
                    f"Cannot write to {writer.folder} ({error.strerror or error}); make room or choose"
                    " another --out. Nothing finished is lost."
                ) from error
            except Exception as error:  # one image must not end the run
                issues.append(Issue("image_unreadable", path, f"{type(error).__name__}: {error}"))
                logging.warning("Skipped %s", issues[-1])

    with concurrent.futures.ThreadPoolExecutor(writers) as pool:
        for one in scored:
            task = pool.submit(lambda done: journal.add(writer.write(*done)), one)
            waiting.append((one.path, task))
            wait(2 * writers)
        wait(0)


def _settle_threshold(
    options: Options, model: Prepared, found: Found, num_workers: int | None
) -> tuple[float | None, dict[str, Any] | None]:
    """The threshold as a number, and what run.json says of it."""
    asked = options.threshold
    if asked is None or asked.value is not None:
        value = None if asked is None else asked.value
        return value, None if value is None else {"value": value, "from": "the command line"}
    good = found.images
    journal = Journal(options.out / "known_good.jsonl", model.key)
    journal.take_over(good)
    pending = [image for image in good if image not in journal]
    issues: list[Issue] = []
    for one in score_images(
        model, pending, issues, label="known-good images", num_workers=num_workers
    ):
        score = thresholds.shortest(one.score)
        journal.add({"path": one.path, "score": score, "sha256": files.digest(one.path)})
    scores = [row["score"] for row in journal.finish(good)]
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
        "ignored": issues_to_json(found.ignored),
        "warning": doubt or None,
    }


def _without_outputs(found: Found, out: pathlib.Path) -> Found:
    """Ignores what earlier runs wrote, when the results are among the images."""
    outputs = [image for image in found.images if is_output(image, out)]
    if len(outputs) == len(found.images):
        raise UserError(f"All of the {len(outputs)} images are results of an earlier run in {out}.")
    ignored = [Issue("output", image) for image in outputs]
    for issue in found.ignored:
        ignored.append(Issue("output", issue.file) if is_output(issue.file, out) else issue)
    return Found([image for image in found.images if image not in set(outputs)], ignored)


def _leave_warning(out: pathlib.Path, warning: str) -> None:
    """A file that speaks for what cannot say it itself: maps and scores of known-good images."""
    path = out / "WARNING.txt"
    if warning:
        files.write_text(path, warning + "\n")
    else:
        path.unlink(missing_ok=True)  # of an earlier run with another model


def _check_pixel_threshold(options: Options, model: Prepared) -> None:
    low, high = model.map_range
    if options.pixel_threshold is not None and not low < options.pixel_threshold <= high:
        raise UserError(
            f"--pixel_threshold={options.pixel_threshold:g} is outside the range of the maps of"
            f" {model.facts['method']}; give more than {low:g} and at most {high:g}."
        )


def _write_run(
    model: Prepared,
    clock: Stopwatch,
    writer: Writer,
    outcome: Outcome,
    words: dict[str, Any] | None,
) -> None:
    """Leaves run.json."""
    run = describe_run(clock, (), digest=model.digest, demonstration=model.demonstration) | {
        "warning": model.warning or None,
        "num_files": len(outcome.images) + len(outcome.ignored),
        "num_images": len(outcome.images),
        "num_scored": len(outcome.rows) - outcome.reused,
        "num_reused": outcome.reused,
        "num_unreadable": len(outcome.issues),
        "num_ignored": len(outcome.ignored),
        "issues": issues_to_json(outcome.issues),
        "ignored": issues_to_json(outcome.ignored),
        "model": model.facts,
        "settings": _settings(writer),
        "threshold": words,
        "columns": COLUMNS,
    }
    files.write_json(writer.folder / "run.json", run)


def _tell(model: Prepared) -> None:
    """Prints what is used."""
    used = model.facts
    family = used["method_config"].get("prompt_family")
    print(f"model    {used['method']} over {used['backbone']}, {used['image_size']} pixels")
    print(f"prompts  {used['prompts']}" + (f"; {family} words" if family else ""))
    print(f'category "{used["category"]}", image score {used["image_score"]}')
    if model.warning:
        print(model.warning)


def _tell_results(outcome: Outcome, writer: Writer) -> None:
    """Prints what came out."""
    count = len(outcome.rows)
    print(
        f"Scored {plural(count - outcome.reused, 'image')} ({outcome.reused} reused from an earlier run,"
        f" {len(outcome.issues)} unreadable, {plural(len(outcome.ignored), 'file')} ignored)."
    )
    if writer.threshold is not None:
        found = sum(row["decision"] == "anomalous" for row in outcome.rows)
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
