"""Procedural textures for pretraining the nano backbones: colored families of scalar fields.

A family is a function `(rng, size) -> field in [0, 1]` whose parameters (period, angle, jitter, profile)
are drawn again for each image; its names are used in captions. Lengths are in pixels and do not depend on
`size`, so that a small drawing looks like a crop of a large one.
"""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float

Field = Float[np.ndarray, "s s"]
Image = Float[np.ndarray, "s s 3"]
Rng = np.random.Generator

TEXTURES: dict[str, Callable[[Rng, int], Field]] = {}
TEXTURE_NAMES: dict[str, tuple[str, ...]] = {}


def texture(*names: str):
    """Registers a field function as a family; the first name is its key, all names are used in captions."""

    def register(function):
        TEXTURES[names[0]] = function
        TEXTURE_NAMES[names[0]] = names
        return function

    return register


def noise(
    rng: Rng, size: int, scale_px: float, *, stretch: float = 1.0, angle: float = 0.0
) -> Field:
    """Returns smooth Gaussian noise with about unit variance, `scale_px` wide and `stretch` times as long."""
    cells = int(np.clip(1.5 * size / scale_px, 8, 192))
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    cos, sin = np.cos(angle) / scale_px, np.sin(angle) / scale_px
    matrix = np.array(
        [
            [cos / stretch, sin / stretch, rng.uniform(0, cells)],
            [-sin, cos, rng.uniform(0, cells)],
        ]
    )
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return 1.3 * cv2.warpAffine(grid, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_WRAP)


def fractal(rng: Rng, size: int, scale_px: float, octaves: int = 4, gain: float = 0.6) -> Field:
    """Returns a sum of noises, each at half the scale and `gain` times the amplitude of the previous one."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        total += gain**octave * noise(rng, size, max(scale_px / 2**octave, 1.2))
    return total


def squash(values: Field, low: float = 2.0, high: float = 98.0) -> Field:
    """Scales values so that two percentiles map to 0 and 1; clips."""
    bottom, top = np.percentile(values[::3, ::3], (low, high))
    return np.clip((values - bottom) / max(top - bottom, 1e-6), 0, 1).astype(np.float32)


def plane(
    rng: Rng, size: int, wobble: float = 1.5, angle: float | None = None
) -> tuple[Field, Field]:
    """Returns rotated and shifted pixel coordinates; `wobble` distorts them by up to about that many pixels."""
    if angle is None:
        angle = rng.uniform(0, np.pi) if rng.random() < 0.7 else rng.choice([0, np.pi / 2])
    y, x = np.mgrid[:size, :size].astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = x * cos + y * sin + rng.uniform(0, 100), y * cos - x * sin + rng.uniform(0, 100)
    if wobble and rng.random() < 0.6:
        amount = rng.uniform(0, wobble)
        u = u + amount * noise(rng, size, rng.uniform(20, 80))
        v = v + amount * noise(rng, size, rng.uniform(20, 80))
    return u.astype(np.float32), v.astype(np.float32)


def period(rng: Rng, low: float = 5.0, high: float = 36.0) -> float:
    """Draws a length in pixels, log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def edge(values: Field, width: float = 1.0) -> Field:
    """Returns a step at 0, softened over about `width` pixels if the values are distances in pixels."""
    return np.clip(0.5 + values / width, 0, 1)


def saw(u: Field, length: float) -> Field:
    """Returns the position within a period, from 0 to 1."""
    return np.mod(u / length, 1.0)


def cell_values(rng: Rng, column: Field, row: Field) -> Field:
    """Returns a random number in [0, 1] for each cell of an integer lattice."""
    table = rng.random((64, 64), dtype=np.float32)
    return table[np.mod(row.astype(np.int32), 64), np.mod(column.astype(np.int32), 64)]


def nearest_sites(rng: Rng, size: int, spacing: float, jitter: float) -> tuple[Field, Field, Field]:
    """Returns the distances (px) to the two nearest sites of a jittered lattice, and the nearest index."""
    u, v = plane(rng, size, 0.0)
    u, v = u / spacing, v / spacing
    column, row = np.floor(u), np.floor(v)
    offset_u, offset_v = rng.uniform(-jitter, jitter, (2, 64, 64)).astype(np.float32)
    first = np.full((size, size), 9, np.float32)
    second, owner = first.copy(), np.zeros((size, size), np.float32)
    for step_row in (-1, 0, 1):
        for step_column in (-1, 0, 1):
            r, c = row + step_row, column + step_column
            index = (r.astype(np.int32) % 64, c.astype(np.int32) % 64)
            du, dv = c + 0.5 + offset_u[index] - u, r + 0.5 + offset_v[index] - v
            distance = np.sqrt(du * du + dv * dv)
            closer = distance < first
            second = np.where(closer, first, np.minimum(second, distance))
            owner = np.where(closer, index[0] * 64 + index[1], owner)
            first = np.minimum(first, distance)
    return first * spacing, second * spacing, owner


@texture("cloudy sheet", "clouded glass", "foggy film")
def clouds(rng, size):
    return squash(fractal(rng, size, period(rng, 12, 90), gain=rng.uniform(0.3, 0.8)))


@texture("sandpaper", "gritty board", "rough plaster")
def grit(rng, size):
    return squash(
        noise(rng, size, rng.uniform(1.2, 4)) + 0.3 * noise(rng, size, rng.uniform(10, 50))
    )


@texture("streaked film", "combed slate", "drawn foil")
def streaks(rng, size):
    angle = rng.uniform(0, np.pi)
    fine = noise(rng, size, rng.uniform(1.2, 3), stretch=rng.uniform(8, 60), angle=angle)
    coarse = noise(rng, size, rng.uniform(4, 16), stretch=rng.uniform(4, 20), angle=angle)
    return squash(fine + rng.uniform(0, 1) * coarse)


@texture("striped curtain", "striped shirt", "awning")
def stripes(rng, size):
    u, _ = plane(rng, size, 3.0)
    length = period(rng)
    wave = np.sin(2 * np.pi * u / length) + rng.uniform(0, 0.6) * np.sin(
        4 * np.pi * u / length + rng.uniform(0, 6)
    )
    return squash(np.tanh(rng.uniform(0.5, 5) * wave), 0, 100)


@texture("wire mesh", "fence", "net")
def mesh(rng, size):
    u, v = plane(rng, size)
    length, aspect = period(rng, 8, 32), rng.choice([1.0, 1.0, rng.uniform(0.5, 2)])
    width = length * rng.uniform(0.12, 0.35)
    across = np.minimum(
        np.abs(saw(u, length) - 0.5) * length,
        np.abs(saw(v, length * aspect) - 0.5) * length * aspect,
    )
    return edge(width / 2 - across, rng.uniform(1, 3))


@texture("dotted paper", "polka dot fabric", "studded mat")
def dots(rng, size):
    u, v = plane(rng, size)
    length = period(rng, 8, 34)
    if rng.random() < 0.5:  # every second row is shifted by half a period
        u = u + length / 2 * (np.floor(v / length) % 2)
    du, dv = (saw(u, length) - 0.5) * length, (saw(v, length) - 0.5) * length
    distance = (
        np.sqrt(du * du + dv * dv) if rng.random() < 0.7 else np.maximum(np.abs(du), np.abs(dv))
    )
    return edge(length * rng.uniform(0.2, 0.42) - distance, rng.uniform(1, 5))


@texture("chess board", "checkered tablecloth", "flag cloth")
def checker(rng, size):
    u, v = plane(rng, size)
    length = period(rng, 8, 40)
    return squash(
        np.tanh(rng.uniform(2, 9) * np.sin(np.pi * u / length) * np.sin(np.pi * v / length)), 0, 100
    )


@texture("plaid blanket", "canvas", "interlaced straps")
def interlace(rng, size):
    u, v = plane(rng, size)
    length = period(rng, 6, 30)
    over = (np.floor(u / length) + np.floor(v / length)) % 2
    if rng.random() < 0.4:
        over = (np.floor(u / length) + 2 * np.floor(v / length)) % 3 > 0
    warp, weft = np.sin(np.pi * saw(u, length)), np.sin(np.pi * saw(v, length))
    shade = np.where(
        over > 0, warp * (0.6 + 0.4 * weft), (0.3 + 0.7 * rng.random()) * weft * (0.6 + 0.4 * warp)
    )
    return squash(shade ** rng.uniform(0.4, 1.2), 0, 100)


@texture("brick wall", "block paving", "masonry")
def bricks(rng, size):
    u, v = plane(rng, size)
    height = period(rng, 9, 30)
    width, joint = height * rng.uniform(1.2, 3), rng.uniform(1, 4)
    row = np.floor(v / height)
    u = u + rng.choice([0.5, 0.33]) * width * row
    across = np.minimum(
        (0.5 - np.abs(saw(u, width) - 0.5)) * width, (0.5 - np.abs(saw(v, height) - 0.5)) * height
    )
    tone = 1 - rng.uniform(0, 0.5) * cell_values(rng, np.floor(u / width), row)
    return edge(across - joint / 2, rng.uniform(1, 3)) * tone


@texture("honeycomb", "bubble wrap", "cell foam")
def cells(rng, size):
    near, far, _ = nearest_sites(rng, size, period(rng, 9, 34), rng.uniform(0, 0.15))
    width = rng.uniform(1, 4)
    return edge(far - near - width, width) if rng.random() < 0.6 else squash(near, 0, 100)


@texture("cobblestone", "pebble floor", "crazy paving")
def pebbles(rng, size):
    near, far, owner = nearest_sites(rng, size, period(rng, 9, 40), rng.uniform(0.25, 0.5))
    tone = 1 - rng.uniform(0, 0.7) * np.mod(owner * 0.61803, 1.0)
    width = rng.uniform(1, 5)
    return edge(far - near - width, width) * tone


@texture("mosaic", "stained glass", "camouflage cloth")
def mosaic(rng, size):
    _, _, owner = nearest_sites(rng, size, period(rng, 8, 36), rng.uniform(0.2, 0.5))
    levels = rng.integers(3, 12)
    return (
        np.floor(np.mod(owner * 0.61803, 1.0) * levels).astype(np.float32)
        / (levels - 1 + 1e-6)
        * 0.99
    )


@texture("veined sheet", "agate", "onyx")
def veins(rng, size):
    ridges = np.abs(fractal(rng, size, period(rng, 20, 80), gain=rng.uniform(0.3, 0.6)))
    return squash(np.exp(-rng.uniform(2, 8) * ridges) + 0.2 * noise(rng, size, 40))


@texture("rippled sand", "corduroy", "ploughed field")
def ripples(rng, size):
    u, _ = plane(rng, size, 8.0)
    length = period(rng, 5, 24)
    return squash(
        np.sin(2 * np.pi * u / length)
        + rng.uniform(0.1, 0.8) * noise(rng, size, rng.uniform(1.5, 6))
    )


@texture("contour map", "onion skin", "layered rock")
def contours(rng, size):
    height = fractal(rng, size, period(rng, 30, 100), 2)
    return squash(np.tanh(rng.uniform(0.5, 4) * np.sin(rng.uniform(4, 14) * height)), 0, 100)


@texture("terrazzo", "confetti paper", "speckled egg")
def flecks(rng, size):
    near, _, owner = nearest_sites(rng, size, period(rng, 6, 24), 0.5)
    random_size = np.mod(owner * 0.75488, 1.0)
    tone = np.mod(owner * 0.61803, 1.0)
    return edge(period(rng, 2, 7) * random_size - near, 1.5) * (0.4 + 0.6 * tone)


@texture("felt", "carpet", "hay")
def bristles(rng, size):
    canvas = np.full((size, size), 0.5, np.float32)
    length, spread, angle = rng.uniform(5, 22), rng.uniform(0.1, 1.6), rng.uniform(0, np.pi)
    count = int(1.6 * size * size / (length * 6))
    starts = rng.uniform(-length, size + length, (count, 2))
    turns = angle + spread * rng.uniform(-1, 1, count)
    ends = starts + length * np.stack([np.cos(turns), np.sin(turns)], -1)
    lines = np.stack([starts, ends], 1).round().astype(np.int32)
    tones = rng.random(count)
    for line, tone in zip(lines, tones, strict=True):
        cv2.line(canvas, line[0].tolist(), line[1].tolist(), float(tone), 1)
    return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.9))


@texture("roof shingles", "fish scales", "feather cloth")
def scales(rng, size):
    u, v = plane(rng, size)
    length = period(rng, 10, 36)
    result = np.zeros((size, size), np.float32)
    for shift in (0, 1):  # two interleaved lattices of discs, the later over the earlier
        du = (saw(u + shift * length / 2, length) - 0.5) * length
        dv = saw(v + shift * length / 2, length) * length
        radius = np.sqrt(du * du + dv * dv) / length
        result = np.where((radius < 0.55) | (shift == 0), 1 - 1.4 * radius, result)
    return squash(result, 0, 100)


@texture("painted wall", "plain plastic", "enamel panel")
def plain(rng, size):
    return np.clip(0.5 + rng.uniform(0.02, 0.12) * noise(rng, size, period(rng, 2, 60)), 0, 1)


@texture("herringbone", "chevron rug", "twill cloth")
def chevrons(rng, size):
    u, v = plane(rng, size)
    length, width = period(rng, 6, 24), period(rng, 10, 44)
    fold = np.abs(saw(v, width) - 0.5) * width * rng.uniform(0.6, 2)
    return squash(np.tanh(rng.uniform(0.7, 6) * np.sin(2 * np.pi * (u + fold) / length)), 0, 100)


@texture("grille", "lattice screen", "radiator")
def gratings(rng, size):
    total = np.zeros((size, size), np.float32)
    angle = rng.uniform(0, np.pi)
    for turn in rng.choice([(0, np.pi / 2), (0, np.pi / 3), (0, np.pi / 4), (0, 0.2)]):
        u, _ = plane(rng, size, 0.5, angle + turn)
        total += rng.uniform(0.5, 1) * np.sin(2 * np.pi * u / period(rng, 5, 26))
    return squash(np.tanh(rng.uniform(0.4, 3) * total), 0, 100)


@texture("labyrinth", "zebra hide", "brain coral")
def labyrinth(rng, size):
    scale = period(rng, 3, 12)
    band = noise(rng, size, scale) - cv2.GaussianBlur(noise(rng, size, scale), (0, 0), scale)
    smooth = cv2.GaussianBlur(band, (0, 0), scale / 3 + 0.3)
    return squash(np.tanh(rng.uniform(1, 8) * smooth / (smooth.std() + 1e-6)), 0, 100)


@texture("mattress", "quilt", "padded cushion")
def quilt(rng, size):
    u, v = plane(rng, size)
    length = period(rng, 14, 48)
    puff = (np.abs(np.sin(np.pi * u / length)) * np.abs(np.sin(np.pi * v / length))) ** rng.uniform(
        0.2, 0.8
    )
    return squash(puff + 0.15 * rng.random() * noise(rng, size, 2), 0, 100)


@texture("sponge", "cork", "bread slice")
def pores(rng, size):
    near, _, owner = nearest_sites(rng, size, period(rng, 6, 18), 0.5)
    radius = period(rng, 2, 6) * np.mod(owner * 0.75488, 1.0)
    return 1 - edge(radius - near, 2.0) * rng.uniform(0.4, 1) - 0.1 * np.abs(noise(rng, size, 3))


@texture("window blind", "clapboard", "ribbed panel")
def ramps(rng, size):
    u, _ = plane(rng, size, 0.8)
    length = period(rng, 6, 40)
    ramp = saw(u, length) ** rng.uniform(0.5, 2)
    return 0.9 * ramp + rng.uniform(0, 0.1) * np.abs(noise(rng, size, 2))


def colors(rng: Rng, count: int) -> Float[np.ndarray, "n 3"]:
    """Draws random colors in [0, 1] that differ visibly from the first one."""
    base = rng.uniform(0.1, 0.9) + rng.uniform(0, 0.3) * rng.uniform(-1, 1, 3)
    result = [base]
    for _ in range(count - 1):
        step = rng.uniform(0.12, 0.7) * (1 if base.mean() < rng.uniform(0.25, 0.75) else -1)
        result.append(base + step + rng.uniform(0, 0.3) * rng.uniform(-1, 1, 3))
    return np.clip(result, 0.02, 0.98).astype(np.float32)


def paint(rng: Rng, field: Field) -> Image:
    """Colors a field with a blend of two or three colors and a slow change of tint."""
    low, high, middle = colors(rng, 3)
    values = field.astype(np.float32)[..., None]
    image = low + (high - low) * values
    if rng.random() < 0.3:
        image = image + (middle - 0.5 * (low + high)) * (2.4 * values * (1 - values))
    if rng.random() < 0.5:
        image = (
            image
            + np.float32(rng.uniform(0, 0.06))
            * noise(rng, len(field), rng.uniform(15, 80))[..., None]
        )
    return np.clip(image, 0, 1).astype(np.float32)


def draw_texture(rng: Rng, size: int, family: str) -> Image:
    """Draws a normal image of a texture family, before lighting and camera."""
    return paint(rng, TEXTURES[family](rng, size))
