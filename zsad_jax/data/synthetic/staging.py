"""Tables, poses and materials of objects."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from zsad_jax.data.synthetic import canvas
from zsad_jax.data.synthetic.scene import Layer, Part

_TABLES = canvas.percent((20, 21, 23), (75, 74, 71), (35, 42, 50), (50, 47, 42), (62, 66, 62))


class Pose(NamedTuple):
    """The pose of an object, whose own coordinates have their origin in its middle."""

    center: Float[np.ndarray, " 2"]
    angle: float
    zoom: float

    def apply(self, points) -> Float[np.ndarray, "n 2"]:
        """Maps coordinates of the object to the canvas."""
        return canvas.rotate(np.asarray(points, float) * self.zoom, self.angle) + self.center


def lay_down(rng: np.random.Generator, *, turn: float = 10.0) -> Pose:
    """Returns a random pose, at most `turn` degrees, 8 px and 7% off the nominal one."""
    center = canvas.CENTER + rng.uniform(-8.0, 8.0, 2)
    return Pose(center, rng.uniform(-turn, turn), rng.uniform(0.93, 1.07))


def table(rng: np.random.Generator) -> Float[np.ndarray, "S S 3"]:
    """Paints a plain, slightly uneven table."""
    value = 1 + 0.06 * canvas.noise(rng, 60, octaves=2)
    value += rng.uniform(0.01, 0.04) * canvas.noise(rng, 2)
    return canvas.tinted(value, canvas.pick(rng, _TABLES))


def sheet(rng: np.random.Generator, colors, *, streaks: float = 0.04) -> Float[np.ndarray, "S S 3"]:
    """Paints a rolled or molded surface in one of `colors`; `streaks` is the strength of its grain."""
    angle = rng.uniform(1, 179)
    grain = canvas.noise(rng, 1.5, stretch=20, angle=angle)
    value = 1 + streaks * grain + 0.06 * canvas.noise(rng, 80) + 0.02 * canvas.noise(rng, 2)
    return canvas.tinted(value, canvas.pick(rng, colors))


def turned(rng: np.random.Generator, center, colors) -> Float[np.ndarray, "S S 3"]:
    """Paints metal turned on a lathe: fine rings and a reflection that fans out from the middle."""
    y, x = np.mgrid[: canvas.SIZE, : canvas.SIZE].astype(np.float32)
    x, y = x - np.float32(center[0]), y - np.float32(center[1])
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    rings = np.sin(radius * rng.uniform(1.6, 2.4)) * 0.03
    fan = 0.16 * np.cos(2 * angle + rng.uniform(0, 6))
    fan += 0.06 * np.cos(5 * angle + rng.uniform(0, 6))
    value = 1 + rings + fan + 0.03 * canvas.noise(rng, 2)
    return canvas.tinted(value, canvas.pick(rng, colors))


def grid_points(columns: int, rows: int, pitch) -> Float[np.ndarray, "n 2"]:
    """Returns the middles of a columns × rows grid about the origin, row by row."""
    x, y = np.meshgrid(np.arange(columns) - (columns - 1) / 2, np.arange(rows) - (rows - 1) / 2)
    return np.stack([x.ravel(), y.ravel()], 1) * pitch


def teeth(
    pose: Pose, tooth: Float[np.ndarray, "n 2"], count: int, flank, top, *, top_scale: float
) -> list[Part]:
    """Returns a ring of `count` equal teeth, each a flank and above it a smaller top."""
    outlines = [pose.apply(canvas.rotate(tooth, 360 * number / count)) for number in range(count)]
    return [
        Part((Layer(outline, flank), Layer(canvas.scale(outline, top_scale), top)))
        for outline in outlines
    ]
