"""Tests of every method over every included backbone, as listed in the README's table of combinations."""

import dataclasses
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zsad_jax
from zsad_jax.backbones import registry
from zsad_jax.detector import choose_params
from zsad_jax.methods import (
    METHODS,
    Batch,
    config_class,
    count_learned,
    count_parameters,
    make_method,
)
from zsad_jax.methods.base import encoder_of, untrained
from zsad_jax.train import TrainingConfig, TrainState, make_optimizer, make_step
from zsad_jax.utils.errors import UserError

DEMOS = [name for name, one in registry.RELEASES.items() if one.demo]
SIZE = 56  # four by four patches
CLASSES = ("metal nut", "grid")
ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The small vocabularies of the demo backbones lack some words of the defaults.
VIP2CLIP = runpy.run_path(str(ROOT / "configs" / "vip2clip.py"))
OVER_NANO = {"vip2clip": {"adjectives": VIP2CLIP["DEMO"]["adjectives"]}}


@pytest.fixture(scope="module")
def backbones():
    return {name: zsad_jax.load_backbone(name, image_size=SIZE) for name in DEMOS}


def batch():
    masks = np.zeros((2, SIZE, SIZE), np.float32)
    masks[1, 10:40, 20:50] = 1
    return Batch(
        category=np.array([0, 1]),
        labels=np.array([0, 1]),
        masks=masks,
        has_mask=np.ones(2, bool),
        valid=np.ones(2, bool),
        class_names=CLASSES,
        key=jax.random.key(2),
    )


@pytest.mark.parametrize("backbone", DEMOS)
@pytest.mark.parametrize("method", METHODS)
def test_trains_two_steps_then_scores(backbones, largest_entries, method, backbone):
    model = backbones[backbone]
    made = make_method(method, model, OVER_NANO.get(method))
    images = jax.random.randint(jax.random.key(0), (2, SIZE, SIZE, 3), 0, 256, np.uint8)
    params = made.init(jax.random.key(1), model.params)
    if params:
        trained = _train(made, model, params, images)
        moved = jax.tree.map(lambda after, before: after - before, trained, params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))
        # Steps of opposite signs cancel in part.
        assert min(largest_entries(method, moved).values()) > 1e-5
        params = trained
    normalized = model.preprocess.normalize(images)
    features = jax.jit(made.features)(model.params, params, normalized)

    # Without references, MuSc scores no single images.
    compared = None if made.references == "unused" else features

    @jax.jit
    def score(frozen, params, features, compared):
        references = jax.tree.map(lambda x: jnp.stack([x[:1], x[1:]]), compared)
        prototypes = made.prototypes(frozen, params, CLASSES, references)
        scores = made.score(frozen, params, prototypes, features, np.array([0, 1]))
        return scores.image, made.anomaly_map(scores.patches, SIZE)

    image, maps = score(model.params, params, features, compared)
    assert set(image) == set(made.image_scores) != set()
    assert all(one.shape == (2,) and jnp.isfinite(one).all() for one in image.values())
    assert maps.shape == (2, SIZE, SIZE)
    low, high = made.map_range or (-np.inf, np.inf)
    assert low - 1e-4 <= maps.min() <= maps.max() <= high + 1e-4
    low, high = made.score_range or (-np.inf, np.inf)
    assert all(low <= one.min() <= one.max() <= high for one in image.values())


def _train(made, model, params, images):
    """Returns the parameters after two steps of each stage."""
    config = TrainingConfig(learning_rate=1e-3)
    for stage in made.stages:
        _, encode = encoder_of(made, stage)
        given = images
        if encode:
            given = jax.jit(encode)(model.params, {}, model.preprocess.normalize(images))
        optimizer = make_optimizer(config, made, params, stage)
        fixed = stage.fixed and jax.jit(stage.fixed, static_argnums=2)(
            model.params, untrained(made, stage, params), CLASSES
        )
        state = TrainState(params, optimizer.init(params), fixed)
        step = jax.jit(make_step(made, model, optimizer, stage))
        for _ in range(2):
            state, terms = step(model.params, state, given, batch())
            assert jnp.isfinite(terms["loss"])
        params = state.params
    return params


def has_field(method, field):
    return field in {one.name for one in dataclasses.fields(config_class(method))}


@pytest.mark.parametrize("method", [name for name in METHODS if has_field(name, "global_token")])
def test_second_class_token_score_needs_second_token(backbones, method):
    options = OVER_NANO.get(method, {}) | {"global_token": 1}
    assert make_method(method, backbones["tips-nano"], options)
    with pytest.raises(UserError, match="'global_token' is 1, but clip-nano has 1 global token,"):
        make_method(method, backbones["clip-nano"], options)


def test_readme_lists_every_combination():
    """Checks that each method has a row with its two parameter counts and a result for each backbone."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+?) \| (.+?) \| (.+?) \|$", README, re.MULTILINE)
    assert {name for name, *_ in rows} == {*METHODS}
    for name, counts, *figures in rows:
        shown = [int(count.replace(",", "")) for count in re.findall(r"[\d,]+", counts)]
        options = {"method": name, "backbone": "clip-vit-l14-336"}
        counted = [count_parameters(**options, published=published) for published in (False, True)]
        assert shown == list(dict.fromkeys(counted))
        mean = r"0\.\d{3}( ± 0\.\d{3})?"
        assert all(re.fullmatch(f"{mean} / {mean}", figure) for figure in figures)


def test_included_files_are_small():
    files = [path for path in registry.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 14e6


@pytest.mark.parametrize("name", DEMOS)
def test_included_prompts_fit_their_methods(backbones, name):
    files = list((registry.ASSETS / name).glob("*_prompts.npz"))
    assert files
    for path in files:
        method = path.name.removesuffix("_prompts.npz")
        made = make_method(method, backbones[name], OVER_NANO.get(method))
        params, file = choose_params(made, backbones[name], None)
        assert count_learned(made, backbones[name]) == sum(x.size for x in jax.tree.leaves(params))
        assert file.description == f"prompts included with {name}"
