"""The dataset `synthetic_target`: textures, objects and defects, which return their mask."""

import numpy as np

from zsad_jax.data.synthetic import canvas, staging
from zsad_jax.data.synthetic.scene import Layer, Part, Scene, make_categories


def paint_brushed_steel(rng: np.random.Generator) -> Scene:
    """Draws fine parallel streaks with soft reflections across them."""
    angle = rng.uniform(2, 15) * rng.choice([-1, 1]) + rng.choice([0, 90])
    fine = canvas.noise(rng, 1.3, stretch=rng.uniform(30, 80), angle=angle)
    broad = canvas.noise(rng, 7, stretch=25, angle=angle)
    gleam = canvas.noise(rng, 90, stretch=0.5, angle=angle)
    metals = canvas.percent((55, 56, 58), (62, 60, 57), (45, 47, 50), (60, 52, 42))
    depth = rng.uniform(0.08, 0.13) * canvas.uneven(rng, 0.5, stretch=2, angle=angle)
    value = 1 + depth * fine + 0.05 * broad + 0.08 * gleam
    return Scene(canvas.tinted(value, canvas.pick(rng, metals)))


def paint_woven_basket(rng: np.random.Generator) -> Scene:
    """Draws flat strands that pass over and under each other."""
    period = rng.uniform(20, 30)
    u, v = canvas.frame(rng, rng.uniform(-8, 8) + rng.choice([0, 45]), wobble=1.5)
    column, row = np.floor(u / period).astype(int), np.floor(v / period).astype(int)
    over = (column + row) % 2 == 0
    across, along = u / period - column - 0.5, v / period - row - 0.5
    across, along = np.where(over, along, across), np.where(over, across, along)
    dyed = np.where(rng.random(512) < 0.25, rng.uniform(0.5, 0.75), 1.0)
    tones = dyed * rng.normal(1, 0.1, 512)
    tone = np.where(over, tones[row % 256], tones[256 + column % 256])
    fibers = np.sin(across * rng.uniform(18, 30) + 3 * canvas.noise(rng, 30))
    relief = (1 - 2.2 * across**2) * (1 - 1.3 * along**2)
    strands = canvas.percent((78, 62, 40), (60, 44, 27), (72, 68, 58), (45, 36, 26))
    value = tone * relief * (1 + 0.06 * fibers + 0.03 * canvas.noise(rng, 3))
    return Scene(canvas.tinted(value, canvas.pick(rng, strands)))


def paint_marble(rng: np.random.Generator) -> Scene:
    """Draws clouded stone with soft veins."""
    angle = rng.uniform(0, 180)
    clouds = canvas.noise(rng, 80, octaves=4)
    bend = canvas.noise(rng, 110, octaves=4, stretch=2.0, angle=angle)
    veins = np.exp(-((bend / rng.uniform(0.12, 0.25)) ** 2)) * (0.6 + 0.35 * canvas.noise(rng, 50))
    fine = np.exp(-((canvas.noise(rng, 60, octaves=4) / 0.08) ** 2)) * 0.35
    palette = (
        canvas.percent((82, 81, 79), (50, 50, 53)),
        canvas.percent((30, 40, 36), (66, 72, 66)),
        canvas.percent((75, 60, 52), (50, 35, 30)),
        canvas.percent((24, 24, 27), (60, 58, 55)),
    )
    stone = palette[canvas.count(rng, 0, len(palette))]
    body, vein = stone[:1], stone[1:]
    image = canvas.tinted(1 + 0.07 * clouds, canvas.pick(rng, body))
    canvas.blend(image, np.clip(veins + fine, 0, 0.75), canvas.pick(rng, vein))
    return Scene(image)


def paint_corrugated_card(rng: np.random.Generator) -> Scene:
    """Draws brown paper over parallel flutes, with fiber flecks."""
    angle = rng.uniform(-10, 10) + rng.choice([0, 90])
    u, _ = canvas.frame(rng, angle, wobble=0.8)
    period = rng.uniform(13, 21)
    phase = 2 * np.pi * u / period
    flutes = np.cos(phase) + 0.3 * np.cos(2 * phase + rng.uniform(0, 6))
    depth = rng.uniform(0.1, 0.18) * canvas.uneven(rng, 0.5)
    flecks = np.maximum(canvas.noise(rng, 2, stretch=4, angle=rng.uniform(1, 179)) - 1.6, 0)
    papers = canvas.percent((66, 52, 37), (58, 46, 34), (74, 62, 48), (80, 77, 72))
    value = 1 + depth * flutes + 0.05 * canvas.noise(rng, 60, octaves=3) - 0.12 * flecks
    value += 0.03 * canvas.noise(rng, 2)
    return Scene(canvas.tinted(value, canvas.pick(rng, papers)))


def paint_perforated_plate(rng: np.random.Generator) -> Scene:
    """Draws a sheet with a regular grid of punched holes; a part is a hole."""
    image, pose = staging.table(rng), staging.lay_down(rng)
    ground = image.copy() * 0.55
    coats = canvas.percent((62, 63, 65), (30, 32, 35), (72, 60, 38), (35, 48, 60))
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
        layers = (Layer(lit, 0.95, 0.45), Layer(hole, 0.06, 0.9), Layer(inner, ground, 0.8))
        parts.append(Part(layers))
    region &= ~canvas.dilate(canvas.coverage(part.body for part in parts) > 0.2, 1)
    return Scene(image, region, parts)


def paint_washer(rng: np.random.Generator) -> Scene:
    """Draws a lock washer: a flat ring with twisted teeth on its inner edge; a part is a tooth."""
    image, pose = staging.table(rng), staging.lay_down(rng, turn=180)
    ground = image.copy()
    metals = canvas.percent((66, 66, 67), (75, 63, 36), (42, 43, 46), (62, 45, 35))
    metal = staging.turned(rng, pose.center, metals)
    outer, inner = rng.uniform(100, 108), rng.uniform(62, 68)
    rim = pose.apply(canvas.ellipse((0, 0), outer))
    opening = pose.apply(canvas.ellipse((0, 0), inner))
    canvas.fill(image, rim + 3, 0.05, opacity=0.45)
    canvas.fill(image, rim, metal * 0.72)
    canvas.fill(image, canvas.scale(rim, 0.975), metal)
    canvas.fill(image, opening, metal * 0.7)
    canvas.fill(image, canvas.scale(opening, 0.97), ground)
    region = canvas.coverage([canvas.scale(rim, 0.97)])
    region -= canvas.coverage([canvas.scale(opening, 1.03)])
    count = canvas.count(rng, 9, 13)
    broad, twist, reach = 150 / count, rng.uniform(-5, 5), rng.uniform(34, 39)
    tip = np.array([[reach, twist - 0.6 * broad], [reach, twist + 0.6 * broad]])
    tooth = np.concatenate([[[inner + 3, -broad]], tip, [[inner + 3, broad]]])
    parts = staging.teeth(pose, tooth, count, metal * 0.6, metal * 1.08, top_scale=0.86)
    return Scene(image, region > 0.9, parts)


def paint_pill_blister(rng: np.random.Generator) -> Scene:
    """Draws a foil sheet with a pocket for every pill; a part is a pill."""
    image, pose = staging.table(rng), staging.lay_down(rng, turn=7)
    foils = canvas.percent((70, 71, 73), (78, 72, 60), (60, 66, 72))
    foil = staging.sheet(rng, foils, streaks=0.02)
    u, v = canvas.frame(rng, pose.angle + 45)
    foil *= (1 + 0.05 * np.sin(u * 1.1) * np.sin(v * 1.1))[..., None]
    columns, rows = [(3, 3), (3, 4), (4, 4), (4, 3)][canvas.count(rng, 0, 4)]
    pitch = np.array([212 / columns, 212 / rows])
    outline = pose.apply(canvas.box((0, 0), (224, 224), corner=14))
    canvas.fill(image, outline + 3, 0.05, opacity=0.4)
    canvas.fill(image, outline, foil)
    middles = staging.grid_points(columns, rows, pitch)
    length = 0.33 * pitch * pose.zoom if rng.random() < 0.5 else 0.31 * min(pitch) * pose.zoom
    drugs = canvas.percent((93, 92, 90), (85, 45, 40), (90, 78, 40), (50, 68, 80), (55, 72, 50))
    color = canvas.pick(rng, drugs)
    scored = rng.random() < 0.5
    parts = []
    for middle in pose.apply(middles):
        pill = canvas.ellipse(middle, length, angle=pose.angle)
        pocket = canvas.scale(pill, 1.28)
        canvas.fill(image, pocket + 1.5, 0.98, opacity=0.55)
        canvas.fill(image, pocket, 0.25, opacity=0.4)
        canvas.fill(image, canvas.scale(pocket, 0.94), foil, opacity=0.8)
        layers = [Layer(pill + 2.5, 0.08, 0.4), Layer(pill, color * 0.82)]
        layers.append(Layer(canvas.scale(pill, 0.86) - 0.8, color))
        if scored:
            groove = np.min(length) * np.array([0.16, 1.5])
            layers.append(Layer(canvas.box(middle, groove, angle=pose.angle), color * 0.68))
        parts.append(Part(tuple(layers)))
    return Scene(image, canvas.coverage([canvas.scale(outline, 0.97)]) > 0.9, parts)


def paint_circuit_pads(rng: np.random.Generator) -> Scene:
    """Draws a board with a chip between two rows of plated pads, traces and vias; a part is a pad."""
    boards = canvas.percent((16, 46, 28), (16, 30, 52), (52, 20, 20), (20, 21, 22))
    board = canvas.pick(rng, boards)
    weave = 1 + 0.05 * canvas.noise(rng, 2) + 0.06 * canvas.noise(rng, 60)
    image = canvas.tinted(weave, board)
    pose = staging.lay_down(rng, turn=5)
    plating = canvas.pick(rng, canvas.percent((86, 72, 38), (78, 79, 80)))
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
    body = canvas.pick(rng, canvas.percent((13, 13, 14), (26, 26, 27), (60, 58, 52)))
    outline = pose.apply(canvas.box((0, 0), (186, height), corner=2))
    canvas.fill(image, outline + 2, 0.03, opacity=0.5)
    canvas.fill(image, outline, body)
    canvas.fill(image, pose.apply(canvas.box((0, 0), (176, height - 10), corner=2)), body * 1.15)


def _wire(rng: np.random.Generator, pads: list[tuple[float, float]], pitch: float):
    """Draws a trace from every pad outwards, and the vias where traces end."""
    traces, vias = [], []
    for x, y in pads:
        side, bend = np.sign(y), x + 0.5 * pitch * canvas.count(rng, -1, 2)
        stop = side * rng.uniform(98, 130)
        traces.append([(x, y), (x, side * 84), (bend, side * 94), (bend, stop)])
        vias += [(bend, stop)] if abs(stop) < 112 else []
    return traces, vias


def scrape_hairlines(rng: np.random.Generator, scene: Scene):
    """Draws a bundle of fine, curved, roughly parallel scratches; the mask is the band they cover."""
    center = scene.place(rng, 22)
    angle, length = rng.uniform(0, 180), rng.uniform(34, 62)
    along = canvas.polar(1.0, angle)
    across = np.array([-along[1], along[0]])
    bow = across * rng.uniform(-0.25, 0.25) * length
    lines = []
    for number in range(canvas.count(rng, 3, 6)):
        offset = center + across * (3.4 * number - 5.0 + rng.normal(0, 0.6))
        begin = offset - along * length * rng.uniform(0.35, 0.5)
        end = offset + along * length * rng.uniform(0.35, 0.5)
        lines.append((canvas.curve(begin, offset + bow, end), rng.uniform(1.0, 1.8), 0.8))
    bright = scene.color(center).mean() < 0.6
    drawn = canvas.stroke(lines) * scene.region
    dark = canvas.stroke(lines, shift=1.2) * scene.region
    canvas.blend(scene.image, 0.6 * dark, 0.05 if bright else 0.98)
    canvas.blend(scene.image, 0.95 * drawn, 0.95 if bright else 0.1)
    return canvas.close_gaps(np.maximum(drawn, dark) > 0.15, 3) & scene.region


def spill_tide_mark(rng: np.random.Generator, scene: Scene):
    """Draws a dried liquid: a tinted patch with a darker rim."""
    center, radius = scene.place(rng, 18), rng.uniform(11, 24)
    outline = canvas.blob(rng, center, radius, roughness=0.2)
    tints = canvas.percent((50, 34, 18), (30, 40, 60), (50, 60, 30), (60, 30, 32), (80, 80, 75))
    tint = canvas.pick_contrasting(rng, tints, scene.color(center), apart=0.4)
    inside = canvas.coverage([outline]) * scene.region
    core = canvas.coverage([canvas.scale(outline, 0.86)])
    mottle = np.clip(0.6 + 0.12 * canvas.noise(rng, 9, octaves=2), 0.35, 0.8)
    canvas.blend(scene.image, inside * mottle, tint)
    canvas.blend(scene.image, 0.5 * inside * (1 - core), 0.6 * tint)
    return inside > 0.3


def tear_puncture(rng: np.random.Generator, scene: Scene):
    """Draws a ragged opening with a raised edge; a dark surface shows light through it."""
    center, radius = scene.place(rng, 14), rng.uniform(6.5, 12)
    outline = canvas.blob(rng, center, radius, roughness=0.28)
    rim = canvas.scale(outline, 1.0 + 3.0 / radius)
    dark = scene.color(center).mean() > 0.33
    edge = canvas.coverage([rim]) * scene.region
    canvas.blend(scene.image, 0.7 * edge, 0.88 if dark else 0.45)
    canvas.blend(
        scene.image, canvas.coverage([canvas.scale(outline, 1.08)]) * edge, 0.16 if dark else 0.8
    )
    inner = canvas.coverage([canvas.scale(outline, 0.85) + 1.5]) * edge
    canvas.blend(scene.image, inner, 0.05 if dark else 0.93)
    return edge > 0.3


def split_forked_crack(rng: np.random.Generator, scene: Scene):
    """Draws a jagged, tapering crack with branches."""
    center = scene.place(rng, 20)
    heading = rng.uniform(0, 360)
    trunk = _wander(rng, center, heading, steps=canvas.count(rng, 5, 9))
    back = _wander(rng, center, heading + 180 + rng.uniform(-25, 25), steps=canvas.count(rng, 3, 6))
    width = rng.uniform(2.2, 3.4)
    lines = [(trunk, width, 0.9), (back, width, 0.9)]
    for _ in range(canvas.count(rng, 1, 4)):
        root = trunk[canvas.count(rng, 1, len(trunk) - 1)]
        side = heading + rng.choice([-1, 1]) * rng.uniform(35, 70)
        lines.append((_wander(rng, root, side, steps=canvas.count(rng, 2, 5)), 0.7 * width, 0.8))
    drawn = canvas.stroke(lines) * scene.region
    dark = scene.color(center).mean() > 0.33
    lip = canvas.stroke(lines, shift=-1.3) * scene.region
    canvas.blend(scene.image, 0.35 * lip, 0.9 if dark else 0.5)
    canvas.blend(scene.image, 0.95 * drawn, 0.06 if dark else 0.75)
    return (canvas.dilate(drawn > 0.2, 1) | (lip > 0.3)) & scene.region


def _wander(rng: np.random.Generator, start, heading: float, *, steps: int):
    """Returns the points of a walk that keeps about its direction (degrees)."""
    turns = heading + np.clip(rng.normal(0, 32, steps), -60, 60)
    strides = rng.uniform(4.0, 7.5, steps)[:, None]
    walk = np.stack([np.cos(np.deg2rad(turns)), np.sin(np.deg2rad(turns))], 1) * strides
    return np.concatenate([[start], start + np.cumsum(walk, 0)])


def leave_seat_empty(rng: np.random.Generator, scene: Scene):
    """Removes a part and scuffs its seat; the mask is where the part belongs."""
    return _scuff_seat(rng, scene, scene.take_part(rng))


def shift_part(rng: np.random.Generator, scene: Scene):
    """Lays a part askew beside its scuffed seat; the mask is where it belongs and where it lies."""
    part = scene.take_part(rng)
    seat = _scuff_seat(rng, scene, part)
    direction = canvas.polar(1.0, rng.uniform(0, 360))
    turn = rng.choice([-1, 1]) * rng.uniform(18, 45)
    moved = part.moved(direction * part.extent * rng.uniform(0.4, 0.7), turn)
    scene.parts.append(moved)  # on top of its neighbors
    return seat | moved.footprint()


def _scuff_seat(rng: np.random.Generator, scene: Scene, part: Part):
    """Leaves rough flecks where a part was; returns the part's footprint."""
    seat = part.footprint()
    # As in the other dataset an empty seat shows damage, but of another kind: training must not teach its
    # look.
    flecks = np.clip(0.55 + 0.5 * canvas.noise(rng, 5, octaves=2), 0, 0.9) * seat
    canvas.blend(scene.image, flecks, 0.08 if scene.image[seat].mean() > 0.4 else 0.85)
    return seat


CATEGORIES = make_categories(
    textures={
        "brushed_steel": paint_brushed_steel,
        "woven_basket": paint_woven_basket,
        "marble": paint_marble,
        "corrugated_card": paint_corrugated_card,
    },
    objects={
        "perforated_plate": paint_perforated_plate,
        "washer": paint_washer,
        "pill_blister": paint_pill_blister,
        "circuit_pads": paint_circuit_pads,
    },
    surface={
        "scratch": scrape_hairlines,
        "stain": spill_tide_mark,
        "hole": tear_puncture,
        "crack": split_forked_crack,
    },
    structural={"missing": leave_seat_empty, "misplaced": shift_part},
)
