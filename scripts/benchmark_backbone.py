"""Benchmark of the TIPS vision tower against PyTorch, and of a detector on one image.

    python scripts/make_random_weights.py tips-l14-hr --out /some/where
    python scripts/benchmark_backbone.py --variant l14 --home /some/where

Each side runs in its own process, so that peak memory is measured separately. The sides alternate, so that
other load on the machine affects both equally; on a busy machine, compare CPU time. The PyTorch side is the
TIPSv2 of `transformers` with fused attention (extra `parity`), at the same width, depth, number of heads
and feed-forward size, in float32 with batch size 1.
"""

import argparse
import os
from typing import Any

import numpy as np
from benchmark_sides import Side

VARIANTS = ("s14", "b14", "l14")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="l14")
    parser.add_argument("--home", help="cache directory with the weights (default: $ZSAD_JAX_HOME)")
    parser.add_argument("--lineage", choices=("native", "pytorch"), default="native")
    parser.add_argument(
        "--image_size", type=int, default=518, help="side of the model input, in pixels"
    )
    parser.add_argument("--runs", type=int, default=10, help="number of runs per side")
    parser.add_argument("--cores", type=int, help="number of cores per side (default: all)")
    options = parser.parse_args()
    if options.home:
        os.environ["ZSAD_JAX_HOME"] = options.home
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    load = os.getloadavg()[0]

    torch = Side(Theirs, cores, tower_sizes(options.variant), options.image_size)
    ours = Side(Ours, cores, options)
    turns: dict[str, list[tuple[float, float]]] = {"torch": [], "tower": [], "predict": []}
    for _ in range(options.runs):
        turns["torch"].append(torch.time("tower")[:2])
        turns["tower"].append(ours.time("tower")[:2])
        turns["predict"].append(ours.time("predict")[:2])

    print(
        f"TIPS {options.variant} ({options.lineage}) at {options.image_size}x{options.image_size},",
        end=" ",
    )
    print(f"batch 1, {len(cores)} cores, {options.runs} runs, initial load {load:.1f}")
    report("tower, PyTorch", turns["torch"])
    report("tower, zsad_jax", turns["tower"])
    report("predict, zsad_jax", turns["predict"])
    for what in ("tower", "predict"):
        time_ratio, cpu_ratio = np.median(np.divide(turns[what], turns["torch"]), axis=0)
        print(f"{what} / PyTorch tower, median ratio:", end=" ")
        print(f"{time_ratio:.2f} (CPU time {cpu_ratio:.2f})")
    print(f"peak memory: {ours.peak_gib():.2f} GiB with both towers loaded,", end=" ")
    print(f"PyTorch vision tower only {torch.peak_gib():.2f} GiB")


def report(name: str, turns: list[tuple[float, float]]) -> None:
    seconds, cpu = np.transpose(turns)
    low, p50, p99 = np.quantile(seconds, [0, 0.5, 0.99])
    print(f"{name:18} p50 {p50:.3f} s   p99 {p99:.3f} s   fastest {low:.3f} s", end="   ")
    print(f"CPU p50 {np.median(cpu):.3f} s")


def tower_sizes(variant: str) -> dict[str, Any]:
    """Returns the sizes of a variant's vision tower under the names of the PyTorch config."""
    from zsad_jax.backbones.registry import RELEASES

    vision = RELEASES[f"tips-{variant}-hr"].vision
    return {
        "hidden_size": vision["width"],
        "num_hidden_layers": vision["depth"],
        "num_attention_heads": vision["num_heads"],
        "mlp_ratio": vision["mlp_dim"] / vision["width"],
    }


class Ours:
    """The library's jitted tower, and `predict` from an 8-bit image to the anomaly map."""

    def __init__(self, options: argparse.Namespace):
        import jax

        import zsad_jax

        self.backbone = zsad_jax.load_backbone(
            f"tips-{options.variant}-hr", lineage=options.lineage, image_size=options.image_size
        )
        self.detector = zsad_jax.load_detector("tipsomaly", self.backbone)
        self.encode = jax.jit(self.backbone.encode_image)
        self.photograph = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
        self.image = np.float32(self.detector.resize(self.photograph)[None]) / 255
        self.tower()
        self.predict()

    def tower(self) -> None:
        import jax

        jax.block_until_ready(self.encode(self.backbone.params, self.image))

    def predict(self) -> None:
        self.detector.predict(self.photograph)


class Theirs:
    """The PyTorch tower with random weights."""

    def __init__(self, sizes: dict[str, Any], image_size: int):
        import torch
        from transformers import Tipsv2VisionConfig, Tipsv2VisionModel

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_grad_enabled(False)
        config = Tipsv2VisionConfig(**sizes)
        config._attn_implementation = "sdpa"
        self.model = Tipsv2VisionModel(config).eval()
        generator = torch.Generator().manual_seed(0)
        self.image = torch.rand((1, 3, image_size, image_size), generator=generator)
        self.tower()

    def tower(self) -> None:
        self.model(self.image)


if __name__ == "__main__":
    main()
