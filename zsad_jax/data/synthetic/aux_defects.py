"""How things go wrong in `synthetic_aux`. Every function takes (rng, scene) and returns the mask."""

import numpy as np

from zsad_jax.data.synthetic import canvas
from zsad_jax.data.synthetic.scene import Part, Scene


def plough_groove(rng: np.random.Generator, scene: Scene):
    """A straight groove with one lit and one shaded flank, sometimes with a kink."""
    centre = scene.place(rng, 20)
    length, angle = rng.uniform(26, 60), rng.uniform(0, 180)
    spine = np.array([[-0.5, 0.0], [rng.uniform(-0.2, 0.2), rng.uniform(-0.12, 0.12)], [0.5, 0.0]])
    points = canvas.rotate(spine * length, angle) + centre
    width = rng.uniform(2.4, 4.2)
    flank = canvas.rotate(np.array([[0.0, 0.6 * width]]), angle)[0]
    lit = canvas.stroke([(points - flank, width, width)]) * scene.region
    shaded = canvas.stroke([(points + flank, width, width)]) * scene.region
    surface = scene.colour(centre)
    canvas.blend(scene.image, 0.8 * lit, np.clip(1.4 * surface + 0.22, 0, 1))
    canvas.blend(scene.image, 0.85 * shaded, 0.25 * surface)
    return np.maximum(lit, shaded) > 0.3


def splash_drops(rng: np.random.Generator, scene: Scene):
    """One large and several small drops of oil or paint, opaque in the middle and soft at the edge."""
    import cv2

    centre, radius = scene.place(rng, 18), rng.uniform(8, 16)
    drops = [canvas.ellipse(centre, radius * rng.uniform(0.8, 1.2, 2), angle=rng.uniform(0, 180))]
    for _ in range(canvas.count(rng, 3, 8)):
        direction = canvas.rotate(np.array([[1.0, 0.0]]), rng.uniform(0, 360))[0]
        middle = centre + direction * radius * rng.uniform(1.0, 1.9)
        drops.append(canvas.ellipse(middle, rng.uniform(0.12, 0.4) * radius))
    alpha = cv2.GaussianBlur(canvas.coverage(drops), (0, 0), 1.3) * scene.region
    inks = (
        (0.12, 0.1, 0.1),
        (0.1, 0.2, 0.5),
        (0.55, 0.12, 0.1),
        (0.85, 0.8, 0.3),
        (0.92, 0.92, 0.9),
    )
    ink = canvas.pick_contrasting(rng, inks, scene.colour(centre), apart=0.5)
    canvas.blend(scene.image, 0.85 * alpha, ink)
    return alpha > 0.2


def bore_pits(rng: np.random.Generator, scene: Scene):
    """One to three clean, round pits, dark in the shade and bright on the far wall."""
    centre = scene.place(rng, 16)
    total = np.zeros((canvas.SIZE, canvas.SIZE), np.float32)
    for number in range(canvas.count(rng, 1, 4)):
        middle = centre + (rng.uniform(-16, 16, 2) if number else 0)
        radii = rng.uniform(4.5, 10) * np.array([1.0, rng.uniform(0.7, 1.0)])
        angle = rng.uniform(0, 180)
        pit = canvas.coverage([canvas.ellipse(middle, radii, angle=angle)]) * scene.region
        floor = canvas.coverage([canvas.ellipse(middle - 0.25 * radii, 0.78 * radii, angle=angle)])
        canvas.blend(scene.image, 0.85 * pit, 0.78)
        canvas.blend(scene.image, 0.95 * pit * floor, 0.07)
        total = np.maximum(total, pit)
    return total > 0.3


def burst_star_fracture(rng: np.random.Generator, scene: Scene):
    """An impact: straight cracks that run out from one point, and a crushed middle."""
    centre, count = scene.place(rng, 20), canvas.count(rng, 4, 8)
    angles = np.linspace(0, 360, count, endpoint=False) + rng.uniform(-22, 22, count)
    rays = []
    for angle in angles:
        tip = np.array([[1.0, 0.0], [0.5, rng.uniform(-0.08, 0.08)]]) * rng.uniform(10, 32)
        rays.append((np.stack([centre, *(canvas.rotate(tip, angle)[::-1] + centre)]), 2.6, 1.0))
    crushed = canvas.coverage([canvas.blob(rng, centre, rng.uniform(3, 5), roughness=0.4)])
    drawn = np.maximum(canvas.stroke(rays), crushed) * scene.region
    lip = (
        canvas.stroke([(points + 1.2, first, last) for points, first, last in rays]) * scene.region
    )
    dark = scene.colour(centre).mean() > 0.25
    canvas.blend(scene.image, 0.4 * lip, 0.85 if dark else 0.4)
    canvas.blend(scene.image, 0.9 * drawn, 0.1 if dark else 0.85)
    return (canvas.dilate(drawn > 0.2, 1) | (lip > 0.3)) & scene.region


def break_part_off(rng: np.random.Generator, scene: Scene):
    """A part is broken out and leaves a torn bed; the mask is where the part belongs."""
    part = scene.take_part(rng)
    return _tear_bed(rng, scene, part)


def twist_part(rng: np.random.Generator, scene: Scene):
    """A part is torn from its bed and twisted; the mask is its old and its new place."""
    part = scene.take_part(rng)
    bed = _tear_bed(rng, scene, part)
    slip = rng.normal(size=2)
    slip *= part.extent * rng.uniform(0.4, 0.65) / np.linalg.norm(slip)
    twisted = part.moved(slip, rng.choice([-1, 1]) * rng.uniform(28, 60))
    scene.parts.append(twisted)  # on top of its neighbours
    return bed | twisted.footprint()


def _tear_bed(rng: np.random.Generator, scene: Scene, part: Part):
    """Leaves pale grit and dark shards where a part was; returns the part's footprint."""
    footprint = part.footprint()
    bed = canvas.coverage([canvas.scale(part.body, 0.9)])
    grit = np.clip(0.55 + 0.22 * canvas.noise(rng, 3, octaves=2), 0.1, 1.0)
    canvas.blend(scene.image, 0.75 * bed, canvas.tinted(grit, (0.85, 0.78, 0.68)))
    middles = part.centre + 0.2 * part.extent * rng.normal(size=(3, 2))
    shards = [canvas.blob(rng, middle, 0.16 * part.extent, roughness=0.5) for middle in middles]
    canvas.blend(scene.image, 0.8 * canvas.coverage(shards) * footprint, 0.15)
    return footprint


SURFACE_DEFECTS = {
    "scratch": plough_groove,
    "stain": splash_drops,
    "hole": bore_pits,
    "crack": burst_star_fracture,
}
DEFECTS = SURFACE_DEFECTS | {"missing": break_part_off, "misplaced": twist_part}
