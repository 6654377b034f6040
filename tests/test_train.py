"""Training on its own: order, resuming, groups, and what must stop it."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from zsad_jax.backbones import Backbone
from zsad_jax.data.base import Sample, Samples
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.errors import UserError
from zsad_jax.methods import Method, Stage
from zsad_jax.sharding import make_mesh
from zsad_jax.train import OrbaxSaver, TrainingConfig, make_schedule, train


def encoded(value):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "png")
    return buffer.getvalue()


def dataset(count=5, broken=()):
    return Samples(
        "grey",
        [
            Sample(
                image=b"nothing" if number in broken else encoded(40 * number),
                has_mask=True,
                category="grey",
                file_name=str(number),
            )
            for number in range(count)
        ],
    )


def backbone():
    """Nothing but preprocessing: the toy method looks at pixels."""
    fields = {field.name: None for field in dataclasses.fields(Backbone)}
    return Backbone(**fields | {"params": {}, "preprocess": Preprocess(image_size=8)})


def method(**changes):
    """Learns the mean brightness (group "level") and carries a parameter that no loss touches."""

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
    """Saves, and dies with the given epoch saved."""

    def __init__(self, folder, epoch):
        super().__init__(folder)
        self.epoch = epoch

    def save(self, epoch, state):
        super().save(epoch, state)
        if epoch == self.epoch:
            raise KilledError


def run(folder, *, saver=None, data=None, toy=None, seed=0, **config):
    curves = Curves()
    saver = saver or OrbaxSaver(folder)
    params = train(
        toy or method(),
        backbone(),
        dataset() if data is None else data,
        TrainingConfig(**{"epochs": 3, "batch_size": 2, "learning_rate": 0.1, **config}),
        key=jax.random.key(seed),
        mesh=make_mesh(),
        saver=saver,
        curves=curves,
    )
    return params, curves.lines


def test_the_last_smaller_batch_counts_and_its_padding_does_not(tmp_path):
    _, lines = run(tmp_path, epochs=1)
    assert [step for step, _ in lines] == [1, 2, 3]
    assert all(np.isfinite(loss) for _, loss in lines)
    # One image in the last batch: brightness 160/255, whatever the rows of padding hold.
    level = float(method().init(jax.random.split(jax.random.key(0))[0], {})["level"])
    first = np.mean([(0 - level) ** 2, (40 / 255 - level) ** 2])
    assert lines[0][1] == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("shuffle", [False, True])
def test_killed_between_epochs_and_gone_on_is_bit_equal(tmp_path, shuffle):
    whole, lines = run(tmp_path / "whole", shuffle=shuffle)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", saver=KilledAfter(tmp_path / "killed", 2), shuffle=shuffle)
    resumed, rest = run(tmp_path / "killed", shuffle=shuffle)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert rest == lines[-3:]


def test_seeds_and_order(tmp_path):
    plain = run(tmp_path / "a", shuffle=True)
    assert run(tmp_path / "b", shuffle=True) == plain
    assert run(tmp_path / "c", shuffle=True, seed=1)[1] != plain[1]
    assert run(tmp_path / "d", shuffle=False)[1] != plain[1]


def test_groups_have_their_own_rates(tmp_path):
    params, lines = run(tmp_path, learning_rates={"level": 0.0})
    assert float(params["level"]) == float(
        method().init(jax.random.split(jax.random.key(0))[0], {})["level"]
    )
    assert len(lines) == 9
    with pytest.raises(UserError, match="levels"):
        run(tmp_path / "wrong", learning_rates={"levels": 1.0})


def test_stages_train_their_groups_one_after_another(tmp_path):
    """The second stage has a loss of its own, on the parameter that the first leaves alone."""

    def second(frozen, params, features, batch):
        return jnp.square(params["other"]), {}

    toy = method(stages=(Stage(("level",), epochs=1), Stage(("other",), second, epochs=1)))
    params, lines = run(tmp_path, toy=toy)
    start = method().init(jax.random.split(jax.random.key(0))[0], {})
    assert float(params["level"]) != float(start["level"])
    assert float(params["other"]) < 1
    assert lines[3][1] == pytest.approx(1.0)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", toy=toy, saver=KilledAfter(tmp_path / "killed", 1))
    resumed, _ = run(tmp_path / "killed", toy=toy)
    jax.tree.map(np.testing.assert_array_equal, resumed, params)


def test_resumed_late_in_a_second_stage(tmp_path):
    """The first stage's own checkpoints are long gone by then."""
    toy = method(stages=(Stage(("level",), epochs=2), Stage(("other", "level"), epochs=4)))
    whole, lines = run(tmp_path / "whole", toy=toy)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", toy=toy, saver=KilledAfter(tmp_path / "killed", 5))
    resumed, rest = run(tmp_path / "killed", toy=toy)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert rest == lines[-3:]


def test_broken_images_are_left_out(tmp_path, caplog):
    _, lines = run(tmp_path, data=dataset(4, broken=(1,)), epochs=1)
    level = float(method().init(jax.random.split(jax.random.key(0))[0], {})["level"])
    assert lines[0][1] == pytest.approx(level**2, rel=1e-4)


def test_what_cannot_be_trained_on_is_said(tmp_path):
    with pytest.raises(UserError, match=r"grey.*could be read"):
        run(tmp_path / "a", data=dataset(2, broken=(0, 1)))
    with pytest.raises(UserError, match="grey holds no image"):
        run(tmp_path / "b", data=Samples("grey", [], ["grey"]))
    with pytest.raises(UserError, match="nothing to learn"):
        run(tmp_path / "c", toy=method(init=lambda key, frozen: {}))
    with pytest.raises(UserError, match="learning_rate"):
        run(tmp_path / "d", toy=method(loss=lambda *_: (jnp.float32(jnp.nan), {})))


def test_schedules_hold_for_whole_epochs():
    config = TrainingConfig(schedule="cosine", warmup_epochs=1, warmup_rate=1e-5)
    rate = make_schedule(config, 0.002, 4, 3)
    rates = [float(rate(step)) for step in range(12)]
    expected = [1e-5, *(0.001 * (1 + np.cos(np.pi * epoch / 4)) for epoch in (1, 2, 3))]
    np.testing.assert_allclose(rates, np.repeat(expected, 3), rtol=1e-5)
    assert make_schedule(TrainingConfig(), 0.002, 4, 3) == 0.002


def test_sgd_with_momentum_and_decay(tmp_path):
    """Two full-batch steps of v = 0.9 v + gradient + decay x, x = x - rate v, by hand."""
    options = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.5, "epochs": 2}
    params, _ = run(tmp_path, batch_size=5, **options)
    level = float(method().init(jax.random.split(jax.random.key(0))[0], {})["level"])
    mean, speed = np.mean([40 * number / 255 for number in range(5)]), 0.0
    for _ in range(2):
        speed = 0.9 * speed + 2 * (level - mean) + 0.5 * level
        level -= 0.1 * speed
    assert float(params["level"]) == pytest.approx(level, rel=1e-4)
