import io
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from zsad_jax.data import preprocess
from zsad_jax.data.preprocess import (
    Preprocess,
    UnreadableImage,
    binarize,
    decode_mask,
    image_from_array,
    one_large_image,
    open_image,
    read_masks,
    resize_image,
    resize_mask,
)
from zsad_jax.utils.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "tipsomaly" / "preprocess_golden.npz"
RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)


def encode(image, file_format="PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def odd_images() -> dict[str, bytes]:
    color = Image.fromarray(COLOR)
    alpha = Image.fromarray(RNG.integers(0, 256, (21, 34), dtype=np.uint8))
    with_alpha = color.copy()
    with_alpha.putalpha(alpha)
    transparent = encode(color.quantize(16), transparency=3)
    return {
        "gray": encode(color.convert("L")),
        "gray_alpha": encode(with_alpha.convert("LA")),
        "rgba": encode(with_alpha),
        "palette": encode(color.quantize(16)),
        "palette_transparent": transparent,
        "palette_gif": encode(color.quantize(16), "GIF"),
        "one_bit": encode(color.convert("1")),
        "cmyk_jpeg": encode(color.convert("CMYK"), "JPEG"),
        "cmyk_tiff": encode(color.convert("CMYK"), "TIFF"),
        "bmp": encode(color, "BMP"),
        "webp": encode(color, "WEBP"),
        "1x1": encode(np.full((1, 1, 3), 7, np.uint8)),
    }


@pytest.mark.parametrize("kind", odd_images())
def test_unusual_images_match_pillow_rgb(kind):
    data = odd_images()[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    image, notes, _ = open_image(data)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), expected)
    assert notes == ()
    square = resize_image(open_image(data).image, Preprocess(image_size=28))
    bilinear = Image.fromarray(expected).resize((28, 28), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(square, np.asarray(bilinear))


def test_exif_orientation_is_applied_to_image_and_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    Image.fromarray(COLOR).save(tmp_path / "turned.png", exif=exif)
    image = open_image(tmp_path / "turned.png").image
    np.testing.assert_array_equal(np.asarray(image), np.rot90(COLOR, -1))
    deep = (COLOR[..., 0].astype(np.uint16)) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png", exif=exif)
    image = open_image(str(tmp_path / "deep.png")).image
    np.testing.assert_array_equal(np.asarray(image), np.rot90(COLOR[..., 0], -1))
    mask = decode_mask(str(tmp_path / "deep.png"))
    np.testing.assert_array_equal(mask, np.rot90(COLOR[..., 0] > 0, -1))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize(("top", "depth"), [(200, 16), (16000, 16), (60000, 16), (3000, 12)])
def test_16_bit_gray_is_scaled_by_bit_depth(top, depth, file_format):
    """Makes sure that one bright pixel does not make an image darker than the others in its folder."""
    values = np.linspace(0, top, 12 * 9).reshape(12, 9).astype(np.uint16)
    end = 2**depth - 1
    image, notes, _ = open_image(encode(values, file_format), bit_depth=depth)
    expected = np.rint(values * (255 / end)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert notes[0] == ("image_scaled", "", f"16-bit values 0 to {end}")
    assert [note.kind for note in notes[1:]] == ["image_shallow"] * (top < 2**14 and depth == 16)


def test_rejects_values_beyond_bit_depth():
    with pytest.raises(UnreadableImage, match=r"reach 4096, more than 12 bits hold \(4095\)"):
        open_image(encode(np.full((2, 2), 4096, np.uint16)), bit_depth=12)
    with pytest.raises(UnreadableImage, match="reach 4096, more than 12 bits"):
        image_from_array(np.full((2, 2), 4096, np.int32), bit_depth=12)
    cv2 = pytest.importorskip("cv2")
    color = cv2.imencode(".png", np.full((2, 2, 3), 9, np.uint16))[1].tobytes()
    with pytest.raises(UnreadableImage, match="16-bit color needs bit_depth=16"):
        open_image(color, bit_depth=12)


def test_16_bit_color_matches_pillow_and_is_noted():
    cv2 = pytest.importorskip("cv2")
    deep = COLOR[..., ::-1].astype(np.uint16) * 257
    data = cv2.imencode(".png", deep)[1].tobytes()
    decoded = open_image(data)
    np.testing.assert_array_equal(np.asarray(decoded.image), COLOR)
    assert [note.kind for note in decoded.notes] == ["image_scaled"]
    assert "16-bit" in decoded.notes[0].description
    dark = open_image(cv2.imencode(".png", deep // 4)[1].tobytes())
    assert [note.kind for note in dark.notes] == ["image_scaled", "image_shallow"]
    wide = image_from_array(np.full((4, 4), 4095, np.int32))
    assert [note.kind for note in wide.notes] == ["image_scaled", "image_shallow"]


def test_opencv_reads_tiff_that_pillow_cannot():
    cv2 = pytest.importorskip("cv2")
    values = (COLOR / np.float32(255)).astype(np.float32)
    data = cv2.imencode(".tiff", values[..., ::-1])[1].tobytes()
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(data))
    decoded = open_image(data)
    np.testing.assert_array_equal(np.asarray(decoded.image), COLOR)
    assert "32-bit" in decoded.notes[0].description
    with pytest.raises(UnreadableImage):
        open_image(data[: len(data) // 2])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -9999, -3.4028235e38])
def test_reports_values_that_are_not_data(value):
    values = np.linspace(0.2, 0.8, 30, dtype=np.float32).reshape(5, 6)
    expected = np.rint(values * 255)
    values[1, 2], expected[1, 2] = value, 0
    decoded = image_from_array(values)
    np.testing.assert_array_equal(np.asarray(decoded.image), expected)
    scale, gaps = decoded.notes
    assert scale == ("image_scaled", "", "32-bit values 0 to 1")
    assert gaps == ("image_gaps", "", "1 of 30 values")
    with pytest.raises(UnreadableImage, match="none of its values is finite"):
        image_from_array(np.full((5, 6), value, np.float32))


@pytest.mark.parametrize("file_format", ["TIFF", "PNG", "GIF", "WEBP"])
def test_reports_pages_and_frames(file_format, tmp_path):
    pages = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    path = tmp_path / "pages"
    pages[0].save(path, file_format, save_all=True, append_images=pages[1:])
    decoded = open_image(path)
    assert decoded.notes == (("image_pages", "", "3 pages"),)
    assert decoded.image.convert("RGB").getpixel((2, 2))[0] > 250


def test_reads_first_page_where_others_are_damaged():
    page = Image.fromarray(COLOR)
    data = encode(page, "TIFF", save_all=True, append_images=[page])[: len(encode(page, "TIFF"))]
    decoded = open_image(data)
    np.testing.assert_array_equal(np.asarray(decoded.image), COLOR)
    assert decoded.notes == (("image_pages", "", "the others are damaged"),)


def test_reports_pages_that_only_opencv_reads(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "pages.tif"
    cv2.imwritemulti(str(path), [np.zeros((6, 8, 3), np.float32)] * 2)
    assert open_image(path).notes[0] == ("image_pages", "", "2 pages")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_reports_orientation(file_format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    decoded = open_image(encode(COLOR, file_format, exif=exif))
    assert decoded.image.size == (COLOR.shape[0], COLOR.shape[1])
    assert (decoded.orientation, decoded.notes) == (6, (("image_turned", "", "orientation 6"),))


def test_reads_png_with_long_text():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (2 << 20), zip=True)
    data = encode(COLOR, pnginfo=info)
    start = data.index(b"zTXt") - 4
    text = data[start : start + 12 + int.from_bytes(data[start : start + 4])]
    rest = data.replace(text, b"")
    end = rest.index(b"IEND") - 4
    for encoded in (data, rest[:end] + text + rest[end:]):
        with pytest.raises(ValueError, match="too large"):
            Image.open(io.BytesIO(encoded)).load()
        np.testing.assert_array_equal(np.asarray(open_image(encoded).image), COLOR)
    damaged = data.replace(text, text[:-1] + b"?")  # in its checksum
    np.testing.assert_array_equal(np.asarray(open_image(damaged).image), COLOR)
    with pytest.raises(UnreadableImage, match="damaged or cut short"):
        open_image(data[: len(data) // 2])


def test_reads_large_image(tmp_path):
    Image.new("1", (10_000, 8_000), 1).save(tmp_path / "large.png")
    image = open_image(tmp_path / "large.png").image
    assert image.size == (10_000, 8_000)
    square = resize_image(image.convert("L"), Preprocess(image_size=16))
    np.testing.assert_array_equal(square, np.full((16, 16, 3), 255))


def test_reads_beyond_pillows_limit_without_changing_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    image = open_image(encode(COLOR)).image
    assert image.size == (34, 21)
    assert Image.MAX_IMAGE_PIXELS == 100


def broken_files() -> dict[str, bytes]:
    good = encode(COLOR)
    return {
        "truncated.png": good[: len(good) // 2],
        "no_pixels.png": good[:40],
        "truncated.jpg": encode(COLOR, "JPEG")[:600],
        "text.png": b"this is no picture\n",
        "empty.png": b"",
        "vector.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "half.tiff": encode(COLOR, "TIFF")[:700],
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_input_gives_short_error(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    for source in (path, str(path), path.read_bytes()):
        with pytest.raises(UnreadableImage) as caught:
            open_image(source)
        message = str(caught.value)
        assert message.startswith("Cannot read ")
        assert "\n" not in message
        assert isinstance(source, bytes) or name in message


def test_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    path = str(tmp_path / "pipe.png")
    with one_large_image(path), pytest.raises(UnreadableImage, match="not a regular file"):
        open_image(path)


def test_rejects_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImage, match="does not exist"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(UnreadableImage, match="folder"):
        open_image(tmp_path)


def test_clip_resizes_in_original_mode():
    image = Image.fromarray(COLOR).quantize(8)
    own = resize_image(image, Preprocess(image_size=12, resize="bicubic", rgb_first=False))
    expected = image.resize((12, 12), Image.Resampling.BICUBIC).convert("RGB")
    np.testing.assert_array_equal(own, np.asarray(expected))
    first = resize_image(image, Preprocess(image_size=12, resize="bicubic", rgb_first=True))
    assert (own != first).any()


@pytest.mark.parametrize("case", ["shrink", "grow"])
def test_images_and_masks_are_bit_equal_to_golden(case):
    golden = np.load(GOLDEN)
    preprocess = Preprocess(image_size=28)
    image = resize_image(Image.fromarray(golden[f"{case}/image_u8"]), preprocess)
    np.testing.assert_array_equal(preprocess.normalize(image), golden[f"{case}/image_out"])
    mask = decode_mask(encode(golden[f"{case}/mask_u8"]))
    np.testing.assert_array_equal(resize_mask(mask, 28), golden[f"{case}/mask_out"] == 1)


def test_reads_all_kinds_of_masks():
    mask = np.zeros((8, 9), np.uint8)
    mask[2:5, 3:7], mask[6, 1] = 1, 2
    truth = mask > 0
    palette = Image.fromarray(mask)
    palette.putpalette([0, 0, 0, 255, 255, 255, 85, 85, 85])
    for encoded in (
        encode(mask),  # class indices
        encode(palette, "BMP"),  # a palette: its indices / 255 would erase the defect
        encode(mask.astype(np.uint16)),
        encode(truth),  # 1-bit
        encode(np.repeat(mask[..., None] * np.uint8(100), 3, axis=-1)),
    ):
        np.testing.assert_array_equal(decode_mask(encoded), truth)


def test_inverted_palette_is_applied():
    indices = Image.fromarray(np.array([[0, 1]], np.uint8))
    indices.putpalette([255, 255, 255, 0, 0, 0])
    np.testing.assert_array_equal(decode_mask(encode(indices)), [[True, False]])


def test_mask_threshold():
    gray = np.array([[0, 1, 127, 128, 255]], np.uint8)
    assert decode_mask(encode(gray)).tolist() == [[False, True, True, True, True]]
    strict = [[False, False, False, True, True]]
    for values in (gray, gray.astype(np.uint16) * 257):
        masks, *_ = read_masks(encode(values))
        assert binarize(masks, threshold=127).tolist() == strict


def test_merges_several_masks():
    one, other = np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8)[::-1]
    joined = decode_mask((encode(one), encode(other)))
    np.testing.assert_array_equal(joined, (one + other) > 0)
    with pytest.raises(UnreadableImage, match="differ in size"):
        decode_mask((encode(one), encode(other[:3])))


def test_normalize_accepts_numpy_and_tracers():
    preprocess = Preprocess(image_size=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    images = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    out = preprocess.normalize(images)
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (images / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.3], atol=1e-6)
    traced = jax.jit(preprocess.normalize)(images)
    assert traced.dtype == np.float32
    np.testing.assert_allclose(traced, out, atol=1e-6)
    np.testing.assert_array_equal(preprocess.normalize(Image.fromarray(images[0])), out[0])
    with pytest.raises(UserError, match=r"in \[0, 1\]; expected 0 to 255"):
        preprocess.normalize(images / 255)


def test_converts_arrays_to_images():
    scaled = COLOR / 255
    for array in (COLOR, scaled, scaled.astype(np.float32), COLOR.astype(np.int64)):
        np.testing.assert_array_equal(np.asarray(image_from_array(array).image), COLOR)
    assert np.asarray(image_from_array(np.full((2, 2), 9.0)).image).max() == 0  # constant: no range
    for wrong in (COLOR[None], np.zeros((3, 4, 5)), np.zeros((0, 4, 3))):
        with pytest.raises(UserError, match="has the shape"):
            image_from_array(wrong)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(side, bits=16):
    """Returns a PNG of zeros of about a megabyte that is about a thousand times as large when decoded."""
    row = bytes(1 + side * bits // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_palette_without_colors_is_unreadable():
    """Uses an image that Pillow opens, but fails to convert."""
    header = struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"tRNS", b"\0")
    parts += chunk(b"IDAT", zlib.compress(bytes(5) * 4)) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + parts
    for read in (open_image, decode_mask):
        with pytest.raises(UnreadableImage):
            read(data)


def test_mask_in_lab_is_unreadable():
    with pytest.raises(UnreadableImage, match="LAB"):
        decode_mask(encode(Image.fromarray(COLOR, "LAB"), "TIFF"))


MEASURE = """
import sys
from zsad_jax.data.preprocess import UnreadableImage, open_image
from zsad_jax.utils.memory import peak_memory
try:
    open_image(sys.argv[1])
except UnreadableImage as error:
    print(error)
print(peak_memory() >> 20)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(("side", "opened"), [(8_000, True), (21_000, False)])
def test_memory_is_bounded_for_small_files_with_many_pixels(side, opened, tmp_path):
    (tmp_path / "huge.png").write_bytes(huge_png(side))
    command = [sys.executable, "-c", MEASURE, tmp_path / "huge.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *said, megabytes = done.stdout.splitlines()
    assert opened == (not said)
    assert (
        opened
        or "its 21000x21000 pixels exceed the limit of 268,435,456; cut it into tiles" in said[0]
    )
    assert int(megabytes) < 600  # two bytes per pixel while decoding, one in the result


def test_reads_tiff_beyond_pillows_limit(tmp_path, monkeypatch):
    """Covers the second check of Pillow, which happens while loading TIFF files."""
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(
        np.asarray(open_image(encode(COLOR, "TIFF", compression="tiff_lzw")).image), COLOR
    )
