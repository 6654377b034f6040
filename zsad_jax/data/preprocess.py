"""From an image file to what a vision tower eats: decode, resize, normalise."""

import contextlib
import dataclasses
import io
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageOps

from zsad_jax.data.base import Encoded, Lazy
from zsad_jax.errors import UserError

# Pillow also opens formats that run other programs (EPS); only pictures are wanted here.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Pillow warns from 89 million pixels on and refuses 179 million. Line-scan cameras make such images,
# so the limit is raised, knowingly: this many pixels take 2 GiB.
MAX_PIXELS = 2**29
# Cameras with 12 bits store them in 16, so the depth is told by the largest value.
INTEGER_RANGES = (255, 4095, 65535)

_limit_lock = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a backbone wants its images.

    Attributes:
      image_size: side S of the square that an image is resized to, aspect ratio ignored.
      resize: Pillow's kernel, antialiased, 8-bit result.
      mean, std: per channel, on values in [0, 1].
      rgb_first: whether the conversion to RGB precedes resizing (TIPS yes, CLIP no).
    """

    image_size: int
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rgb_first: bool = True

    def normalize(self, images):
        """Makes the tower's float32 input of 8-bit images.

        Args:
          images: [..., 3] values in [0, 255], from numpy or jax; traceable under jit.

        Returns:
          The same shape: scaled to [0, 1], then mean and std applied. Numpy in, numpy out.
        """
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if not isinstance(images, np.ndarray) or images.ndim < 2:
            return (images.astype(np.float32) / np.float32(255) - mean) / std
        # Numpy is several times as fast over whole rows of pixels, in place, as over three channels.
        values = images.reshape(*images.shape[:-2], -1).astype(np.float32)
        values /= np.float32(255)
        values -= np.tile(mean, images.shape[-2])
        values /= np.tile(std, images.shape[-2])
        return values.reshape(images.shape)


class UnreadableImage(UserError):  # noqa: N818 - it says what the image is
    """A file or bytes that no decoder can make an image of.

    Attributes:
      name: the file.
      reason: what is wrong with it, without the name.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"Cannot read {self.name}: {self.reason}."


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
      image: 8 bits a channel, the right way round.
      note: what was changed beyond decoding ("16-bit values 0..4095 scaled to 8 bits"), or "".
    """

    image: Image.Image
    note: str = ""


def open_image(encoded: Encoded | os.PathLike[str]) -> Decoded:
    """Decodes an image and keeps its colour mode, so that CLIP can resize before it converts to RGB.

    The EXIF orientation is applied always: benchmark files carry none, and people's photographs come
    out the right way round. Deeper images are scaled to 8 bits and the note says how.

    Raises:
      UnreadableImage: the file is missing, empty, damaged or no image.
    """
    raw, note = _load(encoded)
    if not isinstance(raw, np.ndarray) and not _is_deep(raw):
        return Decoded(raw, note)
    try:
        return image_from_array(np.asarray(raw))
    except UserError as error:  # of two channels, say
        raise UnreadableImage(_name(encoded), str(error).rstrip(".")) from error


def decode_image(encoded: Encoded | os.PathLike[str]) -> Decoded:
    """Decodes an image to RGB, equal in pixels to Pillow's `convert("RGB")` for all 8-bit images.

    Alpha is dropped without blending, as the published pipelines do.

    Raises:
      UnreadableImage: the file is missing, empty, damaged or no image.
    """
    image, note = open_image(encoded)
    return Decoded(image.convert("RGB"), note)


def image_from_array(array: np.ndarray) -> Decoded:
    """Makes an 8-bit image of an array [H, W] or [H, W, 1, 3 or 4].

    Integers are scaled by the smallest of 8, 12 and 16 bits that holds their largest value, floats from
    [0, 1]; what lies outside these ranges is scaled from its own minimum and maximum.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise UserError(f"An image array must be [H, W] or [H, W, 3], not {list(array.shape)}.")
    array, note = _to_8_bits(array)
    return Decoded(Image.fromarray(np.ascontiguousarray(array)), note)


def resize_image(image: Image.Image, preprocess: Preprocess) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes an image to the square that the backbone wants, with Pillow's antialiased 8-bit kernel."""
    size = (preprocess.image_size, preprocess.image_size)
    kernel = Image.Resampling[preprocess.resize.upper()]
    # Grey images give the same pixels in either order, and a third of the work in this one.
    if preprocess.rgb_first and image.mode != "L":
        image = image.convert("RGB")
    return np.asarray(image.resize(size, kernel).convert("RGB"))


def decode_mask(
    encoded: Encoded | tuple[Encoded, ...], *, threshold: int = 0
) -> Bool[np.ndarray, "H W"]:
    """Decodes ground truth: True where a defect is.

    Args:
      encoded: a mask, or several that are joined with OR. Palettes are applied; class indices count as
        they are.
      threshold: largest grey value (of 255) that is still no defect. Published numbers use 0; 127
        removes the rim of noise of JPEG masks but erases masks that hold class indices.

    Raises:
      UnreadableImage: a mask cannot be read, or several differ in size.
    """
    return binarise(read_masks(encoded), threshold=threshold)


def read_masks(encoded: Encoded | tuple[Encoded, ...]) -> list[Shaped[np.ndarray, "H W"]]:
    """The grey values of ground truth, of one mask or several of the same image, as their files hold them.

    8 bits with palettes applied, or deeper.

    Raises:
      UnreadableImage: a mask cannot be read, or several differ in size.
    """
    parts = encoded if isinstance(encoded, tuple) else (encoded,)
    masks = [_read_mask(part) for part in parts]
    if len({mask.shape for mask in masks}) != 1:
        raise UnreadableImage(_name(parts[0]), "the masks of this image differ in size")
    return masks


def binarise(
    masks: Sequence[Shaped[np.ndarray, "H W"]], *, threshold: int = 0
) -> Bool[np.ndarray, "H W"]:
    """Ground truth of grey values: True where one of the masks is above the threshold, a grey value of 255."""
    steps = (threshold * (1 if mask.dtype == np.uint8 else 257) for mask in masks)  # 65535 / 255
    return np.logical_or.reduce([mask > step for mask, step in zip(masks, steps, strict=True)])


def _read_mask(encoded: Encoded) -> Shaped[np.ndarray, "H W"]:
    raw, _ = _load(encoded)
    if isinstance(raw, np.ndarray) or _is_deep(raw):
        # Pillow's own conversion of 16 bits to 8 depends on its version.
        values = np.asarray(raw)
        return values if values.ndim == 2 else values.max(axis=-1)
    return np.asarray(raw.convert("L"))


def resize_mask(mask: Bool[np.ndarray, "H W"], size: int) -> Bool[np.ndarray, "S S"]:
    """Resizes ground truth as the published loaders do: 0 or 255, bilinear in 8 bits, above one half."""
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) > 127


def _load(encoded: Encoded | os.PathLike[str]) -> tuple[Image.Image | np.ndarray, str]:
    """The decoded image in its own mode and depth (an array where only opencv could), and a note."""
    encoded = encoded.read() if isinstance(encoded, Lazy) else encoded
    _check_there(encoded)
    try:
        with _large_images_allowed():
            source = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
            image = Image.open(source, formats=FORMATS)
        with image:  # closes the file; the pixels stay
            note = _describe_depth(image)
            image.load()
    # Pillow's decoders raise whatever comes up: OSError, SyntaxError, ValueError, struct.error…
    except Exception as error:
        array = _load_with_opencv(encoded)
        if array is None:
            raise UnreadableImage(_name(encoded), _describe_error(error)) from error
        return array, ""
    # A broken EXIF block is no reason to refuse a good picture.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image, note


def _load_with_opencv(encoded: bytes | str | os.PathLike[str]) -> np.ndarray | None:
    """A TIFF of a kind that Pillow does not know (deep or float colour, say); None for anything else."""
    data = encoded if isinstance(encoded, bytes) else pathlib.Path(encoded).read_bytes()
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    import cv2

    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if array is not None and array.ndim == 3 and array.shape[-1] >= 3:
        array = array[..., [2, 1, 0, 3][: array.shape[-1]]]  # BGR(A) to RGB(A)
    return array


def _check_there(encoded: bytes | str | os.PathLike[str]) -> None:
    if isinstance(encoded, bytes):
        fault = "" if encoded else "it is empty"
    elif os.path.isdir(encoded):
        fault = "it is a folder, not an image"
    elif not os.path.exists(encoded):
        fault = "there is no such file"
    else:
        fault = "" if os.path.getsize(encoded) else "the file is empty"
    if fault:
        raise UnreadableImage(_name(encoded), fault)


@contextlib.contextmanager
def _large_images_allowed() -> Iterator[None]:
    with _limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _to_8_bits(array: np.ndarray) -> tuple[np.ndarray, str]:
    if array.dtype == np.uint8:
        return array, ""
    if array.dtype == np.bool_:
        return array * np.uint8(255), ""
    values = np.nan_to_num(array.astype(np.float64))
    low, high = values.min(), values.max()
    if array.dtype.kind == "f":
        start, end = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    else:
        fitting = [end for end in INTEGER_RANGES if low >= 0 and high <= end]
        start, end = (0, fitting[0]) if fitting else (low, high)
    scaled = np.rint((values - start) * (255 / ((end - start) or 1))).astype(np.uint8)
    return scaled, f"{array.dtype.itemsize * 8}-bit values {start:g} to {end:g} scaled to 8 bits"


def _describe_depth(image: Image.Image) -> str:
    """What Pillow does silently: of 16-bit colour (not grey) it keeps the high byte."""
    raw_modes = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if ";16" in raw_modes and not _is_deep(image):
        return "16-bit values 0 to 65535 scaled to 8 bits"
    return ""


def _describe_error(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * MAX_PIXELS} pixels; cut it into tiles"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is not an image (known are {', '.join(FORMATS)})"
    return f"the file is damaged or cut short ({str(error).rstrip('.') or type(error).__name__})"


def _name(encoded: Encoded | os.PathLike[str]) -> str:
    if isinstance(encoded, Lazy):
        return str(encoded)
    return f"an image of {len(encoded)} bytes" if isinstance(encoded, bytes) else os.fspath(encoded)
