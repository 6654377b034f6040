"""Tests that each method runs over each family of backbones, or is rejected, as the table of methods says.

Pairs over TIPS and CLIP train and score over the demo backbones, in tests/experiment/test_combinations.py.
"""

import dataclasses
import functools
import importlib
import itertools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsad_jax.backbones import registry
from zsad_jax.backbones.base import NO_TEXT
from zsad_jax.backbones.load import FAMILIES
from zsad_jax.methods import METHODS, Batch, make_method
from zsad_jax.methods.base import encoder_of, untrained
from zsad_jax.train import TrainState, make_step
from zsad_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
TABLE = runpy.run_path(str(ROOT / "scripts/update_method_table.py"))
PAGE = TABLE["PAGE"].read_text(encoding="utf-8").partition(TABLE["BEGIN"])[2]
HEADER, _, *ROWS = (
    [cell.strip(" `") for cell in line.split("|")[1:-1]]
    for line in PAGE.partition(TABLE["END"])[0].splitlines()
)
STATED = {
    (name, family): cell
    for name, _, *cells in ROWS
    for family, cell in zip(HEADER[2:], cells, strict=True)
}
SIZE = 42  # pixels: three by three patches
SMALL = {
    "width": 32, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_dim": 64, "patch_size": 14, "grid": 3,
    "vocabulary": 64,
}  # fmt: skip
# A method with a temperature of its own would not train on sigmoids.
OPTIONS = {("anomalyclip", "siglip"): {"temperature": None}}


def tokenize(texts, *, starts, length):
    """Returns a token for each word, after `starts` start tokens and before an end token."""
    ids, paddings = np.zeros((len(texts), length), int), np.ones((len(texts), length), int)
    for row, padding, text in zip(ids, paddings, texts, strict=True):
        words = [2 + sum(map(ord, word)) % (SMALL["vocabulary"] - 2) for word in text.split()]
        tokens = [0] * starts + words + [1]
        row[: len(tokens)], padding[: len(tokens)] = tokens, 0
    return ids, paddings


@functools.cache
def load_tiny(family):
    """Returns the first release of a family as towers of two blocks with random values."""
    release = next(one for one in registry.RELEASES.values() if one.family == family)
    towers = {
        side: sizes and sizes | {key: SMALL[key] for key in sizes.keys() & SMALL}
        for side, sizes in (("vision", release.vision), ("text", release.text))
    }
    made = importlib.import_module(FAMILIES[family]).FAMILY.describe(release._replace(**towers))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), made.params)
    preprocess = dataclasses.replace(made.preprocess, image_size=SIZE)
    made = dataclasses.replace(made, params=params, preprocess=preprocess, temperature=0.1)
    if made.text is None:
        return made
    split = functools.partial(tokenize, starts=made.num_start_tokens, length=made.text_length)
    return dataclasses.replace(
        made,
        text=dataclasses.replace(made.text, tokenize=split),
        logit_bias=-1.0 if "logit_bias" in params["text"] else None,
    )


IMAGES = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
ENCODED = {}


def encode(family, method, stage=None):
    """Returns the features of four images, which methods share as in a run; the images if they change."""
    key, compute = encoder_of(method, stage)
    if compute is None:
        return IMAGES
    if (family, key) not in ENCODED:
        backbone = load_tiny(family)
        run = jax.jit(lambda frozen, x: compute(frozen, {}, backbone.preprocess.normalize(x)))
        ENCODED[family, key] = run(backbone.params, IMAGES)
    return ENCODED[family, key]


def train_one_step(method, backbone, params, features, batch):
    """Returns the parameters after a step of each stage, and the losses of the last one."""
    optimizer, losses = optax.adam(1e-3), {}
    for stage, inputs in zip(method.stages, features, strict=True):
        fixed = stage.fixed and stage.fixed(
            backbone.params, untrained(method, stage, params), batch.class_names
        )
        state = TrainState(params, optimizer.init(params), fixed)
        step = make_step(method, backbone, optimizer, stage)
        (params, *_), losses = step(backbone.params, state, inputs, batch)
    return params, losses


def test_page_has_every_pair():
    assert list(STATED) == list(itertools.product(METHODS, FAMILIES))


@pytest.mark.slow  # up to 10 s each
@pytest.mark.parametrize(
    ("name", "family"), [pair for pair in STATED if pair[1] not in ("tips", "clip")]
)
def test_pair_trains_and_scores_or_is_rejected_as_stated(largest_entries, name, family):
    backbone, stated = load_tiny(family), STATED[name, family]
    if not stated.startswith(TABLE["RUNS"]):
        assert stated == TABLE["IMPOSSIBLE"]
        with pytest.raises(UserError, match=f"has {NO_TEXT}, which the method {name} needs"):
            make_method(name, backbone)
        return
    method = make_method(name, backbone, OPTIONS.get((name, family)))
    assert method.name == name
    category = np.array([0, 1, 0, 1])
    masks = np.zeros((4, SIZE, SIZE), np.float32)
    masks[1, :20, :20] = masks[2, 10:, 30:] = 1
    yes, labels = np.ones(4, bool), masks.max(axis=(1, 2)).astype(int)
    batch = Batch(category, labels, masks, yes, yes, ("metal nut", "grid"), jax.random.key(1))
    # Of the spread of the towers' values; with the initial one, ViP2-CLIP hardly tells images apart. Those
    # without an axis are logarithms of temperatures.
    params = method.init(jax.random.key(0), backbone.params)
    params = jax.tree.map(lambda x: 10 * x if x.ndim else x, params)
    given = encode(family, method), [encode(family, method, stage) for stage in method.stages]

    @jax.jit
    def run(frozen, params, features, inputs, batch):
        start, losses, found = params, {}, []
        over = dataclasses.replace(backbone, params=frozen)
        if params:
            params, losses = train_one_step(method, over, params, inputs, batch)
        if not method.cacheable:
            features = method.features(frozen, params, backbone.preprocess.normalize(features))
        moved = jax.tree.map(jnp.subtract, params, start)
        # Of each category, the first image of the other one.
        references = jax.tree.map(lambda x: x[1::-1, None], features)
        for compared, skipped in ((None, "required"), (references, "unused")):
            if method.references == skipped or (method.min_images > 1 and compared is None):
                continue
            prototypes = method.prototypes(frozen, params, batch.class_names, compared)
            scores = method.score(frozen, params, prototypes, features, category)
            found.append((scores, method.anomaly_map(scores.patches, SIZE)))
        return params, moved, losses, found

    params, moved, losses, found = run(backbone.params, params, *given, batch)
    assert all(np.isfinite(value) for value in losses.values())
    # The first step of Adam moves an array by the learning rate wherever it has a gradient.
    assert not moved or min(largest_entries(name, moved).values()) > 1e-5
    if method.across:  # on the host
        prototypes = method.prototypes(backbone.params, params, batch.class_names)
        blocks = [(given[0], yes)]
        scores = method.across(backbone.params, params, prototypes, lambda: blocks, 0)
        found.append((scores, method.anomaly_map(scores.patches, SIZE)))
    low, high = method.map_range or (-np.inf, np.inf)
    lowest, highest = method.score_range or (-np.inf, np.inf)
    assert found
    for scores, maps in found:
        assert scores.image.keys() == {*method.image_scores} != set()
        for score in scores.image.values():
            assert score.shape == (4,)
            assert np.ptp(score) > 1e-6
            assert lowest <= score.min() <= score.max() <= highest
        assert maps.shape == (4, SIZE, SIZE)
        assert np.ptp(maps, axis=(1, 2)).min() > 1e-6
        assert np.ptp(maps, axis=0).max() > 1e-6
        assert low - 1e-4 <= maps.min() <= maps.max() <= high + 1e-4
