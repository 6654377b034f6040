"""Results in words: what was run, what differs, what is undefined and why."""

from collections.abc import Iterable, Sequence

from zsad_jax.metrics import AUPRO_200STEP, IMAGE_METRICS, PIXEL_METRICS, Note
from zsad_jax.report import names
from zsad_jax.report.rows import MEAN, METRIC_COLUMNS, Row

DEMONSTRATION = "Demonstration model, not for decisions."
LEARNED = ("auxiliary", "checkpoint", "seed", "epoch")  # columns that tell of learned prompts


def describe(row: Row) -> str:
    """A result's method, backbone and prompts."""
    if row["auxiliary"]:
        prompts = f"prompts learned on {names.dataset_name(row['auxiliary'])}"
        prompts += f" (epoch {row['epoch']})" if row["epoch"] is not None else ""
    else:
        prompts = "fixed prompts, nothing learned"
    parts = [
        names.method_name(row["method"]),
        f"backbone {row['backbone']}",
        prompts,
        f"{row['prompt_family']} wording".replace("_", " ") if row["prompt_family"] else "",
        f"images of {row['image_size']} pixels" if row["image_size"] else "",
        f"variant: {row['variant']}" if row["variant"] else "",
    ]
    return " · ".join(part for part in parts if part)


def describe_setting(row: Row, columns: Sequence[str]) -> str:
    """The given columns of a row; a variant stands for itself, what is empty is left out."""
    words = [row["variant"]] if "variant" in columns and row["variant"] else []
    if not words and set(columns) & set(LEARNED) and not row["auxiliary"]:
        words.append("fixed prompts")
    spelt = {"auxiliary": names.dataset_name, "method": names.method_name}
    for key in columns:
        unneeded = key == "variant" or (key == "checkpoint" and row["auxiliary"])
        if row[key] not in (None, "") and not unneeded:
            words.append(f"{names.COLUMNS[key].lower()} {spelt.get(key, str)(row[key])}")
    return ", ".join(words) or "as above"


def metrics_in_words(keys: Iterable[str]) -> str:
    """Names of metrics; all of a level are called by the level."""
    left = list(keys)
    words = []
    levels = {
        "image metrics": (IMAGE_METRICS, ()),
        "pixel metrics": (PIXEL_METRICS, (AUPRO_200STEP,)),
    }
    for level, (needed, optional) in levels.items():
        if set(needed) <= set(left):
            words.append(level)
            left = [key for key in left if key not in (*needed, *optional)]
    return ", ".join(words + [names.METRICS[key] for key in left])


def sentences(notes: Iterable[Note]) -> list[str]:
    """Returns a sentence for each reason, with the metrics that it applies to."""
    gathered: dict[str, dict[str, None]] = {}
    for note in notes:
        gathered.setdefault(note.reason, {}).update(dict.fromkeys(note.metrics))
    return [
        _sentence(f"{metrics_in_words(metrics)}: {reason}" if metrics else reason)
        for reason, metrics in gathered.items()
    ]


def absence_notes(members: Sequence[Row], what: str) -> list[Note]:
    """Returns a note on every mean over `members` that excludes undefined ones.

    Args:
      members: the rows that the mean is over.
      what: "categories" or "datasets".
    """
    absent: dict[tuple[str, ...], list[str]] = {}
    for metric in METRIC_COLUMNS:
        names_of_absent = tuple(_member_name(row) for row in members if row[metric] is None)
        if names_of_absent and len(names_of_absent) < len(members):
            absent.setdefault(names_of_absent, []).append(metric)
    return [
        Note(
            tuple(metrics),
            f"mean over {len(members) - len(which)} of {len(members)} {what}, undefined for"
            f" {', '.join(which)}",
        )
        for which, metrics in absent.items()
    ]


def _member_name(row: Row) -> str:
    if row["category"] == MEAN:
        return names.dataset_name(row["dataset"])
    return names.category_name(row["category"])


def _sentence(words: str) -> str:
    words = words[:1].upper() + words[1:]
    return words if words.endswith((".", "!", "?")) else words + "."
