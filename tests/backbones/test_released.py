import hashlib
import http.server
import io
import math
import threading

import jax
import numpy as np
import pytest
from safetensors.numpy import save

from zsad_jax import load_detector
from zsad_jax.backbones import clip, load_backbone, registry, tips
from zsad_jax.backbones.__main__ import main
from zsad_jax.backbones.load import describe_backbone
from zsad_jax.backbones.transformer import tree_of
from zsad_jax.utils import downloads
from zsad_jax.utils.errors import UserError


def npz_bytes():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(1))
    return buffer.getvalue()


NPZ = npz_bytes()
SAFETENSORS = save({"a": np.zeros(3, np.float16)})


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Runs a server in place of the published one; `files` holds its contents."""
    monkeypatch.setenv("ZSAD_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            body = self.server.files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked = {"/v1_0/checkpoints/tokenizer.model": b"pieces"}, []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(registry, "BASE_URL", base)
        monkeypatch.setattr(registry, "TOKENIZER_URL", f"{base}/v1_0/checkpoints/tokenizer.model")
        yield server
        server.shutdown()


@pytest.mark.parametrize("name", ["tips-s14-hr", "clip-vit-b16"])
def test_rejects_image_size_before_fetching(published, name):
    with pytest.raises(UserError, match="image_size=520 is not a multiple of"):
        load_backbone(name, image_size=520)
    with pytest.raises(UserError, match="image_size=520 is not a multiple of"):
        load_detector(backbone=name, backbone_options={"image_size": 520})
    assert not published.asked


def test_fetches_three_tips_files_once(published):
    stem = "/v1_0/checkpoints/scenic/tips_oss_s14_highres_distilled"
    published.files |= {f"{stem}_vision.npz": NPZ, f"{stem}_text.npz": NPZ}
    missing = registry.missing_files("tips-s14-hr")
    assert len(missing) == 3
    found = registry.locate("tips-s14-hr")
    assert sorted(path for path in found if path) == sorted(missing)
    assert found.tokenizer.read_bytes() == b"pieces"
    assert registry.missing_files("tips-s14-hr") == []
    assert registry.locate("tips-s14-hr") == found
    assert len(published.asked) == 3
    assert len(registry.missing_files("tips-s14-hr", "pytorch")) == 2


def test_tries_second_file_name_if_first_is_missing(published):
    stem = "/v2_0/checkpoints/scenic/tips_v2_so400m14"
    published.files |= {f"{stem}_{side}.npz": NPZ for side in ("vision", "text")}
    found = registry.locate("tipsv2-so400m14")
    assert found.vision.name == "tips_v2_so400m14_vision.npz"
    assert registry.missing_files("tipsv2-so400m14") == []


def test_discards_damaged_tips_file(published, tmp_path):
    stem = "/v1_0/checkpoints/scenic/tips_oss_s14_highres_distilled"
    for damaged in (NPZ[:-30], b"<html>not found</html>"):
        published.files[f"{stem}_vision.npz"] = damaged
        with pytest.raises(UserError, match="not a complete npz, safetensors or PyTorch file"):
            registry.locate("tips-s14-hr")
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_missing_file_error_says_where_to_put_it(published, tmp_path):
    place = tmp_path / "home/weights/tips/native/tips_oss_l14_highres_distilled_vision.npz"
    with pytest.raises(UserError, match=rf"vision tower of tips-l14-hr .*404.* save it as {place}"):
        registry.locate("tips-l14-hr")


def test_record_has_sizes_of_both_towers():
    release = registry.RELEASES["clip-vit-l14-336"]
    assert (release.vision, release.text) == (
        {
            "patch_size": 14, "width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096,
            "grid": 24, "embed_dim": 768, "activation": "quick_gelu",
        },
        {
            "vocabulary": 49408, "width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072,
            "length": 77, "embed_dim": 768, "activation": "quick_gelu",
        },
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name, one in registry.RELEASES.items() if one.demo])
def test_sizes_of_included_models_match_their_files(name):
    if registry.missing_files(name):
        pytest.skip(f"{name} is not available")
    loaded, described = load_backbone(name), describe_backbone(name)
    assert jax.tree.map(lambda leaf: leaf.shape, loaded.params) == jax.tree.map(
        lambda leaf: leaf.shape, described.params
    )


def count_leaves(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# Counted on the published models; the text side also has a temperature.
@pytest.mark.parametrize(
    ("family", "name", "vision", "text"),
    [
        (clip, "clip-vit-l14-336", 304_293_888, 123_650_304),
        (clip, "clip-vit-b32", 87_849_216, 63_428_096),
        (clip, "clip-vit-b16", 86_192_640, 63_428_096),
        (tips, "tips-s14-hr", 21_619_584, 33_582_336),
        (tips, "tips-l14-hr", 303_178_752, 183_924_736),
        (tips, "tipsv2-b14", 86_296_320, 109_632_000),
    ],
)
def test_sizes_give_published_parameter_counts(family, name, vision, text):
    of_vision, of_text = registry.RELEASES[name].vision, registry.RELEASES[name].text
    assert count_leaves(tree_of(family.VisionEncoder(family.VisionSizes(**of_vision)))) == vision
    assert count_leaves(tree_of(family.TextEncoder(family.TextSizes(**of_text)))) == text + 1


@pytest.mark.parametrize(("family", "name"), [(clip, "clip-nano"), (tips, "tips-nano")])
def test_tower_shapes_match_whole_module(family, name):
    of_vision, of_text = registry.RELEASES[name].vision, registry.RELEASES[name].text
    tower = family.VisionEncoder(family.VisionSizes(**of_vision))
    patch = of_vision["patch_size"]
    image = jax.ShapeDtypeStruct((1, patch, patch, 3), np.float32)
    key = jax.random.key(0)
    assert tree_of(tower) == jax.eval_shape(tower.init, key, image)["params"]
    tower, token = (
        family.TextEncoder(family.TextSizes(**of_text)),
        jax.ShapeDtypeStruct((1, 1), np.int32),
    )
    assert tree_of(tower) == jax.eval_shape(tower.init, key, token, token)["params"]


def test_rejects_unknown_names_and_lineages():
    with pytest.raises(UserError, match=r"Did you mean .*tips-l14-hr"):
        registry.locate("tips-l14")
    with pytest.raises(
        UserError, match=r"'torch' is not a lineage of tips-l14-hr\. Did you mean pytorch"
    ):
        registry.locate("tips-l14-hr", "torch")


SMALL_CLIP = "clip-vit-b32"


def serve_clip(published, monkeypatch, weights, merges=b"merges"):
    base = f"http://127.0.0.1:{published.server_port}"
    monkeypatch.setattr(registry, "CLIP_URL", f"{base}/{{}}/model.safetensors")
    monkeypatch.setattr(registry, "MERGES_URL", f"{base}/merges.gz")
    monkeypatch.setattr(registry, "MERGES_BYTES", len(merges))
    monkeypatch.setattr(registry, "MERGES_SHA256", hashlib.sha256(b"merges").hexdigest())
    published.files["/vit_base_patch32_clip_224.openai/model.safetensors"] = weights
    published.files["/merges.gz"] = merges


def test_fetches_two_clip_files_once(published, monkeypatch, tmp_path):
    serve_clip(published, monkeypatch, SAFETENSORS)
    folder = tmp_path / "home/weights/clip"
    paths = [folder / "clip-vit-b32.safetensors", folder / "bpe_simple_vocab_16e6.txt.gz"]
    assert registry.missing_files(SMALL_CLIP) == paths
    found = registry.locate(SMALL_CLIP)
    assert found == (paths[0], None, None, paths[1])
    assert found.tokenizer.read_bytes() == b"merges"
    assert registry.locate(SMALL_CLIP) == found
    assert registry.missing_files(SMALL_CLIP) == []
    assert len(published.asked) == 2


def test_discards_damaged_clip_file(published, monkeypatch, tmp_path):
    serve_clip(published, monkeypatch, SAFETENSORS[:-1])
    with pytest.raises(UserError, match="not a complete npz, safetensors or PyTorch file"):
        registry.locate(SMALL_CLIP)
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_uses_user_converted_weights(published, monkeypatch, tmp_path):
    serve_clip(published, monkeypatch, b"")
    own = tmp_path / "home/weights/clip/clip-vit-b32.npz"
    own.parent.mkdir(parents=True)
    own.write_bytes(NPZ)
    assert registry.locate(SMALL_CLIP).weights == own
    assert registry.missing_files(SMALL_CLIP) == []


@pytest.mark.parametrize("merges", [None, b"MERGES"])
def test_warns_of_clip_without_merges(published, monkeypatch, caplog, tmp_path, merges):
    serve_clip(published, monkeypatch, SAFETENSORS, merges or b"merges")
    published.files["/merges.gz"] = merges
    with caplog.at_level("WARNING", logger="absl"):
        found = registry.locate(SMALL_CLIP)
    assert found.tokenizer is None
    assert found.weights.exists()
    assert f"save it as {tmp_path}/home/weights/clip/bpe_simple_vocab_16e6" in caplog.text


def test_offline_clip_error_says_where_to_put_files(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSAD_JAX_HOME", str(tmp_path))
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    monkeypatch.setattr(registry, "CLIP_URL", "http://127.0.0.1:9/{}/model.safetensors")
    place = tmp_path / "weights/clip/clip-vit-l14-336.safetensors"
    with pytest.raises(UserError, match=rf"weights of clip-vit-l14-336 .* save it as {place}"):
        registry.locate("clip-vit-l14-336")


def test_included_model_is_stored_in_the_package():
    found = registry.locate("tips-nano")
    assert found.vision.name == "tips_nano_vision.npz"
    assert found.text.parent == found.tokenizer.parent == registry.ASSETS / "tips-nano"
    assert found.weights is None
    small = registry.locate("clip-nano")
    assert small.weights == registry.ASSETS / "clip-nano/clip_nano.safetensors"
    assert small.tokenizer == registry.ASSETS / "clip-nano/bpe_simple_vocab.txt.gz"
    assert small.vision is small.text is None


def test_command_in_error_message_works(published, capsys):
    stem = "/v1_0/checkpoints/pytorch/tips_oss_s14_highres_distilled"
    published.files |= {f"{stem}_vision.npz": NPZ, f"{stem}_text.npz": NPZ}
    command = registry.fetch_command("tips-s14-hr", "pytorch").split()
    assert command[:3] == ["python", "-m", "zsad_jax.backbones"]
    assert main(command[3:]) == 0
    files = registry.locate("tips-s14-hr", "pytorch")
    assert capsys.readouterr().out.split() == [str(path) for path in files if path]
    assert main(["list"]) == 0
    stored = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines()}
    assert stored["tips-s14-hr"] == "pytorch"
    assert stored["tips-b14-hr"] == stored["clip-vit-b16"] == "no"
    assert stored["tips-nano"] == stored["clip-nano"] == "included"
