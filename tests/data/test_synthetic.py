import collections
import io
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from zsad_jax.data import synthetic

NAMES = ("synthetic_aux", "synthetic_target")
SURFACE = {"scratch", "stain", "hole", "crack"}
STRUCTURAL = {"missing", "misplaced"}


def read(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


@pytest.fixture(scope="module", params=NAMES)
def dataset(request):
    return synthetic.Synthetic(request.param)


@pytest.fixture(scope="module")
def samples(dataset):
    """Returns the first eight normal and anomalous images of each category, which cover each kind of defect."""
    return [dataset[index] for index in range(len(dataset)) if index % 16 < 8]


def test_counts_and_defects(dataset, monkeypatch):
    dataset = synthetic.Synthetic(dataset.name)  # a new one, since the fixture keeps its images
    blank = np.zeros((256, 256, 3), np.uint8), np.zeros((256, 256), bool)
    monkeypatch.setattr(synthetic, "draw", lambda *_, **__: blank)
    samples = list(dataset)
    assert len(samples) == len(dataset) >= 240
    assert len(dataset.categories) == len(set(dataset.categories)) >= 6
    assert tuple(dict.fromkeys(sample.category for sample in samples)) == dataset.categories
    assert len({sample.file_name for sample in samples}) == len(samples)
    kinds = collections.defaultdict(collections.Counter)
    for sample in samples:
        assert sample.label == (sample.defect != "good")
        kinds[sample.category][sample.defect] += 1
    assert all(2 * seen["good"] == seen.total() for seen in kinds.values())
    assert all(set(seen) >= SURFACE for seen in kinds.values())
    objects = [seen for seen in kinds.values() if set(seen) == SURFACE | {"good", *STRUCTURAL}]
    assert 4 <= len(objects) < len(kinds)


def test_samples_follow_the_schema(samples):
    assert len({sample.image for sample in samples}) == len(samples)
    for sample in samples[::5]:
        image = read(sample.image)
        assert image.shape == (256, 256, 3)
        assert image.dtype == np.uint8
        assert image.std() > 4
        assert sample.has_mask
        assert sample.prompt_name == sample.category.replace("_", " ")


def test_masks_are_empty_only_for_normal_images(samples):
    for sample in samples:
        if sample.label == 0:
            assert sample.mask is None
            continue
        mask = read(sample.mask)
        assert mask.shape == (256, 256)
        assert set(np.unique(mask)) == {0, 255}
        assert 40 <= (mask > 0).sum() <= 0.1 * mask.size, sample.file_name


def test_masks_cover_changed_pixels(dataset):
    for category in synthetic.CATEGORIES[dataset.name]:
        for index, kind in enumerate(category.defects):
            good, empty = synthetic.draw(dataset.name, category, index, defect=None)
            bad, mask = synthetic.draw(dataset.name, category, index, defect=kind)
            assert not empty.any()
            change = np.abs(bad.astype(int) - good).max(-1)
            near = ndimage.binary_dilation(mask, iterations=3)
            assert change[~near].max() <= 4, (category.name, kind)
            visible = change[mask] > 12
            assert visible.mean() > 0.3, (category.name, kind)
            assert visible.sum() > 30, (category.name, kind)


def test_samples_are_reproducible(dataset, samples):
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    for index in (0, 7, 100, 211):
        assert copy[index] == dataset[index]
        assert copy[index] is copy[index]
    assert dataset[-len(dataset)] == samples[0]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize(
    ("name", "index", "mean", "area"),
    [
        ("synthetic_aux", 17, [52.197, 63.593, 51.82, 66.315], 577),
        ("synthetic_aux", 114, [132.446, 140.535, 138.535, 147.898], 428),
        ("synthetic_aux", 148, [74.059, 97.409, 74.169, 77.707], 606),
        ("synthetic_aux", 245, [158.486, 168.439, 145.707, 162.524], 4428),
        ("synthetic_target", 17, [123.817, 116.807, 98.458, 92.811], 483),
        ("synthetic_target", 114, [154.554, 162.495, 182.092, 206.471], 568),
        ("synthetic_target", 148, [122.619, 115.558, 121.505, 130.715], 327),
        ("synthetic_target", 245, [102.04, 94.633, 78.784, 67.343], 1333),
    ],
)
def test_images_are_equal_on_all_machines(name, index, mean, area):
    sample = synthetic.Synthetic(name)[index]
    blocks = read(sample.image).reshape(2, 128, 2, 128, 3).mean((1, 3, 4)).ravel()
    np.testing.assert_allclose(blocks, mean, atol=0.02)
    assert abs((read(sample.mask) > 0).sum() - area) <= 3


def test_datasets_share_no_category_or_defect_function():
    aux, target = (synthetic.CATEGORIES[name] for name in NAMES)
    assert not {category.name for category in aux} & {category.name for category in target}
    assert not {category.paint for category in aux} & {category.paint for category in target}
    inflict = [
        {function for category in categories for function in category.defects.values()}
        for categories in (aux, target)
    ]
    assert not inflict[0] & inflict[1]
    assert all(len(functions) >= 5 for functions in inflict)


def untrained_map(image):
    """Returns the distance of each patch's mean color and contrast from those of the median patch."""
    resized = Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)
    patches = np.asarray(resized, float).reshape(16, 14, 16, 14, 3)
    look = np.concatenate([patches.mean((1, 3)), patches.std((1, 3))], -1)
    distance = np.linalg.norm(look - np.median(look, axis=(0, 1)), axis=-1)
    upsampled = Image.fromarray(distance.astype(np.float32)).resize((128, 128))
    return np.asarray(upsampled)


@pytest.mark.parametrize("dataset", ["synthetic_target"], indirect=True)
def test_untrained_detector_does_not_solve_it(dataset, samples):
    truths, maps = collections.defaultdict(list), collections.defaultdict(list)
    for sample in samples:
        mask = np.zeros((256, 256), np.uint8) if sample.mask is None else read(sample.mask)
        truths[sample.category].append(mask[::2, ::2] > 0)
        maps[sample.category].append(untrained_map(read(sample.image)))
    aurocs = {
        category: roc_auc_score(np.ravel(truths[category]), np.ravel(maps[category]))
        for category in dataset.categories
    }
    assert np.mean(list(aurocs.values())) < 0.80, aurocs
