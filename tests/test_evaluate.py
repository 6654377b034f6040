"""Tests of evaluation: several contenders, broken images, missing masks and stored results."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from zsad_jax import metrics
from zsad_jax.backbones import Backbone, feature_cache
from zsad_jax.backbones.feature_cache import Features, FeaturesConfig
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.evaluate import Contender, encode_prototypes, evaluate
from zsad_jax.experiment import cache
from zsad_jax.methods import Method, Scores
from zsad_jax.methods.base import encoder_of
from zsad_jax.methods.shared.scaling import scale_over_category
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.sharding import make_mesh

SIZE = 16


@pytest.fixture(scope="module", autouse=True)
def binned_maps():
    """Lets the small maps here have 16 bits a pixel, like large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zsad_jax.evaluate.NUM_CODES", SIZE**2 - 1)
        yield


def encoded(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def dataset():
    """Returns bright squares on noise in two categories; the last image is broken, one anomaly has no mask."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(11):
        image = rng.integers(0, 100, (SIZE, SIZE, 3), dtype=np.uint8)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        if label := number % 2:
            image[4:9, number : number + 4] += 60
            mask[4:9, number : number + 4] = 255
        has_mask = number != 5
        samples.append(
            Sample(
                image=b"broken" if number == 10 else encoded(image),
                mask=encoded(mask) if label and has_mask else None,
                has_mask=has_mask,
                label=label,
                category=("left", "right")[number // 4 % 2],
                file_name=f"{number}.png",
            )
        )
    return Samples("squares", samples)


# Powers of two, so that normalization adds no rounding error.
PREPROCESS = Preprocess(image_size=SIZE, mean=(0.5, 0.25, 0.125), std=(0.25, 0.5, 2.0))


def backbone():
    fields = {field.name: None for field in dataclasses.fields(Backbone)}
    return Backbone(**fields | {"params": {}, "preprocess": PREPROCESS})


def brightness(images):
    """Returns the sum of the channels before normalization.

    It is a whole number over a power of two, so equal brightnesses are equal floats on every machine.
    """
    images = images * jnp.array(PREPROCESS.std) + jnp.array(PREPROCESS.mean)
    return jnp.round(images.sum(-1, keepdims=True) * 255) / 1024


def method(**changes):
    """Returns a method whose score is the brightness, scaled by its parameter."""

    def score(frozen, params, prototypes, features, category, *, extras=()):
        patches = features * params["gain"]
        return Scores({"mean": patches.mean((1, 2, 3)), "max": patches.max((1, 2, 3))}, patches)

    toy = Method(
        name="toy",
        config=None,
        init=None,
        features=lambda frozen, params, images: brightness(images),
        prototypes=lambda frozen, params, class_names: jnp.zeros(len(class_names)),
        score=score,
        anomaly_map=lambda patches, size: patches[..., 0],
        loss=None,
        groups=None,
        image_scores=("mean", "max"),
    )
    return toy._replace(**changes)


def run(contenders=None, data=None, cache="none", **options):
    """Returns the evaluation by each contender."""
    contenders = contenders or [Contender(method(), {"gain": jnp.float32(1)})]
    mesh, tower = make_mesh(), backbone()
    features = Features(
        dataset() if data is None else data,
        tower,
        dict(encoder_of(contender.method) for contender in contenders),
        FeaturesConfig(cache=cache),
        mesh=mesh,
        rows=4,
    )
    options = {"mesh": mesh, "cases_by": "max", **options}
    return evaluate(contenders, features, tower, **options)


@pytest.fixture(scope="module")
def evaluations():
    other = Contender(method(), {"gain": jnp.float32(-1)}, "darkness")
    return run([Contender(method(), {"gain": jnp.float32(1)}), other])


@pytest.fixture(scope="module")
def evaluation(evaluations):
    return evaluations[0]


def test_scores_readable_images_in_order(evaluation, evaluations):
    assert evaluation.file_names == tuple(f"{number}.png" for number in range(10))
    assert evaluation.labels.tolist() == [0, 1] * 5
    assert [issue.file for issue in evaluation.issues] == ["10.png"]
    bright, dark = (one.scored.image_scores["mean"] for one in evaluations)
    np.testing.assert_allclose(bright, -dark)


@pytest.mark.parametrize(("width", "height"), [(64, 16), (16, 64), (5, 5), (300, 1)])
def test_cases_keep_the_aspect_of_the_image(width, height):
    picture = Sample(image=encoded(np.zeros((height, width, 3), np.uint8)), file_name="a.png")
    (found,) = run(data=Samples("bars", [picture]))
    (case,) = found.cases
    longest = max(width, height)
    expected = (max(SIZE * side // longest, 1) for side in (height, width))
    assert case.image.shape == (*expected, 3)


def scale_across(score, calls):
    """Returns `Method.across`, which divides scores by the largest one of the category."""

    def across(frozen, params, prototypes, blocks, category):
        def run():
            for features, valid in blocks():
                scores = score(frozen, params, prototypes, features, np.full(len(valid), category))
                yield jax.tree.map(lambda x, rows=valid: np.asarray(x)[rows], scores)

        largest = max((one.patches.max() for one in run()), default=None)
        scores = jax.tree.map(lambda *x: np.concatenate(x) / largest, *run())
        calls.append((category, len(scores.patches)))
        return scores

    return across


def test_across_receives_all_features_of_category():
    """The categories are in several pieces, and one has an unreadable image."""
    calls, plain, gain = [], method(), {"gain": jnp.float32(1)}
    scaled = method(across=scale_across(plain.score, calls))
    found, alone = run([Contender(scaled, gain), Contender(plain, gain, "alone")])
    assert calls == [(0, 6), (1, 4)]
    together, alone = found.scored.image_scores, alone.scored.image_scores
    for category in ("left", "right"):
        rows = np.array(found.categories) == category
        for name in ("mean", "max"):
            expected = alone[name][rows] / alone["max"][rows].max()
            np.testing.assert_allclose(together[name][rows], expected, rtol=1e-6)
    assert found.cases
    for case in found.cases:
        assert case.score == pytest.approx(case.anomaly_map.max(), rel=1e-6)
        assert case.score <= 1


@pytest.mark.parametrize("cacheable", [True, False])
def test_scales_scores_and_maps_over_a_category(cacheable):
    """Uses two categories in several blocks, and another one of equal images, which become 0."""

    def score(frozen, params, prototypes, features, category):
        scores = method().score(frozen, params, prototypes, features, category)
        return scores._replace(image=scores.image | {"min": scores.patches.min((1, 2, 3))})

    def fuse(image, peaks):
        return {"mean": image["mean"], "max": peaks}

    gain, plain = {"gain": jnp.float32(-2)}, method(score=score, cacheable=cacheable)
    equal = [Sample(image=encoded(np.full((9, 9, 3), 50, np.uint8)), category="equal")] * 3
    scaled = scale_over_category(plain, backbone(), fuse)
    contenders = [Contender(scaled, gain), Contender(plain, gain, "raw")]
    found, raw = run(contenders, Samples("squares", [*dataset(), *equal]), exact=True)
    for category in ("left", "right"):
        rows = np.array(found.categories) == category
        ours, expected = (
            {k: x[rows] for k, x in one.scored.image_scores.items()} for one in (found, raw)
        )
        for name, lowest in (("mean", "mean"), ("max", "min")):
            values, low = expected[name], expected[lowest].min()
            np.testing.assert_allclose(ours[name], (values - low) / (values.max() - low), atol=1e-6)
    rows = np.array(found.categories) == "equal"
    assert not any(x[rows].any() for x in found.scored.image_scores.values())
    for case in found.cases:
        assert case.anomaly_map.max() == pytest.approx(case.score, abs=1e-6)
        assert case.anomaly_map.min() >= 0


def test_images_alone_have_raw_scores_and_maps():
    scaled = scale_over_category(
        method(), backbone(), lambda image, peaks: {**image, "peak": peaks}
    )
    features = jnp.arange(2.0 * SIZE * SIZE).reshape(2, SIZE, SIZE, 1)
    arguments = {}, {"gain": jnp.float32(3)}, None, features, np.zeros(2, int)
    found, raw = scaled.score(*arguments), method().score(*arguments)
    for name, expected in (("mean", raw.image["mean"]), ("peak", raw.image["max"])):
        np.testing.assert_array_equal(found.image[name], expected)
    np.testing.assert_array_equal(scaled.anomaly_map(found.patches, SIZE), raw.patches[..., 0])


def broken(categories):
    """Returns the dataset with unreadable images in these categories."""
    samples = [*dataset()]
    for number, sample in enumerate(samples):
        if sample.category in categories:
            samples[number] = dataclasses.replace(sample, image=b"broken")
    return Samples("squares", samples)


def test_across_skips_categories_without_readable_images():
    calls, gain = [], {"gain": jnp.float32(1)}
    contenders = [Contender(method(across=scale_across(method().score, calls)), gain)]
    (found,) = run(contenders, broken(["left"]))
    assert [category for category, _ in calls] == [1]
    assert {*found.categories} == {*found.scored.metrics} == {"right"}
    with pytest.raises(UserError, match=r"No image of squares could be read \(11 images\)"):
        run(contenders, broken(["left", "right"]))


@pytest.mark.parametrize(("share", "encoded"), [(0.25, 12), (0.0, 24)])
def test_features_are_encoded_once_if_they_fit_on_the_device(monkeypatch, share, encoded):
    rows = []
    monkeypatch.setattr(feature_cache, "SHARE_OF_DEVICE", share)

    def features(frozen, params, images):
        jax.debug.callback(lambda x: rows.append(len(x)), images)
        return brightness(images)

    scaled = method(features=features, across=scale_across(method().score, []))
    run([Contender(scaled, {"gain": jnp.float32(1)})], cases_by=None)
    assert sum(rows) == encoded


def test_metrics_match_manual_computation(evaluation):
    """Computes them from the decoded images; pixel metrics exclude the anomaly without a mask."""
    data = dataset()
    members = [number for number in range(10) if data[number].category == "right"]
    images = [np.asarray(PIL.Image.open(io.BytesIO(data[n].image)), np.float32) for n in members]
    maps = np.stack(images).sum(-1) / 1024
    masks = np.stack(
        [
            np.asarray(PIL.Image.open(io.BytesIO(data[n].mask))) > 0
            if data[n].mask
            else np.zeros((SIZE, SIZE), bool)
            for n in members
        ]
    )
    labels = [data[n].label for n in members]
    kept = [i for i, n in enumerate(members) if n != 5]
    expected = metrics.compute(maps.max((1, 2)), labels) | {
        name: value
        for name, value in metrics.compute(
            maps.max((1, 2))[kept], np.array(labels)[kept], maps[kept], masks[kept]
        ).items()
        if name.startswith("pixel")
    }
    found = evaluation.scored.metrics["right"]["max"]
    for name, value in expected.items():
        assert found.values[name] == pytest.approx(value, abs=1e-5), name
    assert sum(note.num_without_mask for note in found.notes) == 1


def test_exact_and_streaming_agree(evaluation):
    exact = run(exact=True)[0].scored.metrics
    for category, by_score in evaluation.scored.metrics.items():
        for name in metrics.METRICS:  # with so few pixels, the 200 thresholds fall between ties
            value = by_score["mean"].values[name]
            assert exact[category]["mean"].values[name] == pytest.approx(value, abs=1e-4)


def test_cases_come_from_first_contender(evaluation, evaluations):
    scores = dict(zip(evaluation.file_names, evaluation.scored.image_scores["max"], strict=True))
    assert evaluation.cases
    assert not evaluations[1].cases
    assert 0 <= evaluation.device_wait_share <= 1
    assert not run(cases_by=None)[0].cases
    for case in evaluation.cases:
        assert case.score == pytest.approx(scores[case.file_name])
        assert case.anomaly_map.max() == pytest.approx(case.score)
        assert (case.mask is None) == (case.file_name == "5.png")


def test_method_that_learns_in_tower_has_own_features():
    def inside(frozen, params, images):
        return brightness(images) + params["gain"]

    tower = method(features=inside, cacheable=False)
    plain = Contender(method(), {"gain": jnp.float32(1)})
    raised = Contender(tower, {"gain": jnp.float32(2)}, "raised")
    for contenders in ([plain, raised], [raised, plain]):
        result = run(contenders)
        scores = {
            c.label: one.scored.image_scores["mean"]
            for c, one in zip(contenders, result, strict=True)
        }
        np.testing.assert_allclose(scores["raised"], 2 * (scores[""] + 2), rtol=1e-5)


class CountingFeatures:
    """A `features` function that adds `shift` to the brightness and counts how often it is traced."""

    def __init__(self, shift):
        self.shift, self.count = shift, 0

    def __call__(self, frozen, params, images):
        self.count += 1
        return brightness(images) + self.shift


def test_stored_features_do_not_change_the_bits():
    """Uses sums whose last bits depend on the layout of the features."""

    def encode(frozen, params, images):
        kernel = jnp.sin(jnp.arange(3.0 * 64).reshape(3, 64))
        return jnp.moveaxis(jnp.einsum("bhwc,cd->bdhw", images, kernel), 1, -1)

    def score(frozen, params, prototypes, features, category):
        patches = features.sum(-1, keepdims=True)
        return Scores({"mean": patches.mean((1, 2, 3)), "max": patches.max((1, 2, 3))}, patches)

    contenders = [
        # Features are stored under keys that are tuples.
        Contender(method(features=encode, features_key=key, score=score), {}, str(key))
        for key in (((1,), None), "not stored")
    ]
    expected = run(contenders)
    for found in (run(contenders, cache="memory"), run(contenders[:1], cache="memory")):
        for one, other in zip(found, expected, strict=False):
            np.testing.assert_equal(one.scored, other.scored)
            np.testing.assert_equal(
                [case.anomaly_map for case in one.cases],
                [case.anomaly_map for case in other.cases],
            )


def test_only_equal_keys_share_features():
    keys = ("a", "b", "a", None, None)
    seen = [CountingFeatures(shift) for shift in range(5)]
    contenders = [
        Contender(method(features=one, features_key=key), {"gain": jnp.float32(1)}, str(one.shift))
        for one, key in zip(seen, keys, strict=True)
    ]
    first, *others = (one.scored.image_scores["mean"] for one in run(contenders))
    for other, shift in zip(
        others, (-1, 0, 1, 2), strict=True
    ):  # the third encoder has the key of the first
        np.testing.assert_allclose(other, first + shift, rtol=1e-5)
    assert [one.count for one in seen] == [0, 1, 1, 1, 1]


def test_200_step_aupro_uses_each_methods_own_thresholds():
    """Uses an image with 201 brightnesses, which equal the thresholds up to rounding."""
    steps = np.arange(SIZE * SIZE) * 201 // (SIZE * SIZE)
    image = np.repeat(steps.astype(np.uint8).reshape(SIZE, SIZE, 1), 3, axis=-1)
    mask = np.where(np.arange(SIZE * SIZE) % 3 > 0, 0, 255).astype(np.uint8).reshape(SIZE, SIZE)
    sample = Sample(
        image=encoded(image), mask=encoded(mask), has_mask=True, label=1, category="one"
    )
    gain = jnp.float32(0.1)
    contenders = [
        Contender(method(aupro_thresholds=form), {"gain": gain}, form)
        for form in ("torch", "numpy")
    ]
    result = run(contenders, Samples("steps", [sample]), exact=True)
    maps = (np.float32(0.1) * (image.sum(-1, dtype=np.float32) / 1024))[None]
    expected = [
        metrics.pixel_aupro_200step(maps, mask[None] > 0, thresholds=form)
        for form in ("torch", "numpy")
    ]
    found = [one.scored.metrics["one"]["mean"].values[metrics.AUPRO_200STEP] for one in result]
    assert abs(expected[0] - expected[1]) > 1e-6
    assert found == pytest.approx(expected, abs=1e-12)


def test_stored_evaluation_loads_unchanged(tmp_path, evaluation):
    assert cache.load(tmp_path / "none.npz") is None
    cache.save(tmp_path / "one.npz", evaluation)
    loaded = cache.load(tmp_path / "one.npz")
    apart = {"cases": (), "device_wait_share": None}  # compared below; not stored
    np.testing.assert_equal(loaded._asdict() | {"cases": ()}, evaluation._asdict() | apart)
    for before, after in zip(evaluation.cases, loaded.cases, strict=True):
        np.testing.assert_equal(dataclasses.asdict(after), dataclasses.asdict(before))


def test_rejects_empty_or_unreadable_dataset():
    with pytest.raises(UserError, match="squares has no images"):
        run(data=Samples("squares", [], ["left"]))
    broken = [dataclasses.replace(dataset()[0], image=b"x")]
    with pytest.raises(UserError, match=r"No image of squares could be read \(1 image\)"):
        run(data=Samples("squares", broken))


def test_image_metrics_include_images_without_usable_mask(caplog):
    masks = {
        1: encoded(np.full((SIZE, SIZE // 2), 255, np.uint8)),  # other size
        3: b"junk",
        7: encoded(np.full((SIZE, SIZE), 255, np.uint8)),  # covers the whole image; used
    }
    data = [
        dataclasses.replace(sample, mask=masks.get(number, sample.mask), category="one")
        for number, sample in enumerate(dataset())
    ]
    (found,) = run(data=Samples("squares", data))
    unmasked = [
        dataclasses.replace(
            sample, mask=None if number in (1, 3) else sample.mask, has_mask=number not in (1, 3, 5)
        )
        for number, sample in enumerate(data)
    ]
    (expected,) = run(data=Samples("squares", unmasked))
    assert found.scored.metrics["one"]["max"] == expected.scored.metrics["one"]["max"]
    assert found.labels.tolist() == [0, 1] * 5
    assert [(issue.kind, issue.file) for issue in found.issues] == [
        ("mask_size", "1.png"),
        ("mask_unreadable", "3.png"),
        ("image_unreadable", "10.png"),
        ("mask_full", "7.png"),
    ]
    # Each is logged once, not again for the cases; the unreadable image is in both runs.
    messages = [caplog.messages.count(f"squares: {issue}") for issue in found.issues]
    assert messages == [1, 1, 2, 2]


def test_rejects_dataset_without_readable_image():
    samples = [
        Sample(
            image=b"broken", mask=b"broken", has_mask=True, label=1, category="a", file_name=name
        )
        for name in ("1.png", "2.png")
    ]
    with pytest.raises(
        UserError, match=r"No image of .*\(2 images\)\. The first issue: 1\.png: the image cannot"
    ):
        run(data=Samples("squares", samples))


@pytest.mark.parametrize(
    ("references", "calls"), [("required", [("a",), ("b",)]), ("optional", [("a", "b")])]
)
def test_prototypes_of_references_are_those_of_all_categories(references, calls):
    """Uses three images of each category, and one more view of each, in batches of four."""
    found = []

    def prototypes(frozen, params, class_names, references):
        found.append(class_names)
        return references.sum(axis=2)

    method = Method(**dict.fromkeys(Method._fields))._replace(
        prototypes=prototypes,
        features=lambda frozen, params, images: images.mean((1, 2)),
        cacheable=True,
        references=references,
        reference_views=lambda images, key: np.concatenate([images, images[:, ::-1] // 2]),
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE, 3), np.uint8)
    encoders = {encoder_of(method)[0]: lambda frozen, images: method.features(frozen, {}, images)}
    given = Contender(method, {}), encoders, {}, ("a", "b"), [*images], make_mesh()
    means = np.stack([images, images // 2], axis=1).mean((3, 4)).reshape(2, 6, 3).sum(axis=2)
    np.testing.assert_allclose(encode_prototypes(*given, rows=4), means, rtol=1e-6)
    assert found == calls
