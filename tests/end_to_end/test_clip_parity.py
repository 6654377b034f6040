"""End-to-end parity of CoCoOp over CLIP with PyTorch, from image files to metrics and trained parameters.

The reference is implemented here with `transformers.CLIPModel`, scipy and scikit-learn, and reads the same
files. CoCoOp depends on most of the pipeline: its prompts contain the category and the image, it learns
from labels and masks, and its patches come from the value-value stream.
"""

import itertools
import json
import types

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image
from safetensors.numpy import save_file
from sklearn import metrics

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SIZE, PATCH = 56, 14
DEPTH, HEADS = 4, 2
WIDTHS = {"vision": 32, "text": 24, "joint": 16}
TEXT_LENGTH = 40
TEMPERATURE, SIGMA = 0.07, 2.0
VV_FROM, LAYERS = 2, (2, 4)  # blocks of the tiny tower
CATEGORIES = ("cable_grid", "metal_nut", "wood")
TARGET, AUXILIARY = "parts", "auxiliary"
BATCH_SIZE, LEARNING_RATE = 5, 1e-2

SCORES = 1e-5  # relative to the largest entry
LOSSES = 1e-5
UPDATES = 1e-4
METRICS = 1e-5  # absolute; pixel metrics depend on the ranks of almost equal pixels

MAIN, FIXED = "cocoop", "clip"  # the comparison uses ordinary patches of the same blocks
METHOD = {
    "name": MAIN,
    "num_prompts": 3,
    "reduction": 2,
    "sigma": SIGMA,
    "temperature": TEMPERATURE,
    # Block numbers for a tower with 24 blocks.
    "feature_layers": tuple(layer * 24 // DEPTH for layer in LAYERS),
    "vv_from": VV_FROM * 24 // DEPTH,
}


# --- files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """Returns a tiny CLIP with random parameters."""
    common = {"hidden_act": "quick_gelu", "projection_dim": WIDTHS["joint"]}
    common |= {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    vocabulary = 512 + len(merges()) + 2
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": WIDTHS["text"], "intermediate_size": 4 * WIDTHS["text"],
            "vocab_size": vocabulary, "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, **common,
        },
        vision_config={
            "hidden_size": WIDTHS["vision"], "intermediate_size": 4 * WIDTHS["vision"],
            "patch_size": PATCH, "image_size": SIZE, **common,
        },
        projection_dim=WIDTHS["joint"],
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        around_one = "norm" in name and name.endswith("weight")
        parameter.copy_(1 + 0.3 * noise if around_one else 0.2 * noise)
    return model


def merges():
    """Returns byte pairs that merge some words into tokens and split others into letters."""
    words = ("photo", "normal", "anomalous", "metal", "wood")
    pairs = {}
    for word in words:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        starts = itertools.accumulate(letters)
        pairs |= dict.fromkeys(zip(starts, letters[1:], strict=False))
    return list(pairs)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """Writes a tokenizer in the format of Hugging Face."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder = tmp_path_factory.mktemp("tokenizer")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    letters = list(bytes_to_unicode().values())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges())]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    numbers = {entry: number for number, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    return folder


def draw_samples(seed, labels):
    """Draws textures of several sizes and modes; an anomaly is a dark rectangle.

    Args:
      seed: seed of the drawing.
      labels: category and label of each image.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for category, label in labels:
        height, width = rng.integers(40, 120, 2)
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        mask = np.zeros((height, width), bool)
        if label:
            top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
            mask[top : top + height // 3, left : left + width // 3] = True
            image[mask] = image[mask] // 4
        if category == "wood":
            image = image[..., 0]  # a grayscale file
        samples.append((category, image, label, mask if label else None))
    return samples


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_meta_json, save_image):
    """Writes a target in the layout of MVTec AD and an auxiliary dataset with a meta.json.

    Both batches of the auxiliary dataset contain normal and anomalous images of several categories, and the
    second one is padded. One anomalous image of each dataset has no mask.
    """
    root = tmp_path_factory.mktemp("data")
    auxiliary = draw_samples(0, zip(CATEGORIES * 3, (1, 0, 1, 0, 1, 1, 0, 1), strict=False))
    auxiliary[4] = (*auxiliary[4][:3], None)
    write_meta_json(root / AUXILIARY, auxiliary)
    target = draw_samples(1, itertools.product(CATEGORIES, (1, 0, 1, 0)))
    for number, (category, image, _, mask) in enumerate(target):
        defect = "good" if mask is None else "crack"
        save_image(root / TARGET / category / "test" / defect / f"{number:03}.png", image)
        if mask is not None and number != 6:
            path = root / TARGET / category / "ground_truth" / defect / f"{number:03}_mask.png"
            save_image(path, mask.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="module")
def init():
    """Returns the initial parameters as a tree."""
    rng = np.random.default_rng(2)
    joint, text = WIDTHS["joint"], WIDTHS["text"]
    hidden = joint // METHOD["reduction"]

    def draw(*shape):
        return rng.normal(scale=0.2, size=shape).astype(np.float32)

    network = {
        "first": {"kernel": draw(joint, hidden), "bias": draw(hidden)},
        "second": {"kernel": draw(hidden, text), "bias": draw(text)},
    }
    return {"context": draw(METHOD["num_prompts"], text), "network": network}


@pytest.fixture(scope="module")
def run(model, tokenizer_folder, data, init, run_main, tmp_path_factory):
    """Returns a run that trains for one epoch (two steps) and evaluates."""
    folder = tmp_path_factory.mktemp("clip")
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "method": METHOD,
        "backbone": {
            "name": "clip",
            "weights": str(folder / "model.safetensors"),
            "tokenizer": str(tokenizer_folder / "merges.txt"),
            "num_heads": HEADS,
        },
        "targets": ({"folder": str(data / TARGET)},),
        "auxiliary": AUXILIARY,
        "data_dir": str(data),
        "train": True,
        "training": {
            "epochs": 1,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "b1": 0.5,
            "shuffle": False,
        },
        "comparisons": {
            "fixed": {
                "name": FIXED,
                **{name: METHOD[name] for name in ("feature_layers", "temperature", "sigma")},
            }
        },
        "batch_size": BATCH_SIZE,
    }
    return run_main(folder / "main", config, init=init)


# --- the reference ---------------------------------------------------------------------------------------


def read_sample(image, mask, category, label):
    """Returns a reference sample: pixels preprocessed as in OpenAI's CLIP, and a mask of the same size."""
    with Image.open(image) as opened:
        resized = opened.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")
    pixels = np.asarray(resized, np.float32) / 255
    mean, std = transformers.image_utils.OPENAI_CLIP_MEAN, transformers.image_utils.OPENAI_CLIP_STD
    pixels = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
    truth = np.zeros((SIZE, SIZE), np.float32)
    if mask is not None:
        with Image.open(mask) as opened:
            resized = opened.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        truth = (np.asarray(resized) > 127).astype(np.float32)
    return types.SimpleNamespace(
        pixels=torch.from_numpy(pixels).permute(2, 0, 1),
        mask=torch.from_numpy(truth),
        has_mask=mask is not None or not label,
        name=category.replace("_", " "),
        category=category,
        label=label,
    )


@pytest.fixture(scope="module")
def auxiliary_samples(data):
    root = data / AUXILIARY
    entries = json.loads((root / "meta.json").read_text())["test"]["all"]
    return [
        read_sample(
            root / entry["img_path"],
            root / entry["mask_path"] if entry["mask_path"] else None,
            entry["cls_name"],
            entry["anomaly"],
        )
        for entry in entries
    ]


@pytest.fixture(scope="module")
def target_samples(data):
    """Returns the samples of the target by file name."""
    samples = {}
    for path in sorted((data / TARGET).glob("*/test/*/*.png")):
        category, _, defect, name = path.relative_to(data / TARGET).parts
        mask = data / TARGET / category / "ground_truth" / defect / name.replace(".", "_mask.")
        label = int(defect != "good")
        sample = read_sample(path, mask if mask.exists() else None, category, label)
        samples[path.relative_to(data / TARGET).as_posix()] = sample
    return samples


class Reference:
    """CoCoOp and CLIP's fixed prompts in PyTorch."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def attend(self, layer, x, *, by_value=False, causal=False):
        """Returns the self-attention of a block, or its value-value attention."""
        attention = layer.self_attn
        value = attention.v_proj(x)
        pair = (value, value) if by_value else (attention.q_proj(x), attention.k_proj(x))
        heads = (t.unflatten(-1, (HEADS, -1)).transpose(-3, -2) for t in (*pair, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=causal)
        return attention.out_proj(mixed.transpose(-3, -2).flatten(-2))

    def encode_image(self, sample):
        """Returns the class token, and value-value and ordinary patches of the blocks `LAYERS`."""
        tower = self.model.vision_model
        output = tower(sample.pixels[None], output_hidden_states=True)
        states = output.hidden_states
        streams, stream = {}, states[VV_FROM - 1]
        for number, layer in enumerate(tower.encoder.layers[VV_FROM - 1 :], start=VV_FROM):
            by_value = self.attend(layer, layer.layer_norm1(states[number - 1]), by_value=True)
            streams[number] = stream = stream + by_value

        def project(tokens):
            projected = self.model.visual_projection(tower.post_layernorm(tokens))
            return torch.nn.functional.normalize(projected, dim=-1)[0]

        token = self.model.visual_projection(output.pooler_output)
        token = torch.nn.functional.normalize(token, dim=-1)[0]
        of_both = ([project(kind[layer][:, 1:]) for layer in LAYERS] for kind in (streams, states))
        return token, *of_both

    def encode_embeddings(self, embeddings):
        """Returns the unit-norm features of sentences, read at their end token."""
        tower = self.model.text_model
        x = embeddings + tower.embeddings.position_embedding.weight[: len(embeddings)]
        for layer in tower.encoder.layers:
            x = x + self.attend(layer, layer.layer_norm1(x), causal=True)
            x = x + layer.mlp(layer.layer_norm2(x))
        projected = self.model.text_projection(tower.final_layer_norm(x[-1]))
        return torch.nn.functional.normalize(projected, dim=-1)

    def learned_texts(self, params, name, token):
        """Returns the (normal, anomalous) features of CoCoOp's prompts for one image."""
        hidden = torch.relu(token @ params["network/first/kernel"] + params["network/first/bias"])
        shift = hidden @ params["network/second/kernel"] + params["network/second/bias"]
        texts = []
        for state in ("normal", "anomalous"):
            ids = torch.tensor(self.tokenizer(f"{state} {name}.")["input_ids"])
            words = self.model.text_model.embeddings.token_embedding(ids)
            sentence = torch.cat([words[:1], params["context"] + shift, words[1:]])
            texts.append(self.encode_embeddings(sentence))
        return torch.stack(texts)

    def fixed_texts(self, name):
        """Returns the (normal, anomalous) features of CLIP's prompts."""
        texts = []
        for state in ("a normal", "an anomalous"):
            ids = torch.tensor([self.tokenizer(f"a photo of {state} {name}")["input_ids"]])
            pooled = self.model.text_model(ids).pooler_output
            texts.append(self.model.text_projection(pooled)[0])
        return torch.nn.functional.normalize(torch.stack(texts), dim=-1)

    def upsample(self, patches, texts):
        """Returns the probabilities of (normal, anomalous) for each pixel."""
        side = SIZE // PATCH
        grid = (patches @ texts.T / TEMPERATURE).softmax(dim=-1).T.reshape(1, 2, side, side)
        return torch.nn.functional.interpolate(grid, (SIZE, SIZE), mode="bilinear")[0]

    def score(self, token, layers, texts):
        """Returns the image score and the smoothed anomaly map."""
        score = (token @ texts.T / TEMPERATURE).softmax(dim=-1)[1]
        raw = sum(self.upsample(patches, texts)[1] for patches in layers)
        return score.item(), scipy.ndimage.gaussian_filter(raw.numpy(), SIGMA)

    def loss_terms(self, params, samples):
        """Returns the loss terms of a batch."""
        terms = {"cross_entropy": [], "focal": [], "dice_abnormal": [], "dice_normal": []}
        for sample in samples:
            token, layers, _ = self.encode_image(sample)
            texts = self.learned_texts(params, sample.name, token)
            logits = token @ texts.T / TEMPERATURE
            terms["cross_entropy"].append(-logits.log_softmax(dim=-1)[sample.label])
            if not sample.has_mask:
                continue
            both = [self.upsample(patches, texts) for patches in layers]
            terms["focal"].append(sum(focal(one, sample.mask) for one in both))
            terms["dice_abnormal"].append(sum(dice(one[1], sample.mask) for one in both))
            terms["dice_normal"].append(sum(dice(one[0], 1 - sample.mask) for one in both))
        return {name: torch.stack(values).mean() for name, values in terms.items()}


def focal(probabilities, mask, smoothing=1e-5):
    """Computes AnomalyCLIP's focal loss with gamma 2."""
    truth = torch.stack([1 - mask, mask]).clamp(smoothing, 1 - smoothing)
    chosen = (truth * probabilities).sum(dim=0) + smoothing
    return (-((1 - chosen) ** 2) * chosen.log()).mean()


def dice(probabilities, mask):
    """Computes AnomalyCLIP's Dice loss, which adds 1 to numerator and denominator."""
    overlap = (probabilities * mask).sum()
    return 1 - (2 * overlap + 1) / (probabilities.sum() + mask.sum() + 1)


@pytest.fixture(scope="module")
def reference(model, tokenizer_folder):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tokenizer_folder)
    assert len(tokenizer) == model.config.text_config.vocab_size
    return Reference(model, tokenizer)


@pytest.fixture(scope="module")
def expected_training(reference, auxiliary_samples, init):
    """Returns the losses of two Adam steps, and the parameters after them."""
    params = {
        name: torch.tensor(value, requires_grad=True) for name, value in flatten(init).items()
    }
    optimizer = torch.optim.Adam(params.values(), lr=LEARNING_RATE, betas=(0.5, 0.999), eps=1e-8)
    losses = []
    for batch in (auxiliary_samples[:BATCH_SIZE], auxiliary_samples[BATCH_SIZE:]):
        terms = reference.loss_terms(params, batch)
        total = sum(terms.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append({name: value.item() for name, value in {"loss": total, **terms}.items()})
    return losses, {name: value.detach().numpy() for name, value in params.items()}


def flatten(tree, prefix=""):
    """Returns the arrays of a tree by their path."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = [flatten(value, f"{prefix}/{key}".strip("/")) for key, value in tree.items()]
    return {name: value for part in parts for name, value in part.items()}


@pytest.fixture(scope="module")
def expected_results(run, reference, target_samples):
    """Returns (score, map) of each file, with the run's trained parameters and with fixed prompts."""
    params = {name: torch.from_numpy(value) for name, value in run.params().items()}
    results = {MAIN: {}, FIXED: {}}
    with torch.no_grad():
        for name, sample in target_samples.items():
            token, by_value, ordinary = reference.encode_image(sample)
            texts = reference.learned_texts(params, sample.name, token)
            results[MAIN][name] = reference.score(token, by_value, texts)
            texts = reference.fixed_texts(sample.name)
            results[FIXED][name] = reference.score(token, ordinary, texts)
    return results


def compute_metrics(samples, results):
    """Computes the metrics of one category."""
    labels = [sample.label for sample in samples]
    scores = [score for score, _ in results]
    usable = [number for number, sample in enumerate(samples) if sample.has_mask]
    masks = np.stack([samples[number].mask.numpy() > 0 for number in usable])
    maps = np.stack([results[number][1] for number in usable])
    return {
        "image_auroc": metrics.roc_auc_score(labels, scores),
        "image_ap": metrics.average_precision_score(labels, scores),
        "image_f1max": f1max(labels, scores),
        "pixel_auroc": metrics.roc_auc_score(masks.ravel(), maps.ravel()),
        "pixel_ap": metrics.average_precision_score(masks.ravel(), maps.ravel()),
        "pixel_aupro": aupro(masks, maps),
        "pixel_f1max": f1max(masks.ravel(), maps.ravel()),
    }


def f1max(labels, scores):
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    return (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()


def aupro(masks, maps, limit=0.3):
    """Computes the area under the per-region overlap, a ROC curve in which each region has the same weight."""
    weights = np.ones(masks.shape)
    for mask, weight in zip(masks, weights, strict=True):
        regions, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        for number in range(1, count + 1):
            weight[regions == number] = 1 / (regions == number).sum()
    fpr, overlap, _ = metrics.roc_curve(
        masks.ravel(), maps.ravel(), sample_weight=weights.ravel(), drop_intermediate=False
    )
    below = fpr < limit
    at_limit = np.interp(limit, fpr, overlap)
    return metrics.auc([*fpr[below], limit], [*overlap[below], at_limit]) / limit


# --- the tests -------------------------------------------------------------------------------------------


def test_losses_match_pytorch(run, expected_training):
    losses, _ = expected_training
    assert len(run.losses()) == len(losses) == 2
    for found, expected in zip(run.losses(), losses, strict=True):
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=LOSSES)


def test_training_updates_match_pytorch(run, expected_training, init, assert_near):
    """Compares the updates, because the initial parameters are larger than the updates."""
    params, initial = run.params(), flatten(init)
    _, expected = expected_training
    assert params.keys() == expected.keys()
    for name, start in initial.items():
        assert_near(params[name] - start, expected[name] - start, UPDATES)


@pytest.mark.parametrize(("method", "variant"), [(MAIN, ""), (FIXED, "fixed")])
def test_image_scores_match_pytorch(run, expected_results, method, variant, assert_near):
    expected = expected_results[method]
    assert run.evaluations[0].file_names == tuple(expected)
    scores = [score for score, _ in expected.values()]
    assert_near(run.image_scores(variant)["global"], scores, SCORES)


def test_maps_match_pytorch(run, expected_results, assert_near):
    cases = run.evaluations[0].cases
    assert {case.file_name for case in cases} == set(expected_results[MAIN])
    for case in cases:
        assert_near(case.anomaly_map, expected_results[MAIN][case.file_name][1], SCORES)


@pytest.mark.parametrize(("method", "file"), [(MAIN, "results.json"), (FIXED, "comparisons.json")])
def test_metrics_match_scikit_learn(run, target_samples, expected_results, method, file):
    rows = run.rows(file, method=method)
    expected = {}
    for category in CATEGORIES:
        names = [name for name, one in target_samples.items() if one.category == category]
        expected[category] = compute_metrics(
            [target_samples[name] for name in names],
            [expected_results[method][name] for name in names],
        )
    expected["mean"] = {
        name: np.mean([expected[category][name] for category in CATEGORIES])
        for name in expected["wood"]
    }
    assert rows.keys() == expected.keys()
    for category, values in expected.items():
        found = {name: rows[category][name] for name in values}
        assert found == pytest.approx(values, abs=METRICS), category
