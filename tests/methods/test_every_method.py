"""Tests of requirements shared by several methods: TIPS, the authors' files, and vision options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zsad_jax
from zsad_jax.backbones.base import VisionFeatures
from zsad_jax.methods import Batch, config_class, count_parameters, make_method
from zsad_jax.methods.shared import prompt_files
from zsad_jax.utils.errors import UserError

# Learned parameters over CLIP ViT-L/14 at 336 px: those with an effect, and as published.
COUNTS = {
    "clip": (0, 0),
    "clip_ac": (0, 0),
    "coop": (9_216, 9_216),
    "cocoop": (83_760, 83_760),
    "anomalyclip": (43_008, 5_555_200),
    "faprompt": (4_100_064, 9_612_256),
    "tps": (10_130_688, 29_027_840),
    "vip2clip": (4_149_120, 4_149_121),
    "aaclip": (12_582_912, 12_582_912),
    "aprilgan": (3_148_800, 3_148_800),
    "musc": (0, 0),
    "knn": (0, 0),
    "winclip": (0, 0),
    "vcpclip": (7_687_946, 8_277_770),
    "anovl": (0, 0),
    "adaclip": (10_661_632, 10_665_472),
}
OVER_TIPS = {
    "anomalyclip": {"feature_layers": (12, 24), "global_token": 1, "num_deep_prompts": 14},
    "faprompt": {
        "global_token": 1,
        "num_deep_prompts": 14,
        "dap_select": "topk",
        "num_abnormal": 3,
    },
    "tps": {"global_token": 1},
    "vip2clip": {},
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_parameters_both_ways(name):
    counts = tuple(
        count_parameters(name, backbone="clip-vit-l14-336", published=published)
        for published in (False, True)
    )
    assert counts == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("anomalyclip", {"deep_prompt_depth": 1}, 2 * 12 * 768),
        ("faprompt", {"compound": False, "prior": False}, 43_008),
        ("vip2clip", {"vca": False, "fgp": False}, 17 * 768),
    ],
)
def test_disabled_parts_are_not_counted(name, config, count):
    assert count_parameters(name, backbone="clip-vit-l14-336", config=config) == count


@pytest.fixture(scope="module")
def tokenizing_tips(backbone):
    """Returns the tiny TIPS with a tokenizer for any text: the id of a word is its length."""

    def tokenize(texts):
        lengths = [[len(word) for word in text.split()] for text in texts]
        ids = np.zeros((len(texts), backbone.text_length), np.int32)
        for row, words in zip(ids, lengths, strict=True):
            row[: len(words)] = words
        return ids, (ids == 0).astype(np.int32)

    return dataclasses.replace(backbone, text=dataclasses.replace(backbone.text, tokenize=tokenize))


@pytest.mark.parametrize("name", OVER_TIPS)
def test_trains_two_steps_over_tips(tokenizing_tips, e2e_golden, largest_entries, name):
    """Uses TIPS: another width, no start token, no projection, two class tokens and longer deep prompts."""
    frozen, switches = tokenizing_tips.params, OVER_TIPS[name]
    method = make_method(name, tokenizing_tips, switches)
    params = start = jax.jit(method.init)(jax.random.key(0), frozen)
    count = switches.get("num_deep_prompts")
    assert count is None or params["deep"].shape[1:] == (count, tokenizing_tips.text_width)
    features = jax.jit(method.features)(frozen, {}, e2e_golden["images"][:4])
    assert features.patches.shape[1] == len(method.features_key[0])
    assert not {"projection", "text_projection"} & set(params)
    batch = Batch(
        category=jnp.zeros(4, int),
        labels=jnp.asarray(e2e_golden["labels"][:4]),
        masks=jnp.asarray(e2e_golden["masks"][:4], jnp.float32),
        has_mask=jnp.ones(4, bool),
        valid=jnp.ones(4, bool),
        class_names=("object",),
    )
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(frozen, params, state, features):
        (loss, _), gradients = jax.value_and_grad(method.loss, argnums=1, has_aux=True)(
            frozen, params, features, batch
        )
        updates, state = optimizer.update(gradients, state)
        return loss, gradients, optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(2):
        loss, gradients, params, state = step(frozen, params, state, features)
        assert jnp.isfinite(loss)
        assert min(largest_entries(name, gradients).values()) > 0
    moved = jax.tree.map(lambda a, b: a - b, params, start)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))
    assert min(largest_entries(name, moved).values()) > 1e-3
    if name == "vip2clip":
        assert jnp.abs(moved["fgp"]["key"]["bias"]).max() == 0
    if "global_token" in switches:
        check_other_class_token(name, tokenizing_tips, params, features)


def check_other_class_token(name, backbone, params, features):
    """Checks that the other class token gives another image score and the same patches."""
    switches = OVER_TIPS[name]
    methods = [make_method(name, backbone, switches | {"global_token": token}) for token in (1, 0)]

    @jax.jit
    def run(frozen, params, features):
        prototypes = methods[0].prototypes(frozen, params, ("a", "b"))
        category = jnp.arange(4) % 2
        return [one.score(frozen, params, prototypes, features, category) for one in methods]

    ours, theirs = run(backbone.params, params, features)
    assert ours.patches.shape[:3] == (4, 5, 5)
    assert jnp.isfinite(ours.patches).all()
    assert jnp.abs(ours.image["global"] - theirs.image["global"]).max() > 1e-4
    np.testing.assert_array_equal(ours.patches, theirs.patches)


@pytest.mark.parametrize(
    ("name", "switches", "options"),
    [
        ("anomalyclip", {}, ((8,), 2, False)),
        ("anomalyclip", {"vv_from": None}, ((8,), None, False)),
        ("anomalyclip", {"cls_norm": True}, ((8,), 2, True)),
        ("anomalyclip", {"feature_layers": (3, 24)}, ((1, 8), 2, False)),
        ("faprompt", {}, ((8,), 2, False)),
        ("faprompt", {"vv_from": None, "cls_norm": True}, ((8,), None, True)),
    ],
)
def test_config_sets_vision_options(load_golden_clip, name, switches, options):
    calls = []
    clip = load_golden_clip(name)
    spy = dataclasses.replace(clip, encode_image=lambda *_, **options: calls.append(options))
    method = make_method(name, spy, switches)
    method.features({}, {}, np.zeros((1, 56, 56, 3)))
    names = ("layers", "vv_from", "cls_norm", "patch_norm")
    assert calls == [dict(zip(names, options := (*options, True), strict=True))]
    assert method.features_key == (*options, "openai")
    assert method.cacheable


@pytest.fixture
def authors_state(read_golden):
    """Returns a golden's learned parameters under the names of the authors' files."""

    def read(name):
        arrays = read_golden(name, "learnable")
        return {key.replace("/", "."): array for key, array in arrays.items()}

    return read


@pytest.mark.parametrize("name", ["anomalyclip", "faprompt"])
def test_reads_authors_state_and_own_file(load_golden_clip, authors_state, tmp_path, name):
    clip, state = load_golden_clip(name), authors_state(name)
    method = make_method(name, clip)
    params = jax.tree.map(jnp.asarray, method.import_params(state))
    prompt_files.save(tmp_path / "ours.npz", params)
    # Additional arrays in the authors' files.
    state["prompt_learner.compound_prompt_projections.0.weight"] = np.ones((896, 48), np.float32)
    state["prompt_learner.token_prefix_pos"] = np.ones((1, 1, 1, 48), np.float32)
    np.savez(tmp_path / "theirs.npz", **state)
    bare = {key.removeprefix("prompt_learner."): array for key, array in state.items()}
    np.savez(tmp_path / "bare.npz", **bare)
    for file in ("theirs", "bare", "ours"):
        loaded = prompt_files.load(prompt_files.find(str(tmp_path / f"{file}.npz")), method, clip)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        *(("anomalyclip", lost) for lost in ("ctx_pos", "ctx_neg", "compound_prompts_text.1")),
        *(("faprompt", lost) for lost in ("ctx_pos", "ctx_neg", "compound_prompts_text.1")),
        ("faprompt", "patch_meta_net.linear2.bias"),
    ],
)
def test_rejects_incomplete_checkpoint(load_golden_clip, authors_state, tmp_path, name, lost):
    clip, state = load_golden_clip(name), authors_state(name)
    del state[f"prompt_learner.{lost}"]
    np.savez(tmp_path / "p.npz", **state)
    with pytest.raises(UserError, match=rf"do not fit {name} .* lacks '{lost}'"):
        prompt_files.load(prompt_files.find(str(tmp_path / "p.npz")), make_method(name, clip), clip)


@pytest.mark.parametrize(
    ("name", "options", "backbone_name", "longest"),
    [
        ("clip", {}, "clip-nano", 13),
        ("coop", {}, "clip-nano", 21),
        ("coop", {"position": "middle"}, "clip-nano", 21),
        ("cocoop", {}, "clip-nano", 21),
        ("anomalyclip", {}, "clip-nano", 20),
        ("anomalyclip", {}, "tips-nano", 15),
        ("faprompt", {}, "clip-nano", 15),
        ("tps", {}, "clip-nano", 27),
        ("tps", {"learned": False}, "clip-nano", 18),
        ("vip2clip", {"adjectives": ("normal", "damaged")}, "clip-nano", 13),
        ("tipsomaly", {}, "tips-nano", 18),
        ("tipsomaly", {}, "clip-nano", 23),
        ("tipsomaly", {"learning": "entire_learnable"}, "clip-nano", 12),
    ],
)
def test_texts_are_cut_at_the_longest(name, options, backbone_name, longest):
    """Compares with texts that are padded to the length of the text tower, as in the published code."""
    cut, lengths = zsad_jax.load_backbone(backbone_name, image_size=56), []

    def padded(encode):
        def run(params, words, paddings, *deep, **options):
            lengths.append(words.shape[1])
            missing = cut.text_length - words.shape[1]
            words = jnp.pad(words, [(0, 0), (0, missing)] + [(0, 0)] * (words.ndim - 2))
            paddings = jnp.pad(paddings, [(0, 0), (0, missing)], constant_values=1)
            return encode(params, words, paddings, *deep, **options)

        return run

    encoders = {one: padded(getattr(cut.text, one)) for one in ("encode_text", "encode_prompts")}
    full = dataclasses.replace(cut, text=dataclasses.replace(cut.text, **encoders))
    shapes = (2, cut.num_global_tokens, cut.embed_dim), (2, 4, 5, 5, cut.embed_dim)
    keys = jax.random.split(jax.random.key(1))
    features = VisionFeatures(*map(jax.random.normal, keys, shapes))

    def scores(backbone):
        method = make_method(name, backbone, options)

        @jax.jit
        def run(frozen, features):
            params = method.init(jax.random.key(0), frozen)
            texts = method.prototypes(frozen, params, ("plate", "nut"))
            found = method.score(frozen, params, texts, features, jnp.arange(2))
            return found.image, found.patches

        return run(backbone.params, features)

    ours, theirs = scores(cut), scores(full)
    assert max(lengths) == longest < cut.text_length
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("vcpclip", {"post_vcp": False, "alpha": 0.9}, "alpha"),
        ("aaclip", {"vv_from": None, "vv_axis": "batch"}, "vv_axis"),
        ("aaclip", {"orthogonality_weight": 0.0, "orthogonality": "image"}, "orthogonality"),
        ("adaclip", {"prompt_type": "", "num_prompts": 3}, "num_prompts"),
        ("adaclip", {"prompt_type": "D", "init_std": 0.1}, "init_std"),
        ("adaclip", {"hsf": "mean", "kmeans_steps": 3}, "kmeans_steps"),
        ("adaclip", {"hsf": "none", "clusters": 3}, "clusters"),
        ("anovl", {"adapter_steps": 0, "noise": 0.1}, "noise"),
    ],
)
def test_rejects_options_without_effect(name, options, key):
    with pytest.raises(UserError, match=f"'{key}' is .* has no effect with"):
        config_class(name)(**options)


def test_rejects_text_tokens_in_the_first_block_alone():
    with pytest.raises(UserError, match="'prompt_depth' is 1"):
        config_class("adaclip")(prompt_branch="L", prompt_depth=1)
