"""Procedural objects for pretraining the nano backbones: arrangements of polygons.

An object is a list of parts in unit coordinates (the object fills about [-1, 1]²). An arrangement defect
changes one repeated part of the list; its mask is where the two renderings differ.
"""

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float
from nano_shapes import Part, any_shape, box, disc, grid, polygon, ring
from nano_textures import TEXTURES, colors, noise, paint

Image = Float[np.ndarray, "s s 3"]
Mask = Bool[np.ndarray, "s s"]
Rng = np.random.Generator
FULL_VIEW = 224  # pixels


OBJECTS: dict[str, Callable[[Rng], list[Part]]] = {}
OBJECT_NAMES: dict[str, tuple[str, ...]] = {}


def thing(*names: str):
    """Registers an arrangement as a family; the first name is its key, all names are used in captions."""

    def register(function):
        OBJECTS[names[0]] = function
        OBJECT_NAMES[names[0]] = names
        return function

    return register


@thing("shirt button", "coat button")
def button(rng):
    holes = int(rng.integers(2, 5))
    return [
        Part(disc(0.95), 0),
        Part(disc(rng.uniform(0.65, 0.85)), 1),
        *ring(disc(rng.uniform(0.08, 0.15)), holes, rng.uniform(0.22, 0.4), 2, rng.uniform(0, 6)),
    ]


@thing("flange", "pipe cover")
def flange(rng):
    holes = int(rng.integers(4, 11))
    return [
        Part(disc(0.95) if rng.random() < 0.6 else box(0.85, 0.85, rounding=0.4), 0),
        Part(disc(rng.uniform(0.2, 0.45)), 1),
        *ring(disc(rng.uniform(0.06, 0.13)), holes, rng.uniform(0.6, 0.75), 2, rng.uniform(0, 6)),
    ]


@thing("hex bolt", "screw head")
def bolt(rng):
    slot = box(rng.uniform(0.3, 0.5), rng.uniform(0.06, 0.1))
    return [
        Part(polygon(int(rng.choice([6, 6, 8])), 0.95, turn=rng.uniform(0, 6)), 0),
        Part(disc(0.68), 1),
        *ring(slot, int(rng.integers(1, 4)) * 2, 0.0, 2, rng.uniform(0, 6)),
    ]


@thing("star badge", "sheriff star")
def star(rng):
    points, turn = int(rng.integers(5, 9)), rng.uniform(0, 6)
    inner = rng.uniform(0.45, 0.7)
    return [
        Part(polygon(2 * points, 0.95, turn=turn, inner=inner), 0),
        Part(polygon(2 * points, 0.6, turn=turn, inner=inner), 1),
        *ring(disc(0.07), points, 0.8, 2, turn),
    ]


@thing("domino", "dice")
def domino(rng):
    columns, rows = rng.integers(2, 4, 2)
    return [
        Part(box(0.7, 0.9, rounding=rng.uniform(0.05, 0.4)), 0),
        *grid(disc(rng.uniform(0.09, 0.16)), int(columns), int(rows), 0.6, 1, 1.3),
    ]


@thing("comb", "rake")
def comb(rng):
    teeth = int(rng.integers(6, 15))
    width = 0.9 / teeth * rng.uniform(0.4, 0.7)
    return [
        Part(box(0.95, 0.25, (0, -0.6), rounding=0.3), 0),
        *[
            Part(part.outline + np.array([0, 0.2]), 0, True)
            for part in grid(box(width, 0.6), teeth, 1, 0.9, 0)
        ],
    ]


@thing("egg tray", "muffin tin")
def tray(rng):
    columns, rows = (int(n) for n in rng.integers(3, 7, 2))
    outline = any_shape(rng, 0.8 / max(columns, rows) * rng.uniform(0.7, 1))
    return [Part(box(0.95, 0.95, rounding=0.1), 0), *grid(outline, columns, rows, 0.88, 1)]


@thing("peg board", "rivet panel")
def pegs(rng):
    count = int(rng.integers(5, 12))
    outline = any_shape(rng, 1.8 / count * rng.uniform(0.5, 0.9))
    return [Part(box(2.2, 2.2), 0), *grid(outline, count, count, 1.8, 1)]


@thing("window frame", "shelf")
def window(rng):
    columns, rows = (int(n) for n in rng.integers(2, 6, 2))
    pane = box(0.85 / columns * rng.uniform(0.75, 0.9), 0.85 / rows * rng.uniform(0.75, 0.9))
    return [Part(box(0.95, 0.95), 0), *grid(pane, columns, rows, 0.88, 1)]


@thing("wall clock", "gauge")
def clock(rng):
    hands = [Part(box(0.3, 0.04, (0.28, 0)), 3), Part(box(0.2, 0.05, (0.18, 0)), 3)]
    turned = [
        dataclasses.replace(ring(hand.outline, 1, 0.0, 3, rng.uniform(0, 6))[0], repeated=False)
        for hand in hands
    ]
    ticks = ring(
        box(rng.uniform(0.05, 0.1), 0.03), int(rng.choice([8, 12, 16])), 0.78, 2, rng.uniform(0, 6)
    )
    return [Part(disc(0.97), 0), Part(disc(0.9), 1), *ticks, *turned]


@thing("bead chain", "necklace")
def chain(rng):
    count = int(rng.integers(8, 17))
    return ring(
        any_shape(rng, 2.2 / count * rng.uniform(0.7, 1)), count, 0.78, 0, rng.uniform(0, 6)
    )


@thing("ladder", "rail track")
def ladder(rng):
    rungs, gap = int(rng.integers(5, 11)), rng.uniform(0.3, 0.6)
    bars = [
        Part(part.outline[:, ::-1], 1, True) for part in grid(box(0.05, gap), rungs, 1, 0.95, 1)
    ]
    return [*bars, Part(box(0.07, 1.0, (gap, 0)), 0), Part(box(0.07, 1.0, (-gap, 0)), 0)]


@thing("flower", "rosette")
def flower(rng):
    petals = int(rng.integers(5, 13))
    outline = box(0.32, 2.0 / petals * rng.uniform(0.4, 0.7), rounding=1.0)
    return [*ring(outline, petals, 0.6, 0, rng.uniform(0, 6)), Part(disc(rng.uniform(0.2, 0.4)), 1)]


@thing("leaf", "feather")
def leaf(rng):
    veins = int(rng.integers(4, 8))
    lines = [part.outline for part in grid(box(0.02, 0.22), veins, 1, 0.7, 2)]
    return [
        Part(box(0.95, rng.uniform(0.4, 0.6), rounding=1.0), 0),
        Part(box(0.9, 0.03), 1),
        *[Part(line, 1, True) for line in lines],
    ]


@thing("snowflake", "asterisk")
def snowflake(rng):
    arms, turn = int(rng.integers(5, 9)), rng.uniform(0, 6)
    cross = box(0.04, rng.uniform(0.12, 0.25))
    return [
        *ring(box(0.45, 0.05), arms, 0.48, 0, turn),
        *ring(cross, arms, rng.uniform(0.5, 0.8), 0, turn),
    ]


@thing("wall socket", "control panel")
def socket(rng):
    outline = any_shape(rng, rng.uniform(0.1, 0.17))
    count = int(rng.integers(2, 5))
    return [
        Part(box(0.95, 0.95, rounding=0.2), 0),
        Part(box(0.75, 0.75, rounding=0.3), 1),
        *grid(outline, count, int(rng.integers(2, 5)), 0.66, 2),
    ]


@thing("ceiling fan", "propeller")
def fan(rng):
    blades = int(rng.integers(3, 9))
    outline = box(0.4, rng.uniform(0.1, 0.2), rounding=rng.uniform(0, 1))
    return [
        *ring(outline, blades, 0.52, 0, rng.uniform(0, 6)),
        Part(disc(rng.uniform(0.12, 0.25)), 1),
    ]


@thing("abacus", "counting frame")
def abacus(rng):
    rows = int(rng.integers(3, 7))
    bead = box(0.08, 0.6 / rows, rounding=1.0)
    rods = [Part(part.outline, 1) for part in grid(box(0.9, 0.02), 1, rows, 0.85, 1)]
    return [
        Part(box(0.98, 0.98), 0),
        Part(box(0.9, 0.9), 3),
        *rods,
        *grid(bead, int(rng.integers(5, 10)), rows, 0.85, 2),
    ]


@thing("wooden crate", "pallet")
def crate(rng):
    slats = int(rng.integers(4, 9))
    return [
        Part(box(0.98, 0.98), 1),
        *grid(box(0.95, 0.8 / slats), 1, slats, 0.95, 0),
        Part(box(0.07, 0.98, (-0.8, 0)), 2),
        Part(box(0.07, 0.98, (0.8, 0)), 2),
    ]


@thing("traffic light", "remote control")
def lights(rng):
    rows = int(rng.integers(3, 6))
    return [Part(box(0.4, 0.95, rounding=0.4), 0), *grid(disc(0.7 / rows), 1, rows, 0.88, 1)]


@thing("medal", "dinner plate")
def medal(rng):
    radii = np.sort(rng.uniform(0.3, 0.9, 3))[::-1]
    return [Part(disc(0.96), 3), *[Part(disc(radius), index) for index, radius in enumerate(radii)]]


@thing("ship wheel", "wagon wheel")
def wheel(rng):
    spokes = int(rng.integers(4, 11))
    return [
        Part(disc(0.95), 0),
        Part(disc(0.78), 3),
        *ring(box(0.4, rng.uniform(0.04, 0.08)), spokes, 0.42, 0, rng.uniform(0, 6)),
        Part(disc(0.2), 1),
    ]


@thing("paint box", "sticker sheet")
def paint_box(rng):
    columns, rows = (int(n) for n in rng.integers(2, 5, 2))
    outline = any_shape(rng, 0.75 / max(columns, rows))
    parts = grid(outline, columns, rows, 0.9, 0)
    return [
        Part(box(0.97, 0.97, rounding=0.1), 3),
        *[dataclasses.replace(part, color=i % 3) for i, part in enumerate(parts)],
    ]


@thing("chocolate box", "jewel tray")
def chocolates(rng):
    columns, rows = (int(n) for n in rng.integers(2, 6, 2))
    outer = any_shape(rng, 0.85 / max(columns, rows) * rng.uniform(0.75, 1))
    layers = [(outer, 1), (outer * rng.uniform(0.6, 0.85), 2)]
    if rng.random() < 0.5:  # a mark on each piece
        layers.append((box(0.5, 0.12) * np.abs(outer).max() * rng.uniform(0.6, 1.1), 3))
    copies = [grid(outline, columns, rows, 0.86, color) for outline, color in layers]
    return [
        Part(box(0.96, 0.96, rounding=rng.uniform(0, 0.3)), 0),
        *(part for copy in copies for part in copy),
    ]


@thing("mixing desk", "metro plan")
def sliders(rng):
    columns, rows = int(rng.integers(3, 9)), int(rng.integers(1, 4))
    wires = [Part(part.outline, 1) for part in grid(box(0.015, 0.9 / rows), columns, rows, 0.85, 1)]
    knob = any_shape(rng, 0.5 / columns * rng.uniform(0.8, 1.4))
    ends = [
        grid(knob + np.array([0, side * 0.45 / rows]), columns, rows, 0.85, 2) for side in (-1, 1)
    ]
    frame = [Part(box(0.88, 0.02, (0, side * 0.93)), 3) for side in (-1, 1)]
    return [Part(box(0.98, 0.98), 0), *wires, *frame, *ends[0], *ends[1]]


def change_part(rng: Rng, parts: Sequence[Part]) -> list[Part]:
    """Returns the object with one repeated part removed, moved, rotated, recolored, resized or cut."""
    index = int(rng.choice([i for i, part in enumerate(parts) if part.repeated]))
    part, changed = parts[index], list(parts)
    center = part.outline.mean(0)
    local = part.outline - center
    extent = np.abs(local).max()
    kind = rng.choice(["gone", "gone", "moved", "turned", "recolored", "resized", "cut"])
    if kind == "gone":
        del changed[index]
        return changed
    angle = rng.uniform(0, 2 * np.pi)
    if kind == "moved":
        local = local + extent * rng.uniform(0.5, 1.1) * np.array([np.cos(angle), np.sin(angle)])
    elif kind == "turned":
        turn = rng.uniform(0.4, 1.6)
        local = local @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    elif kind == "resized":
        local = local * rng.choice([0.4, 0.55, 1.5, 1.8])
    elif kind == "cut":
        direction = np.array([np.cos(angle), np.sin(angle)])
        depth = local @ direction
        local = local - np.outer(
            np.maximum(depth - rng.uniform(-0.4, 0.3) * depth.max(), 0), direction
        )
    color = part.color + 1 if kind == "recolored" else part.color
    changed[index] = Part(local + center, color, True)
    return changed


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything random about an object's image except its parts."""

    palette: Float[np.ndarray, "4 3"]
    background: Image
    matrix: Float[np.ndarray, "2 3"]
    outline: float
    grain: Float[np.ndarray, "s s"]

    def render(self, parts: Sequence[Part]) -> tuple[Image, Mask]:
        """Returns the image, and the mask of the object."""
        size = len(self.background)
        image, cover = self.background.copy(), np.zeros((size, size), np.uint8)
        for part in parts:
            points = part.outline @ self.matrix[:, :2].T + self.matrix[:, 2]
            points = np.round(points * 16).astype(np.int32)[None]
            color = self.palette[part.color % len(self.palette)]
            cv2.fillPoly(image, points, color.tolist(), cv2.LINE_AA, 4)
            cv2.fillPoly(cover, points, 1, cv2.LINE_8, 4)
            if self.outline:
                cv2.polylines(
                    image, points, True, (color * self.outline).tolist(), 1, cv2.LINE_AA, 4
                )
        image = image * (1 + self.grain * cover)[..., None]
        return np.clip(image, 0, 1).astype(np.float32), cover.astype(bool)


def make_stage(rng: Rng, size: int) -> Stage:
    """Draws a random view: colors, background, position, size, rotation and surface."""
    palette = colors(rng, 4)
    rng.shuffle(palette)
    field = 0.5 + 0.03 * noise(rng, size, rng.uniform(2, 40))
    if rng.random() < 0.25:
        field = 0.5 + 0.3 * (TEXTURES[str(rng.choice(list(TEXTURES)))](rng, size) - 0.5)
    background = paint(rng, field.astype(np.float32))
    # Usually at the scale of a full view, so that a small image is a crop of the object.
    view = max(size, FULL_VIEW) if rng.random() < 0.75 else size
    radius = view * rng.uniform(0.32, 0.5) * rng.choice([1.0, 1.0, 1.0, 1.4])
    turn = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.normal(0, 0.04)
    cos, sin = radius * np.cos(turn), radius * np.sin(turn)
    place = size / 2 + view * 0.05 * rng.normal(size=2) + (view - size) * rng.uniform(-0.6, 0.6, 2)
    matrix = np.array([[cos, -sin, place[0]], [sin, cos, place[1]]])
    outline = rng.uniform(0.4, 0.9) if rng.random() < 0.6 else 0.0
    grain = rng.uniform(0, 0.12) * noise(rng, size, rng.uniform(1.3, 12))
    return Stage(palette, background, matrix, outline, grain)


def draw_object(rng: Rng, size: int, family: str, *, changed: bool) -> tuple[Image, Mask, Mask]:
    """Draws an image of an object family, before lighting and camera.

    Args:
      rng: source of all randomness.
      size: side in pixels.
      family: a key of OBJECTS.
      changed: whether to change a repeated part.

    Returns:
      The image, the mask of the object, and the mask of the change (all False if there is none or it is not
      visible).
    """
    parts, stage = OBJECTS[family](rng), make_stage(rng, size)
    image, cover = stage.render(parts)
    none = np.zeros_like(cover)
    if not changed or not any(part.repeated for part in parts):
        return image, cover, none
    altered, _ = stage.render(change_part(rng, parts))
    difference = (np.abs(altered - image).max(-1) > 0.08).astype(np.uint8)
    mask = cv2.morphologyEx(difference, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool)
    if mask.sum() < 12:
        return image, cover, none
    return altered, cover, mask
