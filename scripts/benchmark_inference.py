"""Benchmark of inference, stage by stage, beside PyTorch.

    python scripts/benchmark_inference.py --method tipsomaly --backbone tips-s14-hr
    python scripts/benchmark_inference.py --backbone tips-l14-hr --stages products tower --cores 1

Stages:
  products    plain matrix products, whose rate is the peak of the device below
  load        image files to arrays
  tower       the vision tower alone
  step        8-bit images of the input size to scores and maps on the host, with the tower
  histograms  as step, with the host's part of an evaluation: counting scores and pixels (library only)
  heads       features to scores and maps on the host
  metrics     scores and maps to all metrics
  predict     as step, for one image: latency
  pipeline    image files to tables; it and metrics have one run

The PyTorch side, if torch is installed, is `benchmark_peers.py`. Its tower is that of `transformers` with fused
attention, with the same type and batch as the library's, compiled on a GPU. All else is as published: float32,
one image at a time. The first call of a stage is not measured, and scores and maps of both sides must agree.

For WinCLIP, `heads` starts from the features of the image and of its windows. For AdaCLIP, it includes the text
tower, whose learned tokens depend on the image; those of the vision tower are off here.

Each side runs in its own process, so that peak memory (from the start to the end of the stage; on a GPU, the
memory of the GPU) is measured separately. Operations are those of matrix products in the library's program.
`ratio_over_products` is the ratio of the times, divided by that of plain matrix products. On a GPU, a run of a
stage has all batches of --images.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import benchmark_sides as shared
import numpy as np
from PIL import Image

from zsad_jax.utils import command_line
from zsad_jax.utils.errors import UserError

TOLERANCE = 1e-3  # for scores and maps, relative to the range of the maps where it is below 1
# Initial parameters are scaled by GAIN and perturbed with noise, so that maps have contrast and no
# probability saturates.
GAIN, PERTURBATION = 10, 0.01


def draw_params(params: Any) -> Any:
    """Returns parameters that look trained: scaled, with noise added."""
    import jax

    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: GAIN * x + PERTURBATION * rng.standard_normal(x.shape), params)


class Ours(shared.JaxSide):
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
            backbone, method, params, prompts="random", categories=(shared.CATEGORY,), batch_size=1
        )
        self.load_batches = lambda: load_batches(self.dataset, backbone.preprocess, batch_size=rows)
        self.batch = next(self.load_batches())
        shared.save_setup(options.folder, backbone, method, params)
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
        self.batches = options.images // rows
        self.repeats = 1 if self.device.platform == "cpu" else self.batches
        self.encode_for_method = encoders[key]
        self.encoded = self.scored = self.wait_share = None

    def flops(self) -> dict[str, float]:
        """Returns the operations per image of the stages that have matrix products."""
        step = shared.count_flops(self.scorer, *self.given, [None], *self.put_batch())
        tower = shared.count_flops(self.backbone.encode_image, self.frozen, self.images)
        found = {"tower": tower} | dict.fromkeys(
            ("step", "histograms", "predict", "pipeline"), step
        )
        return {stage: count / self.options.batch_size for stage, count in found.items()}

    def load(self) -> int:
        return sum(len(batch.images) for batch in self.load_batches())

    def tower(self) -> int:
        for _ in range(self.repeats):
            found = self.encode(self.frozen, self.images)
        found.patches.block_until_ready()
        return self.repeats * len(self.images)

    def put_batch(self) -> Any:
        """Returns images and categories on the device."""
        return self.sharding.split_batch((self.batch.images, self.batch.category), self.mesh)

    def results(self, started: Iterable[Any]) -> Iterator[Any]:
        """Yields the results on the host.

        As in an evaluation, the device works on a batch while the host uses the results of the last one.
        """
        from zsad_jax.utils.progress import one_late

        for [result] in one_late(started):
            self.last = self.sharding.to_host(result)
            yield self.last

    def scored_images(self) -> Iterator[Any]:
        return self.results(
            self.scorer(*self.given, [None], *self.put_batch()) for _ in range(self.batches)
        )

    def step(self) -> int:
        return len(self.images) * sum(1 for _ in self.scored_images())

    def histograms(self) -> int:
        self.count_maps(self.scored_images())
        return self.options.images

    def count_maps(self, results: Iterable[Any]) -> Any:
        """Returns the state of all metrics."""
        from zsad_jax.metrics import category

        state, batch = category.init(), self.batch
        for found in results:
            state = category.update(state, found.image, batch.labels, found.maps, batch.masks)
        return state

    def heads(self) -> int:
        if self.encoded is None:
            images, self.category = self.put_batch()
            self.encoded = self.encode_for_method(self.frozen, images)
        scored = self.results(
            self.scorer(*self.given, [self.encoded], None, self.category)
            for _ in range(self.repeats)
        )
        return len(self.images) * sum(1 for _ in scored)

    def metrics(self) -> int:
        from zsad_jax.metrics import category

        if self.scored is None:
            self.step()
            self.scored = self.last
        category.compute(self.count_maps(itertools.repeat(self.scored, self.batches)))
        return self.options.images

    def predict(self) -> int:
        self.last = self.detector.predict_resized(next(self.one_by_one))
        return 1

    def values(self) -> shared.Values:
        """Returns the scores and maps of the last call."""
        from zsad_jax.metrics.binned import BinnedMaps

        if not hasattr(self.last, "image"):
            return tuple(self.last)
        maps, count = self.last.maps, len(self.images)
        if isinstance(maps, BinnedMaps):  # small maps are not
            maps = np.stack([BinnedMaps(*one).decode() for one in zip(*maps, strict=True)])
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


class Theirs(shared.TorchSide):
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

    def values(self) -> shared.Values:
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
        self.entries, self.folder, self.size = meta["test"][shared.CATEGORY], folder, (size, size)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> shared.Values:
        entry = self.entries[index]
        with Image.open(self.folder / entry["img_path"]) as image:
            pixels = np.array(image.convert("RGB").resize(self.size, Image.Resampling.BICUBIC))
        if not entry["mask_path"]:
            return pixels, np.zeros(self.size, bool)
        with Image.open(self.folder / entry["mask_path"]) as image:
            return pixels, np.array(image.resize(self.size, Image.Resampling.NEAREST)) > 0


SIDES = {"zsad_jax": Ours, "PyTorch": Theirs}
STAGES = (
    "products", "load", "tower", "step", "histograms", "heads", "metrics", "predict", "pipeline",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared.add_model_options(parser)
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
    shared.settle(options)
    if options.images < 1 or options.images % options.batch_size:
        raise UserError(
            f"--images {options.images} is not a multiple of --batch_size {options.batch_size}. Change one."
        )
    makes = SIDES if shared.has_peer(options) else {"zsad_jax": Ours}
    with contextlib.ExitStack() as stack:
        options.folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shared.write_weights(options)
        shared.draw_dataset(options.folder / "images", options.images, options.file_size)
        # One after another: PyTorch's reads what the library's has saved.
        sides = {
            name: stack.enter_context(shared.Side(make, options.cores, options))
            for name, make in makes.items()
        }
        flops = sides["zsad_jax"].time("flops").value
        peaks: dict[str, float] = {}
        rows = []
        for stage in sorted(options.stages, key=STAGES.index):
            having = {name: side for name, side in sides.items() if hasattr(SIDES[name], stage)}
            rows += measure(stage, having, options, flops, peaks)
            print(f"{stage}: {rows[-len(having)]['p50_ms']:.4g} ms", file=sys.stderr, flush=True)
        facts = sides["zsad_jax"].time("facts").value
    shared.report(options, rows, **facts)


def measure(
    stage: str,
    sides: Mapping[str, shared.Side],
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
        difference, span = shared.compare_values(
            *(side.time("values").value for side in sides.values())
        )
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
            count, work = count
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
        ratio = row["p50_ms"] / rows[-1]["p50_ms"] if len(rows) > 1 else None
        row["time_ratio"] = ratio
        of_peaks = peaks[row["side"]] / peaks[rows[-1]["side"]] if peaks else None
        row["ratio_over_products"] = ratio and of_peaks and ratio * of_peaks
    return rows


if __name__ == "__main__":
    sys.exit(main())
