"""Comparability of results with published numbers: same images, same setting, same training."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from zsad_jax.data.benchmarks.facts import BOTH, DATASETS, Level
from zsad_jax.data.protocols import PROTOCOLS, training_parts
from zsad_jax.methods import METHODS, config_class
from zsad_jax.report import names
from zsad_jax.report.published import USUAL, published_numbers, trainings
from zsad_jax.report.rows import MEAN, OPTION_COLUMNS, SHOTS, Row, level_of
from zsad_jax.train import TrainingConfig
from zsad_jax.utils.config import config_from, plain
from zsad_jax.utils.errors import agree, plural

# Keys of run.json: how many images, by dataset; and option -> [ours, the paper's].
WITHOUT_MASK, UNLIKE_PAPER = "anomalous_without_mask", "unlike_paper"
# Protocols that papers state although their main numbers are of the usual one.
_STATED = tuple(key for key, protocol in PROTOCOLS.items() if protocol.stated_by)

Kind = Literal["images", "setting", "training"]
IMAGES: tuple[Kind, ...] = ("images",)
KINDS: tuple[Kind, ...] = ("images", "setting", "training")


class Deviation(NamedTuple):
    """A reason, as a footnote, why metrics of some levels cannot be compared with published numbers."""

    dataset: str
    kind: Kind
    levels: tuple[Level, ...]
    words: str


def find_deviations(
    rows: Iterable[Row], run: Mapping[str, Any] | None = None
) -> tuple[Deviation, ...]:
    """Finds where images, setting or training of a method's rows, and run.json, differ from the published ones.

    Anomalous images without a mask affect pixel metrics only.
    """
    run = run or {}
    by_dataset: dict[str, list[Row]] = {}
    for row in rows:
        by_dataset.setdefault(row["dataset"], []).append(row)
    found = []
    for dataset, members in by_dataset.items():
        facts, title = DATASETS.get(dataset), names.dataset_name(dataset)
        mean = next((row for row in members if row["category"] == MEAN), None)
        # Without the row of the mean itself.
        counts = _compare_counts(mean, len(members) - 1) if mean else ""
        if counts:
            found.append(Deviation(dataset, "images", BOTH, f"{title}: {counts} were evaluated."))
        unmasked = run.get(WITHOUT_MASK, {}).get(dataset)
        if mean and facts and unmasked and "pixel" in facts.levels:
            anomalous = plural(mean["n_anomalous"], "anomalous image")
            words = f"{title}: {unmasked} of {anomalous} {agree(unmasked, 'has', 'have')} no usable mask."
            found.append(Deviation(dataset, "images", ("pixel",), words))
        setting = _compare_setting(mean, run) if mean else ""
        # Where nothing is published there is nothing to compare, and no need for a footnote.
        if mean and setting and published_numbers(mean["method"], dataset):
            found.append(Deviation(dataset, "setting", BOTH, setting))
        # Categories and mean of a dataset share their prompts: any row will do.
        if not is_usual(members[0]):
            both = (members[0]["auxiliary"], _auxiliary(USUAL, members[0]))
            words = "Trained on {}; the paper trained on {}.".format(*map(names.dataset_name, both))
            found.append(Deviation(dataset, "training", BOTH, words))
    return tuple(found)


def words_on(
    deviations: Sequence[Deviation],
    datasets: Sequence[str],
    metric: str | None = None,
    *,
    kinds: Iterable[Kind] = KINDS,
) -> list[str]:
    """Returns the sentences on some datasets, each once, kind by kind; on one metric or on all."""
    levels = BOTH if metric is None else (level_of(metric),)
    found = (
        one.words
        for kind in kinds
        for dataset in datasets
        for one in deviations
        if (one.kind, one.dataset) == (kind, dataset) and set(levels) & set(one.levels)
    )
    return list(dict.fromkeys(found))


def training_of(row: Row) -> str:
    """Returns the protocol by which a result's prompts were trained; if it is none, the auxiliary dataset.

    A method that learns nothing has the usual training, as its published numbers do.
    """
    if not row["auxiliary"]:
        return USUAL
    parts = training_parts(row["auxiliary"])
    # The protocol is recognized by its auxiliary dataset, so that results keep no copy of its name.
    same = (
        key for key in (*trainings(), *_STATED) if parts == training_parts(_auxiliary(key, row))
    )
    return next(same, str(row["auxiliary"]))


def is_usual(row: Row) -> bool:
    """Returns whether a result is of the training behind a paper's main numbers.

    FAPrompt's paper trains on all images, its code on the test split; both count.
    """
    training = training_of(row)
    return training == USUAL or (
        training in _STATED and PROTOCOLS[training].stated_by == row["method"]
    )


def unlike_paper(method: str, dataset: str, setting: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns [ours, the paper's] of what differs in a setting from that of the published numbers.

    A setting has columns of results, arguments of `load_backbone`, fields of `TrainingConfig`, and naming. The
    dataset is "" for any without a setting of its own.
    """
    config = config_class(method)
    recipe = config.recipe
    options = {field.name: field.default for field in dataclasses.fields(config)}
    # TIPSomaly, for example, uses other templates for brain images.
    options |= recipe.method_for.get(dataset, {})
    published = {
        "variant": "",
        SHOTS: 0,  # the collection has no numbers with reference images
        **{key: options.get(key) for key in OPTION_COLUMNS},
        **recipe.backbone,
        "backbone": recipe.backbone["name"],
        # A method with one image score has nothing to choose, and its recipe does not name it.
        "image_score": recipe.image_score or setting.get("image_score"),
        "trained_on": plain(recipe.trained_on),
        "naming": recipe.naming,
        **dataclasses.asdict(config_from(TrainingConfig, recipe.training)),
    }
    pairs = {key: [value, published.get(key)] for key, value in setting.items()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _compare_setting(row: Row, run: Mapping[str, Any]) -> str:
    """Describes what differs from the published setting, apart from the training set."""
    if row["method"] not in METHODS:
        return ""
    columns = ("variant", *OPTION_COLUMNS, "backbone", "image_size", "image_score", SHOTS)
    differs = unlike_paper(
        row["method"], row["dataset"], {SHOTS: 0} | {key: row[key] for key in columns if key in row}
    )
    named = {names.COLUMNS[key].lower(): pair for key, pair in differs.items()}
    words = [
        f"{key} {ours} (the paper: {'default' if theirs in ('', None) else theirs})"
        for key, (ours, theirs) in (named | run.get(UNLIKE_PAPER, {})).items()
    ]
    return f"{names.method_name(row['method'])}: {', '.join(words)}." if words else ""


def _compare_counts(mean: Row, num_categories: int) -> str:
    """Describes how the numbers of categories (if there are rows of any) and of images differ."""
    facts, words = DATASETS.get(mean["dataset"]), []
    if facts and len(facts.categories) > 1 and num_categories:
        words += _compare_count(num_categories, len(facts.categories), "categories")
    if facts and facts.published is not None:
        normal, anomalous = facts.published
        # Another number of images usually implies another number of anomalous ones: one is enough.
        images = _compare_count(mean["n_images"], normal + anomalous, "images")
        words += images or _compare_count(mean["n_anomalous"], anomalous, "anomalous images")
    return ", ".join(words)


def _compare_count(found: int, published: int, what: str) -> list[str]:
    if found == published:
        return []
    more = f"{found} {what} instead of {published}"
    return [f"{found} of {published} {what}" if found < published else more]


def _auxiliary(protocol: str, row: Row) -> str:
    return PROTOCOLS[protocol].auxiliary_for.get(row["dataset"], PROTOCOLS[protocol].auxiliary)
