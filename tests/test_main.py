"""Tests of the main command, on a tiny model and two tiny datasets.

Most runs are in this process, where nothing is imported again; the first one is in its own.
"""

import collections
import contextlib
import csv
import io
import json
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from zsad_jax import main
from zsad_jax.data.open import open_dataset
from zsad_jax.experiment.config import from_config
from zsad_jax.experiment.run import run_experiment
from zsad_jax.experiment.start import open_datasets
from zsad_jax.experiment.variants import make_variants
from zsad_jax.experiment.workdir import default_workdir
from zsad_jax.metrics import METRICS
from zsad_jax.utils.errors import UserError

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "tips"
ROOT = pathlib.Path(__file__).parents[1]
READER = ROOT / "tests/main_noting_reads.py"

CONFIG = """
from ml_collections import ConfigDict, config_dict


def get_config(variant=""):
    config = ConfigDict()
    config.method = ConfigDict({{"name": "tipsomaly", "learning": "concat", "sigma": 1.0}})
    config.backbone = ConfigDict({{
        "name": "tips", "vision": "{goldens}/vision_mlp_native.npz", "image_size": 56,
        "text": "{goldens}/text_native.npz", "tokenizer": "{folder}/tokenizer.model",
    }})
    config.targets = ("target",)
    config.auxiliary = "auxiliary"
    config.auxiliary_for = ConfigDict()
    config.checkpoints = ConfigDict()
    config.train = True
    config.training = ConfigDict({{"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "shuffle": True}})
    config.comparisons = {{
        "fixed prompts": {{"learning": "none"}},
        "CLIP's sentences": {{"name": "clip", "sigma": 2.0}},
    }}
    config.image_score = "second"
    config.batch_size = 4
    config.model_devices = 1
    config.num_workers = config_dict.placeholder(int)
    config.skip_missing = False
    config.data_dir = "{folder}/data"
    config.seed = 1
    config.seeds = 1
    config.sweep = config_dict.placeholder(object)
    return config
"""


def write_dataset(root, *, num_images, seed):
    """Writes a dataset with a meta.json: bright squares on noise."""
    rng = np.random.default_rng(seed)
    entries = {"plate": [], "cloth": []}
    for number in range(num_images):
        category = ("plate", "cloth")[number % 2]
        image = rng.integers(60, 120, (64, 64, 3), dtype=np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        if label := number // 2 % 2:
            y, x = rng.integers(0, 44, 2)
            image[y : y + 20, x : x + 20] = 255
            mask[y : y + 20, x : x + 20] = 255
        paths = {"img_path": f"{category}/{number}.png", "mask_path": ""}
        (root / category).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(root / paths["img_path"])
        if label:
            paths["mask_path"] = f"{category}/{number}_mask.png"
            PIL.Image.fromarray(mask).save(root / paths["mask_path"])
        fields = {"cls_name": category, "specie_name": "square", "anomaly": int(label)}
        entries[category].append(paths | fields)
    (root / "meta.json").write_text(json.dumps({"train": {}, "test": entries}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("main")
    from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES

    words = [text for side in PROMPT_FAMILIES["industrial"].sentences("object") for text in side]
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words * 3), model_writer=file, vocab_size=120, model_type="bpe",
            pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
    (folder / "config.py").write_text(CONFIG.format(goldens=GOLDENS, folder=folder))
    write_dataset(folder / "data" / "auxiliary", num_images=12, seed=0)
    write_dataset(folder / "data" / "target", num_images=16, seed=1)
    return folder


def command(folder, workdir, *overrides):
    return [
        sys.executable, "-m", "zsad_jax.main", "--config", str(folder / "config.py"),
        "--workdir", str(folder / workdir), *overrides,
    ]  # fmt: skip


def environment(folder):
    return os.environ | {"ZSAD_JAX_HOME": str(folder / "home"), "JAX_PLATFORMS": "cpu"}


def run_alone(folder, workdir, *overrides):
    return subprocess.run(
        command(folder, workdir, *overrides),
        env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(folder, run_app):
    """Returns a function that runs the command in this process; it returns the exit code and stderr."""

    def run(workdir, *overrides):
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            patch.chdir(folder)
            patch.setenv("ZSAD_JAX_HOME", str(folder / "home"))
            _, _, *argv = command(folder, workdir, *overrides)
            code = run_app(main.main, "zsad_jax.main", argv)
        return code or 0, said.getvalue()

    return run


@pytest.fixture(scope="module")
def finished(folder):
    """Returns the working directory of a finished run."""
    done = run_alone(folder, "whole")
    assert done.returncode == 0, done.stderr
    return folder / "whole"


def results(workdir):
    names = ("results.json", "comparisons.json")
    return {name: (workdir / name).read_bytes() for name in names}


def prompts(workdir):
    (path,) = workdir.glob("training/*/prompts.npz")
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_run_writes_all_outputs(finished):
    names = {path.name for path in finished.iterdir()}
    expected = {
        "results.json",
        "comparisons.json",
        "results.md",
        "results.csv",
        "report.html",
        "run.json",
    }
    assert expected | {"config.json", "figures", "training", "evaluations"} <= names
    rows = json.loads((finished / "results.json").read_text())
    assert [row["category"] for row in rows] == ["plate", "cloth", "mean"]
    assert {row["epoch"] for row in rows} == {3}
    assert {row["image_score"] for row in rows} == {"second"}
    assert rows[-1]["n_images"] == 16
    assert rows[-1]["n_anomalous"] == 8
    others = json.loads((finished / "comparisons.json").read_text())
    assert {(row["variant"], row["image_score"]) for row in others} == {
        (rows[0]["variant"], "first"),
        ("fixed prompts", "first"),
        ("fixed prompts", "second"),
        ("CLIP's sentences", "global"),
    }
    assert {row["checkpoint"] for row in others if row["variant"] == "fixed prompts"} == {None}
    (curves,) = finished.glob("training/*/curves.jsonl")
    steps = [json.loads(line)["step"] for line in curves.read_text().splitlines()]
    assert steps == list(range(1, 10))
    assert list(finished.glob("training/*/tensorboard/events.*"))
    (row,) = (row for row in others if row["method"] == "clip" and row["category"] == "mean")
    assert row["sigma"] == 2.0
    assert row["image_score"] == "global"
    assert row["auxiliary"] is None


def test_run_record_describes_training(finished):
    run = json.loads((finished / "run.json").read_text())
    counted = sum(array.size for array in prompts(finished).values())
    assert run["trainable_parameters"] == run["trainable_parameters_as_published"] == counted
    assert run["method"] == "tipsomaly"
    assert run["changed_options"] == {"sigma": 1.0}
    unlike = {"epochs": [3, 2], "batch_size": [4, 8], "shuffle": [True, False]}
    assert unlike.items() <= run["unlike_paper"].items()


def test_rerun_computes_nothing_and_changes_no_byte(run, finished):
    before = results(finished)
    training = prompts(finished)
    stamp = next(finished.glob("evaluations/*.npz")).stat().st_mtime_ns
    code, said = run("whole")
    assert code == 0, said
    assert results(finished) == before
    assert "Reusing the results of target from an earlier run." in said
    np.testing.assert_equal(prompts(finished), training)
    assert next(finished.glob("evaluations/*.npz")).stat().st_mtime_ns == stamp
    (curves,) = finished.glob("training/*/curves.jsonl")
    assert len(curves.read_text().splitlines()) == 9


def kill_when(folder, workdir, happened):
    """Starts a run and kills it without cleanup once `happened` returns true."""
    process = subprocess.Popen(
        command(folder, workdir), env=environment(folder), cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not happened() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("workdir", "sign"),
    [
        ("training/killed", "training/*/checkpoints/1"),
        ("evaluation/killed", "training/*/prompts.npz"),
    ],
)
def test_resumes_after_kill(folder, run, finished, workdir, sign):
    """Kills a run after an epoch or after training; the resumed run gives the same numbers as a whole one.

    The directories have no sibling from which the finished training would be copied.
    """
    kill_when(folder, workdir, lambda: list((folder / workdir).glob(sign)))
    assert not (folder / workdir / "results.json").exists()
    code, said = run(workdir)
    assert code == 0, said
    np.testing.assert_equal(prompts(folder / workdir), prompts(finished))
    assert results(folder / workdir) == results(finished)


@pytest.mark.parametrize("split", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_eight_devices_match_one(folder, finished, split):
    """Uses batches of four, which do not fill eight devices, so that padding rows are added and ignored.

    Training amplifies the last bits of sums, so metrics agree within 1e-3.
    """
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    workdir = f"eight{split}/devices"
    reads = folder / f"eight{split}.reads"
    done = subprocess.run(
        [
            *(sys.executable, str(READER), *command(folder, workdir)[3:], "--config.num_workers=0"),
            f"--config.model_devices={split}",
        ],
        env=environment(folder) | {"XLA_FLAGS": flags, "READS": str(reads), "PYTHONPATH": str(ROOT)},
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = collections.Counter(reads.read_text().splitlines())
    assert [counts[f"auxiliary {number}"] for number in range(12)] == [1] * 12
    # Pictures are of the lowest and the highest score of two labels in two categories.
    assert (len(counts), counts.total()) == (12 + 16, 12 + 16 + 8)
    one, eight = prompts(finished), prompts(folder / workdir)
    for name in one:
        np.testing.assert_allclose(eight[name], one[name], atol=2e-4)
    for table in ("results.json", "comparisons.json"):
        one, eight = (json.loads((x / table).read_text()) for x in (finished, folder / workdir))
        for before, after in zip(one, eight, strict=True):
            assert after == pytest.approx(before, abs=1e-3)  # text must be equal


def test_seeds_and_sweep_run_together(folder, run, finished):
    sweep = "{'method.sigma': [1.0, 2.0], 'training.learning_rate': [1e-2, 2e-2]}"
    code, said = run("together", "--config.seeds=2", f"--config.sweep={sweep}")
    assert code == 0, said
    names = ("results", "comparisons", "results_by_seed")
    found = {one: json.loads((folder / "together" / f"{one}.json").read_text()) for one in names}
    # One training of two seeds and two rates; the other training is the checkpoint of all.
    trained = sorted(path.parent for path in folder.glob("together/training/*/prompts.npz"))
    assert len(trained) == 4 == len(list(folder.glob("together/training/*/curves.jsonl")))
    assert len(list(folder.glob("together/training/*/checkpoints"))) == 1
    # Two seeds of the main setting, of which a point of the sweep is a copy, and of three other points.
    assert len(list(folder.glob("together/evaluations/*.npz"))) == 2 + 2 * 3 + 2
    # The first has the key of a run of its own.
    (single,) = finished.glob("training/*")
    assert single.name in [one.name for one in trained]

    def metrics_of(rows, **columns):
        return [
            {name: row[name] for name in ("category", *METRICS)}
            for row in rows
            if all(row[name] == value for name, value in columns.items())
        ]

    # The first seed has the numbers of a run of its own, to the last bit.
    alone = json.loads((finished / "results.json").read_text())
    main = {"variant": alone[0]["variant"], "image_score": alone[0]["image_score"]}
    one, two = (metrics_of(found["results_by_seed"], seed=seed, **main) for seed in (1, 2))
    assert one == metrics_of(alone) != two
    mean, values = found["results"][-1], [part[-1]["image_auroc"] for part in (one, two)]
    assert (mean["image_auroc"], mean["seed"], mean["seeds"]) == (np.mean(values), 1, 2)
    assert np.isclose(mean["image_auroc_std"], np.std(values, ddof=1))
    points = {row["variant"]: row for row in found["comparisons"] if row["category"] == "mean"}
    assert points["sigma=1, learning_rate=0.01"]["image_auroc"] == mean["image_auroc"]
    assert sum(name.startswith("sigma=") for name in points) == 4
    assert "seeds" not in points["fixed prompts"]
    assert (folder / "together/figures/target/ablation_sigma.png").exists()


def test_copies_the_same_training_from_a_sibling_directory(folder, run, finished):
    code, said = run("sibling", "--config.method.sigma=2.0")
    assert code == 0, said
    (path,) = finished.glob("training/*/prompts.npz")
    assert re.search(rf"Copying the finished training in .*/{path.parent.name}\.", said)
    copied = folder / "sibling" / path.relative_to(finished)
    for name in ("prompts.npz", "curves.jsonl"):
        assert (copied.parent / name).read_bytes() == (path.parent / name).read_bytes()
    assert [*copied.parent.glob("tensorboard/*")]
    assert not (copied.parent / "checkpoints").exists()


def test_reuses_prompts_of_another_run(folder, run, finished):
    """Passes the file that training wrote to `config.checkpoints`."""
    (path,) = finished.glob("training/*/prompts.npz")
    code, said = run(
        "taken-over", "--config.train=False", f"--config.checkpoints={{'auxiliary': '{path}'}}"
    )
    assert code == 0, said
    mean, other = (
        json.loads((w / "results.json").read_text())[-1] for w in (finished, folder / "taken-over")
    )
    assert mean["pixel_auroc"] == other["pixel_auroc"]
    assert other["checkpoint"] == "prompts.npz"


def test_rejects_command_line_mistakes_without_traceback(folder):
    done = run_alone(folder, "mistaken", "--config=nowhere.py")
    assert done.returncode == 2, done.stderr
    assert "nowhere.py" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "mistaken").exists()


MISTAKES = {
    "unknown method key": ({"method": {"sigmaa": 2}}, r"sigmaa.*Did you mean sigma\?"),
    "bad value": ({"method": {"learning": "shout"}}, r"learning.*shout"),
    "unknown training key": ({"training": {"epoch": 2}}, r"epoch.*Did you mean epochs"),
    "no image score": ({"image_score": "third"}, r"third.*first"),
    "missing dataset": ({"targets": ("visa",)}, r"prepare visa[\s\S]*configs/tipsomaly.py:demo"),
    "missing weights": ({"backbone": {"vision": "nowhere.npz"}}, r"nowhere.npz"),
    "trained on its target": ({"targets": ("auxiliary",)}, r"with prompts trained on auxiliary"),
    "no prompts": ({"train": False}, r"config.checkpoints=.*'auxiliary'"),
    "devices": ({"model_devices": 7}, "model_devices=7 does not divide 1, the number of devices"),
    "no target": ({"targets": ()}, r"config.targets is empty"),
    "names in one text": ({"targets": ("mpdd,btad",)}, r"\('mpdd', 'btad'\)"),
    "one name twice": (
        {"targets": ({"folder": "a/parts"}, {"folder": "b/parts"})},
        r"'parts' twice",
    ),
    "comparison": (
        {"comparisons": {"wide": {"num_promts": 4}}},
        r"num_promts.*Did you mean num_prompts",
    ),
    "nothing to learn on": ({"auxiliary": None}, r"config.auxiliary is missing"),
    "no such checkpoint": (
        {"train": False, "checkpoints": {"auxiliary": "nowhere.npz"}},
        r"nowhere.npz.*neither a file nor a name of released prompts",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_rejects_mistakes_before_any_work(folder, tmp_path, name):
    changes, expected = MISTAKES[name]
    config = runpy.run_path(str(folder / "config.py"))["get_config"]()
    with config.unlocked(), config.ignore_type():
        for key, value in changes.items():
            if key in ("method", "backbone", "training"):
                config[key].update(value)
            else:
                config[key] = value
    with pytest.raises(UserError) as error:
        run_experiment(from_config(config), tmp_path / "run")
    assert re.search(expected, str(error.value))
    assert not list(tmp_path.glob("*/**/*.npz"))


def test_rejects_long_category_before_any_work(folder, tmp_path):
    config = runpy.run_path(str(folder / "config.py"))["get_config"]()
    named = {"plate": "stamped bracket with four holes " * 9}
    with config.unlocked(), config.ignore_type():
        config.targets = ({"meta_json": str(folder / "data/target"), "prompt_names": named},)
    with pytest.raises(
        UserError, match=r"bracket.* tokens, but the text tower reads \d+\. Shorten"
    ):
        run_experiment(from_config(config), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_reevaluates_changed_images(tmp_path):
    """Checks that results are reused for unchanged files only."""
    write_dataset(tmp_path, num_images=4, seed=0)
    dataset = open_dataset({"meta_json": str(tmp_path)}, tmp_path)
    before = dataset.fingerprint()
    assert open_dataset({"meta_json": str(tmp_path)}, tmp_path).fingerprint() == before
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "plate" / "0.png")
    assert open_dataset({"meta_json": str(tmp_path)}, tmp_path).fingerprint() != before


@pytest.fixture(scope="module")
def skipped(folder, run):
    """Returns a run that skips a missing dataset and evaluates a partially prepared benchmark."""
    write_dataset(folder / "data" / "mpdd", num_images=8, seed=2)
    code, said = run(
        "skipped", "--config.targets=('visa', 'target', 'mpdd')", "--config.skip_missing=True",
        "--config.train=False", "--config.method.learning=none", "--config.comparisons={}",
    )  # fmt: skip
    assert code == 0, said
    return folder / "skipped", said


def test_skips_missing_datasets(skipped):
    folder, _ = skipped
    rows = json.loads((folder / "results.json").read_text())
    assert {row["dataset"] for row in rows} == {"target", "mpdd"}
    assert "visa" in (folder / "results.md").read_text().lower()


def test_reports_partial_benchmark_without_comparing_it(skipped):
    folder, output = skipped
    words = "MPDD: 2 of 6 categories, 8 of 458 images were evaluated."
    warnings = [line for line in output.splitlines() if "were evaluated" in line]
    assert len(warnings) == 1
    assert f"{words} Differences to published results are omitted." in warnings[0]
    assert words in (folder / "results.md").read_text()
    rows = csv.DictReader(io.StringIO((folder / "results.csv").read_text()))
    wanted = {"table": "main", "dataset": "mpdd", "category": "mean"}
    (row,) = (row for row in rows if wanted.items() <= row.items())
    assert (row["image_auroc_paper"] != "", row["image_auroc_difference"]) == (True, "")


@pytest.mark.parametrize(
    ("auxiliary", "reason"), [("visa:train", "prepare visa"), ("auxiliary:train", "no split")]
)
def test_skips_target_without_auxiliary_dataset(folder, auxiliary, reason):
    """Treats a dataset without the requested split as missing."""
    config = runpy.run_path(str(folder / "config.py"))["get_config"]()
    with config.unlocked(), config.ignore_type():
        config.targets, config.skip_missing = ("target", "auxiliary"), True
        config.auxiliary_for = {"target": auxiliary, "auxiliary": "target"}
        config.auxiliary = None
    datasets, skipped, _ = open_datasets(make_variants(from_config(config)))
    assert set(datasets) == {"target", "auxiliary"}
    assert list(skipped) == ["target"]
    assert re.match(f"its prompts are trained on {auxiliary}: .*{reason}", skipped["target"])
    config.targets = ("target",)
    with pytest.raises(UserError, match=reason):
        open_datasets(make_variants(from_config(config)))


def test_reports_only_the_missing_dataset_with_included_backbone(tmp_path):
    """Uses an included backbone, so that only the dataset is missing."""
    config = runpy.run_path(str(ROOT / "configs/protocols/tps.py"))["get_config"]("nano")
    config.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="MVTec AD is not prepared in") as error:
        open_datasets(make_variants(from_config(config)))
    assert "lineage" not in str(error.value)


def test_workdir_defaults_to_config_name():
    names = {
        "configs/tps.py": "tps",
        "configs/tps.py:demo": "tps-demo",
        "configs/protocols/tps.py:nano": "protocols-tps-nano",
        "/some/where/mine.py": "mine",
    }
    found = {config: default_workdir(config).as_posix() for config in names}
    assert found == {config: f"runs/{name}" for config, name in names.items()}


def test_reports_and_skips_broken_image(folder, run, tmp_path):
    images = tmp_path / "mine" / "test"
    rng = np.random.default_rng(0)
    for kind in ("good", "bad"):
        (images / kind).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(images / kind / f"{number}.png")
    broken = images / "bad" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    code, said = run(
        "broken", f"--config.targets=({{'folder': '{tmp_path / 'mine'}'}},)",
        "--config.train=False", "--config.method.learning=none", "--config.comparisons={}",
    )  # fmt: skip
    assert code == 0, said
    assert "bad/1.png" in said
    rows = json.loads((folder / "broken" / "results.json").read_text())
    assert rows[-1]["n_images"] == 5
    assert rows[-1]["pixel_auroc"] is None
    assert "bad/1.png" in (folder / "broken" / "results.md").read_text()
    facts = json.loads((folder / "broken" / "run.json").read_text())
    assert (facts["num_images"], facts["num_unreadable"]) == (5, 1)
    kinds = {(issue["kind"], issue["file"]) for issue in facts["issues"]["mine"]}
    assert ("image_unreadable", "test/bad/1.png") in kinds


@pytest.mark.parametrize("name", ["/set", "../x", "..", ".", " ", "a/b", "a\\b"])
@pytest.mark.parametrize("kind", ["name", "folder", "auxiliary"])
def test_dataset_names_are_not_paths(folder, name, kind):
    """Uses an absolute name, which would point outside the working directory."""
    config = runpy.run_path(str(folder / "config.py"))["get_config"]()
    with config.unlocked(), config.ignore_type():
        if kind == "name":
            config.targets = (name,)
        elif kind == "folder":
            config.targets = ({"folder": str(folder), "name": name},)
        else:
            config.auxiliary = name
    with pytest.raises(UserError, match="is not a valid dataset name"):
        open_datasets(make_variants(from_config(config)))


def test_does_not_overwrite_results_of_other_program(run, tmp_path):
    (tmp_path / "results.json").write_text("mine")
    code, said = run(str(tmp_path))
    assert code == 2
    assert "contains 'results.json', which was not written by zsad_jax" in said
    assert os.listdir(tmp_path) == ["results.json"]
