"""The textures of `synthetic_target`: fault-free surfaces, each image with its own colour, turn and phase."""

import numpy as np

from zsad_jax.data.synthetic import canvas
from zsad_jax.data.synthetic.scene import Scene


def paint_brushed_steel(rng: np.random.Generator) -> Scene:
    """Fine parallel streaks with soft reflections across them."""
    angle = rng.uniform(2, 15) * rng.choice([-1, 1]) + rng.choice([0, 90])
    fine = canvas.noise(rng, 1.3, stretch=rng.uniform(30, 80), angle=angle)
    broad = canvas.noise(rng, 7, stretch=25, angle=angle)
    gleam = canvas.noise(rng, 90, stretch=0.5, angle=angle)
    metals = ((0.55, 0.56, 0.58), (0.62, 0.6, 0.57), (0.45, 0.47, 0.5), (0.6, 0.52, 0.42))
    depth = rng.uniform(0.08, 0.13) * canvas.uneven(rng, 0.5, stretch=2, angle=angle)
    value = 1 + depth * fine + 0.05 * broad + 0.08 * gleam
    return Scene(canvas.tinted(value, canvas.pick(rng, metals)))


def paint_woven_basket(rng: np.random.Generator) -> Scene:
    """Flat strands that pass over and under each other."""
    period = rng.uniform(20, 30)
    u, v = canvas.frame(rng, rng.uniform(-8, 8) + rng.choice([0, 45]), wobble=1.5)
    column, row = np.floor(u / period).astype(int), np.floor(v / period).astype(int)
    over = (column + row) % 2 == 0
    across, along = u / period - column - 0.5, v / period - row - 0.5
    across, along = np.where(over, along, across), np.where(over, across, along)
    dyed = np.where(rng.random(512) < 0.25, rng.uniform(0.5, 0.75), 1.0)
    tones = dyed * rng.normal(1, 0.1, 512)
    tone = np.where(over, tones[row % 256], tones[256 + column % 256])
    fibres = np.sin(across * rng.uniform(18, 30) + 3 * canvas.noise(rng, 30))
    relief = (1 - 2.2 * across**2) * (1 - 1.3 * along**2)
    strands = ((0.78, 0.62, 0.4), (0.6, 0.44, 0.27), (0.72, 0.68, 0.58), (0.45, 0.36, 0.26))
    value = tone * relief * (1 + 0.06 * fibres + 0.03 * canvas.noise(rng, 3))
    return Scene(canvas.tinted(value, canvas.pick(rng, strands)))


def paint_marble(rng: np.random.Generator) -> Scene:
    """Clouded stone with soft veins."""
    angle = rng.uniform(0, 180)
    clouds = canvas.noise(rng, 80, octaves=4)
    bend = canvas.noise(rng, 110, octaves=4, stretch=2.0, angle=angle)
    veins = np.exp(-((bend / rng.uniform(0.12, 0.25)) ** 2)) * (0.6 + 0.35 * canvas.noise(rng, 50))
    fine = np.exp(-((canvas.noise(rng, 60, octaves=4) / 0.08) ** 2)) * 0.35
    palette = (
        ((0.82, 0.81, 0.79), (0.5, 0.5, 0.53)),
        ((0.3, 0.4, 0.36), (0.66, 0.72, 0.66)),
        ((0.75, 0.6, 0.52), (0.5, 0.35, 0.3)),
        ((0.24, 0.24, 0.27), (0.6, 0.58, 0.55)),
    )
    body, vein = palette[canvas.count(rng, 0, len(palette))]
    image = canvas.tinted(1 + 0.07 * clouds, canvas.pick(rng, [body]))
    canvas.blend(image, np.clip(veins + fine, 0, 0.75), canvas.pick(rng, [vein]))
    return Scene(image)


def paint_corrugated_card(rng: np.random.Generator) -> Scene:
    """Brown paper over parallel flutes, with fibre flecks."""
    angle = rng.uniform(-10, 10) + rng.choice([0, 90])
    u, _ = canvas.frame(rng, angle, wobble=0.8)
    period = rng.uniform(13, 21)
    phase = 2 * np.pi * u / period
    flutes = np.cos(phase) + 0.3 * np.cos(2 * phase + rng.uniform(0, 6))
    depth = rng.uniform(0.1, 0.18) * canvas.uneven(rng, 0.5)
    flecks = np.maximum(canvas.noise(rng, 2, stretch=4, angle=rng.uniform(1, 179)) - 1.6, 0)
    papers = ((0.66, 0.52, 0.37), (0.58, 0.46, 0.34), (0.74, 0.62, 0.48), (0.8, 0.77, 0.72))
    value = 1 + depth * flutes + 0.05 * canvas.noise(rng, 60, octaves=3) - 0.12 * flecks
    value += 0.03 * canvas.noise(rng, 2)
    return Scene(canvas.tinted(value, canvas.pick(rng, papers)))
