"""Tests of AnomalyCLIP against the published code on a tiny CLIP, and with published prompts."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones.tokenizers import CLIP_MERGES, CLIP_VOCABULARY, tokenize_bpe
from zsad_jax.methods import Batch
from zsad_jax.methods.anomalyclip import anomalyclip, import_params
from zsad_jax.methods.shared import prompt_files
from zsad_jax.methods.shared.prompt_files import read_state
from zsad_jax.utils.errors import UserError

FEATURES, MAPS = 1e-5, 1e-4  # tolerances; MAPS follows a softmax with a small temperature
LAYERS = (2, 4, 6, 8)
GOLDEN = {"vv_from": 12}  # the goldens' stream starts at block 4 of 8
RUNS = {
    "last_layer": GOLDEN,
    "all_layers": {**GOLDEN, "feature_layers": (6, 12, 18, 24)},
    "all_layers_fp16cast": {
        **GOLDEN,
        "feature_layers": (6, 12, 18, 24),
        "deep_prompts_float16": True,
    },
}
SHOWN = np.array([0, 3])  # images whose maps are stored

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "weights"
CRANE = sorted((SHARED / "crane").glob("*/epoch_5.pth"))


@pytest.fixture(scope="module")
def clip(load_golden_clip):
    return load_golden_clip("anomalyclip")


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("anomalyclip", "expected")


@pytest.fixture(scope="module")
def params(read_golden):
    return from_golden(read_golden("anomalyclip", "learnable"))


def from_golden(arrays, prefix=""):
    """Returns parameters, or their gradients, from the goldens' names."""
    state = {
        name.removeprefix(prefix).replace("/", "."): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return jax.tree.map(jnp.asarray, import_params(state))


@pytest.fixture(scope="module")
def all_features(clip, read_golden):
    """Returns the features of all four layers."""
    images = clip.preprocess.normalize(read_golden("anomalyclip", "inputs")["images_u8"])
    return jax.jit(anomalyclip(clip, RUNS["all_layers"]).features)(clip.params, {}, images)


@pytest.fixture(scope="module")
def features_of(all_features):
    """Returns the features of a run; runs with one layer use the last one."""
    last = all_features._replace(patches=all_features.patches[:, -1:])
    return lambda run: last if run == "last_layer" else all_features


@pytest.fixture(scope="module")
def batch(read_golden):
    inputs = read_golden("anomalyclip", "inputs")
    return Batch(
        category=jnp.zeros(4, int),
        labels=jnp.asarray(inputs["labels"]),
        masks=jnp.asarray(inputs["masks"], jnp.float32),
        has_mask=jnp.ones(4, bool),
        valid=jnp.ones(4, bool),
        class_names=("object",),
    )


@functools.cache
def training_step(backbone, run):
    """Returns the jitted loss with its gradient."""
    method = anomalyclip(backbone, RUNS[run])
    return jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))


@pytest.fixture(scope="module")
def prototypes(clip, params):
    """Returns the prototypes of two classes."""
    encode = jax.jit(anomalyclip(clip).prototypes, static_argnums=2)
    return encode(clip.params, params, ("plate", "mesh"))


def score_with(method, prototypes, features, **options):
    category = jnp.arange(len(features.global_tokens)) % 2
    return method.score({}, {}, prototypes, features, category, **options)


def test_features_match_golden(all_features, golden, assert_near):
    patches = all_features.patches.reshape(4, 4, 25, -1)
    for index, layer in enumerate(LAYERS):
        expected = golden[f"vision/patch_features/layer{layer}"][:, 1:]
        assert_near(patches[:, index], expected, FEATURES)
    tokens = all_features.global_tokens[:, 0]
    assert_near(tokens, golden["vision/cls_raw"], FEATURES)
    unit = tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    assert_near(unit, golden["vision/cls_normalised"], FEATURES)


def test_prompts_and_prototypes_match_golden(clip, prototypes, golden, assert_near):
    ids = golden["text/prompt_learner/token_ids"]
    words, paddings = clip.tokenize(["object.", "damaged object."])
    np.testing.assert_array_equal(np.delete(ids, np.arange(1, 13), axis=1), words[:, :65])
    np.testing.assert_array_equal((paddings == 0).sum(axis=1) + 12 - 1, ids.argmax(axis=1))
    assert prototypes.shape == (2, 2, 32)
    for pair in prototypes:  # object-agnostic: the same pair for every class
        assert_near(pair, golden["text/features_normalised"], FEATURES)


@pytest.mark.parametrize("run", ["last_layer", "all_layers"])
def test_scores_and_maps_match_golden(clip, prototypes, golden, features_of, assert_near, run):
    method = anomalyclip(clip, RUNS[run])
    extras = ("global_cosines", "global_probabilities", "patch_probabilities", "patch_cosines")
    scores = score_with(method, prototypes, features_of(run), extras=extras)
    assert set(scores.image) == {"global"}
    assert_near(scores.image["global"], golden["test/image_score"], MAPS)
    assert_near(scores.extras["global_probabilities"][:, 1], golden["test/image_score"], MAPS)
    assert_near(scores.extras["global_cosines"] / 0.07, golden["train/image_logits"], MAPS)
    layers = LAYERS if run == "all_layers" else LAYERS[-1:]
    cosines = scores.extras["patch_cosines"]
    for index, layer in enumerate(layers):
        expected = golden[f"all_layers/similarity/layer{layer}"]
        assert_near(
            scores.extras["patch_probabilities"][:, index].reshape(4, 25, 2), expected, MAPS
        )
        softmax = jax.nn.softmax(cosines[:, index].reshape(4, 25, 2) / 0.07)
        assert_near(softmax, expected, MAPS)
    maps = method.anomaly_map(scores.patches, 70)
    assert_near(maps[SHOWN], golden[f"{run}/anomaly_map_smoothed"], MAPS)
    raw = anomalyclip(clip, {**RUNS[run], "sigma": 0}).anomaly_map(scores.patches, 70)
    assert_near(raw[SHOWN], golden[f"{run}/anomaly_map_raw"], MAPS)
    assert method.map_range == (0.0, len(layers))
    assert maps.max() < len(layers)


@pytest.mark.parametrize("run", RUNS)
def test_first_losses_and_gradients_match_golden(
    clip, params, golden, features_of, batch, assert_near, run
):
    """Allows for the published code, which rounds every addend of the gradient for rounded deep prompts."""
    (_, terms), gradients = training_step(clip, run)(clip.params, params, features_of(run), batch)
    rounded = run == "all_layers_fp16cast"
    if not rounded:
        dice = golden[f"{run}/loss/BinaryDiceLoss_calls"].reshape(-1, 2).sum(axis=0)
        assert_near(terms["focal"], golden[f"{run}/loss/FocalLoss_calls"].sum(), FEATURES)
        assert_near(terms["dice_abnormal"], dice[0], FEATURES)
        assert_near(terms["dice_normal"], dice[1], FEATURES)
    expected = from_golden(golden, f"{run}/grad/")
    assert expected["deep"].shape == (3, 4, 48)
    for name, value in expected.items():
        tolerance = 5e-4 if rounded and name == "deep" else MAPS
        assert_near(gradients[name], value, tolerance)


@pytest.mark.parametrize("run", RUNS)
def test_four_training_steps_match_golden(
    clip, params, golden, read_golden, batch, train_as_configured, assert_near, run
):
    """Follows the published trajectory with the whole batch in every step."""
    images = read_golden("anomalyclip", "inputs")["images_u8"]
    steps = train_as_configured(anomalyclip(clip, RUNS[run]), clip, params, [(images, batch)] * 4)
    for number, (_, losses) in enumerate(steps):
        cross_entropy = golden[f"{run}/trajectory/image_loss"][number]
        assert_near(losses["cross_entropy"], cross_entropy, FEATURES)
        assert_near(
            losses["loss"], golden[f"{run}/trajectory/loss"][number] + cross_entropy, FEATURES
        )


def test_four_references_to_last_layer_equal_one_of_weight_four(
    clip, params, prototypes, features_of, batch, assert_near
):
    """Compares the four references of the published runs with the one of the authors' later code."""
    last = features_of("last_layer")
    four = last._replace(patches=jnp.repeat(last.patches, 4, axis=1))
    (_, terms), _ = training_step(clip, "all_layers")(clip.params, params, four, batch)
    (loss, of_one), _ = training_step(clip, "last_layer")(clip.params, params, last, batch)
    local = sum(value for name, value in terms.items() if name != "cross_entropy")
    assert_near(local + terms["cross_entropy"], loss, 1e-6)
    for name in ("focal", "dice_abnormal", "dice_normal"):
        assert_near(terms[name], 4 * of_one[name], 1e-6)
    method = anomalyclip(clip, GOLDEN)
    maps, of_one = (
        method.anomaly_map(score_with(method, prototypes, features).patches, 70)
        for features in (four, last)
    )
    assert_near(maps, 4 * of_one, 1e-6)


def test_ignores_invalid_rows_and_missing_masks(clip, params, features_of, batch, assert_near):
    step = training_step(clip, "all_layers")
    features = features_of("all_layers")

    def run(features=features, **changes):
        return step(clip.params, params, features, dataclasses.replace(batch, **changes))

    (of_all, _), _ = run()
    valid = jnp.arange(4) < 3
    (of_three, _), expected_gradients = run(valid=valid)
    (of_one, _), _ = run(valid=~valid)
    assert_near(3 * of_three + of_one, 4 * of_all, 1e-6)
    padded = jax.tree.map(lambda x: x.at[3:].set(0), features)
    (loss, _), gradients = run(padded, valid=valid, masks=batch.masks.at[3:].set(1))
    assert_near(loss, of_three, 1e-6)
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), gradients, expected_gradients)

    # Anomalous images without ground truth contribute to the cross-entropy only.
    assert 0 < batch.labels.sum() < 4
    (_, terms), _ = run(has_mask=jnp.zeros(4, bool))
    (_, of_normal), _ = run(valid=batch.labels == 0)
    for name in ("focal", "dice_abnormal", "dice_normal"):
        assert_near(terms[name], of_normal[name], 1e-6)
    assert abs(terms["cross_entropy"] - of_normal["cross_entropy"]) > 1e-3


def test_deep_prompts_can_be_disabled(clip, params, golden):
    shallow = {"normal", "abnormal"}
    for switches in ({"num_deep_prompts": 0}, {"deep_prompt_depth": 1}):
        method = anomalyclip(clip, switches)
        assert set(method.init(jax.random.key(0), clip.params)) == shallow
        assert method.unused_parameters == 0
    only = {name: params[name] for name in shallow}
    pair = jax.jit(lambda params: method.prototypes(clip.params, params, ("a",)))(only)[0]
    assert np.abs(pair - golden["text/features_normalised"]).max() > 1e-3


def test_float16_rounds_inexact_values(clip, params, prototypes):
    """Checks that nothing changes for values that float16 represents exactly, as in the goldens."""
    method = anomalyclip(clip, {"deep_prompts_float16": True})
    rounded = jax.jit(lambda params: method.prototypes(clip.params, params, ("plate", "mesh")))
    np.testing.assert_allclose(rounded(params), prototypes, atol=1e-6)
    odd = params | {"deep": params["deep"] + 1e-4}
    nearest = odd | {"deep": odd["deep"].astype(jnp.float16).astype(jnp.float32)}
    assert np.abs(odd["deep"] - nearest["deep"]).max() > 1e-7
    np.testing.assert_array_equal(rounded(odd), rounded(nearest))


def test_temperature_can_come_from_backbone(clip, prototypes, features_of):
    features = features_of("last_layer")
    warm = dataclasses.replace(clip, temperature=0.07)
    same = score_with(anomalyclip(warm, {"temperature": None}), prototypes, features)
    expected = score_with(anomalyclip(clip), prototypes, features)
    np.testing.assert_array_equal(same.patches, expected.patches)
    flat = score_with(anomalyclip(clip, {"temperature": 1e6}), prototypes, features)
    np.testing.assert_allclose(flat.image["global"], 0.5, atol=1e-5)


def test_scores_are_float32_for_any_tower_dtype(
    clip, params, prototypes, features_of, batch, assert_near
):
    features = features_of("last_layer")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
    method = anomalyclip(clip, GOLDEN)
    scores = score_with(method, prototypes, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
    assert_near(scores.patches, score_with(method, prototypes, features).patches, 0.02)
    losses = jax.eval_shape(method.loss, clip.params, params, half, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(losses)} == {jnp.dtype("float32")}


def test_init_is_seeded_and_has_the_configured_spread(clip):
    method = anomalyclip(clip, {"num_prompts": 64, "num_deep_prompts": 60, "init_std": 0.5})
    params, again = (method.init(jax.random.key(3), clip.params) for _ in range(2))
    assert {name: value.shape for name, value in params.items()} == {
        "normal": (64, 48),
        "abnormal": (64, 48),
        "deep": (3, 60, 48),
    }
    for name, value in params.items():
        np.testing.assert_array_equal(value, again[name])
        assert abs(value.std() - 0.5) < 0.05
    assert jnp.abs(params["normal"] - params["abnormal"]).max() > 0.1
    assert set(jax.tree.leaves(method.groups(params))) == {"prompts"}


def test_trains_seeds_under_vmap(clip, features_of, batch, assert_near):
    method = anomalyclip(clip, GOLDEN)
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.vmap(lambda key: method.init(key, clip.params))(keys)
    losses = jax.jit(jax.vmap(method.loss, in_axes=(None, 0, None, None)))
    features = features_of("last_layer")
    values, _ = losses(clip.params, params, features, batch)
    single = jax.tree.map(lambda x: x[1], params)
    (expected, _), _ = training_step(clip, "last_layer")(clip.params, single, features, batch)
    assert_near(values[1], expected, 1e-6)


def test_rejects_checkpoint_of_other_width(clip, params, tmp_path):
    wide = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=-1), params)
    prompt_files.save(tmp_path / "p.npz", wide)
    with pytest.raises(UserError, match=r"do not fit anomalyclip .* \(12, 96\)"):
        prompt_files.load(prompt_files.find(str(tmp_path / "p.npz")), anomalyclip(clip), clip)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"num_prompt": 4}, "'num_prompt'.*num_prompts"),
        ({"num_prompts": 0}, "'num_prompts' is 0. It must be between 1 and"),
        ({"num_prompts": 75}, "prompt of 80 tokens, 75 of them learned, is longer than the 77"),
        ({"num_deep_prompts": 13}, "'num_deep_prompts' is 13.* a prompt has 12. Use at most 12"),
        ({"deep_prompt_depth": 13}, "'deep_prompt_depth' is 13. It must be between 1 and 12"),
        ({"feature_layers": ()}, r"'feature_layers' is \(\). Expected at least one block"),
        ({"feature_layers": (0, 24)}, r"'feature_layers' is \(0, 24\).*between 1 and 24"),
        ({"feature_layers": 24}, "'feature_layers' is 24. Expected a tuple of integers"),
        ({"vv_from": 25}, "'vv_from' is 25. It must be between 1 and 24"),
        ({"global_token": 1}, "'global_token' is 1, but clip has 1 global token, counted from 0"),
        ({"lam": -1.0}, "'lam' is -1.0"),
        ({"sigma": -1}, "'sigma' is -1"),
        ({"temperature": 0.0}, "'temperature'"),
        ({"cls_norm": 0}, "'cls_norm' is 0. Expected True or False"),
        ({"normal_text": "a screw."}, "word 'screw' cannot be tokenized without the vocabulary"),
    ],
)
def test_rejects_invalid_options(clip, switches, message):
    def use():
        method = anomalyclip(clip, switches)
        params = method.init(jax.random.key(0), clip.params)
        method.prototypes(clip.params, params, ("a",))

    with pytest.raises(UserError, match=message):
        use()


def test_rejects_unknown_extras(clip, prototypes, features_of):
    method, features = anomalyclip(clip), features_of("last_layer")
    with pytest.raises(UserError, match=r"Unknown extra 'atention'. Available: global"):
        score_with(method, prototypes, features, extras=("atention",))
    assert score_with(method, prototypes, features).extras == {}


@pytest.mark.skipif(not CRANE, reason="the published prompts are not available")
def test_loads_published_prompts_exactly():
    assert len(CRANE) == 4
    for path in CRANE:
        pickled, plain = (import_params(read_state(p)) for p in (path, path.with_suffix(".npz")))
        with np.load(path.with_suffix(".npz")) as arrays:
            expected = {
                "normal": arrays["prompt_learner.ctx_pos"][0, 0],
                "abnormal": arrays["prompt_learner.ctx_neg"][0, 0],
                "deep": np.stack(
                    [arrays[f"prompt_learner.compound_prompts_text.{i}"] for i in range(8)]
                ),
            }
        assert expected["deep"].shape == (8, 4, 768)
        for params in (pickled, plain):
            assert params.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(params[name], value)


@pytest.mark.skipif(not CRANE, reason="the published prompts are not available")
def test_published_token_rows_match_tokenizer():
    """Checks the ids of the words after 12 placeholders; an id has the same embedding in every row."""
    rows = {}
    for path in CRANE:
        state = read_state(path)
        state = {name.removeprefix("prompt_learner."): array for name, array in state.items()}
        for side, words in (("pos", "object."), ("neg", "damaged object.")):
            ids, paddings = tokenize_bpe(
                [" ".join(["X"] * 12) + " " + words],
                path=SHARED / "tokenizers" / CLIP_MERGES,
                length=77,
                vocabulary=CLIP_VOCABULARY,
            )
            np.testing.assert_array_equal(state[f"tokenized_prompts_{side}"].reshape(1, 77), ids)
            bare, _ = tokenize_bpe([words], path=None, length=77, vocabulary=CLIP_VOCABULARY)
            np.testing.assert_array_equal(np.delete(ids, np.arange(1, 13), axis=1), bare[:, :65])
            assert (paddings == 0).sum() == (16 if side == "pos" else 17)
            prefix, suffix = (
                state[f"token_{part}_{side}"].reshape(-1, 768) for part in ("prefix", "suffix")
            )
            fixed = np.concatenate([prefix, suffix])
            for token, row in zip(bare[0], fixed, strict=False):
                np.testing.assert_array_equal(rows.setdefault(int(token), row), row)
    assert set(rows) == {49406, 13568, 14115, 269, 49407, 0}
    assert len({row.tobytes() for row in rows.values()}) == len(rows)
