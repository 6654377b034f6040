"""A sheet of a dataset's images, category by category, with the masks outlined."""

import dataclasses
import os
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Dataset, Sample
from zsad_jax.data.inspect.target import Target
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.files import replaced
from zsad_jax.utils.images import (
    ANOMALOUS,
    INK,
    NORMAL,
    fit,
    load_font,
    outline,
    paper,
    write_line,
)
from zsad_jax.utils.progress import progress
from zsad_jax.utils.threads import map_in_threads

T = TypeVar("T")

TILE = 200  # the widest picture, in pixels
TALLEST = 320
WIDE, WIDEST = (
    2,
    4,
)  # a picture this many times as wide as high takes two columns and more, to at most four
COLUMNS = 8
GAP, MARGIN = 12, 20
NARROWEST = 640  # of a sheet: its headings need room
FONT, HEADING, TITLE = 13, 17, 22  # sizes in pixels
CAPTION_GAP = 4
LINE = 17  # from one line of a caption to the next
THREADS = 4


class Chosen(NamedTuple):
    """An image that is shown: where it is, and its fields without the pictures."""

    position: int
    sample: Sample


class Tile(NamedTuple):
    """A picture with its caption: lines and their colors.

    Attributes:
      span: how many columns it takes; strips take several.
    """

    picture: Image.Image
    lines: list[tuple[str, str]]
    span: int = 1

    @property
    def width(self) -> int:
        """Of its place, in pixels."""
        return _width(self.span)


def write_sheet(
    target: Target,
    path: pathlib.Path,
    *,
    split: str = "test",
    categories: Sequence[str] | None = None,
    per_category: int = 8,
) -> int:
    """Draws a contact sheet and writes it as a PNG.

    Args:
      target: what is shown.
      path: of the file.
      split: which split.
      categories: which of its categories; None: all.
      per_category: how many images of each, a quarter of them normal, the others spread over the kinds of
        defect. The same images are chosen every time.

    Returns:
      The number of images.

    Raises:
      UserError: there is no such split or category, or `path` is a folder.
    """
    if split not in target.splits:
        raise UserError(
            f"{target.title} has no split {split!r}; it has {' and '.join(target.splits)}."
        )
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a PNG file.")
    dataset = target.splits[split]
    for name in categories or ():
        if name not in dataset.categories:
            known = suggest(name, dataset.categories)
            raise UserError(
                f"{target.title} has no category {name!r} in its {split} split: {known}"
            )
    members = _members(target, split, categories or dataset.categories)
    rows: list[tuple[str, list[Tile]]] = []
    for category, found in members.items():
        anomalous = sum(one.sample.label for one in found)
        heading = f"{category}: {len(found) - anomalous} normal, {anomalous} anomalous"
        without = not any(one.sample.label and one.sample.has_mask for one in found)
        heading += ", no masks" * (without and anomalous > 0)
        tiles = [
            _make_tile(dataset[one.position], told=without) for one in choose(found, per_category)
        ]
        rows.append((heading, tiles))
    sheet = _draw(f"{target.title}, {split}", rows)
    with replaced(path) as temporary:
        sheet.save(temporary, "PNG")
    return sum(len(tiles) for _, tiles in rows)


def choose(members: Sequence[Chosen], count: int) -> list[Chosen]:
    """Chooses images of a category: some normal ones, then anomalous ones of as many kinds as possible."""
    kinds: defaultdict[str, list[Chosen]] = defaultdict(list)
    normal: list[Chosen] = []
    for one in members:
        (kinds[one.sample.defect] if one.sample.label else normal).append(one)
    anomalous = min(sum(map(len, kinds.values())), count - min(len(normal), max(1, count // 4)))
    shown = _spread(normal, min(len(normal), count - anomalous))
    for kind, number in _share_out({kind: len(kinds[kind]) for kind in sorted(kinds)}, anomalous):
        shown += _spread(kinds[kind], number)
    return shown


def _share_out(sizes: Mapping[str, int], count: int) -> list[tuple[str, int]]:
    """How many of each kind, in turn, until there are `count`; with too many kinds, evenly spread ones."""
    kinds = _spread(list(sizes), min(len(sizes), count))
    numbers = dict.fromkeys(kinds, 0)
    left = count
    while left and any(numbers[kind] < sizes[kind] for kind in kinds):
        for kind in kinds:
            if left and numbers[kind] < sizes[kind]:
                numbers[kind] += 1
                left -= 1
    return list(numbers.items())


def _spread(items: Sequence[T], count: int) -> list[T]:
    """So many of the items, evenly spaced, in order."""
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _members(target: Target, split: str, categories: Iterable[str]) -> dict[str, list[Chosen]]:
    """The images of each category, in the order in which the categories are given."""
    dataset, wanted = target.splits[split], list(categories)
    indices = _indices(target, split, wanted)
    looked: Iterable[Chosen] = map_in_threads(
        lambda i: _strip(dataset, i), indices, num_workers=THREADS
    )
    found: dict[str, list[Chosen]] = {category: [] for category in wanted}
    for one in progress(looked, total=len(indices), label=f"Looking through {target.title}"):
        if one.sample.category in found:
            found[one.sample.category].append(one)
    return found


def _indices(target: Target, split: str, categories: Sequence[str]) -> Sequence[int]:
    """Which images need be looked at: where records are counted, those of the categories alone."""
    if target.recorded is None:
        return range(len(target.splits[split]))
    # Records are written category by category, in the order in which the categories are counted.
    start = 0
    indices: list[int] = []
    for category, (normal, anomalous) in target.recorded[split].items():
        stop = start + normal + anomalous
        indices += range(start, stop) if category in categories else ()
        start = stop
    return indices


def _strip(dataset: Dataset, index: int) -> Chosen:
    return Chosen(index, dataclasses.replace(dataset[index], image=b"", mask=None))


def _make_tile(sample: Sample, *, told: bool) -> Tile:
    """A sample's picture and caption; `told` when the heading says that there are no masks."""
    found = examine(sample)
    color = ANOMALOUS if sample.label else NORMAL
    kind = sample.defect or ("anomalous" if sample.label else "normal")
    lines = [(kind, color), (_end_of(sample.file_name), INK)]
    span = 1
    if found.image is None:
        picture = Image.fromarray(paper((TILE, TILE)))
    else:
        whole = np.asarray(found.image.convert("RGB"))
        height, width = whole.shape[:2]
        span = int(np.clip(width // (WIDE * height) + 1, 1, WIDEST))
        scale = min(_width(span) / width, TALLEST / height)
        shown = fit(whole, round(max(width, height) * scale))
        picture = Image.fromarray(outline(shown, found.mask if found.usable else None))
    missing = sample.label and not sample.has_mask and not told
    for issue in [*found.issues, *[Issue("mask_missing", "")] * bool(missing)]:
        lines += [(line, ANOMALOUS) for line in _wrap(issue.description, _width(span))]
    return Tile(picture, lines, span)


def _width(span: int) -> int:
    """Of so many columns, in pixels."""
    return span * (TILE + GAP) - GAP


def _wrap(words: str, width: int) -> list[str]:
    """The words in lines that are no wider."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if load_font(FONT).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _end_of(file_name: str) -> str:
    """The end of a path, with as many of its folders as there is room for."""
    parts = pathlib.PurePosixPath(file_name.replace(os.sep, "/")).parts
    shown = parts[-1] if parts else ""
    for start in range(len(parts) - 2, -1, -1):
        longer = ("…/" if start else "") + "/".join(parts[start:])
        if load_font(FONT).getlength(longer) > TILE:
            break
        shown = longer
    return shown


def _draw(title: str, rows: Sequence[tuple[str, list[Tile]]]) -> Image.Image:
    """Places headings and tiles below each other."""
    columns = max((sum(tile.span for tile in tiles) for _, tiles in rows), default=1)
    columns = min(max(columns, 1), COLUMNS)
    width = max(2 * MARGIN + _width(columns), NARROWEST)
    placed, top = [], MARGIN + TITLE + 2 * GAP
    for heading, tiles in rows:
        lines = _flow(tiles, columns)
        placed.append((top, heading, lines))
        top += HEADING + GAP + sum(_height(line) + GAP for line in lines) + GAP
    sheet = Image.new("RGB", (width, top + MARGIN - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    write_line(pen, (MARGIN, MARGIN), title, size=TITLE, width=width - 2 * MARGIN)
    for below, heading, lines in placed:
        write_line(pen, (MARGIN, below), heading, size=HEADING, width=width - 2 * MARGIN)
        top = below + HEADING + GAP
        for line in lines:
            left = MARGIN
            for tile in line:
                _place(sheet, pen, tile, left, top + _tallest(line))
                left += tile.width + GAP
            top += _height(line) + GAP
    return sheet


def _flow(tiles: Sequence[Tile], columns: int) -> list[list[Tile]]:
    """The tiles in lines of so many columns."""
    lines: list[list[Tile]] = []
    for tile in tiles:
        if lines and sum(one.span for one in lines[-1]) + tile.span <= columns:
            lines[-1].append(tile)
        else:
            lines.append([tile])
    return lines


def _height(tiles: Sequence[Tile]) -> int:
    """Of a line of tiles: its tallest picture, and its longest caption."""
    captions = max(len(tile.lines) for tile in tiles)
    return _tallest(tiles) + CAPTION_GAP + LINE * captions


def _tallest(tiles: Sequence[Tile]) -> int:
    return max(tile.picture.height for tile in tiles)


def _place(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, bottom: int
) -> None:
    """Puts a picture on its bottom line, and its caption below."""
    sheet.paste(tile.picture, (left, bottom - tile.picture.height))
    for number, (words, color) in enumerate(tile.lines):
        corner = (left, bottom + CAPTION_GAP + number * LINE)
        write_line(pen, corner, words, width=tile.width, size=FONT, color=color)
