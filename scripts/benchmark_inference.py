"""Benchmark of inference, stage by stage, beside PyTorch.

    python scripts/benchmark_inference.py --method tipsomaly --backbone tips-s14-hr
    python scripts/benchmark_inference.py --backbone tips-l14-hr --stages products tower --cores 1

Stages:
  products  plain matrix products, whose rate is the peak of the device below
  load      image files to arrays
  tower     the vision tower alone
  step      8-bit images of the input size to scores and maps on the host, with the tower
  heads     features to scores and maps on the host
  metrics   scores and maps to all metrics
  predict   as step, for one image: latency
  pipeline  image files to tables; it and metrics have one run

The PyTorch side, if torch is installed, is `benchmark_peers.py`. Its tower is that of `transformers` with fused
attention, with the same type and batch as the library's, compiled on a GPU. All else is as published: float32,
one image at a time. The first call of a stage is not measured, and scores and maps of both sides must agree.

Models have random weights, images are drawn, and text features that do not depend on the image are encoded
beforehand. Each side runs in its own process, so that peak memory (from the start to the end of the stage; on a
GPU, the memory of the GPU) is measured separately. The sides alternate, so that other load on the machine
affects both equally. Operations are those of matrix products in the library's program.
"""

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zsad_jax.utils import command_line, files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.memory import peak_memory
from zsad_jax.utils.text_table import TextTable

# Worker threads may spin for a while after their work; the pause lets them stop before the next run.
PAUSE_S = 0.3
CATEGORY = "object"
PRODUCT_SIDES = {"cpu": 2048, "gpu": 8192}  # of square matrices
TOLERANCE = 1e-3  # for scores and maps, relative to the range of the maps where it is below 1
# Initial parameters are scaled by GAIN and perturbed with noise, so that maps have contrast and no
# probability saturates.
GAIN, PERTURBATION = 10, 0.01
CAMERA_NOISE = 1.5  # gray levels; gives files as large as those of MVTec AD
DISTINCT_FILES = 48  # further ones are links

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
    hidden = "json", "folder", "sizes", "stages", "parts", "family", "before"
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
    release = find_release(options.backbone)
    if release.family not in ("tips", "clip"):
        raise UserError(
            f"There are no random weights of {options.backbone}. Choose a TIPS or a CLIP as --backbone."
        )
    vision, text = dict(release.vision), dict(release.text)
    if release.family == "tips":
        vision["grid"] = options.image_size // vision["patch_size"]
    else:
        text["vocabulary"] = 49_408  # of the words that are known without a list of merges
    options.family, options.sizes = release.family, (vision, text)


def has_peer(options: argparse.Namespace) -> bool:
    if find_spec("torch") is None or find_spec("transformers") is None:
        return False
    import benchmark_peers

    return options.method in benchmark_peers.PEERS


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

    from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES

    config = method.config
    if hasattr(config, "prompt_family"):
        groups = PROMPT_FAMILIES[config.prompt_family].sentences(CATEGORY)
    else:
        texts = getattr(config, "learned_texts", ()) or getattr(config, "adjectives", ())
        groups = (texts or (config.normal_text, config.abnormal_text),)
    ids, paddings = backbone.tokenize(list(itertools.chain(*groups)))
    states = np.repeat(range(len(groups)), [len(group) for group in groups])
    layers, vv_from, cls_norm, *_ = method.features_key
    np.savez(
        folder / "setup.npz", ids=ids, paddings=paddings, states=states, layers=layers,
        vv_from=vv_from or 0, cls_norm=cls_norm, sigma=config.sigma,
        **{f"params/{key}": x for key, x in flatten_dict(params, sep="/").items()},
    )  # fmt: skip


def draw_params(params: Any) -> Any:
    """Returns parameters that look trained: scaled, with noise added."""
    import jax

    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: GAIN * x + PERTURBATION * rng.standard_normal(x.shape), params)


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


class JaxSide:
    """The library's model, with the peaks of memory and of matrix products."""

    def __init__(self, options: argparse.Namespace):
        import jax
        import jax.numpy as jnp

        from zsad_jax.utils import sharding

        self.options, self.sharding, self.device = options, sharding, jax.local_devices()[0]
        self.mesh = sharding.make_mesh([self.device])
        self.backbone, self.method, self.dataset = open_model(options)
        side = PRODUCT_SIDES[self.device.platform]
        key, dtype = jax.random.key(0), jnp.dtype(options.dtype)
        self.factors = jax.random.normal(key, (2, side, side), dtype)
        self.multiply = jax.jit(jnp.matmul)

    def device_bytes(self) -> int | None:
        stats = self.device.memory_stats()
        return stats and stats["peak_bytes_in_use"]

    def products(self) -> int:
        """Multiplies matrices `PRODUCTS` times, and returns the operations of one product."""
        import jax

        jax.block_until_ready([self.multiply(*self.factors) for _ in range(PRODUCTS)])
        return 2 * self.factors.shape[-1] ** 3


class TorchSide:
    """The same for PyTorch, with the inputs that the library's side has saved."""

    def __init__(self, options: argparse.Namespace):
        import benchmark_peers as peers
        import torch

        torch.set_num_threads(len(options.cores))
        torch.set_grad_enabled(False)
        self.options, self.device = options, peers.DEVICE
        self.cuda = torch.cuda if self.device == "cuda" else None
        with np.load(options.folder / "setup.npz") as setup:
            self.peer = peers.PEERS[options.method](dict(setup), options.sizes, options.folder)
        with np.load(options.folder / "images.npz") as given:
            self.images, self.masks = given["images"], given["masks"]
        self.dtype = getattr(torch, options.dtype)
        side = PRODUCT_SIDES["gpu" if self.cuda else "cpu"]
        self.factors = torch.randn((2, side, side), device=self.device).to(self.dtype)

    def wait(self) -> None:
        if self.cuda:
            self.cuda.synchronize()

    def device_bytes(self) -> int | None:
        return self.cuda and self.cuda.max_memory_allocated()

    def products(self) -> int:
        for _ in range(PRODUCTS):
            self.factors[0] @ self.factors[1]
        self.wait()
        return 2 * self.factors.shape[-1] ** 3


class Ours(JaxSide):
    """The library; saves what the PyTorch side reads. Stages return their number of images."""

    def __init__(self, options: argparse.Namespace):
        import jax

        from zsad_jax.backbones.feature_cache import Features, FeaturesConfig
        from zsad_jax.data import load_batches
        from zsad_jax.detector import make_detector
        from zsad_jax.evaluate import make_scorer
        from zsad_jax.methods.base import encoder_of

        super().__init__(options)
        backbone, method, rows = self.backbone, self.method, options.batch_size
        params = draw_params(method.init(jax.random.key(0), backbone.params))
        self.detector = make_detector(
            backbone, method, params, prompts="random", categories=(CATEGORY,), batch_size=1
        )
        self.load_batches = lambda: load_batches(self.dataset, backbone.preprocess, batch_size=rows)
        self.batch = next(self.load_batches())
        save_setup(options.folder, backbone, method, params)
        np.savez(options.folder / "images.npz", images=self.batch.images, masks=self.batch.masks)
        self.one_by_one = itertools.cycle(self.batch.images[:, None])
        self.images = jax.device_put(backbone.preprocess.normalize(self.batch.images))
        self.frozen, self.encode = self.detector.backbone.params, jax.jit(backbone.encode_image)
        key, encode = encoder_of(method)
        config = FeaturesConfig(cache="none")
        encoders, mesh = {key: encode}, self.mesh
        self.features = Features(self.dataset, backbone, encoders, config, mesh=mesh, rows=rows)
        encoders = self.features.encoders
        self.scorer = make_scorer([method], backbone, encoders, mesh=mesh, binned=True)
        self.given = self.frozen, [params], [self.detector.prototypes]
        self.encode_for_method = encoders[key]
        self.encoded = self.scored = self.wait_share = None

    def flops(self) -> dict[str, float]:
        """Returns the operations per image of the stages that have matrix products."""
        step = count_flops(self.scorer, *self.given, [None], *self.put_batch())
        tower = count_flops(self.backbone.encode_image, self.frozen, self.images)
        found = {"tower": tower} | dict.fromkeys(("step", "predict", "pipeline"), step)
        return {stage: count / self.options.batch_size for stage, count in found.items()}

    def load(self) -> int:
        return sum(len(batch.images) for batch in self.load_batches())

    def tower(self) -> int:
        self.encode(self.frozen, self.images).patches.block_until_ready()
        return len(self.images)

    def put_batch(self) -> Any:
        """Returns images and categories on the device."""
        return self.sharding.split_batch((self.batch.images, self.batch.category), self.mesh)

    def step(self) -> int:
        from zsad_jax.utils.progress import one_late

        # As in an evaluation, the device works on a batch while the host takes the results of the last one.
        count = self.options.images // len(self.images)
        for [result] in one_late(
            self.scorer(*self.given, [None], *self.put_batch()) for _ in range(count)
        ):
            self.last = self.sharding.to_host(result)
        return self.options.images

    def heads(self) -> int:
        if self.encoded is None:
            images, self.category = self.put_batch()
            self.encoded = self.encode_for_method(self.frozen, images)
        [result] = self.scorer(*self.given, [self.encoded], None, self.category)
        self.last = self.sharding.to_host(result)
        return len(self.images)

    def metrics(self) -> int:
        from zsad_jax.metrics import category

        if self.scored is None:
            self.step()
            self.scored = self.last
        state, found, batch = category.init(), self.scored, self.batch
        for _ in range(0, self.options.images, len(batch.images)):
            state = category.update(state, found.image, batch.labels, found.maps, batch.masks)
        category.compute(state)
        return self.options.images

    def predict(self) -> int:
        self.last = self.detector.predict_resized(next(self.one_by_one))
        return 1

    def values(self) -> Values:
        """Returns the scores and maps of the last call."""
        from zsad_jax.metrics.binned import BinnedMaps

        if not hasattr(self.last, "image"):
            return tuple(self.last)
        maps, count = self.last.maps, len(self.images)
        if isinstance(maps, BinnedMaps):  # small maps are not
            maps = np.stack([maps[row].decode() for row in range(count)])
        return self.last.image[self.detector.image_score], maps[:count]

    def pipeline(self) -> int:
        from zsad_jax.evaluate import Contender, evaluate

        contenders, mesh = [Contender(self.method, *self.given[1])], self.mesh
        found = evaluate(contenders, self.features, self.backbone, mesh=mesh, scorer=self.scorer)
        self.wait_share = found[0].device_wait_share
        return len(self.dataset)

    def facts(self) -> dict[str, Any]:
        """Returns what is not of a single stage."""
        return {"device": self.device.device_kind, "device_wait_share": self.wait_share}


class Theirs(TorchSide):
    """The published pipeline, with the same stages."""

    def __init__(self, options: argparse.Namespace):
        import benchmark_metrics
        import benchmark_peers as peers
        import torch

        super().__init__(options)
        self.tabulate = benchmark_metrics.published_metrics
        self.one_by_one = itertools.cycle(self.images)
        sizes = options.sizes[0] | {"grid": options.image_size // options.sizes[0]["patch_size"]}
        self.model = peers.vision_tower(options.family, sizes).to(self.device, self.dtype)
        if self.cuda:
            self.model = torch.compile(self.model)
        pixels = peers.on_device(self.images).permute(0, 3, 1, 2) / 255
        self.pixels = pixels.to(self.dtype).contiguous()
        self.encoded = self.scored = None

    def loader(self) -> Any:
        """Returns the loader of images, labels and masks, one at a time."""
        import torch

        files_of = Files(self.options.folder / "images", self.options.image_size)
        return torch.utils.data.DataLoader(files_of, num_workers=self.options.workers)

    def load(self) -> int:
        return sum(len(image) for image, _ in self.loader())

    def tower(self) -> int:
        self.model(self.pixels)
        self.wait()
        return len(self.pixels)

    def step(self) -> int:
        return self.score(map(self.peer.features, self.images))

    def heads(self) -> int:
        if self.encoded is None:
            self.encoded = [self.peer.features(image) for image in self.images]
        return self.score(self.encoded)

    def score(self, features: Iterable[Any]) -> int:
        """Computes scores and maps, one image at a time."""
        size = self.options.image_size
        scores, maps = zip(*(self.peer.predict(one, size) for one in features), strict=True)
        self.last = np.array(scores), np.stack(maps)
        return len(scores)

    def metrics(self) -> int:
        if self.scored is None:
            self.step()
            self.scored = self.last
        self.tabulate(*self.scored, self.masks)
        return len(self.masks)

    def predict(self) -> int:
        return self.score([self.peer.features(next(self.one_by_one))])

    def values(self) -> Values:
        return self.last

    def pipeline(self) -> int:
        scored, masks = [], []
        for image, mask in self.loader():
            self.score([self.peer.features(image[0].numpy())])
            scored.append(self.last)
            masks.append(mask[0].numpy())
        self.tabulate(*map(np.concatenate, zip(*scored, strict=True)), np.stack(masks))
        return len(masks)


class Files:
    """The images and masks of a drawn dataset, resized, for PyTorch's loader."""

    def __init__(self, folder: pathlib.Path, size: int):
        meta = json.loads((folder / "meta.json").read_text())
        self.entries, self.folder, self.size = meta["test"][CATEGORY], folder, (size, size)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Values:
        entry = self.entries[index]
        with Image.open(self.folder / entry["img_path"]) as image:
            pixels = np.array(image.convert("RGB").resize(self.size, Image.Resampling.BICUBIC))
        if not entry["mask_path"]:
            return pixels, np.zeros(self.size, bool)
        with Image.open(self.folder / entry["mask_path"]) as image:
            return pixels, np.array(image.resize(self.size, Image.Resampling.NEAREST)) > 0


SIDES = {"zsad_jax": Ours, "PyTorch": Theirs}
PRODUCTS = 8  # per run
STAGES = ("products", "load", "tower", "step", "heads", "metrics", "predict", "pipeline")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="images per step (zsad_jax)")
    parser.add_argument("--images", type=int, default=32, help="number of image files")
    parser.add_argument("--file_size", type=int, default=1000, help="side of the files, in pixels")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--runs", type=int, default=5, help="of most stages")
    parser.add_argument("--latencies", type=int, default=50, help="runs of the stage predict")
    parser.add_argument("--workers", type=int, default=0, help="loading processes of PyTorch")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures the stages, and prints and writes the results."""
    settle(options)
    if options.images < 1 or options.images % options.batch_size:
        raise UserError(
            f"--images {options.images} is not a multiple of --batch_size {options.batch_size}. Change one."
        )
    makes = SIDES if has_peer(options) else {"zsad_jax": Ours}
    with contextlib.ExitStack() as stack:
        options.folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_weights(options)
        draw_dataset(options.folder / "images", options.images, options.file_size)
        # One after another: PyTorch's reads what the library's has saved.
        sides = {
            name: stack.enter_context(Side(make, options.cores, options))
            for name, make in makes.items()
        }
        flops = sides["zsad_jax"].time("flops").value
        peaks: dict[str, float] = {}
        rows = []
        for stage in sorted(options.stages, key=STAGES.index):
            rows += measure(stage, sides, options, flops, peaks)
            print(f"{stage}: {rows[-len(sides)]['p50_ms']:.4g} ms", file=sys.stderr, flush=True)
        facts = sides["zsad_jax"].time("facts").value
    report(options, rows, **facts)


def measure(
    stage: str,
    sides: Mapping[str, Side],
    options: argparse.Namespace,
    flops: Mapping[str, float],
    peaks: dict[str, float],
) -> list[dict[str, Any]]:
    """Returns a row for each side; adds the rates of plain matrix products to `peaks`."""
    runs = {"predict": options.latencies, "metrics": 1, "pipeline": 1}.get(stage, options.runs)
    for name, side in sides.items():
        if name == "zsad_jax" or runs > 1:
            side.time(stage)  # compiles
    turns = [{name: side.time(stage) for name, side in sides.items()} for _ in range(runs)]
    # In bfloat16, the library's weights differ from those of the published pipeline.
    if stage in ("step", "heads", "predict") and options.dtype == "float32" and len(sides) > 1:
        difference, span = compare_values(*(side.time("values").value for side in sides.values()))
        if not difference <= TOLERANCE * min(span, 1):
            raise UserError(
                f"{stage}: the sides differ by {difference:.1e}, which is too much for maps with range"
                f" {span:.1e}."
            )
    rows = []
    for name in sides:
        count, work = turns[0][name].value, flops.get(stage)
        seconds = np.array([turn[name].seconds for turn in turns])
        if stage == "products":
            count, work = PRODUCTS, count
            peaks[name] = work * count / seconds.min()
        middle, slowest = np.quantile(seconds / count, [0.5, 0.99])
        rows.append(
            {
                "stage": stage,
                "side": name,
                "per_second": 1 / middle,
                "p50_ms": 1e3 * middle,
                "p99_ms": 1e3 * slowest,
                "cpu_ms": 1e3 * float(np.median([turn[name].processor for turn in turns])) / count,
                "gflop": work and work / 1e9,
                "share_of_peak": work / middle / peaks[name] if work and peaks else None,
                "peak_gib": turns[-1][name].memory,
            }
        )
    for row in rows:
        row["time_ratio"] = row["p50_ms"] / rows[-1]["p50_ms"] if len(rows) > 1 else None
    return rows


def compare_values(ours: Values, theirs: Values) -> tuple[float, float]:
    """Returns the largest difference of scores and maps between two sides, and the range of the maps."""
    difference = max(np.abs(mine - other).max() for mine, other in zip(ours, theirs, strict=True))
    return float(difference), float(np.ptp(theirs[1]))


if __name__ == "__main__":
    sys.exit(main())
