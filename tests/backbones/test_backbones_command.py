import numpy as np
import pytest

from zsad_jax.backbones import load_backbone, registry
from zsad_jax.backbones.__main__ import main
from zsad_jax.backbones.checkpoints.read import read_arrays
from zsad_jax.methods.shared import prompt_files


@pytest.fixture(scope="module")
def openai():
    """Returns a CLIP model of width 8 with one block per tower, in half precision like OpenAI's."""
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
    """Writes an archive like OpenAI's: a scripted module with three additional numbers."""
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


def read_rows(capsys):
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()]


def test_lists_all_releases_and_prompts(capsys):
    assert main(["list"]) == 0
    assert read_rows(capsys) == ["name", *registry.RELEASES]
    assert main(["list", "--prompts"]) == 0
    assert read_rows(capsys) == ["name", *prompt_files.RELEASES]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [write_torchscript, write_state_dict])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_converts_archive_to_loadable_file(openai, tmp_path, write, suffix, capsys):
    pytest.importorskip("torch")
    source, target = tmp_path / "ViT.pt", tmp_path / f"ViT{suffix}"
    write(source, openai)
    named = [str(target)] if suffix == ".npz" else []  # the default
    assert main(["convert", str(source), *named]) == 0
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


def read_error(arguments, capsys):
    """Returns the error message of a command that exits with a usage error."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parity
def test_rejects_archive_of_other_model(tmp_path, openai, capsys):
    pytest.importorskip("torch")
    incomplete = {name: array for name, array in openai.items() if "ln_2" not in name}
    write_state_dict(tmp_path / "some.pt", incomplete)
    message = read_error(["convert", str(tmp_path / "some.pt")], capsys)
    assert "4 missing: " in message
    assert "visual.transformer.resblocks.0.ln_2.weight (vision tower)" in message
    assert [path.name for path in tmp_path.iterdir()] == ["some.pt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("convert none.pt out.bin", "out.bin has an unknown suffix. Choose .safetensors or .npz."),
        ("convert none.pt out.npz", "none.pt does not exist"),
        ("convert ./some.npz some.npz", "some.npz would overwrite itself"),
        ("fetch clip-vit-l14-335", "Did you mean clip-vit-l14-336"),
        (
            "fetch tips-nano tipsomaly-l14-hr-visa-epoch3",
            "Did you mean tipsomaly-l14-hr-visa-epoch",
        ),
        (
            "fetch tips-nano --lineage torch",
            "'torch' is not a valid lineage. Did you mean pytorch?",
        ),
        ("fetch clip-nano --lineage pytorch", "lineage='pytorch' is not an option of clip-nano"),
        ("lisst", "'lisst' is not a valid command. Did you mean list?"),
    ],
)
def test_mistakes_end_with_an_error(arguments, expected, capsys):
    assert expected in read_error(arguments.split(), capsys)
