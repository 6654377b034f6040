import pathlib
import runpy
import sys
import zipfile

import numpy as np
import pytest

from zsad_jax.backbones import load_backbone
from zsad_jax.backbones.checkpoints.read import read_arrays

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "convert_clip.py"


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(SCRIPT))["main"]


@pytest.fixture(scope="module")
def openai():
    """A CLIP of width 8 with one block a tower, in half precision as OpenAI's."""
    rng = np.random.default_rng(0)
    shapes = {
        "visual.conv1.weight": (8, 3, 2, 2),
        "visual.class_embedding": (8,),
        "visual.positional_embedding": (5, 8),
        "visual.proj": (8, 6),
        "token_embedding.weight": (20, 8),
        "positional_embedding": (10, 8),
        "text_projection": (8, 6),
        "logit_scale": (),
    }
    norms = ["visual.ln_pre", "visual.ln_post", "ln_final"]
    for block in ("visual.transformer.resblocks.0", "transformer.resblocks.0"):
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        for name, rows, columns in (
            ("attn.in_proj_", 24, 8),
            ("attn.out_proj.", 8, 8),
            ("mlp.c_fc.", 32, 8),
            ("mlp.c_proj.", 8, 32),
        ):
            shapes[f"{block}.{name}weight"] = (rows, columns)
            shapes[f"{block}.{name}bias"] = (rows,)
    shapes |= {f"{norm}.{kind}": (8,) for norm in norms for kind in ("weight", "bias")}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def write_torchscript(path, arrays):
    """An archive as OpenAI's: a scripted module, with three numbers more."""
    import torch

    class Part(torch.nn.Module):
        def forward(self, x):
            return x

    root = Part()
    for name, array in arrays.items():
        *parents, last = name.split(".")
        part = root
        for parent in parents:
            if parent not in dict(part.named_children()):
                part.add_module(parent, Part())
            part = dict(part.named_children())[parent]
        part.register_parameter(last, torch.nn.Parameter(torch.from_numpy(np.array(array))))
    for name, number in (("input_resolution", 4), ("context_length", 10), ("vocab_size", 20)):
        root.register_buffer(name, torch.tensor(number))
    torch.jit.script(root).save(str(path))


def write_state_dict(path, arrays):
    import torch

    state = {f"module.{name}": torch.from_numpy(np.array(x)) for name, x in arrays.items()}
    torch.save({"epoch": 3, "state_dict": state}, path)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [write_torchscript, write_state_dict])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_an_archive_becomes_a_file_that_loads(main, openai, tmp_path, write, suffix, capsys):
    pytest.importorskip("torch")
    source, target = tmp_path / "ViT.pt", tmp_path / f"clip{suffix}"
    write(source, openai)
    assert main([str(source), str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    found = read_arrays(target)
    assert found.keys() == openai.keys()
    for name, array in openai.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array.astype(np.float32))
    if suffix == ".npz":
        assert all(array.dtype == np.float16 for array in np.load(target).values())
    assert load_backbone("clip", weights=target, num_heads=2).embed_dim == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name])


@pytest.mark.parity
def test_another_model_is_refused(main, tmp_path, openai, capsys):
    pytest.importorskip("torch")
    incomplete = {name: array for name, array in openai.items() if "ln_2" not in name}
    write_state_dict(tmp_path / "some.pt", incomplete)
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "some.pt"), str(tmp_path / "some.npz")])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "2 missing: " in message
    assert "transformer/encoderblock_0/LayerNorm_1/scale" in message
    assert not (tmp_path / "some.npz").exists()


def test_mistakes_are_one_sentence(main, tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "ViT.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    for arguments, sentence in (
        (("ViT.pt", "out.npz"), "only PyTorch reads: pip install torch"),
        (("ViT.pt", "out.bin"), r"must end in .safetensors or .npz"),
        (("none.pt", "out.npz"), "does not exist"),
    ):
        with pytest.raises(SystemExit) as end:
            main([str(tmp_path / name) for name in arguments])
        assert end.value.code == 2
        assert sentence in capsys.readouterr().err
