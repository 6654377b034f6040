import io
import pickle

import numpy as np
import pytest
from PIL import Image

from zsad_jax.data import synthetic
from zsad_jax.errors import UserError

NAMES = ("synthetic_aux", "synthetic_target")


def read(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_fields(name):
    dataset = synthetic.load(name)
    samples = [dataset[index] for index in range(0, len(dataset), 15)]
    assert len(dataset) >= 240
    assert len(dataset.categories) == len(set(dataset.categories)) >= 6
    for sample in samples:
        image = read(sample.image)
        assert image.shape == (256, 256, 3)
        assert image.dtype == np.uint8
        assert sample.has_mask
        assert sample.prompt_name == sample.category.replace("_", " ")
        assert sample.label == (sample.defect != "good")
        assert (sample.mask is None) == (sample.label == 0)


def test_unknown_name_is_a_user_error():
    with pytest.raises(UserError, match="synthetic_target"):
        synthetic.load("synthetic")


def test_pickle_gives_the_same_images():
    dataset = synthetic.load("synthetic_target")
    assert pickle.loads(pickle.dumps(dataset))[200] == dataset[200]
