import numpy as np
import pytest

from zsad_jax.utils.images import OUTLINE, draw_outline, fit, load_font, shorten


def test_outline_surrounds_the_mask_and_spares_its_inside():
    image = np.full((50, 60, 3), 128, np.uint8)
    mask = np.zeros((50, 60), bool)
    mask[20:30, 20:40] = True
    outlined = draw_outline(image, mask)
    np.testing.assert_array_equal(outlined[mask], 128)
    assert tuple(outlined[19, 30]) == OUTLINE
    assert tuple(outlined[18, 30]) == (0, 0, 0)
    np.testing.assert_array_equal(outlined[:15], 128)
    assert (image == 128).all()  # the input is not drawn into


@pytest.mark.parametrize("at", [(0, 0), (37, 501), (639, 1279)])
def test_a_single_pixel_is_outlined_in_a_thumbnail(at):
    mask = np.zeros((640, 1280), bool)
    mask[at] = True
    outlined = draw_outline(np.zeros((60, 120, 3), np.uint8), mask)
    rows, columns = np.nonzero((outlined == OUTLINE).all(-1))
    assert len(rows)
    assert np.hypot(rows - at[0] * 60 / 640, columns - at[1] * 120 / 1280).max() < 3


@pytest.mark.parametrize(("shape", "fitted"), [((1000, 500), (100, 50)), ((10, 1000), (1, 100))])
def test_fit_keeps_the_aspect(shape, fitted):
    assert fit(np.zeros((*shape, 3), np.uint8), 100).shape[:2] == fitted


def test_long_lines_lose_their_middle():
    font = load_font(12)
    assert shorten("short", 100, font) == "short"
    line = shorten("a_very_long_name_of_a_file_that_nobody_reads.png", 120, font)
    assert font.getlength(line) <= 120
    assert line.startswith("a_very")
    assert line.endswith(".png")
    assert "…" in line
