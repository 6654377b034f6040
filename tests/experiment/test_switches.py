"""Tests of every option of every config: it works for a demo step, or is rejected before data is loaded.

Nothing is compiled: wrong shapes, missing keys and unknown names are detected when a function is traced.
"""

import dataclasses
import functools
import itertools
import pathlib
import runpy
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zsad_jax
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.evaluate import make_scorer
from zsad_jax.experiment import run as runner
from zsad_jax.experiment import start as starter
from zsad_jax.experiment import training
from zsad_jax.experiment.config import Experiment, from_config
from zsad_jax.methods import (
    METHODS,
    Batch,
    config_class,
    count_parameters,
    make_method,
    param_shapes,
)
from zsad_jax.methods.base import encoder_of, untrained
from zsad_jax.train import TrainingConfig, TrainState, make_optimizer, make_step
from zsad_jax.utils.errors import NotPreparedError, UserError
from zsad_jax.utils.sharding import make_mesh

ROOT = pathlib.Path(__file__).parents[2]
SIZE = 42  # three by three patches
CLASSES = ("metal nut", "grid")
LARGE = 200  # more than the tokens of a text or the patches of an image
WITH_TESTS_OF_THEIR_OWN = (tuple[Any, ...], Mapping[str, Any] | None)


def alternatives(hint, default, bounds):
    """Returns other values of an option: all choices, the smallest and a large number, other texts, tuples."""
    kind, args = typing.get_origin(hint), typing.get_args(hint)
    low, high = bounds
    if kind in (typing.Union, types.UnionType):
        values = [
            None,
            *alternatives(next(a for a in args if a is not type(None)), default, bounds),
        ]
    elif kind is typing.Literal:
        values = args
    elif hint is bool:
        values = (True, False)
    elif hint is int:
        values = (low if low is not None else 0, min(high or LARGE, LARGE))
    elif hint is float:
        values = (0.5,)
    elif hint is str:
        values = ("a gear, {}", "a long text " * 30)
    elif kind is tuple and args[0] is int:
        values = ((1,), (24, 1), ())
    elif kind is tuple:
        values = (default[::-1], default[:1], tuple("a long text {} " * 30 for _ in default))
    else:
        raise TypeError(f"no alternatives are known for {hint}")
    return [value for value in dict.fromkeys(values) if value != default]


def variations(config):
    """Returns configs with other values: one field at a time, except that all floats are minimal together."""
    hints, smallest = typing.get_type_hints(type(config)), {}
    for field in dataclasses.fields(config):
        bounds = field.metadata.get("within", (None, None))
        default, hint = getattr(config, field.name), hints[field.name]
        if hint is float:
            smallest[field.name] = bounds[0]
        elif typing.get_origin(hint) is not Mapping and hint not in WITH_TESTS_OF_THEIR_OWN:
            for value in alternatives(hint, default, bounds):
                yield {field.name: value}
    if smallest:
        yield smallest


@functools.cache
def demo(method, backbone):
    """Returns the demo of a method's config over an included backbone."""
    own = "tips-nano" if method == "tipsomaly" else "clip-nano"
    variant = "demo" if backbone == own else f"demo_{backbone.partition('-')[0]}"
    config = runpy.run_path(str(ROOT / f"configs/{method}.py"))["get_config"](variant)
    experiment = from_config(config)
    assert experiment.backbone["name"] == backbone
    # Nothing is encoded here.
    return dataclasses.replace(experiment, features={"cache": "none"})


@functools.cache
def load(name):
    """Loads an included backbone whose towers are traced once per shape."""
    backbone = zsad_jax.load_backbone(name, image_size=SIZE)
    options = ("layers", "vv_from", "vv_path", "cls_norm", "patch_norm", "project", "windows")

    def traced_once(encode_image, text):
        encoders = {
            name: jax.jit(getattr(text, name), static_argnames=("insert", "project"))
            for name in ("encode_prompts", "encode_text")
        }
        return {
            "encode_image": jax.jit(encode_image, static_argnames=options),
            "text": dataclasses.replace(text, **encoders),
        }

    forms = {form: traced_once(**functions) for form, functions in backbone.forms.items()}
    return dataclasses.replace(backbone, forms=forms, **forms[backbone.form])


def batch():
    return Batch(
        category=np.array([0, 1]),
        labels=np.array([0, 1]),
        masks=np.zeros((2, SIZE, SIZE), np.float32),
        has_mask=np.ones(2, bool),
        valid=np.ones(2, bool),
        class_names=CLASSES,
        key=jax.random.key(0),
    )


def trace_features(method, backbone, stage=None):
    """Traces what the steps of a stage, or the scorer, receive."""
    images = jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), np.uint8)
    _, encode = encoder_of(method, stage)
    if encode is None:
        return images
    normalize = backbone.preprocess.normalize
    return jax.eval_shape(
        lambda frozen, x: encode(frozen, {}, normalize(x)), backbone.params, images
    )


def trace_step(method, backbone, training):
    """Traces a training step of each stage."""
    params = param_shapes(method, backbone)
    for stage in method.stages if params else ():
        features = trace_features(method, backbone, stage)
        optimizer = make_optimizer(training, method, params, stage, steps_per_epoch=3)
        fixed = None
        if stage.fixed:
            compute = jax.jit(stage.fixed, static_argnums=2)
            held = untrained(method, stage, params)
            fixed = jax.eval_shape(compute, backbone.params, held, CLASSES)
        state = TrainState(params, jax.eval_shape(optimizer.init, params), fixed)
        step = make_step(method, backbone, optimizer, stage)
        new, losses = jax.eval_shape(step, backbone.params, state, features, batch())
        assert jax.tree.map(jax.numpy.shape, new) == jax.tree.map(jax.numpy.shape, state)
        assert losses["loss"].shape == ()


def trace_scores(method, params, backbone):
    """Traces prompts, scores and maps."""
    # Each category has two references, if the method takes any.
    references = None
    if method.references != "unused":
        features = trace_features(method, backbone)
        references = jax.eval_shape(
            lambda x: jax.tree.map(lambda x: jnp.stack([x, x]), x), features
        )
    texts = jax.jit(method.prototypes, static_argnums=2).eval_shape(
        backbone.params, params, CLASSES, references
    )
    key, encode = encoder_of(method)
    normalize = backbone.preprocess.normalize
    encoder = encode and (lambda frozen, x: encode(frozen, {}, normalize(x)))
    (result,) = jax.eval_shape(
        make_scorer([method], backbone, {key: encoder}, mesh=make_mesh(), binned=False),
        backbone.params,
        [params],
        [texts],
        [None],
        jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), np.uint8),
        np.array([0, 1]),
    )
    assert set(result.image) == set(method.image_scores)
    assert result.maps.shape == (2, SIZE, SIZE)


COMBINATIONS = [*itertools.product(METHODS, ["tips-nano", "clip-nano"])]


@pytest.mark.parametrize(("name", "over"), COMBINATIONS)
def test_demos_train_and_score(name, over):
    backbone, experiment = load(over), demo(name, over)
    experiment.check_method(backbone)
    method = experiment.main_method(backbone)
    trace_step(method, backbone, experiment.training_config)
    params = param_shapes(method, backbone)
    trace_scores(method, params, backbone)
    assert set(jax.tree.leaves(method.groups(params))) == set(method.group_names)


@pytest.mark.parametrize(("name", "over"), COMBINATIONS)
def test_method_options_work_or_are_rejected_early(name, over):
    backbone, works = load(over), 0
    base = demo(name, over)
    for changes in variations(config_class(name)()):
        try:
            options = {**base.method, **changes}
            # Nothing needs to be learned, or to be there.
            ready = {"train": False, "skip_missing": True, "comparisons": {}}
            experiment = dataclasses.replace(base, method=options, **ready)
            experiment.check_method(backbone)
        except UserError:
            continue
        try:
            method = experiment.main_method(backbone)
            trace_step(method, backbone, experiment.training_config)
            trace_scores(method, param_shapes(method, backbone), backbone)
        except Exception as error:
            raise AssertionError(f"{changes} fails late") from error
        works += 1
    assert works > 5


LEARNED = [name for name in METHODS if config_class(name).scoring_only]


@pytest.mark.parametrize(("name", "over"), itertools.product(LEARNED, ["tips-nano", "clip-nano"]))
def test_scoring_only_options_leave_training_unchanged(name, over):
    """Compares compiler input: equal programs have bit-equal parameters, losses and gradients."""
    backbone, base = load(over), demo(name, over).method_on()

    def lower(**changes):
        method = make_method(name, backbone, dataclasses.replace(base, **changes))

        def start(frozen, key, images):
            params = method.init(key, frozen)
            features = method.features(frozen, params, images)
            of_loss = jax.value_and_grad(method.loss, argnums=1, has_aux=True)
            fixed = [
                one.fixed(frozen, untrained(method, one, params), CLASSES)
                for one in method.stages
                if one.fixed
            ]
            truth = dataclasses.replace(batch(), fixed=fixed[-1] if fixed else None)
            return params, of_loss(frozen, params, features, truth)

        images = np.zeros((2, SIZE, SIZE, 3), np.float32)
        return jax.jit(start).lower(backbone.params, jax.random.key(0), images).as_text()

    hints, program = typing.get_type_hints(type(base)), lower()
    for key in base.scoring_only:
        # The first other value; those after it may be invalid.
        bounds = base.__dataclass_fields__[key].metadata.get("within", (None, None))
        value = alternatives(hints[key], getattr(base, key), bounds)[0]
        assert lower(**{key: value}) == program, key
    assert lower(temperature=0.5) != program


class TracedError(Exception):
    """The signal that all steps and scores of a run were traced."""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an experiment, tracing instead of training and scoring; returns the trained methods' names."""
    trained = []

    def train(method, backbone, features, members, **_):
        trained.append(method.name)
        start.configs.append((method.config, members[0].config))
        trace_step(method, backbone, members[0].config)
        shapes = param_shapes(method, backbone)
        return [jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes) for _ in members]

    def evaluate(contenders, features, backbone, **_):
        for contender in contenders:
            trace_scores(contender.method, contender.params, backbone)
        raise TracedError

    def open_datasets(variants):
        experiment = variants[0].experiment
        sample = Sample(image=b"", category="metal nut", file_name="0.png")
        names = {target.name for target in experiment.resolved}
        names |= {*experiment.auxiliaries()} if experiment.train else set()
        if not names <= {"synthetic_target", "synthetic_aux"}:
            raise NotPreparedError(f"{names} are not prepared.")
        return {name: Samples(name, [sample]) for name in names}, {}, {}

    monkeypatch.setattr(starter, "open_datasets", open_datasets)
    monkeypatch.setattr(runner, "evaluate", evaluate)
    monkeypatch.setattr(training, "train", train)
    saver = types.SimpleNamespace(latest=lambda: None, close=lambda: None)
    monkeypatch.setattr(training, "OrbaxSaver", lambda folder, **_: saver)
    monkeypatch.setattr(Experiment, "load_backbone", lambda self: load(self.backbone["name"]))

    def start(experiment):
        trained.clear()
        with pytest.raises(TracedError):
            runner.run_experiment(experiment, tmp_path / "run")
        return trained

    start.trained, start.configs = trained, []
    return start


def test_experiment_options_work_or_are_rejected_early(run):
    base, works = demo("vip2clip", "clip-nano"), 0
    for changes in variations(base):
        try:
            run(dataclasses.replace(base, comparisons={}, **changes))
        except UserError:
            assert not run.trained, f"{changes} is rejected after training"
        else:
            works += 1
    assert works > 10


def test_training_options_work(run):
    base = demo("vip2clip", "clip-nano")
    for changes in variations(TrainingConfig()):
        options = {**base.training, **changes}
        experiment = dataclasses.replace(base, comparisons={}, training=options)
        assert run(experiment) in (["vip2clip"], []), changes  # [] if an earlier run has trained it


@pytest.mark.parametrize(
    ("name", "over", "part"), [("vip2clip", "clip-nano", "fgp"), ("tps", "tips-nano", "pathway")]
)
def test_accepts_learning_rates_of_disabled_groups(run, name, over, part):
    base = demo(name, over)
    assert part in base.training["learning_rates"]
    method = {**base.method, part: False}
    assert run(dataclasses.replace(base, method=method, comparisons={})) == [name]


@pytest.mark.parametrize(
    ("rates", "suggested"),
    [
        ({"fgp": 0.1}, "Available: prompts, pathway"),
        ({"prompts": 0.1, "prompt": 0.1}, "Did you mean prompts"),
    ],
)
def test_rejects_learning_rates_of_unknown_groups(run, rates, suggested):
    base = demo("tps", "clip-nano")
    experiment = dataclasses.replace(base, training={**base.training, "learning_rates": rates})
    with pytest.raises(UserError, match=f"not a parameter group of tps. {suggested}"):
        run(experiment)
    assert not run.trained


def test_compares_with_each_other_method(run):
    """Trains each method with the learning rates of its own groups."""
    base = demo("vip2clip", "clip-nano")
    others = {name: {"name": name} for name in METHODS if name != "vip2clip"}
    for name in ("knn", "musc"):
        others[name]["shots"] = 1
    own = {"without fgp": {"fgp": False}, "global": {"utpa": False}}
    trained = run(dataclasses.replace(base, comparisons={**others, **own}))
    learned = [name for name in METHODS if count_parameters(name, backbone="clip-vit-l14-336")]
    assert sorted(trained) == sorted([*learned, "vip2clip", "vip2clip"])


def test_trainings_on_a_dataset_have_its_fields(run):
    base = demo("aprilgan", "clip-nano")
    own = {"synthetic_aux:test": {"method": {"mosaic": 0.5}, "training": {"epochs": 7}}}
    rows = {"a": {"mosaic": 0.1}, "b": {"training": {"epochs": 9}}, "c": {"name": "coop"}}
    run(dataclasses.replace(base, trained_on=own, comparisons=rows))
    found = [(one.name, getattr(one, "mosaic", 0), of.epochs) for one, of in run.configs]
    five = base.training_config.epochs
    assert found == [
        *(("aprilgan", 0.5, 7), ("aprilgan", 0.1, 7), ("aprilgan", 0.5, 9), ("coop", 0, five)),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trained_on": {"visa": {"methd": {}}}}, r"trained_on\['visa'\]: .*'methd'"),
        ({"trained_on": {"visa": {"training": {"epoch": 1}}}}, r"\['visa'\]: .*'epoch'"),
        ({"trained_on": {"visa": {"method": {"num_prompts": 3}}}}, "Scoring reads .*num_prompts"),
        ({"comparisons": {"x": {"name": "tps", "global_token": 1}}}, "has 1 global token"),
        ({"comparisons": {"x": {"name": "coop", "num_prompts": LARGE}}}, "fewer learned tokens"),
        ({"method_for": {"synthetic_target": {"global_token": 1}}}, "has 1 global token"),
        ({"method_for": {"synthetic_target": {"num_prompts": LARGE}}}, "fewer learned tokens"),
        ({"comparisons": {"x": {"name": "clip"}}, "image_score": "global"}, "Image score 'global'"),
        ({"auxiliary": None}, "config.auxiliary is missing"),
        ({"auxiliary": "mvtec_ad", "train": False}, "There are no prompts learned on mvtec_ad"),
    ],
)
def test_rejects_options_that_later_steps_do_not_support(run, changes, words):
    with pytest.raises(UserError, match=words):
        run(dataclasses.replace(demo("vip2clip", "clip-nano"), **changes))
    assert not run.trained
