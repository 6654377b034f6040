"""Tables of the known datasets: their state, and their counts with the published ones."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import logging

from zsad_jax.data.benchmarks.counts import ALL, Counts, Pair, Published, compare_counts, total
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.folder import SPLITS
from zsad_jax.data.inspect.opened import open_all_splits
from zsad_jax.data.open import is_available
from zsad_jax.data.synthetic import CATEGORIES
from zsad_jax.utils.errors import UserError, plural
from zsad_jax.utils.files import PathLike
from zsad_jax.utils.text_table import Cell, TextTable


class Entry(NamedTuple):
    """A known dataset, available or not.

    Attributes:
      key: its name.
      state: the form in which it is available, "not prepared" or "damaged".
      counts: of the available splits; {} if none is.
    """

    key: str
    state: str
    counts: Counts


def look_for(name: str, data_dir: PathLike) -> Entry:
    """Looks for a known dataset below a folder; counts are read, images are not."""
    if not is_available(name, data_dir):
        return Entry(name, "not prepared", {})
    # A damaged dataset must not end the list of the others.
    try:
        opened = open_all_splits(name, data_dir)
        counts = opened.count_all()
    except UserError as error:
        logging.warning("%s", error)
        return Entry(name, "damaged", {})
    if name in CATEGORIES:
        return Entry(name, "generated", counts)
    state = "a copy with meta.json" if opened.recorded is None else "prepared"
    if compare_counts(counts, opened.published):
        state += ", counts differ"
    if opened.issues:
        state += f", {plural(len(opened.issues), 'issue')}"
    return Entry(name, state, counts)


def tabulate_datasets(entries: Sequence[Entry]) -> TextTable:
    """Makes a table with a row for each dataset, with the numbers of its test split."""
    rows: list[tuple[Cell, ...]] = []
    for entry in entries:
        facts, found = DATASETS[entry.key], entry.counts.get("test")
        row = (
            entry.key,
            facts.title,
            facts.domain or None,
            len(found or facts.categories) or None,
            total(found) if found else None,
            facts.published,
            ", ".join(facts.levels),
            facts.homepage or None,
            facts.license,
            None if entry.key in CATEGORIES else "automatic" if facts.open_to_all else "manual",
            entry.state,
        )
        rows.append(row)
    heads = ("dataset", "title", "domain", "categories", "test", "published test", "levels")
    return TextTable(
        (*heads, "homepage", "license", "download", "state"),
        frozenset({"test", "published test"}),
        rows,
        hidden=frozenset({"title", "domain", "homepage", "license"}),
    )


def tabulate_categories(
    found: Mapping[str, Counts], published: Mapping[str, Published]
) -> TextTable:
    """Makes a table with a row for each category, and for the whole of several; counts are by dataset."""
    both = [*found.values(), *published.values()]
    splits = list(dict.fromkeys(split for counts in both for split in counts))
    splits.sort(key=[*SPLITS, *splits].index)  # train before test; other splits last
    compared = any(published.values())
    rows: list[tuple[Cell, ...]] = []
    for key, counts in found.items():
        theirs = published.get(key, {})
        names = [
            name for split in splits for one in (theirs, counts) for name in one.get(split, {})
        ]
        categories = [name for name in dict.fromkeys(names) if name != ALL]
        for name in [*categories, *([ALL] if len(categories) != 1 else [])]:
            cells: list[Cell] = [key, name or "all"]
            for split in splits:
                cells.append(_pick(counts.get(split), name, (0, 0)))
                cells += [_pick(theirs.get(split) or None, name, None)] if compared else []
            rows.append(tuple(cells))
    pairs = [head for split in splits for head in (split, f"published {split}")[: 1 + compared]]
    return TextTable(("dataset", "category", *pairs), frozenset(pairs), rows)


def _pick(split: Mapping[str, Pair | None] | None, name: str, missing: Pair | None) -> Cell:
    if split is None:
        return None
    return total(split) if name == ALL else split.get(name, missing)
