import dataclasses

import numpy as np
import pytest

from zsad_jax.report import gallery, images


@pytest.fixture
def drawn(monkeypatch):
    """Records the strips and options of drawn images."""
    calls = []
    monkeypatch.setattr(
        images, "draw_strips", lambda strips, **given: calls.append((strips, given))
    )
    return calls


def test_heat_map_has_all_panels_labels_and_the_given_scale(cases, drawn):
    images.heat_map(cases[1], scale=(0, 2), title="A set")
    (((strip,), options),) = drawn
    assert options == {"scale": (0, 2)}
    ((words, _),) = strip.lines
    assert words == "A set · gear/1.png · score 0.400 · anomalous"
    names, pictures = zip(*strip.panels, strict=True)
    assert names == ("image", "ground truth", "anomaly map", "overlay")
    assert {picture.shape for picture in pictures} == {(173, 260, 3)}
    assert len({picture.tobytes() for picture in pictures}) == 4


@pytest.mark.parametrize(("label", "words"), [(0, "no defect"), (1, "no mask")])
@pytest.mark.parametrize("mask", [None, np.zeros((40, 60), bool)])
def test_absent_masks_are_reported(cases, drawn, label, words, mask):
    gallery([dataclasses.replace(cases[0], mask=mask, label=label)], scale=(0, 1), title="")
    ((((strip,), _),)) = drawn
    np.testing.assert_array_equal(strip.panels[1][1], images.paper((173, 260), words))


def test_gallery_has_one_strip_per_case(cases):
    one, three = (gallery(cases[:count], scale=(0, 1), title="t") for count in (1, 3))
    assert three.width == one.width > 4 * images.LONGEST_SIDE
    assert three.height > 3 * 173 > one.height
