import pathlib

import jax
import numpy as np
import pytest

from zsad_jax import load_backbone
from zsad_jax.methods import METHODS, make_method, param_shapes
from zsad_jax.methods.shared import prompt_files
from zsad_jax.methods.tipsomaly import import_params
from zsad_jax.utils import downloads, files
from zsad_jax.utils.errors import UserError

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "tipsomaly" / "released_prompts"
GOLDEN = GOLDENS / "tipsomaly_l14h_trained_on_visa_epoch2.npz"
SHARED = pathlib.Path(__file__).parents[3] / "shared" / "weights" / "tipsomaly"


def read_pair(path):
    """Returns the prompts that TIPSomaly reads from a file."""
    return import_params(prompt_files.read_state(path))


def test_reads_copy_of_published_prompts():
    prompts = read_pair(GOLDEN)
    with np.load(GOLDEN) as golden:
        np.testing.assert_array_equal(prompts["normal"], golden["normal_prompt"])
        np.testing.assert_array_equal(prompts["abnormal"], golden["abnormal_prompt"])
    assert prompts["normal"].shape == (8, 1024)


@pytest.fixture(scope="module")
def nano():
    return load_backbone("clip-nano")


@pytest.mark.parametrize("name", METHODS)
def test_reads_what_it_writes(name, nano, tmp_path):
    # The small vocabulary lacks the words of the default.
    words = {"adjectives": ("normal", "abnormal")}
    options = words if name == "vip2clip" else None
    method = make_method(name, nano, options)
    rng = np.random.default_rng(0)
    shapes = param_shapes(method, nano)
    params = jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)
    if not params:
        pytest.skip("learns nothing")
    path = tmp_path / "prompts.npz"
    prompt_files.save(path, params)
    read = prompt_files.load(prompt_files.find(str(path)), method, nano)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_writes_no_objects(tmp_path):
    with pytest.raises(TypeError, match="layers is not an array"):
        prompt_files.save(tmp_path / "prompts.npz", {"layers": [{"kernel": np.zeros(2)}, {}]})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "keys", [("normal", "abnormal"), ("normal_prompt", "abnormal_prompt"), ("0", "1")]
)
def test_reads_all_known_array_names(tmp_path, keys):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "p.npz", **{keys[0]: values, keys[1]: -values, "deep": values})
    prompts = read_pair(tmp_path / "p.npz")
    np.testing.assert_array_equal(prompts["normal"], values)
    np.testing.assert_array_equal(prompts["abnormal"], -values)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"other": np.ones((2, 3))}, "lacks 'a normal and an anomalous matrix'.* holds other"),
        ({"normal": np.ones((2, 8)), "abnormal": np.ones((3, 8))}, "wrong shape"),
        ({"normal": np.ones(3), "abnormal": np.ones(3)}, "wrong shape"),
        ({"0": np.full((8, 64), np.nan), "1": np.ones((8, 64))}, "not finite"),
    ],
)
def test_rejects_files_without_prompt_pair(backbone, tmp_path, arrays, problem):
    np.savez(tmp_path / "p.npz", **arrays)
    method = make_method("tipsomaly", backbone)
    with pytest.raises(UserError, match=rf"p\.npz .*{problem}"):
        prompt_files.load(prompt_files.find(str(tmp_path / "p.npz")), method, backbone)


def test_rejects_unknown_names(tmp_path):
    with pytest.raises(UserError, match="Did you mean tipsomaly-l14-hr-visa"):
        prompt_files.read_state("tipsomaly-l14-hr-visa-epoch7")
    with pytest.raises(UserError, match="Did you mean tipsomaly-l14-hr-visa"):
        prompt_files.locate("tipsomaly-l14-hr-visa-epoch7")
    (tmp_path / "p.txt").write_text("x")
    with pytest.raises(UserError, match=r"p.txt is not a readable file .*its format is unknown"):
        prompt_files.read_state(tmp_path / "p.txt")
    with pytest.raises(UserError, match="does not exist"):
        prompt_files.read_state(tmp_path / "none.npz")


def test_reads_a_file_without_suffix_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "p.npz", normal=np.ones(3))
    (tmp_path / "p.npz").rename(tmp_path / "p")
    assert prompt_files.read_state("~/p")["normal"].shape == (3,)


def test_fetches_name_with_size_and_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSAD_JAX_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(downloads, "fetch", lambda *args, **options: calls.append((args, options)))
    name = "tipsomaly-l14-hr-mvtec_ad-epoch2"
    assert not prompt_files.find(name).path.exists()
    prompt_files.locate(name)
    ((url, path), options) = calls[0]
    assert "/trained_on_mvtec_default/" in url
    assert url.endswith("/learnable_params_2.pth")
    assert path == prompt_files.local_path(name)
    assert options["size"] == 67738
    assert options["sha256"].startswith("15546df6300fe8d9")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published prompts are not available")
def test_published_files_match_records_and_copies():
    for published in prompt_files.RELEASES.values():
        path = SHARED.joinpath(*np.take(published.url.split("/"), [-4, -1]))
        assert path.stat().st_size == prompt_files.SIZE
        assert files.digest(path) == published.sha256
        prompts, copy = (read_pair(p) for p in (path, path.with_suffix(".npz")))
        np.testing.assert_array_equal(prompts["normal"], copy["normal"])
        np.testing.assert_array_equal(prompts["abnormal"], copy["abnormal"])
    path = SHARED / "trained_on_visa_default" / "learnable_params_2.pth"
    np.testing.assert_array_equal(read_pair(path)["abnormal"], read_pair(GOLDEN)["abnormal"])


def test_records_state_training_of_released_prompts(tmp_path):
    for name, release in prompt_files.RELEASES.items():
        assert prompt_files.find(name).epoch == release.epoch
        assert name.endswith(f"{release.auxiliary}-epoch{release.epoch}")
    own = tmp_path / "epoch7.npz"
    own.touch()
    file = prompt_files.find(str(own))
    assert (file.name, file.epoch) == ("epoch7.npz", None)


def test_given_prompts_precede_included_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_files, "ASSETS", tmp_path)
    included = tmp_path / "toy" / "coop_prompts.npz"
    assert prompt_files.choose("coop", "toy") == prompt_files.FIXED
    included.parent.mkdir()
    included.touch()
    assert prompt_files.choose("coop", "toy").path == included
    assert prompt_files.choose("coop", "toy", auxiliary="synthetic_aux").path == included
    assert prompt_files.choose("coop", "toy", auxiliary="visa") == prompt_files.FIXED
    assert prompt_files.choose("coop", "toy", learns=False) == prompt_files.FIXED
    name = "tipsomaly-l14-hr-visa-epoch2"
    assert prompt_files.choose("coop", "toy", name).source == name
    assert prompt_files.choose("coop", "toy", name, learns=False).source == name
    assert prompt_files.choose("coop", "toy", default=name).source == name
    assert prompt_files.choose("coop", "toy", default=name, learns=False) == prompt_files.FIXED
