"""Tests of shared layouts: MVTec's, and community copies with a meta.json."""

import dataclasses
import json

import pytest

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.builders import make_builder
from zsad_jax.data.benchmarks.facts import DATASETS, Archive
from zsad_jax.utils.errors import UserError


@pytest.fixture
def write_community_copy(tools):
    """Returns a function that writes a copy with a meta.json, one of whose categories has another name."""

    def write(root, category):
        entries = []
        for number in range(3):
            label = int(number > 0)
            tools.save(tools.draw(number), root / f"images/{number}.png")
            mask = f"masks/{number}.png" if label else ""
            if label:
                tools.save_mask(tools.draw_mask(number), root / mask)
            entries.append(
                {"img_path": f"images/{number}.png", "mask_path": mask, "anomaly": label}
            )
        (root / "meta.json").write_text(json.dumps({"train": {}, "test": {category: entries}}))
        return root

    return write


def test_reads_meta_json_for_any_benchmark(
    write_community_copy, prepare, pack, tmp_path, change_facts
):
    root = write_community_copy(tmp_path / "anywhere", "SDD")
    dataset = prepare("ksdd", root)
    assert dataset.categories == ("ksdd",)
    assert dataset.prompt_names == ("electrical commutators",)
    assert [(sample.label, sample.has_mask) for sample in dataset] == [(0, True)] + [(1, True)] * 2
    (root / "images/1.png").unlink()
    dataset = prepare("ksdd", root, data_dir=tmp_path / "less")
    assert len(dataset) == 2
    assert {issue.file: issue.kind for issue in dataset.issues} == {"images/1.png": "image_missing"}
    packed = pack(tmp_path, tmp_path / "packed.tar")
    change_facts("ksdd", archives=lambda known: [Archive("packed.tar", summary="")])
    assert len(prepare("ksdd", packed, data_dir=tmp_path / "unpacked")) == 2


def test_issues_of_a_copy_do_not_depend_on_its_location(write_community_copy, prepare, tmp_path):
    metadata = []
    for place in ("here", "there"):
        root = write_community_copy(tmp_path / place / "DTD-Synthetic", "Woven_001")
        content = json.loads((root / "meta.json").read_text())
        entries = content["test"]["Woven_001"]
        entries += entries[:2]
        content["train"] = {"Woven_001": [{"img_path": "gone/1.png", "anomaly": 0}]}
        (root / "meta.json").write_text(json.dumps(content))
        (root / "masks/1.png").unlink()
        dataset = prepare("dtd_synthetic", tmp_path / place, data_dir=tmp_path / f"of_{place}")
        assert len(dataset) == 3
        assert dataset.issues == (
            ("images_missing", "meta.json", "train"),
            ("entries_repeated", "meta.json", "2 in 'test'"),
            ("mask_missing", "images/1.png", "masks/1.png"),
        )
        folder = tmp_path / f"of_{place}/dtd_synthetic/1.0.0"
        metadata.append((folder / "metadata.json").read_bytes())
    assert metadata[0] == metadata[1]
    content["train"] = {"Woven_001": 3}
    (root / "meta.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"not a valid meta\.json"):
        prepare("dtd_synthetic", root, data_dir=tmp_path / "damaged")


def test_keeps_categories_contiguous(write_community_copy, prepare, tmp_path):
    """Changes an entry's category, which may differ from the list that contains it."""
    root = write_community_copy(tmp_path / "copy", "tubes")
    content = json.loads((root / "meta.json").read_text())
    content["test"]["tubes"][1]["cls_name"] = "connector"
    (root / "meta.json").write_text(json.dumps(content))
    dataset = prepare("mpdd", root)
    assert [sample.category for sample in dataset] == ["tubes", "tubes", "connector"]
    assert [sample.file_name[-5] for sample in dataset] == ["0", "2", "1"]


def test_rejects_copy_of_other_benchmark(write_community_copy, prepare, tmp_path):
    write_community_copy(tmp_path / "copies/BrainMRI", "brain")
    with pytest.raises(UserError, match="does not contain Br35H"):
        prepare("br35h", tmp_path / "copies")
    write_community_copy(tmp_path / "copies/Br35h_anomaly_detection", "brain")
    assert len(prepare("br35h", tmp_path / "copies")) == 3


def test_regular_benchmark_needs_only_facts(make_miniature, monkeypatch, tmp_path):
    make_miniature("mpdd", tmp_path / "official")
    facts = dataclasses.replace(DATASETS["mpdd"], title="Toy", about="Metal toys.")
    monkeypatch.setitem(DATASETS, "toy", facts)
    builder = make_builder("toy")(data_dir=tmp_path / "data")
    builder.download_and_prepare(source=tmp_path / "official")
    assert builder.info.description == "Toy. Metal toys."
    assert builder.info.splits["test"].num_examples > 0
    assert "toy" in benchmarks.names()
