"""Brushes of the procedural benchmark: outlines, fills, strokes and noise fields on a square canvas.

Points are (x, y) in pixels, angles in degrees, images float32 [SIZE, SIZE, 3] with values in [0, 1].
"""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, UInt8

SIZE = 256  # side of every image, px
CENTER = (SIZE - 1) / 2
SPREAD = 0.04  # of brightness and tint of colors
_SUBPIXEL_BITS = 4
_STROKE_ZOOM = 4  # strokes are drawn this much larger, then averaged down


def rotate(points: Float[np.ndarray, "n 2"], angle: float) -> Float[np.ndarray, "n 2"]:
    """Turns points about the origin, clockwise on the screen."""
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.asarray(points) @ np.array([[cosine, sine], [-sine, cosine]])


def polar(radius: float, angle: float) -> Float[np.ndarray, " 2"]:
    """Returns the point at a distance and an angle from the origin."""
    return rotate(np.array([[radius, 0.0]]), angle)[0]


def ellipse(center, radii, *, angle: float = 0.0) -> Float[np.ndarray, "48 2"]:
    """Returns the outline of an ellipse; `radii` is a number (a circle) or (x, y) before the turn."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return rotate(np.stack([np.cos(turn), np.sin(turn)], 1) * radii, angle) + center


def box(center, size, *, angle: float = 0.0, corner: float = 0.0) -> Float[np.ndarray, "n 2"]:
    """Returns the outline of a rectangle of `size` (width, height) with corners rounded by radius `corner`."""
    half = np.asarray(size) / 2 - corner
    corners = []
    for start, sign in ((0, (1, 1)), (90, (-1, 1)), (180, (-1, -1)), (270, (1, -1))):
        turn = np.deg2rad(np.linspace(start, start + 90, 8 if corner else 1))
        arc = corner * np.stack([np.cos(turn), np.sin(turn)], 1)
        corners.append(half * sign + arc)
    return rotate(np.concatenate(corners), angle) + center


def star(center, radius: float, *, tips: int, inner: float = 0.45, angle: float = 0.0):
    """Returns the outline of a star with `tips` tips; `inner` is the inner radius as a share of `radius`."""
    turn = np.linspace(0, 2 * np.pi, 2 * tips, endpoint=False)
    reach = radius * np.where(np.arange(2 * tips) % 2, inner, 1.0)
    return rotate(np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None], angle) + center


def blob(rng: np.random.Generator, center, radius: float, *, roughness: float = 0.25):
    """Returns the outline of an irregular blob: a circle with random waves on its radius."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = np.arange(2, 10)
    size = rng.normal(size=len(waves)) * 2 * roughness / waves
    phase = rng.uniform(0, 2 * np.pi, len(waves))
    reach = 1 + (size * np.sin(turn[:, None] * waves + phase)).sum(1)
    reach = radius * np.clip(reach, 0.45, 1.7)
    return np.stack([np.cos(turn), np.sin(turn)], 1) * reach[:, None] + center


def scale(points: Float[np.ndarray, "n 2"], factor: float) -> Float[np.ndarray, "n 2"]:
    """Scales an outline about its middle."""
    middle = points.mean(0)
    return (points - middle) * factor + middle


def curve(start, bend, end, count: int = 24) -> Float[np.ndarray, "n 2"]:
    """Returns the points of a quadratic Bezier curve."""
    time = np.linspace(0, 1, count)[:, None]
    return (1 - time) ** 2 * start + 2 * time * (1 - time) * np.asarray(bend) + time**2 * end


def fill(image: Float[np.ndarray, "S S 3"], outline, color, *, opacity: float = 1.0) -> None:
    """Paints the inside of an outline, antialiased and in place; parts outside the canvas are cut off.

    `color` is a value, an RGB triple, or an image whose pixels show through the outline.
    """
    import cv2

    # Only the window of the outline is blended: most outlines are small, and the canvas is not.
    left, top = (max(0, math.floor(edge) - 1) for edge in outline.min(0))
    right, bottom = (min(SIZE, math.ceil(edge) + 2) for edge in outline.max(0))
    if right <= left or bottom <= top:
        return
    window = (slice(top, bottom), slice(left, right))
    alpha = np.zeros((bottom - top, right - left), np.uint8)
    # OpenCV takes integers; fractional bits keep the form of shapes of a few pixels.
    fixed = np.rint((outline - (left, top)) * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(alpha, [fixed], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    color = np.asarray(color, np.float32)
    paint = color[window] if color.ndim == 3 else color
    image[window] += (alpha[..., None] * np.float32(opacity / 255)) * (paint - image[window])


def coverage(outlines: Iterable[Float[np.ndarray, "n 2"]]) -> Float[np.ndarray, "S S"]:
    """Returns the share of every pixel that the union of outlines covers."""
    layer = np.zeros((SIZE, SIZE, 1), np.float32)
    for outline in outlines:
        fill(layer, outline, 1.0)
    return layer[..., 0]


def stroke(
    lines: Iterable[tuple[np.ndarray, float, float]], *, shift: float = 0.0
) -> Float[np.ndarray, "S S"]:
    """Returns the coverage of polylines, each (points, first width, last width), shifted by x and y."""
    import cv2

    # OpenCV draws lines of whole pixels; averaging a larger canvas gives fractions of them.
    layer = np.zeros((SIZE * _STROKE_ZOOM, SIZE * _STROKE_ZOOM), np.uint8)
    for points, first, last in lines:
        fixed = np.round((points + shift + 0.5) * _STROKE_ZOOM).astype(int)
        widths = np.linspace(first, last, len(points) - 1) * _STROKE_ZOOM
        for begin, end, width in zip(fixed[:-1], fixed[1:], widths, strict=True):
            cv2.line(layer, begin.tolist(), end.tolist(), 255, max(1, round(float(width))))
    return cv2.resize(layer, (SIZE, SIZE), interpolation=cv2.INTER_AREA) / np.float32(255)


def blend(image: Float[np.ndarray, "S S 3"], alpha: Float[np.ndarray, "S S"], color) -> None:
    """Moves the canvas toward `color` (value, RGB or image) by `alpha`, in place."""
    image += alpha[..., None] * (np.asarray(color, np.float32) - image)


def noise(
    rng: np.random.Generator,
    cell: float,
    *,
    octaves: int = 1,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> Float[np.ndarray, "S S"]:
    """Returns a smooth random field of about unit variance.

    Features of the first octave are `cell` px high and `stretch` times as long in the direction of `angle`.
    Each further octave halves size and strength.
    """
    import cv2

    side = SIZE if angle == 0 else int(SIZE * 1.5)  # the diagonal, which a turned field must cover
    field: np.ndarray = np.zeros((side, side), np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        shape = (int(side / step) + 3, int(side / (step * stretch)) + 3)
        grid = rng.standard_normal(shape, dtype=np.float32)
        layer = cv2.resize(grid * 0.5**octave, (side, side), interpolation=cv2.INTER_CUBIC)
        field += np.asarray(layer, np.float32)
    if angle:
        middle = (side - 1) / 2
        turn = np.array(cv2.getRotationMatrix2D((middle, middle), -angle, 1.0), float)
        turn[:, 2] += CENTER - middle
        field = np.asarray(cv2.warpAffine(field, turn, (SIZE, SIZE), flags=cv2.INTER_LINEAR))
    # 1.25 offsets the variance that cubic interpolation removes; octaves add a quarter each.
    return field * np.float32(1.25 / np.sqrt(sum(0.25**octave for octave in range(octaves))))


def frame(
    rng: np.random.Generator, angle: float, *, wobble: float = 0.0, wavelength: float = 60.0
) -> tuple[Float[np.ndarray, "S S"], Float[np.ndarray, "S S"]]:
    """Returns coordinates (u, v) of every pixel in a frame that is turned by `angle`, with a random origin.

    `wobble` is the size of a smooth random displacement, px, and `wavelength` the size of its features.
    """
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    cosine, sine = np.float32(np.cos(np.deg2rad(angle))), np.float32(np.sin(np.deg2rad(angle)))
    # Patterns start at another phase in each image.
    u_start, v_start = rng.uniform(1000, 2000, 2).astype(np.float32)
    u, v = cosine * x + sine * y + u_start, -sine * x + cosine * y + v_start
    if wobble:
        u = u + np.float32(wobble) * noise(rng, wavelength)
        v = v + np.float32(wobble) * noise(rng, wavelength)
    return u, v


def uneven(rng: np.random.Generator, share: float, **options):
    """Returns a smooth field within 1 ± `share`; `options` are those of `noise`."""
    return 1 + share * np.tanh(noise(rng, 80.0, **options))


def tinted(value: Float[np.ndarray, "S S"], color) -> Float[np.ndarray, "S S 3"]:
    """Returns an image of one color whose brightness follows `value` (1 is the color itself)."""
    return value[..., None].astype(np.float32) * np.asarray(color, np.float32)


def count(rng: np.random.Generator, low: int, high: int) -> int:
    """Returns a random integer, `low` <= number < `high`."""
    return int(rng.integers(low, high))


def percent(*colors: tuple[int, int, int]) -> Float[np.ndarray, "n 3"]:
    """Returns RGB colors whose channels are given in percent."""
    return np.array(colors) / 100


def pick(rng: np.random.Generator, options: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " 3"]:
    """Returns an RGB color of `options`, varied in brightness and tint."""
    color = options[count(rng, 0, len(options))]
    color = color * rng.uniform(1 - 3 * SPREAD, 1 + 3 * SPREAD) + rng.normal(0, SPREAD / 3, 3)
    return np.clip(color, 0.03, 0.97).astype(np.float32)


def pick_contrasting(
    rng: np.random.Generator, options: Float[np.ndarray, "n 3"], surface, *, apart: float
):
    """Picks a color at least `apart` (RGB distance) from that of a surface; see `pick`."""
    gaps = np.linalg.norm(options - surface, axis=1)
    # If no option is that far away, the farthest one is picked.
    return pick(rng, options[gaps >= min(apart, gaps.max())])


def dilate(mask: Bool[np.ndarray, "S S"], radius: int) -> Bool[np.ndarray, "S S"]:
    """Grows a mask by `radius` px."""
    return _morph("MORPH_DILATE", mask, radius)


def close_gaps(mask: Bool[np.ndarray, "S S"], radius: int) -> Bool[np.ndarray, "S S"]:
    """Joins areas that are less than 2 * `radius` px apart."""
    return _morph("MORPH_CLOSE", mask, radius)


def _morph(name: str, mask: Bool[np.ndarray, "S S"], radius: int) -> Bool[np.ndarray, "S S"]:
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.morphologyEx(mask.astype(np.uint8), getattr(cv2, name), kernel).astype(bool)


def to_bytes(image: Float[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "S S 3"]:
    """Returns the 8-bit pixels of an image in [0, 1], clipped."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def encode_png(pixels: UInt8[np.ndarray, "S S *c"]) -> bytes:
    """Encodes an RGB image or a gray mask."""
    import cv2

    stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    # Run lengths only: noise hardly compresses, and a search for repeats would take as long as drawing.
    quick = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    return cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 1, *quick])[1].tobytes()
