"""Outlines and arrangements that the objects of the nano backbones' pre-training are made of."""

import dataclasses

import numpy as np
from jaxtyping import Float

Rng = np.random.Generator
Outline = Float[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True)
class Part:
    """A filled polygon; `colour` indexes the palette, a `repeated` part may be missing or misplaced."""

    outline: Outline
    colour: int
    repeated: bool = False


def polygon(
    corners: int, radius: float, centre=(0.0, 0.0), turn: float = 0.0, inner: float = 1.0
) -> Outline:
    """A regular polygon, or a star whose every second corner lies at `inner` of the radius."""
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    radii = radius * np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1) + centre


def disc(radius: float, centre=(0.0, 0.0)) -> Outline:
    """A circle."""
    return polygon(28, radius, centre)


def box(
    width: float, height: float, centre=(0.0, 0.0), turn: float = 0.0, rounding: float = 0.0
) -> Outline:
    """A rectangle (half sides), with corners cut or rounded by `rounding` of the shorter side."""
    cut = rounding * min(width, height)
    corners = []
    for sx, sy, start in ((1, 1, 0), (-1, 1, 90), (-1, -1, 180), (1, -1, 270)):
        angles = np.radians(start + np.linspace(0, 90, 5))
        corners.append(
            np.array([sx * (width - cut), sy * (height - cut)])
            + cut * np.stack([np.cos(angles), np.sin(angles)], -1)
        )
    points, cos, sin = np.concatenate(corners), np.cos(turn), np.sin(turn)
    return points @ np.array([[cos, sin], [-sin, cos]]) + centre


def blob(rng: Rng, radius: float, roughness: float = 0.25, centre=(0.0, 0.0)) -> Outline:
    """A smooth irregular outline."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radii = np.ones_like(angles)
    for wave in range(2, 6):
        radii += roughness / wave * rng.normal() * np.cos(wave * angles + rng.uniform(0, 6))
    return (
        radius * np.maximum(radii, 0.3)[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        + centre
    )


def any_shape(rng: Rng, radius: float) -> Outline:
    """A random simple outline about the origin."""
    kind = rng.integers(5)
    if kind == 0:
        return disc(radius)
    if kind == 1:
        return polygon(int(rng.integers(3, 9)), radius, turn=rng.uniform(0, 6))
    if kind == 2:
        return polygon(
            2 * int(rng.integers(4, 8)),
            radius,
            turn=rng.uniform(0, 6),
            inner=rng.uniform(0.45, 0.8),
        )
    if kind == 3:
        return box(radius, radius * rng.uniform(0.4, 1), rounding=rng.uniform(0, 1))
    return blob(rng, radius)


def ring(
    outline: Outline, count: int, radius: float, colour: int, start: float = 0.0
) -> list[Part]:
    """Copies around the origin, each turned with its place."""
    parts = []
    for angle in start + np.arange(count) * 2 * np.pi / count:
        cos, sin = np.cos(angle), np.sin(angle)
        parts.append(
            Part(
                (outline + np.array([radius, 0])) @ np.array([[cos, sin], [-sin, cos]]),
                colour,
                True,
            )
        )
    return parts


def grid(
    outline: Outline, columns: int, rows: int, extent: float, colour: int, aspect: float = 1.0
) -> list[Part]:
    """Copies at the cells of a grid over [-extent, extent]²."""
    xs = (np.arange(columns) - (columns - 1) / 2) * 2 * extent / columns
    ys = (np.arange(rows) - (rows - 1) / 2) * 2 * extent * aspect / rows
    return [Part(outline + np.array([x, y]), colour, True) for y in ys for x in xs]
