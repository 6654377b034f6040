"""Descriptions of results: settings, differences between them, and reasons for undefined values."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from zsad_jax.metrics import IMAGE_METRICS, PIXEL_METRICS, Note
from zsad_jax.report import names
from zsad_jax.report.rows import MEAN, METRIC_COLUMNS, Row, level_of, singles

DEMONSTRATION = "Demo model, not for decisions."
Points = Mapping[str, Mapping[str, Any]]  # of a sweep in run.json: label -> values by key
LONGEST = 80  # characters of a changed key and its value
LEARNED = ("auxiliary", "checkpoint", "seed", "epoch")  # columns on learned prompts


def describe(row: Row) -> str:
    """Describes a result's method, backbone and prompts."""
    prompts = "fixed prompts (nothing learned)"
    if row["auxiliary"]:
        epoch = f" (epoch {row['epoch']})" if row["epoch"] is not None else ""
        prompts = f"prompts learned on {names.dataset_name(row['auxiliary'])}{epoch}"
    parts = [
        names.method_name(row["method"]),
        f"backbone {row['backbone']}",
        prompts,
        f"prompt family {row['prompt_family']}".replace("_", " ") if row["prompt_family"] else "",
        f"image size {row['image_size']} px" if row["image_size"] else "",
        describe_column(row, "shots"),
        f"variant: {row['variant']}" if row["variant"] else "",
        f"mean ± standard deviation over {describe_seeds(row)}" if "seeds" in row else "",
    ]
    return " · ".join(filter(None, parts))


def describe_seeds(row: Row) -> str:
    """Describes the seeds that a row combines, for example "8 seeds (111 to 118)"."""
    known = sorted(one["seed"] for one in singles(row))
    # Those of one run follow each other.
    seeds = known if len(known) > 1 else range(row["seed"], row["seed"] + row["seeds"])
    gapless = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    words = f"{seeds[0]} to {seeds[-1]}" if gapless else ", ".join(map(str, seeds))
    return f"{len(seeds)} seeds ({words})"


def describe_changes(run: Mapping[str, Any]) -> str:
    """Describes what differs from the config file in a run, from its run.json; "" if nothing."""
    changed = (f"{key}={value}" for key, value in run.get("changed_keys", {}).items())
    return ", ".join(one if len(one) <= LONGEST else f"{one[:LONGEST]}…" for one in changed)


def describe_setting(row: Row, columns: Sequence[str]) -> str:
    """Describes a row by the given columns that are not empty."""
    words = [row["variant"]] if "variant" in columns and row["variant"] else []
    fixed = not row["auxiliary"] and not row.get("shots")
    if not words and set(columns) & set(LEARNED) and fixed:
        words.append("fixed prompts")
    # The prompts of a training are named by what they were trained on, those of a file by the file.
    unneeded = {"variant", *["checkpoint"] * (row["seed"] is not None)}
    words += [describe_column(row, key) for key in columns if key not in unneeded]
    return ", ".join(filter(None, words)) or "same settings"


def describe_column(row: Row, key: str) -> str:
    """Returns a column's name and entry, for example "seed 1"; "" without an entry."""
    if key == "seed" and "seeds" in row:
        return describe_seeds(row)
    spelt = {"auxiliary": names.dataset_name, "method": names.method_name}.get(key, str)
    value = row.get(key)
    return "" if value in (None, "") else f"{names.COLUMNS[key].lower()} {spelt(value)}"


def describe_value(value: Any) -> str:
    """Returns a swept value, a section of a config by its name."""
    value = value.get("name", value) if isinstance(value, Mapping) else value
    return f"{value:g}" if isinstance(value, float) else str(value)


def swept_points(run: Mapping[str, Any]) -> Points:
    """Returns the points of the sweep in run.json; none without a sweep."""
    return run.get("sweep", {}).get("points", {})


def short_keys(points: Points) -> dict[str, str]:
    """Returns the last parts of the keys of a sweep by key; whole keys where two end alike."""
    keys = list(next(iter(points.values()), {}))
    last = [key.rpartition(".")[2] for key in keys]
    return dict(zip(keys, last if len(set(last)) == len(keys) else keys, strict=True))


def sentences(notes: Iterable[Note]) -> list[str]:
    """Returns a sentence for each reason, with the metrics that it applies to."""
    gathered: dict[str, dict[str, None]] = {}
    for note in notes:
        gathered.setdefault(note.reason, {}).update(dict.fromkeys(note.metrics))
    return [
        sentence(f"{_name_metrics(metrics)}: {reason}" if metrics else reason)
        for reason, metrics in gathered.items()
    ]


def absence_notes(members: Sequence[Row], what: str) -> list[Note]:
    """Returns notes on the undefined values that means over rows, by `what`, exclude."""
    named = [(row, member_name(row["dataset"], row["category"])) for row in members]
    absent: dict[tuple[str, ...], list[str]] = {}
    for metric in METRIC_COLUMNS:
        undefined = tuple(name for row, name in named if row[metric] is None)
        # A metric without any value has no mean to explain.
        if len(undefined) < len(members):
            absent.setdefault(undefined, []).append(metric)
    return [
        Note(tuple(metrics), describe_mean(len(members), what, undefined=undefined))
        for undefined, metrics in absent.items()
        if undefined
    ]


def describe_mean(
    total: int, what: str, *, missing: Collection[str] = (), undefined: Collection[str] = ()
) -> str:
    """Describes which members a mean over datasets or categories excludes; "" if none."""
    if not missing and not undefined:
        return ""
    parts = [f"mean over {total - len(missing) - len(undefined)} of {total} {what}"]
    parts += [f"not run: {', '.join(missing)}"] if missing else []
    parts += [f"undefined: {', '.join(undefined)}"] if undefined else []
    return "; ".join(parts)


def sentence(words: str) -> str:
    """Returns words, which have no full stop, with a capital at the start and a full stop at the end."""
    return f"{words[:1].upper()}{words[1:]}."


def _name_metrics(keys: Iterable[str]) -> str:
    """Returns the names of metrics; if all of a level are among them, that of the level."""
    left = list(keys)
    words = []
    for level, all_of_level in {"image": IMAGE_METRICS, "pixel": PIXEL_METRICS}.items():
        if set(all_of_level) <= set(left):
            words.append(f"{level} metrics")
            left = [key for key in left if level_of(key) != level]
    return ", ".join(words + [names.METRICS[key] for key in left])


def member_name(dataset: str, category: str) -> str:
    """Returns the name of a category, or of the dataset itself."""
    return names.dataset_name(dataset) if category == MEAN else names.category_name(category)
