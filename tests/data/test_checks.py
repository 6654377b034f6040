import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from zsad_jax.data.checks import examine
from zsad_jax.data.dataset import Sample
from zsad_jax.data.issues import Issue, group_issues, summarize_issues


def png(values, size=(6, 5), orientation=None) -> bytes:
    pixels = np.resize(np.array(values), (size[1], size[0]))
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return file.getvalue()


IMAGE = png(np.arange(30, dtype=np.uint8))
MASK = png(np.array([0, 255], np.uint8))


def check_sample(image=IMAGE, mask=MASK, label=1, **options):
    sample = Sample(image=image, mask=mask, has_mask=True, label=label, file_name="a.png")
    return examine(sample, **options)


def test_good_sample_has_no_issues():
    found = check_sample()
    assert (found.usable, found.issues, found.notes, found.image.size) == (True, [], [], (6, 5))
    assert found.mask.sum() == 15


@pytest.mark.parametrize(
    ("sample", "kind", "detail"),
    [
        ({"image": IMAGE[:-30]}, "image_unreadable", "damaged or cut short"),
        ({"image": b""}, "image_unreadable", "it is empty"),
        ({"image": "gone.png"}, "image_unreadable", "the file does not exist"),
        ({"mask": b"junk"}, "mask_unreadable", "it is not an image"),
        ({"mask": png(np.array([0, 1], np.uint8), (5, 6))}, "mask_size", "5x6, the image 6x5"),
        ({"mask": (MASK, png(np.zeros(1, np.uint8), (4, 3)))}, "mask_unreadable", "differ in size"),
    ],
)
def test_reports_unusable_images_and_masks(sample, kind, detail):
    found = check_sample(**sample)
    assert not found.usable
    (issue,) = found.issues
    assert (issue.kind, issue.file) == (kind, "a.png")
    assert detail in issue.detail
    assert found.mask is None or kind == "image_unreadable"
    assert (found.image is None) == (kind == "image_unreadable")


def test_uses_mask_of_other_size_with_same_aspect_ratio():
    image = png(np.arange(200, dtype=np.uint8), (60, 41))  # 30 x 20.5
    for size in ((30, 20), (30, 21), (120, 82), (90, 62)):
        found = check_sample(image=image, mask=png(np.array([0, 255], np.uint8), size))
        assert (found.usable, found.issues) == (True, [])
        assert found.mask.shape == size[::-1]
        width, height = size
        detail = f"{width}x{height}, the image 60x41"
        assert found.notes == [Issue("mask_resized", "a.png", detail)]
    for size in ((30, 22), (41, 60), (60, 40), (59, 41)):
        found = check_sample(image=image, mask=png(np.array([0, 255], np.uint8), size))
        assert (found.usable, found.mask, found.notes) == (False, None, [])
        assert [issue.kind for issue in found.issues] == ["mask_size"]


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("size", [(6, 5), (6, 6)])
def test_masks_of_images_with_exif_orientation(orientation, size):
    values = np.arange(size[0] * size[1], dtype=np.uint8)
    image = png(values, size, orientation)
    stored = png(values % 7 == 0, size)  # drawn on the stored pixels, before orientation
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(image)))) % 7 == 0
    found = check_sample(image=image, mask=stored)
    if (
        size[0] == size[1] or orientation < 5
    ):  # the size does not show which pixels the mask was drawn on
        assert (found.usable, found.mask) == (False, None)
        assert found.issues == [Issue("mask_orientation", "a.png", f"orientation {orientation}")]
    else:
        detail = f"orientation {orientation}"
        assert (found.usable, found.issues) == (True, [Issue("mask_turned", "a.png", detail)])
        np.testing.assert_array_equal(found.mask, turned)
        drawn = check_sample(image=image, mask=png(turned, size[::-1]))
        assert (drawn.usable, drawn.issues) == (True, [])
        assert drawn.notes == [Issue("image_turned", "a.png", detail)]
        np.testing.assert_array_equal(drawn.mask, turned)
    plain = png(values, turned.shape[::-1])
    alone = check_sample(image=plain, mask=png(values % 7 == 0, size, orientation))
    assert alone.issues == [Issue("mask_orientation", "a.png", f"1, the mask {orientation}")]
    other = check_sample(image=image, mask=png(values % 7 == 0, size, orientation % 7 + 2))
    assert [issue.kind for issue in other.issues] == ["mask_orientation"]
    both = check_sample(image=image, mask=png(values % 7 == 0, size, orientation))
    assert (both.usable, both.issues) == (True, [])
    np.testing.assert_array_equal(both.mask, turned)


def test_default_orientation_accepts_mask_without_orientation():
    found = check_sample(image=png(np.arange(30, dtype=np.uint8), orientation=1))
    assert (found.usable, found.issues, found.notes) == (True, [], [])


def test_empty_mask_of_anomalous_image_is_reported_and_used():
    empty = png(np.zeros(1, np.uint8))
    found = check_sample(mask=empty)
    assert (found.usable, found.issues) == (True, [Issue("mask_empty", "a.png")])
    assert found.mask is not None
    assert check_sample(mask=empty, label=0).issues == []
    assert check_sample(mask=png(np.array([0, 9], np.uint8)), threshold=127).issues == found.issues


def test_full_mask_is_reported_and_used():
    full = png(np.array([255], np.uint8))
    found = check_sample(mask=full)
    assert (found.usable, found.issues) == (True, [Issue("mask_full", "a.png")])
    assert found.mask.all()
    assert check_sample(mask=png(np.array([9, 255], np.uint8)), threshold=9).issues == []


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (np.array([7, 0], np.uint8), None),
        (np.array([0, 1], np.uint8), None),
        (np.array([0, 1, 2, 5], np.uint8), 4),
        (np.array([0, 3, 70, 900], np.uint16), 4),
        (np.array([False, True]), None),
    ],
)
def test_notes_more_than_two_gray_levels(values, levels):
    notes = check_sample(mask=png(values)).notes
    issue = Issue("mask_levels", "a.png", f"{levels} levels, threshold 0")
    assert notes == ([issue] if levels else [])


def test_reports_masks_that_may_be_inverted():
    lesion = np.zeros((40, 40), np.uint8)
    lesion[4:, 4:] = 255  # large, and reaches two sides
    image = png(np.arange(1600, dtype=np.uint16).astype(np.uint8), (40, 40))
    assert check_sample(image=image, mask=png(lesion, (40, 40))).issues == []
    inverted = np.full((40, 40), 255, np.uint8)
    inverted[10:20, 10:20] = 0
    found = check_sample(image=image, mask=png(inverted, (40, 40)))
    assert found.issues == [Issue("mask_inverted", "a.png", "94% of the image")]
    assert found.usable


def test_notes_masks_with_several_pages():
    buffer = io.BytesIO()
    pages = [Image.new("L", (6, 5), value) for value in (0, 255)]
    pages[1].save(buffer, "TIFF", save_all=True, append_images=pages[:1])
    found = check_sample(mask=buffer.getvalue())
    assert Issue("mask_pages", "a.png", "2 pages") in found.notes


def test_does_not_read_unused_mask():
    found = examine(Sample(image=IMAGE, mask=b"junk", has_mask=False, label=1))
    assert (found.usable, found.mask, found.issues) == (True, None, [])


def test_groups_issues_by_kind():
    issues = [Issue("mask_size", f"{i}.png", f"{i}x5, the image 9x9") for i in range(200)]
    issues.insert(7, Issue("mask_missing", "other.png"))
    issues += [Issue("mask_outside", f"a{i}.png", f"/some/where/{i}_m.png") for i in "ab"]
    sizes, lonely, outside = group_issues(issues)
    assert len(sizes) == 200
    assert summarize_issues(sizes) == (
        "200 files: the mask differs in size from the image, which is excluded from pixel metrics"
        " (0.png: 0x5, the image 9x9, 1.png: 1x5, the image 9x9, 2.png: 2x5, the image 9x9, …)"
    )
    assert summarize_issues(lonely) == str(lonely[0]) == "other.png: the mask is missing"
    assert [issue.file for issue in outside] == ["aa.png", "ab.png"]
    formats = [Issue("format_unsupported", f"{i}{s}", s) for i in "ab" for s in (".heic", ".dcm")]
    assert summarize_issues([*formats, formats[0]]) == (
        "5 files: the file format is not supported; convert it to PNG or JPEG:"
        " .heic (3), .dcm (2) (a.heic, a.dcm, b.heic, …)"
    )
    (same,) = group_issues([Issue("mask_missing", name) for name in "ab"])
    assert summarize_issues(same) == "2 files: the mask is missing (a, b)"
