"""Tests of writing records incrementally into several files."""

import tracemalloc

import numpy as np

from zsad_jax.data.benchmarks import shards
from zsad_jax.data.benchmarks.builders import BUILDERS


def files_of(data_dir, name):
    return sorted(path.name for path in data_dir.glob(f"{name}/1.0.0/*array_record*"))


def test_split_in_several_files_reads_as_one(make_miniature, prepare, tmp_path, monkeypatch):
    make_miniature("mvtec_ad", tmp_path / "official")
    whole = prepare("mvtec_ad", tmp_path / "official", data_dir=tmp_path / "one")
    assert files_of(tmp_path / "one", "mvtec_ad") == [
        "mvtec_ad-test.array_record-00000-of-00001",
        "mvtec_ad-train.array_record-00000-of-00001",
    ]
    monkeypatch.setattr(shards, "SHARD_BYTES", 1500)
    several = prepare("mvtec_ad", tmp_path / "official", data_dir=tmp_path / "several")
    names = files_of(tmp_path / "several", "mvtec_ad")
    test = [name for name in names if "-test." in name]
    assert len(test) > 2
    assert test[-1].endswith(f"-{len(test) - 1:05}-of-{len(test):05}")
    assert list(several) == list(whole)
    assert not list((tmp_path / "several").rglob("*unfinished*"))
    builder = BUILDERS["mvtec_ad"](data_dir=tmp_path / "several")
    assert builder.info.splits["test"].num_shards == len(test)
    assert sum(builder.info.splits["test"].shard_lengths) == len(whole)


def test_memory_does_not_grow_with_split(tmp_path):
    """Writes forty records of four megabytes; only a few of them are in memory."""
    benchmark = BUILDERS["visa"](data_dir=tmp_path)
    noise = np.random.default_rng(0).bytes(4 << 20)
    template = benchmark._get_filename_template(split_name="test")
    template.data_dir = tmp_path

    def examples():
        for index in range(40):
            yield {
                **dict.fromkeys(("category", "defect", "prompt_name", "file_name", "subject"), ""),
                **{"image": noise, "mask": noise, "has_mask": True, "label": 0, "slice": index},
            }

    tracemalloc.start()
    info = shards.write_split(examples(), benchmark.info.features, template)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert info.num_examples == 40
    assert info.num_bytes > 40 * 2 * len(noise)
    assert peak < 20 * len(noise)
