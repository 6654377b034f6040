"""Fetches released weights and published prompts: `python scripts/download_weights.py NAME ...`."""

import argparse
import sys

from zsad_jax.backbones import registry as backbones
from zsad_jax.methods.shared import released as prompts
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
    for name in backbones.names():
        print(f"{name:36} {'missing' if backbones.missing_files(name, lineage) else 'here'}")
    for name in prompts.names():
        print(f"{name:36} {'missing' if prompts.missing_files(name) else 'here'}")


def fetch(name: str, lineage: str) -> None:
    known = [*backbones.names(), *prompts.names()]
    if name not in known:
        raise UserError(f"{name!r} is unknown; choose from {', '.join(known)}.")
    paths = [prompts.locate(name)] if name in prompts.names() else backbones.locate(name, lineage)
    for path in filter(None, paths):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
