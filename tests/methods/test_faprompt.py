"""Tests of FAPrompt against the published code on a tiny CLIP, and of its base against AnomalyCLIP."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones.base import VisionFeatures
from zsad_jax.methods import Batch
from zsad_jax.methods.faprompt import IMAGE_SCORES, faprompt
from zsad_jax.methods.shared import prompt_files
from zsad_jax.utils.errors import UserError

FEATURES, SCORES = 1e-5, 1e-4  # tolerances; SCORES follows a softmax with a small temperature
GOLDEN = {"vv_from": 12}  # the goldens' value-value stream starts at block 4 of 8
RUNS = {"first_tokens": GOLDEN, "topk_tokens": {**GOLDEN, "dap_select": "topk"}}
BASE = {**GOLDEN, "compound": False, "prior": False}
LOCAL = ("focal", "dice_abnormal", "dice_normal")
EXTRAS = ("stage1_probabilities", "image_logits", "prompt_cosines", "text_features")
PRIOR_EXTRAS = ("stage2_probabilities", "prior")
SHOWN = np.array([0, 3])  # images whose maps are stored


@pytest.fixture(scope="module")
def clip(load_golden_clip):
    return load_golden_clip("faprompt")


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("faprompt", "expected")


def state_of(arrays, prefix=""):
    """Returns the authors' state dict from the goldens' names."""
    return {
        name.removeprefix(prefix).replace("/", "."): array
        for name, array in arrays.items()
        if name.startswith(f"{prefix}prompt_learner/")
    }


def from_golden(method, arrays, prefix=""):
    """Returns parameters, or their gradients."""
    return jax.tree.map(jnp.asarray, method.import_params(state_of(arrays, prefix)))


@pytest.fixture(scope="module")
def params(clip, read_golden):
    return from_golden(faprompt(clip), read_golden("faprompt", "learnable"))


def read_batch(inputs):
    return Batch(
        category=jnp.zeros(4, int),
        labels=jnp.asarray(inputs["labels"]),
        masks=jnp.asarray(inputs["masks"], jnp.float32),
        has_mask=jnp.ones(4, bool),
        valid=jnp.ones(4, bool),
        class_names=("plate",),
    )


@pytest.fixture(scope="module")
def features(clip, read_golden):
    images = clip.preprocess.normalize(read_golden("faprompt", "inputs")["images_u8"])
    return jax.jit(faprompt(clip, GOLDEN).features)(clip.params, {}, images)


@pytest.fixture(scope="module")
def batch(read_golden):
    return read_batch(read_golden("faprompt", "inputs"))


@pytest.fixture(scope="module")
def trivial_text(clip):
    """Returns the backbone with a trivial text tower: a mean over tokens and deep prompts."""

    def encode_prompts(frozen, embeddings, paddings, deep_prompts):
        return embeddings.mean(axis=1) + deep_prompts.mean(axis=(0, 1, 2))

    text = dataclasses.replace(clip.text, encode_prompts=encode_prompts)
    return dataclasses.replace(clip, text=text)


@functools.cache
def training_step(backbone, run):
    """Returns the jitted loss with its gradient."""
    method = faprompt(backbone, RUNS[run])
    return jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def score_all(method, backbone, params, features, extras=()):
    @jax.jit
    def run(frozen, params, features):
        prototypes = method.prototypes(frozen, params, ("plate", "mesh"))
        category = jnp.arange(len(features.global_tokens)) % 2
        scores = method.score(frozen, params, prototypes, features, category, extras=extras)
        return prototypes, scores, method.anomaly_map(scores.patches, 70)

    return run(backbone.params, params, features)


@pytest.fixture(scope="module")
def scored(clip, params, features):
    """Returns prototypes, scores and maps of a run."""

    @functools.cache
    def run(name):
        method = faprompt(clip, RUNS[name])
        return score_all(method, clip, params, features, EXTRAS + PRIOR_EXTRAS)

    return run


def test_features_match_golden(features, golden, assert_near):
    patches = features.patches.reshape(4, 25, -1)
    assert_near(patches, golden["vision/patch_features"][:, 1:], FEATURES)
    assert_near(features.global_tokens[:, 0], golden["vision/cls_raw"], FEATURES)


def test_prompts_match_golden(clip, golden):
    """Checks for the start token, five learned tokens (seven in anomalous prompts), then the words."""
    words, paddings = clip.tokenize(["object.", "damaged object."])
    for row, (state, learned_tokens) in enumerate((("pos", 5), ("neg", 7))):
        ids = golden[f"text/{state}/token_ids"][0]
        kept = np.delete(ids, np.arange(1, 1 + learned_tokens))
        np.testing.assert_array_equal(kept, words[row, : len(kept)])
        assert (paddings[row] == 0).sum() + learned_tokens - 1 == ids.argmax()


def test_first_stage_matches_golden(scored, golden, assert_near):
    prototypes, scores, _ = scored("first_tokens")
    for category in range(2):  # object-agnostic: the same prompts for every class
        assert_near(prototypes.normal[category], golden["stage1/text_pos"][0], FEATURES)
        assert_near(prototypes.anomalous[category], golden["stage1/text_neg_all"], FEATURES)
    found = scores.extras["stage1_probabilities"]
    assert_near(found.reshape(4, 25, 2), golden["stage1/similarity"], SCORES)
    assert_near(found[..., 1].max(axis=(1, 2)), golden["stage1/max_score"], SCORES)
    best = jax.lax.top_k(found[..., 1].reshape(4, 25), 10)
    assert_near(best[0], golden["stage1/topk_value"], SCORES)
    np.testing.assert_array_equal(best[1], golden["stage1/topk_index"])


@pytest.mark.parametrize("run", RUNS)
def test_scores_and_maps_match_golden(scored, golden, assert_near, run):
    _, scores, maps = scored(run)
    extras = scores.extras
    assert_near(extras["prior"], golden[f"{run}/bias"], FEATURES)
    assert_near(extras["text_features"], golden[f"{run}/text_features_normalised"], FEATURES)
    found = extras["stage2_probabilities"]
    assert_near(found.reshape(4, 25, 2), golden[f"{run}/similarity"], SCORES)
    assert_near(found[..., 1].max(axis=(1, 2)), golden[f"{run}/max_score"], SCORES)
    assert_near(extras["image_logits"], golden[f"{run}/train_image_logits"], SCORES)
    assert set(scores.image) == set(IMAGE_SCORES)
    assert_near(scores.image["global"], golden[f"{run}/test_image_prob"], SCORES)
    assert_near(scores.image["combined"], golden[f"{run}/test_image_score"], SCORES)
    assert_near(maps[SHOWN], golden[f"{run}/anomaly_map_smoothed"], SCORES)


def test_cosines_of_single_prompts(trivial_text, params, features, assert_near):
    """Checks that each anomalous prompt is scored by its own feature with the image's prior."""
    method = faprompt(trivial_text, RUNS["topk_tokens"])
    _, scores, _ = score_all(method, trivial_text, params, features, ("prompt_cosines", "prior"))
    found = scores.extras["prompt_cosines"]
    assert found.shape == (4, 5, 5, 10)
    moved = params | {"abnormal": params["abnormal"] + scores.extras["prior"][2]}
    text = unit(method.prototypes(trivial_text.params, moved, ("a",)).anomalous[0])
    assert_near(found[2], unit(features.patches[2, 0]) @ text.T, FEATURES)


@pytest.mark.parametrize("run", RUNS)
def test_first_losses_and_gradients_match_golden(
    clip, params, features, batch, golden, assert_near, run
):
    (loss, terms), gradients = training_step(clip, run)(clip.params, params, features, batch)
    assert_near(loss, golden[f"{run}/loss/total"], FEATURES)
    focal = [terms["focal1"], terms["focal2"]]
    assert_near(focal, golden[f"{run}/loss/FocalLoss_calls"], FEATURES)
    dice = [terms[f"dice_{state}{s}"] for s in (1, 2) for state in ("abnormal", "normal")]
    assert_near(dice, golden[f"{run}/loss/BinaryDiceLoss_calls"], FEATURES)
    expected = golden[f"{run}/loss/BinaryFocalLoss_calls"][0]
    assert_near(terms["image_focal"], expected, FEATURES)
    expected = from_golden(faprompt(clip), golden, f"{run}/grad/")
    assert len(jax.tree.leaves(expected)) == 7
    jax.tree.map(lambda a, b: assert_near(a, b, SCORES), gradients, expected)


@pytest.mark.parametrize("run", RUNS)
def test_four_training_steps_match_golden(
    clip, params, golden, read_golden, batch, train_as_configured, assert_near, run
):
    """Follows the published trajectory with the whole batch in every step."""
    names = {
        "image_loss": "cross_entropy",
        "image_loss2": "image_focal",
        "loss_ab": "orthogonality",
        "loss_bias": "prior",
    }
    images = read_golden("faprompt", "inputs")["images_u8"]
    steps = train_as_configured(faprompt(clip, RUNS[run]), clip, params, [(images, batch)] * 4)
    for number, (_, losses) in enumerate(steps):
        local = [sum(losses[f"{name}{stage}"] for name in LOCAL) for stage in (1, 2)]
        expected = golden[f"{run}/trajectory/loss"][number]
        assert_near(local[0] + 0.5 * local[1], expected, FEATURES)
        for theirs, ours in names.items():
            assert_near(losses[ours], golden[f"{run}/trajectory/{theirs}"][number], FEATURES)


def test_without_both_modules_equals_anomalyclip(load_golden_clip, read_golden, assert_near):
    """Compares with the goldens of AnomalyCLIP; the joint space has another width than the tokens here."""
    clip = load_golden_clip("anomalyclip")
    golden = read_golden("anomalyclip", "expected")
    inputs = read_golden("anomalyclip", "inputs")
    weights = {"lam": 4.0, "image_focal_weight": 0.0, "sigma": 4.0}
    method = faprompt(clip, {**BASE, **weights})
    params = from_golden(method, read_golden("anomalyclip", "learnable"))
    shapes = jax.eval_shape(method.init, jax.random.key(0), clip.params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    features = VisionFeatures(
        jnp.asarray(golden["vision/cls_raw"])[:, None],
        jnp.asarray(golden["vision/patch_features/layer8"])[:, 1:].reshape(4, 1, 5, 5, 32),
    )
    prototypes, scores, maps = score_all(method, clip, params, features, EXTRAS)
    raw = golden["text/prompt_learner/features_raw"]
    assert_near(prototypes.normal[0], raw[0], FEATURES)
    assert_near(prototypes.anomalous[0], raw[1:], FEATURES)
    assert_near(scores.extras["image_logits"], golden["train/image_logits"], SCORES)
    assert_near(scores.image["global"], golden["test/image_score"], SCORES)
    expected = golden["all_layers/similarity/layer8"]
    assert_near(scores.patches.reshape(4, 25), expected[..., 1], SCORES)
    assert_near(scores.image["patch"], expected[..., 1].max(axis=1), SCORES)
    assert_near(maps[SHOWN], golden["last_layer/anomaly_map_smoothed"], SCORES)
    step = jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))
    (loss, terms), gradients = step(clip.params, params, features, read_batch(inputs))
    assert set(terms) == {*(f"{name}1" for name in LOCAL), "cross_entropy", "image_focal"}
    expected = golden["last_layer/trajectory/loss"][0] + golden["last_layer/trajectory/image_loss"]
    assert_near(loss, expected[0], FEATURES)
    expected = from_golden(method, golden, "last_layer/grad/")
    jax.tree.map(lambda a, b: assert_near(a, b, SCORES), gradients, expected)


def test_prior_alone_shifts_all_anomalous_tokens(trivial_text, features, batch, assert_near):
    method = faprompt(trivial_text, {**GOLDEN, "compound": False, "num_separate_prompts": 6})
    params = method.init(jax.random.key(0), trivial_text.params)
    assert params["abnormal"].shape == (1, 6, 48)
    extras = ("prior", "text_features")
    _, scores, _ = score_all(method, trivial_text, params, features, extras)
    assert jnp.abs(scores.extras["prior"]).max() > 1e-3
    moved = params | {"abnormal": params["abnormal"] + scores.extras["prior"][1]}
    text = method.prototypes(trivial_text.params, moved, ("a",))
    assert_near(scores.extras["text_features"][1, 0], unit(text.normal[0]), FEATURES)
    assert_near(scores.extras["text_features"][1, 1], unit(text.anomalous[0, 0]), FEATURES)
    _, terms = jax.eval_shape(method.loss, trivial_text.params, params, features, batch)
    assert "orthogonality" not in terms
    assert {"focal2", "prior"} <= set(terms)


def test_compound_prompts_alone_equal_first_stage(trivial_text, params, features, assert_near):
    method = faprompt(trivial_text, {**GOLDEN, "prior": False})
    only = {name: params[name] for name in ("normal", "abnormal", "deep")}
    assert set(jax.eval_shape(method.init, jax.random.key(0), trivial_text.params)) == set(only)
    _, scores, _ = score_all(method, trivial_text, only, features)
    both = score_all(
        faprompt(trivial_text, GOLDEN), trivial_text, params, features, ("stage1_probabilities",)
    )[1]
    first = both.extras["stage1_probabilities"][..., 1]
    assert_near(scores.patches[..., 0], first, FEATURES)
    assert_near(scores.image["patch"], first.max(axis=(1, 2)), FEATURES)
    assert_near(scores.image["combined"], (scores.image["global"] + first.max((1, 2))) / 2, 1e-6)
    assert jnp.abs(both.patches - scores.patches).max() > 1e-3


def test_each_loss_term_has_a_weight(trivial_text, params, features, batch, assert_near):
    weights = {
        "cross_entropy": 5.0,
        "image_focal": 7.0,
        "orthogonality": 0.0,
        "prior": 11.0,
    }
    switches = {f"{name}_weight": weight for name, weight in weights.items()}
    switches |= {"lam": 2.0, "lam_stage2": 3.0}
    loss = jax.jit(faprompt(trivial_text, {**GOLDEN, **switches}).loss)
    total, terms = loss(trivial_text.params, params, features, batch)
    assert all(float(term) != 0 for term in terms.values())
    first, second = (sum(terms[f"{name}{stage}"] for name in LOCAL) for stage in (1, 2))
    expected = sum(weight * terms[name] for name, weight in weights.items())
    expected += 2.0 * first + 3.0 * second
    assert_near(total, expected, 1e-6)


def test_prior_loss_sums_over_normal_images(clip, params, features, batch, scored, assert_near):
    squares = jnp.square(scored("first_tokens")[1].extras["prior"]).mean(axis=1)
    step = training_step(clip, "first_tokens")
    for labels, valid, counted in (
        ([0, 0, 0, 1], [1, 1, 1, 1], 3),
        ([0, 0, 0, 1], [1, 1, 0, 1], 2),
        ([1, 1, 1, 1], [1, 1, 1, 1], 0),
    ):
        changed = dataclasses.replace(
            batch, labels=jnp.asarray(labels), valid=jnp.asarray(valid, bool)
        )
        (_, terms), _ = step(clip.params, params, features, changed)
        assert_near(terms["prior"], squares[:counted].sum(), FEATURES, scale=squares.sum())


def test_image_score_is_mean_of_both_maxima(trivial_text, params, features, assert_near):
    extras = ("stage1_probabilities", "stage2_probabilities")
    for switches, weights in (({}, (2 / 3, 1 / 3)), ({"max_scores": "mean"}, (0.5, 0.5))):
        method = faprompt(trivial_text, {**GOLDEN, **switches})
        _, scores, _ = score_all(method, trivial_text, params, features, extras)
        first, second = (scores.extras[name][..., 1].max(axis=(1, 2)) for name in extras)
        assert jnp.abs(first - second).max() > 1e-3
        assert_near(scores.image["patch"], weights[0] * first + weights[1] * second, 1e-6)


@pytest.mark.parametrize("run", RUNS)
def test_ignores_invalid_rows(clip, params, features, batch, assert_near, run):
    """Compares two images and two invalid rows with the two images given twice."""
    step = training_step(clip, run)
    anomalous = jnp.array([1, 3, 1, 3])  # of normal images, the prior loss would be a sum
    twice, twice_batch = jax.tree.map(lambda x: x[anomalous], (features, batch))
    assert twice_batch.labels.all()
    (expected, expected_terms), expected_gradients = step(clip.params, params, twice, twice_batch)
    padded = jax.tree.map(lambda x: x.at[2:].set(0), twice)
    for label in (0, 1):
        changed = dataclasses.replace(
            twice_batch,
            valid=jnp.arange(4) < 2,
            labels=twice_batch.labels.at[2:].set(label),
            masks=twice_batch.masks.at[2:].set(label),
        )
        (loss, terms), gradients = step(clip.params, params, padded, changed)
        assert_near(loss, expected, 1e-6)
        jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), terms, expected_terms)
        jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), gradients, expected_gradients)


def test_text_is_encoded_once_at_minimum_length(trivial_text, params, features):
    """Checks for nine rows of the normal prompt, and twelve of the anomalous ones, which need the images."""
    calls = []

    def encode_prompts(frozen, embeddings, paddings, deep_prompts):
        calls.append(embeddings.shape)
        return trivial_text.encode_prompts(frozen, embeddings, paddings, deep_prompts)

    text = dataclasses.replace(trivial_text.text, encode_prompts=encode_prompts)
    method = faprompt(dataclasses.replace(trivial_text, text=text), GOLDEN)
    prototypes = method.prototypes(trivial_text.params, params, ("plate", "mesh"))
    assert calls == [(1, 9, 48), (10, 12, 48)]
    calls.clear()
    jax.eval_shape(
        method.score, trivial_text.params, params, prototypes, features, jnp.zeros(4, int)
    )
    assert calls == [(10, 12, 48)]


@pytest.mark.parametrize("lengths", [(2, 1), (5, 2), (10, 4)])
@pytest.mark.parametrize("count", [1, 20])
def test_accepts_ablation_grids_of_the_paper(clip, features, batch, lengths, count):
    switches = {
        **GOLDEN,
        "num_prompts": lengths[0],
        "num_own_prompts": lengths[1],
        "num_abnormal": count,
        "num_selected": 21 - count,
    }
    method = faprompt(clip, switches)
    params = jax.eval_shape(method.init, jax.random.key(0), clip.params)
    assert params["normal"].shape == (lengths[0], 48)
    assert params["abnormal"].shape == (count, lengths[1], 48)
    inputs = (21 - count) * 48
    assert params["prior"]["first"]["kernel"].shape == (inputs, inputs // 16)
    loss, terms = jax.eval_shape(method.loss, clip.params, params, features, batch)
    assert loss.shape == ()
    assert len(terms) == 10


def test_single_prompt_has_no_pair_loss(trivial_text, features, batch):
    method = faprompt(trivial_text, {**GOLDEN, "num_abnormal": 1, "prior": False})
    params = method.init(jax.random.key(0), trivial_text.params)
    _, terms = jax.jit(method.loss)(trivial_text.params, params, features, batch)
    assert terms["orthogonality"] == 0


@pytest.mark.parametrize("select", ["first", "topk"])
def test_image_with_fewer_patches_than_prior(trivial_text, params, features, assert_near, select):
    """Checks that network inputs without a patch are zero, so that their kernel rows have no effect."""
    switches = {**GOLDEN, "dap_select": select}
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(30 * 48, 90)) / 40, jnp.float32)
    second = jnp.asarray(rng.normal(size=(90, 48)) / 40, jnp.float32)

    def prior(count):
        network = {
            "first": {"kernel": kernel[: count * 48], "bias": jnp.zeros(90)},
            "second": {"kernel": second, "bias": jnp.zeros(48)},
        }
        method = faprompt(trivial_text, {**switches, "num_selected": count})
        changed = params | {"prior": network}
        return score_all(method, trivial_text, changed, features, ("prior",))[1].extras["prior"]

    assert jnp.abs(prior(25)).max() > 0.01
    assert_near(prior(30), prior(25), 1e-6)


def test_equal_patches_are_selected_in_raster_order(trivial_text, params, features):
    """Makes patches equally anomalous; selecting the first ones makes results reproducible."""
    flat = features._replace(
        patches=jnp.broadcast_to(features.patches[:, :, :1, :1], (4, 1, 5, 5, 48))
    )
    first, best = (
        score_all(faprompt(trivial_text, switches), trivial_text, params, flat, ("prior",))[
            1
        ].extras["prior"]
        for switches in RUNS.values()
    )
    np.testing.assert_array_equal(first, best)


def test_deep_prompts_can_be_disabled(clip, params, golden):
    shallow = {name: value for name, value in params.items() if name != "deep"}
    for switches in ({"num_deep_prompts": 0}, {"deep_prompt_depth": 1, "num_deep_prompts": 9}):
        method = faprompt(clip, switches)
        shapes = jax.eval_shape(method.init, jax.random.key(0), clip.params)
        assert set(shapes) == set(shallow)
        assert method.unused_parameters == 0
    found = jax.jit(method.prototypes, static_argnums=2)(clip.params, shallow, ("a",))
    assert np.abs(found.normal - golden["stage1/text_pos"]).max() > 1e-3


def test_float16_rounds_inexact_values(trivial_text, params):
    odd = params | {"deep": params["deep"] + 1e-4}
    nearest = odd | {"deep": jnp.asarray(np.asarray(odd["deep"]).astype(np.float16), jnp.float32)}
    plain, rounded = (faprompt(trivial_text, {"deep_prompts_float16": on}) for on in (False, True))

    def encode(method, params):
        return method.prototypes(trivial_text.params, params, ("a",)).anomalous

    np.testing.assert_array_equal(encode(rounded, odd), encode(plain, nearest))
    assert np.abs(encode(plain, odd) - encode(rounded, odd)).max() > 0


def test_scores_are_float32_for_any_tower_dtype(trivial_text, params, features, batch, assert_near):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
    method = faprompt(trivial_text, GOLDEN)
    scores, expected = (score_all(method, trivial_text, params, x)[1] for x in (half, features))
    assert {leaf.dtype for leaf in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
    assert_near(scores.patches, expected.patches, 0.02)
    loss, terms = jax.jit(method.loss)(trivial_text.params, params, half, batch)
    assert {leaf.dtype for leaf in (loss, *terms.values())} == {jnp.dtype("float32")}
    assert jnp.isfinite(loss)


def test_init_is_seeded_and_has_the_configured_spread(clip):
    method = faprompt(clip, {"num_prompts": 64, "num_deep_prompts": 60, "init_std": 0.5})
    params, again = (method.init(jax.random.key(3), clip.params) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert params["deep"].shape == (3, 60, 48)
    for name in ("normal", "abnormal", "deep"):
        assert abs(params[name].std() - 0.5) < 0.05
    for layer in params["prior"].values():
        bound = layer["kernel"].shape[0] ** -0.5
        assert 0.9 * bound < jnp.abs(layer["kernel"]).max() <= bound
    assert set(jax.tree.leaves(method.groups(params))) == {"prompts"}


def test_rejects_checkpoint_with_more_deep_prompts(clip, read_golden, tmp_path):
    state = state_of(read_golden("faprompt", "learnable"))
    np.savez(tmp_path / "p.npz", **state)
    with pytest.raises(UserError, match="do not fit faprompt"):
        prompt_files.load(
            prompt_files.find(str(tmp_path / "p.npz")),
            faprompt(clip, {"deep_prompt_depth": 5}),
            clip,
        )


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"num_abnormals": 4}, "'num_abnormals'.*num_abnormal"),
        ({"num_abnormal": 0}, "'num_abnormal' is 0. It must be between 1 and"),
        ({"num_selected": 0}, "'num_selected' is 0. It must be between 1 and"),
        ({"dap_select": "last"}, "'dap_select' is 'last'. Expected 'first' or 'topk'"),
        ({"max_scores": "1:1"}, "'max_scores' is '1:1'. Expected '2:1' or 'mean'"),
        ({"prior_weight": -1.0}, "'prior_weight' is -1.0. It must be between 0 and"),
        ({"deep_prompt_depth": 13}, "'deep_prompt_depth' is 13. It must be between 1 and 12"),
        ({"vv_from": 25}, "'vv_from' is 25. It must be between 1 and 24"),
        ({"num_prompts": 74}, "prompt of 78 tokens, 74 of them learned, is longer than the 77"),
        ({"num_deep_prompts": 8}, "'num_deep_prompts' is 8.* a prompt has 7"),
        ({"num_deep_prompts": 8, "num_prompts": 4}, "has 6. Use at most 6"),
        ({"global_token": 1}, "'global_token' is 1, but clip has 1 global token"),
    ],
)
def test_rejects_mistakes(clip, switches, message):
    def use():
        method = faprompt(clip, switches)
        params = jax.eval_shape(method.init, jax.random.key(0), clip.params)
        jax.eval_shape(lambda p: method.prototypes(clip.params, p, ("a",)), params)

    with pytest.raises(UserError, match=message):
        use()


def test_rejects_unknown_extras(clip, params, features):
    method = faprompt(clip, {"prior": False})
    with pytest.raises(UserError, match=r"Unknown extra 'prior'. Available: stage1"):
        score_all(method, clip, params, features, extras=("prior",))
