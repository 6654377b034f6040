"""Picture of the README, drawn from a finished demo run: `python scripts/draw_readme_picture.py WORKDIR`."""

import argparse
import pathlib
import sys

from PIL import Image

from zsad_jax.evaluate import Case
from zsad_jax.experiment import cache
from zsad_jax.report import DEMONSTRATION, gallery
from zsad_jax.utils import command_line, files
from zsad_jax.utils.errors import UserError

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "demo.png"
CATEGORIES = ("corrugated_card", "marble", "pill_blister", "washer")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument(
        "workdir", type=pathlib.Path, help="working directory of a run of configs/tipsomaly.py:demo"
    )
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: draw(options.workdir))


def draw(workdir: pathlib.Path) -> None:
    paths = sorted((workdir / "evaluations").glob("synthetic_target-*.npz"))
    evaluation = cache.load(paths[-1]) if paths else None
    if evaluation is None:
        raise UserError(f"{workdir} has no evaluation. Run configs/tipsomaly.py:demo first.")
    drawn = gallery(
        [choose(category, evaluation.cases) for category in CATEGORIES],
        scale=(0.0, 1.0),
        title=f"tips-nano on synthetic images that were not used in training. {DEMONSTRATION}",
    )
    # A palette quarters the file size; FASTOCTREE preserves the colors of the maps.
    picture = drawn.quantize(method=Image.Quantize.FASTOCTREE)
    with files.replaced(PICTURE) as temporary:
        picture.save(temporary, optimize=True)
    print(PICTURE)


def choose(category: str, cases: tuple[Case, ...]) -> Case:
    """Returns the highest-scored anomalous case; for the last category, the lowest-scored normal one."""
    label = int(category != CATEGORIES[-1])
    found = [case for case in cases if case.category == category and case.label == label]
    return sorted(found, key=lambda case: case.score)[-label]


if __name__ == "__main__":
    sys.exit(main())
