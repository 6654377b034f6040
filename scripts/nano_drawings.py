"""Procedural images with and without defects, for pretraining the nano backbones.

`draw` makes one image of a family of `nano_textures` or `nano_objects`, optionally adds a defect, and
simulates a camera (light, blur, noise). No family or defect function is shared with the benchmark
`zsad_jax.data.synthetic`, so that the benchmark measures transfer.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from nano_objects import OBJECT_NAMES, draw_object
from nano_textures import TEXTURE_NAMES, TEXTURES, colors, draw_texture, noise

Image = Float[np.ndarray, "s s 3"]
Alpha = Float[np.ndarray, "s s"]
Rng = np.random.Generator
Defect = Callable[[Rng, Image, np.ndarray], tuple[Image, Alpha]]

FAMILIES: dict[str, tuple[str, ...]] = {**TEXTURE_NAMES, **OBJECT_NAMES}
# Excluded from training and used for evaluation.
HELD_OUT = ("honeycomb", "streaked film", "brick wall", "veined sheet", "flange", "medal")
TRAINED = tuple(family for family in FAMILIES if family not in HELD_OUT)
# Objects are harder than textures, so they are sampled more often.
FREQUENCY = np.array([1.0 if family in TEXTURES else 1.7 for family in TRAINED])
# A defect either changes the structure (missing, torn, moved) or marks the surface.
STRUCTURE, SURFACE = "structure", "surface"
DEFECTS: dict[str, Defect] = {}
DEFECT_GROUP: dict[str, str] = {"arrangement": STRUCTURE}
LEAST_CHANGE = 0.08  # mean absolute difference within a defect, below which it is drawn again


class Drawing(NamedTuple):
    """A drawn image and its ground truth; `defect` is "" for a normal image."""

    image: UInt8[np.ndarray, "s s 3"]
    mask: Bool[np.ndarray, "s s"]
    family: str
    defect: str


def defect(group: str):
    """Registers a defect function: `(rng, image, center) -> (changed image, opacity)`."""

    def register(function):
        DEFECTS[function.__name__] = function
        DEFECT_GROUP[function.__name__] = group
        return function

    return register


def patch_shape(rng: Rng, size: int, center, radius: float, roughness: float = 0.4) -> Alpha:
    """Returns the opacity of an irregular patch, stretched and rotated at random, with a soft edge."""
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    radii = np.ones_like(angles)
    for wave in range(2, 8):
        radii += roughness * rng.normal() / wave * np.cos(wave * angles + rng.uniform(0, 6))
    turn, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(0, 0.9))
    x, y = (
        np.maximum(radii, 0.25)
        * radius
        * np.array([np.cos(angles) * stretch, np.sin(angles) / stretch**0.5])
    )
    points = (
        np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1)
        + center
    )
    alpha = np.zeros((size, size), np.float32)
    cv2.fillPoly(alpha, np.round(points * 16).astype(np.int32)[None], 1.0, cv2.LINE_8, 4)
    return cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.5, 0.5 + 0.12 * radius))


def walk(rng: Rng, center, length: float, bend: float, steps: int = 14) -> Float[np.ndarray, "n 2"]:
    """Returns a smooth random walk through `center`."""
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(bend * rng.normal(size=steps))
    points = np.cumsum(length / steps * np.stack([np.cos(headings), np.sin(headings)], -1), 0)
    return points - points[steps // 2] + center


def trace(size: int, points: Float[np.ndarray, "n 2"], width: float) -> Alpha:
    """Returns the opacity of a line `width` pixels wide; widths below one pixel are faint."""
    alpha = np.zeros((size, size), np.float32)
    thick = max(1, round(width))
    cv2.polylines(
        alpha,
        np.round(points * 16).astype(np.int32)[None],
        False,
        min(1.0, width),
        thick,
        cv2.LINE_AA,
        4,
    )
    return np.clip(alpha, 0, 1)


def blend(image: Image, color, alpha: Alpha) -> Image:
    """Returns the image with a color or another image blended in."""
    return image + (np.asarray(color, np.float32) - image) * alpha[..., None]


def extent(rng: Rng, low: float = 3.0, high: float = 20.0) -> float:
    """Draws a radius in pixels, log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def other_color(rng: Rng, image: Image, alpha: Alpha):
    """Draws a color that differs from the one under the patch."""
    weight = alpha[..., None] + 1e-6
    under = (image * weight).sum((0, 1)) / weight.sum()
    step = rng.uniform(0.15, 0.6) * (1 if under.mean() < rng.uniform(0.3, 0.7) else -1)
    return np.clip(under + step + rng.uniform(0, 0.3) * rng.uniform(-1, 1, 3), 0, 1)


@defect(SURFACE)
def cut_lines(rng, image, center):
    """Draws one to four thin, nearly parallel lines, darker or lighter than the surface."""
    size, alpha = len(image), np.zeros(image.shape[:2], np.float32)
    line = walk(rng, center, extent(rng, 16, 110), rng.choice([0.0, 0.06, 0.2]))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        alpha = np.maximum(alpha, trace(size, line + rng.normal(0, 4, 2), rng.uniform(0.7, 3.2)))
    return blend(image, other_color(rng, image, alpha), alpha * rng.uniform(0.5, 1)), alpha


@defect(STRUCTURE)
def fracture(rng, image, center):
    """Draws a jagged dark line with branches."""
    size = len(image)
    main = walk(rng, center, extent(rng, 25, 120), 0.45, 20)
    width = rng.uniform(0.9, 2.6)
    alpha = trace(size, main, width)
    for start in rng.choice(main, rng.integers(0, 4)):
        alpha = np.maximum(
            alpha, trace(size, walk(rng, start, extent(rng, 10, 40), 0.5), width * 0.7)
        )
    dark = image.mean((0, 1)) * rng.uniform(0.0, 0.5)
    return blend(image, dark, alpha * rng.uniform(0.7, 1)), alpha


@defect(SURFACE)
def discoloring(rng, image, center):
    """Multiplies or shifts the color of a patch; the texture stays visible."""
    alpha = patch_shape(rng, len(image), center, extent(rng, 4, 26))
    tint = np.clip(
        1 + rng.choice([-1, 1]) * rng.uniform(0.15, 0.6) + rng.uniform(-0.3, 0.3, 3), 0.2, 1.8
    )
    return image * (1 + (tint - 1) * alpha[..., None]), alpha


@defect(SURFACE)
def splash(rng, image, center):
    """Draws several opaque or translucent drops of one color."""
    size, alpha = len(image), np.zeros(image.shape[:2], np.float32)
    radius = extent(rng, 2, 9)
    for _ in range(rng.integers(1, 7)):
        place = center + rng.normal(0, 1.8 * radius, 2)
        alpha = np.maximum(alpha, patch_shape(rng, size, place, radius * rng.uniform(0.4, 1), 0.2))
    return blend(image, other_color(rng, image, alpha), alpha * rng.uniform(0.5, 1)), alpha


@defect(SURFACE)
def repaint(rng, image, center):
    """Fills a patch with one random color."""
    alpha = patch_shape(rng, len(image), center, extent(rng, 4, 22), rng.uniform(0, 0.6))
    return blend(image, colors(rng, 2)[1], alpha), alpha


@defect(STRUCTURE)
def puncture(rng, image, center):
    """Draws a dark hole with a rim."""
    size, radius = len(image), extent(rng, 3, 15)
    alpha = patch_shape(rng, size, center, radius, rng.uniform(0, 0.3))
    rim = np.clip(cv2.GaussianBlur(alpha, (0, 0), 1 + radius * 0.15) * 1.6 - alpha, 0, 1)
    shade = blend(
        image, np.clip(image.mean((0, 1)) * rng.uniform(0.5, 1.6), 0, 1), rim * rng.uniform(0, 0.8)
    )
    return blend(shade, np.array(rng.uniform(0, 0.2)), alpha * rng.uniform(0.75, 1)), alpha


@defect(STRUCTURE)
def rip(rng, image, center):
    """Draws a ragged opening along a line, over a plain color or another texture."""
    size = len(image)
    line = walk(rng, center, extent(rng, 18, 80), 0.15, 10)
    width = extent(rng, 1.5, 6)
    ragged = np.concatenate([line, line[::-1]]) + rng.normal(0, width, (20, 2))
    alpha = np.zeros((size, size), np.float32)
    cv2.fillPoly(alpha, np.round(ragged * 16).astype(np.int32)[None], 1.0, cv2.LINE_AA, 4)
    return blend(image, other_color(rng, image, alpha), alpha), alpha


@defect(SURFACE)
def bump(rng, image, center):
    """Draws a dent or bulge: one side lit, the other in shade."""
    alpha = patch_shape(rng, len(image), center, extent(rng, 5, 20), 0.2)
    relief = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(2, 5))
    angle = rng.uniform(0, 2 * np.pi)
    slope = cv2.Sobel(relief, -1, 1, 0) * np.cos(angle) + cv2.Sobel(relief, -1, 0, 1) * np.sin(
        angle
    )
    slope = slope / (np.abs(slope).max() + 1e-6) * rng.uniform(0.25, 0.7)
    return image + slope[..., None], np.maximum(alpha, (np.abs(slope) > 0.08).astype(np.float32))


@defect(SURFACE)
def smear(rng, image, center):
    """Blurs a patch, in one direction or in all."""
    alpha = patch_shape(rng, len(image), center, extent(rng, 6, 24))
    if rng.random() < 0.5:
        blurred = cv2.GaussianBlur(image, (0, 0), rng.uniform(2, 7))
    else:
        kernel = np.zeros((21, 21), np.float32)
        angle = rng.uniform(0, np.pi)
        step = np.array([np.cos(angle), np.sin(angle)]) * 10
        cv2.line(
            kernel, *[tuple(np.round(10 + s * step).astype(int).tolist()) for s in (-1, 1)], 1.0
        )
        blurred = cv2.filter2D(image, -1, kernel / kernel.sum())
    return blend(image, blurred, alpha), alpha


@defect(SURFACE)
def rough_patch(rng, image, center):
    """Adds noise to a patch."""
    size = len(image)
    alpha = patch_shape(rng, size, center, extent(rng, 5, 22))
    grain = rng.uniform(0.08, 0.3) * noise(rng, size, rng.uniform(1.2, 5))
    return image + (grain * alpha)[..., None], alpha


@defect(STRUCTURE)
def displacement(rng, image, center):
    """Fills a patch from elsewhere in the image, rotated or scaled, so that its pattern does not fit."""
    size = len(image)
    alpha = patch_shape(rng, size, center, extent(rng, 6, 24), rng.uniform(0, 0.4))
    turn = rng.uniform(20, 160) if rng.random() < 0.6 else 0
    scale = rng.choice([1.0, 0.6, 1.6]) if turn else rng.choice([0.5, 0.65, 1.6, 2.0, 1.0])
    matrix = cv2.getRotationMatrix2D((float(center[0]), float(center[1])), turn, scale)
    matrix[:, 2] += rng.uniform(6, 30, 2) * rng.choice([-1, 1], 2)
    moved = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    return blend(image, moved, alpha), alpha


@defect(STRUCTURE)
def warp(rng, image, center):
    """Pinches, bulges or swirls the pattern around a point."""
    size, radius = len(image), extent(rng, 9, 26)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    dx, dy = x - center[0], y - center[1]
    weight = np.clip(1 - (dx * dx + dy * dy) / radius**2, 0, 1) ** 1.5
    push, turn = rng.uniform(-0.7, 0.7), rng.uniform(-1.5, 1.5)
    dx, dy = (
        dx * (1 + push * weight) - turn * weight * dy,
        dy * (1 + push * weight) + turn * weight * dx,
    )
    map_x, map_y = (dx + center[0]).astype(np.float32), (dy + center[1]).astype(np.float32)
    changed = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return changed, (weight > 0.15).astype(np.float32)


@defect(STRUCTURE)
def erasure(rng, image, center):
    """Replaces a patch by its local mean color, which removes the pattern."""
    size = len(image)
    alpha = patch_shape(rng, size, center, extent(rng, 5, 18), rng.uniform(0, 0.3))
    flat = cv2.GaussianBlur(image, (0, 0), rng.uniform(5, 12))
    return blend(
        image, flat if rng.random() < 0.6 else other_color(rng, image, alpha), alpha
    ), alpha


@defect(SURFACE)
def foreign_body(rng, image, center):
    """Draws a fiber, a chip or a crumb on the surface, with a shadow."""
    size = len(image)
    if rng.random() < 0.5:
        alpha = trace(size, walk(rng, center, extent(rng, 20, 80), 0.35), rng.uniform(1, 3))
    else:
        alpha = patch_shape(rng, size, center, extent(rng, 2.5, 10), 0.5)
    shift = np.float32([[1, 0, rng.uniform(-3, 3)], [0, 1, rng.uniform(-3, 3)]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, (size, size)), (0, 0), 1.2)
    color = other_color(rng, image, alpha)
    return blend(image * (1 - 0.5 * shadow[..., None]), color, alpha), alpha


@defect(SURFACE)
def crease(rng, image, center):
    """Draws a fold: a dark line beside a light one."""
    size = len(image)
    line, width = walk(rng, center, extent(rng, 30, 120), 0.08), rng.uniform(1.2, 4)
    angle = rng.uniform(0, 2 * np.pi)
    step = width * 0.7 * np.array([np.cos(angle), np.sin(angle)])
    lit, shade = (
        cv2.GaussianBlur(trace(size, line + s * step, width), (0, 0), 0.8) for s in (1, -1)
    )
    strength = rng.uniform(0.15, 0.5)
    return image + strength * (lit - shade)[..., None], np.maximum(lit, shade)


def place_defect(
    rng: Rng, image: Image, cover: Bool[np.ndarray, "s s"]
) -> tuple[Image, np.ndarray, str]:
    """Adds one random defect to the covered part; draws again until it is visible.

    Returns:
      The changed image, its mask, and the name of the defect ("" if none was visible).
    """
    rows, columns = np.nonzero(cover)
    for _ in range(8 if len(rows) else 0):  # no rows: the crop missed the object
        name = str(rng.choice(list(DEFECTS)))
        pick = rng.integers(len(rows))
        changed, alpha = DEFECTS[name](rng, image, np.array([columns[pick], rows[pick]], float))
        changed = np.clip(blend(image, changed, cover.astype(np.float32)), 0, 1).astype(np.float32)
        mask = (alpha > 0.25) & cover
        if mask.sum() < 10:
            continue
        difference = np.abs(changed - image).max(-1)[mask].mean()
        # A defect with less contrast than the image's own texture does not count as visible.
        if difference > LEAST_CHANGE + 0.15 * image[::4, ::4].std():
            return changed, mask, name
    return image, np.zeros_like(cover), ""


def photograph(rng: Rng, image: Image) -> UInt8[np.ndarray, "s s 3"]:
    """Simulates light, exposure, blur and noise, which vary between images without being defects."""
    size = len(image)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.35) * (x * np.cos(angle) + y * np.sin(angle))
    if rng.random() < 0.4:
        center = rng.uniform(-0.5, 0.5, 2)
        light = light + rng.uniform(-0.3, 0.3) * np.exp(
            -((x - center[0]) ** 2 + (y - center[1]) ** 2) / rng.uniform(0.1, 0.5)
        )
    cast = rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)
    image = image * light.astype(np.float32)[..., None] * cast.astype(np.float32)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.1))
    if rng.random() < 0.7:
        shape = image.shape if rng.random() < 0.5 else (*image.shape[:2], 1)
        image = image + np.float32(rng.uniform(0.002, 0.03)) * rng.standard_normal(
            shape, dtype=np.float32
        )
    if rng.random() < 0.15:  # a gray-scale camera
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        _, encoded = cv2.imencode(
            ".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 95))]
        )
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return pixels


def draw(rng: Rng, size: int, family: str, *, defective: bool) -> Drawing:
    """Draws one image of a family.

    Args:
      rng: source of all randomness; the same state gives the same drawing.
      size: side in pixels.
      family: a key of FAMILIES.
      defective: whether to add a defect (usually one, sometimes two).

    Returns:
      The drawing; its mask is non-empty exactly when `defect` is not "".
    """
    if family in TEXTURES:
        image = draw_texture(rng, size, family)
        cover, mask = np.ones((size, size), bool), np.zeros((size, size), bool)
    else:
        rearranged = defective and rng.random() < 0.35
        image, cover, mask = draw_object(rng, size, family, changed=rearranged)
    kind = "arrangement" if mask.any() else ""
    if defective and (not kind or rng.random() < 0.1):
        for _ in range(2 if rng.random() < 0.15 else 1):
            image, more, name = place_defect(rng, image, cover)
            mask, kind = mask | more, kind or name
    return Drawing(photograph(rng, image), mask, family, kind)
