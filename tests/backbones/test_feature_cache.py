"""Tests of stored features: equal to those of encoding, resumed, bounded, and removed."""

import dataclasses
import io
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from zsad_jax.backbones import Backbone, feature_cache
from zsad_jax.backbones.__main__ import main
from zsad_jax.backbones.feature_cache import Features, FeaturesConfig, Store
from zsad_jax.data.dataset import Sample, Samples
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils import distributed
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.sharding import make_mesh

SIZE, COUNT, ROWS = 6, 11, 2
KEY = ((1,), None, True)
MODES = ("none", "memory", "disk", "auto")


def png(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def dataset(count=COUNT):
    """Returns noise with masks; image 3 is broken, and the mask of image 1 is empty."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        mask = rng.integers(0, 2, (SIZE, SIZE)).astype(bool) & (number != 1)
        pixels = rng.integers(0, 256, (SIZE, 2 * SIZE, 3), dtype=np.uint8)
        samples.append(
            Sample(
                image=b"broken" if number == 3 else png(pixels),
                mask=png(np.repeat(mask, 2, axis=1)) if number % 2 else None,
                has_mask=number != 4,
                label=number % 2,
                category="ab"[number // 6],
                file_name=f"{number}.png",
            )
        )
    return Samples("noise", samples)


def backbone(**changes):
    fields = {field.name: None for field in dataclasses.fields(Backbone)}
    kernel = np.random.default_rng(1).normal(size=(SIZE * SIZE * 3, 5)).astype(np.float32)
    toy = {"name": "toy", "params": {"kernel": kernel}, "preprocess": Preprocess(image_size=SIZE)}
    return Backbone(**fields | toy | changes)


def encode(frozen, params, images):
    """Returns leaves of several types, whose values depend on the rounding of a product."""
    x = images.reshape(len(images), -1) @ frozen["kernel"]
    return {
        "wide": x[:, None],
        "half": x.astype(jnp.bfloat16),
        "count": jnp.int32(images.sum((1, 2, 3))),
    }


def open_features(cache, *, encoders=None, dtype=None, max_gb=1.0, rows=ROWS, data=None, **changes):
    config = FeaturesConfig(cache=cache, dtype=dtype, max_gb=max_gb)
    data, encoders = data or dataset(), encoders or {KEY: encode}
    return Features(data, backbone(**changes), encoders, config, mesh=make_mesh(), rows=rows)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Gives shards two batches, so that the set has three."""
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 320)


def shards():
    return sorted(feature_cache.root().glob("*/*.npy"))


def stamps():
    return [path.stat().st_mtime_ns for path in shards()]


ARRAYS = ("masks", "has_mask", "labels", "category", "index", "valid")
TEXTS = ("file_names", "issues", "notes")


def gather(batches):
    """Returns the arrays of all rows of batches, which padding is zeroed in, and their texts."""
    parts, texts = [], dict.fromkeys(TEXTS, ())
    for batch, features in batches:
        rows = {name: getattr(batch, name) for name in ARRAYS} | {"features": features}
        rows = jax.tree.map(lambda x: np.array(x), rows)
        for x in jax.tree.leaves(rows["features"]):
            x[batch.index < 0] = 0
        parts.append(rows)
        texts = {name: texts[name] + getattr(batch, name) for name in TEXTS}
    return jax.tree.map(lambda *x: np.concatenate(x), *parts), texts


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda x: getattr(x, "dtype", None), found) == jax.tree.map(
        lambda x: getattr(x, "dtype", None), expected
    )


ORDER = np.array([7, 3, 10, -1, 0, 1, 9, 3])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("cache", MODES)
def test_all_modes_read_the_same_bits(cache, dtype):
    """Compares shuffled and padded batches, of more and of fewer rows than those that were encoded."""
    direct = open_features("none", dtype=dtype)
    for _ in range(2):  # encoded, then found again
        features = open_features(cache, dtype=dtype)
        for rows in (1, 2, 3, 8):
            expected = gather(direct.read(ORDER, rows))
            found = gather(features.read(ORDER, rows))
            assert_same(found, expected)
    assert len(shards()) == (3 if cache in ("disk", "auto") else 0)
    wide = found[0]["features"][KEY]["wide"]
    assert wide.dtype == np.float32
    rounded = wide.astype(jnp.bfloat16).astype(np.float32)
    assert np.array_equal(rounded, wide) == (dtype == "bfloat16")
    assert found[0]["index"].tolist() == ORDER.tolist()
    assert found[1]["file_names"][:4] == ("7.png", "3.png", "10.png", "")
    assert [[issue.file for issue in row] for row in found[1]["issues"]] == [
        ["3.png"] if position == 3 else [] for position in ORDER
    ]
    assert [[note[:2] for note in row] for row in found[1]["notes"]] == [
        [("mask_empty", "1.png")] if position == 1 else [] for position in ORDER
    ]
    assert found[0]["valid"].tolist() == [True, False, True, False, True, True, True, False]


@pytest.mark.parametrize("cache", ["memory", "auto"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_resident_features_are_those_that_are_read(cache, dtype):
    features = open_features(cache, dtype=dtype)
    batch, found = features.resident()
    (read, expected), *_ = features.read(np.arange(COUNT), COUNT)
    assert batch.images is None
    assert_same(batch, read)
    assert_same(found, expected)


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_nothing_is_resident_where_it_was_not_asked_for(cache):
    assert open_features(cache).resident() is None


def test_features_too_large_for_the_device_are_not_resident(monkeypatch):
    features = open_features("auto")
    assert features.resident() is not None
    monkeypatch.setattr(distributed, "available_memory", lambda: 1000)
    assert features.resident() is None


def test_pixels_come_with_stored_features():
    expected, found = (
        next(open_features(cache).read(np.array([5, -1]), 2, pixels=True))
        for cache in ("none", "disk")
    )
    assert_same(found[0], expected[0])
    assert found[0].images.shape == (2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(found[1][KEY]["wide"][0], expected[1][KEY]["wide"][0])


def test_other_keys_are_computed_beside_stored_ones():
    """Checks a key that is not a tuple, and None, which gives the images."""
    encoders = {KEY: encode, encode: encode, None: None}
    features = open_features("disk", encoders=encoders)
    ((batch, found),) = features.read(np.arange(4), 4)
    assert batch.images is None
    assert_same(found[encode], found[KEY])
    assert found[None].shape == (4, SIZE, SIZE, 3)
    assert len({path.parent for path in shards()}) == 1
    assert features.resident() is None


def test_keys_that_are_missing_are_encoded_in_one_pass():
    other = ((2,), None, True)
    open_features("disk", encoders={KEY: encode})
    before = stamps()
    both = open_features(
        "disk", encoders={KEY: encode, other: lambda frozen, params, x: x.mean((1, 2))}
    )
    assert sorted(stamps())[:3] == sorted(before)
    ((_, found),) = both.read(np.arange(4), 4)
    assert found[other].shape == (4, 3)
    assert len({path.parent for path in shards()}) == 2


class KilledError(Exception):
    pass


def test_killed_encoding_resumes_at_next_shard(monkeypatch):
    def finish(self, *args):
        if len(shards()) == 2:
            raise KilledError
        return add(self, *args)

    add = Store.add
    expected = gather(open_features("none").read(ORDER, 2))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", finish)
        with pytest.raises(KilledError):
            open_features("disk")
    left, loaded = stamps(), []
    monkeypatch.setattr(
        feature_cache, "load_batches", lambda *a, **k: loaded.append(k["indices"]) or load(*a, **k)
    )
    features = open_features("disk")
    assert (stamps()[:2], len(stamps())) == (left, 3)
    assert loaded == [[8, 9, 10, -1]]
    assert_same(gather(features.read(ORDER, 2)), expected)


load = feature_cache.load_batches


def test_shards_of_another_size_are_not_read(monkeypatch):
    expected = gather(open_features("disk").read(ORDER, 2))
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 2 * feature_cache.SHARD_BYTES)
    assert_same(gather(open_features("disk").read(ORDER, 2)), expected)


def test_shard_with_another_number_of_images_is_encoded_again():
    expected = gather(open_features("disk").read(ORDER, 2))
    first, _, last = shards()
    for suffix in (".npy", ".json"):
        shutil.copy(first.with_suffix(suffix), last.with_suffix(suffix))
    assert_same(gather(open_features("disk").read(ORDER, 2)), expected)


def test_unreadable_images_are_tried_again_in_the_next_run(monkeypatch):
    data = dataset()
    open_features("disk", data=data)
    before = stamps()
    # As if image 3 could not be read for a moment: the fingerprint of the dataset is the same.
    data[3].__dict__["image"] = data[5].image
    monkeypatch.setattr(data, "fingerprint", dataset().fingerprint)
    ((batch, _),) = open_features("disk", data=data).read(np.array([3]), 1)
    assert not batch.valid[0]
    monkeypatch.setattr(feature_cache, "_stored_here", set())
    ((batch, _),) = open_features("disk", data=data).read(np.array([3]), 1)
    assert batch.valid[0]
    after = stamps()
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_issues_of_images_with_the_same_name_are_their_own():
    samples = [dataclasses.replace(sample, file_name="x.png") for sample in dataset()]
    features = open_features("memory", data=Samples("noise", samples))
    ((batch, _),) = features.read(np.arange(COUNT), COUNT)
    assert [len(row) for row in batch.issues] == [0, 0, 0, 1, *[0] * 7]
    assert [len(row) for row in batch.notes] == [0, 1, *[0] * 9]


def test_towers_are_traced_once_for_all_datasets():
    def count_traces(frozen, params, images):
        traced.append(images.shape)
        return encode(frozen, params, images)

    traced, counts = [], []
    for count in (COUNT, 8):
        open_features("memory", encoders={KEY: count_traces}, data=dataset(count))
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0


def flip(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("damage", [flip, os.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_shard_is_encoded_again(suffix, damage):
    expected = gather(open_features("disk").read(ORDER, 2))
    before, whole = stamps(), shards()[1].read_bytes()
    damage(shards()[1].with_suffix(suffix))
    assert_same(gather(open_features("disk").read(ORDER, 2)), expected)
    after = stamps()
    assert [after[0], after[2]] == [before[0], before[2]]
    assert after[1] != before[1]
    assert shards()[1].read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        {"encoders": {((2,), None, True): encode}},
        {"rows": 3},
        {"dtype": "bfloat16"},
        {"data": dataset(10)},
        {"digest": "other"},
        {"options": {"activation": "gelu"}},
        {"preprocess": Preprocess(image_size=SIZE, std=(2.0, 1.0, 1.0))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_features_depend_on_is_in_the_key(change):
    open_features("disk")
    open_features("disk", **change)
    assert len(feature_cache.list_sets()) == 2


@pytest.mark.parametrize("name", ["backbones/tips.py", "data/preprocess.py"])
def test_code_that_features_depend_on_is_in_the_key(name, tmp_path, monkeypatch):
    for folder in ("backbones", "data"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(feature_cache, "__file__", str(tmp_path / "backbones" / "feature_cache.py"))
    for text in ("x = 1", "x = 2"):
        feature_cache._digest_code.cache_clear()
        (tmp_path / name).write_text(text)
        open_features("disk")
    feature_cache._digest_code.cache_clear()
    assert len(feature_cache.list_sets()) == 2


def test_rejects_sets_that_do_not_fit(monkeypatch, caplog):
    size = next(iter(open_features("memory")._stores.values())).size
    for cache in ("disk", "memory"):
        with pytest.raises(
            UserError, match=r"needs .* but 1e-07 GB of features\.max_gb=1e-07 are left"
        ):
            open_features(cache, max_gb=1e-7)
    monkeypatch.setattr(distributed, "available_memory", lambda: 3.9e9 * size)
    with caplog.at_level("INFO", logger="absl"):
        features = open_features("auto", max_gb=1e-7)
    assert "11 images" in caplog.text
    assert "not stored: " in caplog.text
    assert features.resident() is None
    disk = shutil.disk_usage("/")._replace(free=2e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert not open_features("auto")._stores
    monkeypatch.setattr(distributed, "available_memory", lambda: 4e9 * size)
    assert open_features("auto")._stores[KEY].folder is None
    assert shards() == []
    monkeypatch.setattr(distributed, "available_memory", lambda: 1.9e9 * size)
    with pytest.raises(UserError, match="of memory are available"):
        open_features("memory")


def test_stored_sets_count_and_are_read_without_room():
    open_features("disk")
    used = sum(path.stat().st_size for path in shards())
    open_features("disk", max_gb=1e-9)  # it is there already
    with pytest.raises(UserError, match="features clear"):
        open_features("disk", rows=3, max_gb=1.1 * used / 1e9)
    open_features("disk", rows=3, max_gb=3 * used / 1e9)


def test_auto_uses_memory_beside_a_read_only_home(monkeypatch):
    open_features("disk")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert open_features("auto")._stores[KEY].folder is None


def test_log_says_where_features_are(caplog, home):
    with caplog.at_level("INFO", logger="absl"):
        for _ in range(3):
            open_features("disk")
    lines = [line for line in caplog.messages if line.startswith("Features of")]
    place = shards()[0].parent
    expected = "Features of noise (toy, 6 px, blocks 1): 11 images, 7.92e-07 GB, "
    assert lines == [f"{expected}stored in {place}", *[f"{expected}read from {place}"] * 2]
    assert place.parent == home / "features"


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_notes_are_logged_once(cache, caplog):
    features = open_features(cache)
    with caplog.at_level("INFO", logger="absl"):
        for order in (np.arange(COUNT), np.arange(COUNT)[::-1]):
            list(features.read(order, 4))
            list(features.read(order, 4, pixels=True))
    assert sum("mask is empty" in line for line in caplog.messages) == 1


@pytest.fixture
def full_disk(monkeypatch):
    def save(path, array):
        raise OSError(f"{array.nbytes} requested and 0 written")

    monkeypatch.setattr(np, "save", save)


def test_auto_encodes_images_when_the_disk_is_full(full_disk, caplog):
    expected = gather(open_features("none").read(ORDER, 2))
    features = open_features("auto")
    assert "00000.npy is full." in caplog.text
    assert "--config.features.cache=none" in caplog.text
    assert not features.stored
    assert_same(gather(features.read(ORDER, 2)), expected)


def test_full_disk_is_an_error_with_the_path(full_disk):
    with pytest.raises(UserError, match=r"00000\.npy is full.* --config\.features\.cache=none"):
        open_features("disk")


def test_command_lists_and_clears(capsys, home):
    held = open_features("disk")
    used = shards()[0].parent.name
    open_features("disk", rows=3)
    assert main(["features", "list"]) == 0
    _, *rows, place = capsys.readouterr().out.splitlines()
    assert [line.split()[1:8] for line in rows] == [
        ["noise", "toy", "6", "1", "11", "of", "11"]
    ] * 2
    assert place == f"Stored in {home / 'features'}"
    assert main(["features", "clear"]) == 0
    assert f"{used}: in use, not removed\n" in capsys.readouterr().out
    assert {path.parent.name for path in shards()} == {used}
    del held
    assert main(["features", "clear", used]) == 0
    assert f"{used}: removed, " in capsys.readouterr().out
    assert not [*feature_cache.root().glob("*/")]


def test_command_rejects_unknown_keys(capsys):
    open_features("disk")
    with pytest.raises(SystemExit):
        main(["features", "clear", "mvtec_ad"])
    assert "'mvtec_ad' is not the key of stored features. Available: " in capsys.readouterr().err
    assert len(shards()) == 3


def test_command_lists_damaged_sets(capsys):
    open_features("disk")
    (shards()[0].parent / "info.json").write_text("{")
    assert main(["features", "list"]) == 0
    assert f"{shards()[0].parent.name}  –" in capsys.readouterr().out


def test_listing_ignores_sets_that_are_removed_meanwhile():
    open_features("disk")
    gone = shards()[0]
    gone.unlink()
    gone.symlink_to("removed")
    assert not feature_cache.list_sets()


def test_leftovers_of_killed_runs_are_removed():
    open_features("disk")
    left = shards()[0].with_name(".00001.abcdefgh.part.npy")
    left.write_bytes(b"x")
    open_features("disk")
    assert not left.exists()
