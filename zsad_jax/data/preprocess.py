"""Decoding of image and mask files, and preparation for a vision tower: resizing and normalization."""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from zsad_jax.data.dataset import Encoded, Lazy
from zsad_jax.data.issues import SCALED, Issue
from zsad_jax.utils.errors import UserError

# Pillow also opens formats that run other programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Pillow warns above 89 million pixels and rejects 179 million. Line-scan cameras make such images, so the
# limit is raised: this many pixels take 1 GiB, at the 4 bytes that Pillow uses for RGB.
MAX_PIXELS = 2**28
COUNTED = ("GIF", "TIFF")  # formats whose pages Pillow counts by moving through them
LARGE_PIXELS = 2**25  # larger images are decoded one at a time
BAND_BYTES = 2**24  # of float64 values that are scaled to 8 bits at a time
SHALLOW_BITS = 14  # many cameras store this many bits in 16, or 12 or 10
PNG = b"\x89PNG\r\n\x1a\n"
# Usual values of pixels without data, of height and thermal images; larger values than `TOO_LARGE`, too.
NO_DATA, TOO_LARGE = (-9999, -99999, -32768), 1e30

Source = Encoded | os.PathLike[str] | Image.Image
# [..., 3], in numpy or in JAX.
Images = TypeVar("Images", np.ndarray, "jax.Array")

if TYPE_CHECKING:
    import jax

_ORIENTATION = ExifTags.Base.Orientation
_limit_lock = threading.Lock()
_large_lock = threading.RLock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preparation of images for a backbone.

    Attributes:
      image_size: side S of the square that images are resized to, ignoring their aspect ratio.
      resize: Pillow's kernel, antialiased, with an 8-bit result.
      mean, std: per channel, of values in [0, 1].
      rgb_first: whether images are converted to RGB before they are resized (TIPS yes, CLIP no).
      bit_depth: bits in use in 16-bit images; the same for all images, so that their scores are comparable.
    """

    image_size: int
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rgb_first: bool = True
    bit_depth: int = 16

    def normalize(self, images: Images) -> Images:
        """Returns the float32 input of the tower: values scaled to [0, 1], then mean and std applied.

        Args:
          images: [..., 3] values in [0, 255] as a numpy or a jax array; traceable under jit.

        Raises:
          UserError: a floating-point numpy array has values in [0, 1].
        """
        if not hasattr(images, "astype"):  # such as a Pillow image
            images = np.asarray(images)  # type: ignore[assignment]
        floating = isinstance(images, np.ndarray) and images.dtype.kind == "f"
        if floating and 0 < images.max(initial=0) <= 1:
            raise UserError(
                "The images have values in [0, 1]; expected 0 to 255. Multiply them by 255."
            )
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if not isinstance(images, np.ndarray) or images.ndim < 2:
            return (images.astype(np.float32) / np.float32(255) - mean) / std
        # In numpy, whole rows of pixels in place are several times as fast as three channels.
        values = images.reshape(*images.shape[:-2], -1).astype(np.float32)
        values /= np.float32(255)
        values -= np.tile(mean, images.shape[-2])
        values /= np.tile(std, images.shape[-2])
        return values.reshape(images.shape)


class UnreadableImage(UserError):  # noqa: N818 - describes the image
    """A file or bytes that no decoder can read, with its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"Cannot read {self.name}: {self.reason}."


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
      image: 8 bits a channel, upright.
      notes: changes made while decoding, and parts of the file that are not used, as issues without a file.
      orientation: EXIF orientation that was applied; 1 for none.
    """

    image: Image.Image
    notes: tuple[Issue, ...] = ()
    orientation: int = 1


def open_image(encoded: Source, *, bit_depth: int = 16) -> Decoded:
    """Decodes an image and keeps its color mode, so that CLIP can resize before it converts to RGB.

    A Pillow image is taken as if it were a file. The EXIF orientation is applied: benchmark files have none,
    and photographs become upright. Deeper images are scaled to 8 bits, see `image_from_array`.

    Raises:
      UnreadableImage: the file is missing, empty, damaged, too large or not an image.
    """
    raw, notes, orientation = _load(encoded)
    if orientation != 1:
        notes += (Issue("image_turned", "", f"orientation {orientation}"),)
    if isinstance(raw, Image.Image) and not _is_deep(raw):
        # Pillow has already dropped the low bytes.
        if any(note.kind in SCALED for note in notes):
            if bit_depth != 16:
                raise UnreadableImage(_name(encoded), "16-bit color needs bit_depth=16")
            if raw.convert("L").getextrema()[1] < 2 ** (SHALLOW_BITS - 8):
                notes += (Issue("image_shallow", ""),)
        return Decoded(raw, notes, orientation)
    try:
        made = image_from_array(raw, bit_depth=bit_depth)
    except (UnreadableImage, MemoryError) as error:  # an image of two channels, for example
        reason = getattr(error, "reason", None) or _describe_error(error)
        raise UnreadableImage(_name(encoded), reason) from error
    return made._replace(notes=notes + made.notes, orientation=orientation)


def image_from_array(array: np.ndarray | Image.Image, *, bit_depth: int = 16) -> Decoded:
    """Makes an 8-bit image of an array [H, W] or [H, W, 3 or 4], or of a deep gray image.

    16-bit integers are scaled from [0, 2**bit_depth - 1] whatever their maximum, so that all images are
    scaled alike, wider integers from [0, 255] or that range, floats from [0, 1]. Values outside of these
    ranges are scaled from their own minimum and maximum; a note reports the range. Values that are not finite
    or mean "no data" do not count in the range and become 0, which another note reports.

    Raises:
      UnreadableImage: the shape is another, 16-bit values exceed the bit depth, or no value is finite.
    """
    if isinstance(array, np.ndarray):
        if not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
            reason = f"it has the shape {[*array.shape]}; expected [H, W] or [H, W, 3 or 4], channels last"
            raise UnreadableImage("an array", reason)
        if array.dtype == np.uint8:
            return Decoded(Image.fromarray(np.ascontiguousarray(array)))
    # In bands, since float64 values of a whole 16-bit image take four times its memory.
    shape, read = _row_reader(array)
    dtype, step = read(0, 1).dtype, max(BAND_BYTES // (8 * math.prod(shape[1:])), 1)

    def bands() -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        for top in range(0, shape[0], step):
            rows = slice(top, min(top + step, shape[0]))
            band = read(rows.start, rows.stop).astype(np.float64)
            # A single NaN or infinity would make all other pixels NaN or black.
            known = np.abs(band) < TOO_LARGE
            if dtype.kind != "u":
                known &= ~np.isin(band, NO_DATA)
            yield rows, band, known

    low, high, missing = math.inf, -math.inf, 0
    for _, band, known in bands():
        low = min(low, float(band.min(where=known, initial=math.inf)))
        high = max(high, float(band.max(where=known, initial=-math.inf)))
        missing += known.size - int(known.sum())
    if low > high:
        raise UnreadableImage("an array", "none of its values is finite")
    kind, start, end = _scale_of(low, high, dtype, bit_depth)
    scaled = np.empty(shape, np.uint8)
    for rows, band, known in bands():
        # A constant image has no range to divide by.
        factor = 255 / ((end - start) or 1)
        scaled[rows] = np.rint(np.where(known, band - start, 0) * factor)
    bits = dtype.itemsize * 8
    notes = [Issue(kind, "", f"{bits}-bit values {start:g} to {end:g}")]
    if missing:
        notes.append(Issue("image_gaps", "", f"{missing} of {math.prod(shape)} values"))
    if end == 2**16 - 1 and high < 2**SHALLOW_BITS:
        notes.append(Issue("image_shallow", ""))
    return Decoded(Image.fromarray(scaled), tuple(notes))


def resize_image(image: Image.Image, preprocess: Preprocess) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes an image to the square of the backbone, with Pillow's antialiased 8-bit kernel."""
    size = (preprocess.image_size, preprocess.image_size)
    kernel = Image.Resampling[preprocess.resize.upper()]
    # Gray images give the same pixels in either order, and a third of the work in this one. Alpha is
    # dropped without blending, as in the published pipelines.
    if preprocess.rgb_first and image.mode != "L":
        image = image.convert("RGB")
    return np.asarray(image.resize(size, kernel).convert("RGB"))


def decode_mask(encoded: Encoded | tuple[Encoded, ...]) -> Bool[np.ndarray, "H W"]:
    """Decodes a mask, or several that are joined with OR: True where there is a defect.

    Palettes are applied; class indices are gray values.

    Raises:
      UnreadableImage: a mask cannot be read, or several differ in size.
    """
    return binarize(read_masks(encoded)[0])


def read_masks(
    encoded: Encoded | tuple[Encoded, ...],
) -> tuple[list[Shaped[np.ndarray, "H W"]], set[int], tuple[Issue, ...]]:
    """Decodes the ground truth of an image, one mask or several.

    Returns:
      Gray values of each (8 bits with palettes applied, or deeper), their EXIF orientations, and notes on parts
      of the files that are not used, without a file.

    Raises:
      UnreadableImage: a mask cannot be read, or several differ in size.
    """
    parts = encoded if isinstance(encoded, tuple) else (encoded,)
    masks, orientations, notes = zip(*map(_read_mask, parts), strict=True)
    if len({mask.shape for mask in masks}) != 1:
        raise UnreadableImage(_name(parts[0]), "the masks of this image differ in size")
    pages = (one for part in notes for one in part if one.kind == "image_pages")
    return list(masks), set(orientations), tuple(one._replace(kind="mask_pages") for one in pages)


def binarize(
    masks: Sequence[Shaped[np.ndarray, "H W"]], *, threshold: int = 0
) -> Bool[np.ndarray, "H W"]:
    """Returns where one of the masks is above a threshold: the largest gray value (of 255) that is no defect.

    Published numbers use 0; 127 removes the noisy rim of JPEG masks, but erases masks of class indices.
    """
    steps = (threshold * (1 if mask.dtype == np.uint8 else 257) for mask in masks)  # 65535 / 255
    return np.logical_or.reduce([mask > step for mask, step in zip(masks, steps, strict=True)])


def _read_mask(encoded: Encoded) -> tuple[Shaped[np.ndarray, "H W"], int, tuple[Issue, ...]]:
    """Returns the gray values of a mask, the EXIF orientation that was applied, and notes."""
    raw, notes, orientation = _load(encoded)
    if isinstance(raw, np.ndarray) or _is_deep(raw):
        # Pillow's conversion of 16 bits to 8 depends on its version.
        values = np.asarray(raw)
        return values if values.ndim == 2 else values.max(axis=-1), orientation, notes
    try:
        # Palettes are applied: indices divided by 255 would erase the defects of KolektorSDD.
        return np.asarray(raw.convert("L")), orientation, notes
    except Exception as error:  # color modes such as LAB have no gray values
        raise UnreadableImage(_name(encoded), _describe_error(error)) from error


def turn_mask(mask: Bool[np.ndarray, "H W"], orientation: int) -> Bool[np.ndarray, "h w"]:
    """Applies an EXIF orientation to ground truth that was drawn on the stored pixels."""
    image = Image.fromarray(mask)
    image.getexif()[_ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def resize_mask(mask: Bool[np.ndarray, "H W"], size: int) -> Bool[np.ndarray, "S S"]:
    """Resizes ground truth like the published loaders: bilinearly in 8 bits (0 and 255), then > 127."""
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) > 127


def _load(encoded: Source) -> tuple[Image.Image | np.ndarray, tuple[Issue, ...], int]:
    """Returns a file's pixels in its own mode and depth, notes, and the EXIF orientation that was applied.

    The pixels are an array if only OpenCV can read the file.
    """
    if isinstance(encoded, Lazy):
        name = str(encoded)
        try:
            encoded = encoded.read()
        except Exception as error:
            raise UnreadableImage(name, _describe_error(error)) from error
    _check_exists(encoded)
    try:
        with _open(encoded) as image:  # closes the file; the pixels stay
            _check_size(image.size, encoded)
            counted = image.format in COUNTED
            pages = _count_pages(encoded) if counted else getattr(image, "n_frames", 1)
            notes = _describe_depth(image) + _describe_pages(pages)
            # Pillow turns TIFF files while it loads them, and then drops the tag.
            turned = image.getexif().get(_ORIENTATION, 1) if image.format == "TIFF" else 1
            large = image.width * image.height > LARGE_PIXELS
            with _large_images_allowed() if large else contextlib.nullcontext():
                image.load()
            if image.format == "PPM" and image.mode == "I":  # a PGM of 16 bits, in a wider type
                return np.asarray(image).astype(np.uint16), notes, 1
            if image.mode not in ("1", "L", "RGB", "RGBA", "CMYK") and not _is_deep(image):
                image.convert("RGB")  # fails for a damaged palette, which loading does not notice
    except UnreadableImage:
        raise
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        reason = _describe_error(error)
        if isinstance(encoded, Image.Image):
            raise UnreadableImage(_name(encoded), reason) from error
        with contextlib.suppress(UnreadableImage, OSError):
            if not isinstance(error, MemoryError) and (bare := _without_texts(encoded)):
                return _load(bare)
        # OpenCV would need the same memory again.
        found = None if isinstance(error, MemoryError) else _load_with_opencv(encoded)
        if found is None:
            raise UnreadableImage(_name(encoded), reason) from error
        return *found, 1
    orientation = 1
    # A broken EXIF block does not make an image unreadable.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(_ORIENTATION, turned)
        ImageOps.exif_transpose(image, in_place=True)
    # Other values than 1 to 8 are undefined, and Pillow does not apply them.
    return image, notes, orientation if orientation in range(1, 9) else 1


def _open(encoded: bytes | str | os.PathLike[str] | Image.Image) -> Image.Image:
    if isinstance(encoded, Image.Image):
        return encoded.copy()
    with _large_images_allowed():
        source = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        return Image.open(source, formats=FORMATS)


def _check_size(size: tuple[int, int], encoded: Source) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        reason = (
            f"its {width}x{height} pixels exceed the limit of {MAX_PIXELS:,}; cut it into tiles"
        )
        raise UnreadableImage(_name(encoded), reason)


@contextlib.contextmanager
def one_large_image(*encoded: Encoded) -> Iterator[None]:
    """Lets one thread at a time decode very large images, so that memory stays bounded."""
    large = False
    for one in encoded:
        if not isinstance(one, Lazy):
            with contextlib.suppress(Exception):
                _check_exists(one)
                with _open(one) as image:
                    large |= image.width * image.height > LARGE_PIXELS
    with _large_lock if large else contextlib.nullcontext():
        yield


def _load_with_opencv(
    encoded: bytes | str | os.PathLike[str],
) -> tuple[np.ndarray, tuple[Issue, ...]] | None:
    """Returns the pixels of a TIFF that Pillow does not support, such as float color, and notes; else None."""
    import cv2

    try:
        data = _read_bytes(encoded)
        # TIFF alone: OpenCV returns what is left of a cut JPEG, without an error.
        if data[:4] not in (b"II*\0", b"MM\0*"):
            return None
        # Before decoding, since OpenCV's own limit is higher (2**30 pixels).
        size, num_pages = _scan_tiff(data)
        _check_size(size, encoded)
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except UnreadableImage:
        raise
    except Exception:
        return None
    if array is None:
        return None
    if array.ndim == 3 and array.shape[-1] >= 3:
        array = array[..., [2, 1, 0, 3][: array.shape[-1]]]  # BGR(A) to RGB(A)
    return array, _describe_pages(num_pages)


def _scan_tiff(data: bytes) -> tuple[tuple[int, int], int]:
    """Returns the (width, height) of a TIFF, and the number of its pages."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    sizes, seen = [], set()
    while tags.next and tags.next not in seen:  # damaged files have pages in a circle
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        sizes.append((tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]))
    return sizes[0], len(sizes)


def _check_exists(encoded: bytes | str | os.PathLike[str] | Image.Image) -> None:
    reason = ""
    if isinstance(encoded, Image.Image):
        reason = "" if all(encoded.size) else "it is empty"
    elif isinstance(encoded, bytes):
        reason = "" if encoded else "it is empty"
    elif os.path.isdir(encoded):
        reason = "it is a folder, not an image"
    elif not os.path.exists(encoded):
        reason = "the file does not exist"
    elif not os.path.isfile(encoded):
        reason = "it is not a regular file"  # opening a pipe would wait forever
    elif not os.path.getsize(encoded):
        reason = "the file is empty"
    if reason:
        raise UnreadableImage(_name(encoded), reason)


@contextlib.contextmanager
def _large_images_allowed() -> Iterator[None]:
    """Lifts Pillow's limit, which is global and lower than ours; `_check_size` takes its place."""
    # The limit belongs to the whole process: two threads could restore each other's value.
    with _limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _row_reader(
    source: np.ndarray | Image.Image,
) -> tuple[tuple[int, ...], Callable[[int, int], np.ndarray]]:
    """Returns the shape of an image and a function that reads rows; a copy of all would need much memory."""
    if isinstance(source, np.ndarray):
        return source.shape, lambda top, bottom: source[top:bottom]
    width, height = source.size
    return (height, width), lambda top, bottom: np.asarray(source.crop((0, top, width, bottom)))


def _scale_of(low: float, high: float, dtype: np.dtype, bit_depth: int) -> tuple[str, float, float]:
    """Returns the kind of the scale (of `SCALED`), and the values that become 0 and 255."""
    integer = dtype.kind != "f"
    full = 2**bit_depth - 1 if integer else 1
    # Wider integers are often 8-bit or 16-bit values that a program stored in a wider type.
    if integer and dtype.itemsize != 2 and low >= 0 and high <= 255:
        return "image_narrow", 0, 255
    if integer and (dtype.itemsize == 2 or bit_depth < 16) and high > full and low >= 0:
        reason = f"its values reach {high:g}, more than {bit_depth} bits hold ({full})"
        reason += "; set a larger `bit_depth` of the backbone, or --depth of predict"
        raise UnreadableImage("an array", reason)
    if low >= 0 and high <= full:
        return "image_scaled", 0, full
    return "image_stretched", low, high


def _describe_depth(image: Image.Image) -> tuple[Issue, ...]:
    """Returns a note if Pillow keeps only the high byte of the values, as it does for 16-bit color."""
    raw_modes = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    if ";16" in raw_modes and not _is_deep(image):
        return (Issue("image_scaled", "", "16-bit values 0 to 65535"),)
    return ()


def _count_pages(encoded: bytes | str | os.PathLike[str] | Image.Image) -> int:
    """Returns the number of pages or frames of an image, 0 if the later ones are damaged."""
    # Of a second object: counting moves to the last page, and a damaged one would make the first unreadable.
    with contextlib.suppress(Exception), _open(encoded) as image:
        return getattr(image, "n_frames", 1)
    return 0


def _describe_pages(number: int) -> tuple[Issue, ...]:
    detail = f"{number} pages" if number else "the others are damaged"
    return () if number == 1 else (Issue("image_pages", "", detail),)


def _without_texts(encoded: bytes | str | os.PathLike[str]) -> bytes | None:
    """Returns a PNG without its texts and color profile, because of which Pillow may reject it; else None."""
    data = _read_bytes(encoded)
    kept, start = [data[: len(PNG)]], len(PNG)
    while kept[0] == PNG and start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])  # length, kind and checksum
        if data[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[start:end])
        start = end
    bare = b"".join(kept)
    return bare if kept[0] == PNG and len(bare) < len(data) else None


def _read_bytes(encoded: bytes | str | os.PathLike[str]) -> bytes:
    return encoded if isinstance(encoded, bytes) else pathlib.Path(encoded).read_bytes()


def _describe_error(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, Image.UnidentifiedImageError):
        formats = ", ".join(FORMATS)
        return f"it is not an image in a supported format ({formats}); convert it to PNG or JPEG"
    return f"the file is damaged or cut short ({str(error).rstrip('.') or type(error).__name__})"


def _name(encoded: Source) -> str:
    if isinstance(encoded, Lazy):
        return str(encoded)
    if isinstance(encoded, Image.Image):
        return f"an image of mode {encoded.mode}"
    return f"an image of {len(encoded)} bytes" if isinstance(encoded, bytes) else os.fspath(encoded)
