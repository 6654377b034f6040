"""Pictures of images, anomaly maps and ground truth, as contact sheets, reports and predictions show them."""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from logging import CRITICAL, getLogger
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

OUTLINE = (0, 229, 255)
INK = "#1b1f24"
NORMAL, ANOMALOUS = "#0072b2", "#d55e00"  # distinct for every kind of color vision
DIMMED = np.float32(0.6)  # brightness of the image in an overlay
PAPER = (235, 235, 235)  # in place of a picture
COLOR_MAP = "inferno"  # perceptually uniform, ordered by lightness for every kind of color vision
FALLBACK_FONTS = (  # with Chinese, Japanese and Korean letters, on Linux, macOS and Windows
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "Malgun Gothic"),
)
ROWS_AT_ONCE = 256  # bounds the memory that a picture of tens of megapixels takes

# The layout of strips, in pixels.
MARGIN, GAP, BAR = 14, 8, 14
FONT_SIZE, LINE = 15, 21
NARROWEST = 420  # of the text

Picture = UInt8[np.ndarray, "H W 3"]
Scale = tuple[float, float]  # the values of the darkest and the brightest color


class Strip(NamedTuple):
    """Pictures side by side, with their names, below lines of text in a color each."""

    lines: Sequence[tuple[str, str]]
    panels: Sequence[tuple[str, Picture]]


@contextlib.contextmanager
def drawing(what: str) -> Iterator[None]:
    """Turns an error in drawing into a warning, since no name in a picture may end a finished run."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        logging.warning("Cannot draw %s: %s.", what, error)


def scale_of(maps: Iterable[Float[np.ndarray, "h w"]]) -> Scale:
    """Returns the lowest and the highest value of maps, for a method whose range is unknown."""
    ends = [(float(one.min()), float(one.max())) for one in maps] or [(0.0, 1.0)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return low, high if low < high else low + 1


def colorize(
    anomaly_map: Float[np.ndarray, "h w"], *, scale: Scale, size: tuple[int, int] | None = None
) -> Picture:
    """Returns an anomaly map in colors, at its own size or at `size` (H, W).

    Values outside `scale`, which is never taken from the map, take the color of its nearer end.
    """
    return _palette()[_levels(anomaly_map, size or anomaly_map.shape, scale)]


def overlay(
    image: Picture, anomaly_map: Float[np.ndarray, "h w"], *, scale: Scale, alpha: float = 0.75
) -> Picture:
    """Returns an image in dim gray with its anomaly map laid over it.

    The opacity grows with the map up to the middle of the scale, where it is `alpha`, so that only gray is
    seen where the map is at the low end. All color is the map's, which is interpolated bilinearly.
    """
    levels = _levels(anomaly_map, image.shape[:2], scale)
    # One look-up per pixel in a table of 256 levels, instead of arithmetic on three channels of floats.
    opacity = alpha * np.linspace(0, 2, 256, dtype=np.float32)[:, None].clip(max=1)
    colors = _palette() * opacity
    gray = np.asarray(Image.fromarray(image).convert("L"))
    picture = np.empty_like(image)
    for rows in _bands(image.shape[0]):
        below = (1 - opacity)[levels[rows]] * (DIMMED * gray[rows, :, None])
        picture[rows] = np.rint(below + colors[levels[rows]])
    return picture


def outline(image: Picture, mask: Bool[np.ndarray, "h w"] | None) -> Picture:
    """Returns an image with a bright, dark-rimmed line around the mask, just outside of it.

    Both have any resolution. However small a defect and the image, it keeps a pixel. Without a mask, or with
    an empty one, the image is unchanged.
    """
    import cv2

    if mask is None or not mask.any():
        return image
    height, width = image.shape[:2]
    whole = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).convert("F")
    # The box filter averages all pixels of the mask, so that no small defect falls between two samples.
    inside = (np.asarray(whole.resize((width, height), Image.Resampling.BOX)) > 0).astype(np.uint8)
    thickness = 1 + max(height, width) // 400
    sides = (2 * thickness + 1, 2 * thickness + 3)
    line, rim = (cv2.dilate(inside, np.ones((side, side), np.uint8)) > 0 for side in sides)
    outlined = image.copy()
    outlined[rim & ~line] = 0
    outlined[line & (inside == 0)] = OUTLINE
    return outlined


def fit(image: Picture, longest: int) -> Picture:
    """Returns an image resized to a longest side of `longest` pixels, with its aspect kept."""
    whole = Image.fromarray(image)
    size = [max(round(side * longest / max(whole.size)), 1) for side in whole.size]
    return np.asarray(whole.resize((size[0], size[1]), Image.Resampling.BICUBIC))


def paper(size: tuple[int, int], words: str = "") -> Picture:
    """Returns a gray picture of (H, W) pixels with words in its middle, in place of an absent one."""
    canvas = Image.new("RGB", size[::-1], PAPER)
    middle = (size[1] / 2, size[0] / 2)
    ImageDraw.Draw(canvas).text(middle, words, INK, load_font(FONT_SIZE), anchor="mm")
    return np.asarray(canvas)


def draw_strips(strips: Sequence[Strip], *, scale: Scale) -> Image.Image:
    """Draws strips of pictures below each other, and the color scale of their maps beside them.

    Pictures at the same position of each strip are aligned; the names are those of the first strip.
    """
    ticks = [f"{value:.3g}" for value in np.linspace(scale[1], scale[0], 3)]
    bar_width = BAR + 4 + round(max(load_font(FONT_SIZE).getlength(tick) for tick in ticks))
    columns = zip(*(strip.panels for strip in strips), strict=True)
    widths = [max(picture.shape[1] for _, picture in column) for column in columns]
    heights = [max(picture.shape[0] for _, picture in strip.panels) for strip in strips]
    lefts = MARGIN + np.cumsum([0, *(width + GAP for width in widths)])
    inside = max(int(lefts[-1]) - MARGIN + bar_width, NARROWEST)
    names = LINE * any(name for name, _ in strips[0].panels)
    text = names + sum(LINE * len(strip.lines) + 2 * GAP for strip in strips) - GAP
    canvas = Image.new("RGB", (inside + 2 * MARGIN, 2 * MARGIN + text + sum(heights)), "white")
    pen = ImageDraw.Draw(canvas)
    tops: list[int] = []
    bottom = MARGIN - GAP
    for strip, height in zip(strips, heights, strict=True):
        top = bottom + GAP
        for line, color in strip.lines:
            write_line(pen, (MARGIN, top), line, width=inside, color=color)
            top += LINE
        tops.append(top + GAP + (0 if tops else names))
        bottom = tops[-1] + height
        for (name, picture), left, width in zip(strip.panels, lefts.tolist(), widths, strict=False):
            if len(tops) == 1:
                write_line(pen, (left, tops[0] - LINE), name, width=width)
            canvas.paste(Image.fromarray(picture), (left, tops[-1]))
    _draw_scale(canvas, (int(lefts[-1]), tops[0]), bottom - tops[0], scale, ticks)
    return canvas


def rewrite_line(picture: Image.Image, number: int, words: str, *, color: str) -> None:
    """Writes another line in place of one above the first strip that `draw_strips` drew."""
    pen, top = ImageDraw.Draw(picture), MARGIN + number * LINE
    pen.rectangle((0, top, picture.width, top + LINE - 1), "white")
    write_line(pen, (MARGIN, top), words, width=picture.width - 2 * MARGIN, color=color)


def _draw_scale(
    canvas: Image.Image, corner: tuple[int, int], height: int, scale: Scale, ticks: Sequence[str]
) -> None:
    """Draws the color scale, with as many of its ends and its middle as there is room for."""
    left, top = corner
    values = np.linspace(scale[1], scale[0], max(height, 2), dtype=np.float32)[:, None]
    canvas.paste(Image.fromarray(colorize(values, scale=scale, size=(height, BAR))), corner)
    pen = ImageDraw.Draw(canvas)
    for number in [0, 1, 2] if height >= 3 * LINE else [0, 2] if height >= 2 * LINE else []:
        place = (left + BAR + 4, top + round(number / 2 * (height - FONT_SIZE)) - 2)
        pen.text(place, ticks[number], INK, load_font(FONT_SIZE))


def write_line(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    words: str,
    *,
    width: float,
    size: int = FONT_SIZE,
    color: str = INK,
) -> None:
    """Writes a line of text below and right of `corner`, shortened to `width`; all in pixels."""
    font = load_font(size, printable(words))
    pen.text(corner, shorten(words, width, font), color, font)


def shorten(line: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """Returns the line, printable and with its middle removed so that it is at most `width` pixels wide."""
    line = printable(line)
    keep, shortened = len(line), line
    while keep > 8 and font.getlength(shortened) > width:
        keep -= 1
        shortened = f"{line[: keep - keep // 2]}…{line[-(keep // 2) :]}"
    return shortened


def printable(text: str) -> str:
    """Escapes what cannot be drawn: line breaks, control characters, bytes that are not text."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def load_font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Loads the font of the charts, or another with letters of the text that it lacks, at a size in pixels."""
    import matplotlib

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    if not _letters(path).issuperset(text):
        path = fallback_font() or path
    return _read_font(path, size)


_read_font = functools.cache(ImageFont.truetype)


@functools.cache
def _letters(path: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(path).get_charmap()))


@functools.cache
def fallback_font() -> str | None:
    """Returns the file of an installed font with letters that the font of the charts lacks, or warns once."""
    from matplotlib.font_manager import fontManager

    installed = {entry.name: entry.fname for entry in fontManager.ttflist}
    found = next((installed[name] for name in FALLBACK_FONTS if name in installed), None)
    if found is None:
        words = "No installed font has all letters of the names: pictures show boxes. Install one such as %s."
        logging.warning(words, FALLBACK_FONTS[0])
    return found


def palette_stops(count: int) -> list[str]:
    """Returns colors of the scale from low to high, evenly spaced, as "#rrggbb"."""
    colors = _palette()[np.linspace(0, 255, count).round().astype(int)]
    return [f"#{color.tobytes().hex()}" for color in colors]


@functools.cache
def _palette() -> UInt8[np.ndarray, "256 3"]:
    from matplotlib import colormaps

    return (colormaps[COLOR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def _bands(height: int) -> list[slice]:
    return [slice(row, min(row + ROWS_AT_ONCE, height)) for row in range(0, height, ROWS_AT_ONCE)]


def _levels(
    anomaly_map: Float[np.ndarray, "h w"], size: tuple[int, ...], scale: Scale
) -> UInt8[np.ndarray, "H W"]:
    """Returns a map, resized to `size`, as positions 0 … 255 on the scale."""
    low, high = scale
    source = Image.fromarray(np.asarray(anomaly_map, np.float32))
    levels = np.empty(size, np.uint8)
    for rows in _bands(size[0]):
        # Pillow's filter reaches beyond the box, so bands join without a seam.
        start, stop = (row * source.height / size[0] for row in (rows.start, rows.stop))
        kernel, shape = Image.Resampling.BILINEAR, (size[1], rows.stop - rows.start)
        resized = source.resize(shape, kernel, box=(0, start, source.width, stop))
        share = (np.asarray(resized) - low) / (high - low)
        levels[rows] = np.rint(np.clip(share, 0, 1) * 255)
    return levels


def set_up_decoders() -> None:
    """Silences Pillow and OpenCV, which raise for unreadable images anyway, and bounds Pillow's memory."""
    warnings.filterwarnings("ignore", module="PIL")
    getLogger("PIL").setLevel(CRITICAL)
    # Read when cv2 is imported, here and in worker processes.
    os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
    # glibc returns freed blocks of this size; Pillow's own of 16 MiB stay in the arena of each thread.
    Image.core.set_block_size(64 << 20)
