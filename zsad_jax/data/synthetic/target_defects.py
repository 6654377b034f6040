"""How things go wrong in `synthetic_target`. Every function takes (rng, scene) and returns the mask."""

import numpy as np

from zsad_jax.data.synthetic import canvas
from zsad_jax.data.synthetic.scene import Part, Scene


def scrape_hairlines(rng: np.random.Generator, scene: Scene):
    """A bundle of fine, curved, roughly parallel scratches; the mask is the band they cover."""
    centre = scene.place(rng, 22)
    angle, length = rng.uniform(0, 180), rng.uniform(34, 62)
    along = canvas.rotate(np.array([[1.0, 0.0]]), angle)[0]
    across = np.array([-along[1], along[0]])
    bow = across * rng.uniform(-0.25, 0.25) * length
    lines = []
    for number in range(canvas.count(rng, 3, 6)):
        offset = centre + across * (3.4 * number - 5.0 + rng.normal(0, 0.6))
        begin = offset - along * length * rng.uniform(0.35, 0.5)
        end = offset + along * length * rng.uniform(0.35, 0.5)
        lines.append((canvas.curve(begin, offset + bow, end), rng.uniform(1.0, 1.8), 0.8))
    bright = scene.colour(centre).mean() < 0.6
    shadow = [(points + 1.2, first, last) for points, first, last in lines]
    drawn, dark = canvas.stroke(lines) * scene.region, canvas.stroke(shadow) * scene.region
    canvas.blend(scene.image, 0.6 * dark, 0.05 if bright else 0.98)
    canvas.blend(scene.image, 0.95 * drawn, 0.95 if bright else 0.1)
    return canvas.close_gaps(np.maximum(drawn, dark) > 0.15, 3) & scene.region


def spill_tide_mark(rng: np.random.Generator, scene: Scene):
    """A dried liquid: a tinted patch with a darker rim."""
    centre, radius = scene.place(rng, 18), rng.uniform(11, 24)
    outline = canvas.blob(rng, centre, radius, roughness=0.2)
    tints = (
        (0.5, 0.34, 0.18),
        (0.3, 0.4, 0.6),
        (0.5, 0.6, 0.3),
        (0.6, 0.3, 0.32),
        (0.8, 0.8, 0.75),
    )
    tint = canvas.pick_contrasting(rng, tints, scene.colour(centre), apart=0.4)
    inside = canvas.coverage([outline]) * scene.region
    core = canvas.coverage([canvas.scale(outline, 0.86)])
    mottle = np.clip(0.6 + 0.12 * canvas.noise(rng, 9, octaves=2), 0.35, 0.8)
    canvas.blend(scene.image, inside * mottle, tint)
    canvas.blend(scene.image, 0.5 * inside * (1 - core), 0.6 * tint)
    return inside > 0.3


def tear_puncture(rng: np.random.Generator, scene: Scene):
    """A ragged opening with a raised edge; a dark surface shows light through it."""
    centre, radius = scene.place(rng, 14), rng.uniform(6.5, 12)
    outline = canvas.blob(rng, centre, radius, roughness=0.28)
    rim = canvas.scale(outline, 1.0 + 3.0 / radius)
    dark = scene.colour(centre).mean() > 0.33
    edge = canvas.coverage([rim]) * scene.region
    canvas.blend(scene.image, 0.7 * edge, 0.88 if dark else 0.45)
    canvas.blend(
        scene.image, canvas.coverage([canvas.scale(outline, 1.08)]) * edge, 0.16 if dark else 0.8
    )
    inner = canvas.coverage([canvas.scale(outline, 0.85) + 1.5]) * edge
    canvas.blend(scene.image, inner, 0.05 if dark else 0.93)
    return edge > 0.3


def split_forked_crack(rng: np.random.Generator, scene: Scene):
    """A jagged, tapering crack with branches."""
    centre = scene.place(rng, 20)
    heading = rng.uniform(0, 360)
    trunk = _wander(rng, centre, heading, steps=canvas.count(rng, 5, 9))
    back = _wander(rng, centre, heading + 180 + rng.uniform(-25, 25), steps=canvas.count(rng, 3, 6))
    width = rng.uniform(2.2, 3.4)
    lines = [(trunk, width, 0.9), (back, width, 0.9)]
    for _ in range(canvas.count(rng, 1, 4)):
        root = trunk[canvas.count(rng, 1, len(trunk) - 1)]
        side = heading + rng.choice([-1, 1]) * rng.uniform(35, 70)
        lines.append((_wander(rng, root, side, steps=canvas.count(rng, 2, 5)), 0.7 * width, 0.8))
    drawn = canvas.stroke(lines) * scene.region
    dark = scene.colour(centre).mean() > 0.33
    lip = (
        canvas.stroke([(points - 1.3, first, last) for points, first, last in lines]) * scene.region
    )
    canvas.blend(scene.image, 0.35 * lip, 0.9 if dark else 0.5)
    canvas.blend(scene.image, 0.95 * drawn, 0.06 if dark else 0.75)
    return (canvas.dilate(drawn > 0.2, 1) | (lip > 0.3)) & scene.region


def _wander(rng: np.random.Generator, start, heading: float, *, steps: int):
    """Points of a walk that keeps about its direction (degrees)."""
    turns = heading + np.clip(rng.normal(0, 32, steps), -60, 60)
    strides = rng.uniform(4.0, 7.5, steps)[:, None]
    walk = np.stack([np.cos(np.deg2rad(turns)), np.sin(np.deg2rad(turns))], 1) * strides
    return np.concatenate([[start], start + np.cumsum(walk, 0)])


def leave_seat_empty(rng: np.random.Generator, scene: Scene):
    """A part is gone and its seat is scuffed; the mask is where the part belongs."""
    part = scene.take_part(rng)
    return _scuff_seat(rng, scene, part)


def shift_part(rng: np.random.Generator, scene: Scene):
    """A part lies askew beside its scuffed seat; the mask is where it belongs and where it lies."""
    part = scene.take_part(rng)
    seat = _scuff_seat(rng, scene, part)
    direction = canvas.rotate(np.array([[1.0, 0.0]]), rng.uniform(0, 360))[0]
    turn = rng.choice([-1, 1]) * rng.uniform(18, 45)
    moved = part.moved(direction * part.extent * rng.uniform(0.4, 0.7), turn)
    scene.parts.append(moved)  # on top of its neighbours
    return seat | moved.footprint()


def _scuff_seat(rng: np.random.Generator, scene: Scene, part: Part):
    """Leaves rough flecks where a part was; returns the part's footprint."""
    seat = part.footprint()
    flecks = np.clip(0.55 + 0.5 * canvas.noise(rng, 5, octaves=2), 0, 0.9) * seat
    canvas.blend(scene.image, flecks, 0.08 if scene.image[seat].mean() > 0.4 else 0.85)
    return seat


SURFACE_DEFECTS = {
    "scratch": scrape_hairlines,
    "stain": spill_tide_mark,
    "hole": tear_puncture,
    "crack": split_forked_crack,
}
DEFECTS = SURFACE_DEFECTS | {"missing": leave_seat_empty, "misplaced": shift_part}
