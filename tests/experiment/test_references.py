"""Tests of runs with reference images: several draws, what results record, and mistakes."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from zsad_jax.experiment.cache import load
from zsad_jax.experiment.config import from_config
from zsad_jax.experiment.run import run_experiment
from zsad_jax.experiment.start import open_datasets, start_run
from zsad_jax.experiment.variants import make_variants
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.remote import Workdir


@pytest.fixture
def parts(tmp_path):
    """Writes two categories in MVTec's layout, with three normal images each for training."""
    rng = np.random.default_rng(0)
    for category in ("nut", "bolt"):
        for name in (
            *(f"train/good/{number}" for number in range(3)),
            "test/good/0",
            "test/bent/0",
        ):
            path = tmp_path / "parts" / category / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return {"folder": str(tmp_path / "parts")}


def made(data, **fields):
    defaults = {
        "method": {"name": "knn", "num_views": 1, "top_share": 0.5},
        "backbone": {"name": "tips-nano", "image_size": 28},
        "shots": 1,
    }
    return from_config({**defaults, "data": data, **fields})


def test_results_are_means_over_draws(parts, tmp_path):
    """Checks rows, the record of the files, and that another number of images is another result."""
    places = [tmp_path / name for name in ("run", "again")]
    fixed = {"fixed prompts": {"name": "clip"}, "2-shot": {"shots": 2}}
    for place in places:
        run_experiment(made(parts, seeds=2, seed=7, comparisons=fixed), place)
    rows, comparisons, single, info = (
        json.loads((places[0] / f"{name}.json").read_text())
        for name in ("results", "comparisons", "results_by_seed", "run")
    )
    assert {(row["shots"], row["seed"], row["seeds"]) for row in rows} == {(1, 7, 2)}
    found = {(row["variant"], row.get("shots"), row.get("seeds")) for row in comparisons}
    assert found == {("fixed prompts", None, None), ("2-shot", 2, 2)}
    assert "shots" not in next(row for row in comparisons if row["variant"] == "fixed prompts")
    assert {row["seed"] for row in single if row.get("shots")} == {7, 8}
    files = info["references"]
    assert {*files} == {f"parts, shots {k}, seed {seed}" for k in (1, 2) for seed in (7, 8)}
    assert all(
        name.startswith("nut/train/good/") for name in files["parts, shots 2, seed 7"]["nut"]
    )
    names = ("results.json", "comparisons.json", "results_by_seed.json")
    assert all((places[0] / name).read_bytes() == (places[1] / name).read_bytes() for name in names)
    evaluations = [load(path).scored for path in (places[0] / "evaluations").iterdir()]
    scores = {str(scores) for one in evaluations for scores in one.image_scores.values()}
    assert len(scores) == len(evaluations) == 5
    assert "shots 1" in (places[0] / "results.md").read_text()


def test_random_views_follow_the_seed(parts, tmp_path):
    """Draws of all images differ by their views alone."""
    method = {"name": "knn", "variant": "subspace", "views": "random", "num_views": 2, "tau": 0.5}
    run_experiment(made(parts, method=method, shots=3, seeds=2), tmp_path / "run")
    scores = [load(path).scored.image_scores for path in (tmp_path / "run/evaluations").iterdir()]
    assert len(scores) == 2
    assert (scores[0]["top_mean"] != scores[1]["top_mean"]).all()


def test_draws_in_scoring_follow_the_seed(parts, tmp_path):
    """The seeds of AnoVL's adapter count up from its own, as those of trainings do."""
    method = {"name": "anovl", "views": False, "templates": ("a {}",), "pooling": 1}
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 255
    for category in ("nut", "bolt"):
        path = tmp_path / "parts" / category / "ground_truth/bent/0_mask.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(mask).save(path)
    run_experiment(made(parts, method=method, shots=None, seeds=2), tmp_path / "run")
    rows, (*_, mean) = (
        json.loads((tmp_path / f"run/{name}.json").read_text())
        for name in ("results_by_seed", "results")
    )
    assert mean["seeds"] == 2
    run_experiment(made(parts, method=method | {"adapter_seed": 1}, shots=None), tmp_path / "one")
    (own,) = json.loads((tmp_path / "one/results.json").read_text())[-1:]
    means = [row for row in rows if row["category"] == own["category"]]
    assert len(means) == 2
    assert means[0]["pixel_ap"] != means[1]["pixel_ap"] == own["pixel_ap"]
    assert means[0]["image_ap"] == means[1]["image_ap"]


def test_views_do_not_depend_on_other_categories(parts, tmp_path):
    method = {"name": "knn", "variant": "subspace", "views": "random", "num_views": 3, "tau": 0.5}
    alone = {"folder": f"{parts['folder']}/nut", "name": "nut"}
    run_experiment(made(None, targets=(parts, alone), method=method, shots=3), tmp_path / "run")
    scores = {}
    for path in (tmp_path / "run/evaluations").iterdir():
        found = load(path)
        scores[found.dataset] = found.scored.image_scores["top_mean"][
            np.array(found.categories) == "nut"
        ]
    assert len(scores["parts"]) == 2
    np.testing.assert_allclose(scores["parts"], scores["nut"], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shots": None}, "knn requires normal reference images .*--config.shots=4.*--references"),
        ({"method": {"name": "clip"}}, "clip takes no reference images. .*config.shots"),
        ({"comparisons": {"a": {"name": "clip", "shots": 2}}}, "'a': clip takes no"),
        (
            {"method": {"name": "clip"}, "shots": None, "sweep": {"shots": [1]}},
            "'shots=1': clip takes no",
        ),
        (
            {"shots": None, "method": {"name": "clip"}, "comparisons": {"a": {"name": "knn"}}},
            "'a': knn requires normal",
        ),
    ],
)
def test_rejects_shots_that_do_not_fit_the_method(parts, tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        start_run(made(parts, **fields), Workdir(tmp_path, tmp_path))


def test_rejects_targets_without_enough_normal_images(parts, tmp_path):
    variants = make_variants(made(parts, sweep={"shots": [2, 4]}))
    assert [one.experiment.shots for one in variants] == [1, 2, 4]
    with pytest.raises(
        UserError, match=r"References of parts: parts has 3 normal images of .* but 4"
    ):
        open_datasets(variants)
    flat = {"folder": str(tmp_path / "parts/nut/test/good"), "name": "flat"}
    with pytest.raises(UserError, match=r"References of flat: .* has no train split"):
        open_datasets(make_variants(made(flat)))
    targets = {"targets": (parts, flat), "skip_missing": True}
    datasets, skipped, references = open_datasets(make_variants(made(None, **targets)))
    assert [*datasets] == ["parts"]
    assert [*skipped] == ["flat"]
    assert [*references] == [("parts", 1, 0)]


def test_rejects_single_images_before_anything_is_encoded(parts, tmp_path):
    experiment = made(parts, method={"name": "musc"}, shots=None)
    (tmp_path / "parts/nut/test/bent/0.png").unlink()
    with pytest.raises(UserError, match="parts has 1 image of the category nut, but musc needs 2"):
        start_run(experiment, Workdir(tmp_path, tmp_path))
    start_run(dataclasses.replace(experiment, shots=1), Workdir(tmp_path, tmp_path))
