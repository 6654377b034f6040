"""`python -m zsad_jax.data prepare | verify | list | show`: benchmarks from their official files."""

import argparse
import os
import pathlib
import shlex
import sys
from typing import TYPE_CHECKING

from zsad_jax.utils import command_line
from zsad_jax.utils.command_line import log_plainly
from zsad_jax.utils.errors import UserError, plural, suggest

if TYPE_CHECKING:
    from zsad_jax.data.inspect.target import Target

PROGRAM = "python -m zsad_jax.data"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code. A mistake of the user's ends it with code 2."""
    options = _make_parser().parse_args(arguments)
    log_plainly()
    return command_line.guarded(lambda: options.run(options))


def _make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data_dir",
        help="where prepared benchmarks lie; default: data/ in ZSAD_JAX_HOME, else in ~/.cache/zsad_jax",
    )
    threads = argparse.ArgumentParser(add_help=False)
    threads.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="threads that decode"
    )
    threads.add_argument("--all", action="store_true", help="list every file that has an issue")
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument(
        "--normal_folders", nargs="+", help="of a folder: names of those with normal images"
    )
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Benchmarks and folders of images.")
    commands = parser.add_subparsers(dest="command", required=True)

    prepare = commands.add_parser(
        "prepare", parents=[common, threads], help="write benchmarks from their official files"
    )
    prepare.add_argument(
        "names", metavar="NAME", nargs="+", help="keys (mvtec_ad visa); all: those open to all"
    )
    prepare.add_argument(
        "--source", help="the official archive, its extracted folder, or a parent of either"
    )
    prepare.set_defaults(run=_prepare)

    verify = commands.add_parser(
        "verify", parents=[common, threads, folder], help="decode and count everything again"
    )
    verify.add_argument("names", metavar="NAME", nargs="+", help="keys, or paths of folders")
    verify.set_defaults(run=_verify)

    stock = commands.add_parser("list", parents=[common], help="which benchmarks there are")
    stock.add_argument(
        "--categories", metavar="NAME", nargs="*", help="the counts per category, of all or these"
    )
    stock.add_argument("--format", choices=("plain", "markdown", "csv"), default="plain")
    stock.set_defaults(run=_list)

    show = commands.add_parser(
        "show", parents=[common, folder], help="draw a sheet of images with masks outlined"
    )
    show.add_argument("name", metavar="NAME", help="a key, or the path of a folder")
    show.add_argument("--out", help="the PNG file that is written; default: NAME.png")
    show.add_argument("--category", action="append", help="only this one (may be repeated)")
    show.add_argument("--images", type=_positive, default=8, help="of each category")
    show.add_argument("--split", default="test", help="train or test")
    show.set_defaults(run=_show)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _data_dir(options: argparse.Namespace) -> pathlib.Path:
    from zsad_jax.data import benchmarks

    return pathlib.Path(options.data_dir or benchmarks.default_data_dir())


def _prepare(options: argparse.Namespace) -> int:
    """Prepares one benchmark after the other; what cannot be had keeps none of the others back."""
    import tensorflow_datasets as tfds

    from zsad_jax.data import benchmarks

    tfds.disable_progress_bar()  # ours shows how much is left
    names = benchmarks.names()
    wanted = list(dict.fromkeys(options.names))
    if "all" in wanted:
        found = map(benchmarks.find_benchmark, names)
        wanted = [one.name for one in found if all(part.url for part in one.ARCHIVES)]
    for name in wanted:
        if name not in names:
            raise UserError(_no_benchmark(name, suggest(name, names)))
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
            f"{len(failures)} of {len(wanted)} benchmarks could not be prepared: {', '.join(failures)}."
        )
    return 0


def _no_benchmark(name: str, suggestion: str) -> str:
    """Why a name cannot be prepared, and what may be meant."""
    from zsad_jax.data.open import SYNTHETIC

    if name in SYNTHETIC:
        return f"{name} is drawn when it is used: there is nothing to prepare."
    if os.path.exists(name):
        return f"{name} is no benchmark's name: give the name, and {name} as --source."
    return f"There is no benchmark {name!r}: {suggestion}"


def _prepare_one(name: str, options: argparse.Namespace) -> None:
    from zsad_jax.data import benchmarks
    from zsad_jax.data.inspect import stock, summary
    from zsad_jax.data.inspect.target import open_target

    data_dir = _data_dir(options)
    benchmark = benchmarks.find_benchmark(name)
    if benchmarks.is_prepared(name, data_dir):
        place = benchmark(data_dir=data_dir).data_path
        unread = f", and {options.source} is not looked at" if options.source else ""
        print(f"{benchmark.TITLE} is prepared already{unread}; delete {place} to do it anew.")
    else:
        benchmark(data_dir=data_dir).download_and_prepare(
            source=options.source, num_workers=options.workers
        )
    target = open_target(name, data_dir)
    counts = stock.count_all(target)
    print(f"\n{target.title} ({benchmark.LICENCE})")
    differences = benchmarks.compare_counts(counts, target.published)
    for line in summary.describe_counts(target, counts, differences):
        print(line)
    hint = f"{PROGRAM} verify {name} --all{_with_data_dir(options)}"
    issues, notes = target.issues, target.notes
    for line in summary.describe_issues(issues, notes, show_all=options.all, hint=hint):
        print(line)
    print(f"{target.title} lies in {target.place}", flush=True)


def _with_data_dir(options: argparse.Namespace) -> str:
    return f" --data_dir {shlex.quote(options.data_dir)}" if options.data_dir else ""


def _verify(options: argparse.Namespace) -> int:
    """Verifies one dataset after the other; the exit code is 1 when one of them is not as it should be."""
    from zsad_jax.data.inspect.target import open_target

    folders = tuple(options.normal_folders or ()) or None
    targets = [
        open_target(name, _data_dir(options), normal_folders=folders)
        for name in dict.fromkeys(options.names)
    ]
    good = [_verify_one(target, options) for target in targets]
    return 0 if all(good) else 1


def _verify_one(target: "Target", options: argparse.Namespace) -> bool:
    from zsad_jax.data.inspect import summary
    from zsad_jax.data.inspect.verify import verify

    found = verify(target, num_workers=options.workers)
    print(f"\n{target.title}, {target.place}")
    for line in summary.describe_counts(target, found.counts, found.differences):
        print(line)
    for contradiction in found.contradictions:
        print(f"differs from what preparation recorded: {contradiction}")
    hint = f"{PROGRAM} verify {shlex.quote(target.key)} --all{_with_data_dir(options)}"
    for line in summary.describe_issues(found.issues, found.notes, show_all=options.all, hint=hint):
        print(line)
    problems = {
        "counts that are not the published ones": len(found.differences),
        "counts that are not what preparation recorded": len(found.contradictions),
        "images that cannot be used": len(found.unusable),
    }
    words = [f"{what}: {number}" for what, number in problems.items() if number]
    verdict = ", ".join(words) or "every image and mask that is there can be used"
    if found.issues:
        verdict += f"; {plural(len(found.issues), 'issue')}"
    print(f"{target.title}: {verdict}", flush=True)
    return found.good


def _list(options: argparse.Namespace) -> int:
    from zsad_jax.data.inspect import stock
    from zsad_jax.data.protocols import DATASETS

    names = options.categories or list(DATASETS)
    for name in names:
        if name not in DATASETS:
            raise UserError(f"There is no dataset {name!r}: {suggest(name, DATASETS)}")
    entries = stock.take_stock(names, _data_dir(options))
    if options.categories is None:
        table = stock.tabulate_datasets(entries)
    else:
        counts = {entry.key: entry.counts for entry in entries}
        table = stock.tabulate_categories(counts, {one.key: one.published for one in entries})
    print(table.to_text(options.format), end="")
    return 0


def _show(options: argparse.Namespace) -> int:
    from zsad_jax.data.inspect.contact_sheet import write_sheet
    from zsad_jax.data.inspect.target import open_target

    folders = tuple(options.normal_folders or ()) or None
    target = open_target(options.name, _data_dir(options), normal_folders=folders)
    path = pathlib.Path(options.out or f"{pathlib.Path(options.name).resolve().name}.png")
    number = write_sheet(
        target,
        path,
        split=options.split,
        categories=options.category,
        per_category=options.images,
    )
    print(f"{number} images of {target.title} are shown in {path.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
