import pathlib

import numpy as np
import pytest

from zsad_jax import downloads, files
from zsad_jax.errors import UserError
from zsad_jax.methods import released

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "tipsomaly" / "released_prompts"
GOLDEN = GOLDENS / "tipsomaly_l14h_trained_on_visa_epoch2.npz"
SHARED = pathlib.Path(__file__).parents[3] / "shared" / "weights" / "tipsomaly"


def test_a_plain_copy_of_the_published_prompts_is_read():
    prompts = released.load_prompts(GOLDEN)
    with np.load(GOLDEN) as golden:
        np.testing.assert_array_equal(prompts["normal"], golden["normal_prompt"])
        np.testing.assert_array_equal(prompts["abnormal"], golden["abnormal_prompt"])
    assert prompts["normal"].shape == (8, 1024)


@pytest.mark.parametrize("keys", released.ARRAY_NAMES)
def test_all_known_array_names_are_read(tmp_path, keys):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "p.npz", **{keys[0]: values, keys[1]: -values, "deep": values})
    prompts = released.load_prompts(tmp_path / "p.npz")
    np.testing.assert_array_equal(prompts["normal"], values)
    np.testing.assert_array_equal(prompts["abnormal"], -values)


@pytest.mark.parametrize("wrap", [list, lambda pair: {"learnable_prompts": list(pair)}])
def test_both_forms_of_the_authors_files_are_read(tmp_path, monkeypatch, wrap):
    pair = (np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32))
    monkeypatch.setattr(released, "read_torch_pickle", lambda path: wrap(pair))
    prompts = released.load_prompts(tmp_path / "p.pth")
    np.testing.assert_array_equal(prompts["normal"], pair[0])
    np.testing.assert_array_equal(prompts["abnormal"], pair[1])


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"other": np.ones((2, 3))}, "no learned prompts .* but other"),
        ({"normal": np.ones((2, 3)), "abnormal": np.ones((2, 4))}, "two equal"),
        ({"normal": np.ones(3), "abnormal": np.ones(3)}, "two equal"),
        ({"0": np.ones((2, 3), int), "1": np.ones((2, 3), int)}, "two equal"),
        ({"0": np.full((2, 3), np.nan), "1": np.ones((2, 3))}, "not finite"),
    ],
)
def test_files_without_a_pair_of_prompts_are_refused(tmp_path, arrays, problem):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(UserError, match=rf"p\.npz .*{problem}"):
        released.load_prompts(tmp_path / "p.npz")


def test_names_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="known are tipsomaly-l14-hr"):
        released.load_prompts("tipsomaly-l14-hr-visa-epoch7")
    with pytest.raises(UserError, match="known are tipsomaly"):
        released.locate("tipsomaly-l14-hr-visa-epoch7")
    (tmp_path / "p.txt").write_text("x")
    with pytest.raises(UserError, match="no prompt file"):
        released.load_prompts(tmp_path / "p.txt")
    with pytest.raises(UserError, match="does not exist"):
        released.load_prompts(tmp_path / "none.npz")


def test_a_name_is_fetched_with_its_size_and_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSAD_JAX_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(downloads, "fetch", lambda *args, **options: calls.append((args, options)))
    name = "tipsomaly-l14-hr-mvtec_ad-epoch2"
    assert released.missing_files(name) == [released.local_path(name)]
    released.locate(name)
    ((url, path), options) = calls[0]
    assert "/trained_on_mvtec_default/" in url
    assert url.endswith("/learnable_params_2.pth")
    assert path == released.local_path(name)
    assert options["size"] == 67738
    assert options["sha256"].startswith("15546df6300fe8d9")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published prompts are not here")
def test_the_published_files_are_the_recorded_ones_and_equal_their_copies():
    for published in released.PUBLISHED.values():
        path = SHARED.joinpath(*np.take(published.url.split("/"), [-4, -1]))
        assert path.stat().st_size == published.size
        assert files.digest(path) == published.sha256
        prompts, copy = (released.load_prompts(p) for p in (path, path.with_suffix(".npz")))
        np.testing.assert_array_equal(prompts["normal"], copy["normal"])
        np.testing.assert_array_equal(prompts["abnormal"], copy["abnormal"])
    path = SHARED / "trained_on_visa_default" / "learnable_params_2.pth"
    np.testing.assert_array_equal(
        released.load_prompts(path)["abnormal"], released.load_prompts(GOLDEN)["abnormal"]
    )
