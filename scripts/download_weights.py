"""Fetches released weights and published prompts: `python scripts/download_weights.py NAME ...`."""

import argparse
import sys

from zsad_jax.backbones import registry as backbones
from zsad_jax.methods.shared import prompt_files
from zsad_jax.utils import command_line
from zsad_jax.utils.command_line import log_plainly
from zsad_jax.utils.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="see --list")
    parser.add_argument(
        "--lineage",
        choices=backbones.LINEAGES,
        default="native",
        help="the JAX files or the PyTorch files of a backbone",
    )
    parser.add_argument("--list", action="store_true", help="show all names and what is here")
    options = parser.parse_args(arguments)
    if not options.names and not options.list:
        parser.error("give a name, or --list")
    log_plainly()

    def body() -> None:
        if options.list:
            show(options.lineage)
        for name in options.names:
            fetch(name, options.lineage)

    return command_line.guarded(body)


def show(lineage: str) -> None:
    for name in backbones.RELEASES:
        print(f"{name:36} {'missing' if backbones.missing_files(name, lineage) else 'here'}")
    for name in prompt_files.RELEASES:
        here = prompt_files.local_path(name).exists()
        print(f"{name:36} {'here' if here else 'missing'}")


def fetch(name: str, lineage: str) -> None:
    known = [*backbones.RELEASES, *prompt_files.RELEASES]
    if name not in known:
        raise UserError(f"{name!r} is unknown; choose from {', '.join(known)}.")
    released = name in prompt_files.RELEASES
    paths = [prompt_files.locate(name)] if released else backbones.locate(name, lineage)
    for path in filter(None, paths):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
