"""Tests of TIPSomaly against the published code on a tiny backbone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.methods import Batch, image_score, make_method
from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES
from zsad_jax.methods.tipsomaly import _warn_of_deep_prompts, tipsomaly
from zsad_jax.utils.errors import UserError

FEATURE_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-4  # follows a softmax with a small temperature

RUNS = {
    "decoupled_agg": {},
    "decoupled_noagg": {"local_to_global": False},
    "learned_only_agg": {"decoupled": False},
    "fixed_only_agg": {"learning": "none"},
    "medical_agg": {"prompt_family": "medical"},
}
TRAINING_RUNS = {
    "seg": {},
    "seg_lr01": {},
    "both_l1": {"cross_entropy_weight": 1.0, "l1_weight": 0.01},
    "cls": {"lam": 0.0, "cross_entropy_weight": 1.0},
    "seg_sumate": {"learning": "sumate"},
    "seg_entire": {"learning": "entire_learnable"},
}
CLASSES = ("round_plate", "fine-mesh")


def assert_close(actual, expected, tolerance):
    """Checks for a difference within `tolerance` of the largest expected value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def prompts_of(golden, learning="concat"):
    if learning == "none":
        return {}
    normal, anomalous = golden["learnable_prompts"]
    return {"normal": jnp.asarray(normal), "abnormal": jnp.asarray(anomalous)}


def encode_classes(method, backbone, params):
    return jax.jit(method.prototypes, static_argnums=2)(backbone.params, params, CLASSES)


def run_e2e(backbone, golden, switches, features):
    """Returns prototypes, scores and maps of all twelve images."""
    method = tipsomaly(backbone, switches)
    params = prompts_of(golden, switches.get("learning", "concat"))

    @jax.jit
    def run(frozen, params, features, category):
        prototypes = method.prototypes(frozen, params, CLASSES)
        extras = ("global_probabilities", "patch_probabilities")
        scores = method.score(frozen, params, prototypes, features, category, extras=extras)
        return prototypes, scores, method.anomaly_map(scores.patches, 70)

    return run(backbone.params, params, features, golden["class_ids"])


@pytest.fixture(scope="module")
def features(backbone, e2e_golden):
    encode = jax.jit(tipsomaly(backbone).features)
    return encode(backbone.params, {}, e2e_golden["images"])


@pytest.fixture(scope="module")
def default_run(backbone, e2e_golden, features):
    return run_e2e(backbone, e2e_golden, {}, features)


def check_e2e(golden, run, scores, maps):
    for i in (1, 2):
        expected = golden[f"{run}/global{i}_probs"]
        assert_close(scores.extras["global_probabilities"][:, i - 1], expected, SCORE_TOLERANCE)
    patches = scores.extras["patch_probabilities"].reshape(12, 25, 2)
    assert_close(patches, golden[f"{run}/patch_probs"], SCORE_TOLERANCE)
    image = np.stack([scores.image["first"], scores.image["second"]], axis=1)
    for c in range(2):
        expected = golden[f"{run}/image_scores_class{c}"]
        assert_close(image[golden["class_ids"] == c], expected, SCORE_TOLERANCE)
    expected = golden[f"{run}/map_sigma4"]
    assert_close(
        maps if len(expected) == 12 else maps[np.array([1, 10])], expected, SCORE_TOLERANCE
    )


@pytest.mark.parametrize("run", RUNS)
def test_scores_and_maps_match_golden(backbone, e2e_golden, features, run):
    _, scores, maps = run_e2e(backbone, e2e_golden, RUNS[run], features)
    check_e2e(e2e_golden, run, scores, maps)


def test_pytorch_lineage_matches_golden(pytorch_backbone, e2e_golden, train_golden):
    features = jax.jit(tipsomaly(pytorch_backbone).features)(
        pytorch_backbone.params, {}, e2e_golden["images"]
    )
    _, scores, maps = run_e2e(pytorch_backbone, e2e_golden, {}, features)
    check_e2e(e2e_golden, "stock_torch_decoupled_agg", scores, maps)
    params = dict(zip(("normal", "abnormal"), train_golden["seg/init"], strict=True))
    inputs = next(training_batches(e2e_golden, features))
    _, gradients = training_step(pytorch_backbone, "seg")(pytorch_backbone.params, params, *inputs)
    stacked = np.stack([gradients["normal"], gradients["abnormal"]])
    assert_close(stacked, train_golden["seg/grads_stock_torch"][0], SCORE_TOLERANCE)


def test_features_and_prototypes_match_golden(default_run, features, e2e_golden):
    prototypes = default_run[0]
    unit = features.global_tokens / jnp.linalg.norm(features.global_tokens, axis=-1, keepdims=True)
    assert_close(unit[:, 0], e2e_golden["decoupled_agg/vis_cls1"], FEATURE_TOLERANCE)
    assert_close(unit[:, 1], e2e_golden["decoupled_agg/vis_cls2"], FEATURE_TOLERANCE)
    patches = features.patches.reshape(12, 25, -1)
    unit = patches / jnp.linalg.norm(patches, axis=-1, keepdims=True)
    assert_close(unit, e2e_golden["decoupled_agg/vis_patch"], FEATURE_TOLERANCE)
    expected = e2e_golden["decoupled_agg/cls_text_per_image"]
    assert_close(prototypes.image[e2e_golden["class_ids"]], expected, FEATURE_TOLERANCE)
    assert_close(prototypes.patches[:1], e2e_golden["decoupled_agg/seg_text"], FEATURE_TOLERANCE)


def test_unsmoothed_map_matches_golden(backbone, default_run, e2e_golden):
    scores = default_run[1]
    maps = tipsomaly(backbone, {"sigma": 0.0}).anomaly_map(scores.patches, (70, 70))
    expected = e2e_golden["decoupled_agg/map_sigma0"]
    assert_close(maps[np.array([1, 10])], expected, SCORE_TOLERANCE)


@pytest.mark.parametrize("family", ["industrial", "medical", "object_agnostic"])
def test_prototypes_of_each_family_match_golden(backbone, prompts_golden, e2e_golden, family):
    method = tipsomaly(backbone, {"prompt_family": family})
    params = prompts_of(e2e_golden)
    prototypes = encode_classes(method, backbone, params)
    assert_close(prototypes.image, prompts_golden[f"{family}/fixed_features"], FEATURE_TOLERANCE)
    expected = prompts_golden[f"{family}/learned_features_object"]
    assert_close(prototypes.patches[:1], expected, FEATURE_TOLERANCE)


def training_batches(golden, inputs):
    """Yields the two batches of an epoch, eight images and four; the second is padded with invalid rows.

    `inputs` are those of a loss (features) or of a training step (8-bit images).
    """
    for start in (0, 8):
        rows = np.arange(start, start + 8) % 12
        yield (
            jax.tree.map(lambda x, rows=rows: x[rows], inputs),
            Batch(
                category=jnp.asarray(golden["class_ids"][rows]),
                labels=jnp.asarray(golden["labels"][rows]),
                masks=jnp.asarray(golden["masks"][rows], jnp.float32),
                has_mask=jnp.asarray(golden["labels"][rows] == 1),
                valid=jnp.arange(start, start + 8) < 12,
                class_names=CLASSES,
            ),
        )


@functools.cache
def training_step(backbone, run):
    """Returns the jitted loss with its gradient."""
    method = tipsomaly(backbone, TRAINING_RUNS[run])
    return jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))


@pytest.mark.parametrize("run", TRAINING_RUNS)
def test_training_steps_match_golden(
    backbone, e2e_golden, train_golden, features, train_as_configured, run
):
    """Uses the included config with the learning rate of `seg_lr01`; gradients are those of the loss only."""
    golden = {
        key.removeprefix(f"{run}/"): value
        for key, value in train_golden.items()
        if key.startswith(f"{run}/")
    }
    params = dict(zip(("normal", "abnormal"), jnp.asarray(golden["init"]), strict=True))
    changes = {"learning_rate": 0.1} if run == "seg_lr01" else {}
    batches = list(training_batches(e2e_golden, features))
    batches_u8 = list(training_batches(e2e_golden, e2e_golden["images_u8"]))
    steps = train_as_configured(
        tipsomaly(backbone, TRAINING_RUNS[run]), backbone, params, batches_u8 * 2, **changes
    )
    gradients_of = training_step(backbone, "seg" if run == "seg_lr01" else run)
    for step, expected in enumerate(golden["grads"]):
        _, gradients = gradients_of(backbone.params, params, *batches[step % 2])
        stacked = np.stack([gradients["normal"], gradients["abnormal"]])
        assert_close(stacked, expected, SCORE_TOLERANCE)
        params, losses = next(steps)
        names = {
            "focal": "loss_pxl_ls_fc",
            "dice_abnormal": "loss_plx_ls_dc_p",
            "dice_normal": "loss_plx_ls_dc_n",
            "cross_entropy": "loss_img_ls_ce",
            "l1": "loss_emb_l1_nrm",
            "loss": "loss_epc_ls",
        }
        for ours, theirs in names.items():
            assert_close(losses[ours], golden[theirs][step], FEATURE_TOLERANCE)
        stacked = np.stack([params["normal"], params["abnormal"]])
        assert_close(stacked, golden["params"][step], SCORE_TOLERANCE)


@pytest.fixture
def step_inputs(e2e_golden, features):
    return next(training_batches(e2e_golden, features))


def test_ignores_invalid_rows_and_missing_masks(backbone, e2e_golden, step_inputs):
    features, batch = step_inputs
    step = training_step(backbone, "both_l1")
    params = prompts_of(e2e_golden)

    def run(features=features, **changes):
        return step(backbone.params, params, features, dataclasses.replace(batch, **changes))

    valid = jnp.arange(8) < 4
    (expected, _), expected_gradients = run(valid=valid)
    padded = jax.tree.map(lambda x: x.at[4:].set(0), features)
    (loss, _), gradients = run(padded, valid=valid, masks=batch.masks.at[4:].set(1))
    assert_close(loss, expected, 1e-6)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), gradients, expected_gradients)

    # Anomalous images without ground truth contribute to the cross-entropy only.
    (_, terms), _ = run(has_mask=jnp.zeros(8, bool))
    (_, of_normal), _ = run(valid=batch.labels == 0)
    for name in ("focal", "dice_abnormal", "dice_normal"):
        assert_close(terms[name], of_normal[name], 1e-6)
    assert abs(terms["cross_entropy"] - of_normal["cross_entropy"]) > 1e-3


def test_words_are_truncated_at_text_length(backbone, e2e_golden):
    """Checks that the last words are dropped if tokens and words exceed the text length, as published."""
    params = prompts_of(e2e_golden)
    method = tipsomaly(
        dataclasses.replace(backbone, text=dataclasses.replace(backbone.text, length=12))
    )
    normal, anomalous = PROMPT_FAMILIES["industrial"].sentences("object")
    ids, paddings = backbone.tokenize([*normal, *anomalous])
    count = len(normal)

    @jax.jit
    def expect(frozen, params):
        words = backbone.embed_tokens(frozen, ids)
        learned = jnp.stack([params["normal"]] * count + [params["abnormal"]] * len(anomalous))
        embeddings = jnp.concatenate([learned, words], axis=1)[:, :12]
        mask = np.concatenate([np.zeros((len(ids), 8), int), paddings], axis=1)[:, :12]
        features = backbone.encode_prompts(frozen, embeddings, mask)
        features /= jnp.linalg.norm(features, axis=-1, keepdims=True)
        means = jnp.stack([features[:count].mean(axis=0), features[count:].mean(axis=0)])
        return means / jnp.linalg.norm(means, axis=-1, keepdims=True)

    pair = encode_classes(method, backbone, params).patches[0]
    assert_close(pair, expect(backbone.params, params), FEATURE_TOLERANCE)


@pytest.mark.parametrize("learning", ["concat", "sumate", "entire_learnable"])
def test_rejects_more_prompts_than_text_length(backbone, learning):
    switches = {"learning": learning, "num_prompts": 70}
    method = tipsomaly(backbone, switches)
    params = method.init(jax.random.key(0), backbone.params)
    encode = jax.jit(lambda params: method.prototypes(backbone.params, params, CLASSES).patches)
    pair = encode(params)
    same = encode({state: value.at[64:, 0].add(9.0) for state, value in params.items()})
    assert jnp.isfinite(pair).all()
    np.testing.assert_array_equal(pair, same)


def test_published_deep_prompts_have_no_effect(backbone, e2e_golden, default_run, caplog):
    _warn_of_deep_prompts.cache_clear()  # another test may have made it
    method = tipsomaly(backbone, {"num_deep_prompts": 3})
    assert "num_deep_prompts has no effect unless deep_prompts is 'prepend'" in caplog.text
    assert set(method.init(jax.random.key(0), backbone.params)) == {"normal", "abnormal"}
    learned = encode_classes(method, backbone, prompts_of(e2e_golden))
    assert_close(learned.patches, default_run[0].patches, 1e-6)


def test_prepended_deep_prompts_get_gradients(backbone, e2e_golden, default_run, step_inputs):
    method = tipsomaly(backbone, {"num_deep_prompts": 3, "deep_prompts": "prepend"})
    params = method.init(jax.random.key(0), backbone.params)
    assert params["deep_normal"].shape == params["deep_abnormal"].shape == (1, 3, 32)
    params |= prompts_of(e2e_golden)
    gradients, _ = jax.jit(jax.grad(method.loss, argnums=1, has_aux=True))(
        backbone.params, params, *step_inputs
    )
    assert all(jnp.abs(leaf).max() > 1e-6 for leaf in gradients.values())

    encode = jax.jit(lambda params: method.prototypes(backbone.params, params, CLASSES).patches[0])
    pair = encode(params)
    assert jnp.abs(pair - default_run[0].patches[0]).max() > 1e-4
    # The tokens of a state affect only its own prototype.
    params["deep_normal"] = params["deep_normal"].at[..., 0].add(9.0)
    moved = encode(params)
    np.testing.assert_array_equal(moved[1], pair[1])
    assert jnp.abs(moved[0] - pair[0]).max() > 1e-3


def test_init_is_seeded_and_has_the_configured_spread(backbone):
    method = tipsomaly(backbone, {"num_prompts": 64, "init_std": 0.5})
    params = method.init(jax.random.key(3), backbone.params)
    again = method.init(jax.random.key(3), backbone.params)
    for name in ("normal", "abnormal"):
        np.testing.assert_array_equal(params[name], again[name])
        assert params[name].shape == (64, 32)
        assert abs(params[name].std() - 0.5) < 0.05
    assert jnp.abs(params["normal"] - params["abnormal"]).max() > 0.1
    assert method.groups(params) == {"normal": "prompts", "abnormal": "prompts"}


def test_trains_seeds_under_vmap(backbone, step_inputs):
    method = tipsomaly(backbone)
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.vmap(lambda key: method.init(key, backbone.params))(keys)
    step = training_step(backbone, "seg")
    losses = jax.jit(jax.vmap(method.loss, in_axes=(None, 0, None, None)))
    values, _ = losses(backbone.params, params, *step_inputs)
    single = jax.tree.map(lambda x: x[1], params)
    assert_close(values[1], step(backbone.params, single, *step_inputs)[0][0], 1e-6)


def test_no_learning_has_no_parameters_and_no_loss(backbone, step_inputs):
    method = tipsomaly(backbone, {"learning": "none"})
    assert method.init(jax.random.key(0), backbone.params) == {}
    with pytest.raises(UserError, match="learning='none'"):
        method.loss(backbone.params, {}, *step_inputs)


def test_extras_are_computed_on_request(backbone, e2e_golden, default_run, features):
    prototypes = default_run[0]
    method = tipsomaly(backbone)
    arguments = (backbone.params, {}, prototypes, features, e2e_golden["class_ids"])
    assert method.score(*arguments).extras == {}
    extras = method.score(*arguments, extras=("global_cosines", "patch_cosines")).extras
    assert extras["global_cosines"].shape == (12, 2, 2)
    assert extras["patch_cosines"].shape == (12, 5, 5, 2)
    expected = jax.nn.softmax(extras["global_cosines"][:, 0] / 0.0625)
    assert_close(expected, e2e_golden["decoupled_agg/global1_probs"], SCORE_TOLERANCE)
    with pytest.raises(UserError, match="'atention'"):
        method.score(*arguments, extras=("atention",))


def test_scores_are_float32_for_any_tower_dtype(backbone, e2e_golden, default_run, features):
    prototypes, scores, _ = default_run
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
    arguments = (backbone.params, {}, prototypes, half, e2e_golden["class_ids"])
    rounded = tipsomaly(backbone).score(*arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
    assert_close(rounded.patches, scores.patches, 0.02)


def test_temperature_can_be_set(backbone, e2e_golden, default_run, features):
    prototypes, scores, _ = default_run
    arguments = (backbone.params, {}, prototypes, features, e2e_golden["class_ids"])
    same = tipsomaly(backbone, {"temperature": 0.0625}).score(*arguments)
    flat = tipsomaly(backbone, {"temperature": 1e6}).score(*arguments)
    assert_close(same.patches, scores.patches, 1e-6)
    np.testing.assert_allclose(flat.patches, 0.5, atol=1e-5)


def test_backbone_with_one_class_token_has_one_score(backbone, e2e_golden, default_run, features):
    single = dataclasses.replace(backbone, num_global_tokens=1)
    method = make_method("tipsomaly", single)
    assert method.image_scores == ("first",)
    assert image_score(method) == "first"
    with pytest.raises(UserError, match="'second' does not exist"):
        image_score(method, "second")
    prototypes, scores, _ = default_run
    features = features._replace(global_tokens=features.global_tokens[:, :1])
    one = method.score(backbone.params, {}, prototypes, features, e2e_golden["class_ids"])
    assert set(one.image) == {"first"}
    assert_close(one.image["first"], scores.image["first"], 1e-6)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"sigmas": 4.0}, r"'sigmas'.*sigma\?"),
        ({"learning": "add"}, "'learning' is 'add'.*'concat' or 'sumate'"),
        ({"prompt_family": None}, "'prompt_family'"),
        ({"num_prompts": 0}, "'num_prompts' is 0. It must be between 1 and"),
        ({"num_prompts": 2.5}, "'num_prompts' is 2.5. Expected an integer"),
        ({"learned_class_name": " "}, "'learned_class_name' is ' '. Expected text"),
        ({"decoupled": 1}, "'decoupled' is 1. Expected True or False"),
        ({"sigma": -1}, "'sigma' is -1"),
        ({"temperature": 0.0}, "'temperature'"),
        ({"deep_prompt_depth": 13}, "'deep_prompt_depth' is 13. It must be between 1 and 12"),
    ],
)
def test_rejects_invalid_options(backbone, switches, message):
    with pytest.raises(UserError, match=message):
        tipsomaly(backbone, switches)
