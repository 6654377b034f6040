"""The dataset `synthetic_aux`: textures, objects and defects, which return their mask."""

import numpy as np

from zsad_jax.data.synthetic import canvas, staging
from zsad_jax.data.synthetic.scene import Layer, Part, Scene, make_categories


def paint_leather_grain(rng: np.random.Generator) -> Scene:
    """Draws rounded pebbles of uneven size between creases."""
    import cv2

    cell = rng.uniform(9, 15)
    grid = np.mgrid[: int(canvas.SIZE / cell) + 2, : int(canvas.SIZE / cell) + 2].reshape(2, -1).T
    points = np.clip((grid + rng.uniform(-0.45, 0.45, grid.shape)) * cell, 0, canvas.SIZE - 1)
    open_field = np.full((canvas.SIZE, canvas.SIZE), 255, np.uint8)
    open_field[points[:, 0].astype(int), points[:, 1].astype(int)] = 0
    away = cv2.distanceTransform(open_field, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) / np.float32(cell)
    relief = 1.12 - rng.uniform(0.5, 0.9) * canvas.uneven(rng, 0.35) * away**2
    hides = canvas.percent((45, 28, 18), (66, 50, 36), (30, 30, 32), (50, 20, 18), (35, 40, 33))
    value = relief * (1 + 0.1 * canvas.noise(rng, 70, octaves=2) + 0.05 * canvas.noise(rng, 2))
    return Scene(canvas.tinted(value, canvas.pick(rng, hides)))


def paint_concrete(rng: np.random.Generator) -> Scene:
    """Draws blotchy gray with sand grain and small pores."""
    blotches = canvas.noise(rng, 70, octaves=5)
    sand = canvas.uneven(rng, 0.5) * canvas.noise(rng, 2)
    pores = np.clip(canvas.noise(rng, 5) - rng.uniform(2.2, 2.8), 0, 0.5)
    grays = canvas.percent((60, 60, 58), (48, 49, 50), (68, 65, 60), (56, 52, 48))
    value = 1 + rng.uniform(0.06, 0.12) * blotches + rng.uniform(0.04, 0.08) * sand - 0.7 * pores
    return Scene(canvas.tinted(value, canvas.pick(rng, grays)))


def paint_wood_grain(rng: np.random.Generator) -> Scene:
    """Draws year rings cut lengthwise, with short dark vessels."""
    angle = rng.uniform(1, 12) * rng.choice([-1, 1]) + rng.choice([0, 90])
    _, v = canvas.frame(rng, angle)
    v = v + rng.uniform(5, 11) * canvas.noise(rng, 60, stretch=3, angle=angle)
    period = rng.uniform(14, 30)
    ring = (v / period) % 1.0
    depth = rng.uniform(0.2, 0.35) * canvas.uneven(rng, 0.5)
    vessels = np.clip(canvas.noise(rng, 1.4, stretch=16, angle=angle) - 1.5, 0, 1.2)
    fiber = canvas.noise(rng, 1.2, stretch=40, angle=angle)
    woods = canvas.percent((72, 54, 34), (50, 33, 20), (82, 68, 48), (58, 36, 25))
    value = 1.08 - depth * ring**2.5 - 0.16 * vessels + 0.05 * fiber
    return Scene(canvas.tinted(value, canvas.pick(rng, woods)))


def paint_knitted_fabric(rng: np.random.Generator) -> Scene:
    """Draws columns of V-shaped stitches."""
    width, height = rng.uniform(15, 23), rng.uniform(10, 15)
    u, v = canvas.frame(rng, rng.uniform(-14, 14), wobble=1.6, wavelength=45)
    side = u / width - np.floor(u / width) - 0.5
    leg = np.abs(side)
    lift = (v + 1.5 * height * leg) / height
    strand = lift - np.floor(lift) - 0.5
    relief = (1 - 1.6 * canvas.uneven(rng, 0.4) * strand**2) * (1 - 7 * (leg - 0.25) ** 2)
    twist = np.sin(2 * np.pi * (3 * lift + 6 * side))
    yarns = canvas.percent((65, 20, 22), (25, 36, 55), (80, 76, 68), (36, 45, 30), (50, 48, 50))
    fuzz = 1.05 + 0.06 * twist + 0.05 * canvas.noise(rng, 2) + 0.06 * canvas.noise(rng, 60)
    return Scene(canvas.tinted(relief * fuzz, canvas.pick(rng, yarns)))


def paint_gear(rng: np.random.Generator) -> Scene:
    """Draws a spur gear with a bore and lightening holes; a part is a tooth."""
    image, pose = staging.table(rng), staging.lay_down(rng, turn=180)
    ground = image.copy() * 0.8
    metals = canvas.percent((60, 61, 63), (70, 58, 35), (38, 38, 42), (85, 84, 80))
    metal = staging.turned(rng, pose.center, metals)
    count, root = canvas.count(rng, 11, 16), rng.uniform(78, 84)
    disc = pose.apply(canvas.ellipse((0, 0), root))
    canvas.fill(image, disc + 4, 0.05, opacity=0.4)
    canvas.fill(image, disc, metal * 0.75)
    canvas.fill(image, canvas.scale(disc, 0.97), metal)
    openings = [pose.apply(canvas.ellipse((0, 0), rng.uniform(14, 20)))]
    spokes = canvas.count(rng, 4, 7)
    for number in range(spokes):
        middle = canvas.polar(48.0, 360 * number / spokes)
        openings.append(pose.apply(canvas.ellipse(middle, rng.uniform(10.5, 11.5))))
    for opening in openings:
        canvas.fill(image, canvas.scale(opening, 1.12), metal * 1.2)
        canvas.fill(image, opening, ground)
    region = canvas.coverage([canvas.scale(disc, 0.97)]) - canvas.coverage(openings)
    broad, tip = 190 / count, root + rng.uniform(22, 27)
    tooth = np.array(
        [[root - 2, -broad], [tip, -0.55 * broad], [tip, 0.55 * broad], [root - 2, broad]]
    )
    parts = staging.teeth(pose, tooth, count, metal * 0.62, metal * 1.05, top_scale=0.84)
    return Scene(image, region > 0.9, parts)


def paint_bottle_cap(rng: np.random.Generator) -> Scene:
    """Draws a crown cap seen from above, with a ring of printed stars; a part is a star."""
    image, pose = staging.table(rng), staging.lay_down(rng, turn=180)
    paints = canvas.percent((70, 15, 15), (15, 35, 60), (82, 68, 20), (20, 45, 28), (80, 80, 82))
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
        middle = canvas.polar(55.0, angle)
        outline = pose.apply(canvas.star(middle, 17, tips=tips, inner=0.5, angle=angle))
        parts.append(Part((Layer(outline + 0.8, 0.0, 0.3), Layer(outline, ink))))
    return Scene(image, canvas.coverage([canvas.scale(face, 0.98)]) > 0.9, parts)


def paint_keypad(rng: np.random.Generator) -> Scene:
    """Draws rows of keys in their wells, each with a printed mark; a part is a key."""
    housings = canvas.percent((20, 20, 22), (62, 62, 60), (30, 34, 40), (75, 72, 65))
    image, pose = staging.sheet(rng, housings, streaks=0.01), staging.lay_down(rng, turn=6)
    columns, rows = [(3, 4), (4, 4), (4, 5), (5, 5)][canvas.count(rng, 0, 4)]
    pitch = np.array([216 / columns, 216 / rows])
    size = pitch - rng.uniform(11, 14)
    plastics = canvas.percent((85, 85, 83), (40, 41, 44), (14, 14, 15), (75, 55, 35))
    color = canvas.pick(rng, plastics)
    ink = 0.08 if color.mean() > 0.45 else 0.92
    parts = []
    for middle in staging.grid_points(columns, rows, pitch):
        well = pose.apply(canvas.box(middle, size + 5, corner=5))
        canvas.fill(image, well + 1, 0.95, opacity=0.35)
        canvas.fill(image, well, 0.04, opacity=0.8)
        key = pose.apply(canvas.box(middle, size, corner=5))
        top = canvas.scale(key, 0.86) - 1
        bars = canvas.count(rng, 1, 4)
        layers = [Layer(key, color * 0.7), Layer(top, np.clip(color * 1.04, 0, 1))]
        for bar in range(bars):
            shift = np.array([0, 5.5 * (bar - (bars - 1) / 2)])
            mark = canvas.box(middle + shift, (rng.uniform(6, 13), 2.6), corner=1)
            layers.append(Layer(pose.apply(mark) - 1, ink))
        parts.append(Part(tuple(layers)))
    return Scene(image, parts=parts)


def paint_ceramic_tile_set(rng: np.random.Generator) -> Scene:
    """Draws glazed tiles in a bed of mortar; a part is a tile."""
    mortar = canvas.noise(rng, 3, octaves=2)
    joints = canvas.pick(rng, canvas.percent((50, 49, 47), (78, 77, 74), (28, 28, 29)))
    image = canvas.tinted(0.95 + 0.07 * mortar, joints)
    pose = staging.lay_down(rng, turn=12)
    count = canvas.count(rng, 4, 7)
    pitch = 232 / count
    glazes = canvas.percent((75, 80, 80), (30, 50, 55), (70, 45, 32), (86, 82, 70), (25, 30, 45))
    colors = [canvas.pick(rng, glazes), canvas.pick(rng, glazes)]
    checkered = rng.random() < 0.5
    clouds = canvas.tinted(0.6 + 0.25 * canvas.noise(rng, 25, octaves=3), (1.0, 1.0, 1.0))
    parts = []
    for number, middle in enumerate(staging.grid_points(count, count, pitch)):
        row, column = divmod(number, count)
        color = colors[(row + column) % 2 if checkered else 0] * rng.uniform(0.9, 1.08)
        tile = pose.apply(canvas.box(middle, (pitch - 6, pitch - 6), corner=3))
        layers = (
            Layer(tile + 1, 0.05, 0.35),
            Layer(tile, np.clip(color, 0, 1) * 0.8),
            Layer(canvas.scale(tile, 0.9), np.clip(color, 0, 1)),
            Layer(tile, clouds, 0.16),
        )
        parts.append(Part(layers))
    return Scene(image, parts=parts)


def plow_groove(rng: np.random.Generator, scene: Scene):
    """Draws a straight groove with one lit and one shaded flank, sometimes with a kink."""
    center = scene.place(rng, 20)
    length, angle = rng.uniform(26, 60), rng.uniform(0, 180)
    spine = np.array([[-0.5, 0.0], [rng.uniform(-0.2, 0.2), rng.uniform(-0.12, 0.12)], [0.5, 0.0]])
    points = canvas.rotate(spine * length, angle) + center
    width = rng.uniform(2.4, 4.2)
    flank = canvas.rotate(np.array([[0.0, 0.6 * width]]), angle)[0]
    lit = canvas.stroke([(points - flank, width, width)]) * scene.region
    shaded = canvas.stroke([(points + flank, width, width)]) * scene.region
    surface = scene.color(center)
    canvas.blend(scene.image, 0.8 * lit, np.clip(1.4 * surface + 0.22, 0, 1))
    canvas.blend(scene.image, 0.85 * shaded, 0.25 * surface)
    return np.maximum(lit, shaded) > 0.3


def splash_drops(rng: np.random.Generator, scene: Scene):
    """Draws one large and several small drops of oil or paint, opaque in the middle and soft at the edge."""
    import cv2

    center, radius = scene.place(rng, 18), rng.uniform(8, 16)
    drops = [canvas.ellipse(center, radius * rng.uniform(0.8, 1.2, 2), angle=rng.uniform(0, 180))]
    for _ in range(canvas.count(rng, 3, 8)):
        direction = canvas.polar(1.0, rng.uniform(0, 360))
        middle = center + direction * radius * rng.uniform(1.0, 1.9)
        drops.append(canvas.ellipse(middle, rng.uniform(0.12, 0.4) * radius))
    alpha = cv2.GaussianBlur(canvas.coverage(drops), (0, 0), 1.3) * scene.region
    inks = canvas.percent((12, 10, 10), (10, 20, 50), (55, 12, 10), (85, 80, 30), (92, 92, 90))
    ink = canvas.pick_contrasting(rng, inks, scene.color(center), apart=0.5)
    canvas.blend(scene.image, 0.85 * alpha, ink)
    return alpha > 0.2


def bore_pits(rng: np.random.Generator, scene: Scene):
    """Draws one to three clean, round pits, dark in the shade and bright on the far wall."""
    center = scene.place(rng, 16)
    total = np.zeros((canvas.SIZE, canvas.SIZE), np.float32)
    for number in range(canvas.count(rng, 1, 4)):
        middle = center + (rng.uniform(-16, 16, 2) if number else 0)
        radii = rng.uniform(4.5, 10) * np.array([1.0, rng.uniform(0.7, 1.0)])
        angle = rng.uniform(0, 180)
        pit = canvas.coverage([canvas.ellipse(middle, radii, angle=angle)]) * scene.region
        floor = canvas.coverage([canvas.ellipse(middle - 0.25 * radii, 0.78 * radii, angle=angle)])
        canvas.blend(scene.image, 0.85 * pit, 0.78)
        canvas.blend(scene.image, 0.95 * pit * floor, 0.07)
        total = np.maximum(total, pit)
    return total > 0.3


def burst_star_fracture(rng: np.random.Generator, scene: Scene):
    """Draws an impact: straight cracks that run out from one point, and a crushed middle."""
    center, count = scene.place(rng, 20), canvas.count(rng, 4, 8)
    angles = np.linspace(0, 360, count, endpoint=False) + rng.uniform(-22, 22, count)
    rays = []
    for angle in angles:
        tip = np.array([[1.0, 0.0], [0.5, rng.uniform(-0.08, 0.08)]]) * rng.uniform(10, 32)
        rays.append((np.stack([center, *(canvas.rotate(tip, angle)[::-1] + center)]), 2.6, 1.0))
    crushed = canvas.coverage([canvas.blob(rng, center, rng.uniform(3, 5), roughness=0.4)])
    drawn = np.maximum(canvas.stroke(rays), crushed) * scene.region
    lip = canvas.stroke(rays, shift=1.2) * scene.region
    dark = scene.color(center).mean() > 0.25
    canvas.blend(scene.image, 0.4 * lip, 0.85 if dark else 0.4)
    canvas.blend(scene.image, 0.9 * drawn, 0.1 if dark else 0.85)
    return (canvas.dilate(drawn > 0.2, 1) | (lip > 0.3)) & scene.region


def break_part_off(rng: np.random.Generator, scene: Scene):
    """Breaks a part out, which leaves a torn bed; the mask is where the part belongs."""
    return _tear_bed(rng, scene, scene.take_part(rng))


def twist_part(rng: np.random.Generator, scene: Scene):
    """Tears a part from its bed and twists it; the mask is its old and its new place."""
    part = scene.take_part(rng)
    bed = _tear_bed(rng, scene, part)
    slip = rng.normal(size=2)
    slip *= part.extent * rng.uniform(0.4, 0.65) / np.linalg.norm(slip)
    twisted = part.moved(slip, rng.choice([-1, 1]) * rng.uniform(28, 60))
    scene.parts.append(twisted)  # on top of its neighbors
    return bed | twisted.footprint()


def _tear_bed(rng: np.random.Generator, scene: Scene, part: Part):
    """Leaves pale grit and dark shards where a part was; returns the part's footprint."""
    # A zero-shot method cannot know how many parts there should be, so the empty place shows damage.
    footprint = part.footprint()
    bed = canvas.coverage([canvas.scale(part.body, 0.9)])
    grit = np.clip(0.55 + 0.22 * canvas.noise(rng, 3, octaves=2), 0.1, 1.0)
    canvas.blend(scene.image, 0.75 * bed, canvas.tinted(grit, (0.85, 0.78, 0.68)))
    middles = part.center + 0.2 * part.extent * rng.normal(size=(3, 2))
    shards = [canvas.blob(rng, middle, 0.16 * part.extent, roughness=0.5) for middle in middles]
    canvas.blend(scene.image, 0.8 * canvas.coverage(shards) * footprint, 0.15)
    return footprint


CATEGORIES = make_categories(
    textures={
        "leather_grain": paint_leather_grain,
        "concrete": paint_concrete,
        "wood_grain": paint_wood_grain,
        "knitted_fabric": paint_knitted_fabric,
    },
    objects={
        "gear": paint_gear,
        "bottle_cap": paint_bottle_cap,
        "keypad": paint_keypad,
        "ceramic_tile_set": paint_ceramic_tile_set,
    },
    surface={
        "scratch": plow_groove,
        "stain": splash_drops,
        "hole": bore_pits,
        "crack": burst_star_fracture,
    },
    structural={"missing": break_part_off, "misplaced": twist_part},
)
