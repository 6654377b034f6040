"""The papers' tables of datasets, from what is there: counts beside the published ones."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import logging

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.counts import ALL, Counts, Pair, Published, compare_counts, total
from zsad_jax.data.folder import SPLITS
from zsad_jax.data.inspect.table import Cell, Table
from zsad_jax.data.inspect.target import Target, open_target
from zsad_jax.data.open import SYNTHETIC, is_available
from zsad_jax.data.protocols import DATASETS
from zsad_jax.utils.errors import UserError, plural
from zsad_jax.utils.files import PathLike

Split = Mapping[str, Pair | None]


class Entry(NamedTuple):
    """A benchmark, whether it is there or not.

    Attributes:
      key: its name.
      state: whether it is there and in which form, else how to get it.
      counts: of the splits that are there; {} where none is.
      published: the same as published.
      licence: of the data.
    """

    key: str
    state: str
    counts: Counts
    published: Published
    licence: str


def take_stock(names: Sequence[str], data_dir: PathLike) -> list[Entry]:
    """Looks for benchmarks below a folder; counts are read, no image is."""
    return [_look_for(name, data_dir) for name in names]


def _look_for(name: str, data_dir: PathLike) -> Entry:
    if name in SYNTHETIC:
        return Entry(name, "drawn", count_all(open_target(name, data_dir)), {}, "Apache-2.0")
    benchmark = benchmarks.find_benchmark(name)
    licence, published = benchmark.LICENCE, benchmark.COUNTS
    if not is_available(name, data_dir):
        open_to_all = all(archive.url for archive in benchmark.ARCHIVES)
        state = "open to all: prepare fetches it" if open_to_all else benchmark.HOMEPAGE
        return Entry(name, state, {}, published, licence)
    try:
        target = open_target(name, data_dir)
        counts = count_all(target)
    except UserError as error:
        logging.warning("%s", error)
        return Entry(name, "damaged", {}, published, licence)
    state = "a copy with meta.json" if target.recorded is None else "prepared"
    if compare_counts(counts, target.published):
        state += ", counts differ"
    if target.issues:
        state += f", {plural(len(target.issues), 'issue')}"
    return Entry(name, state, counts, published, licence)


def count_all(target: Target) -> Counts:
    """The counts of every split, without decoding an image."""
    return {split: target.counts_of(split) for split in target.splits}


def tabulate_datasets(entries: Sequence[Entry]) -> Table:
    """One row per benchmark, with the numbers of its test split."""
    rows: list[tuple[Cell, ...]] = []
    for entry in entries:
        about = DATASETS[entry.key]
        found, published = entry.counts.get("test"), entry.published.get("test")
        categories = [name for name in found or published or {} if name != ALL]
        known = benchmarks.find_benchmark(entry.key).categories() if entry.published else ()
        rows.append(
            (
                entry.key,
                about.title,
                about.domain or None,
                len(categories) or len(known) or None,
                total(found) if found else None,
                total(published) if published else None,
                ", ".join(about.levels),
                entry.state,
                entry.licence,
            )
        )
    heads = ("dataset", "title", "domain", "categories", "test", "published test")
    return Table(
        (*heads, "levels", "state", "licence"), frozenset({"test", "published test"}), rows
    )


def tabulate_categories(found: Mapping[str, Counts], published: Mapping[str, Published]) -> Table:
    """One row per category of each dataset, found beside published, and one for the whole of several.

    Args:
      found: by dataset.
      published: by dataset.
    """
    both = [*found.values(), *published.values()]
    splits = list(dict.fromkeys(split for counts in both for split in counts))
    splits.sort(key=[*SPLITS, *splits].index)
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
    return Table(("dataset", "category", *pairs), frozenset(pairs), rows)


def _pick(split: Split | None, name: str, missing: Pair | None) -> Cell:
    """The numbers of a category, or of the whole; None where nothing is known."""
    if split is None:
        return None
    return total(split) if name == ALL else split.get(name, missing)
