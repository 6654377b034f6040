"""The objects of `synthetic_target`: fault-free, with the parts that can be missing or misplaced."""

import numpy as np

from zsad_jax.data.synthetic import canvas, staging
from zsad_jax.data.synthetic.scene import Layer, Part, Scene

_DRUGS = (
    (0.93, 0.92, 0.9),
    (0.85, 0.45, 0.4),
    (0.9, 0.78, 0.4),
    (0.5, 0.68, 0.8),
    (0.55, 0.72, 0.5),
)


def paint_perforated_plate(rng: np.random.Generator) -> Scene:
    """A sheet with a regular grid of punched holes; a part is a hole."""
    image, pose = staging.table(rng), staging.lay_down(rng)
    ground = image.copy() * 0.55
    coats = ((0.62, 0.63, 0.65), (0.3, 0.32, 0.35), (0.72, 0.6, 0.38), (0.35, 0.48, 0.6))
    plate = staging.sheet(rng, coats)
    count = canvas.count(rng, 4, 7)
    pitch = 196 / count
    outline = pose.apply(canvas.box((0, 0), (222, 222), corner=12))
    canvas.fill(image, outline + 4, 0.05, opacity=0.4)
    canvas.fill(image, outline, plate)
    region = canvas.coverage([canvas.scale(outline, 0.96)]) > 0.9
    middles = staging.grid_points(count, count, pitch)
    if rng.random() < 0.4:  # staggered rows
        middles[:, 0] += np.where(np.arange(len(middles)) // count % 2, 0.25, -0.25) * pitch
    parts = []
    for middle in pose.apply(middles):
        hole = canvas.ellipse(middle, 0.25 * pitch * pose.zoom)
        lit, inner = canvas.scale(hole, 1.16) + 0.6, hole + 1.2
        parts.append(
            Part((Layer(lit, 0.95, 0.45), Layer(hole, 0.06, 0.9), Layer(inner, ground, 0.8)))
        )
    region &= ~canvas.dilate(canvas.coverage(part.body for part in parts) > 0.2, 1)
    return Scene(image, region, parts)


def paint_washer(rng: np.random.Generator) -> Scene:
    """A lock washer: a flat ring with twisted teeth on its inner edge; a part is a tooth."""
    image, pose = staging.table(rng), staging.lay_down(rng, turn=180)
    ground = image.copy()
    metals = ((0.66, 0.66, 0.67), (0.75, 0.63, 0.36), (0.42, 0.43, 0.46), (0.62, 0.45, 0.35))
    metal = staging.turned(rng, pose.centre, metals)
    outer, inner = rng.uniform(100, 108), rng.uniform(62, 68)
    rim = pose.apply(canvas.ellipse((0, 0), outer))
    opening = pose.apply(canvas.ellipse((0, 0), inner))
    canvas.fill(image, rim + 3, 0.05, opacity=0.45)
    canvas.fill(image, rim, metal * 0.72)
    canvas.fill(image, canvas.scale(rim, 0.975), metal)
    canvas.fill(image, opening, metal * 0.7)
    canvas.fill(image, canvas.scale(opening, 0.97), ground)
    region = canvas.coverage([canvas.scale(rim, 0.97)]) - canvas.coverage(
        [canvas.scale(opening, 1.03)]
    )
    count = canvas.count(rng, 9, 13)
    broad, twist, reach = 150 / count, rng.uniform(-5, 5), rng.uniform(34, 39)
    tooth = np.array(
        [[inner + 3, -broad], [reach, twist - 0.6 * broad], [reach, twist + 0.6 * broad]]
    )
    tooth = np.concatenate([tooth, [[inner + 3, broad]]])
    flank, top, parts = metal * 0.6, metal * 1.08, []
    for number in range(count):
        outline = pose.apply(canvas.rotate(tooth, 360 * number / count))
        face = canvas.scale(outline, 0.86)
        parts.append(Part((Layer(outline, flank), Layer(face, top))))
    return Scene(image, region > 0.9, parts)


def paint_pill_blister(rng: np.random.Generator) -> Scene:
    """A foil sheet with a pocket for every pill; a part is a pill."""
    image, pose = staging.table(rng), staging.lay_down(rng, turn=7)
    foil = staging.sheet(
        rng, ((0.7, 0.71, 0.73), (0.78, 0.72, 0.6), (0.6, 0.66, 0.72)), streaks=0.02
    )
    u, v = canvas.frame(rng, pose.angle + 45)
    foil *= (1 + 0.05 * np.sin(u * 1.1) * np.sin(v * 1.1))[..., None]
    columns, rows = [(3, 3), (3, 4), (4, 4), (4, 3)][canvas.count(rng, 0, 4)]
    pitch = np.array([212 / columns, 212 / rows])
    outline = pose.apply(canvas.box((0, 0), (224, 224), corner=14))
    canvas.fill(image, outline + 3, 0.05, opacity=0.4)
    canvas.fill(image, outline, foil)
    middles = staging.grid_points(columns, rows, pitch)
    length = 0.33 * pitch * pose.zoom if rng.random() < 0.5 else 0.31 * min(pitch) * pose.zoom
    colour = canvas.pick(rng, _DRUGS)
    scored = rng.random() < 0.5
    parts = []
    for middle in pose.apply(middles):
        pill = canvas.ellipse(middle, length, angle=pose.angle)
        pocket = canvas.scale(pill, 1.28)
        canvas.fill(image, pocket + 1.5, 0.98, opacity=0.55)
        canvas.fill(image, pocket, 0.25, opacity=0.4)
        canvas.fill(image, canvas.scale(pocket, 0.94), foil, opacity=0.8)
        layers = [Layer(pill + 2.5, 0.08, 0.4), Layer(pill, colour * 0.82)]
        layers.append(Layer(canvas.scale(pill, 0.86) - 0.8, colour))
        if scored:
            groove = np.min(length) * np.array([0.16, 1.5])
            layers.append(Layer(canvas.box(middle, groove, angle=pose.angle), colour * 0.68))
        parts.append(Part(tuple(layers)))
    return Scene(image, canvas.coverage([canvas.scale(outline, 0.97)]) > 0.9, parts)


def paint_circuit_pads(rng: np.random.Generator) -> Scene:
    """A board with a chip between two rows of plated pads, traces and vias; a part is a pad."""
    boards = ((0.16, 0.46, 0.28), (0.16, 0.3, 0.52), (0.52, 0.2, 0.2), (0.2, 0.21, 0.22))
    board = canvas.pick(rng, boards)
    weave = 1 + 0.05 * canvas.noise(rng, 2) + 0.06 * canvas.noise(rng, 60)
    image = canvas.tinted(weave, board)
    pose = staging.lay_down(rng, turn=5)
    plating = canvas.pick(rng, ((0.86, 0.72, 0.38), (0.78, 0.79, 0.8)))
    count, spread = canvas.count(rng, 5, 8), rng.uniform(52, 66)
    pitch = 190 / count
    middles = [
        (pitch * (number - (count - 1) / 2), side * spread)
        for side in (-1, 1)
        for number in range(count)
    ]
    traces, vias = _wire(rng, middles, pitch)
    lines = canvas.stroke([(pose.apply(trace), 4.0, 4.0) for trace in traces])
    canvas.blend(image, lines, np.clip(board * 1.5 + 0.03, 0, 1))
    for via in pose.apply(vias):
        canvas.fill(image, canvas.ellipse(via, 5.0), plating)
        canvas.fill(image, canvas.ellipse(via, 2.3), 0.06)
    silk = pose.apply(canvas.box((0, 0), (count * pitch + 8, 2 * spread + 44), corner=3))
    loop = np.concatenate([silk, silk[:1]])
    canvas.blend(image, 0.85 * canvas.stroke([(loop, 1.8, 1.8)]), 0.9)
    _mount_chip(rng, image, pose, 2 * (spread - rng.uniform(16, 24)))
    parts = []
    for middle in middles:
        pad = pose.apply(canvas.box(middle, (0.56 * pitch, 30), corner=3))
        face = Layer(canvas.scale(pad, 0.85), plating)
        parts.append(Part((Layer(pad + 1, 0.04, 0.4), Layer(pad, plating * 0.75), face)))
    return Scene(image, parts=parts)


def _mount_chip(rng: np.random.Generator, image: np.ndarray, pose: staging.Pose, height: float):
    """Draws the body of a chip across the middle of the board."""
    body = canvas.pick(rng, ((0.13, 0.13, 0.14), (0.26, 0.26, 0.27), (0.6, 0.58, 0.52)))
    outline = pose.apply(canvas.box((0, 0), (186, height), corner=2))
    canvas.fill(image, outline + 2, 0.03, opacity=0.5)
    canvas.fill(image, outline, body)
    canvas.fill(image, pose.apply(canvas.box((0, 0), (176, height - 10), corner=2)), body * 1.15)


def _wire(rng: np.random.Generator, pads: list[tuple[float, float]], pitch: float):
    """A trace from every pad outwards, and the vias where traces end."""
    traces, vias = [], []
    for x, y in pads:
        side, bend = np.sign(y), x + 0.5 * pitch * canvas.count(rng, -1, 2)
        stop = side * rng.uniform(98, 130)
        traces.append([(x, y), (x, side * 84), (bend, side * 94), (bend, stop)])
        vias += [(bend, stop)] if abs(stop) < 112 else []
    return traces, vias
