"""Tests of runs of several processes, over loopback."""

import collections
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from zsad_jax.experiment.config import from_config
from zsad_jax.utils import distributed
from zsad_jax.utils.errors import UserError

READER = str(pathlib.Path(__file__).with_name("main_noting_reads.py"))
DEMO = (
    "--config=configs/tipsomaly.py:demo",
    "--config.backbone.image_size=56",
    "--config.num_workers=0",
    "--config.data_dir=data",
)
RUN = (
    *DEMO,
    "--config.targets=('target',)",
    "--config.auxiliary=auxiliary",
    "--config.training.epochs=2",
    "--config.training.batch_size=4",
    "--config.batch_size=4",
    "--config.seeds=2",
    "--config.sweep={'method.sigma': [1.0, 2.0]}",
    "--config.comparisons={'fixed prompts': {'learning': 'none'}}",
)
UNREADABLE = "cloth/3.png"


def write_dataset(root, num_images, seed):
    """Writes a dataset with a meta.json: bright squares on noise; the 13th image has its own category."""
    rng = np.random.default_rng(seed)
    entries = {"plate": [], "cloth": [], "wood": []}
    for number in range(num_images):
        category = ("plate", "cloth")[number % 2] if number != 12 else "wood"
        label = number // 2 % 2
        image, mask = rng.integers(60, 120, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        mask[20:40, 10:30] = 255 * label
        image[mask > 0] = 255
        names = f"{category}/{number}.png", f"{category}/{number}_mask.png"
        for name, pixels in zip(names, (image, mask), strict=True):
            (root / category).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(root / name)
        fields = {"img_path": names[0], "mask_path": names[1] if label else "", "anomaly": label}
        entries[category].append(fields | {"cls_name": category, "specie_name": "square"})
    found = {category: images for category, images in entries.items() if images}
    (root / "meta.json").write_text(json.dumps({"train": {}, "test": found}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_dataset(folder / "data/auxiliary", 10, 0)  # no multiple of a batch
    write_dataset(folder / "data/target", 13, 1)
    (folder / "data/target" / UNREADABLE).write_bytes(b"no image")
    return folder


def start(folder, arguments, name, **variables):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "READS": str(folder / f"{name}.reads"),
        "ZSAD_JAX_HOME": str(folder / "home"),
        "BUCKETS": str(folder / "buckets"),
    }
    return subprocess.Popen(
        [sys.executable, READER, *arguments],
        cwd=folder, env=environment | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def devices(count):
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"


def start_all(folder, *arguments, name="all", **variables):
    """Starts processes, each with its own arguments."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    variables |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(arguments))}
    started = []
    for i, own in enumerate(arguments):
        command = [*own, "--config.distributed=True"]
        of_process = {"JAX_PROCESS_ID": str(i), "ZSAD_JAX_HOME": str(folder / f"home {i}")}
        started.append(start(folder, command, name, **variables, **of_process))
    return started


def finish(*processes):
    """Returns the exit code and the output of each process."""
    outputs = [one.communicate(timeout=600) for one in processes]
    return [(one.returncode, *texts) for one, texts in zip(processes, outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "count"), [("none", 3), ("memory", 2)])
def test_processes_equal_one(folder, cache, count):
    """Runs as many processes as the other run has devices; one category has a single image."""
    arguments = [*RUN, f"--config.features.cache={cache}"]
    # Not beside the runs with the other cache, whose finished training would be copied.
    one = [*arguments, f"--workdir=one/{cache}/run"]
    ((code, _, warnings),) = finish(start(folder, one, f"one-{cache}", XLA_FLAGS=devices(count)))
    assert code == 0, warnings
    command = [*arguments, f"--workdir=all/{cache}/run"]
    first, *others = finish(*start_all(folder, *[command] * count, name=f"all-{cache}"))
    assert not any(code for code, *_ in (first, *others)), [first[2], others]
    for name in ("results", "comparisons", "results_by_seed"):
        path = f"{cache}/run/{name}.json"
        assert (folder / "all" / path).read_text() == (folder / "one" / path).read_text()
    # Only the first process says something, and each issue once.
    for _, *said in others:
        assert re.sub(r"(?m)^\[Gloo\].*\n", "", "".join(said)) == ""
    assert "target" in first[1]
    assert warnings.count(UNREADABLE) == first[2].count(UNREADABLE) > 0
    reads = [
        collections.Counter((folder / f"{name}-{cache}.reads").read_text().splitlines())
        for name in ("one", "all")
    ]
    assert reads[0] == reads[1]
    if cache == "memory":  # some of the target once more, for pictures
        assert [reads[1][f"auxiliary {number}"] for number in range(10)] == [1] * 10
        assert reads[1].total() <= 10 + 13 + 9
        # With another number of processes, everything is reused.
        results = (folder / "all/memory/run/results.json").read_text()
        again = finish(*start_all(folder, *[command] * 3, name="again"))
        assert not any(code for code, *_ in again), again
        assert "Reusing the results of target" in again[0][2]
        assert (folder / "all/memory/run/results.json").read_text() == results
        assert not (folder / "again.reads").exists()


@pytest.mark.slow
def test_shared_weights_whole_categories_and_a_bucket(folder):
    """Two processes, each with two devices that share the weights; `musc` compares the images of a category.

    The data are in the bucket alone, and each process copies them to a place of its own.
    """
    place = folder / "buckets/one"
    write_dataset(place / "data/auxiliary", 10, 0)
    write_dataset(place / "data/pairs", 12, 2)  # every category has several images
    for path in place.rglob("*"):
        os.utime(path, (1, 1))  # the storage has whole seconds
    arguments = [
        *RUN,
        "--config.model_devices=2",
        "--config.comparisons={'together': {'name': 'musc', 'feature_layers': (6, 24)}}",
    ]
    arguments[arguments.index("--config.targets=('target',)")] = "--config.targets=('pairs',)"
    one = [*arguments, "--config.data_dir=buckets/one/data", "--workdir=shared/one"]
    ((code, _, warnings),) = finish(start(folder, one, "shared-one", XLA_FLAGS=devices(4)))
    assert code == 0, warnings
    command = [*arguments, "--config.data_dir=gs://one/data", "--workdir=gs://one/run"]
    ended = finish(*start_all(folder, command, command, name="shared-all", XLA_FLAGS=devices(2)))
    assert not any(code for code, *_ in ended), ended
    for name in ("results", "comparisons", "results_by_seed"):
        own = (folder / f"shared/one/{name}.json").read_text()
        assert (place / f"run/{name}.json").read_text() == own
    assert '"together"' in (place / "run/comparisons.json").read_text()
    reads = [(folder / f"shared-{name}.reads").read_text().split("\n") for name in ("one", "all")]
    assert sorted(reads[0]) == sorted(reads[1])


@pytest.mark.slow
def test_error_of_one_process_ends_the_other(folder):
    other = "--config.data_dir=missing"
    first, second = finish(*start_all(folder, [*RUN], [*RUN, other]))
    assert second[0] == 2
    assert "missing" in second[2]
    assert (first[0], first[2].count(distributed.LOST)) == (1, 1)


@pytest.mark.slow
def test_rejects_different_configs(folder):
    ended = finish(*start_all(folder, [*RUN], [*RUN, "--config.seed=5"]))
    for code, _, said in ended:
        assert code in (1, 2)
        assert "different configs" in said or distributed.LOST in said
    assert any("different configs" in said for _, _, said in ended)


def test_rejects_unknown_environment(folder):
    ((code, _, said),) = finish(start(folder, [*RUN, "--config.distributed=True"], "none"))
    assert code == 2
    assert "config.distributed is True" in said
    assert "JAX_COORDINATOR_ADDRESS" in said
    assert "Traceback" not in said


def test_rejects_features_on_disk():
    config = {"method": {"name": "clip"}, "backbone": {"name": "clip-nano"}, "targets": ("visa",)}
    with pytest.raises(UserError, match=r"features\.cache is 'disk'"):
        from_config(config | {"distributed": True, "features": {"cache": "disk"}})


def test_one_process_gathers_its_own_value():
    assert distributed.is_main()
    assert distributed.gather("a") == ["a"]
    assert distributed.once(lambda: "b") == "b"
    with pytest.raises(ZeroDivisionError):
        distributed.once(lambda: 1 / 0)


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    found = [("a", 100), ("b", 90), ("a", 80)]
    monkeypatch.setattr(distributed, "gather", lambda own: found)
    assert distributed.memory_share() == 40


def test_rejects_exact_metrics():
    config = {"method": {"name": "clip"}, "backbone": {"name": "clip-nano"}, "targets": ("visa",)}
    with pytest.raises(UserError, match="exact_metrics is True"):
        from_config(config | {"distributed": True, "exact_metrics": True})


def test_scratch_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed.tempfile, "gettempdir", lambda: str(tmp_path))
    left = tmp_path / f"{distributed.SCRATCH}left"
    left.mkdir()
    with distributed.scratch_folder() as first, distributed.scratch_folder() as second:
        assert not left.exists()
        assert {path.parent for path in map(type(left), (first, second))} == {*tmp_path.iterdir()}
    assert not any(tmp_path.iterdir())
