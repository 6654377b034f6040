"""Table of methods and backbone families in docs/methods.md: `python scripts/update_method_table.py`.

A method that is not made over all released checkpoints of a family that has what it needs is an error.
"""

import argparse
import collections
import pathlib
import sys

from zsad_jax.backbones import registry
from zsad_jax.backbones.base import NO_TEXT, Backbone
from zsad_jax.backbones.load import FAMILIES, describe_backbone
from zsad_jax.methods import METHODS, Method, config_class, make_method
from zsad_jax.utils import command_line, files

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "methods.md"
BEGIN, END = "<!-- written by scripts/update_method_table.py -->\n", "<!-- end -->"
RUNS, IMPOSSIBLE = "runs", f"not possible: {NO_TEXT}"


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__.split(":")[0]).parse_args(arguments)
    return command_line.guarded(
        lambda: files.write_text(PAGE, fill_in(PAGE.read_text(encoding="utf-8")))
    )


def fill_in(text: str) -> str:
    """Returns the page with its table written anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + make_table() + END + rest.partition(END)[2]


def make_table() -> str:
    families = collections.defaultdict(list)
    for name, release in registry.RELEASES.items():
        families[release.family].append(describe_backbone(name))
    header = ["method", "uses", *(f"`{family}`" for family in FAMILIES)]
    rows = [header, ["---"] * len(header)]
    for name in METHODS:
        over = {family: usable(name, backbones) for family, backbones in families.items()}
        made = [make_method(name, backbone) for used in over.values() for backbone in used]
        cells = (describe_family(families[family], over[family]) for family in FAMILIES)
        rows.append([f"`{name}`", describe_inputs(made[0]), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def usable(name: str, backbones: list[Backbone]) -> list[Backbone]:
    """Returns the backbones that have what the method needs."""
    config = config_class(name)
    if config.needs_text:
        backbones = [one for one in backbones if one.text]
    if config.needs_joint_text:
        backbones = [one for one in backbones if one.text_width == one.embed_dim]
    return backbones


def describe_family(backbones: list[Backbone], used: list[Backbone]) -> str:
    """Returns the cell of a family: whether a method runs, and over which backbones it does not."""
    if not used:
        return IMPOSSIBLE
    missing = ", ".join(f"`{one.name}`" for one in backbones if one not in used)
    return f"{RUNS}, except {missing}" if missing else RUNS


def describe_inputs(method: Method) -> str:
    """Returns what a method uses besides the image."""
    inputs = ["text"] if method.config.needs_text else []
    if method.across:
        inputs.append("all images of a category")
    if method.references != "unused":
        inputs.append(f"references ({method.references})")
    return ", ".join(inputs)


if __name__ == "__main__":
    sys.exit(main())
