import ast
import functools
import importlib
import pathlib
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zsad_jax
from zsad_jax.data.synthetic import CATEGORIES
from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
MODULES = (
    "nano_textures", "nano_objects", "nano_drawings", "nano_captions",
    "nano_model", "nano_batches", "pretrain_nano",
)  # fmt: skip
textures, objects, drawings, captions, model, batching, nano = map(importlib.import_module, MODULES)

TOKENIZER = nano.ASSETS / "tips-nano" / "tokenizer.model"
MERGES = nano.ASSETS / "clip-nano" / "bpe_simple_vocab.txt.gz"
TINY = {
    "width": 32, "depth": 1, "text_depth": 1, "num_heads": 2, "mlp_dim": 64, "classes": 3,
}  # fmt: skip


@pytest.fixture(params=["tips", "clip"])
def family(request):
    """Returns a family's config and tokenizer."""
    vocabulary = nano.VOCABULARY[request.param]
    config = model.Config(**TINY, family=request.param, vocabulary=vocabulary, warmup=1)
    return config, TOKENIZER if request.param == "tips" else MERGES


@pytest.mark.parametrize("family", drawings.FAMILIES)
def test_drawings_are_reproducible(family):
    for defective in (False, True):
        first, second = (
            drawings.draw(np.random.default_rng(3), 112, family, defective=defective)
            for _ in range(2)
        )
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.mask, second.mask)
        assert first.image.shape == (112, 112, 3)
        assert first.image.dtype == np.uint8
        assert first.mask.any() == bool(first.defect)
        assert defective or not first.defect


def test_seeds_give_different_drawings():
    one, other = (
        drawings.draw(np.random.default_rng(seed), 112, "felt", defective=False) for seed in (0, 1)
    )
    assert (one.image != other.image).mean() > 0.5


@pytest.mark.parametrize("name", drawings.DEFECTS)
def test_defect_mask_covers_changed_pixels(name, monkeypatch):
    monkeypatch.setattr(drawings, "DEFECTS", {name: drawings.DEFECTS[name]})
    rng = np.random.default_rng(5)
    shown = 0
    for _ in range(6):
        image = textures.draw_texture(rng, 112, "chess board")
        changed, mask, kind = drawings.place_defect(rng, image, np.ones((112, 112), bool))
        difference = np.abs(changed - image).max(-1)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((11, 11), np.uint8)).astype(bool)
        shown += kind == name
        # The soft rim of a defect is the only change outside its mask.
        assert difference[~near].max(initial=0) < 0.2
        assert not kind or difference[mask].mean() > drawings.LEAST_CHANGE
    assert shown >= 3


def test_object_defect_mask_covers_changed_part():
    seen = 0
    for seed in range(20):
        before, *_ = objects.draw_object(np.random.default_rng(seed), 112, "domino", changed=False)
        after, _, mask = objects.draw_object(
            np.random.default_rng(seed), 112, "domino", changed=True
        )
        difference = np.abs(after - before).max(-1)
        assert difference[~mask].max() < 0.1
        seen += mask.any()
    assert seen >= 10


def test_held_out_families_are_excluded_from_training():
    assert set(drawings.TRAINED).isdisjoint(drawings.HELD_OUT)
    assert set(drawings.TRAINED) | set(drawings.HELD_OUT) == set(drawings.FAMILIES)
    batch_families = {
        str(family)
        for step in range(50)
        for family in np.random.default_rng((0, step)).choice(drawings.TRAINED, 8, replace=False)
    }
    assert batch_families <= set(drawings.TRAINED)


def _drawing_functions(category):
    return (category.paint, *category.defects.values())


def _code(function):
    while isinstance(function, functools.partial):
        function = function.func
    return function.__code__


def test_shares_no_category_or_function_with_benchmark():
    names = {name for spoken in drawings.FAMILIES.values() for name in spoken}
    names |= {*captions.OTHER_NAMES, *captions.ADJECTIVES}
    ours = [*textures.TEXTURES.values(), *objects.OBJECTS.values(), *drawings.DEFECTS.values()]
    ours = {_code(function) for function in ours}
    seen = {}
    for dataset, categories in CATEGORIES.items():
        seen[dataset] = ({c.name.replace("_", " ") for c in categories}, set())
        for category in categories:
            seen[dataset][1].update(_code(function) for function in category.defects.values())
            assert ours.isdisjoint(_code(function) for function in _drawing_functions(category))
        assert names.isdisjoint(seen[dataset][0])
    (aux_names, aux_defects), (target_names, target_defects) = seen.values()
    assert aux_names.isdisjoint(target_names)
    assert aux_defects.isdisjoint(target_defects)


@pytest.mark.parametrize("module", MODULES)
def test_pretraining_does_not_import_benchmark(module):
    for node in ast.walk(ast.parse((SCRIPTS / f"{module}.py").read_text())):
        imported = []
        if isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        assert not [name for name in imported if name.startswith("zsad_jax.data")]


def test_captions_are_prompt_family_sentences():
    rng = np.random.default_rng(0)
    for _ in range(200):
        name = captions.other_name(rng)
        normal, anomalous = (
            {
                sentence
                for family in PROMPT_FAMILIES.values()
                for sentence in family.sentences(name)[k]
            }
            for k in (0, 1)
        )
        assert captions.caption(rng, name, "normal") in normal
        for group in (drawings.STRUCTURE, drawings.SURFACE):
            assert captions.caption(rng, name, group) in anomalous


def test_grouped_states_belong_to_prompt_families():
    known = {state for family in PROMPT_FAMILIES.values() for state in family.anomalous}
    assert set(captions.STATE_GROUP) <= known


def test_batches_are_reproducible_and_balanced():
    config = model.Config(**TINY)
    for step, side in ((1, batching.SMALL), (config.large_every[0], batching.LARGE)):
        one, two = (batching.make_batch(config, 0, step, 100, TOKENIZER) for _ in range(2))
        jax.tree.map(np.testing.assert_array_equal, one, two)
        assert one.images.shape[1:] == (side, side, 3)
        # A patch is defective only in a defective image, and each defect is visible in some patch.
        np.testing.assert_array_equal(one.touched.max((1, 2)) > 0, one.group > 0)
    assert (one.paddings == 0).any(-1).all()


def test_drawing_processes_take_turns():
    config = model.Config(**TINY)
    drawn = batching.batches(config, 0, 1, 4, TOKENIZER, workers=2)
    for step, batch in enumerate(drawn, 1):
        expected = batching.make_batch(config, 0, step, 4, TOKENIZER)
        jax.tree.map(np.testing.assert_array_equal, batch, expected)
    assert step == 3


def test_two_training_steps_stay_finite_and_resume(tmp_path, family):
    config, tokenizer = family
    state = nano.init_state(config, 0, 10)
    before = jax.tree.map(np.asarray, state.params)
    batches = [batching.make_batch(config, 0, step, 10, tokenizer) for step in (1, 2)]
    for batch in batches:
        state, terms = nano.train_step(config, 10, state, batch, config.towers.streams[-1])
        assert all(np.isfinite(term) for term in terms.values())
    after = jax.tree.map(np.asarray, state.params)
    changed = jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    # All change except the temperature, and the key biases, which cancel in the softmax.
    assert sum(changed) >= len(changed) - 1 - config.depth - config.text_depth
    temperature = state.params["text"][config.towers.temperature]
    assert float(temperature) == pytest.approx(float(config.towers.encode_temperature(0.1)))

    nano.save(state, tmp_path)
    resumed = nano.load(config, 0, 10, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_export_matches_trained_model(tmp_path, family):
    config, tokenizer = family
    params = model.init_params(config, 1)
    nano.export(config, params, tokenizer, tmp_path)
    sides = {side: tmp_path / f"tips_nano_{side}.npz" for side in ("vision", "text")}
    files = sides if config.family == "tips" else {"weights": tmp_path / "clip_nano.safetensors"}
    backbone = zsad_jax.load_backbone(
        config.family,
        **files,
        tokenizer=tmp_path / config.towers.tokenizer,
        num_heads=config.num_heads,
    )
    assert backbone.temperature == pytest.approx(nano.TEMPERATURE, rel=1e-3)
    images = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    tokens, patches = model.encode_images(config, params, images)
    features = backbone.encode_image(backbone.params, backbone.preprocess.normalize(images))
    # The export is rounded to bfloat16 or float16, which keeps about three digits.
    np.testing.assert_allclose(model.unit(features.global_tokens), tokens, atol=0.03)
    np.testing.assert_allclose(model.unit(features.patches[:, 0]), patches, atol=0.03)
    words = config.towers.tokenize(["a photo of a damaged plate."], tokenizer, 24)
    expected = config.towers.text.apply({"params": params["text"]}, *words)
    found = backbone.encode_text(
        backbone.params, *backbone.tokenize(["a photo of a damaged plate."])
    )
    np.testing.assert_allclose(model.unit(found), model.unit(expected), atol=0.03)


def test_included_clip_nano_loads():
    backbone = zsad_jax.load_backbone("clip-nano")
    assert backbone.demonstration
    assert backbone.temperature == pytest.approx(nano.TEMPERATURE, rel=1e-3)
    assert backbone.text_length == 77


def test_included_tips_nano_loads():
    backbone = zsad_jax.load_backbone("tips-nano")
    assert backbone.demonstration
    assert backbone.num_global_tokens == 2
    assert backbone.temperature == pytest.approx(nano.TEMPERATURE)
    assert backbone.preprocess.image_size == 252


def test_included_tokenizer_encodes_any_word():
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    texts = [
        "a bad photo of a damaged object.",
        "qzx-17 of the vwjk (no. 3), 100%!",
        "brushed steel",
    ]
    assert [pieces.decode(ids) for ids in pieces.encode(texts)] == texts
    ids = {token for tokens in pieces.encode(texts) for token in tokens}
    assert 0 not in ids
    assert pieces.unk_id() not in ids
    assert len(pieces.encode("damaged object")) == 2


def test_included_tips_nano_detects_defects_of_held_out_families():
    from sklearn.metrics import roc_auc_score

    backbone = zsad_jax.load_backbone("tips-nano")
    pair = []
    for sentences in PROMPT_FAMILIES["industrial"].sentences("object"):
        text = model.unit(backbone.encode_text(backbone.params, *backbone.tokenize(sentences)))
        pair.append(model.unit(text.mean(0)))
    rng = np.random.default_rng(11)
    drawn = [drawings.draw(rng, 224, family, defective=True) for family in drawings.HELD_OUT]
    images = np.stack([drawing.image for drawing in drawn]) / np.float32(255)
    patches = backbone.encode_image(backbone.params, images).patches[:, 0]
    scores = model.unit(patches) @ (pair[1] - pair[0])
    masks = np.stack([drawing.mask for drawing in drawn]).reshape(-1, 16, 14, 16, 14)
    hit = masks.mean((2, 4)) > 0.1
    assert roc_auc_score(hit.ravel(), np.asarray(scores).ravel()) > 0.8


def test_filters_are_orthogonal_waves():
    filters = model.cosine_filters(32, 4).reshape(-1, 32)
    gram = filters.T @ filters
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5)
    assert jnp.linalg.matrix_rank(filters) == 32
