"""The lines that a run prints: what it is about to do, and its results."""

import pathlib
from collections.abc import Mapping

import jax

from zsad_jax.backbones.registry import RELEASES
from zsad_jax.data.dataset import Dataset
from zsad_jax.experiment.config import Experiment
from zsad_jax.report import DEMONSTRATION, Report, names
from zsad_jax.report.formats import to_text
from zsad_jax.utils.errors import plural


def describe_setting(experiment: Experiment, workdir: pathlib.Path) -> str:
    """Describes what is known before anything is opened or loaded."""
    name = experiment.backbone["name"]
    demo = name in RELEASES and RELEASES[name].demo
    title = f"{names.method_name(experiment.method['name'])} on {name}"
    return "\n".join([title, *[DEMONSTRATION] * demo, _item("output", str(workdir))])


def describe_inputs(
    experiment: Experiment, datasets: Mapping[str, Dataset], *, learned: bool
) -> str:
    """Describes devices, datasets and prompts; `learned`: whether the method learns any."""
    targets = [target for target in experiment.resolved if target.name in datasets]
    devices = jax.devices()
    items = [("devices", f"{len(devices)} x {devices[0].device_kind}")]
    items += [("evaluate", _describe_dataset(datasets[target.name])) for target in targets]
    auxiliaries = dict.fromkeys(str(target.auxiliary) for target in targets if learned)
    for name in auxiliaries:
        if experiment.train:
            items.append(("train on", _describe_dataset(datasets[name])))
        else:
            source = experiment.checkpoints.get(name, "included with the package")
            items.append(("prompts", f"learned on {names.dataset_name(name)} ({source})"))
    if not learned:
        items.append(("prompts", "fixed, nothing is trained"))
    return "\n".join(_item(*item) for item in items)


def describe_results(report: Report, workdir: pathlib.Path) -> str:
    """Returns the means of all datasets, or all tables of a single one, and the paths of the rest."""
    several = len({row["dataset"] for row in report.rows}) > 1
    shown = [f"{to_text(table)}\n" for table in report.tables[: 1 if several else None]]
    paths = [("results", "results.json"), ("report", "report.html")]
    items = (_item(name, str(workdir / file)) for name, file in paths)
    return "\n".join(["", *shown, *items])


def _item(name: str, words: str) -> str:
    return f"  {name:9} {words}"


def _describe_dataset(dataset: Dataset) -> str:
    count = len(dataset.categories)
    categories = f", {count} categories" if count > 1 else ""
    return f"{names.dataset_name(dataset.name)}: {plural(len(dataset), 'image')}{categories}"
