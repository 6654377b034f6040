"""Writes a TIPS checkpoint of random values with the names and shapes of a released one.

    python scripts/make_random_tips.py tips-l14-hr --out /some/where
    ZSAD_JAX_HOME=/some/where python -m zsad_jax.main --config ...

For trying the full size without a download. The files lie below --out as they would in the cache directory,
with a small tokenizer that was trained on the prompt sentences; files that are there already stay.
"""

import argparse
import os
import pathlib
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping

import numpy as np

from zsad_jax import command, files
from zsad_jax.backbones import released, tips, tips_checkpoints
from zsad_jax.backbones.checkpoints import flatten
from zsad_jax.backbones.transformer import swiglu_hidden
from zsad_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

WIDTH_AND_MLP = {
    "s14": (384, 1536),
    "b14": (768, 3072),
    "l14": (1024, 4096),
    "so400m14": (1152, 4304),
    "g14": (1536, 6144),
}
PATCH, VOCABULARY = 14, 32_000
STD = 0.02  # keeps the activations of every variant of order 1
TEMPERATURE = 0.01
# Scales of norms, and LayerScale: these multiply and lie around 1.
SCALE = re.compile(r"(^|[./])(scale|gamma|(norm\d?|ln_\w+)\.weight)$")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=released.RELEASES, metavar="NAME", help="tips-l14-hr, ...")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a cache directory")
    parser.add_argument("--lineage", choices=released.LINEAGES, default="native")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="copied instead of a trained one")
    options = parser.parse_args(arguments)
    return command.guarded(lambda: make(options))


def make(options: argparse.Namespace) -> None:
    """Writes those of a model's three files that are not there yet, and prints where they are."""
    os.environ["ZSAD_JAX_HOME"] = str(options.out)
    for path in released.missing_files(options.name, options.lineage):
        if path.name == "tokenizer.model":
            write_tokenizer(path, options.tokenizer, options.seed)
            continue
        side = path.stem.rpartition("_")[2]
        shapes = shapes_of(options.name, options.lineage, side)
        rng = np.random.default_rng([options.seed, released.SIDES.index(side)])
        write_arrays(path, shapes, rng)
    for kind, path in released.locate(options.name, options.lineage)._asdict().items():
        print(f"{kind}={path}")


def shapes_of(name: str, lineage: str, side: str) -> Shapes:
    """Names and shapes of the arrays in a released model's file.

    Args:
      name: a key of `released.RELEASES`.
      lineage: "native" or "pytorch".
      side: "vision" or "text".
    """
    release = released.RELEASES[name]
    width, mlp = WIDTH_AND_MLP[name.split("-")[1]]
    heads = tips_checkpoints.NUM_HEADS[width]
    if side == "text":
        depth = release.text_depth
        if lineage == "pytorch":
            return tips_checkpoints.pytorch_text_shapes(
                vocabulary=VOCABULARY, width=width, depth=depth, hidden=mlp
            )
        sizes = {"width": width, "depth": depth, "num_heads": heads, "mlp_dim": mlp}
        return shapes_in(tips.text_tree(tips.TextSizes(vocabulary=VOCABULARY, **sizes)))
    hidden = swiglu_hidden(mlp) if release.swiglu else mlp
    grid = grid_of(name, lineage)
    if lineage == "pytorch":
        shapes = tips_checkpoints.pytorch_vision_shapes(
            width=width,
            depth=release.vision_depth,
            hidden=hidden,
            patch=PATCH,
            positions=grid * grid + 1,
            swiglu=release.swiglu,
        )
        return {**shapes, "mask_token": (1, width)}
    vision = tips.VisionSizes(
        patch_size=PATCH,
        width=width,
        depth=release.vision_depth,
        num_heads=heads,
        mlp_dim=hidden,
        feed_forward="swiglu" if release.swiglu else "mlp",
        grid=grid,
    )
    return shapes_in(tips.vision_tree(vision))


def grid_of(name: str, lineage: str) -> int:
    """Side of the stored position grid; all native files of v1 hold the low-resolution one."""
    low = name.endswith("-lr") or (lineage == "native" and not name.startswith("tipsv2"))
    return 16 if low else 32


def shapes_in(tree: Mapping) -> Shapes:
    return {name: leaf.shape for name, leaf in flatten(tree).items()}


def write_arrays(path: pathlib.Path, shapes: Shapes, rng: np.random.Generator) -> None:
    """Writes random arrays one after the other, so that memory holds only one of them."""
    with (
        files.replaced(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, shape in shapes.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, random_array(name, shape, rng))


def random_array(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if name.startswith("temperature"):
        return np.full(shape, TEMPERATURE, np.float32)
    array = rng.standard_normal(shape, np.float32) * np.float32(STD)
    if SCALE.search(name):
        array += 1
    return array


def write_tokenizer(path: pathlib.Path, given: pathlib.Path | None, seed: int) -> None:
    if given is not None and not given.is_file():
        raise UserError(f"The tokenizer {given} does not exist; leave it out to have one trained.")
    with files.replaced(path) as temporary:
        if given is not None:
            shutil.copyfile(given, temporary)
            return
        from nano_captions import train_tokenizer

        temporary.write_bytes(train_tokenizer(seed))


if __name__ == "__main__":
    sys.exit(main())
