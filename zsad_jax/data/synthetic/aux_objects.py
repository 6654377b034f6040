"""The objects of `synthetic_aux`: fault-free, with the parts that can be missing or misplaced."""

import numpy as np

from zsad_jax.data.synthetic import canvas, staging
from zsad_jax.data.synthetic.scene import Layer, Part, Scene


def paint_gear(rng: np.random.Generator) -> Scene:
    """A spur gear with a bore and lightening holes; a part is a tooth."""
    image, pose = staging.table(rng), staging.lay_down(rng, turn=180)
    ground = image.copy() * 0.8
    metals = ((0.6, 0.61, 0.63), (0.7, 0.58, 0.35), (0.38, 0.38, 0.42), (0.85, 0.84, 0.8))
    metal = staging.turned(rng, pose.centre, metals)
    count, root = canvas.count(rng, 11, 16), rng.uniform(78, 84)
    disc = pose.apply(canvas.ellipse((0, 0), root))
    canvas.fill(image, disc + 4, 0.05, opacity=0.4)
    canvas.fill(image, disc, metal * 0.75)
    canvas.fill(image, canvas.scale(disc, 0.97), metal)
    openings = [pose.apply(canvas.ellipse((0, 0), rng.uniform(14, 20)))]
    spokes = canvas.count(rng, 4, 7)
    for number in range(spokes):
        middle = canvas.rotate(np.array([[48.0, 0.0]]), 360 * number / spokes)
        openings.append(pose.apply(canvas.ellipse(middle, rng.uniform(10.5, 11.5))))
    for opening in openings:
        canvas.fill(image, canvas.scale(opening, 1.12), metal * 1.2)
        canvas.fill(image, opening, ground)
    region = canvas.coverage([canvas.scale(disc, 0.97)]) - canvas.coverage(openings)
    broad, tip = 190 / count, root + rng.uniform(22, 27)
    tooth = np.array(
        [[root - 2, -broad], [tip, -0.55 * broad], [tip, 0.55 * broad], [root - 2, broad]]
    )
    flank, top, parts = metal * 0.62, metal * 1.05, []
    for number in range(count):
        outline = pose.apply(canvas.rotate(tooth, 360 * number / count))
        face = canvas.scale(outline, 0.84)
        parts.append(Part((Layer(outline, flank), Layer(face, top))))
    return Scene(image, region > 0.9, parts)


def paint_bottle_cap(rng: np.random.Generator) -> Scene:
    """A crown cap seen from above, with a ring of printed stars; a part is a star."""
    image, pose = staging.table(rng), staging.lay_down(rng, turn=180)
    paints = (
        (0.7, 0.15, 0.15),
        (0.15, 0.35, 0.6),
        (0.82, 0.68, 0.2),
        (0.2, 0.45, 0.28),
        (0.8, 0.8, 0.82),
    )
    lacquer = staging.sheet(rng, paints, streaks=0.01)
    flutes = 21
    turn = np.linspace(0, 2 * np.pi, 12 * flutes, endpoint=False)
    reach = 106 + 5 * np.cos(flutes * turn)
    edge = pose.apply(np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None])
    face = pose.apply(canvas.ellipse((0, 0), 84))
    canvas.fill(image, edge + 4, 0.05, opacity=0.45)
    canvas.fill(image, edge, lacquer * 0.62)
    for number in range(flutes):
        ridge = np.array([[86, -3.0], [108, -5.0], [108, 5.0], [86, 3.0]])
        canvas.fill(image, pose.apply(canvas.rotate(ridge, 360 * number / flutes)), lacquer * 1.1)
    canvas.fill(image, canvas.scale(face, 1.02) + 1, lacquer * 0.5)
    canvas.fill(image, face, lacquer)
    ink = 0.95 if lacquer.mean() < 0.6 else 0.12
    emblem = pose.apply(canvas.ellipse((0, 0), 26))
    canvas.fill(image, emblem, ink)
    canvas.fill(image, canvas.scale(emblem, 0.78), lacquer)
    count, tips = canvas.count(rng, 6, 9), canvas.count(rng, 4, 7)
    parts = []
    for number in range(count):
        angle = 360 * number / count
        middle = canvas.rotate(np.array([[55.0, 0.0]]), angle)
        outline = pose.apply(canvas.star(middle, 17, tips=tips, inner=0.5, angle=angle))
        parts.append(Part((Layer(outline + 0.8, 0.0, 0.3), Layer(outline, ink))))
    return Scene(image, canvas.coverage([canvas.scale(face, 0.98)]) > 0.9, parts)


def paint_keypad(rng: np.random.Generator) -> Scene:
    """Rows of keys in their wells, each with a printed mark; a part is a key."""
    housings = ((0.2, 0.2, 0.22), (0.62, 0.62, 0.6), (0.3, 0.34, 0.4), (0.75, 0.72, 0.65))
    image, pose = staging.sheet(rng, housings, streaks=0.01), staging.lay_down(rng, turn=6)
    columns, rows = [(3, 4), (4, 4), (4, 5), (5, 5)][canvas.count(rng, 0, 4)]
    pitch = np.array([216 / columns, 216 / rows])
    size = pitch - rng.uniform(11, 14)
    colour = canvas.pick(
        rng, ((0.85, 0.85, 0.83), (0.4, 0.41, 0.44), (0.14, 0.14, 0.15), (0.75, 0.55, 0.35))
    )
    ink = 0.08 if colour.mean() > 0.45 else 0.92
    parts = []
    for middle in staging.grid_points(columns, rows, pitch):
        well = pose.apply(canvas.box(middle, size + 5, corner=5))
        canvas.fill(image, well + 1, 0.95, opacity=0.35)
        canvas.fill(image, well, 0.04, opacity=0.8)
        key = pose.apply(canvas.box(middle, size, corner=5))
        top = canvas.scale(key, 0.86) - 1
        bars = canvas.count(rng, 1, 4)
        layers = [Layer(key, colour * 0.7), Layer(top, np.clip(colour * 1.04, 0, 1))]
        for bar in range(bars):
            shift = np.array([0, 5.5 * (bar - (bars - 1) / 2)])
            mark = canvas.box(middle + shift, (rng.uniform(6, 13), 2.6), corner=1)
            layers.append(Layer(pose.apply(mark) - 1, ink))
        parts.append(Part(tuple(layers)))
    return Scene(image, parts=parts)


def paint_ceramic_tile_set(rng: np.random.Generator) -> Scene:
    """Glazed tiles in a bed of mortar; a part is a tile."""
    mortar = canvas.noise(rng, 3, octaves=2)
    joints = canvas.pick(rng, ((0.5, 0.49, 0.47), (0.78, 0.77, 0.74), (0.28, 0.28, 0.29)))
    image = canvas.tinted(0.95 + 0.07 * mortar, joints)
    pose = staging.lay_down(rng, turn=12)
    count = canvas.count(rng, 4, 7)
    pitch = 232 / count
    glazes = (
        (0.75, 0.8, 0.8),
        (0.3, 0.5, 0.55),
        (0.7, 0.45, 0.32),
        (0.86, 0.82, 0.7),
        (0.25, 0.3, 0.45),
    )
    colours = [canvas.pick(rng, glazes), canvas.pick(rng, glazes)]
    chequered = rng.random() < 0.5
    clouds = canvas.tinted(0.6 + 0.25 * canvas.noise(rng, 25, octaves=3), (1.0, 1.0, 1.0))
    parts = []
    for number, middle in enumerate(staging.grid_points(count, count, pitch)):
        row, column = divmod(number, count)
        colour = colours[(row + column) % 2 if chequered else 0] * rng.uniform(0.9, 1.08)
        tile = pose.apply(canvas.box(middle, (pitch - 6, pitch - 6), corner=3))
        layers = (
            Layer(tile + 1, 0.05, 0.35),
            Layer(tile, np.clip(colour, 0, 1) * 0.8),
            Layer(canvas.scale(tile, 0.9), np.clip(colour, 0, 1)),
            Layer(tile, clouds, 0.16),
        )
        parts.append(Part(layers))
    return Scene(image, parts=parts)
