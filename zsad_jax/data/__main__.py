"""`python -m zsad_jax.data prepare | verify | list | show`: benchmarks from their official files."""

import argparse
import functools
import os
import pathlib
import shlex
import sys

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.availability import find_place, make_command
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.inspect import stock
from zsad_jax.data.inspect.opened import OpenedDataset, open_all_splits
from zsad_jax.data.inspect.summary import Findings, describe, describe_verdict
from zsad_jax.data.synthetic import CATEGORIES
from zsad_jax.utils import command_line, files, remote
from zsad_jax.utils.errors import UserError, plural, suggest
from zsad_jax.utils.threads import num_cores

PROGRAM = "python -m zsad_jax.data"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns the exit code: 1 if verification fails, 2 for a user error."""
    return command_line.run_parsed(_make_parser, arguments)


def _make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data_dir",
        type=files.user_path,
        default=os.fspath(benchmarks.default_data_dir()),
        help="folder of prepared benchmarks (default: data/ in $ZSAD_JAX_HOME or ~/.cache/zsad_jax)",
    )
    threads = argparse.ArgumentParser(add_help=False)
    threads.add_argument(
        "--workers",
        type=_positive,
        default=num_cores(),
        help="decoding threads (default: one per core)",
    )
    threads.add_argument("--all", action="store_true", help="list every file that has an issue")
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument(
        "--normal_folders", nargs="+", help="for a folder: names of the subfolders of normal images"
    )
    parser = command_line.Parser(
        prog=PROGRAM, description="Prepare, verify, list and show benchmarks and folders of images."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = functools.partial(command_line.add_command, commands)

    parents = [common, threads]
    prepare = add("prepare", "convert benchmarks from their official files", parents=parents)
    names = "benchmark keys such as mvtec_ad, or all (those that can be downloaded automatically)"
    prepare.add_argument("names", metavar="NAME", nargs="+", help=names)
    source = "official archive, its extracted folder, or a parent of either"
    prepare.add_argument("--source", type=files.user_path, help=source)
    prepare.set_defaults(run=_prepare)

    parents = [common, threads, folder]
    verify = add("verify", "decode and count all images and masks", parents=parents)
    verify.add_argument("names", metavar="NAME", nargs="+", help="keys or paths of folders")
    verify.set_defaults(run=_verify)

    listed = add("list", "list known datasets and their state", parents=[common])
    names = "show counts per category, of these datasets or of all"
    listed.add_argument("--categories", metavar="NAME", nargs="*", help=names)
    listed.add_argument(
        "--format",
        choices=("plain", "markdown", "csv"),
        default="plain",
        help="default: plain; the others also have titles, domains, homepages and licenses",
    )
    listed.set_defaults(run=_list)

    show = add("show", "draw a contact sheet with outlined masks", parents=[common, folder])
    show.add_argument("name", metavar="NAME", help="key or path of a folder")
    show.add_argument("--out", type=files.user_path, help="PNG file to write (default: NAME.png)")
    category = "show only this category (may be repeated)"
    show.add_argument("--category", action="append", help=category)
    number = "images per category (default: 8)"
    show.add_argument("--images", type=_positive, default=8, help=number)
    show.add_argument("--split", default="test", help="split to show (default: test)")
    show.set_defaults(run=_show)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _prepare(options: argparse.Namespace) -> int:
    """Prepares benchmarks one by one; a failure does not stop the others."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()  # ours shows how much is left
    known = benchmarks.names()
    wanted = list(dict.fromkeys(options.names))
    if "all" in wanted:
        wanted = [name for name in known if DATASETS[name].open_to_all]
    for name in wanted:
        if name in CATEGORIES:
            raise UserError(f"{name} is synthetic and needs no preparation. Use its name directly.")
        if name not in known and os.path.exists(name):
            raise UserError(
                f"{name} is a path, not a benchmark. Give the benchmark's key, and {name} as --source."
            )
        if name not in known:
            raise UserError(f"Unknown benchmark {name!r}. {suggest(name, known)}")
    failures = []
    for name in wanted:
        try:
            _prepare_one(name, options)
        except UserError as error:
            if len(wanted) == 1:
                raise
            failures.append(name)
            print(f"error: {error}", file=sys.stderr)
    if failures:
        raise UserError(
            f"Failed to prepare {len(failures)} of {len(wanted)} benchmarks ({', '.join(failures)}). See above."
        )
    return 0


def _prepare_one(name: str, options: argparse.Namespace) -> None:
    from zsad_jax.data.benchmarks.builders import BUILDERS

    facts = DATASETS[name]
    if benchmarks.is_prepared(name, options.data_dir):
        place = os.path.abspath(find_place(name, options.data_dir))
        if os.access(os.path.dirname(place), os.W_OK):
            with files.alone(os.path.dirname(place)):  # removes what a killed preparation left
                pass
        print(f"{facts.title} is already prepared. To prepare it again, delete {place}.")
        if options.source:
            print(f"Ignored: --source {options.source}.")
    else:
        BUILDERS[name](data_dir=options.data_dir).download_and_prepare(
            source=options.source, num_workers=options.workers
        )
    opened = open_all_splits(name, options.data_dir)
    print(f"\n{opened.title} (license: {facts.license})")
    _print(Findings(opened, opened.count_all(), opened.issues, opened.notes), options)
    print(f"{opened.title} is stored in {opened.place}.", flush=True)


def _print(found: Findings, options: argparse.Namespace) -> None:
    list_all = make_command(f"verify {shlex.quote(found.opened.key)} --all", options.data_dir)
    for line in describe(found, hint="" if options.all else list_all):
        print(line)


def _verify(options: argparse.Namespace) -> int:
    """Verifies datasets one by one; returns 1 if any fails."""
    from zsad_jax.data.inspect.verify import verify

    good = True
    for opened in [_open(name, options) for name in dict.fromkeys(options.names)]:
        found = verify(opened, num_workers=options.workers)
        print(f"\n{opened.title}, {opened.place}")
        _print(found, options)
        print(f"{opened.title}: {describe_verdict(found)}", flush=True)
        good = good and found.good
    return 0 if good else 1


def _open(name: str, options: argparse.Namespace) -> OpenedDataset:
    folders = tuple(options.normal_folders or ()) or None
    return open_all_splits(remote.fetch(name), options.data_dir, normal_folders=folders)


def _list(options: argparse.Namespace) -> int:
    names = options.categories or list(DATASETS)
    for name in names:
        if name not in DATASETS:
            raise UserError(f"Unknown dataset {name!r}. {suggest(name, DATASETS)}")
    entries = [stock.look_for(name, options.data_dir) for name in names]
    if options.categories is None:
        table = stock.tabulate_datasets(entries)
    else:
        counts = {entry.key: entry.counts for entry in entries}
        table = stock.tabulate_categories(counts, {name: DATASETS[name].counts for name in names})
    print(table.to_text(options.format), end="")
    return 0


def _show(options: argparse.Namespace) -> int:
    from zsad_jax.data.inspect.contact_sheet import write_sheet

    opened = _open(options.name, options)
    path = pathlib.Path(options.out or f"{pathlib.Path(options.name).resolve().name}.png")
    if not path.suffix and not path.is_dir():
        path = path.with_suffix(".png")
    number = write_sheet(
        opened, path, split=options.split, categories=options.category, per_category=options.images
    )
    print(f"Wrote {plural(number, 'image')} of {opened.title} to {path.resolve()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
