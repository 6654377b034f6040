"""Outlines and arrangements of the objects used to pretrain the nano backbones."""

import dataclasses

import numpy as np
from jaxtyping import Float

Rng = np.random.Generator
Outline = Float[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True)
class Part:
    """A filled polygon; `color` indexes the palette, a `repeated` part may be missing or misplaced."""

    outline: Outline
    color: int
    repeated: bool = False


def polygon(
    corners: int, radius: float, center=(0.0, 0.0), turn: float = 0.0, inner: float = 1.0
) -> Outline:
    """Returns a regular polygon, or a star whose every second corner is at `inner` of the radius."""
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    radii = radius * np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1) + center


def disc(radius: float, center=(0.0, 0.0)) -> Outline:
    """Returns a circle."""
    return polygon(28, radius, center)


def box(
    width: float, height: float, center=(0.0, 0.0), turn: float = 0.0, rounding: float = 0.0
) -> Outline:
    """Returns a rectangle (half sides), with corners rounded by `rounding` of the shorter side."""
    cut = rounding * min(width, height)
    corners = []
    for sx, sy, start in ((1, 1, 0), (-1, 1, 90), (-1, -1, 180), (1, -1, 270)):
        angles = np.radians(start + np.linspace(0, 90, 5))
        corners.append(
            np.array([sx * (width - cut), sy * (height - cut)])
            + cut * np.stack([np.cos(angles), np.sin(angles)], -1)
        )
    points, cos, sin = np.concatenate(corners), np.cos(turn), np.sin(turn)
    return points @ np.array([[cos, sin], [-sin, cos]]) + center


def blob(rng: Rng, radius: float, roughness: float = 0.25, center=(0.0, 0.0)) -> Outline:
    """Returns a smooth irregular outline."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radii = np.ones_like(angles)
    for wave in range(2, 6):
        radii += roughness / wave * rng.normal() * np.cos(wave * angles + rng.uniform(0, 6))
    return (
        radius * np.maximum(radii, 0.3)[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        + center
    )


def any_shape(rng: Rng, radius: float) -> Outline:
    """Returns a random simple outline around the origin."""
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


def ring(outline: Outline, count: int, radius: float, color: int, start: float = 0.0) -> list[Part]:
    """Returns copies around the origin, each rotated by its angle."""
    parts = []
    for angle in start + np.arange(count) * 2 * np.pi / count:
        cos, sin = np.cos(angle), np.sin(angle)
        parts.append(
            Part(
                (outline + np.array([radius, 0])) @ np.array([[cos, sin], [-sin, cos]]),
                color,
                True,
            )
        )
    return parts


def grid(
    outline: Outline, columns: int, rows: int, extent: float, color: int, aspect: float = 1.0
) -> list[Part]:
    """Returns copies at the cells of a grid over [-extent, extent]²."""
    xs = (np.arange(columns) - (columns - 1) / 2) * 2 * extent / columns
    ys = (np.arange(rows) - (rows - 1) / 2) * 2 * extent * aspect / rows
    return [Part(outline + np.array([x, y]), color, True) for y in ys for x in xs]
