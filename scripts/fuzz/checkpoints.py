"""Fuzz test of weight files: damaged and hostile backbones and prompt files of every format.

    python scripts/fuzz/checkpoints.py --count 800 --seed 0

Each file must be loaded, with finite weights of the expected shapes, or rejected with a `UserError`, without
executing anything in it; undamaged files must be loaded. Prints a table; the exit code is 1 on any fault.
"""

import io
import pathlib
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from runner import Case, WrongError, damage, make_parser, run_cases
from safetensors.numpy import save

from zsad_jax.backbones import clip, load_backbone, tips
from zsad_jax.backbones.checkpoints.clip import to_openai
from zsad_jax.backbones.transformer import tree_of
from zsad_jax.methods import make_method, param_shapes
from zsad_jax.methods.shared import prompt_files
from zsad_jax.utils.errors import UserError

Arrays = dict[str, np.ndarray]
TIPS = {"width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64}
CLIP = TIPS | {"embed_dim": 16}
TIPS_PYTORCH = {
    "pos_embed": (1, 5, 64), "cls_token": (1, 1, 64), "register_tokens": (1, 1, 64),
    "patch_embed.proj.weight": (64, 3, 4, 4), "patch_embed.proj.bias": (64,),
    "norm.weight": (64,), "norm.bias": (64,), "mask_token": (1, 64),
} | {
    f"blocks.0.{name}": shape
    for part, *rows in (("norm1", 64), ("norm2", 64), ("attn.qkv", 192, 64), ("attn.proj", 64, 64),
                        ("mlp.fc1", 64, 64), ("mlp.fc2", 64, 64))
    for name, shape in ((f"{part}.weight", tuple(rows)), (f"{part}.bias", (rows[0],)))
} | {"blocks.0.ls1.gamma": (64,), "blocks.0.ls2.gamma": (64,)}  # fmt: skip
HEADS = {f"{name}/{leaf}": (*begin, 1, 64) for name in ("query", "key", "value")
         for leaf, begin in (("kernel", (64,)), ("bias", ()))}  # fmt: skip
SIGLIP_LAYERS = {
    **{f"MultiHeadDotProductAttention_0/{name}": shape for name, shape in HEADS.items()},
    "MultiHeadDotProductAttention_0/out/kernel": (1, 64, 64),
    "MultiHeadDotProductAttention_0/out/bias": (64,),
    **{f"MlpBlock_0/Dense_{i}/kernel": (64, 64) for i in (0, 1)},
    **{f"MlpBlock_0/Dense_{i}/bias": (64,) for i in (0, 1)},
    **{f"LayerNorm_0/{leaf}": (64,) for leaf in ("scale", "bias")},
}
SIGLIP_BIG_VISION = {
    "img/embedding/kernel": (4, 4, 3, 64), "img/embedding/bias": (64,),
    "img/pos_embedding": (1, 4, 64), "img/MAPHead_0/probe": (1, 1, 64),
    "txt/Embed_0/embedding": (16, 64), "txt/pos_embedding": (1, 8, 64),
    "txt/head/kernel": (64, 64), "txt/head/bias": (64,), "t": (1,), "b": (1,),
} | {f"img/MAPHead_0/{name}": shape for name, shape in SIGLIP_LAYERS.items()} | {
    f"{tower}/{name}": shape for tower in ("img/Transformer", "txt/Encoder_0")
    for name, shape in {
        **{f"encoder_norm/{leaf}": (64,) for leaf in ("scale", "bias")},
        **{f"encoderblock/{name}": (1, *shape) for name, shape in SIGLIP_LAYERS.items()},
        **{f"encoderblock/LayerNorm_1/{leaf}": (1, 64) for leaf in ("scale", "bias")},
    }.items()
}  # fmt: skip
SIGLIP_HUGGING_FACE = {
    "vision_model.embeddings.patch_embedding.weight": (64, 3, 4, 4),
    "vision_model.embeddings.patch_embedding.bias": (64,),
    "vision_model.embeddings.position_embedding.weight": (4, 64),
    "vision_model.head.probe": (1, 1, 64),
    "vision_model.head.attention.in_proj_weight": (192, 64),
    "vision_model.head.attention.in_proj_bias": (192,),
    "text_model.embeddings.token_embedding.weight": (16, 64),
    "text_model.embeddings.position_embedding.weight": (8, 64),
    "logit_scale": (1,), "logit_bias": (1,),
} | {
    f"{layer}.{leaf}": (64,) if "norm" in layer or leaf == "bias" else (64, 64)
    for layer in (
        *("vision_model.post_layernorm", "text_model.final_layer_norm", "text_model.head"),
        *(f"vision_model.head.{part}" for part in
          ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2")),
        *(f"{tower}_model.encoder.layers.0.{part}" for tower in ("vision", "text") for part in
          ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2",
           *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")))),
    )
    for leaf in ("weight", "bias")
}  # fmt: skip
CALLS = ("os system", "posix system", "subprocess getoutput", "builtins eval", "builtins exec",
         "builtins getattr", "runpy run_path", "torch load", "numpy.load load")  # fmt: skip
NUMPY_HEADERS = (
    b"(1000000000000,)",
    b"(%d,)" % 10**23,
    b"(True, 128)",
    b"(-1,)",
    b"((((",
    b"()",
    b"(0,)",
)
NUMPY_TYPES = (
    b"'<U3'",
    b"'<M8[s]'",
    b"'|O'",
    b"'<c8'",
    b"'<i4'",
    b"'|b1'",
    b"'V2'",
    b"[('x', '<f4')]",
    b"'?!'",
)


class Subject(NamedTuple):
    """Something that is loaded from a file: its arrays, and the loader, which returns a tree."""

    name: str
    arrays: Arrays
    load: Callable[[str], object]


def make_subjects(rng: np.random.Generator, folder: pathlib.Path) -> list[Subject]:
    """Returns small backbones of each family, and prompts of four methods in their authors' names or ours."""

    def fill(tree: object) -> Arrays:
        flat = flatten_dict(tree, sep="/")
        return {k: rng.normal(0, 0.1, v.shape).astype(np.float32) for k, v in flat.items()}

    towers = {
        "vision": tree_of(clip.VisionEncoder(clip.VisionSizes(**CLIP, patch_size=4, grid=2))),
        "text": tree_of(clip.TextEncoder(clip.TextSizes(**CLIP, vocabulary=16, length=8))),
    }
    shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), towers)
    named = {name: np.asarray(array) for name, array in to_openai(shapes).items()}
    subjects = [
        Subject("CLIP", fill(named), lambda path: load_backbone("clip", weights=path).params)
    ]
    text_tower = tips.TextEncoder(tips.TextSizes(**TIPS, vocabulary=16))
    text_file = folder / "text.npz"
    np.savez(text_file, **fill(tree_of(text_tower)) | {"temperature_contrastive": np.float32(1)})
    vision = tips.VisionSizes(**TIPS, patch_size=4, grid=2, feed_forward="mlp")

    def load_tips(path: str) -> object:
        return load_backbone("tips", vision=path, text=text_file).params

    for kind, tree in (
        ("native", tree_of(tips.VisionEncoder(vision))),
        ("PyTorch", {name: np.zeros(shape) for name, shape in TIPS_PYTORCH.items()}),
    ):
        subjects.append(Subject(f"{kind} TIPS", fill(tree), load_tips))
    for name, family, shapes in (
        ("DINOv2", "dinov2", TIPS_PYTORCH),
        ("SigLIP of big_vision", "siglip", SIGLIP_BIG_VISION),
        ("SigLIP of Hugging Face", "siglip", SIGLIP_HUGGING_FACE),
    ):
        tree = {key: np.zeros(shape) for key, shape in shapes.items()}

        def load_one(path: str, family=family) -> object:
            return load_backbone(family, weights=path).params

        subjects.append(Subject(name, fill(tree), load_one))
    backbones = {name: load_backbone(name) for name in ("tips-nano", "clip-nano")}
    for method, name in (("anomalyclip", "tips-nano"), ("tipsomaly", "tips-nano"),
                         ("cocoop", "clip-nano"), ("faprompt", "clip-nano")):  # fmt: skip
        backbone = backbones[name]
        made = make_method(method, backbone)

        def load(path: str, made=made, backbone=backbone) -> object:
            return prompt_files.load(prompt_files.PromptFile(path), made, backbone)

        subjects.append(Subject(f"{method} prompts", fill(param_shapes(made, backbone)), load))
    [anomalyclip] = [one for one in subjects if one.name == "anomalyclip prompts"]
    prompts = anomalyclip.arrays
    authors = {
        "module.ctx_pos": prompts["normal"][None, None],
        "module.ctx_neg": prompts["abnormal"][None, None],
    }
    authors |= {f"module.compound_prompts_text.{i}": deep for i, deep in enumerate(prompts["deep"])}
    renamed = {f"prompt_learner.{name}": array for name, array in authors.items()}
    return [*subjects, anomalyclip._replace(name="authors' prompts", arrays=renamed)]


def npz(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensor(key: str, count: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Returns the part of a pickle that makes a tensor."""
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(count)
    sizes = b"".join(b"(" + b"".join(map(number, one)) + b"t" for one in (size, stride))
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + storage
        + b"tQ"
        + number(0)
        + sizes
        + hooks
        + b"tR"
    )


def state_dict(arrays: Arrays) -> bytes:
    """Returns a pickle of tensors, each with a storage of its own."""
    items = b"".join(
        text(name) + tensor(str(i), x.size, x.shape, tuple(step // 4 for step in x.strides))
        for i, (name, x) in enumerate(arrays.items())
    )
    return b"\x80\x02}(" + text("state_dict") + b"}(" + items + b"u" + text("epoch") + b"K\x05u."


def archive(pickled: bytes, arrays: Arrays) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("a/data.pkl", pickled)
        for i, array in enumerate(arrays.values()):
            target.writestr(f"a/data/{i}", array.tobytes())
    return file.getvalue()


def pth(arrays: Arrays) -> bytes:
    return archive(state_dict(arrays), arrays)


FORMATS = {"npz": npz, "safetensors": save, "pth": pth}


def damage_bytes(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    """Damages any file; returns the kind of damage and the result."""
    kinds = ("none", "flip", "flip header", "cut", "drop", "insert", "text", "empty")
    kind = str(rng.choice(kinds, p=[0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.05, 0.05]))
    end = min(len(data), 600) if kind == "flip header" else None
    return kind, bytes(damage(rng, data, kind.removesuffix(" header"), flips=6, end=end))


def change_values(rng: np.random.Generator, arrays: Arrays) -> tuple[str, Arrays]:
    """Replaces one array by one of another type, shape or range."""
    name = str(rng.choice(list(arrays)))
    value = arrays[name]
    changes = {
        "integers": value.astype(np.int32),
        "booleans": np.asarray(value > 0),  # of a scalar, too
        "non-finite": np.full_like(value, rng.choice([np.nan, np.inf])),
        "huge": np.full_like(value, 3e38),
        "empty array": value[:0] if value.ndim else value,
        "scalar": np.full((), 0.5, np.float32),
        "more axes": value[None],
        "transposed": value.T.copy(),
        "one more row": np.concatenate([value, value[:1]]) if value.ndim else value[None],
    }
    kind = str(rng.choice(list(changes)))
    renamed = {"absent": {}, "deep name": {f"{name}.{name}/{name}": value}, "large number": {
        name.replace(".0", ".99999999999"): value}}  # fmt: skip
    if rng.random() < 0.25:
        kind = str(rng.choice(list(renamed)))
        return kind, {k: v for k, v in arrays.items() if k != name} | renamed[kind]
    return kind, arrays | {name: changes[kind]}


def hostile_npz(rng: np.random.Generator, arrays: Arrays) -> tuple[str, bytes]:
    """Returns an archive whose headers do not fit, or that is far larger inside."""
    header = {"shape": b"(4,)", "type": b"'<f4'", "content": bytes(16), "version": b"\x01\x00"}
    kind = str(rng.choice(["shape", "type", "version", "bomb", "object"]))
    if kind == "shape":
        header["shape"] = NUMPY_HEADERS[rng.integers(len(NUMPY_HEADERS))]
    elif kind == "type":
        header["type"] = NUMPY_TYPES[rng.integers(len(NUMPY_TYPES))]
    elif kind == "version":
        header["version"] = bytes(rng.integers(0, 5, 2).tolist())
    elif kind == "bomb":
        header |= {"shape": b"(%d,)" % 2**26, "content": bytes(2**28)}
    words = b"{'descr': %(type)s, 'fortran_order': False, 'shape': %(shape)s}\n"
    described = words % {key.encode(): value for key, value in header.items()}
    start = b"\x93NUMPY" + header["version"] + struct.pack("<H", len(described))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name in arrays:
            target.writestr(f"{name}.npy", start + described + header["content"])
            header["content"] = header["content"][: 2**20]
    if kind == "object":
        file = io.BytesIO()
        np.savez(file, **{next(iter(arrays)): np.array([arrays], object)})
    return kind, file.getvalue()


def hostile_pickle(rng: np.random.Generator, witness: pathlib.Path) -> tuple[str, bytes]:
    """Returns a pickle that would run code, hang or fill the memory; running code creates the witness."""
    module, function = str(rng.choice(CALLS)).split()
    shell = f"touch {witness}" if "system" in function or "output" in function else (
        f"__import__('pathlib').Path({str(witness)!r}).touch()")  # fmt: skip
    call = f"c{module}\n{function}\n(".encode() + text(shell) + b"tR"
    shared = b"]q\x00" + b"".join(
        b"](h%ch%ce" % (i, i) + b"q%c" % (i + 1) for i in range(int(rng.integers(28, 200)))
    )
    nested = shared.replace(b"](", b"(").replace(b"e", b"t").replace(b"]q", b")q", 1)
    pickles = {
        "call": call,
        "call in a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(" + call + b"tR",
        "call as a storage": b"(" + text("storage") + call + call + b"tQ",
        "instance": b"(" + text(shell) + f"i{module}\n{function}\n".encode(),
        "stack global": text(module) + text(function) + b"\x93(" + text(shell) + b"tR",
        "state": b"ctorch.nn.modules.container\nParameterList\n)\x81}" + call + b"sb",
        "extension": b"\x82\x01",
        "shared lists": shared,
        "shared tuples": nested,
        "shared tuples as a key": b"}" + nested + b"K\x01s",
        "list in itself": b"]q\x00h\x00a",
        "integer keys": b"}(K\x00" + tensor("0", 4, (4,), (1,)) + b"K\x01K\x02u",
        "unequal lists": b"](" + tensor("0", 4, (4,), (1,)) + tensor("0", 4, (2,), (1,)) + b"e",
        "stride of zero": tensor("0", 4, (1 << 28,), (0,)),
        "large tensor": tensor("0", 4, (1 << 30, 1 << 30), (1, 1)),
        "negative": tensor("0", 4, (4,), (-1,)),
        "memo": b"]r\xff\xff\xff" + bytes([int(rng.integers(0, 128))]),
        "long bytes": b"\x96" + struct.pack("<Q", 1 << int(rng.integers(30, 62))),
        "long text": b"\x8d" + struct.pack("<Q", 1 << int(rng.integers(30, 62))),
        "long integer": b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\xff" * 99,
        "huge number": b"}\x8a\xff" + b"\x7f" * 255 + tensor("0", 4, (4,), (1,)) + b"s",
        "deep lists": b"](" * 100_000 + b"e" * 100_000,
        "many parts": b"(" + b"N" * 2_000_000 + b"t",
        "garbage": rng.bytes(int(rng.integers(1, 400))),
    }  # fmt: skip
    kind = str(rng.choice(list(pickles)))
    return kind, b"\x80\x02" + pickles[kind] + b"."


def make_file(
    rng: np.random.Generator, arrays: Arrays, witness: pathlib.Path
) -> tuple[str, str, bytes]:
    """Returns the format, the kind of damage, and the bytes of a file."""
    name = str(rng.choice(list(FORMATS)))
    way = rng.random()
    if name == "pth" and way < 0.6:
        kind, pickled = hostile_pickle(rng, witness)
        return name, kind, archive(pickled, {"0": np.zeros(4, np.float32)})
    if name == "npz" and way < 0.3:
        return name, *hostile_npz(rng, arrays)
    if name != "pth" and way < 0.6:
        kind, changed = change_values(rng, arrays)
        return name, kind, FORMATS[name](changed)
    return name, *damage_bytes(rng, FORMATS[name](arrays))


def draw_cases(count: int, seed: int, folder: pathlib.Path) -> Iterator[Case]:
    """Yields cases; each writes its file when it is drawn."""
    subjects = make_subjects(np.random.default_rng(seed), folder)
    witness = folder / "witness"
    for number_ in range(count):
        rng = np.random.default_rng((seed, number_))
        subject = subjects[number_ % len(subjects)]
        file_format, damage, data = make_file(rng, subject.arrays, witness)
        path = folder / f"file.{rng.choice(['npz', 'safetensors', 'pth', 'PTH', 'tar-50'])}"
        path.write_bytes(data)

        def act(
            subject: Subject = subject, path: pathlib.Path = path, damage: str = damage
        ) -> None:
            try:
                loaded = jax.tree.leaves(subject.load(str(path)))
            except UserError as error:
                if damage == "none":
                    raise WrongError(f"a good file was rejected: {error}") from error
                raise
            finally:
                if witness.exists():
                    witness.unlink()
                    raise WrongError("the file executed code")
            if not all(np.isfinite(leaf).all() for leaf in loaded):
                raise WrongError("non-finite weights were accepted")

        yield Case(f"{file_format}: {damage}", f"seed {seed}, case {number_}, {subject.name}", act)


def main(arguments: list[str] | None = None) -> int:
    options = make_parser(__doc__, 800, "files").parse_args(arguments)
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        return run_cases(draw_cases(options.count, options.seed, pathlib.Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
