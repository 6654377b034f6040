"""End-to-end parity of TIPSomaly over TIPS with the published code, from image files to trained prompts.

The goldens were computed in memory from images that are multiples of 1/255, which PNG files store exactly.
"""

import pathlib
import re

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from zsad_jax.methods.shared import prompt_files

FOLDER = pathlib.Path(__file__).parents[1] / "goldens" / "tipsomaly"
# Relative to the largest entry; values recommended in the README of the goldens.
SCORES = 2e-5
LOSSES = 1e-5
UPDATES = 1e-4
METRICS = 1e-6
# The 200 thresholds start at the minimum of the maps, so a rounding error there shifts all of them; one
# pixel of the smallest region that changes sides changes this metric by 1e-4.
STEPPED_AUPRO = 2e-4

# Runs of the published code, with the fields of the method's config that they change.
RUNS = {
    "decoupled_agg": {},
    "decoupled_noagg": {"local_to_global": False},
    "learned_only_agg": {"decoupled": False},
    "fixed_only_agg": {"learning": "none"},
    "medical_agg": {"prompt_family": "medical"},
}
MAIN = "decoupled_agg"
VARIANTS = {run: "" if run == MAIN else run for run in RUNS}
IMAGE_SCORES = ("first", "second")
METRIC_NAMES = (
    *("image_auroc", "image_ap", "image_f1max"),
    *("pixel_auroc", "pixel_aupro_200step", "pixel_f1max", "pixel_ap"),
)
TERMS = {
    "loss": "loss_epc_ls",
    "focal": "loss_pxl_ls_fc",
    "dice_abnormal": "loss_plx_ls_dc_p",
    "dice_normal": "loss_plx_ls_dc_n",
    "cross_entropy": "loss_img_ls_ce",
    "l1": "loss_emb_l1_nrm",
}
TRAINING_RUNS = {"seg": {}, "both_l1": {"cross_entropy_weight": 1.0, "l1_weight": 0.01}}


def read_golden(name):
    with np.load(FOLDER / f"{name}_golden.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture(scope="module")
def golden():
    return read_golden("e2e")


@pytest.fixture(scope="module")
def train_golden():
    return read_golden("train")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Trains a sentencepiece model with the goldens' vocabulary: a token for each word and the full stop."""
    prompts = read_golden("prompts")
    pieces = {}
    for name in (name for name in prompts if name.endswith("/sentences")):
        stem = name.removesuffix("sentences")
        for text, row, paddings in zip(
            prompts[name], prompts[f"{stem}ids"], prompts[f"{stem}paddings"], strict=True
        ):
            words = re.findall(r"\w+|[^\w\s]", text)
            pieces |= dict(zip(row[paddings == 0].tolist(), words, strict=True))
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.normalizer_spec.name = "identity"
    kind = model.SentencePiece
    model.pieces.add(piece="<pad>", score=0, type=kind.CONTROL)
    model.pieces.add(piece="<unk>", score=0, type=kind.UNKNOWN)
    for number in range(2, len(pieces) + 2):
        word = pieces[number]
        model.pieces.add(
            piece=f"\N{LOWER ONE EIGHTH BLOCK}{word}" if word.isalpha() else word, score=-1
        )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def config(golden, tokenizer, tmp_path_factory, write_meta_json):
    """Writes a config with the goldens' weights, and their images as two datasets on disk."""
    data = tmp_path_factory.mktemp("data")
    samples = [
        (str(golden["class_names"][category]), image, label, mask if label else None)
        for category, image, label, mask in zip(
            golden["class_ids"], golden["images"], golden["labels"], golden["masks"], strict=True
        )
    ]
    for name in ("target", "auxiliary"):
        write_meta_json(data / name, samples)
    return {
        "method": {"name": "tipsomaly"},
        "backbone": {
            "name": "tips",
            "vision": str(FOLDER / "backbone_vision_native.npz"),
            "text": str(FOLDER / "backbone_text_native.npz"),
            "tokenizer": str(tokenizer),
            "image_size": 70,
        },
        "targets": ("target",),
        "auxiliary": "auxiliary",
        "data_dir": str(data),
        "image_score": "second",
        "batch_size": 8,
        "exact_metrics": True,
    }


@pytest.fixture(scope="module")
def evaluated(config, golden, run_main, tmp_path_factory):
    """Returns a run with the goldens' prompts; its comparisons are the other runs of the published code."""
    folder = tmp_path_factory.mktemp("evaluated")
    prompts = dict(zip(("normal", "abnormal"), golden["learnable_prompts"], strict=True))
    prompt_files.save(folder / "prompts.npz", prompts)
    changes = {
        "checkpoints": {"auxiliary": str(folder / "prompts.npz")},
        "comparisons": {name: fields for name, fields in RUNS.items() if name != MAIN},
    }
    return run_main(folder / "main", config | changes)


@pytest.mark.parametrize("run", RUNS)
def test_metrics_match_published_code(evaluated, golden, run):
    for column, image_score in enumerate(IMAGE_SCORES):
        is_main = (run, image_score) == (MAIN, "second")
        file = "results.json" if is_main else "comparisons.json"
        rows = evaluated.rows(file, variant=VARIANTS[run], image_score=image_score)
        assert list(rows) == [*golden["class_names"], "mean"]
        for number, category in enumerate(golden["class_names"]):
            image = golden[f"{run}/image_metrics_class{number}"][:, column]
            pixel = golden[f"{run}/pixel_metrics_class{number}"]
            for name, value in zip(METRIC_NAMES, (*image, *pixel), strict=True):
                tolerance = STEPPED_AUPRO if name == "pixel_aupro_200step" else METRICS
                assert rows[category][name] == pytest.approx(value, abs=tolerance), (category, name)


@pytest.mark.parametrize("run", RUNS)
def test_image_scores_match_published_code(evaluated, golden, run, assert_near):
    scores = evaluated.image_scores(VARIANTS[run])
    found = np.stack([scores[name] for name in IMAGE_SCORES], axis=1)
    categories = np.array(evaluated.evaluations[0].categories)
    for number, category in enumerate(golden["class_names"]):
        rows = categories == category
        assert_near(found[rows], golden[f"{run}/image_scores_class{number}"], SCORES)


def test_maps_match_published_code(evaluated, golden, assert_near):
    """Compares the cases, which are the images of each category with the highest and lowest scores."""
    evaluation = evaluated.evaluations[0]
    assert len(evaluation.cases) == 8
    for case in evaluation.cases:
        number = evaluation.file_names.index(case.file_name)
        np.testing.assert_array_equal(case.image, golden["images"][number])
        assert_near(case.anomaly_map, golden["decoupled_agg/map_sigma4"][number], SCORES)


@pytest.fixture(scope="module", params=TRAINING_RUNS)
def trained(request, config, train_golden, run_main, tmp_path_factory):
    """Returns a run that trains for one epoch (two steps) from the initial prompts of the golden."""
    golden = {
        name.removeprefix(f"{request.param}/"): value
        for name, value in train_golden.items()
        if name.startswith(f"{request.param}/")
    }
    changes = {"method": config["method"] | TRAINING_RUNS[request.param]}
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "shuffle": False}
    changes |= {"train": True, "training": training}
    init = dict(zip(("normal", "abnormal"), golden["init"], strict=True))
    folder = tmp_path_factory.mktemp("trained") / "main"
    return run_main(folder, config | changes, init=init), golden


def test_losses_match_published_code(trained, assert_near):
    run, golden = trained
    steps = run.losses()
    assert [step["step"] for step in steps] == [1, 2]
    names = {ours: theirs for ours, theirs in TERMS.items() if golden[theirs].any()}
    assert names.keys() == steps[0].keys() - {"step"}
    for ours, theirs in names.items():
        assert_near([step[ours] for step in steps], golden[theirs][:2], LOSSES)


def test_training_updates_match_published_code(trained, assert_near):
    """Compares the updates, because the initial prompts are 30 times as large."""
    run, golden = trained
    params = run.params()
    for number, state in enumerate(("normal", "abnormal")):
        init = golden["init"][number]
        assert_near(params[state] - init, golden["params"][1, number] - init, UPDATES)
