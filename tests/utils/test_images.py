import numpy as np
import pytest
from matplotlib import colormaps

from zsad_jax.utils import images
from zsad_jax.utils.images import (
    OUTLINE,
    Strip,
    colorize,
    draw_strips,
    drawing,
    fit,
    load_font,
    outline,
    overlay,
    paper,
    scale_of,
    shorten,
)


def test_outline_surrounds_mask():
    image = np.full((50, 60, 3), 128, np.uint8)
    mask = np.zeros((50, 60), bool)
    mask[20:30, 20:40] = True
    outlined = outline(image, mask)
    np.testing.assert_array_equal(outlined[mask], 128)
    assert tuple(outlined[19, 30]) == OUTLINE
    assert tuple(outlined[18, 30]) == (0, 0, 0)
    np.testing.assert_array_equal(outlined[:15], 128)
    assert (image == 128).all()  # the input is unchanged


@pytest.mark.parametrize("at", [(0, 0), (37, 501), (639, 1279)])
def test_outlines_single_pixel_in_thumbnail(at):
    mask = np.zeros((640, 1280), bool)
    mask[at] = True
    outlined = outline(np.zeros((60, 120, 3), np.uint8), mask)
    rows, columns = np.nonzero((outlined == OUTLINE).all(-1))
    assert len(rows)
    assert np.hypot(rows - at[0] * 60 / 640, columns - at[1] * 120 / 1280).max() < 3


@pytest.mark.parametrize(("shape", "fitted"), [((1000, 500), (100, 50)), ((10, 1000), (1, 100))])
def test_fit_keeps_aspect_ratio(shape, fitted):
    assert fit(np.zeros((*shape, 3), np.uint8), 100).shape[:2] == fitted


def test_shortens_long_lines_in_the_middle():
    font = load_font(12)
    assert shorten("short", 100, font) == "short"
    line = shorten("a_very_long_name_of_a_file_that_nobody_reads.png", 120, font)
    assert font.getlength(line) <= 120
    assert line.startswith("a_very")
    assert line.endswith(".png")
    assert "…" in line


@pytest.mark.parametrize("mask", [None, np.zeros((5, 6), bool)])
def test_does_not_outline_empty_mask(mask):
    image = np.full((50, 60, 3), 128, np.uint8)
    np.testing.assert_array_equal(outline(image, mask), image)


def test_colors_follow_given_scale_not_map_range():
    anomaly_map = np.array([[0.0, 0.25, 0.5, 2.0]], np.float32)
    colors = colorize(anomaly_map, scale=(0.0, 0.5))
    expected = [colormaps["inferno"](level)[:3] for level in (0, 128, 255, 255)]
    np.testing.assert_array_equal(colors[0], np.round(np.array(expected) * 255))


@pytest.mark.parametrize(
    ("maps", "scale"),
    [([[[1, 3]], [[2, 7]]], (1, 7)), ([[[2, 2]]], (2, 3)), ([], (0, 1))],
)
def test_scale_of_maps_is_their_range(maps, scale):
    assert scale_of(np.array(maps, np.float32)) == scale


def test_overlay_is_dim_gray_at_low_end_and_mixed_at_high_end():
    image = np.full((2, 4, 3), 100, np.uint8)
    anomaly_map = np.array([[0, 0, 1, 1]] * 2, np.float32)
    over = overlay(image, anomaly_map, scale=(0, 1), alpha=0.5)
    np.testing.assert_array_equal(over[:, :2], 60)
    high = np.array(colormaps["inferno"](255)[:3]) * 255
    np.testing.assert_allclose(over[:, 2:], np.broadcast_to(30 + high / 2, (2, 2, 3)), atol=1)


@pytest.mark.parametrize("shape", [(37, 37), (300, 20), (1, 1)])
def test_strips_join_without_seam(shape, monkeypatch):
    anomaly_map = np.random.default_rng(0).random(shape).astype(np.float32)
    whole = colorize(anomaly_map, scale=(0, 1), size=(600, 40))
    monkeypatch.setattr(images, "ROWS_AT_ONCE", 7)
    strips = colorize(anomaly_map, scale=(0, 1), size=(600, 40))
    assert np.abs(whole.astype(int) - strips).max() <= 3  # one palette step


def test_map_is_aligned_with_image():
    anomaly_map = np.zeros((4, 8), np.float32)
    anomaly_map[3, 1] = 1  # bottom left
    heat = colorize(anomaly_map, scale=(0, 1), size=(80, 160)).sum(-1, dtype=int)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 60 <= row < 80
    assert 20 <= column < 40


def test_palette_brightness_increases():
    levels = [int(stop[i : i + 2], 16) for stop in images.palette_stops(9) for i in (1, 3, 5)]
    lightness = np.array(levels).reshape(9, 3) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()


def test_strips_are_aligned_with_color_bar():
    wide, tall = (np.zeros((*shape, 3), np.uint8) for shape in ((100, 260), (260, 100)))
    strips = [Strip([("a", "black")], [("x", wide), ("y", wide)])]
    strips.append(Strip([("b", "black"), ("c", "red")], [("x", tall), ("y", tall)]))
    drawn = np.asarray(draw_strips(strips, scale=(0, 1)))
    black = (drawn == 0).all(axis=-1)
    assert black[:, images.MARGIN].sum() >= 100 + 260
    assert black[:, images.MARGIN + 260 + images.GAP].sum() >= 100 + 260
    bright = (drawn == colorize(np.ones((1, 1)), scale=(0, 1))[0, 0]).all(axis=-1)
    rows, columns = np.nonzero(bright)
    assert columns.min() == images.MARGIN + 2 * (260 + images.GAP)
    assert drawn[-1 - images.MARGIN, columns.min()].sum() < 30  # the bar ends with the last strip
    assert rows.min() == np.nonzero(black[:, images.MARGIN + 50])[0].min()


def test_image_width_fits_content():
    strip = Strip([], [("", np.zeros((4, 3, 3), np.uint8))])
    assert draw_strips([strip], scale=(0, 1)).width == images.NARROWEST + 2 * images.MARGIN


def test_shows_text_in_place_of_missing_image():
    assert (paper((40, 100)) == images.PAPER).all()
    assert (paper((40, 100), "none") != images.PAPER).any()


def test_warns_of_drawing_errors(caplog):
    with drawing("the picture of a.png"):
        raise ValueError("too wide")
    assert "Cannot draw the picture of a.png: too wide." in caplog.text
    with pytest.raises(OSError, match="full"), drawing("b.png"):
        raise OSError("the disk is full")


def test_warns_once_that_no_font_has_the_letters(set_fallback_fonts, caplog):
    set_fallback_fonts("No such font")
    for text in ("gear", "Ä€α"):
        images.load_font(15, text)
    assert not caplog.text
    for text in ("正常", "异常"):
        images.load_font(15, text)
    assert caplog.text.count("No installed font has all letters") == 1


def test_letters_outside_of_the_charts_font_use_another(set_fallback_fonts):
    set_fallback_fonts("No such font", "DejaVu Serif")
    assert images.load_font(15, "正常").getname()[0] == "DejaVu Serif"
    assert images.load_font(15, "normal").getname()[0] == "DejaVu Sans"
