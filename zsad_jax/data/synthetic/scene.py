"""Scenes: images with masks from a seed, and the order in which they are drawn."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from zsad_jax.data.synthetic import canvas

STRUCTURAL = ("missing", "misplaced")  # kinds of defect that change the parts of an object


class Layer(NamedTuple):
    """A filled outline; `color` is a value, an RGB triple or an image."""

    outline: Float[np.ndarray, "n 2"]
    color: Float[np.ndarray, "..."] | float
    opacity: float = 1.0


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of an object, which can be missing or misplaced: layers from bottom to top."""

    layers: tuple[Layer, ...]

    @property
    def body(self) -> Float[np.ndarray, "n 2"]:
        """The largest outline."""
        return max(
            (layer.outline for layer in self.layers), key=lambda points: np.ptp(points, 0).sum()
        )

    @property
    def center(self) -> Float[np.ndarray, " 2"]:
        """The middle of the body."""
        return self.body.mean(0)

    @property
    def extent(self) -> float:
        """The geometric mean of the body's width and height, px."""
        return float(np.sqrt(np.ptp(self.body, 0).prod()))

    def moved(self, shift, turn: float) -> "Part":
        """Returns the part shifted by (x, y) px and turned about its middle by `turn` degrees."""
        pivot = self.center

        def move(points):
            return canvas.rotate(points - pivot, turn) + pivot + shift

        return Part(tuple(layer._replace(outline=move(layer.outline)) for layer in self.layers))

    def footprint(self) -> Bool[np.ndarray, "S S"]:
        """Returns the pixels that the part covers, including shadow and rim."""
        return canvas.coverage(layer.outline for layer in self.layers) > 0.3


@dataclasses.dataclass
class Scene:
    """An unfinished image; defects change it in place.

    Attributes:
      image: what is drawn so far, before light and camera.
      region: surface that can be damaged.
      parts: of an object, not drawn yet; their empty seats are in the image.
    """

    image: Float[np.ndarray, "S S 3"]
    region: Bool[np.ndarray, "S S"] = dataclasses.field(
        default_factory=lambda: np.ones((canvas.SIZE, canvas.SIZE), bool)
    )
    parts: list[Part] = dataclasses.field(default_factory=list)

    def take_part(self, rng: np.random.Generator) -> Part:
        """Removes a random part and returns it."""
        return self.parts.pop(canvas.count(rng, 0, len(self.parts)))

    def assemble(self) -> None:
        """Draws all parts onto the image."""
        for part in self.parts:
            for layer in part.layers:
                canvas.fill(self.image, layer.outline, layer.color, opacity=layer.opacity)

    def place(self, rng: np.random.Generator, radius: int) -> Float[np.ndarray, " 2"]:
        """Returns a random point with (nearly) as much of the region within `radius` px as possible."""
        import cv2

        side = 2 * radius + 1
        inside = self.region.astype(np.float32)
        # A defect at the edge of the region would be cut off, and its mask too small to be found.
        room = inside * cv2.blur(inside, (side, side), borderType=cv2.BORDER_CONSTANT)
        rows, columns = np.nonzero(room >= 0.85 * room.max())
        chosen = rng.integers(len(rows))
        return np.array([columns[chosen], rows[chosen]], float)

    def color(self, point) -> Float[np.ndarray, " 3"]:
        """Returns the mean color of the surface around a point."""
        x, y = (int(value) for value in point)
        window = (slice(max(0, y - 12), y + 12), slice(max(0, x - 12), x + 12))
        inside = self.region[window]
        return self.image[window][inside].mean(0)


Painter = Callable[[np.random.Generator], Scene]
Defect = Callable[[np.random.Generator, Scene], Bool[np.ndarray, "S S"]]


@dataclasses.dataclass(frozen=True)
class Category:
    """A kind of texture or object.

    Attributes:
      name: its key ("perforated_plate").
      paint: draws a scene without defects from a generator.
      defects: for each kind of defect, the function that adds it to a scene and returns its mask.
    """

    name: str
    paint: Painter
    defects: Mapping[str, Defect]

    @property
    def prompt_name(self) -> str:
        """The name of the category in prompts."""
        return self.name.replace("_", " ")


def make_categories(
    *,
    textures: Mapping[str, Painter],
    objects: Mapping[str, Painter],
    surface: Mapping[str, Defect],
    structural: Mapping[str, Defect],
) -> tuple[Category, ...]:
    """Returns the categories of painters by name; only objects have parts, and so structural defects."""
    kinds = ((textures, surface), (objects, {**surface, **structural}))
    return tuple(
        Category(name, paint, defects)
        for painters, defects in kinds
        for name, paint in painters.items()
    )


def draw(
    dataset: str, category: Category, index: int, *, defect: str | None
) -> tuple[UInt8[np.ndarray, "S S 3"], Bool[np.ndarray, "S S"]]:
    """Draws an image and its mask (all False for a normal image), the same on every machine.

    Scene, defect and camera have random streams of their own, so that the image without its defect is the same
    except for the damage.

    Args:
      dataset: name of the dataset.
      category: of the image.
      index: number of the image within its category.
      defect: kind of defect, None for a normal image.
    """

    def stream(purpose: int) -> np.random.Generator:
        # Not hash(), which differs between Python processes.
        names = [zlib.crc32(text.encode()) for text in (dataset, category.name)]
        return np.random.default_rng([*names, index, purpose])

    # Structural defects change parts before they are drawn, others damage the finished surface.
    scene = category.paint(stream(0))
    mask = np.zeros((canvas.SIZE, canvas.SIZE), bool)
    if defect in STRUCTURAL:
        mask = category.defects[defect](stream(1), scene)
    scene.assemble()
    if defect is not None and defect not in STRUCTURAL:
        mask = category.defects[defect](stream(1), scene)
    return _photograph(stream(2), scene.image), mask


def _photograph(
    rng: np.random.Generator, image: Float[np.ndarray, "S S 3"]
) -> UInt8[np.ndarray, "S S 3"]:
    """Adds uneven light, a slightly soft lens and sensor noise."""
    import cv2

    axis = np.arange(canvas.SIZE) / canvas.CENTER - 1
    slope = rng.uniform(0.05, 0.3) * rng.uniform(-1, 1, 2)
    lamp = rng.uniform(-1.0, 1.0, 2)
    spot = np.multiply.outer(*np.exp(-((axis - lamp[:, None]) ** 2) / rng.uniform(0.5, 2.0)))
    light = 0.92 + np.add.outer(*(slope[:, None] * axis)) + rng.uniform(0.0, 0.25) * (spot - 0.5)
    warmth = rng.normal(0, 0.025, 3)
    lit = image * canvas.tinted(light, (1 + warmth) * rng.uniform(0.9, 1.08))
    # The lens comes after the defect, whose edges would otherwise be sharper than all others.
    lit = cv2.GaussianBlur(lit, (0, 0), rng.uniform(0.3, 0.75))
    noise = rng.standard_normal(lit.shape, dtype=np.float32)
    return canvas.to_bytes(lit + rng.uniform(0.006, 0.02) * noise)
