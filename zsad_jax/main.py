"""The command: read the config, then train, evaluate and report.

python -m zsad_jax.main --config configs/tipsomaly.py [--config.key=value ...] [--workdir DIR]
"""

import pathlib
import sys
from typing import Any

from absl import app, flags, logging

from zsad_jax.backbones import registry
from zsad_jax.data.dataset import Dataset
from zsad_jax.data.issues import issues_to_json
from zsad_jax.data.open import open_dataset
from zsad_jax.evaluate import dataset_scores
from zsad_jax.experiment import config_flag
from zsad_jax.experiment.config import Experiment, describe_method, target_name, to_json
from zsad_jax.experiment.results import collect
from zsad_jax.experiment.run import Runner
from zsad_jax.experiment.run_info import Stopwatch, count_without_mask, describe_run
from zsad_jax.methods import image_score
from zsad_jax.methods.shared import released as released_prompts
from zsad_jax.report import Report, names, read_curves, write_report
from zsad_jax.report.compare import IMAGES, WITHOUT_MASK, find_deviations, words_on
from zsad_jax.utils import command_line, files, sharding
from zsad_jax.utils.command_line import log_plainly
from zsad_jax.utils.errors import NoSplitError, NotPreparedError, UserError

flags.adopt_module_key_flags(config_flag)
OUTPUTS = (
    *("config.json", "results.json", "comparisons.json", "run.json"),
    *("results.md", "results.csv", "results.tex", "report.html"),
    *("figures", "training", "evaluations"),
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes; default: runs/<config>.")


def run_experiment(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains what must be trained, evaluates every target, and writes the report.

    Raises:
      UserError: something is wrong or missing; nothing long has been started then.
    """
    clock = Stopwatch()
    experiment.check_methods()
    datasets, skipped = open_datasets(experiment)
    backbone = experiment.load_backbone()
    experiment.check_methods(backbone)
    method = experiment.make_method(backbone)
    score = image_score(method, experiment.image_score)
    files.write_json(workdir / "config.json", to_json(experiment))
    clock.lap("start")

    runner = Runner(experiment, workdir, backbone, sharding.make_mesh(), datasets, score)
    targets = [target for target in experiment.targets if target_name(target) in datasets]
    for target in targets:
        runner.prompts_for(target)
        clock.lap(f"prompts from {experiment.auxiliary_of(target)}")
    evaluations, results = [], []
    for target in targets:
        evaluated = runner.evaluate(target)
        evaluations.append(evaluated.evaluation)
        results.append(collect(evaluated, backbone, datasets[target_name(target)], score))
        without_mask = {WITHOUT_MASK: count_without_mask([evaluated.evaluation])}
        deviations = find_deviations(results[-1].rows, without_mask)
        for words in words_on(deviations, [target_name(target)], kinds=IMAGES):
            logging.warning("%s No difference to published results is given.", words)
        clock.lap(f"evaluate {target_name(target)}")

    rows = [row for result in results for row in result.rows]
    comparisons = [row for result in results for row in result.comparisons]
    files.write_json(workdir / "results.json", rows)
    files.write_json(workdir / "comparisons.json", comparisons)
    run = describe_run(backbone, clock, evaluations)
    run |= describe_method(experiment, method, backbone)
    recorded = {e.dataset: issues_to_json(e.issues) for e in evaluations}
    files.write_json(workdir / "run.json", run | {"issues": recorded})
    report = Report(
        title=f"{names.method_name(method.name)} over {backbone.name}",
        rows=rows,
        comparisons=comparisons,
        notes={key: words for result in results for key, words in result.notes.items()},
        scores=[dataset_scores(evaluation, score) for evaluation in evaluations],
        cases=[case for evaluation in evaluations for case in evaluation.cases],
        history=[line for folder in runner.trained for line in read_curves(folder)],
        issues={e.dataset: e.issues for e in evaluations if e.issues},
        config_text=(workdir / "config.json").read_text(encoding="utf-8"),
        run=run,
        demonstration=backbone.demonstration,
        map_scale=method.map_range,
        skipped=skipped,
    )
    write_report(workdir, report)
    logging.info("The report is %s", workdir / "report.html")


def open_datasets(experiment: Experiment) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Every dataset that the run needs, and the targets that are skipped with the reason.

    Raises:
      UserError: datasets are missing; it lists the commands for all that is missing, weights included.
    """
    auxiliary_of = {
        target_name(target): experiment.auxiliary_of(target) if experiment.train else None
        for target in experiment.targets
    }
    needed: dict[str, Any] = {target_name(target): target for target in experiment.targets}
    needed |= {name: name for name in auxiliary_of.values() if name}
    datasets: dict[str, Dataset] = {}
    missing: dict[str, str] = {}
    for name, spec in needed.items():
        try:
            datasets[name] = open_dataset(
                spec, experiment.data_folder, **_options(experiment, spec)
            )
        except (NotPreparedError, NoSplitError) as error:
            missing[name] = str(error)
    skipped = {target: missing[target] for target in auxiliary_of if target in missing}
    for target, auxiliary in auxiliary_of.items():
        if auxiliary in missing:
            reason = f"its prompts are trained on {auxiliary}: {missing[str(auxiliary)]}"
            skipped.setdefault(target, reason)
    left = [target for target in auxiliary_of if target not in skipped]
    if not left or (skipped and not experiment.skip_missing):
        hints = [*_fetch_hints(experiment), experiment.hint]
        raise UserError("\n".join([*missing.values(), *hints]).rstrip())
    for name, reason in skipped.items():
        logging.warning("%s is left out: %s", name, reason)
    wanted = {*left, *(auxiliary_of[target] for target in left)}
    return {name: one for name, one in datasets.items() if name in wanted}, skipped


def _options(experiment: Experiment, spec: Any) -> dict[str, Any]:
    """How categories are called; a folder of the user's says it itself."""
    return {"naming": experiment.naming} if isinstance(spec, str) else {}


def _fetch_hints(experiment: Experiment) -> list[str]:
    """What will have to be fetched besides the datasets."""
    name, lineage = experiment.backbone["name"], experiment.backbone.get("lineage") or "native"
    wanted = {}
    if name in registry.names() and registry.missing_files(name, lineage):
        wanted[f"the weights of {name}"] = registry.fetch_command(name, lineage)
    auxiliaries = () if experiment.train else experiment.auxiliaries()
    for prompts in filter(None, map(experiment.checkpoints.get, auxiliaries)):
        if prompts in released_prompts.names() and released_prompts.missing_files(prompts):
            wanted[prompts] = released_prompts.fetch_command(prompts)
    return [
        f"Not here either, and fetched on first use: {what}; or fetch with: {command}."
        for what, command in wanted.items()
    ]


def default_workdir(config_path: str) -> pathlib.Path:
    """runs/<config's name>[-<variant>] under the current directory; folders below configs/ name it too."""
    file, _, variant = config_path.partition(":")
    path = pathlib.Path(file).with_suffix("")
    start = path.parts.index("configs") + 1 if "configs" in path.parts else -1
    return pathlib.Path("runs", "-".join([*path.parts[start:], *([variant] if variant else [])]))


def main(argv: list[str]) -> None:
    """Runs the experiment of the command line."""

    def body() -> None:
        experiment = config_flag.read_experiment()
        config_flag.reject_strays(argv[1:])
        workdir = pathlib.Path(_WORKDIR.value or default_workdir(config_flag.config_file()))
        log_plainly()
        with files.alone(workdir, OUTPUTS):
            run_experiment(experiment, workdir)

    sys.exit(command_line.guarded(body))


if __name__ == "__main__":
    app.run(main, flags_parser=config_flag.flags_parser("zsad_jax.main"))
