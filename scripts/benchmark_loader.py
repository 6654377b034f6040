"""Benchmark of the data loader against PyTorch's DataLoader: PNG files to normalized float32 batches.

    python scripts/benchmark_loader.py --images 96 --repeats 5

Both sides read the same generated files with the same number of worker processes, and decode, resize
(bicubic) and normalize them as CLIP requires. The sides alternate, so that other load on the machine
affects both equally. Throughput is measured from the moment when every worker has delivered a batch until
the last batch, because workers start and stop in different ways; startup and shutdown times are reported
separately. The PyTorch side uses Pillow and a DataLoader (extra `parity`).
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from zsad_jax.backbones.clip import MEAN, STD
from zsad_jax.data import Preprocess, Sample, Samples, load_batches

NOISE = 1.5  # gray levels; gives files as large as those of MVTec AD


class Turn(NamedTuple):
    """Timings of one pass over the files."""

    start_s: float  # until every worker has delivered a batch
    rate: float  # images per second after that
    end_s: float  # from the last batch until the workers have exited


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96, help="number of files")
    parser.add_argument("--size", type=int, default=1000, help="side of the files, in pixels")
    parser.add_argument(
        "--image_size", type=int, default=518, help="side of the model input, in pixels"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images per batch")
    parser.add_argument("--workers", type=int, default=2, help="worker processes per side")
    parser.add_argument("--repeats", type=int, default=5, help="number of runs per side")
    options = parser.parse_args(arguments)
    if options.images <= max(options.workers, 1) * options.batch_size:
        parser.error("--images must be more than --workers times --batch_size")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        paths = draw_files(pathlib.Path(folder), options.images, options.size)
        megabytes = statistics.mean(os.path.getsize(path) for path in paths) / 1e6
        sides = {"zsad_jax": ours, "torch": theirs}
        for side in sides.values():  # warm-up: imports, and the disk cache
            take(side(paths, options), options)
        turns: dict[str, list[Turn]] = {name: [] for name in sides}
        for _ in range(options.repeats):
            for name, side in sides.items():
                turns[name].append(take(side(paths, options), options))
    print(
        f"{options.images} PNG files of {options.size}x{options.size}, {megabytes:.2f} MB each,",
        end=" ",
    )
    print(
        f"to {options.image_size}, batches of {options.batch_size}, {options.workers} workers,",
        end=" ",
    )
    print(f"{len(os.sched_getaffinity(0))} cores, {options.repeats} runs, initial load {load:.1f}")
    for name, found in turns.items():
        starts, rates, ends = zip(*found, strict=True)
        print(f"{name:9} {statistics.median(rates):6.1f} images/s", end=" ")
        print(f"({min(rates):.1f} to {max(rates):.1f}),", end=" ")
        print(f"all workers ready after {statistics.median(starts):.2f} s,", end=" ")
        print(f"stopped {statistics.median(ends):.2f} s after the last batch")
    ratios = [mine.rate / other.rate for mine, other in zip(*turns.values(), strict=True)]
    medians = [statistics.median(turn.rate for turn in found) for found in turns.values()]
    print(f"ratio of the medians {medians[0] / medians[1]:.2f},", end=" ")
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def draw_files(folder: pathlib.Path, count: int, size: int) -> list[str]:
    """Writes smooth textures with camera noise as PNG files; returns their paths."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, NOISE, (size, size, 3)).astype(np.float32)  # once: it is slow
    paths = []
    for number in range(count):
        coarse = rng.integers(40, 216, (12, 12, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + np.roll(noise, rng.integers(size), axis=0)
        path = folder / f"{number:04}.png"
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path)
        paths.append(str(path))
    return paths


def take(batches: Iterator[np.ndarray], options: argparse.Namespace) -> Turn:
    """Consumes all batches, checks their type and shape, and returns the timings."""
    begun = time.perf_counter()
    first = [next(batches) for _ in range(max(options.workers, 1))]
    started = last = time.perf_counter()
    images = 0
    for batch in batches:
        images += len(batch)
        last = time.perf_counter()
    ended = time.perf_counter()
    if first[0].dtype != np.float32 or options.image_size not in first[0].shape or not images:
        raise ValueError(f"A batch is {first[0].dtype} of {first[0].shape}.")
    return Turn(started - begun, images / (last - started), ended - last)


def ours(paths: list[str], options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Yields the normalized batches of the library's loader."""
    preprocess = Preprocess(
        image_size=options.image_size, resize="bicubic", mean=MEAN, std=STD, rgb_first=False
    )
    dataset = Samples("files", [Sample(image=path, category="a") for path in paths])
    batches = load_batches(
        dataset, preprocess, batch_size=options.batch_size, num_workers=options.workers
    )
    for batch in batches:
        yield preprocess.normalize(batch.images)[batch.valid]


def theirs(paths: list[str], options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Yields the batches of PyTorch's DataLoader."""
    import torch

    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(paths[index]) as image:
                side = (options.image_size, options.image_size)
                resized = image.convert("RGB").resize(side, Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
            return pixels.float().div_(255).sub_(mean).div_(std)

    loader = torch.utils.data.DataLoader(
        Files(), batch_size=options.batch_size, num_workers=options.workers
    )
    for batch in loader:
        yield batch.numpy()


if __name__ == "__main__":
    main()
