"""A sheet of a dataset's images, category by category, with the masks outlined."""

import dataclasses
import itertools
import os
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Sample
from zsad_jax.data.inspect.opened import OpenedDataset
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.files import replaced
from zsad_jax.utils.images import ANOMALOUS, INK, NORMAL, fit, load_font, outline, paper, write_line
from zsad_jax.utils.progress import progress
from zsad_jax.utils.threads import map_in_threads

T = TypeVar("T")

TILE, TALLEST = 200, 320  # the widest and the tallest picture, in pixels
WIDE, WIDEST = 2, 4  # a picture WIDE times as wide as high takes two columns and more, up to WIDEST
COLUMNS = 8
GAP, MARGIN = 12, 20
NARROWEST = 640  # of a sheet: its headings need room
FONT, HEADING, TITLE = 13, 17, 22  # sizes in pixels
CAPTION_GAP, LINE = 4, 17  # before a caption, and from one of its lines to the next
THREADS = 4


class Chosen(NamedTuple):
    """An image to show: its index, and its fields without the pictures."""

    position: int
    sample: Sample


class Tile(NamedTuple):
    """A picture with its caption: lines with their colors; `span` is how many columns it takes."""

    picture: Image.Image
    lines: list[tuple[str, str]]
    span: int = 1


def write_sheet(
    opened: OpenedDataset,
    path: pathlib.Path,
    *,
    split: str = "test",
    categories: Sequence[str] | None = None,
    per_category: int = 8,
) -> int:
    """Draws a contact sheet and writes it as a PNG; returns the number of images on it.

    Args:
      opened: what is shown.
      path, split: of the file, and which split.
      categories: which of its categories; None: all.
      per_category: how many images of each, a quarter of them normal, the others spread over the kinds of
        defect. The same images are chosen every time.

    Raises:
      UserError: the split or a category does not exist, or `path` is a folder.
    """
    if split not in opened.splits:
        known = suggest(split, opened.splits)
        raise UserError(f"{opened.title} has no split {split!r}. {known}")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder. Give the path of a PNG file.")
    dataset = opened.splits[split]
    for name in categories or ():
        if name not in dataset.categories:
            known = suggest(name, dataset.categories)
            raise UserError(
                f"{opened.title} has no category {name!r} in its {split} split. {known}"
            )
    members = _members(opened, split, categories or dataset.categories)
    rows: list[tuple[str, list[Tile]]] = []
    for category, found in members.items():
        anomalous = sum(one.sample.label for one in found)
        heading = f"{category}: {len(found) - anomalous} normal, {anomalous} anomalous"
        without = not any(one.sample.label and one.sample.has_mask for one in found)
        heading += ", no masks" * (without and anomalous > 0)
        shown = (dataset[one.position] for one in choose(found, per_category))
        # Without any mask, the heading reports it once instead of each caption.
        rows.append((heading, [_make_tile(sample, warn=not without) for sample in shown]))
    sheet = _draw(f"{opened.title}, {split}", rows)
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
    sizes = {kind: len(kinds[kind]) for kind in sorted(kinds)}
    for kind, number in _share_out(sizes, anomalous).items():
        shown += _spread(kinds[kind], number)
    return shown


def _share_out(sizes: Mapping[str, int], count: int) -> Counter[str]:
    """Shares a count out over kinds, in turn; with more kinds than that, over evenly spread ones."""
    kinds = _spread(list(sizes), min(len(sizes), count))
    turns = (kind for turn in range(count) for kind in kinds if turn < sizes[kind])
    return Counter(itertools.islice(turns, count))


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Returns `count` of the items, evenly spaced, in order."""
    # The middles of `count` equal intervals: neither end of the list is preferred.
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _members(
    opened: OpenedDataset, split: str, categories: Sequence[str]
) -> dict[str, list[Chosen]]:
    dataset = opened.splits[split]
    indices: Sequence[int] = range(len(dataset))
    if opened.recorded is not None:
        # Records are written category by category, in the order in which the categories are counted.
        counts = opened.recorded[split].items()
        written = (name for name, numbers in counts for _ in range(sum(numbers)))
        indices = [index for index, name in enumerate(written) if name in categories]

    def look(index: int) -> Chosen:
        # Without the pictures, which of a large dataset would not fit into memory.
        return Chosen(index, dataclasses.replace(dataset[index], image=b"", mask=None))

    looked: Iterable[Chosen] = map_in_threads(look, indices, num_workers=THREADS)
    found: dict[str, list[Chosen]] = {category: [] for category in categories}
    for one in progress(looked, total=len(indices), label=f"Reading {opened.title}"):
        if one.sample.category in found:
            found[one.sample.category].append(one)
    return found


def _make_tile(sample: Sample, *, warn: bool) -> Tile:
    """Returns a sample's picture and caption, which reports a missing mask if `warn`."""
    found = examine(sample)
    kind = sample.defect or ("anomalous" if sample.label else "normal")
    lines = [(kind, ANOMALOUS if sample.label else NORMAL), (_end_of(sample.file_name), INK)]
    span = 1
    if found.image is None:
        shown = paper((TILE, TILE))
    else:
        whole = np.asarray(found.image.convert("RGB"))
        height, width = whole.shape[:2]
        span = int(np.clip(width // (WIDE * height) + 1, 1, WIDEST))
        scale = min(_width(span) / width, TALLEST / height)
        shown = fit(whole, round(max(width, height) * scale))
        shown = outline(shown, found.mask if found.usable else None)
    missing = sample.label and not sample.has_mask and warn
    for issue in [*found.issues, *[Issue("mask_missing", "")] * bool(missing)]:
        lines += [(line, ANOMALOUS) for line in _wrap(issue.description, _width(span))]
    return Tile(Image.fromarray(shown), lines, span)


def _width(span: int) -> int:
    return span * (TILE + GAP) - GAP


def _wrap(words: str, width: int) -> list[str]:
    """Returns the words in lines of at most `width` pixels; a longer word has a line of its own."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if load_font(FONT).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _end_of(file_name: str) -> str:
    """Returns the end of a path, with as many of its folders as there is room for."""
    parts = pathlib.PurePosixPath(file_name.replace(os.sep, "/")).parts
    shown = parts[-1] if parts else ""
    for start in range(len(parts) - 2, -1, -1):
        longer = ("…/" if start else "") + "/".join(parts[start:])
        if load_font(FONT).getlength(longer) > TILE:
            break
        shown = longer
    return shown


def _draw(title: str, rows: Sequence[tuple[str, list[Tile]]]) -> Image.Image:
    columns = max((sum(tile.span for tile in tiles) for _, tiles in rows), default=1)
    columns = min(max(columns, 1), COLUMNS)
    width = max(2 * MARGIN + _width(columns), NARROWEST)
    parts = [_draw_heading(title, TITLE, width, 2 * GAP)]
    for heading, tiles in rows:
        parts.append(_draw_heading(heading, HEADING, width, GAP))
        parts += [_draw_line(line, width) for line in _flow(tiles, columns)]
        parts.append(Image.new("RGB", (width, GAP), "white"))
    height = MARGIN + sum(part.height for part in parts) + MARGIN - GAP
    sheet = Image.new("RGB", (width, height), "white")
    top = MARGIN
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _flow(tiles: Sequence[Tile], columns: int) -> list[list[Tile]]:
    lines: list[list[Tile]] = []
    for tile in tiles:
        if lines and sum(one.span for one in lines[-1]) + tile.span <= columns:
            lines[-1].append(tile)
        else:
            lines.append([tile])
    return lines


def _draw_heading(words: str, size: int, width: int, gap: int) -> Image.Image:
    heading = Image.new("RGB", (width, size + gap), "white")
    write_line(ImageDraw.Draw(heading), (MARGIN, 0), words, size=size, width=width - 2 * MARGIN)
    return heading


def _draw_line(tiles: Sequence[Tile], width: int) -> Image.Image:
    """Draws tiles side by side, with their pictures on the same bottom line and the captions below."""
    bottom = max(tile.picture.height for tile in tiles)
    below = CAPTION_GAP + LINE * max(len(tile.lines) for tile in tiles) + GAP
    canvas = Image.new("RGB", (width, bottom + below), "white")
    pen = ImageDraw.Draw(canvas)
    left = MARGIN
    for tile in tiles:
        canvas.paste(tile.picture, (left, bottom - tile.picture.height))
        for number, (words, color) in enumerate(tile.lines):
            corner = (left, bottom + CAPTION_GAP + number * LINE)
            write_line(pen, corner, words, width=_width(tile.span), size=FONT, color=color)
        left += _width(tile.span) + GAP
    return canvas
