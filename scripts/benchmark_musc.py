"""Benchmark of MuSc's patch scores of one category, beside loops over its images in PyTorch.

    python scripts/benchmark_musc.py --images 200 --cores 1
    python scripts/benchmark_musc.py --images 200 --grid 37 --queries 8 --layers 1 --degrees 3
    python scripts/benchmark_musc.py --images 1000 --grid 37 --queries 8 --layers 1 --degrees 3 --alone

Features are random and stored in a file, with the sizes of a ViT-S/14 at 252 pixels (--grid 37: 518). The
PyTorch side has the steps of the published code: for each image, the distances of its patches to those of all
images. Each side runs in its own process, and the scores of both must agree. The first run of the library
compiles.

With --queries, only the first images are scored, against all. `pairs` is the number of pairs of images that are
compared for each layer and degree. The library compares two images that it scores in one pass once for both, so
that all images have half of the pairs; their times (`for_all`) are calculated, in proportion to the pairs.
`growth_gib` is the growth of memory in the run. `distances_gib` is calculated: the distances of the images that
the library scores in one pass to all images.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import benchmark_sides as shared
import numpy as np

from zsad_jax.methods import musc
from zsad_jax.utils import command_line
from zsad_jax.utils.errors import UserError

SHARE = 0.3
TOLERANCE = 1e-4
PER_PASS = musc.IMAGES_PER_PASS


def draw_patches(options: argparse.Namespace) -> None:
    """Stores patches [n, layers, h, w, d]: a pattern that all images share, and noise."""
    rng = np.random.default_rng(0)
    shape = options.layers, options.grid, options.grid, options.width
    pattern = rng.standard_normal(shape, np.float32)
    file = np.memmap(options.patches, np.float32, "w+", shape=(options.images, *shape))
    for image in file:
        image[:] = pattern + rng.standard_normal(shape, np.float32)
    options.shape = file.shape


def read_patches(options: argparse.Namespace, part: Any) -> np.ndarray:
    """Returns a copy of a part, since pages of the file would count as memory."""
    return np.array(np.memmap(options.patches, np.float32, "r", shape=options.shape)[part])


class Ours(shared.OnJax):
    """The functions of the library that take nearly all of the time."""

    def score(self) -> np.ndarray:
        """Returns the scores of the patches of the first images."""
        options, found = self.options, []
        musc.IMAGES_PER_PASS = min(options.queries, PER_PASS)
        for layer, degree in itertools.product(range(options.layers), options.degrees):

            def blocks(layer: int = layer, degree: int = degree) -> Iterator[Any]:
                for start in range(0, options.images, options.batch_size):
                    positions = np.arange(start, start + options.batch_size)
                    own = read_patches(options, np.minimum(positions, options.images - 1))
                    yield musc.describe(own[:, layer], degree), positions < options.images

            scores = musc.mutual_scores(blocks, SHARE)
            of_blocks = itertools.islice(scores, -(-options.queries // options.batch_size))
            found.append(np.concatenate([*of_blocks])[: options.queries])
        return np.mean(found, axis=0)


class Theirs(shared.OnTorch):
    """Loops over images in PyTorch."""

    def score(self) -> np.ndarray:
        """Returns the scores of the patches of the first images."""
        import torch

        options, found = self.options, []
        for number in range(options.layers):
            layer = torch.from_numpy(read_patches(options, (slice(None), number)))
            layer = layer.to(self.device).permute(0, 3, 1, 2).contiguous()
            normed = torch.nn.functional.layer_norm(layer, layer.shape[1:])
            for degree in options.degrees:
                windows = torch.nn.functional.avg_pool2d(normed, degree, 1, degree // 2)
                unit = windows.flatten(2).transpose(1, 2)
                found.append(self._mutual_scores(torch.nn.functional.normalize(unit, dim=-1)))
        scores = torch.stack(found).mean(0)
        return scores.reshape(-1, options.grid, options.grid).cpu().numpy()

    def _mutual_scores(self, unit: Any) -> Any:
        import torch

        count, length, width = unit.shape
        nearest = int(np.ceil(SHARE * (count - 1)))
        scores = []
        for number, image in enumerate(unit[: self.options.queries]):
            distances = torch.cdist(image, unit.reshape(-1, width))
            smallest = distances.reshape(length, count, length).min(-1).values
            others = torch.cat([smallest[:, :number], smallest[:, number + 1 :]], dim=1)
            scores.append(others.topk(nearest, largest=False).values.mean(1))
        return torch.stack(scores)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="number of images")
    parser.add_argument(
        "--queries", type=int, help="number of images that are scored (default: all)"
    )
    parser.add_argument("--layers", type=int, default=4, help="number of layers")
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--grid", type=int, default=18, help="side of the grid of patches")
    parser.add_argument("--width", type=int, default=384, help="length of a feature")
    parser.add_argument("--batch_size", type=int, default=8, help="images per block (zsad_jax)")
    parser.add_argument("--runs", type=int, default=1, help="runs of each side; the fastest counts")
    parser.add_argument("--cores", type=int, help="number of cores per side (default: all)")
    parser.add_argument("--alone", action="store_true", help="the library without PyTorch")
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures both sides, and prints and writes the results."""
    options.cores = sorted(os.sched_getaffinity(0))[: options.cores]
    options.queries = min(options.queries or options.images, options.images)
    sides = {"zsad_jax": Ours, "PyTorch": Theirs}
    if options.alone or find_spec("torch") is None:
        del sides["PyTorch"]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        options.patches = pathlib.Path(folder) / "patches"
        draw_patches(options)
        made = {
            name: stack.enter_context(shared.Side(make, options.cores, options))
            for name, make in sides.items()
        }
        before = {name: side.time("device_bytes").memory for name, side in made.items()}
        turns = [{n: side.time("score") for n, side in made.items()} for _ in range(options.runs)]
    values = [turn.value for turn in turns[0].values()]
    difference = float(np.abs(values[0] - values[-1]).max())
    if not difference <= TOLERANCE:
        raise UserError(f"The scores of the sides differ by {difference:.1e}.")
    rows = []
    for name in made:
        fastest = min(turn[name].processor for turn in turns)
        pairs, of_all = (count_pairs(name, n, options) for n in (options.queries, options.images))
        rows.append(
            {
                "side": name,
                "seconds": min(turn[name].seconds for turn in turns),
                "cpu_seconds": fastest,
                "pairs": pairs,
                "cpu_seconds_for_all": fastest * of_all / pairs,
                "peak_gib": turns[-1][name].memory,
                "growth_gib": turns[-1][name].memory - before[name],
            }
        )
    for row in rows:
        row["cpu_ratio"] = row["cpu_seconds"] / rows[-1]["cpu_seconds"]
        row["ratio_for_all"] = row["cpu_seconds_for_all"] / rows[-1]["cpu_seconds_for_all"]
    distances = 4 * min(options.queries, PER_PASS) * options.images * options.grid**2 / 2**30
    shared.report(options, rows, difference=difference, distances_gib=round(distances, 3))


def count_pairs(side: str, queries: int, options: argparse.Namespace) -> int:
    """Returns the number of pairs of images that are compared for each layer and degree."""
    passes = [min(PER_PASS, queries - start) for start in range(0, queries, PER_PASS)]
    # Images of one pass, but not of one block, are compared once for both.
    saved = sum(max(count * (count - options.batch_size) // 2, 0) for count in passes)
    return queries * options.images - (saved if side == "zsad_jax" else 0)


if __name__ == "__main__":
    sys.exit(main())
