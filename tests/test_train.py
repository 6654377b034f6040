"""Tests of training: order, resuming, parameter groups and errors."""

import dataclasses
import io
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import zsad_jax
from zsad_jax import train as trainer
from zsad_jax.backbones import Backbone
from zsad_jax.backbones.feature_cache import Features, FeaturesConfig
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.methods import Method, Stage, make_method
from zsad_jax.methods.base import encoder_of
from zsad_jax.train import (
    DamagedCheckpointError,
    Member,
    OrbaxSaver,
    TrainingConfig,
    count_steps,
    make_schedule,
    train,
)
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.sharding import make_mesh

SIZE = 8
PLAIN = Preprocess(image_size=SIZE)


def encoded(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def dataset(count=5, broken=()):
    return Samples(
        "gray",
        [
            Sample(
                image=b"nothing"
                if number in broken
                else encoded(np.full((SIZE, SIZE, 3), 40 * number, np.uint8)),
                has_mask=True,
                category="gray",
                file_name=str(number),
            )
            for number in range(count)
        ],
    )


def backbone(preprocess=PLAIN):
    """Returns a backbone with preprocessing only; the toy method looks at pixels."""
    fields = {field.name: None for field in dataclasses.fields(Backbone)}
    return Backbone(**fields | {"params": {}, "preprocess": preprocess})


def method(**changes):
    """Returns a method that learns the mean brightness (group "level") and has a parameter without gradient."""

    def loss(frozen, params, features, batch):
        rows = batch.valid.astype(jnp.float32)
        value = jnp.sum(rows * jnp.square(features - params["level"])) / rows.sum()
        return value + 0 * params["other"], {"squares": value}

    toy = Method(
        name="toy",
        config=None,
        init=lambda key, frozen: {"level": jax.random.normal(key), "other": jnp.float32(1)},
        features=lambda frozen, params, images: images.mean((1, 2, 3)),
        prototypes=None,
        score=None,
        anomaly_map=None,
        loss=loss,
        group_names=("level", "other"),
        groups=lambda params: {"level": "level", "other": "other"},
        image_scores=("score",),
    )
    return toy._replace(**changes)


class Curves:
    def __init__(self):
        self.lines = []

    def write(self, step, values):
        self.lines.append((step, values["loss"]))


class KilledError(Exception):
    pass


class KilledAfter(OrbaxSaver):
    """A checkpoint saver that raises an error after saving the given epoch."""

    def __init__(self, folder, epoch):
        super().__init__(folder)
        self.epoch = epoch

    def save(self, epoch, state):
        super().save(epoch, state)
        if epoch == self.epoch:
            raise KilledError


def run_members(
    folder,
    *members,
    saver=None,
    data=None,
    toy=None,
    preprocess=PLAIN,
    tower=None,
    cache="none",
    **config,
):
    """Trains members: each has a seed, and fields of its config that differ from those of all."""
    mesh, toy, tower = make_mesh(), toy or method(), tower or backbone(preprocess)
    curves = [Curves() for _ in members]
    config = {"epochs": 3, "batch_size": 2, "learning_rate": 0.1, **config}
    features = Features(
        dataset() if data is None else data,
        tower,
        dict(encoder_of(toy, stage) for stage in toy.stages),
        FeaturesConfig(cache=cache),
        mesh=mesh,
        rows=config["batch_size"],
    )
    assert (features.resident() is None) == (cache == "none" or None in features.encoders)
    params = train(
        toy,
        tower,
        features,
        [Member(seed, TrainingConfig(**config | fields)) for seed, fields in members],
        mesh=mesh,
        saver=saver or OrbaxSaver(folder),
        curves=curves,
    )
    return params, [one.lines for one in curves]


def run(folder, *, seed=0, **options):
    (params,), (lines,) = run_members(folder, (seed, {}), **options)
    return params, lines


def first_level():
    """Returns the parameter "level" before the first step."""
    return float(method().init(jax.random.split(jax.random.key(0))[0], {})["level"])


def test_last_batch_counts_and_its_padding_does_not(tmp_path):
    _, lines = run(tmp_path, epochs=1, learning_rate=0.0)
    assert [step for step, _ in lines] == [1, 2, 3]
    batches = [(0, 40), (80, 120), (160,)]  # the last batch has one image and one row of padding
    expected = [np.mean([(gray / 255 - first_level()) ** 2 for gray in batch]) for batch in batches]
    assert [loss for _, loss in lines] == pytest.approx(expected, rel=1e-4)


def test_nan_features_of_invalid_rows_have_no_effect(tmp_path):
    def features(frozen, params, images):
        return images.mean((1, 2, 3)) / images.any((1, 2, 3))  # NaN for black images

    data = dataset(broken=[0])  # only unreadable images and padding are black
    expected = run(tmp_path / "plain", data=data)
    assert run(tmp_path / "nan", data=data, toy=method(features=features)) == expected


# Mean and standard deviation of the backbone, different from TIPS (0 and 1).
OTHER = Preprocess(image_size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_loss_receives_samples_of_dataset(tmp_path):
    """Checks every field of the batch and the normalized images, for a full and for a padded batch."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    masks = np.random.default_rng(1).integers(0, 2, (5, SIZE, SIZE)).astype(bool)
    labels, has_mask = np.array([1, 0, 1, 1, 0]), np.array([1, 1, 0, 1, 1], bool)
    masks[(labels == 0) | ~has_mask] = False
    names = ("b", "a", "a", "c", "b")
    samples = [
        Sample(
            image=b"broken" if number == 3 else encoded(pixels[number]),
            mask=encoded(masks[number]) if masks[number].any() else None,
            has_mask=bool(has_mask[number]),
            label=int(labels[number]),
            category=names[number],
            prompt_name=f"name of {names[number]}",
        )
        for number in range(5)
    ]
    seen = []

    def loss(frozen, params, features, batch):
        jax.debug.callback(lambda *arrays: seen.append(arrays), features, batch, ordered=True)
        return params["level"], {}

    toy = method(features=lambda frozen, params, images: images, loss=loss)
    run(tmp_path, data=Samples("some", samples), toy=toy, preprocess=OTHER, epochs=1, batch_size=4)
    jax.effects_barrier()
    batches = [([0, 1, 2], [True, True, True, False]), ([4], [True, False, False, False])]
    for (images, batch), (rows, valid) in zip(seen, batches, strict=True):
        np.testing.assert_array_equal(batch.valid, valid)
        count = len(rows)
        expected = (pixels[rows] / 255 - OTHER.mean) / OTHER.std
        np.testing.assert_allclose(images[:count], expected, atol=1e-5)
        np.testing.assert_array_equal(images[count:], 0)
        np.testing.assert_array_equal(batch.labels[:count], labels[rows])
        np.testing.assert_array_equal(batch.masks[:count], masks[rows])
        np.testing.assert_array_equal(batch.has_mask[:count], has_mask[rows])
        assert {batch.masks.dtype, batch.labels.dtype} == {np.dtype("float32"), np.dtype("int32")}
        prompts = [batch.class_names[index] for index in batch.category[:count]]
        assert prompts == [f"name of {names[row]}" for row in rows]


@pytest.mark.parametrize("shuffle", [False, True])
def test_resumed_training_is_bit_equal(tmp_path, shuffle):
    whole, lines = run(tmp_path / "whole", shuffle=shuffle)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", saver=KilledAfter(tmp_path / "killed", 2), shuffle=shuffle)
    resumed, rest = run(tmp_path / "killed", shuffle=shuffle)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert rest == lines[-3:]


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [empty, flip, pathlib.Path.unlink])
def test_falls_back_from_damaged_checkpoint(tmp_path, damage, caplog):
    params, lines = run(tmp_path / "whole")
    with pytest.raises(KilledError):
        run(tmp_path / "killed", saver=KilledAfter(tmp_path / "killed", 2))
    for path in (tmp_path / "killed/2").rglob("*"):
        if path.is_file():
            damage(path)
    with pytest.raises(DamagedCheckpointError):
        run(tmp_path / "killed")
    assert "Removing the damaged checkpoint of epoch 2" in caplog.text
    resumed, again = run(tmp_path / "killed")
    assert [step for step, _ in again] == [4, 5, 6, 7, 8, 9]
    assert (resumed["level"], again) == (params["level"], lines[3:])


def test_rejects_damaged_files_of_the_storage(tmp_path):
    run(tmp_path)
    (tmp_path / "3/_CHECKPOINT_METADATA").write_text("[" * 9999)
    with pytest.raises(UserError, match=r"are damaged\. Delete the folder"):
        OrbaxSaver(tmp_path)


def test_full_disk_is_reported_before_writing(tmp_path, monkeypatch):
    saver = OrbaxSaver(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="No space left on device") as caught:
        saver.save(1, {"w": np.zeros(3)})
    assert caught.value.filename == str(tmp_path)
    assert os.listdir(tmp_path) == []


def test_seed_and_shuffle_decide_the_order(tmp_path):
    plain = run(tmp_path / "a", shuffle=True)
    assert run(tmp_path / "b", shuffle=True) == plain
    assert run(tmp_path / "c", shuffle=True, seed=1)[1] != plain[1]
    assert run(tmp_path / "d", shuffle=False)[1] != plain[1]


def test_groups_have_own_learning_rates(tmp_path):
    params, lines = run(tmp_path, learning_rates={"level": 0.0})
    assert float(params["level"]) == first_level()
    assert len(lines) == 9
    with pytest.raises(UserError, match="levels"):
        run(tmp_path / "wrong", learning_rates={"levels": 1.0})


def test_stages_train_their_groups_in_turn(tmp_path):
    """Uses a second stage with its own loss, on the parameter that the first stage does not change."""

    def second(frozen, params, features, batch):
        return jnp.square(params["other"]), {}

    once = {"epochs": 1}
    toy = method(
        stages=(Stage(("level",), training=once), Stage(("other",), second, training=once))
    )
    params, lines = run(tmp_path, toy=toy)
    assert float(params["level"]) != first_level()
    assert float(params["other"]) < 1
    assert lines[3][1] == pytest.approx(1.0)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", toy=toy, saver=KilledAfter(tmp_path / "killed", 1))
    resumed, _ = run(tmp_path / "killed", toy=toy)
    jax.tree.map(np.testing.assert_array_equal, resumed, params)


def test_resumes_late_in_second_stage(tmp_path):
    """Resumes when the checkpoints of the first stage no longer exist."""
    toy = method(
        stages=(
            Stage(("level",), training={"epochs": 2}),
            Stage(("other", "level"), training={"epochs": 4}),
        )
    )
    whole, lines = run(tmp_path / "whole", toy=toy)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", toy=toy, saver=KilledAfter(tmp_path / "killed", 5))
    resumed, rest = run(tmp_path / "killed", toy=toy)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert rest == lines[-3:]


def test_ignores_broken_images(tmp_path):
    _, lines = run(tmp_path, data=dataset(4, broken=(3,)), epochs=1, learning_rate=0.0)
    assert lines[1][1] == pytest.approx((80 / 255 - first_level()) ** 2, rel=1e-4)


def test_rejects_data_and_methods_that_cannot_be_trained(tmp_path):
    with pytest.raises(UserError, match=r"gray.*could be read"):
        run(tmp_path / "a", data=dataset(2, broken=(0, 1)))
    with pytest.raises(UserError, match="gray has no images"):
        run(tmp_path / "b", data=Samples("gray", [], ["gray"]))
    with pytest.raises(UserError, match="no learnable parameters"):
        run(tmp_path / "c", toy=method(init=lambda key, frozen: {}))
    with pytest.raises(UserError, match="learning_rate"):
        run(tmp_path / "d", toy=method(loss=lambda *_: (jnp.float32(jnp.nan), {})))


def test_schedule_matches_coop():
    """Runs eight epochs of the original code: a warm-up epoch, then a cosine of period 8 from its start."""
    config = TrainingConfig(schedule="cosine", warmup_epochs=1, epochs=8)
    rate = make_schedule(config, 0.002, 1e-5, 3)
    rates = [float(rate(step)) for step in range(24)]
    original = [1e-5, 0.002, 0.001924, 0.001707, 0.001383, 0.001, 0.000617, 0.000293]
    np.testing.assert_allclose(rates, np.repeat(original, 3), atol=5e-7)  # one rate per epoch


def test_schedule_without_warmup_starts_at_peak():
    cosine = make_schedule(TrainingConfig(schedule="cosine", epochs=4), 0.002, 1e-5, 1)
    expected = [0.001 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4)]
    np.testing.assert_allclose([float(cosine(step)) for step in range(4)], expected, rtol=1e-5)
    assert make_schedule(TrainingConfig(), 0.002, 1e-5, 3) == 0.002


def test_halves_rates_after_milestones():
    halved = TrainingConfig(milestones=(2, 5))
    rates = [float(make_schedule(halved, 0.4, 1e-5, 1)(step)) for step in range(7)]
    np.testing.assert_allclose(rates, [0.4, 0.4, 0.2, 0.2, 0.2, 0.1, 0.1])


def test_adamw_decays_apart_from_the_update(tmp_path):
    """Runs a full-batch step by hand: x = x - rate (sign of the gradient + decay x)."""
    options = {"optimizer": "adamw", "weight_decay": 0.5, "epochs": 1}
    params, _ = run(tmp_path, batch_size=5, **options)
    level = first_level()
    mean = np.mean([40 * number / 255 for number in range(5)])
    expected = level - 0.1 * (np.sign(level - mean) + 0.5 * level)
    assert float(params["level"]) == pytest.approx(expected, rel=1e-4)
    assert float(params["other"]) == pytest.approx(1 - 0.1 * 0.5, rel=1e-6)  # without a gradient


def test_sgd_with_momentum_and_decay(tmp_path):
    """Runs two full-batch steps of v = 0.9 v + gradient + decay x, x = x - rate v by hand."""
    options = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.5, "epochs": 2}
    params, _ = run(tmp_path, batch_size=5, **options)
    level = first_level()
    mean, speed = np.mean([40 * number / 255 for number in range(5)]), 0.0
    for _ in range(2):
        speed = 0.9 * speed + 2 * (level - mean) + 0.5 * level
        level -= 0.1 * speed
    assert float(params["level"]) == pytest.approx(level, rel=1e-4)


def test_adam_of_the_default_config(tmp_path):
    """Runs three full-batch steps by hand: betas 0.5 and 0.999 and epsilon 1e-8, as in the published code."""
    params, _ = run(tmp_path, batch_size=5)
    level = first_level()
    mean, first, second = np.mean([40 * number / 255 for number in range(5)]), 0.0, 0.0
    for step in range(1, 4):
        gradient = 2 * (level - mean)
        first = 0.5 * first + 0.5 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        level -= 0.1 * (first / (1 - 0.5**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    assert float(params["level"]) == pytest.approx(level, rel=1e-4)


def storable(**changes):
    """Returns the method of the other tests with a key, so that its features can be resident."""
    return method(features_key=("brightness",), **changes)


@pytest.fixture(params=[None, 2], ids=["in_turn", "at_once"])
def assert_equal(request, monkeypatch):
    """Compares parameters: bit by bit, unless steps of members are vectorized."""
    monkeypatch.setattr(trainer, "members_at_once", lambda mesh: request.param)
    tolerance = {"rtol": 1e-5 if request.param else 0, "atol": 0}
    return lambda *trees: jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), *trees
    )


SEEDS = [(seed, {}) for seed in (0, 1, 7)]
RATES = [(0, {"learning_rate": rate}) for rate in (0.1, 0.03, 0.0)]
SWEPT = [
    (3, {"learning_rates": {"level": 0.2}, "weight_decay": 0.5, "warmup_rate": 0.01}),
    (3, {"learning_rate": 0.05, "weight_decay": 0.0, "warmup_rate": 0.02}),
    (4, {"weight_decay": 0.1}),
]
SGD = {"optimizer": "sgd", "schedule": "cosine", "warmup_epochs": 1}


@pytest.mark.parametrize(
    ("members", "config", "cache"),
    [
        (SEEDS, {"shuffle": True}, "none"),
        (SEEDS, {"shuffle": True}, "memory"),
        (SEEDS, {}, "none"),
        (RATES, {}, "memory"),
        (SWEPT, SGD, "memory"),
    ],
)
def test_members_together_equal_each_alone(tmp_path, assert_equal, members, config, cache):
    options = {"toy": storable(), "cache": cache, "epochs": 2, **config}
    together, lines = run_members(tmp_path / "all", *members, **options)
    alone = [run_members(tmp_path / str(i), one, **options) for i, one in enumerate(members)]
    assert len({float(params["level"]) for params in together}) == len(members)
    for params, of_member, ((expected,), (of_alone,)) in zip(together, lines, alone, strict=True):
        assert_equal(params, expected)
        np.testing.assert_allclose(of_member, of_alone, rtol=1e-5)


@pytest.mark.parametrize("options", [{"shuffle": True}, SGD, {"data": dataset(7, broken=(2, 3))}])
def test_calls_of_several_steps_equal_single_steps(tmp_path, monkeypatch, options):
    """Uses calls of two steps, the last one padded, and SGD, whose momentum would move parameters in it."""
    monkeypatch.setattr(trainer, "MAX_STEPS", 2)
    options = {"optimizer": "sgd", "toy": storable(), **options}
    single, resident = (
        run(tmp_path / cache, cache=cache, **options) for cache in ("none", "memory")
    )
    assert len(single[1]) == 9
    jax.tree.map(np.testing.assert_array_equal, resident, single)


def test_members_resume_together(tmp_path):
    options = {"toy": storable(), "cache": "memory", "shuffle": True}
    whole, lines = run_members(tmp_path / "whole", *SEEDS, **options)
    with pytest.raises(KilledError):
        run_members(tmp_path / "cut", *SEEDS, saver=KilledAfter(tmp_path / "cut", 2), **options)
    resumed, rest = run_members(tmp_path / "cut", *SEEDS, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert rest == [of_member[-3:] for of_member in lines]


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_names_member_with_non_finite_loss(tmp_path, cache):
    def loss(frozen, params, features, batch):
        return jnp.where(params["level"] > 100, jnp.nan, -params["level"]), {}

    members = [(5, {}), (5, {"learning_rate": 1e3}), (6, {})]
    words = r"at step 2 \(train gray epoch 1, seed 5, learning_rate=1000\.0\)\. Lower"
    with pytest.raises(UserError, match=words):
        run_members(tmp_path, *members, toy=storable(loss=loss), cache=cache)


def drawing():
    """Returns a method whose losses are random numbers of the key of each step."""

    def loss(frozen, params, features, batch):
        each = jax.vmap(jax.random.normal)(jax.random.split(batch.key, len(features)))
        return params["level"] + jnp.sum(each * batch.valid), {}

    return storable(loss=loss)


def test_draws_of_a_loss_depend_on_seed_and_step(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "MAX_STEPS", 2)
    options = {"toy": drawing(), "learning_rate": 0.0, "epochs": 3}
    _, lines = run_members(tmp_path / "all", *SEEDS, cache="memory", **options)
    losses = [loss for own in lines for _, loss in own]
    assert len(set(losses)) == len(SEEDS) * 9
    for number, one in enumerate(SEEDS):
        _, (alone,) = run_members(tmp_path / str(number), one, **options)
        np.testing.assert_allclose(alone, lines[number], rtol=1e-6)
    with pytest.raises(KilledError):
        run_members(tmp_path / "cut", *SEEDS, saver=KilledAfter(tmp_path / "cut", 1), **options)
    _, rest = run_members(tmp_path / "cut", *SEEDS, **options)
    assert rest == [own[-6:] for own in lines]


def in_two_stages():
    """Returns a method with other features in its first stage, and changed images in its second one."""

    def encode(frozen, params, images):
        return params["other"] * images.mean((1, 2, 3))

    def augment(key, image, mask):
        image = image * jax.random.uniform(key)
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image), 1 - mask

    def second(frozen, params, features, batch):
        loss, terms = method().loss(frozen, params, features, batch)
        return loss + 0.01 * jax.random.normal(batch.key), terms | {"mask": batch.masks.mean()}

    first = {"features": method().features, "features_key": ("brightness",)}
    of_first, of_second = {"epochs": 2, "batch_size": 4}, {"milestones": (2,)}
    stages = (
        Stage(("level",), training=of_first, **first),
        Stage(loss=second, training=of_second, augment=augment, mosaic=0.5),
    )
    return method(features=encode, cacheable=False, stages=stages)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_stages_with_changed_images_resume_bit_equal(tmp_path, epoch):
    """Stops within the first stage, between both, and within the second one."""
    members = [(0, {}), (7, {})]
    options = {"toy": in_two_stages(), "cache": "memory", "epochs": 3}
    whole, lines = run_members(tmp_path / "whole", *members, **options)
    assert [step for step, _ in lines[0]] == [*range(1, 2 * 2 + 3 * 3 + 1)]
    with pytest.raises(KilledError):
        run_members(
            tmp_path / "cut", *members, saver=KilledAfter(tmp_path / "cut", epoch), **options
        )
    resumed, rest = run_members(tmp_path / "cut", *members, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    steps = count_steps(options["toy"], TrainingConfig(epochs=3, batch_size=2), 5, epoch)
    assert rest == [own[steps:] for own in lines]
    assert lines[0][4:] != lines[1][4:]
    for number, one in enumerate(members if epoch == 1 else ()):
        (alone,), (own,) = run_members(tmp_path / str(number), one, **options)
        jax.tree.map(np.testing.assert_array_equal, alone, whole[number])
        assert own == lines[number]


@pytest.mark.slow  # up to 30 s each
@pytest.mark.parametrize("name", ["aaclip", "adaclip", "aprilgan", "vcpclip"])
def test_training_on_changed_images_resumes_bit_equal(tmp_path, name):
    """Stops after each epoch, within stages and between them."""
    tower = zsad_jax.load_backbone("clip-nano", image_size=42)
    made = make_method(name, tower, {} if name == "aaclip" else {"mosaic": 0.5})
    stages = [one._replace(training={**one.training, "epochs": 2}) for one in made.stages]
    rng, samples = np.random.default_rng(0), []
    for number in range(4):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[: number % 2, :3] = 255
        samples.append(
            Sample(
                image=encoded(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)),
                mask=encoded(mask),
                has_mask=True,
                label=number % 2,
                category="grid",
                prompt_name="grid",
            )
        )

    def start(folder, **options):
        toy, data = made._replace(stages=tuple(stages)), Samples("drawn", samples)
        return run(tmp_path / folder, toy=toy, tower=tower, data=data, **options)

    whole, lines = start("whole")
    for epoch in range(1, 2 * len(stages)):
        with pytest.raises(KilledError):
            start("cut", saver=KilledAfter(tmp_path / "cut", epoch))
    resumed, rest = start("cut")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert rest == lines[-len(rest) :] != lines


@pytest.mark.parametrize("held", ["level", ""])
def test_fixed_is_computed_from_untrained_parameters(tmp_path, held):
    """Trains "other" on what is computed from "level", or both on what depends on no parameters."""

    def fixed(frozen, params, class_names):
        assert sorted(params) == [held] * bool(held)
        return {"texts": params.get("level", jnp.float32(3)) * jnp.ones(len(class_names))}

    def loss(frozen, params, features, batch):
        (text,) = batch.fixed["texts"]
        return text + 0 * params["other"] * params["level"], {}

    members = [(0, {}), (7, {})]
    toy = method(loss=loss, stages=(Stage(("other",) if held else None, fixed=fixed),))
    trained, lines = run_members(tmp_path, *members, toy=toy, epochs=1)
    for params, own in zip(trained, lines, strict=True):
        expected = params["level"] if held else 3
        np.testing.assert_array_equal([loss for _, loss in own], expected)


@pytest.mark.parametrize("which", ["all", "anomalous"])
def test_mosaics_are_of_the_category(tmp_path, which):
    """Uses a category of darker normal and brighter anomalous images, and one of normal images alone."""
    seen = []

    def loss(frozen, params, features, batch):
        jax.debug.callback(lambda *arrays: seen.append(arrays), 255 * features, batch.category)
        return params["level"], {}

    samples = [
        Sample(
            image=encoded(np.full((SIZE, SIZE, 3), gray, np.uint8)),
            category=str(gray // 200),
            label=int(gray == 120),
            has_mask=True,
        )
        for gray in (80, 120, 200, 80, 120, 80, 200)
    ]
    toy = method(loss=loss, stages=(Stage(mosaic=1.0, mosaic_of=which),))
    run(tmp_path, data=Samples("two", samples), toy=toy, epochs=9, batch_size=7, shuffle=True)
    jax.effects_barrier()
    for brightness, category in seen:
        assert sorted(category.tolist()) == [0, 0, 0, 0, 0, 1, 1]
        np.testing.assert_allclose(brightness[category == 1], 200, atol=0.01)
    dark = np.concatenate([brightness[category == 0] for brightness, category in seen])
    if which == "anomalous":
        np.testing.assert_allclose(dark, 120, atol=0.01)
    else:  # quarters of 80 and 120
        assert {80, 90, 100, 110, 120} == {*np.unique(dark.round()).astype(int)}


def test_changes_images_before_they_are_normalized(tmp_path):
    seen = []

    def loss(frozen, params, features, batch):
        jax.debug.callback(lambda *arrays: seen.append(arrays), features, batch.masks)
        return params["level"], {}

    stage = Stage(augment=lambda key, image, mask: (image / 2, image[..., 0]))
    toy = method(loss=loss, stages=(stage,), features=lambda frozen, params, images: images)
    run(tmp_path, toy=toy, epochs=1, batch_size=5, preprocess=OTHER)
    jax.effects_barrier()
    ((images, masks),) = seen
    values = np.arange(5) * 40 / 255
    np.testing.assert_allclose(
        masks, np.broadcast_to(values[:, None, None], masks.shape), rtol=1e-6
    )
    expected = (values[:, None] / 2 - OTHER.mean) / OTHER.std
    np.testing.assert_allclose(images[:, 0, 0], expected, atol=1e-6)
