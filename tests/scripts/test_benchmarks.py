"""Tests of the benchmarks on tiny models, with both sides in this process."""

import argparse
import importlib
import json
import pathlib
import sys
import time

import numpy as np
import pytest

from zsad_jax import evaluate

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
# Over CLIP, these methods use only words that are known without a merge file.
METHODS = {"tipsomaly": "tips-nano"} | dict.fromkeys(
    ("adaclip", "anomalyclip", "faprompt", "tps", "vip2clip", "winclip"), "clip-nano"
)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Returns a function that imports a benchmark, whose sides run in this process."""
    monkeypatch.syspath_prepend(SCRIPTS)
    shared = importlib.import_module("benchmark_sides")

    class LocalSide(shared.Side):
        def __init__(self, make, cores, *arguments):
            self._made = make(*arguments)

        def __exit__(self, *_):
            pass

        def time(self, what, *arguments):
            start = time.perf_counter()
            value = getattr(self._made, what)(*arguments)
            return shared.Turn(time.perf_counter() - start, 1.0, value, 1.0)

    monkeypatch.setattr(shared, "PRODUCTS", {"cpu": (32, 2)})
    # Variables that the benchmarks set are restored afterwards.
    for name in ("ZSAD_JAX_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")

    monkeypatch.setattr(shared, "Side", LocalSide)
    yield lambda name: importlib.import_module(f"benchmark_{name}")
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)


def make_options(shared, folder, method, backbone=None):
    options = argparse.Namespace(
        method=method, options={}, backbone=backbone or METHODS[method], image_size=42, dtype="float32",
        cores=None, batch_size=2, images=2, folder=folder,
    )  # fmt: skip
    shared.settle(options)
    shared.write_weights(options)
    shared.draw_dataset(folder / "images", 3, 42)
    return options


@pytest.mark.parity
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_agree(benchmark, tmp_path, method):
    pytest.importorskip("torch")
    pytest.importorskip("transformers.models.tipsv2", reason="transformers without TIPSv2")
    inference = benchmark("inference")
    options = make_options(benchmark("sides"), tmp_path, method)
    sides = [make(options) for make in (inference.Ours, inference.Theirs)]
    for side in sides:
        side.step()
    difference, span = benchmark("sides").compare_values(*(side.values() for side in sides))
    assert 0 < difference <= 1e-3 * span


@pytest.mark.parity
def test_both_sides_have_the_same_losses(benchmark, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers.models.tipsv2", reason="transformers without TIPSv2")
    training = benchmark("training")
    options = make_options(benchmark("sides"), tmp_path, "tipsomaly")
    ours = training.Ours(options)
    ours.export()
    mine = ours.train("none", [0], 2)["losses"]
    others = training.Theirs(options).train(2)["losses"]
    assert len(mine) == len(others) == 4
    assert len(set(mine)) == 4
    np.testing.assert_allclose(mine, others, rtol=1e-4)


@pytest.mark.parametrize("peer", [False, pytest.param(True, marks=pytest.mark.parity)])
def test_reports_every_stage(benchmark, monkeypatch, tmp_path, capsys, peer):
    inference = benchmark("inference")
    if peer:
        pytest.importorskip("transformers.models.tipsv2", reason="needs torch and transformers")
    else:
        monkeypatch.setattr(benchmark("sides"), "has_peer", lambda options: False)
    out = tmp_path / "results.json"
    small = "--backbone tips-nano --image_size 42 --images 4 --batch_size 2 --file_size 50"
    command = [*small.split(), "--runs", "2", "--latencies", "3", "--json", str(out)]
    assert inference.main(command) == 0
    found = json.loads(out.read_text())
    assert 0 <= found["setting"]["device_wait_share"] < 1
    rows = found["results"]
    sides = ["zsad_jax", "PyTorch"][: 1 + peer]
    expected = [(stage, side) for stage in inference.STAGES for side in sides]
    if peer:
        expected.remove(("histograms", "PyTorch"))
    assert [(row["stage"], row["side"]) for row in rows] == expected
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["peak_gib"] > 0
        without = row["stage"] in ("load", "heads", "metrics")
        assert (row["share_of_peak"] is None) == (row["gflop"] is None) == without
        assert (row["time_ratio"] is None) == (row["ratio_over_products"] is None)
        assert (row["time_ratio"] is not None) == (peer and row["stage"] != "histograms")
    assert capsys.readouterr().out.count("| tower |") == len(sides)


def test_counts_operations_of_the_tower(benchmark, tmp_path):
    """4 blocks of width 128 over 9 patches and two class tokens, and the embedding of the patches."""
    inference = benchmark("inference")
    ours = inference.Ours(make_options(benchmark("sides"), tmp_path, "tipsomaly"))
    tokens, width, mlp, patch = 11, 128, 512, 14 * 14 * 3
    dense = 4 * width * width + 2 * width * mlp
    block = 2 * tokens * dense + 4 * tokens * tokens * width
    assert ours.flops()["tower"] == 4 * block + 2 * 9 * patch * width


def test_counts_operations_of_loops_and_branches(benchmark):
    import jax
    import jax.numpy as jnp

    def product(x):
        return x @ x

    def loop(x):
        _, products = jax.lax.scan(lambda carry, one: (carry, one @ one), 0, jnp.stack([x, x, x]))
        return jax.lax.cond(True, lambda x: product(product(x)), product, x), products

    count = benchmark("sides").count_flops
    one = count(product, jnp.ones((5, 5)))
    assert one == 2 * 5**3
    assert count(jax.jit(loop), jnp.ones((5, 5))) == (3 + 2) * one


def test_rejects_a_part_of_a_batch(benchmark, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark("inference").main(["--images", "12", "--batch_size", "8"])
    assert end.value.code == 2
    assert "--images 12 is not a multiple of --batch_size 8" in capsys.readouterr().err


def test_training_reports_ratios_to_the_last_side(benchmark, monkeypatch, tmp_path, capsys):
    training, calls = benchmark("training"), []

    class Side:
        """A side that takes two seconds per seed and epoch, and a pass over the images."""

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def time(self, what, *arguments):
            if what == "flops":
                return training.Turn(0, 0, (1e12, 1e10))
            if what == "products":
                return training.Turn(4, 1.0, (4, 10**12))
            cache, seeds, epochs = arguments
            calls.append((what, cache, seeds, epochs))
            value = {"losses": [0.5] * epochs, "seeds": seeds, "encoded": 1}
            return training.Turn(2.0 * len(seeds) * epochs, 1.0, value)

    monkeypatch.setattr(training.shared, "Side", Side)
    out = tmp_path / "results.json"
    small = "--backbone clip-nano --image_size 28 --images 4 --batch_size 2 --epochs 1"
    options = "--method", "anomalyclip", "--parts", "cache", "seeds", "--seeds", "3"
    assert training.main([*small.split(), *options, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["setting"]["method"] == "anomalyclip"
    rows = found["results"]
    assert [row["side"] for row in rows] == [
        "features in memory", "encoded in every epoch", "together", "one after another",
    ]  # fmt: skip
    assert [row["seconds"] for row in rows] == [2, 2, 6, 6]
    assert [row["cpu_ratio"] for row in rows] == [1, 1, 1 / 3, 1]
    # 4 images and 2 steps of one seed, and of three, of which each has encoded the images.
    assert [row["tflop"] for row in rows] == pytest.approx([4.02, 4.02, 4.06, 12.06])
    assert rows[0]["share_of_peak"] == pytest.approx(4.02 / 2)
    of_seeds = [seeds for _, cache, seeds, _ in calls if cache == "disk"]
    assert of_seeds == [[0], [0, 1, 2], [0], [1], [2]]
    assert capsys.readouterr().out.count("| seeds |") == 2


def test_training_measures_the_library(benchmark, tmp_path):
    training, out = benchmark("training"), tmp_path / "results.json"
    small = (
        "--backbone tips-nano --image_size 28 --images 3 --batch_size 2 --epochs 1 --parts cache"
    )
    assert training.main([*small.split(), "--json", str(out)]) == 0
    memory, again = json.loads(out.read_text())["results"]
    assert memory["tflop"] == again["tflop"] > 0
    assert memory["encode_seconds"] > 0


def test_training_rejects_a_method_without_peer(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark("training").main(["--method", "tps", "--parts", "pytorch"])
    assert "no PyTorch side for training tps" in capsys.readouterr().err


def test_metrics_agree_with_the_published_procedure(benchmark, tmp_path):
    pytest.importorskip("sklearn")
    metrics, out = benchmark("metrics"), tmp_path / "results.json"
    assert metrics.main(["--maps", "12", "--size", "60", "--first", "6", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["setting"]["published_difference"] < 1e-6
    assert found["setting"]["binned_difference"] < 1e-4
    assert [row["measured_maps"] for row in found["results"]] == [12, 6, 6, 6]
    assert found["results"][2]["times_as_fast_as_loop"] == 1


@pytest.mark.parity
@pytest.mark.parametrize(("queries", "pairs"), [([], 18), (["--queries", "2"], 10)])
def test_musc_agrees_with_loops_over_images(benchmark, monkeypatch, tmp_path, queries, pairs):
    pytest.importorskip("torch")
    monkeypatch.setattr("zsad_jax.methods.musc.IMAGES_PER_PASS", 256)  # which the benchmark changes
    out = tmp_path / "results.json"
    small = "--images 5 --grid 4 --width 8 --batch_size 2 --cores 1 --layers 2"
    assert benchmark("musc").main([*small.split(), *queries, "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["side"] for row in found["results"]] == ["zsad_jax", "PyTorch"]
    assert found["setting"]["difference"] < 1e-6
    assert [row["pairs"] for row in found["results"]] == [pairs, 10 if queries else 25]


def test_grid_compares_both_sides(benchmark, monkeypatch, tmp_path):
    grid, out = benchmark("grid"), tmp_path / "results.json"
    times = iter([(2.0, 1.0), (8.0, 10.0)])
    commands = []
    monkeypatch.setattr(grid, "run_commands", lambda *given: commands.append(given) or next(times))
    monkeypatch.setattr(grid, "compare", lambda *_: 0.0)
    sweep = json.dumps({"method.num_prompts": [4, 8], "seed": [0, 1, 2]})
    assert grid.main(["--sweep", sweep, "--json", str(out)]) == 0
    assert [row["time_ratio"] for row in json.loads(out.read_text())["results"]] == [0.25, 1]
    assert [len(given[3]) for given in commands] == [1, 6]
    assert "--config.seed=2" in commands[1][3][-1]


def test_released_sizes_fit_their_tokenizer(benchmark, tmp_path):
    shared = benchmark("sides")
    options = make_options(shared, tmp_path, "tipsomaly", "tips-s14-hr")
    backbone, *_ = shared.open_model(options)
    assert backbone.vision_depth == 12
    assert backbone.tokenize(["a damaged part"])[0].shape[0] == 1


def test_reads_binned_maps(benchmark, tmp_path, monkeypatch):
    inference = benchmark("inference")
    options = make_options(benchmark("sides"), tmp_path, "tipsomaly")
    found = []
    for codes in (evaluate.NUM_CODES, 0):  # maps with more pixels are binned
        monkeypatch.setattr(evaluate, "NUM_CODES", codes)
        side = inference.Ours(options)
        side.step()
        found.append(side.values())
    (scores, maps), (same, binned) = found
    np.testing.assert_array_equal(scores, same)
    np.testing.assert_allclose(binned, maps, atol=1e-3)
    assert (binned != maps).any()
