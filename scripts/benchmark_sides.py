"""The sides of a benchmark: the library and PyTorch, each in its own process, and what both need.

Models have random weights, images are drawn, and text features that do not depend on the image are encoded
beforehand. The sides alternate, so that other load on the machine affects both equally.
"""

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zsad_jax.utils import files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.memory import peak_memory
from zsad_jax.utils.text_table import TextTable

# Worker threads may spin for a while after their work; the pause lets them stop before the next run.
PAUSE_S = 0.3
CATEGORY = "object"
# Square matrices: their side, and the number of products in a run.
PRODUCTS = {"cpu": (2048, 8), "gpu": (8192, 100)}
CAMERA_NOISE = 1.5  # gray levels; gives files as large as those of MVTec AD
DISTINCT_FILES = 48  # further ones are links
# Options by method, for texts of words that CLIP knows without a list of merges. Those of AdaCLIP are as many
# as published; its features can be stored without learned tokens in the vision tower, and nothing saturates.
OPTIONS = {
    "adaclip": {
        "prompt_branch": "L", "temperature": 0.07,
        "normal_states": [
            "{}", "flawless {}", "good {}", "the {}", "{} with all parts", "{} with good parts",
            "{} with flawless parts",
        ],
        "abnormal_states": [
            "damaged {}", "the damaged {}", "{} with damaged part", "{} with damaged parts",
            "damaged {} with all parts",
        ],
        "templates": [
            "a good part with a {}.", "all good parts with the {}.", "all parts with the {}.",
            "the good part with the {}.",
        ],
    },
    "winclip": {
        "normal_states": ["{}", "flawless {}"], "abnormal_states": ["damaged {}"], "templates": ["a {}."],
    },
}  # fmt: skip

Values = tuple[np.ndarray, np.ndarray]  # scores [b] and maps [b, S, S]


class Turn(NamedTuple):
    """The result of a call, its wall and CPU time in seconds, and the peak memory so far in GiB."""

    seconds: float
    processor: float
    value: Any
    memory: float = 0.0


class Side:
    """An implementation in its own process, so that its memory is measured separately.

    Args:
      make: called in the process with `arguments`; returns the object whose methods are timed.
      cores: the cores that the process may use.
      *arguments: passed to `make`.
    """

    def __init__(self, make: Callable[..., Any], cores: Sequence[int], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Not a daemon: those may not start loading processes.
        self._process = context.Process(target=serve, args=(theirs, make, cores, arguments))
        # The sides share a GPU.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        self._process.start()
        theirs.close()
        with contextlib.suppress(EOFError):  # then the first call fails
            self._pipe.recv()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()

    def time(self, what: str, *arguments: Any) -> Turn:
        """Times one call of a method, whose value must be picklable."""
        time.sleep(PAUSE_S)
        try:
            self._pipe.send((what, arguments))
            return self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            raise UserError("A measured process has ended. Its error is above.") from error


def serve(
    pipe: Connection, make: Callable[..., Any], cores: Sequence[int], arguments: tuple[Any, ...]
) -> None:
    """Creates the implementation, then times calls until the pipe is closed."""
    os.sched_setaffinity(0, cores)  # before any thread pool is created
    made = make(*arguments)
    pipe.send("ready")
    while True:
        try:
            what, given = pipe.recv()
        except EOFError:
            return
        start, processor_start = time.perf_counter(), time.process_time()
        value = getattr(made, what)(*given)
        seconds = time.perf_counter() - start
        processor = time.process_time() - processor_start
        used = made.device_bytes() or peak_memory()
        pipe.send(Turn(seconds, processor, value, used / 2**30))


def report(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Prints the setting and the table, and writes both to the file of --json."""
    hidden = "json", "folder", "patches", "shape", "sizes", "stages", "parts", "family", "before"
    setting = {k: v for k, v in vars(options).items() if k not in hidden}
    setting |= {"load": round(os.getloadavg()[0], 2), **more}
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    cells = [tuple(map(to_cell, row.values())) for row in rows]
    table = TextTable(tuple(rows[0]), frozenset(), cells)
    print(table.to_text("markdown"), end="", flush=True)
    if options.json:
        files.write_json(options.json, {"setting": setting, "results": list(rows)})


def to_cell(value: Any) -> Any:
    """Returns a text or None as it is, and a number with four digits."""
    return value if isinstance(value, str | None) else f"{float(f'{value:.4g}'):,g}"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the model, of the number of cores and of the output."""
    parser.add_argument("--method", default="tipsomaly", help="a key of zsad_jax.methods.METHODS")
    parser.add_argument("--options", type=json.loads, default={}, help="of the method, as JSON")
    parser.add_argument("--backbone", default="tips-s14-hr", help="a released name")
    parser.add_argument("--image_size", type=int, default=518, help="side of the input, in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cores", type=int, help="number of cores per side (default: all)")
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")


def settle(options: argparse.Namespace) -> None:
    """Replaces the number of cores by the cores, and adds the sizes of both towers."""
    from zsad_jax.backbones.registry import find_release

    options.cores = sorted(os.sched_getaffinity(0))[: options.cores]
    options.options = OPTIONS.get(options.method, {}) | options.options
    release = find_release(options.backbone)
    if release.family not in ("tips", "clip"):
        raise UserError(
            f"There are no random weights of {options.backbone}. Choose a TIPS or a CLIP as --backbone."
        )
    vision, text = dict(release.vision), dict(release.text)
    if release.family == "tips":
        vision["grid"] = options.image_size // vision["patch_size"]
        text["vocabulary"] = find_release("tips-nano").text["vocabulary"]  # whose tokenizer it has
    else:
        text["vocabulary"] = 49_408  # of the words that are known without a list of merges
    options.family, options.sizes = release.family, (vision, text)


def has_peer(options: argparse.Namespace) -> bool:
    if find_spec("torch") is None or find_spec("transformers") is None:
        return False
    import benchmark_peers

    peer = benchmark_peers.PEERS.get(options.method)
    return peer is not None and peer.family == options.family


def write_weights(options: argparse.Namespace) -> None:
    """Writes random weights in the PyTorch layouts."""
    import make_random_weights as random

    vision, text = options.sizes
    if options.family == "clip":
        shapes = {"weights.safetensors": random.clip_shapes(vision, text)}
    else:
        shapes = {"vision.npz": random.pytorch_vision_shapes(vision, vision["grid"])}
        shapes["text.npz"] = random.pytorch_text_shapes(text)
    for number, (name, wanted) in enumerate(shapes.items()):
        random.write_arrays(options.folder / name, wanted, np.random.default_rng(number))


def draw_dataset(folder: pathlib.Path, count: int, size: int) -> None:
    """Writes smooth textures with camera noise, every other one with a bright square, and a meta.json."""
    folder.mkdir()
    rng, entries = np.random.default_rng(0), []
    noise = rng.normal(0, CAMERA_NOISE, (size, size, 3)).astype(np.float32)  # once: it is slow
    for number in range(count):
        image_file, mask_file = f"{number}_image.png", f"{number}_mask.png"
        if number < DISTINCT_FILES:
            coarse = rng.integers(0, 160, (8, 8, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
            image = np.asarray(smooth) + np.roll(noise, rng.integers(size), axis=0)
            mask = np.zeros((size, size), np.uint8)
            if number % 2:
                y, x = rng.integers(0, size * 3 // 4, 2)
                mask[y : y + size // 4, x : x + size // 4] = 255
                image[mask > 0] += 80
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / image_file)
            Image.fromarray(mask).save(folder / mask_file)
        else:
            for name, kind in ((image_file, "image"), (mask_file, "mask")):
                os.link(folder / f"{number % DISTINCT_FILES}_{kind}.png", folder / name)
        fields = {"img_path": image_file, "mask_path": mask_file * (number % 2)}
        fields |= {"cls_name": CATEGORY, "specie_name": "square", "anomaly": number % 2}
        entries.append(fields)
    (folder / "meta.json").write_text(json.dumps({"train": {}, "test": {CATEGORY: entries}}))


def open_model(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Returns the backbone with the random weights, the method over it, and the drawn dataset.

    TIPS has the tokenizer of the demo backbone.
    """
    import zsad_jax
    from zsad_jax.backbones import registry
    from zsad_jax.data.meta_json import read_meta_json
    from zsad_jax.methods import make_method

    sources = {"weights": options.folder / "weights.safetensors"}
    if options.family == "tips":
        sources = {name: options.folder / f"{name}.npz" for name in ("vision", "text")}
        sources["tokenizer"] = registry.ASSETS / "tips-nano" / "tokenizer.model"
    vision, text = options.sizes
    backbone = zsad_jax.load_backbone(
        options.family,
        **sources,
        num_heads=vision["num_heads"],
        text_num_heads=text["num_heads"],
        image_size=options.image_size,
        dtype=options.dtype,
    )
    dataset = read_meta_json(options.folder / "images", name="images", split="test")
    return backbone, make_method(options.method, backbone, options.options), dataset


def save_setup(folder: pathlib.Path, backbone: Any, method: Any, params: Any) -> None:
    """Saves the texts, the settings and the parameters for the PyTorch side."""
    from flax.traverse_util import flatten_dict

    from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES, PromptFamily

    config = method.config
    if hasattr(config, "prompt_family"):
        groups = PROMPT_FAMILIES[config.prompt_family].sentences(CATEGORY)
    elif hasattr(config, "templates"):
        states = config.normal_states, config.abnormal_states
        groups = PromptFamily(*states, config.templates).sentences(CATEGORY)
    else:
        texts = getattr(config, "learned_texts", ()) or getattr(config, "adjectives", ())
        groups = (texts or (config.normal_text, config.abnormal_text),)
    ids, paddings = backbone.tokenize(list(itertools.chain(*groups)))
    states = np.repeat(range(len(groups)), [len(group) for group in groups])
    layers, vv_from, cls_norm, *_ = method.features_key
    np.savez(
        folder / "setup.npz", ids=ids, paddings=paddings, states=states, layers=layers,
        vv_from=vv_from or 0, cls_norm=cls_norm, sigma=config.sigma,
        windows=getattr(config, "windows", ()),
        grid=backbone.preprocess.image_size // backbone.patch_size,
        **{f"params/{key}": x for key, x in flatten_dict(params, sep="/").items()},
    )  # fmt: skip


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the floating-point operations of the matrix products in a function of arrays or shapes."""
    import jax

    return _count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count_flops(program: Any) -> int:
    total = 0
    for step in program.eqns:
        if step.primitive.name == "dot_general":
            (contracted, _), _ = step.params["dimension_numbers"]
            lengths = [step.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(step.outvars[0].aval.shape) * math.prod(lengths)
        inner = [_count_flops(one) for one in _programs(step.params.values())]
        # Only one branch runs, such as the form of attention of a platform.
        of_all = max(inner, default=0) if "branches" in step.params else sum(inner)
        total += of_all * (step.params["length"] if step.primitive.name == "scan" else 1)
    return total


def _programs(values: Iterable[Any]) -> Iterator[Any]:
    """Yields the programs among the parameters of a step."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _programs(value)
        elif hasattr(value, "eqns"):
            yield getattr(value, "jaxpr", value)


class OnJax:
    """A process with JAX."""

    def __init__(self, options: argparse.Namespace):
        import jax

        self.options, self.device = options, jax.local_devices()[0]

    def device_bytes(self) -> int | None:
        """Returns the peak memory of the device, None on a CPU."""
        stats = self.device.memory_stats()
        return stats and stats["peak_bytes_in_use"]


class OnTorch:
    """A process with PyTorch."""

    def __init__(self, options: argparse.Namespace):
        import torch

        torch.set_num_threads(len(options.cores))
        torch.set_grad_enabled(False)
        self.options, self.cuda = options, torch.cuda if torch.cuda.is_available() else None
        self.device = "cuda" if self.cuda else "cpu"

    def wait(self) -> None:
        if self.cuda:
            self.cuda.synchronize()

    def device_bytes(self) -> int | None:
        return self.cuda and self.cuda.max_memory_allocated()


class JaxSide(OnJax):
    """The library's model, and plain matrix products."""

    def __init__(self, options: argparse.Namespace):
        import jax
        import jax.numpy as jnp

        from zsad_jax.utils import sharding

        super().__init__(options)
        self.sharding = sharding
        self.mesh = sharding.make_mesh([self.device])
        self.backbone, self.method, self.dataset = open_model(options)
        side, self.count = PRODUCTS["cpu" if self.device.platform == "cpu" else "gpu"]
        key, dtype = jax.random.key(0), jnp.dtype(options.dtype)
        self.factors = jax.random.normal(key, (2, side, side), dtype)
        self.multiply = jax.jit(jnp.matmul)

    def products(self) -> tuple[int, int]:
        """Multiplies matrices, and returns the number of products and the operations of one."""
        for _ in range(self.count):
            found = self.multiply(*self.factors)
        found.block_until_ready()
        return self.count, 2 * self.factors.shape[-1] ** 3


class TorchSide(OnTorch):
    """The same for PyTorch, with the inputs that the library's side has saved."""

    def __init__(self, options: argparse.Namespace):
        import benchmark_peers as peers
        import torch

        super().__init__(options)
        with np.load(options.folder / "setup.npz") as setup:
            self.peer = peers.PEERS[options.method](dict(setup), options.sizes, options.folder)
        with np.load(options.folder / "images.npz") as given:
            self.images, self.masks = given["images"], given["masks"]
        self.dtype = getattr(torch, options.dtype)
        side, self.count = PRODUCTS["gpu" if self.cuda else "cpu"]
        self.factors = torch.randn((2, side, side), device=self.device).to(self.dtype)

    def products(self) -> tuple[int, int]:
        for _ in range(self.count):
            self.factors[0] @ self.factors[1]
        self.wait()
        return self.count, 2 * self.factors.shape[-1] ** 3


def compare_values(ours: Values, theirs: Values) -> tuple[float, float]:
    """Returns the largest difference of scores and maps between two sides, and the range of the maps."""
    difference = max(np.abs(mine - other).max() for mine, other in zip(ours, theirs, strict=True))
    return float(difference), float(np.ptp(theirs[1]))
