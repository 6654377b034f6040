"""The textures of `synthetic_aux`: fault-free surfaces, each image with its own colour, turn and phase."""

import numpy as np

from zsad_jax.data.synthetic import canvas
from zsad_jax.data.synthetic.scene import Scene


def paint_leather_grain(rng: np.random.Generator) -> Scene:
    """Rounded pebbles of uneven size between creases."""
    import cv2

    cell = rng.uniform(9, 15)
    grid = np.mgrid[: int(canvas.SIZE / cell) + 2, : int(canvas.SIZE / cell) + 2].reshape(2, -1).T
    points = np.clip((grid + rng.uniform(-0.45, 0.45, grid.shape)) * cell, 0, canvas.SIZE - 1)
    open_field = np.full((canvas.SIZE, canvas.SIZE), 255, np.uint8)
    open_field[points[:, 0].astype(int), points[:, 1].astype(int)] = 0
    away = cv2.distanceTransform(open_field, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) / np.float32(cell)
    relief = 1.12 - rng.uniform(0.5, 0.9) * canvas.uneven(rng, 0.35) * away**2
    hides = (
        (0.45, 0.28, 0.18),
        (0.66, 0.5, 0.36),
        (0.3, 0.3, 0.32),
        (0.5, 0.2, 0.18),
        (0.35, 0.4, 0.33),
    )
    value = relief * (1 + 0.1 * canvas.noise(rng, 70, octaves=2) + 0.05 * canvas.noise(rng, 2))
    return Scene(canvas.tinted(value, canvas.pick(rng, hides)))


def paint_concrete(rng: np.random.Generator) -> Scene:
    """Blotchy grey with sand grain and small pores."""
    blotches = canvas.noise(rng, 70, octaves=5)
    sand = canvas.uneven(rng, 0.5) * canvas.noise(rng, 2)
    pores = np.clip(canvas.noise(rng, 5) - rng.uniform(2.2, 2.8), 0, 0.5)
    greys = ((0.6, 0.6, 0.58), (0.48, 0.49, 0.5), (0.68, 0.65, 0.6), (0.56, 0.52, 0.48))
    value = 1 + rng.uniform(0.06, 0.12) * blotches + rng.uniform(0.04, 0.08) * sand - 0.7 * pores
    return Scene(canvas.tinted(value, canvas.pick(rng, greys)))


def paint_wood_grain(rng: np.random.Generator) -> Scene:
    """Year rings cut lengthwise, with short dark vessels."""
    angle = rng.uniform(1, 12) * rng.choice([-1, 1]) + rng.choice([0, 90])
    _, v = canvas.frame(rng, angle)
    v = v + rng.uniform(5, 11) * canvas.noise(rng, 60, stretch=3, angle=angle)
    period = rng.uniform(14, 30)
    ring = (v / period) % 1.0
    depth = rng.uniform(0.2, 0.35) * canvas.uneven(rng, 0.5)
    vessels = np.clip(canvas.noise(rng, 1.4, stretch=16, angle=angle) - 1.5, 0, 1.2)
    fibre = canvas.noise(rng, 1.2, stretch=40, angle=angle)
    woods = ((0.72, 0.54, 0.34), (0.5, 0.33, 0.2), (0.82, 0.68, 0.48), (0.58, 0.36, 0.25))
    value = 1.08 - depth * ring**2.5 - 0.16 * vessels + 0.05 * fibre
    return Scene(canvas.tinted(value, canvas.pick(rng, woods)))


def paint_knitted_fabric(rng: np.random.Generator) -> Scene:
    """Columns of V-shaped stitches."""
    width, height = rng.uniform(15, 23), rng.uniform(10, 15)
    u, v = canvas.frame(rng, rng.uniform(-14, 14), wobble=1.6, wavelength=45)
    side = u / width - np.floor(u / width) - 0.5
    leg = np.abs(side)
    lift = (v + 1.5 * height * leg) / height
    strand = lift - np.floor(lift) - 0.5
    relief = (1 - 1.6 * canvas.uneven(rng, 0.4) * strand**2) * (1 - 7 * (leg - 0.25) ** 2)
    twist = np.sin(2 * np.pi * (3 * lift + 6 * side))
    yarns = (
        (0.65, 0.2, 0.22),
        (0.25, 0.36, 0.55),
        (0.8, 0.76, 0.68),
        (0.36, 0.45, 0.3),
        (0.5, 0.48, 0.5),
    )
    value = relief * (
        1.05 + 0.06 * twist + 0.05 * canvas.noise(rng, 2) + 0.06 * canvas.noise(rng, 60)
    )
    return Scene(canvas.tinted(value, canvas.pick(rng, yarns)))
