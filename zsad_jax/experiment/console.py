"""The lines that a run prints: what it is about to do, and its results."""

from collections.abc import Mapping
from typing import Any

import jax

from zsad_jax.backbones.registry import RELEASES
from zsad_jax.data.dataset import Dataset
from zsad_jax.experiment.config import Experiment
from zsad_jax.report import DEMONSTRATION, Report, names
from zsad_jax.report.formats import to_text
from zsad_jax.utils import distributed
from zsad_jax.utils.errors import plural


def show(text: str) -> None:
    """Prints text at once, also into a pipe, before long work; of several processes, only the first does."""
    if distributed.is_main():
        print(text, flush=True)


def describe_setting(experiment: Experiment, workdir: Any) -> str:
    """Describes what is known before anything is opened or loaded."""
    name = experiment.backbone["name"]
    title = f"{names.method_name(experiment.method['name'])} on {name}"
    demo = name in RELEASES and RELEASES[name].demo
    return "\n".join([title, *[DEMONSTRATION] * demo, f"  output    {workdir}"])


def describe_inputs(
    experiment: Experiment, datasets: Mapping[str, Dataset], *, learned: bool
) -> str:
    """Describes devices, datasets and prompts; `learned`: whether the method learns any."""
    targets = [target for target in experiment.resolved if target.name in datasets]
    devices = jax.devices()
    lines = [f"  devices   {len(devices)} x {devices[0].device_kind}"]
    lines += [f"  evaluate  {_describe(datasets[target.name])}" for target in targets]
    for name in dict.fromkeys(str(target.auxiliary) for target in targets if learned):
        if experiment.train:
            own = experiment.settings_on(name).values()
            changes = [f"{key}={value}" for fields in own for key, value in fields.items()]
            lines.append(f"  train on  {', '.join([_describe(datasets[name]), *changes])}")
        else:
            file = experiment.choose_prompts(experiment.method["name"], name)
            lines.append(f"  prompts   learned on {names.dataset_name(name)} ({file.description})")
    return "\n".join(lines if learned else [*lines, "  prompts   fixed, nothing is trained"])


def describe_results(report: Report, workdir: Any) -> str:
    """Returns the means of all datasets, or all tables of a single one, and the paths of the rest."""
    several = len({row["dataset"] for row in report.rows}) > 1
    tables = [f"{to_text(table)}\n" for table in report.tables[: 1 if several else None]]
    paths = f"  results   {workdir / 'results.json'}\n  report    {workdir / 'report.html'}"
    return "\n".join(["", *tables, paths])


def _describe(dataset: Dataset) -> str:
    count = len(dataset.categories)
    categories = f", {count} categories" if count > 1 else ""
    return f"{names.dataset_name(dataset.name)}: {plural(len(dataset), 'image')}{categories}"
