"""Scores a user's images: known-good images for the threshold, then the images, then run.json."""

import collections
import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence

from absl import logging

from zsad_jax.data.folder import Found, find_images
from zsad_jax.data.issues import Issue, group_issues, issues_to_json, summarize_issues
from zsad_jax.data.loader import report_notes
from zsad_jax.experiment.config import Experiment
from zsad_jax.experiment.run_info import Stopwatch, describe_process
from zsad_jax.predict import gallery, outputs, score, thresholds
from zsad_jax.predict.outputs import Journal, Outcome, Record, Writer, format_score
from zsad_jax.predict.score import Model, Options, ScoredImage
from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError, agree, located, plural
from zsad_jax.utils.images import printable
from zsad_jax.utils.progress import progress
from zsad_jax.utils.records import sealed
from zsad_jax.utils.threads import map_in_threads, num_cores

MAX_WRITERS = 4
SHOWN = 5  # highest scores
SETTINGS = ("scale", "threshold", "pixel_threshold", "map_size")  # of a `Writer`, for run.json


def predict(experiment: Experiment, options: Options) -> None:
    """Scores images and writes the results to a folder.

    Raises `UserError` if something is wrong or missing, before long work, or if no image can be read.
    """
    clock = Stopwatch()
    found = _find(options.paths, options)
    good = Found([], [])
    if options.threshold is not None and options.threshold.good:
        with located("--threshold"):
            good = _find([options.threshold.good], options)
            _check_categories(options, found, good)
    references = _find_references(options, good)
    # A file may be among several of them.
    ignored = dict.fromkeys((*found.ignored, *good.ignored, *references.ignored))
    for kind in group_issues(ignored):
        logging.warning("Ignoring %s", summarize_issues(kind))
    used = [options.folders.of(image) for image in (*found.images, *good.images)]
    for place, entry in options.folders.listed.items():
        if not any(one is entry for one in used):
            logging.warning("There are no images in %s, which --folders lists.", place)
    # Two runs that share a folder would replace each other's records.
    with files.alone(options.out, (*outputs.FILES, "masks")):
        files.sweep(options.out, [folder for folder, _ in outputs.OUTPUTS.values()])
        journal = _open_journal(options.out / "predictions.jsonl", found.images)
        # One compilation serves both.
        num_images = max(len(found.images), len(good.images))
        model = score.prepare_model(experiment, options, references.images, num_images=num_images)
        _check_thresholds(options, model)
        _print_model(model, found.images, options)
        warning = options.out / "WARNING.txt"  # of the outputs that cannot hold it, such as maps
        warning.unlink(missing_ok=True)  # of an earlier run with another model
        if model.warning:
            files.write_text(warning, model.warning + "\n")
        clock.lap("start")
        threshold, description = _settle_threshold(options, model, good)
        clock.lap("known-good images")
        writer = Writer(
            folder=options.out,
            scale=options.scale or model.description.map_range,
            map_size=options.map_size,
            folders=options.folders,
            threshold=threshold,
            pixel_threshold=options.pixel_threshold,
            warning=model.warning,
        )
        outcome = _score_all(model, found, writer, journal)
        clock.lap("images")
        gallery.write(writer, model, outcome, description)
        outputs.remove_unused(writer.folder, outcome.records)
        if not good.images:
            (writer.folder / "known_good.jsonl").unlink(missing_ok=True)
        _write_run(model, clock, writer, outcome, description)
    _print_outcome(outcome, writer)


def _find(paths: Sequence[str], options: Options) -> Found:
    """Finds images; results of earlier runs are among the ignored files."""
    found = find_images(paths, include_masks=options.include_masks)
    everything = (*found.images, *(issue.file for issue in found.ignored))
    earlier = dict.fromkeys(filter(outputs.is_output, everything))
    images = [image for image in found.images if image not in earlier]
    if not images:
        raise UserError(
            f"Found only results of an earlier run in {', '.join(paths)}. Pass the folder of the original"
            " images."
        )
    others = [issue for issue in found.ignored if issue.file not in earlier]
    return Found(images, [*(Issue("output", one) for one in earlier), *others])


def _check_categories(options: Options, found: Found, good: Found) -> None:
    """Rejects a quantile over images of another category than those that it would decide on."""
    entries = map(options.folders.of, found.images)
    categories = {options.folders.of(image).category for image in good.images}
    categories |= {entry.category for entry in entries if entry.threshold is None}
    if len(categories) > 1:
        raise UserError(
            "The known-good images and the images without their own threshold are of several categories:"
            f" {', '.join(sorted(categories))}. Their scores are not comparable. List the known-good images"
            " in --folders with the category of the images, and give other folders their own threshold."
        )


def _find_references(options: Options, good: Found) -> Found:
    """Returns the references; rejects several categories, and known-good images that are references."""
    if options.references is None:
        return Found([], [])
    if len(options.folders.categories) > 1:
        raise UserError(
            "--references has images of one category, but --category and --folders name several:"
            f" {', '.join(options.folders.categories)}. Name one, or score each with its own references."
        )
    with located("--references"):
        references = _find([options.references], options)
    images, known = ({*map(os.path.realpath, one.images)} for one in (references, good))
    if both := images & known:
        raise UserError(
            f"{min(both)} is both a known-good image and a reference, so that its score is too low for a"
            " threshold. Use different images."
        )
    return references


def _open_journal(path: pathlib.Path, images: Sequence[str]) -> Journal:
    """Returns the journal, unless it is of other images, whose results would be removed."""
    journal = Journal(path)
    others = journal.earlier.keys() - {os.path.realpath(image) for image in images}
    if others and len(others) == len(journal.earlier):
        raise UserError(
            f"{path.parent} has results of {plural(len(others), 'other image')} and of none of these, and"
            " would lose them. Choose another --out for each set of images, or delete the folder."
        )
    if others:
        words = "Results of %s in %s will be removed, since these are no longer given."
        logging.warning(words, plural(len(others), "image"), path.parent)
    return journal


def _check_thresholds(options: Options, model: Model) -> None:
    shown, pixel = model.description, options.pixel_threshold
    common = options.threshold.value if options.threshold else None
    named = {
        f"the threshold of {one}": own.threshold for one, own in options.folders.listed.items()
    }
    named |= {"--threshold": common, "--pixel_threshold": pixel}
    for name, value in named.items():
        of_maps = name == "--pixel_threshold"
        what, ends = ("anomaly maps", shown.map_range) if of_maps else ("scores", shown.score_range)
        # At the low end everything is anomalous, above the high end nothing can be.
        if value is not None and ends is not None and not ends[0] < value <= ends[1]:
            raise UserError(
                f"{name}={value:g} is outside the range of the {what} of {shown.method}. Give a number above"
                f" {ends[0]:g} and at most {ends[1]:g}."
            )


def _settle_threshold(
    options: Options, model: Model, good: Found
) -> tuple[float | None, Record | None]:
    """Returns the threshold as a number, and its description in run.json."""
    asked = options.threshold
    if asked is None:
        return None, None
    if asked.value is not None:
        return asked.value, {"value": asked.value, "from": "the command line"}
    journal = Journal(options.out / "known_good.jsonl")
    journal.reuse(good.images, model.key_of)
    pending = [image for image in good.images if image not in journal.records]
    issues: list[Issue] = []
    label = "known-good images"
    # The maps are not used: figures of one pixel cost nothing.
    for one in score.score_images(model, pending, issues, label=label, map_size=1):
        record = {"score": thresholds.shortest(one.score), "key": model.key_of(one.file.path)}
        journal.add(outputs.describe_file(one.file) | record)
    if not journal.records:
        raise _none_readable(f"{label} in {asked.good}", issues)
    records = journal.finish(good.images)
    _report_notes(label, records)
    scores = [record["score"] for record in records]
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


def _report_notes(label: str, records: Sequence[Record]) -> None:
    """Logs the notes of images, whether these were decoded now or by an earlier run."""
    notes = ((record["path"], note) for record in records for note in record.get("notes", ()))
    report_notes(label, [Issue(kind, path, detail) for path, (kind, detail) in notes])


def _score_all(model: Model, found: Found, writer: Writer, journal: Journal) -> Outcome:
    """Scores the images that have no score, and draws those whose files are of other options."""
    images = found.images
    journal.reuse(images, model.key_of)
    journal.records = {image: writer.decided(record) for image, record in journal.records.items()}
    reused = set(journal.records)
    stale = [record for record in journal.records.values() if "drawn" not in record]
    pending = [image for image in images if image not in journal.records]
    issues: list[Issue] = []
    if pending or stale:
        scored = score.score_images(
            model, pending, issues, label="processed", map_size=writer.map_size
        )
        again = progress(stale, total=len(stale), label="draw") if stale else ()
        issues += _write_all(itertools.chain(again, scored), model, journal, writer)
    errors = {issue.file: issue.description for issue in issues}
    if not journal.records.keys() - errors:
        raise _none_readable("images", issues)
    records = journal.finish(images, errors)
    _report_notes("images", records)
    return Outcome(images, records, len(reused - errors.keys()), issues, found.ignored)


def _write_again(record: Record, model: Model, writer: Writer) -> Record:
    """Writes the outputs of an image from the score and the map of an earlier run."""
    if "outputs" in record:
        with contextlib.suppress(OSError):  # a damaged figure is drawn anew
            return writer.redraw(record)
    file = score.read_image(record["path"], model.preprocess, writer.map_size)
    if isinstance(file, Issue):
        raise RuntimeError(file.description)
    raw_map = outputs.read_raw_map(writer.folder, record["path"])
    return writer.write(ScoredImage(file, record["score"], raw_map, record["time"]))


def _write_all(
    found: Iterable[ScoredImage | Record], model: Model, journal: Journal, writer: Writer
) -> list[Issue]:
    """Writes outputs while the next batch is computed; returns issues of those that cannot be written."""

    def write(one: ScoredImage | Record) -> Issue | None:
        path = one.file.path if isinstance(one, ScoredImage) else one["path"]
        try:
            # Until all is done, no run.json describes these records.
            (writer.folder / "run.json").unlink(missing_ok=True)
            journal.start()
            if isinstance(one, ScoredImage):
                record = writer.write(writer.keep(one))
            else:
                record = _write_again(one, model, writer)
            journal.add(record | {"key": model.key_of(path)})
        except OSError as error:
            raise UserError(
                f"Cannot write to {writer.folder} ({error.strerror or error}). Free disk space or choose"
                " another --out. Finished images are kept."
            ) from error
        except Exception as error:  # one image must not end the run
            return Issue("output_failed", path, f"{type(error).__name__}: {error}")
        return None

    num_writers = min(num_cores(), MAX_WRITERS)
    issues = [issue for issue in map_in_threads(write, found, num_workers=num_writers) if issue]
    for issue in issues:
        logging.warning("Skipping %s", issue)
    return issues


def _write_run(
    model: Model, clock: Stopwatch, writer: Writer, outcome: Outcome, threshold: Record | None
) -> None:
    run = describe_process(clock) | {
        "backbone_sha256": model.description.weights_sha256,
        "demonstration": model.description.demonstration,
        "warning": model.warning or None,
        **outcome.counts,
        "ignored_by_kind": collections.Counter(issue.kind for issue in outcome.ignored),
        "issues": issues_to_json(outcome.issues),
        "ignored": issues_to_json(outcome.ignored),
        "model": sealed(dataclasses.asdict(model.description)),
        "settings": {name: getattr(writer, name) for name in SETTINGS}
        | {"folders": dataclasses.asdict(writer.folders)},
        "references": model.references,
        "threshold": threshold,
        "columns": outputs.COLUMNS,
    }
    files.write_json(writer.folder / "run.json", run)


def _print_model(model: Model, images: Sequence[str], options: Options) -> None:
    shown, of = model.description, model.folders.of
    family = shown.method_config.get("prompt_family")
    print(f"model     {shown.method} on {shown.backbone}, {shown.image_size} px")
    print(f"prompts   {shown.prompts}" + (f"; prompt family: {family}" if family else ""))
    if options.references:
        print(f"compared  with {plural(len(model.references), 'image')} of {options.references}")
    categories = dict.fromkeys(f'"{of(image).category}"' for image in images)
    print(f"category  {', '.join(categories)}; image score: {shown.image_score}")
    if model.warning:
        print(model.warning)


def _print_outcome(outcome: Outcome, writer: Writer) -> None:
    scored, counts = outcome.scored, outcome.counts
    others = [
        f"{counts['num_reused']} reused from an earlier run",
        f"{counts['num_unreadable']} unreadable",
        *[f"{counts['num_failed']} failed"] * bool(counts["num_failed"]),
        f"{plural(counts['num_ignored'], 'file')} ignored",
    ]
    tail = " Ignored files are listed in run.json." * bool(outcome.ignored)
    print(f"Scored {plural(counts['num_scored'], 'image')} ({', '.join(others)}).{tail}")
    decisions = collections.Counter(record.get("decision") for record in scored)
    used = sorted({record["threshold"] for record in scored if "threshold" in record})
    if used:
        shown, noun = (
            ", ".join(map("{:.9g}".format, used)),
            agree(len(used), "threshold", "thresholds"),
        )
        decided = f"{decisions['anomalous']} anomalous, {decisions['normal']} normal"
        print(f"{decided} at the {noun} {shown}.")
    low, high = (format_score(scored[i]["score"]) for i in (-1, 0))
    print(f"Scores range from {low} to {high}. The highest:" if scored[1:] else "Its score:")
    for record in scored[:SHOWN]:
        line = f"{format_score(record['score']):>8}  {record.get('decision', '')}"
        print(f"{line:19}  {printable(record['path'])}")
    warning = f" {writer.warning}" if writer.warning else ""
    print(f"Results are in {writer.folder}; open {writer.folder / 'index.html'}.{warning}")
