"""Tests of TPS against the authors' training and test scripts on a tiny CLIP."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones.clip import MEAN, STD
from zsad_jax.methods import Batch, count_learned
from zsad_jax.methods.shared import anomaly_map, losses
from zsad_jax.methods.tps import tps
from zsad_jax.utils.errors import UserError

FEATURE_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-4  # follows a softmax with a small temperature
LAYERS = (2, 4, 6, 8)
CLASSES = ("round_plate",)
COMPARED = ("global_cosines", "global_probabilities", "patch_cosines", "patch_probabilities")
EXTRAS = (*COMPARED, "pathway_features")
NO_EFFECT = ("former/ln_1.bias",)  # shifts all keys equally: its gradient is zero up to rounding


@pytest.fixture(scope="module")
def clip(load_golden_clip):
    return load_golden_clip("anomalyclip")


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("tps", "expected")


@pytest.fixture(scope="module")
def state(read_golden, clip):
    """Returns the learned parameters under the authors' names."""
    arrays = {
        name.replace("/", "."): array for name, array in read_golden("tps", "learnable").items()
    }
    return arrays | {"former.text_projection": np.asarray(clip.params["text"]["projection"])}


@pytest.fixture(scope="module")
def params(clip, state):
    return jax.tree.map(jnp.asarray, tps(clip).import_params(state))


@pytest.fixture(scope="module")
def features(clip, read_golden):
    images = read_golden("anomalyclip", "inputs")["images_u8"] / np.float32(255)
    images = (images - np.float32(MEAN)) / np.float32(STD)
    return jax.jit(tps(clip).features)(clip.params, {}, images)


@pytest.fixture(scope="module")
def batch(read_golden):
    inputs = read_golden("anomalyclip", "inputs")
    return Batch(
        category=jnp.zeros(4, jnp.int32),
        labels=jnp.asarray(inputs["labels"]),
        masks=jnp.asarray(inputs["masks"], jnp.float32),
        has_mask=jnp.ones(4, bool),
        valid=jnp.ones(4, bool),
        class_names=CLASSES,
    )


@functools.cache
def training_step(clip, **switches):
    method = tps(clip, switches)
    return jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))


@functools.cache
def loss_of(clip, **switches):
    return jax.jit(tps(clip, switches).loss)


@functools.cache
def scoring(clip, **switches):
    method = tps(clip, switches)

    @jax.jit
    def run(frozen, params, features):
        prototypes = method.prototypes(frozen, params, CLASSES)
        category = jnp.zeros(features.patches.shape[0], jnp.int32)
        scores = method.score(frozen, params, prototypes, features, category, extras=EXTRAS)
        return prototypes, scores, method.anomaly_map(scores.patches, 70)

    return run


def as_published(tree):
    """Returns parameters or their gradients under the authors' names, in the authors' layout."""
    found = {}
    for ours, theirs in (("global", "prompt_learner"), ("shunt", "class_learner")):
        found[f"{theirs}/ctx_pos"] = tree[ours]["normal"][None, None]
        found[f"{theirs}/ctx_neg"] = tree[ours]["abnormal"][None, None]
        for i, deep in enumerate(tree[ours]["deep"]):
            found[f"{theirs}/compound_prompts_text.{i}"] = deep
    pathway = tree["pathway"]
    norms = {"shunt": 0, "global": 1, "between": 2, "mlp": 3, "patches": 4}
    for name, number in norms.items():
        found[f"former/ln_{number}.weight"] = pathway["norms"][name]["scale"]
        found[f"former/ln_{number}.bias"] = pathway["norms"][name]["bias"]
    for ours, theirs in (("to_patches", "text_attention"), ("to_global", "cross_attention")):
        parts = pathway["attentions"][ours]
        inputs = [parts[name] for name in ("query", "key", "value")]
        stem = f"former/{theirs}"
        found[f"{stem}.in_proj_weight"] = jnp.concatenate([part["kernel"].T for part in inputs])
        found[f"{stem}.in_proj_bias"] = jnp.concatenate([part["bias"] for part in inputs])
        found[f"{stem}.out_proj.weight"] = parts["out"]["kernel"].T
        found[f"{stem}.out_proj.bias"] = parts["out"]["bias"]
    for name, number in (("first", 0), ("second", 2)):
        found[f"former/text_feed.{number}.weight"] = pathway["mlp"][name]["kernel"].T
        found[f"former/text_feed.{number}.bias"] = pathway["mlp"][name]["bias"]
    found["former/text_projection"] = tree["text_projection"]
    return found


def test_features_match_golden(features, golden, assert_near):
    assert_near(features.global_tokens[:, 0], golden["vision/cls_raw"], FEATURE_TOLERANCE)
    for i, layer in enumerate(LAYERS):
        expected = golden[f"vision/patch_features/layer{layer}"].reshape(4, 5, 5, 32)
        assert_near(features.patches[:, i], expected, FEATURE_TOLERANCE)


def test_words_match_golden(clip, golden):
    """Compares the words after the learned tokens, which are 'x' in the golden."""
    four = tps(clip).config.learned_texts
    for texts, learner in ((four[:2], "prompt_learner"), (four[2:], "class_learner")):
        ids, paddings = clip.tokenize(texts)
        for row, words, padding in zip(
            golden[f"text/{learner}/token_ids"], ids, paddings, strict=True
        ):
            count = int((padding == 0).sum())
            np.testing.assert_array_equal(words[1:count], row[13 : 12 + count])


def test_scores_and_maps_with_pathway_match_golden(clip, params, features, golden, assert_near):
    prototypes, scores, maps = scoring(clip)(clip.params, params, features)
    assert_near(prototypes[0, :2], golden["text/global_raw"], FEATURE_TOLERANCE)
    assert_near(prototypes[0, 2:], golden["text/shunt_raw"], FEATURE_TOLERANCE)
    for i, layer in enumerate(LAYERS):
        found = scores.extras["pathway_features"][:, i]
        assert_near(
            found, golden[f"pathway_test/pathway_feature_raw/layer{layer}"], FEATURE_TOLERANCE
        )
        unit = found / jnp.linalg.norm(found, axis=-1, keepdims=True)
        expected = golden[f"train/pathway_feature_normalised/layer{layer}"]
        assert_near(unit, expected, FEATURE_TOLERANCE)
        similarity = scores.extras["patch_probabilities"][:, i].reshape(4, 25, 2)
        assert_near(similarity, golden[f"train/similarity/layer{layer}"], SCORE_TOLERANCE)
    logits = scores.extras["global_cosines"] / 0.07
    assert_near(logits, golden["train/image_logits"], SCORE_TOLERANCE)
    assert_near(scores.image["global"], golden["test/image_score"], SCORE_TOLERANCE)
    assert_near(maps, golden["pathway_test/anomaly_map_smoothed"], SCORE_TOLERANCE)
    raw = tps(clip, {"sigma": 0.0}).anomaly_map(scores.patches, 70)
    assert_near(raw[1:2], golden["pathway_test/anomaly_map_raw"], SCORE_TOLERANCE)
    last = tps(clip, {"sigma": 0.0}).anomaly_map(scores.patches[..., 3:], 70)
    assert_near(last[1:2], golden["train/similarity_map/layer8"][:, 1], SCORE_TOLERANCE)
    low, high = tps(clip).map_range
    assert low == 0 <= maps.min()
    assert 1 < maps.max() <= high == 4


def test_matches_released_test_script(clip, params, features, golden, assert_near):
    switches = {"pathway_at_test": False}
    _, scores, maps = scoring(clip, **switches)(clip.params, params, features)
    assert_near(scores.image["global"], golden["test/image_score"], SCORE_TOLERANCE)
    assert_near(maps, golden["released_test/anomaly_map_smoothed"], SCORE_TOLERANCE)
    raw = tps(clip, {"sigma": 0.0}).anomaly_map(scores.patches, 70)
    assert_near(raw[1:2], golden["released_test/anomaly_map_raw"], SCORE_TOLERANCE)


def test_four_training_steps_match_golden(
    clip, params, golden, read_golden, batch, train_as_configured, assert_near
):
    """Follows the published trajectory with the whole batch in every step."""
    images = read_golden("anomalyclip", "inputs")["images_u8"]
    steps = train_as_configured(tps(clip), clip, params, [(images, batch)] * 4)
    for number, (_, terms) in enumerate(steps):
        image_loss = golden["train/trajectory/image_loss"][number]
        assert_near(terms["cross_entropy"], image_loss, FEATURE_TOLERANCE)
        total = golden["train/trajectory/loss"][number] + image_loss
        assert_near(terms["loss"], total, FEATURE_TOLERANCE)


def test_first_losses_and_gradients_match_golden(
    clip, params, features, batch, golden, assert_near
):
    (_, terms), gradients = training_step(clip)(clip.params, params, features, batch)
    focal, dice = (golden[f"train/loss/{name}Loss_calls"] for name in ("Focal", "BinaryDice"))
    assert_near(terms["focal"], focal.sum(), FEATURE_TOLERANCE)
    assert_near(terms["dice_abnormal"], dice[::2].sum(), FEATURE_TOLERANCE)
    assert_near(terms["dice_normal"], dice[1::2].sum(), FEATURE_TOLERANCE)
    found = as_published(gradients)
    expected = {
        name.removeprefix("train/grad/"): array
        for name, array in golden.items()
        if name.startswith("train/grad/")
    }
    assert set(found) == set(expected)
    largest = max(np.abs(array).max() for array in expected.values())
    for name, array in expected.items():
        scale = largest if name in NO_EFFECT else None
        assert_near(found[name], array, SCORE_TOLERANCE, scale=scale)


@pytest.mark.parametrize("layer", range(4))
def test_loss_terms_of_one_layer(clip, params, features, batch, golden, assert_near, layer):
    one = features._replace(patches=features.patches[:, layer : layer + 1])
    _, terms = loss_of(clip)(clip.params, params, one, batch)
    focal, dice = (golden[f"train/loss/{name}Loss_calls"] for name in ("Focal", "BinaryDice"))
    assert_near(terms["focal"], focal[layer], FEATURE_TOLERANCE)
    assert_near(terms["dice_abnormal"], dice[2 * layer], FEATURE_TOLERANCE)
    assert_near(terms["dice_normal"], dice[2 * layer + 1], FEATURE_TOLERANCE)


def test_separate_pathway_for_each_layer(clip, state, params, features, assert_near):
    """Checks that equal copies give the shared pathway's results, and that each affects only its own layer."""
    method = tps(clip, {"shared_pathway": False})
    several = method.import_params(state)
    run = scoring(clip, shared_pathway=False)
    shared = scoring(clip)(clip.params, params, features)[1].extras["pathway_features"]
    found = run(clip.params, several, features)[1].extras["pathway_features"]
    assert_near(found, shared, FEATURE_TOLERANCE)
    several["pathway"]["mlp"]["second"]["bias"][2] += 1
    moved = run(clip.params, several, features)[1].extras["pathway_features"] - found
    np.testing.assert_array_equal(moved[:, [0, 1, 3]], 0)
    np.testing.assert_allclose(moved[:, 2], 1, atol=1e-5)
    fresh = jax.jit(method.init)(jax.random.key(0), clip.params)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, several)
    assert jnp.abs(jnp.diff(fresh["pathway"]["mlp"]["first"]["kernel"], axis=0)).min(0).max() > 0.01


def test_single_softmax_over_summed_layers(clip, params, features, batch, assert_near):
    _, scores, _ = scoring(clip, segmentation="summed")(clip.params, params, features)
    cosines = scores.extras["patch_cosines"]
    expected = jax.nn.softmax(cosines.sum(axis=1) / 0.07)[..., 1:]
    assert_near(scores.patches, expected, SCORE_TOLERANCE)
    assert tps(clip, {"segmentation": "summed"}).map_range == (0.0, 1.0)
    _, terms = loss_of(clip, segmentation="summed")(clip.params, params, features, batch)
    assert 0 < terms["dice_abnormal"] < 1  # one map instead of the sum of four
    expected = losses.segmentation_terms(
        anomaly_map.upsample(scores.extras["patch_probabilities"][:, 0], (70, 70)), batch
    )
    for name, term in expected.items():
        assert_near(terms[name], term, SCORE_TOLERANCE)


def test_without_the_pathway(clip, state, features, batch, golden, assert_near):
    """Trains and scores with the raw shunt features, whatever `pathway_at_test` is."""
    method = tps(clip, {"pathway": False})
    params = method.import_params(state)
    assert set(params) == {"global", "shunt", "text_projection"}
    _, _, maps = scoring(clip, pathway=False)(clip.params, params, features)
    assert_near(maps, golden["released_test/anomaly_map_smoothed"], SCORE_TOLERANCE)
    _, raw = loss_of(clip, pathway=False)(clip.params, params, features, batch)
    _, adapted = loss_of(clip)(clip.params, tps(clip).import_params(state), features, batch)
    assert_near(raw["cross_entropy"], adapted["cross_entropy"], 1e-6)
    assert abs(raw["focal"] - adapted["focal"]) > 1e-3


def test_text_projection_is_trained_or_frozen(clip, state, params, features, batch, assert_near):
    fresh = jax.jit(tps(clip).init)(jax.random.key(0), clip.params)
    np.testing.assert_array_equal(fresh["text_projection"], clip.params["text"]["projection"])
    changed = params | {"text_projection": 2 * params["text_projection"]}
    before, after = (scoring(clip)(clip.params, p, features)[0] for p in (params, changed))
    assert_near(after, 2 * before, FEATURE_TOLERANCE)

    frozen = tps(clip, {"tune_text_projection": False})
    left = frozen.import_params(state)
    assert set(left) == set(jax.eval_shape(frozen.init, jax.random.key(0), clip.params))
    assert set(left) == {"global", "shunt", "pathway"}
    found = jax.jit(frozen.prototypes, static_argnums=2)(clip.params, left, CLASSES)
    assert_near(found, before, FEATURE_TOLERANCE)


def test_hand_written_prompts_match_golden(clip, features, assert_near):
    sentences = []

    def tokenize(texts):
        sentences.extend(texts)
        lengths = np.array([len(text.split()) for text in texts])
        ids = np.array([[sum(map(ord, text)) % 999] * 8 for text in texts])
        return ids, (np.arange(8) > lengths[:, None]).astype(np.int32)

    spoken = dataclasses.replace(clip, text=dataclasses.replace(clip.text, tokenize=tokenize))
    method = tps(spoken, {"learned": False})
    assert method.init(jax.random.key(0), clip.params) == {}
    assert method.import_params is None
    assert method.unused_parameters == 0
    prototypes = jax.jit(method.prototypes, static_argnums=2)(clip.params, {}, ("fine-mesh", "nut"))
    assert sentences == [
        "a photo of a normal fine mesh with all parts flawless",
        "a photo of a anomalous fine mesh with damaged parts",
        "a photo of the flawless part",
        "a photo of the damaged part",
        "a photo of a normal nut with all parts flawless",
        "a photo of a anomalous nut with damaged parts",
    ]
    raw = jax.jit(clip.encode_text)(clip.params, *tokenize(sentences[:6]))
    unit = raw / jnp.linalg.norm(raw, axis=-1, keepdims=True)
    assert_near(prototypes, unit[np.array([[0, 1, 2, 3], [4, 5, 2, 3]])], FEATURE_TOLERANCE)

    category = jnp.array([0, 1, 1, 0])
    score = jax.jit(functools.partial(method.score, extras=EXTRAS))
    scores = score(clip.params, {}, prototypes, features, category)
    np.testing.assert_array_equal(
        scores.extras["pathway_features"], jnp.broadcast_to(prototypes[0, 2:], (4, 4, 2, 32))
    )
    tokens = features.global_tokens[1, 0]
    cosine = prototypes[1, :2] @ tokens / jnp.linalg.norm(tokens)
    expected = jax.nn.softmax(cosine / 0.07)[1]
    assert_near(scores.image["global"][1], expected, SCORE_TOLERANCE)
    # Without learned parameters, the method uses the same prompts.
    again = jax.jit(tps(spoken).prototypes, static_argnums=2)(clip.params, {}, ("nut",))
    assert_near(again[0], prototypes[1], 1e-6)


def test_trains_nothing_without_learned_prompts(clip, features, batch):
    with pytest.raises(UserError, match="learned=False"):
        tps(clip, {"learned": False}).loss(clip.params, {}, features, batch)


def test_deep_prompts_are_rounded_to_float16(clip, params, features, assert_near):
    rounded = jax.tree.map(lambda x: x, params)
    for name in ("global", "shunt"):
        deep = np.asarray(params[name]["deep"] + 1e-5)  # not exact in float16
        params = params | {name: params[name] | {"deep": deep}}
        rounded[name]["deep"] = deep.astype(np.float16).astype(np.float32)
    found = scoring(clip, deep_prompts_float16=True)(clip.params, params, features)[0]
    expected, plain = (scoring(clip)(clip.params, tree, features)[0] for tree in (rounded, params))
    assert_near(found, expected, 1e-6)
    assert jnp.abs(plain - expected).max() > 1e-5


def test_class_token_can_be_normed(clip):
    images = np.zeros((1, 70, 70, 3), np.float32)
    method = tps(clip, {"cls_norm": True, "feature_layers": (24,)})
    found = jax.jit(method.features)(clip.params, {}, images)
    expected = jax.jit(functools.partial(clip.encode_image, layers=(8,)))(clip.params, images)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert method.features_key != tps(clip, {"feature_layers": (24,)}).features_key


def test_ignores_invalid_rows(clip, params, features, batch, assert_near):
    step = training_step(clip)
    rows = np.array([0, 1, 0, 1])
    kept = jax.tree.map(lambda x: x[rows], (features, batch))
    (expected, _), expected_gradients = step(clip.params, params, *kept)
    padded = jax.tree.map(lambda x: x.at[2:].set(0), features)
    changes = {"valid": jnp.arange(4) < 2, "masks": batch.masks.at[2:].set(1)}
    (loss, _), gradients = step(clip.params, params, padded, dataclasses.replace(batch, **changes))
    assert_near(loss, expected, 1e-6)
    jax.tree.map(
        lambda found, golden: assert_near(found, golden, 1e-5, scale=1.0),
        gradients,
        expected_gradients,
    )


def test_bfloat16_features(clip, params, features, batch, assert_near):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
    _, scores, _ = scoring(clip)(clip.params, params, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(scores)} == {jnp.dtype("float32")}
    _, exact, _ = scoring(clip)(clip.params, params, features)
    assert_near(scores.patches, exact.patches, 0.05)
    loss, _ = loss_of(clip)(clip.params, params, half, batch)
    expected, _ = loss_of(clip)(clip.params, params, features, batch)
    assert_near(loss, expected, 0.01)


def test_import_matches_init(clip, state, params, golden, assert_near):
    fresh = jax.eval_shape(tps(clip).init, jax.random.key(0), clip.params)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    found = as_published(params)
    for name, array in found.items():
        np.testing.assert_array_equal(array, state[name.replace("/", ".", 1)])
    groups = tps(clip).groups(params)
    assert set(jax.tree.leaves((groups["global"], groups["shunt"]))) == {"prompts"}
    assert set(jax.tree.leaves((groups["pathway"], groups["text_projection"]))) == {"pathway"}
    for missing in ("class_learner.ctx_neg", "former.ln_4.bias", "former.text_projection"):
        with pytest.raises(KeyError, match=missing):
            tps(clip).import_params({k: v for k, v in state.items() if k != missing})


def test_init(clip):
    switches = {"num_prompts": 64, "num_deep_prompts": 32, "init_std": 0.5}
    params = jax.jit(tps(clip, switches).init)(jax.random.key(3), clip.params)
    for name in ("global", "shunt"):
        assert params[name]["deep"].shape == (3, 32, 48)
        for leaf in params[name].values():
            assert abs(leaf.std() - 0.5) < 0.05
    assert jnp.abs(params["global"]["normal"] - params["shunt"]["normal"]).max() > 0.1
    query = params["pathway"]["attentions"]["to_patches"]["query"]
    assert 0.9 < jnp.abs(query["kernel"]).max() / (6 / 128) ** 0.5 <= 1
    plain = tps(clip, {"deep_prompt_depth": 1}).init
    assert "deep" not in jax.eval_shape(plain, jax.random.key(0), clip.params)["global"]


def test_disabled_parts_are_not_counted(clip):
    prompts = tps(clip, {"tune_text_projection": False, "pathway": False})
    assert count_learned(prompts, clip) == 2 * (24 + 3 * 4) * 48
    assert prompts.unused_parameters == 2 * 3 * 49 * 896
    assert count_learned(tps(clip, {"learned": False}), clip) == 0


def test_counts_separate_pathways(clip):
    shared, several = (count_learned(tps(clip, {"shared_pathway": s}), clip) for s in (True, False))
    assert several - shared == 3 * (2 * 4 * 33 * 32 + 33 * 128 + 129 * 32 + 5 * 64)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"pathways": True}, "'pathways'.*pathway or"),
        ({"pathway_heads": 5}, "'pathway_heads' is 5.*does not divide the 32"),
        ({"feature_layers": (6, 25)}, "'feature_layers' is \\(6, 25\\)"),
        ({"feature_layers": ()}, "'feature_layers'"),
        ({"global_token": 1}, "'global_token' is 1.*1 global token"),
        ({"num_prompts": 3}, "'num_deep_prompts' is 4.* a prompt has 3. Use at most 3"),
        ({"num_prompts": 0}, "'num_prompts' is 0"),
        ({"deep_prompt_depth": 13}, "'deep_prompt_depth' is 13"),
        ({"segmentation": "mean"}, "'segmentation' is 'mean'.*'per_layer' or 'summed'"),
        ({"learned_texts": ("the part.",)}, "'learned_texts'.*Expected four texts"),
        ({"hand_written_texts": ("a {}", "", "b", "c")}, "'hand_written_texts'.*Expected text"),
        ({"learned": False, "tune_text_projection": True}, "learned=False learns nothing"),
        ({"temperature": 0.0}, "'temperature'"),
    ],
)
def test_rejects_invalid_options(clip, switches, message):
    with pytest.raises(UserError, match=message):
        tps(clip, switches)


def test_rejects_tuning_missing_projection(backbone):
    with pytest.raises(UserError, match=r"'tune_text_projection' is True.*has no projection"):
        tps(backbone, {"tune_text_projection": True})


def test_rejects_prompts_longer_than_text_tower(clip):
    method = tps(clip, {"num_prompts": 72})
    params = jax.eval_shape(method.init, jax.random.key(0), clip.params)
    with pytest.raises(UserError, match="72 of them learned"):
        jax.eval_shape(lambda p: method.prototypes(clip.params, p, CLASSES), params)


def test_rejects_unknown_extras(clip, params, features):
    prototypes = scoring(clip)(clip.params, params, features)[0]
    with pytest.raises(UserError, match="'atention'"):
        tps(clip).score(
            clip.params, params, prototypes, features, jnp.zeros(4, int), extras=("atention",)
        )
