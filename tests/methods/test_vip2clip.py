"""Tests of ViP²-CLIP against the published code on a tiny CLIP."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.backbones.base import VisionFeatures
from zsad_jax.methods import Batch, count_learned, image_score
from zsad_jax.methods.vip2clip import Alignment, vip2clip
from zsad_jax.utils.errors import UserError

FEATURES, MAPS = 1e-5, 1e-4  # tolerances; MAPS follows a softmax with a small temperature
LAYERS = 4
EXTRAS = ("text_features", *Alignment._fields)
GOLDEN = {"top_k": 10, "adjective_bug": True, "meta_hidden": 384}
CLASSES = ("plate", "mesh")
MODULES = {
    "ica": "prompt_learner",
    "fgp": "Zero_try",
}  # names in the goldens, names in the authors' files
SEGMENTATION = ("focal", "dice_abnormal", "dice_normal")


@pytest.fixture(scope="module")
def clip(load_golden_clip):
    return load_golden_clip("tiny_clip_zsad", text_num_heads=3)


@pytest.fixture(scope="module")
def golden(read_golden):
    return read_golden("vip2clip", "vip2clip_tiny")


def published_state(golden, prefix="param/"):
    """Returns parameters, or their gradients, under the names of the authors' files."""
    names = [name.removeprefix(prefix) for name in golden if name.startswith(prefix)]
    return {
        f"{MODULES[name.split('.')[0]]}.{name.split('.', 1)[1]}": golden[prefix + name]
        for name in names
    }


@pytest.fixture(scope="module")
def params(clip, golden):
    return jax.tree.map(jnp.asarray, vip2clip(clip).import_params(published_state(golden)))


@pytest.fixture(scope="module")
def features(clip, golden):
    images = np.moveaxis(golden["in/images"], 1, -1)
    return jax.jit(vip2clip(clip).features)(clip.params, {}, images)


@pytest.fixture(scope="module")
def batch(golden):
    return Batch(
        category=jnp.array([0, 1]),
        labels=jnp.asarray(golden["in/labels"]),
        masks=jnp.asarray(golden["in/masks"], jnp.float32),
        has_mask=jnp.ones(2, bool),
        valid=jnp.ones(2, bool),
        class_names=CLASSES,
    )


def scorer(backbone, **switches):
    """Returns the jitted scoring function: scores with all extras, and maps."""
    method = vip2clip(backbone, GOLDEN | switches)
    extras = EXTRAS if method.config.fgp else EXTRAS[:-1]

    @jax.jit
    def run(frozen, params, features):
        category = jnp.arange(len(features.global_tokens)) % 2
        prototypes = method.prototypes(frozen, params, CLASSES)
        scores = method.score(frozen, params, prototypes, features, category, extras=extras)
        return scores, method.anomaly_map(scores.patches, 84)

    return functools.partial(run, backbone.params)


@functools.cache
def training_step(backbone):
    """Returns the jitted loss with its gradient."""
    method = vip2clip(backbone, GOLDEN)
    return jax.jit(jax.value_and_grad(method.loss, argnums=1, has_aux=True))


def loss_of(backbone, **switches):
    """Returns the jitted loss only, for options that change it."""
    return jax.jit(vip2clip(backbone, GOLDEN | switches).loss)


@pytest.fixture(scope="module")
def published(clip, params, features):
    """Returns scores and maps of the published settings."""
    return scorer(clip)(params, features)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    exponential = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def golden_evidence(golden):
    """Returns the mean cosines [2, layers, 2] of the ten strongest patches, from the goldens' features."""
    rows = []
    for layer in range(LAYERS):
        patches = unit(golden[f"out/patch_features_{layer}"][:, 1:])
        cosines = patches @ golden[f"out/fgp_text_{layer}"].swapaxes(1, 2)
        strongest = np.argsort(-golden[f"out/patch_prob_{layer}"][..., 1], axis=1)[:, :10]
        rows.append(np.take_along_axis(cosines, strongest[..., None], axis=1).mean(axis=1))
    return np.stack(rows, axis=1)


def test_features_match_golden(features, golden, assert_near):
    assert_near(features.global_tokens[:, 0], golden["out/image_features_raw"], FEATURES)
    patches = features.patches.reshape(2, LAYERS, 36, -1)
    for layer in range(LAYERS):
        expected = golden[f"out/patch_features_{layer}"][:, 1:]
        assert_near(patches[:, layer], expected, FEATURES)


def test_prompts_of_first_image_match_golden(clip, params, features, golden, assert_near):
    """Checks the places of the learned tokens, the adjective and the Meta-Net outputs."""
    assert clip.tokenize(["good"])[0][0, 1] == golden["in/token_ids_normal"][8]
    assert clip.tokenize(["damaged"])[0][0, 1] == golden["in/token_ids_abnormal"][8]
    text = dataclasses.replace(
        clip.text, encode_prompts=lambda _, rows, paddings: rows.reshape(len(rows), -1)
    )
    shown = dataclasses.replace(clip, text=text)
    method = vip2clip(shown, {"fgp": False, "adjective_bug": True, "feature_layers": (24,)})
    wide = VisionFeatures(features.global_tokens, jnp.ones((2, 1, 1, 1, 13 * 48)))
    arguments = (clip.params, params, jnp.zeros((1, 2, 13 * 48)), wide, jnp.zeros(2, int))
    scores = jax.jit(functools.partial(method.score, extras=("text_features",)))(*arguments)
    names = ("out/prompt_embed_normal_img0", "out/prompt_embed_abnormal_img0")
    expected = unit(np.stack([golden[name].reshape(-1) for name in names]))
    assert_near(scores.extras["text_features"][0], expected, FEATURES)


def test_scores_and_maps_match_golden(clip, published, features, params, golden, assert_near):
    scores, maps = published
    found = scores.extras
    assert_near(found["text_features"], golden["out/text_embeddings"], FEATURES)
    for layer in range(LAYERS):
        texts = found["layer_text_features"][:, layer]
        assert_near(texts, golden[f"out/fgp_text_{layer}"], FEATURES)
        probabilities = found["patch_probabilities"][:, layer].reshape(2, 36, 2)
        assert_near(probabilities, golden[f"out/patch_prob_{layer}"], MAPS)
    assert_near(0.07 * found["image_logits"].mean(axis=1), golden["out/mean_cos"], FEATURES)
    assert_near(scores.image["patch"], golden["out/image_score"], MAPS)
    assert_near(maps, golden["out/map_smoothed"], MAPS)
    unsmoothed = vip2clip(clip, {"sigma": 0.0}).anomaly_map(scores.patches, (84, 84))
    assert_near(unsmoothed, golden["out/map_before_smoothing"], MAPS)


def test_normal_adjective_is_in_normal_prompt(clip, params, features, golden, assert_near):
    scores, maps = scorer(clip, adjective_bug=False, sigma=0.0)(params, features)
    assert_near(scores.extras["text_features"], golden["good/text_embeddings"], FEATURES)
    assert_near(scores.image["patch"], golden["good/image_score"], MAPS)
    assert_near(maps, golden["good/map_before_smoothing"], MAPS)


def test_losses_and_gradients_match_golden(clip, params, features, batch, golden, assert_near):
    (loss, terms), gradients = training_step(clip)(clip.params, params, features, batch)
    assert_near(loss, golden["out/loss_total"], FEATURES)
    assert_near(terms["cross_entropy"], golden["out/loss_ce"], FEATURES)
    by_term = golden["out/loss_terms_focal_diceabn_dicenorm"]
    for name, expected in zip(SEGMENTATION, by_term.sum(axis=0), strict=True):
        assert_near(terms[name], expected, FEATURES)
    local = sum(terms[name] for name in SEGMENTATION)
    assert_near(local, golden["out/loss_local"], FEATURES)

    expected = vip2clip(clip).import_params(published_state(golden, "grad/"))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    # The key bias has no effect: its gradient is rounding error in the published code, and 0 here.
    assert_near(gradients["fgp"]["key"]["bias"], np.zeros(32), 1e-6, scale=largest)
    expected["fgp"]["key"]["bias"] = np.zeros(32)
    gradients["fgp"]["key"]["bias"] = jnp.zeros(32)
    for found, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert_near(found, wanted, MAPS, scale=np.abs(wanted).max() or 1)


def test_losses_of_each_layer(clip, params, features, batch, golden, assert_near):
    loss = loss_of(clip)
    for layer, expected in enumerate(golden["out/loss_terms_focal_diceabn_dicenorm"]):
        single = features._replace(patches=features.patches[:, layer : layer + 1])
        _, terms = loss(clip.params, params, single, batch)
        for name, value in zip(SEGMENTATION, expected, strict=True):
            assert_near(terms[name], value, FEATURES)


def test_score_of_the_paper(clip, params, features, published, assert_near):
    """Scores each layer separately; top-k exceeds the number of patches here, so all are used."""
    scores, maps = scorer(clip, score_pooling="per_layer", top_k=1000)(params, features)
    logits = np.asarray(published[0].extras["patch_cosines"].mean(axis=(2, 3))) / 0.07
    assert_near(scores.extras["image_logits"], logits, MAPS)
    assert_near(scores.image["patch"], softmax(logits)[..., 1].mean(axis=1), MAPS)
    np.testing.assert_array_equal(maps, published[1])


def test_loss_of_the_paper(clip, params, features, batch, golden, golden_evidence, assert_near):
    loss, terms = loss_of(clip, global_loss="per_layer", lam=0.5)(
        clip.params, params, features, batch
    )
    probabilities = softmax(golden_evidence / 0.07)
    chosen = np.take_along_axis(probabilities, golden["in/labels"][:, None, None], axis=-1)
    entropy = -np.log(chosen[..., 0]).mean(axis=0).sum()
    assert_near(terms["cross_entropy"], entropy, FEATURES)
    assert_near(loss, entropy + 0.5 * golden["out/loss_local"], FEATURES)


def test_dual_branch(clip, params, features, batch, golden, assert_near):
    """Disables UTPA: the class token and the texts before FGP then give the image score but not the map."""
    scores, _ = scorer(clip, utpa=False, fgp=False)(params, features)
    texts = golden["out/text_embeddings"]
    token = unit(golden["out/image_features_raw"])
    logits = np.einsum("bd,bkd->bk", token, texts) / 0.07
    assert_near(scores.image["global"], softmax(logits)[:, 1], MAPS)
    assert image_score(vip2clip(clip, {"utpa": False})) == "global"
    # Without FGP, the patches are also compared with those texts.
    for layer in range(LAYERS):
        assert_near(scores.extras["layer_text_features"][:, layer], texts, FEATURES)
        patches = unit(golden[f"out/patch_features_{layer}"][:, 1:])
        expected = softmax(patches @ texts.swapaxes(1, 2) / 0.07)
        found = scores.extras["patch_probabilities"][:, layer].reshape(2, 36, 2)
        assert_near(found, expected, MAPS)

    loss, terms = loss_of(clip, utpa=False)(clip.params, params, features, batch)
    entropy = -np.log(softmax(logits)[[0, 1], golden["in/labels"]]).mean()
    assert_near(terms["cross_entropy"], entropy, FEATURES)
    assert_near(loss, entropy + golden["out/loss_local"], FEATURES)


def test_without_conditioning(clip, params, features, batch, golden, assert_near):
    """Uses prompts with the learned class tokens only, so the texts are the same for all images."""
    prompts = np.stack(
        [golden["out/prompt_embed_normal_img0"], golden["out/prompt_embed_abnormal_img0"]]
    )
    prompts[:, 9:12] = golden["param/ica.cls_ctx"]
    paddings = np.zeros((2, 13), int)
    expected = unit(np.asarray(jax.jit(clip.encode_prompts)(clip.params, prompts, paddings)))
    method = vip2clip(clip, GOLDEN | {"vca": False})
    learned = {name: params[name] for name in ("normal", "abnormal", "class", "fgp")}
    prototypes = jax.jit(method.prototypes, static_argnums=2)(clip.params, learned, CLASSES)
    assert_near(prototypes, np.stack([expected] * 2), FEATURES)
    scores, _ = scorer(clip, vca=False)(learned, features)
    assert_near(scores.extras["text_features"], np.stack([expected] * 2), FEATURES)
    # Training uses the same texts as scoring.
    loss, terms = loss_of(clip, vca=False)(clip.params, learned, features, batch)
    logits = np.asarray(scores.extras["image_logits"].mean(axis=1))
    entropy = -np.log(softmax(logits)[[0, 1], golden["in/labels"]]).mean()
    assert_near(terms["cross_entropy"], entropy, FEATURES)
    assert_near(loss, sum(terms.values()), FEATURES)


def test_attention_weights_reproduce_texts(clip, params, published, golden, assert_near):
    weights = published[0].extras["attention"]
    assert weights.shape == (2, LAYERS, 8, 2, 36)
    assert_near(weights.sum(axis=-1), np.ones(weights.shape[:-1]), FEATURES)
    fgp = params["fgp"]
    for layer in range(LAYERS):
        patches = unit(golden[f"out/patch_features_{layer}"][:, 1:])
        values = (patches @ fgp["value"]["kernel"] + fgp["value"]["bias"]).reshape(2, 36, 8, 4)
        mixed = np.einsum("bhtn,bnhk->bthk", weights[:, layer], values).reshape(2, 2, 32)
        texts = unit(mixed @ fgp["out"]["kernel"] + fgp["out"]["bias"])
        assert_near(texts, golden[f"out/fgp_text_{layer}"], FEATURES)


def test_ignores_padding_rows(clip, params, features, batch):
    """Compares an image and an invalid row with the mean of that image and its copy."""
    step = training_step(clip)
    twice = jax.tree.map(lambda x: x[jnp.array([1, 1])], (features, batch))
    (expected, _), expected_gradients = step(clip.params, params, *twice)

    padded = jax.tree.map(lambda x: x.at[0].set(0), features)
    alone = dataclasses.replace(
        batch, masks=batch.masks.at[0].set(1), valid=jnp.array([False, True])
    )
    (loss, _), gradients = step(clip.params, params, padded, alone)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for found, wanted in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_features_in_half_precision(clip, params, features, published):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
    scores, maps = scorer(clip)(params, half)
    assert maps.dtype == scores.image["patch"].dtype == jnp.float32
    np.testing.assert_allclose(maps, published[1], atol=0.05)


def test_two_training_steps_match_golden(
    clip, params, golden, batch, train_as_configured, assert_near
):
    """Compares losses with the goldens, then the size of each group's updates with its learning rate.

    The first step of Adam changes each number with a non-tiny gradient by the learning rate.
    """
    pixels = np.moveaxis(golden["in/images"], 1, -1) * np.array(clip.preprocess.std)
    images = 255 * (pixels + np.array(clip.preprocess.mean))
    method = vip2clip(clip, GOLDEN)
    (first, losses), (second, later) = train_as_configured(
        method, clip, params, [(images, batch)] * 2
    )
    assert_near(losses["loss"], golden["out/loss_total"], FEATURES)
    assert later["loss"] < losses["loss"]
    for before, after in ((params, first), (first, second)):
        moves = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after)
        of_fgp = moves.pop("fgp")
        assert of_fgp["key"].pop("bias") == 0  # also without effect in the published code
        for rate, group in ((1e-5, of_fgp), (1e-3, moves)):
            assert jax.tree.leaves(group) == pytest.approx(
                [rate] * len(jax.tree.leaves(group)), rel=0.1
            )


def test_groups_and_initial_values(clip):
    method = vip2clip(clip, {"num_prompts": 64, "num_class_prompts": 4, "init_std": 0.5})
    params = jax.jit(method.init)(jax.random.key(0), clip.params)
    groups = method.groups(params)
    assert set(jax.tree.leaves(groups.pop("fgp"))) == {"fgp"}
    assert set(jax.tree.leaves(groups)) == {"prompts"}
    assert params["class"].shape == (4, 48)
    assert abs(params["normal"].std() - 0.5) < 0.05
    assert jnp.abs(params["normal"] - params["abnormal"]).max() > 0.1
    first = params["meta_net"]["first"]["kernel"]
    assert first.shape == (4, 32, 16)  # half the joint width
    assert 0.9 * 32**-0.5 < jnp.abs(first).max() <= 32**-0.5
    assert jnp.abs(first[0] - first[1]).max() > 0.1  # r networks, not one


def test_reads_authors_files(clip, golden, params):
    state = published_state(golden)
    tokens = {"prompt_learner.token_prefix_pos": np.zeros((1, 1, 48), np.float32)}
    method = vip2clip(clip, GOLDEN)
    imported = method.import_params(state | tokens)
    shapes = jax.eval_shape(method.init, jax.random.key(0), clip.params)
    assert jax.tree.map(np.shape, imported) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    for name, array in state.items():
        bare = {name.split(".", 1)[1]: array}
        without = {key: value for key, value in state.items() if key != name}
        again = without | bare
        found = method.import_params(again)
        jax.tree.map(np.testing.assert_array_equal, found, imported)
        if "temp" not in name:
            with pytest.raises(KeyError, match=name.split(".", 1)[1]):
                method.import_params(without)
    static = vip2clip(clip, {"vca": False, "fgp": False})
    few = {name: array for name, array in state.items() if "ctx" in name}
    assert set(static.import_params(few)) == {"normal", "abnormal", "class"}
    assert count_learned(static, clip) == sum(array.size for array in few.values())


def test_equal_features_are_shared(clip):
    assert vip2clip(clip).features_key == ((2, 4, 6, 8), None, False, True, "openai")
    other = vip2clip(clip, {"cls_norm": True}).features_key
    assert other == ((2, 4, 6, 8), None, True, True, "openai")


def test_rejects_adjective_of_several_tokens(clip):
    ids = np.array([[49406, 886, 49407, 0], [49406, 5, 6, 49407], [49406, 49407, 0, 0]])
    paddings = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]])
    text = dataclasses.replace(clip.text, tokenize=lambda texts: (ids, paddings))
    two = dataclasses.replace(clip, text=text)
    with pytest.raises(UserError, match="The adjective 'quite bad' is 2 tokens for"):
        vip2clip(two, {"adjectives": ("good", "quite bad")})


def test_adjectives_are_tokenized_once(clip):
    asked = []

    def tokenize(texts):
        asked.append(tuple(texts))
        if len(asked) == 1:
            raise UserError("There is no tokenizer.")
        return clip.tokenize(texts)

    method = vip2clip(
        dataclasses.replace(clip, text=dataclasses.replace(clip.text, tokenize=tokenize))
    )
    params = jax.eval_shape(method.init, jax.random.key(0), clip.params)
    assert len(asked) == 1
    for _ in range(2):
        jax.eval_shape(lambda params: method.prototypes(clip.params, params, CLASSES), params)
    assert asked == [("good", "damaged", "")] * 2


def test_rejects_prompt_that_is_too_long(clip):
    method = vip2clip(clip, {"num_prompts": 80})
    params = jax.eval_shape(method.init, jax.random.key(0), clip.params)
    with pytest.raises(UserError, match="86 tokens"):
        jax.eval_shape(lambda params: method.prototypes(clip.params, params, CLASSES), params)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"adjectives": ("good",)}, "'adjectives' is .*two words"),
        ({"feature_layers": (6, 25)}, "'feature_layers'"),
        ({"fgp_heads": 5}, "'fgp_heads' is 5, which does not divide the 32"),
        ({"global_token": 1}, "'global_token' is 1"),
        ({"score_pooling": "mean"}, "'score_pooling'"),
        ({"top_k": 0}, "'top_k'"),
    ],
)
def test_rejects_mistakes(clip, config, message):
    with pytest.raises(UserError, match=message):
        vip2clip(clip, config)


def test_rejects_heads_without_perception(clip, params, features):
    method = vip2clip(clip, {"fgp": False, "fgp_heads": 5})
    assert method.unused_parameters == 0
    with pytest.raises(UserError, match="Unknown extra 'attention'"):
        method.score(
            clip.params, params, jnp.zeros((1, 2, 32)), features, jnp.zeros(2, int),
            extras=("attention",),
        )  # fmt: skip
