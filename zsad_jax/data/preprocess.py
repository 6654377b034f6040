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
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from zsad_jax.data.dataset import Encoded, Lazy
from zsad_jax.data.issues import Issue
from zsad_jax.utils.errors import UserError

# Pillow also opens formats that run other programs (EPS); only pictures are wanted here.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Pillow warns from 89 million pixels on and rejects 179 million. Line-scan cameras make such images, so the
# limit is raised: at 4 bytes a pixel, which RGB takes in Pillow, this many take 1 GiB.
MAX_PIXELS = 2**28
LARGE_PIXELS = 2**25  # larger images are decoded one at a time
BAND_BYTES = 2**24  # of the values that are scaled to 8 bits at a time
SHALLOW_BITS = 12  # many cameras store this many bits in 16

_limit_lock = threading.Lock()
_large_lock = threading.RLock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a backbone wants its images.

    Attributes:
      image_size: side S of the square that an image is resized to, aspect ratio ignored.
      resize: Pillow's kernel, antialiased, 8-bit result.
      mean, std: per channel, on values in [0, 1].
      rgb_first: whether the conversion to RGB precedes resizing (TIPS yes, CLIP no).
      bit_depth: bits in use in images of 16 bits; the same for all images, so that their scores compare.
    """

    image_size: int
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rgb_first: bool = True
    bit_depth: int = 16

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
      notes: what decoding changed, as issues without a file.
      orientation: the EXIF orientation that was applied; 1 for none.
    """

    image: Image.Image
    notes: tuple[Issue, ...] = ()
    orientation: int = 1

    @property
    def note(self) -> str:
        """The notes as one text, "" for none."""
        return "; ".join(note.description for note in self.notes)


def open_image(encoded: Encoded | os.PathLike[str], *, bit_depth: int = 16) -> Decoded:
    """Decodes an image and keeps its color mode, so that CLIP can resize before it converts to RGB.

    The EXIF orientation is always applied: benchmark files carry none, and photographs come out the right
    way round. Deeper images are scaled to 8 bits, see `image_from_array`.

    Raises:
      UnreadableImage: the file is missing, empty, damaged, too large or not an image.
    """
    loaded = _load(encoded)
    if not isinstance(loaded.raw, np.ndarray) and not _is_deep(loaded.raw):
        if loaded.notes and bit_depth != 16:  # Pillow has already dropped the low bytes
            raise UnreadableImage(_name(encoded), "16-bit color needs bit_depth=16")
        return Decoded(loaded.raw, loaded.notes, loaded.orientation)
    try:
        made = image_from_array(loaded.raw, bit_depth=bit_depth)
    except (UserError, MemoryError) as error:  # of two channels, say
        reason = str(error) if isinstance(error, UserError) else _describe_error(error)
        raise UnreadableImage(_name(encoded), reason.rstrip(".")) from error
    return made._replace(notes=loaded.notes + made.notes, orientation=loaded.orientation)


def decode_image(encoded: Encoded | os.PathLike[str], *, bit_depth: int = 16) -> Decoded:
    """Decodes an image to RGB, equal in pixels to Pillow's `convert("RGB")` for all 8-bit images.

    Alpha is dropped without blending, as the published pipelines do.

    Raises:
      UnreadableImage: the file is missing, empty, damaged, too large or not an image.
    """
    decoded = open_image(encoded, bit_depth=bit_depth)
    return decoded._replace(image=decoded.image.convert("RGB"))


def image_from_array(array: np.ndarray | Image.Image, *, bit_depth: int = 16) -> Decoded:
    """Makes an 8-bit image of an array [H, W] or [H, W, 1, 3 or 4], or of a deep gray image.

    16-bit integers are scaled from [0, 2**bit_depth - 1], whatever their largest value, so that all images
    are scaled alike; wider integers from [0, 255] or that range, floats from [0, 1]. Values outside of
    these ranges are scaled from their own minimum and maximum, and the note says so.

    Raises:
      UserError: the shape is another, or 16-bit values exceed the bit depth.
    """
    if isinstance(array, np.ndarray):
        if array.ndim == 3 and array.shape[-1] == 1:
            array = array[..., 0]
        if not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
            raise UserError(f"An image array must be [H, W] or [H, W, 3], not {list(array.shape)}.")
        if array.dtype in (np.uint8, np.bool_):
            array = array * np.uint8(255) if array.dtype == np.bool_ else array
            return Decoded(Image.fromarray(np.ascontiguousarray(array)))
    low, high, dtype, shape = _examine_values(array)
    start, end = _scale_of(low, high, dtype, bit_depth)
    scaled = np.empty(shape, np.uint8)
    for top, band in _bands(array):
        scaled[top : top + len(band)] = np.rint((band - start) * (255 / ((end - start) or 1)))
    bits = dtype.itemsize * 8
    notes = [Issue("image_scaled", "", f"{bits}-bit values {start:g} to {end:g}")]
    if bits == bit_depth == 16 and high < 2**SHALLOW_BITS:
        notes.append(Issue("image_shallow", ""))
    return Decoded(Image.fromarray(scaled), tuple(notes))


def resize_image(image: Image.Image, preprocess: Preprocess) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes an image to the square that the backbone wants, with Pillow's antialiased 8-bit kernel."""
    size = (preprocess.image_size, preprocess.image_size)
    kernel = Image.Resampling[preprocess.resize.upper()]
    # Gray images give the same pixels in either order, and a third of the work in this one.
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
    return binarise(read_masks(encoded).parts, threshold=threshold)


class MaskValues(NamedTuple):
    """The gray values of ground truth (8 bits with palettes applied, or deeper), and whether it was turned."""

    parts: list[Shaped[np.ndarray, "H W"]]
    oriented: bool


def read_masks(encoded: Encoded | tuple[Encoded, ...]) -> MaskValues:
    """Decodes ground truth of one mask, or of several of the same image.

    Raises:
      UnreadableImage: a mask cannot be read, or several differ in size.
    """
    parts = encoded if isinstance(encoded, tuple) else (encoded,)
    masks, orientations = zip(*map(_read_mask, parts), strict=True)
    if len({mask.shape for mask in masks}) != 1:
        raise UnreadableImage(_name(parts[0]), "the masks of this image differ in size")
    return MaskValues(list(masks), any(orientation != 1 for orientation in orientations))


def binarise(
    masks: Sequence[Shaped[np.ndarray, "H W"]], *, threshold: int = 0
) -> Bool[np.ndarray, "H W"]:
    """Ground truth of grey values: True where one of the masks is above the threshold, a grey value of 255."""
    steps = (threshold * (1 if mask.dtype == np.uint8 else 257) for mask in masks)  # 65535 / 255
    return np.logical_or.reduce([mask > step for mask, step in zip(masks, steps, strict=True)])


def _read_mask(encoded: Encoded) -> tuple[Shaped[np.ndarray, "H W"], int]:
    """The gray values of a mask, and the EXIF orientation that was applied."""
    loaded = _load(encoded)
    if isinstance(loaded.raw, np.ndarray) or _is_deep(loaded.raw):
        # Pillow's own conversion of 16 bits to 8 depends on its version.
        values = np.asarray(loaded.raw)
        return values if values.ndim == 2 else values.max(axis=-1), loaded.orientation
    try:
        return np.asarray(loaded.raw.convert("L")), loaded.orientation
    except Exception as error:  # color modes such as LAB have no gray values
        raise UnreadableImage(_name(encoded), _describe_error(error)) from error


def turn_mask(mask: Bool[np.ndarray, "H W"], orientation: int) -> Bool[np.ndarray, "h w"]:
    """Applies an EXIF orientation to ground truth that was drawn on the stored pixels."""
    image = Image.fromarray(mask)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def resize_mask(mask: Bool[np.ndarray, "H W"], size: int) -> Bool[np.ndarray, "S S"]:
    """Resizes ground truth as the published loaders do: 0 or 255, bilinear in 8 bits, above one half."""
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) > 127


class _Loaded(NamedTuple):
    """A decoded file in its own mode and depth; an array where only opencv can read it."""

    raw: Image.Image | np.ndarray
    notes: tuple[Issue, ...] = ()
    orientation: int = 1


def _load(encoded: Encoded | os.PathLike[str]) -> _Loaded:
    if isinstance(encoded, Lazy):
        name = str(encoded)
        try:
            encoded = encoded.read()
        except Exception as error:
            raise UnreadableImage(name, _describe_error(error)) from error
    _check_there(encoded)
    try:
        with _open(encoded) as image:  # closes the file; the pixels stay
            _check_size(image.size, encoded)
            notes = _describe_depth(image)
            large = image.width * image.height > LARGE_PIXELS
            with _large_images_allowed() if large else contextlib.nullcontext():
                image.load()
            if image.mode not in ("1", "L", "RGB", "RGBA", "CMYK") and not _is_deep(image):
                image.convert("RGB")  # fails for a damaged palette, which loading does not notice
    except UnreadableImage:
        raise
    # Pillow's decoders raise whatever comes up: OSError, SyntaxError, ValueError, struct.error…
    except Exception as error:
        reason = _describe_error(error)
        array = None if isinstance(error, MemoryError) else _load_with_opencv(encoded)
        if array is None:
            raise UnreadableImage(_name(encoded), reason) from error
        return _Loaded(array)
    orientation = 1
    # A broken EXIF block does not make an image unreadable.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        ImageOps.exif_transpose(image, in_place=True)
    return _Loaded(image, notes, orientation if orientation in range(1, 9) else 1)


def _open(encoded: bytes | str | os.PathLike[str]) -> Image.Image:
    """Opens an image without decoding its pixels."""
    with _large_images_allowed():
        source = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        return Image.open(source, formats=FORMATS)


def _check_size(size: tuple[int, int], encoded: bytes | str | os.PathLike[str]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        reason = f"its {width}x{height} pixels are more than {MAX_PIXELS:,}; cut it into tiles"
        raise UnreadableImage(_name(encoded), reason)


@contextlib.contextmanager
def one_large_image(*encoded: Encoded) -> Iterator[None]:
    """Lets one thread at a time hold very large decoded images, so that memory stays bounded."""
    large = False
    for one in encoded:
        if not isinstance(one, Lazy):
            with contextlib.suppress(Exception), _open(one) as image:
                large = large or image.width * image.height > LARGE_PIXELS
    with _large_lock if large else contextlib.nullcontext():
        yield


def _load_with_opencv(encoded: bytes | str | os.PathLike[str]) -> np.ndarray | None:
    """A TIFF of a kind that Pillow does not know (deep or float color, say); None for anything else."""
    import cv2

    try:
        data = encoded if isinstance(encoded, bytes) else pathlib.Path(encoded).read_bytes()
        if data[:4] not in (b"II*\0", b"MM\0*"):
            return None
        _check_size(_tiff_size(data), encoded)
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except UnreadableImage:
        raise
    except Exception:  # of either library's
        return None
    if array is not None and array.ndim == 3 and array.shape[-1] >= 3:
        array = array[..., [2, 1, 0, 3][: array.shape[-1]]]  # BGR(A) to RGB(A)
    return array


def _tiff_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a TIFF."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]


def _check_there(encoded: bytes | str | os.PathLike[str]) -> None:
    if isinstance(encoded, bytes):
        issue = "" if encoded else "it is empty"
    elif os.path.isdir(encoded):
        issue = "it is a folder, not an image"
    elif not os.path.exists(encoded):
        issue = "there is no such file"
    else:
        issue = "" if os.path.getsize(encoded) else "the file is empty"
    if issue:
        raise UnreadableImage(_name(encoded), issue)


@contextlib.contextmanager
def _large_images_allowed() -> Iterator[None]:
    """Lifts Pillow's own limit, which is global and less than ours; `_check_size` takes its place."""
    with _limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _bands(array: np.ndarray | Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """A few rows at a time, as float64, with the first one's index; all at once take 8 bytes a value."""
    if isinstance(array, np.ndarray):
        height, row_bytes = len(array), 8 * array[0].size
    else:
        height, row_bytes = array.height, 8 * array.width
    rows = max(BAND_BYTES // row_bytes, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        if isinstance(array, np.ndarray):
            band = array[top:bottom]
        else:
            band = np.asarray(array.crop((0, top, array.width, bottom)))
        yield top, np.nan_to_num(band.astype(np.float64))


def _examine_values(
    array: np.ndarray | Image.Image,
) -> tuple[float, float, np.dtype, tuple[int, ...]]:
    """The smallest and the largest value, their type, and the shape."""
    ends = [(band.min(), band.max()) for _, band in _bands(array)]
    low, high = min(one for one, _ in ends), max(one for _, one in ends)
    if isinstance(array, np.ndarray):
        return float(low), float(high), array.dtype, array.shape
    dtype = np.asarray(array.crop((0, 0, 1, 1))).dtype
    return float(low), float(high), dtype, (array.height, array.width)


def _scale_of(low: float, high: float, dtype: np.dtype, bit_depth: int) -> tuple[float, float]:
    """The values that become 0 and 255."""
    if dtype.kind == "f":
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    full = 2**bit_depth - 1
    if dtype.itemsize == 2 and low >= 0:
        if high > full:
            raise UserError(
                f"The values reach {high:g}, more than {bit_depth} bits hold ({full}); set a larger bit_depth."
            )
        return 0, full
    fitting = [end for end in (255, full) if low >= 0 and high <= end]
    return (0, fitting[0]) if fitting else (low, high)


def _describe_depth(image: Image.Image) -> tuple[Issue, ...]:
    """Reports what Pillow does silently: of 16-bit color (not gray) it keeps the high byte."""
    raw_modes = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if ";16" in raw_modes and not _is_deep(image):
        return (Issue("image_scaled", "", "16-bit values 0 to 65535"),)
    return ()


def _describe_error(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is not an image (known are {', '.join(FORMATS)})"
    return f"the file is damaged or cut short ({str(error).rstrip('.') or type(error).__name__})"


def _name(encoded: Encoded | os.PathLike[str]) -> str:
    if isinstance(encoded, Lazy):
        return str(encoded)
    return f"an image of {len(encoded)} bytes" if isinstance(encoded, bytes) else os.fspath(encoded)
