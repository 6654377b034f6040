import numpy as np
import pytest
from matplotlib import colormaps

from zsad_jax.report import colourise, overlay, pictures


def test_colours_follow_the_given_scale_and_never_the_map():
    anomaly_map = np.array([[0.0, 0.25, 0.5, 2.0]], np.float32)
    colours = colourise(anomaly_map, scale=(0.0, 0.5))
    expected = [colormaps["inferno"](level)[:3] for level in (0, 128, 255, 255)]
    np.testing.assert_array_equal(colours[0], np.round(np.array(expected) * 255))


def test_overlay_leaves_the_image_untouched_at_the_low_end_and_mixes_at_the_high_end():
    image = np.full((2, 4, 3), 100, np.uint8)
    anomaly_map = np.array([[0, 0, 1, 1]] * 2, np.float32)
    over = overlay(image, anomaly_map, scale=(0, 1), alpha=0.5)
    np.testing.assert_array_equal(over[:, :2], 100)
    high = np.array(colormaps["inferno"](255)[:3]) * 255
    np.testing.assert_allclose(over[:, 2:], np.broadcast_to(50 + high / 2, (2, 2, 3)), atol=1)


@pytest.mark.parametrize("shape", [(37, 37), (300, 20), (1, 1)])
def test_strips_join_without_a_seam(shape, monkeypatch):
    anomaly_map = np.random.default_rng(0).random(shape).astype(np.float32)
    whole = colourise(anomaly_map, scale=(0, 1), size=(600, 40))
    monkeypatch.setattr(pictures, "ROWS_AT_ONCE", 7)
    strips = colourise(anomaly_map, scale=(0, 1), size=(600, 40))
    assert np.abs(whole.astype(int) - strips).max() <= 3  # one step of the palette


def test_map_lies_where_the_image_does():
    anomaly_map = np.zeros((4, 8), np.float32)
    anomaly_map[3, 1] = 1  # bottom left
    heat = colourise(anomaly_map, scale=(0, 1), size=(80, 160)).sum(-1, dtype=int)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 60 <= row < 80
    assert 20 <= column < 40


def test_palette_grows_lighter_all_the_way():
    levels = [int(stop[i : i + 2], 16) for stop in pictures.palette_stops(9) for i in (1, 3, 5)]
    lightness = np.array(levels).reshape(9, 3) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()
