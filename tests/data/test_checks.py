import io

import numpy as np
import pytest
from PIL import Image
from zsad_jax.data.remarks import group

from zsad_jax.data.base import Fault, Sample
from zsad_jax.data.checks import examine


def png(values, size=(6, 5)) -> bytes:
    pixels = np.resize(np.array(values), (size[1], size[0]))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGE = png(np.arange(30, dtype=np.uint8))
MASK = png(np.array([0, 255], np.uint8))


def look(image=IMAGE, mask=MASK, label=1, **options):
    return examine(Sample(image=image, mask=mask, has_mask=True, label=label), **options)


def test_a_good_sample_has_no_remarks():
    found = look()
    assert (found.usable, found.faults, found.notes, found.size) == (True, [], [], (6, 5))
    assert found.mask.sum() == 15


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"image": IMAGE[:-30]}, "damaged or cut short"),
        ({"image": b""}, "it is empty"),
        ({"image": "gone.png"}, "there is no such file"),
        ({"mask": b"junk"}, "its mask cannot be used: it is not an image"),
        ({"mask": png(np.array([0, 1], np.uint8), (4, 3))}, "its mask is 4x3, the image 6x5"),
        ({"mask": (MASK, png(np.zeros(1, np.uint8), (4, 3)))}, "differ in size"),
    ],
)
def test_what_cannot_be_used_is_told(sample, reason):
    found = look(**sample)
    assert not found.usable
    assert len(found.faults) == 1
    assert reason in found.faults[0]


def test_an_empty_mask_on_an_anomalous_image_is_told_and_stays_usable():
    empty = png(np.zeros(1, np.uint8))
    found = look(mask=empty)
    assert (found.usable, found.faults) == (True, ["it is anomalous and its mask is empty"])
    assert look(mask=empty, label=0).faults == []
    assert look(mask=png(np.array([0, 9], np.uint8)), threshold=127).faults == found.faults


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (np.array([7], np.uint8), None),
        (np.array([0, 1], np.uint8), None),
        (np.array([0, 1, 2, 5], np.uint8), 4),
        (np.array([0, 3, 70, 900], np.uint16), 4),
        (np.array([False, True]), None),
    ],
)
def test_more_than_two_levels_are_noted(values, levels):
    notes = look(mask=png(values)).notes
    words = [f"its mask has {levels} levels; all above 0 are taken as defect"]
    assert notes == (words if levels else [])


def test_a_mask_that_does_not_count_is_not_looked_at():
    found = examine(Sample(image=IMAGE, mask=b"junk", has_mask=False, label=1))
    assert (found.usable, found.mask, found.faults) == (True, None, [])


def test_remarks_of_a_kind_are_one_line():
    remarks = [Fault(f"{i}.png", f"its mask is {i}x5, the image 9x9") for i in range(200)]
    remarks.insert(7, Fault("other.png", "it has no mask"))
    remarks += [Fault(f"a{i}.png", f"its mask /some/where/{i}_m.png is missing") for i in "ab"]
    sizes, lonely, missing = group(remarks)
    assert len(sizes.remarks) == 200
    words = "200 times: its mask is 0x5, the image 9x9, or the like (0.png, 1.png, 2.png, …)"
    assert str(sizes) == words
    assert str(lonely) == "other.png: it has no mask"
    assert [one.file_name for one in missing.remarks] == ["aa.png", "ab.png"]
    assert lonely.each() == ["other.png: it has no mask"]
    same = group([Fault(name, "it has no mask") for name in "ab"])
    assert [str(kind) for kind in same] == ["2 times: it has no mask (a, b)"]
