import dataclasses
import io
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import zsad_jax
from zsad_jax import detector as detectors
from zsad_jax.data.preprocess import resize_image
from zsad_jax.methods.shared import prompt_files
from zsad_jax.utils.errors import UserError

FOLDER = pathlib.Path(__file__).parent / "goldens" / "tipsomaly"
SIZE = 42


def tokenize(texts):
    """Tokenizes letters."""
    ids = np.zeros((len(texts), 64), np.int32)
    for row, text in zip(ids, texts, strict=True):
        codes = [ord(letter) % 128 for letter in text][:64]
        row[: len(codes)] = codes
    return ids, (ids == 0).astype(np.int32)


@pytest.fixture(scope="module")
def backbone():
    loaded = zsad_jax.load_backbone(
        "tips",
        vision=FOLDER / "backbone_vision_native.npz",
        text=FOLDER / "backbone_text_native.npz",
        image_size=SIZE,
    )
    return dataclasses.replace(loaded, text=dataclasses.replace(loaded.text, tokenize=tokenize))


@pytest.fixture(scope="module")
def detector(backbone):
    return zsad_jax.load_detector("tipsomaly", backbone, category="metal nut", batch_size=2)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for height, width in ((50, 30), (20, 70), (42, 42))
    ]


@pytest.fixture(scope="module")
def expected(detector, images):
    return detector.predict(images)


def assert_same(prediction, expected, rows):
    np.testing.assert_allclose(prediction.score, expected.score[rows], rtol=1e-5)
    np.testing.assert_allclose(prediction.anomaly_map, expected.anomaly_map[rows], atol=1e-5)


def test_scores_images_of_several_sizes(detector, images, expected):
    assert isinstance(detector, zsad_jax.Detector)
    assert isinstance(expected, zsad_jax.Prediction)
    assert expected.score.shape == (3,)
    assert expected.anomaly_map.shape == (3, SIZE, SIZE)
    assert len(set(expected.score.tolist())) == 3
    low, high = detector.method.map_range
    assert expected.anomaly_map.min() >= low
    assert expected.anomaly_map.max() <= high


def test_scores_images_independently(detector, images, expected):
    for index, image in enumerate(images):
        assert_same(detector.predict(image), expected, [index])
    order = [2, 0, 1]
    assert_same(detector.predict([images[index] for index in order]), expected, order)


def test_matches_method(backbone, detector, images, expected):
    inputs = np.stack(
        [resize_image(Image.fromarray(image), backbone.preprocess) for image in images]
    )
    method = detector.method

    @jax.jit
    def run(frozen, inputs):
        features = method.features(frozen, {}, backbone.preprocess.normalize(inputs))
        prototypes = method.prototypes(frozen, {}, ["metal nut"])
        scores = method.score(frozen, {}, prototypes, features, np.zeros(3, np.int32))
        return scores.image["second"], method.anomaly_map(scores.patches, SIZE)

    score, maps = run(backbone.params, inputs)
    assert detector.image_score == "second"  # the default
    np.testing.assert_allclose(expected.score, score, rtol=1e-4)
    np.testing.assert_allclose(expected.anomaly_map, maps, atol=1e-5)


def test_accepts_arrays_floats_and_files(detector, images, expected, tmp_path):
    square = images[2]
    assert_same(detector.predict(np.stack([square, square])), expected, [2, 2])
    assert_same(detector.predict(jax.numpy.asarray(square)), expected, [2])
    assert_same(detector.predict(square / np.float32(255)), expected, [2])
    assert_same(detector.predict([square / 255, square]), expected, [2, 2])
    path = tmp_path / "0.png"
    Image.fromarray(images[0]).save(path)
    assert_same(detector.predict(str(path)), expected, [0])
    assert_same(detector.predict([path, images[1]]), expected, [0, 1])


class Tensor(np.ndarray):
    """Stands for a tensor of PyTorch."""

    def detach(self):
        return self

    def cpu(self):
        return self.view(np.ndarray)


def test_accepts_pillow_images_tensors_and_generators(detector, images, expected):
    pictures = [Image.fromarray(image) for image in images]
    assert_same(detector.predict(pictures[0]), expected, [0])
    assert_same(detector.predict(image for image in [pictures[1], images[0]]), expected, [1, 0])
    assert_same(detector.predict(np.asarray(images[2]).view(Tensor)), expected, [2])
    orientation, file = Image.Exif(), io.BytesIO()
    orientation[0x0112] = 6  # upright when turned by 90 degrees clockwise
    pictures[1].transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=orientation)
    assert_same(detector.predict(Image.open(file)), expected, [1])


def test_accepts_gray_and_transparent_arrays(detector, images, expected):
    alpha = np.dstack([images[0], images[0][..., :1]])
    assert_same(detector.predict(alpha), expected, [0])
    assert_same(detector.predict(Image.fromarray(alpha)), expected, [0])
    gray = images[1][..., 0]
    plain = detector.predict(np.stack([gray] * 3, axis=-1))
    for form in (gray, gray[..., None], gray.astype(np.int64), Image.fromarray(gray), gray / 255):
        assert_same(detector.predict(form), plain, [0])
    deep = gray.astype(np.uint16) * 257
    for form in (deep, Image.fromarray(deep)):
        assert_same(detector.predict(form), plain, [0])
    bright = (gray > 99).astype(np.float32)
    assert_same(detector.predict(jnp.asarray(bright, "bfloat16")), detector.predict(bright), [0])


def test_warns_of_arrays_that_are_scaled_doubtfully(detector, caplog):
    detector.predict(np.full((8, 8), 255, np.uint16))
    assert "image: the 16-bit values use 14 bits or fewer" in caplog.text
    detector.predict(np.full((8, 8), 255, np.int32))
    assert "image: the pixel values of a wider type were read as 8 bits" in caplog.text


@pytest.fixture(scope="module")
def few_shot(images):
    """Returns a function that loads a detector that compares with reference images."""

    def load(references, **options):
        backbone = zsad_jax.load_backbone("tips-nano", image_size=28)
        return zsad_jax.load_detector("knn", backbone, references=references, **options)

    return load


def test_compares_with_references(few_shot, images):
    other = few_shot([images[1], images[2]], num_views=1).predict(images)
    own = few_shot([images[0], images[2]], num_views=1).predict(images)
    assert own.score[[0, 2]] == pytest.approx(0, abs=1e-5)
    assert other.score[[1, 2]] == pytest.approx(0, abs=1e-5)
    assert min(own.score[1], other.score[0]) > 1e-3


def test_takes_references_in_the_forms_of_images(few_shot, images):
    given = [np.asarray(image)[:20, :20] for image in images[:2]]

    def score(references):
        return few_shot(references, num_views=1).predict(images[2]).score

    assert score(np.stack(given)) == score(given) == score(map(Image.fromarray, given))
    assert score(given[0]) == score(given[:1]) != score(given)


def test_encodes_references_in_batches(images):
    """Uses eight views of two images, in batches of 1, 3 and 16, the last of them padded."""
    sizes, backbone = [], zsad_jax.load_backbone("tips-nano", image_size=28)

    def encode_image(frozen, images, **options):
        sizes.append(len(images))
        return backbone.encode_image(frozen, images, **options)

    spied, predictions = dataclasses.replace(backbone, encode_image=encode_image), []
    for rows in (1, 3, 20):
        options = {"references": images[:2], "batch_size": rows}
        predictions.append(zsad_jax.load_detector("knn", spied, **options).predict(images[2:]))
    assert {1, 3, 16} <= set(sizes)
    assert max(sizes) <= 20
    for other in predictions[1:]:
        assert_same(other, predictions[0], range(len(images) - 2))


def test_rejects_references_that_do_not_fit_the_method(backbone, few_shot, images):
    with pytest.raises(UserError, match=r"knn requires normal reference images .*references=.PATH"):
        few_shot(None)
    with pytest.raises(UserError, match="tipsomaly takes no reference images"):
        zsad_jax.load_detector(backbone=backbone, references=images[:1])
    with pytest.raises(UserError, match="Without references, musc scores the images"):
        zsad_jax.load_detector("musc", "tips-nano")
    with pytest.raises(UserError, match="references is empty"):
        zsad_jax.load_detector("winclip", "clip-nano", references=[])


def test_repr_is_one_short_line(detector):
    assert repr(detector).startswith("Detector('tipsomaly', Backbone('")
    assert "\n" not in repr(detector)
    assert len(repr(detector)) < 250


def test_compiles_once(detector, images):
    scorer = detector.scorer
    detector.predict(images)
    assert detector.scorer is scorer  # the scorer accepts batches of one shape only


def test_rejects_non_finite_scores(detector, images):
    frozen = jax.tree.map(lambda leaf: leaf * np.nan, detector.backbone.params)
    broken = dataclasses.replace(
        detector, backbone=dataclasses.replace(detector.backbone, params=frozen)
    )
    with pytest.raises(
        UserError, match=r"for 1 of 1 image\. Check the weights of tips and .*fixed"
    ):
        broken.predict(images[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0 must be between 1 and 65536"),
        ({"batch_size": 10**12}, "batch_size=1000000000000 must be between 1 and 65536"),
        ({"batch_size": 2.5}, "batch_size=2.5 is not an integer"),
        ({"category": None}, "category=None is not a string"),
        ({"category": " "}, "A category of .' ',. is empty"),
        ({"score": 1}, "score=1 is not a string or None"),
        ({"checkpoint": 1}, "is not a string or a path or None"),
        ({"method": 1}, "method=1 is not a string"),
        ({"backbone": None}, "is not a string or a Backbone"),
        ({"backbone_options": {"image_size": 28}}, "no effect on a loaded backbone"),
        ({"backbone": "tips", "backbone_options": {"name": "tips"}}, "contains 'name'. Pass it as"),
    ],
)
def test_rejects_invalid_arguments(backbone, options, words):
    with pytest.raises(UserError, match=words):
        zsad_jax.load_detector(**{"method": "tipsomaly", "backbone": backbone, **options})


DEVICES = """
import dataclasses, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from test_detector import FOLDER, SIZE, tokenize
import zsad_jax
from zsad_jax.detector import make_detector
backbone = zsad_jax.load_backbone(
    "tips", image_size=SIZE, vision=FOLDER / "backbone_vision_native.npz",
    text=FOLDER / "backbone_text_native.npz",
)
backbone = dataclasses.replace(backbone, text=dataclasses.replace(backbone.text, tokenize=tokenize))
detector = zsad_jax.load_detector("tipsomaly", backbone, category="metal nut", batch_size=3)
images = np.load(sys.argv[2])
split = make_detector(
    backbone, detector.method, detector.params, prompts="", categories=("metal nut",), model_devices=2
)
for one in detector, split:
    score, _ = one.predict([images[name] for name in images])
    print(jax.device_count(), *one.mesh.shape.values(), one.batch_size, *score)
"""


def test_rejects_model_devices_whatever_the_batch_size(monkeypatch):
    devices = [types.SimpleNamespace(process_index=0, id=number) for number in range(8)]
    parts = zsad_jax.load_detector("clip", "clip-nano", category="metal nut")
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    with pytest.raises(UserError, match="model_devices=3 does not divide 8"):
        detectors.make_detector(parts.backbone, parts.method, {}, prompts="", model_devices=3)


def test_splits_batch_or_weights_over_devices(images, expected, tmp_path):
    """Uses two devices, so that a batch of three is padded to four."""
    np.savez(tmp_path / "images.npz", *images)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    ran = subprocess.run(
        [sys.executable, "-c", DEVICES, str(FOLDER.parents[1]), str(tmp_path / "images.npz")],
        env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = [line.split() for line in ran.stdout.splitlines()]
    assert [line[:4] for line in found] == [["2", "2", "1", "4"], ["2", "1", "2", "1"]]
    for line in found:
        np.testing.assert_allclose([float(x) for x in line[4:]], expected.score, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "There are no images"),
        (np.zeros((0, 8, 8, 3), np.uint8), "There are no images"),
        (np.zeros(8, np.uint8), r"the shape \[8\]"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"the shape \[3, 8, 8\]; expected \[H, W\] or \[H, W, 3 or 4\]",
        ),
        (np.zeros((2, 3, 8, 8), np.uint8), r"the shape \[3, 8, 8\]"),
        ([np.zeros((0, 8, 3), np.uint8)], r"the shape \[0, 8, 3\]"),
        (np.zeros((8, 8, 3), bool), "the type bool"),
        (np.zeros((8, 8, 3), complex), "the type complex"),
        (np.full((8, 8, 3), 1.5), r"floats in \[0, 1\]"),
        (np.full((8, 8, 3), -0.1), r"floats in \[0, 1\]"),
        (np.full((8, 8, 3), -1), r"from -1 to -1; expected 8-bit values"),
        (np.full((8, 8, 3), np.nan), "none of its values is finite"),
        (np.diag([np.nan] * 8), r"values that are not finite; .*floats in \[0, 1\]"),
        (Image.new("RGB", (0, 8)), "it is empty"),
        (None, "type NoneType. Pass arrays"),
        ({"image": "a.png"}, "type dict"),
        ([None], "type NoneType"),
        (io.BytesIO(), "type BytesIO. Pass arrays, Pillow images or paths"),
        (np.ma.masked_equal(np.zeros((8, 8), np.uint8), 0), "masked values. Replace them, for"),
        ("nowhere.png", "does not exist"),
    ],
)
def test_rejects_invalid_images(detector, given, words):
    with pytest.raises(UserError, match=words) as caught:
        detector.predict(given)
    assert "\n" not in str(caught.value)


def test_reports_broken_file(detector, tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no picture")
    with pytest.raises(UserError, match=r"text\.png: it is not an image"):
        detector.predict([path])


def test_reports_broken_pillow_image(detector, images):
    file = io.BytesIO()
    Image.fromarray(images[0]).save(file, "PNG")
    with pytest.raises(UserError, match="Cannot read an image of mode RGB: the file is damaged"):
        detector.predict(Image.open(io.BytesIO(file.getvalue()[:1000])))


def test_category_and_image_score_change_results(backbone, detector, images, expected):
    default, *_, last = detector.method.image_scores
    other = zsad_jax.load_detector("tipsomaly", backbone, category="wood", score=last)
    assert (other.image_score, detector.image_score) == (last, default)
    assert not np.allclose(other.predict(images[:1]).score, expected.score[:1], rtol=1e-3)


def test_rejects_unknown_names(backbone):
    with pytest.raises(UserError, match="Unknown method 'nothing'"):
        zsad_jax.load_detector("nothing", backbone)
    with pytest.raises(UserError, match="Image score 'third'"):
        zsad_jax.load_detector("tipsomaly", backbone, score="third")
    with pytest.raises(UserError, match="Unknown key 'sigmar'"):
        zsad_jax.load_detector("tipsomaly", backbone, sigmar=1.0)
    with pytest.raises(UserError, match=r"is a folder\. Pass the prompts\.npz in it"):
        zsad_jax.load_detector("tipsomaly", backbone, checkpoint=".")


@pytest.fixture
def stored_prompts(backbone, tmp_path, monkeypatch):
    """Writes two files of learned prompts; "included" is at the location of prompts included with "tips"."""
    method = zsad_jax.methods.make_method("tipsomaly", backbone)
    files = {"given": tmp_path / "given.npz", "included": tmp_path / "tips/tipsomaly_prompts.npz"}
    for seed, path in enumerate(files.values()):
        prompt_files.save(path, method.init(jax.random.key(seed), backbone.params))
    monkeypatch.setattr(prompt_files, "ASSETS", tmp_path)
    return method, files


def test_given_prompts_precede_included_ones(backbone, stored_prompts):
    method, files = stored_prompts
    given, file = detectors.choose_params(method, backbone, str(files["given"]))
    assert file.description == str(files["given"])
    included, file = detectors.choose_params(method, backbone, None)
    assert file.description == "prompts included with tips"
    assert prompt_files.digest(given) != prompt_files.digest(included)
    assert prompt_files.digest(included) == prompt_files.digest(
        prompt_files.load(prompt_files.find(str(files["included"])), method, backbone)
    )


def test_falls_back_to_fixed_prompts_with_warning(backbone, stored_prompts, caplog):
    method, files = stored_prompts
    files["included"].unlink()
    assert detectors.choose_params(method, backbone, None) == ({}, prompt_files.FIXED)
    assert "No learned prompts are included with tips" in caplog.text


def test_requested_fixed_prompts_do_not_warn(backbone, stored_prompts, caplog):
    method = zsad_jax.methods.make_method("tipsomaly", backbone, {"learning": "none"})
    assert detectors.choose_params(method, backbone, None) == ({}, prompt_files.FIXED)
    assert not caplog.records


def test_learned_prompts_change_the_map(backbone, stored_prompts, images, expected):
    found = zsad_jax.load_detector(
        "tipsomaly", backbone, checkpoint=str(stored_prompts[1]["given"]), category="metal nut"
    ).predict(images[:1])
    assert np.abs(found.anomaly_map - expected.anomaly_map[:1]).max() > 1e-4


def test_rejects_prompts_of_other_shape(backbone, tmp_path):
    path = tmp_path / "narrow.npz"
    prompt_files.save(path, {"normal": np.zeros((8, 3)), "abnormal": np.zeros((8, 3))})
    with pytest.raises(
        UserError, match=r"The prompts .*narrow\.npz do not fit tipsomaly over tips"
    ):
        zsad_jax.load_detector("tipsomaly", backbone, checkpoint=str(path))


def test_options_that_do_not_fit_included_prompts_name_no_file(backbone, stored_prompts):
    with pytest.raises(UserError, match=r"expected \(12, .*\)\. Train prompts") as error:
        zsad_jax.load_detector("tipsomaly", backbone, num_prompts=12)
    assert str(error.value).startswith("The prompts included with tips do not fit tipsomaly")
    assert ".npz" not in str(error.value)
