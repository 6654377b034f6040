"""`python -m zsad_jax.data prepare NAME`: benchmarks from their official files."""

import argparse
import os
import pathlib
import sys

from zsad_jax import command
from zsad_jax.console import log_plainly

FAULTS_SHOWN = 50


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code. A mistake of the user's ends it with code 2."""
    parser = argparse.ArgumentParser(prog="python -m zsad_jax.data")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write a benchmark from its official files")
    prepare.add_argument("name", metavar="NAME", help="the benchmark's key (mvtec_ad, visa)")
    prepare.add_argument(
        "--source", help="the official archive, its extracted folder, or a parent of either"
    )
    prepare.add_argument("--data_dir", help="where prepared benchmarks lie")
    prepare.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="threads that decode and check"
    )
    options = parser.parse_args(arguments)
    log_plainly()
    return command.guarded(lambda: _prepare(options))


def _prepare(options: argparse.Namespace) -> None:
    import tensorflow_datasets as tfds

    from zsad_jax.data import builders

    tfds.disable_progress_bar()  # ours shows how much is left
    benchmark = builders.find_benchmark(options.name)
    data_dir = pathlib.Path(options.data_dir or builders.default_data_dir())
    builder = benchmark(data_dir=data_dir)
    if builders.is_prepared(options.name, data_dir):
        print(f"{benchmark.TITLE} is prepared already; delete {builder.data_path} to do it anew.")
    builder.download_and_prepare(source=options.source, num_workers=max(1, options.workers))
    builder = benchmark(data_dir=data_dir)
    _report(benchmark, builder.info.metadata)
    print(f"{benchmark.TITLE} lies in {builder.data_path}")


def _report(benchmark, metadata) -> None:
    """Prints the counts, every difference from the published ones, and the faults."""
    from zsad_jax.data import builders

    counts, faults = metadata["counts"], metadata["faults"]
    for split, categories in counts.items():
        normal, anomalous = map(sum, zip(*categories.values(), strict=True))
        print(f"{split}: {normal} normal, {anomalous} anomalous, {len(categories)} categories")
    differences = builders.compare_counts(counts, benchmark.COUNTS)
    for difference in differences:
        print(f"differs from the published count: {difference}")
    if not differences:
        print("all counts are the published ones")
    for file_name, reason in faults[:FAULTS_SHOWN]:
        print(f"amiss: {file_name}: {reason}")
    if faults:
        print(f"{len(faults)} files are amiss{', the first shown' * (len(faults) > FAULTS_SHOWN)}")


if __name__ == "__main__":
    sys.exit(main())
