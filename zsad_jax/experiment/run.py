"""The execution of a run: prompts per auxiliary dataset, an evaluation per target, results and the report.

Everything that an earlier run with the same settings finished is reused.
"""

import pathlib
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from zsad_jax.backbones import Backbone, registry
from zsad_jax.data.dataset import Dataset
from zsad_jax.data.issues import issues_to_json
from zsad_jax.data.open import open_dataset
from zsad_jax.evaluate import Contender, Evaluation, Scorer, dataset_scores, evaluate, make_scorer
from zsad_jax.experiment import cache, run_info
from zsad_jax.experiment.config import Experiment, Target, Variant, to_json
from zsad_jax.experiment.results import Prompts, collect
from zsad_jax.methods import Method, image_score
from zsad_jax.methods.base import PyTree
from zsad_jax.methods.shared import prompt_files
from zsad_jax.report import CurveWriter, Report, names, read_curves, write_report
from zsad_jax.report.compare import IMAGES, WITHOUT_MASK, find_deviations, words_on
from zsad_jax.train import OrbaxSaver, train
from zsad_jax.utils import files, sharding
from zsad_jax.utils.errors import NoSplitError, NotPreparedError, UserError

OUTPUTS = (
    *("config.json", "results.json", "comparisons.json", "run.json"),
    *("results.md", "results.csv", "results.tex", "report.html"),
    *("figures", "training", "evaluations"),
)


class Run(NamedTuple):
    """The experiment, its loaded backbone and its opened datasets, which all steps of a run share."""

    experiment: Experiment
    workdir: pathlib.Path
    backbone: Backbone
    mesh: Mesh
    datasets: dict[str, Dataset]
    image_score: str


def run_experiment(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains what must be trained, evaluates every target, and writes the report.

    Raises:
      UserError: something is wrong or missing; it is raised before any long work.
    """
    clock = run_info.Stopwatch()
    experiment.check_methods()
    datasets, skipped = open_datasets(experiment)
    backbone = experiment.load_backbone()
    experiment.check_methods(backbone)
    method = experiment.variants()[0].make(backbone)
    score = image_score(method, experiment.image_score)
    files.write_json(workdir / "config.json", to_json(experiment))
    clock.lap("start")

    run = Run(experiment, workdir, backbone, sharding.make_mesh(), datasets, score)
    targets = [target for target in experiment.resolved if target.name in datasets]
    prompts: dict[tuple[str | None, str], Prompts] = {}
    for target in targets:
        for variant in experiment.variants():
            key = target.auxiliary, variant.label
            if key not in prompts:
                prompts[key] = obtain_prompts(run, variant, target.auxiliary)
        clock.lap(f"prompts from {target.auxiliary}")

    evaluations, results = [], []
    scorers: dict[str, Scorer] = {}  # one compilation for all targets with the same methods
    for target in targets:
        own = [prompts[target.auxiliary, variant.label] for variant in target.variants]
        contenders = [
            Contender(variant.make(backbone), one.params, variant.label)
            for variant, one in zip(target.variants, own, strict=True)
        ]
        scorer = make_scorer([contender.method for contender in contenders], backbone)
        scorer = scorers.setdefault(repr(target.variants), scorer)
        evaluations.append(evaluate_target(run, target, contenders, scorer))
        results.append(
            collect(evaluations[-1], contenders, own, backbone, datasets[target.name], score)
        )
        without_mask = {WITHOUT_MASK: run_info.count_without_mask(evaluations[-1:])}
        deviations = find_deviations(results[-1].rows, without_mask)
        for words in words_on(deviations, [target.name], kinds=IMAGES):
            logging.warning("%s No difference to published results is given.", words)
        clock.lap(f"evaluate {target.name}")

    rows = [row for result in results for row in result.rows]
    comparisons = [row for result in results for row in result.comparisons]
    files.write_json(workdir / "results.json", rows)
    files.write_json(workdir / "comparisons.json", comparisons)
    info = run_info.describe_run(
        clock, evaluations, digest=backbone.digest, demonstration=backbone.demonstration
    )
    info |= run_info.describe_method(experiment, method, backbone)
    recorded = {e.dataset: issues_to_json(e.issues) for e in evaluations}
    files.write_json(workdir / "run.json", info | {"issues": recorded})
    trained = dict.fromkeys(one.folder for one in prompts.values() if one.folder)
    report = Report(
        title=f"{names.method_name(method.name)} over {backbone.name}",
        rows=rows,
        comparisons=comparisons,
        notes={key: notes for result in results for key, notes in result.notes.items()},
        scores=[dataset_scores(evaluation, score) for evaluation in evaluations],
        cases=[case for evaluation in evaluations for case in evaluation.cases],
        history=[line for folder in trained for line in read_curves(folder)],
        issues={e.dataset: e.issues for e in evaluations if e.issues},
        config_text=(workdir / "config.json").read_text(encoding="utf-8"),
        run=info,
        demonstration=backbone.demonstration,
        map_scale=method.map_range,
        skipped=skipped,
    )
    write_report(workdir, report)
    logging.info("The report is %s", workdir / "report.html")


def open_datasets(experiment: Experiment) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Opens every dataset that the run needs; also returns the skipped targets with the reason.

    Raises:
      UserError: datasets are missing; the message lists the commands for all that is missing, weights included.
    """
    needed: dict[str, Any] = {target.name: target.spec for target in experiment.resolved}
    auxiliary_of = {t.name: t.auxiliary if experiment.train else None for t in experiment.resolved}
    needed |= {name: name for name in auxiliary_of.values() if name}
    datasets: dict[str, Dataset] = {}
    missing: dict[str, str] = {}
    for name, spec in needed.items():
        try:
            datasets[name] = open_dataset(spec, experiment.data_folder, naming=experiment.naming)
        except (NotPreparedError, NoSplitError) as error:
            missing[name] = str(error)
    skipped = {target: missing[target] for target in auxiliary_of if target in missing}
    for target, auxiliary in auxiliary_of.items():
        if auxiliary in missing:
            reason = f"its prompts are trained on {auxiliary}: {missing[str(auxiliary)]}"
            skipped.setdefault(target, reason)
    left = [target for target in auxiliary_of if target not in skipped]
    if not left or (skipped and not experiment.skip_missing):
        hints = [*_download_hints(experiment), experiment.hint]
        raise UserError("\n".join([*missing.values(), *hints]).rstrip())
    for name, reason in skipped.items():
        logging.warning("Skipping %s: %s", name, reason)
    wanted = {*left, *(auxiliary_of[target] for target in left)}
    return {name: one for name, one in datasets.items() if name in wanted}, skipped


def _download_hints(experiment: Experiment) -> list[str]:
    name, lineage = experiment.backbone["name"], experiment.backbone.get("lineage") or "native"
    commands = {}
    if name in registry.RELEASES and registry.missing_files(name, lineage):
        commands[f"weights of {name}"] = registry.fetch_command(name, lineage)
    auxiliaries = () if experiment.train else experiment.auxiliaries()
    for source in filter(None, map(experiment.checkpoints.get, auxiliaries)):
        if not prompt_files.find(source).path.exists():
            commands[f"prompts {source}"] = prompt_files.fetch_command(source)
    return [
        f"Also missing (downloaded on first use): {what}. To download now: {command}."
        for what, command in commands.items()
    ]


def obtain_prompts(run: Run, variant: Variant, auxiliary: str | None) -> Prompts:
    """Trains or loads the parameters of a method for the targets of an auxiliary dataset, if it learns any."""
    method = variant.make(run.backbone)
    if not prompt_files.expected(method, run.backbone):
        return Prompts()
    assert auxiliary is not None  # see `Experiment.check_methods`
    if run.experiment.train:
        return _train(run, method, auxiliary)
    given = run.experiment.checkpoints.get(auxiliary)
    file = prompt_files.choose(method.name, run.backbone.name, given, auxiliary=auxiliary)
    if file is None:
        raise UserError(
            f"There are no prompts learned on {auxiliary}. Name a file,"
            f" --config.checkpoints=\"{{'{auxiliary}': 'prompts.npz'}}\", or train them,"
            " --config.train=True."
        )
    params = prompt_files.load(file.source, method, run.backbone)
    return Prompts(params, auxiliary, file.name, file.epoch)


def _train(run: Run, method: Method, auxiliary: str) -> Prompts:
    experiment, dataset = run.experiment, run.datasets[auxiliary]
    key = cache.training_key(experiment, run.backbone, method, auxiliary, dataset)
    folder = run.workdir / "training" / f"{files.safe_name(auxiliary)}-{key}"
    finished = folder / "prompts.npz"
    if not finished.exists():
        prompt_files.save(finished, _optimize(run, method, dataset, folder))
    params = prompt_files.load(str(finished), method, run.backbone)
    each = experiment.training_config.epochs
    epochs = sum(stage.epochs or each for stage in method.stages)
    return Prompts(params, auxiliary, folder.name, epochs, experiment.seed, folder)


def _optimize(run: Run, method: Method, dataset: Dataset, folder: pathlib.Path) -> PyTree:
    """Trains, or resumes from the last finished epoch in `folder`."""
    config = run.experiment.training_of(method)
    saver = OrbaxSaver(folder / "checkpoints")
    done = saver.latest()
    resumed = None if done is None else done * config.steps(len(dataset))
    with CurveWriter(folder, resumed) as curves:
        params = train(
            method,
            run.backbone,
            dataset,
            config,
            key=jax.random.key(run.experiment.seed),
            mesh=run.mesh,
            saver=saver,
            curves=curves,
            num_workers=run.experiment.num_workers,
        )
    saver.close()
    return sharding.to_host(params)


def evaluate_target(
    run: Run, target: Target, contenders: list[Contender], scorer: Scorer
) -> Evaluation:
    """Evaluates a target, or reads its finished evaluation."""
    experiment, dataset = run.experiment, run.datasets[target.name]
    named = target.name, dataset
    key = cache.evaluation_key(experiment, run.backbone, contenders, named, run.image_score)
    path = run.workdir / "evaluations" / f"{files.safe_name(target.name)}-{key}.npz"
    evaluation = cache.load(path)
    if evaluation is None:
        evaluation = evaluate(
            contenders,
            run.backbone,
            dataset,
            mesh=run.mesh,
            batch_size=experiment.batch_size,
            scorer=scorer,
            exact=experiment.exact_metrics,
            image_score=run.image_score,
            num_workers=experiment.num_workers,
        )
        cache.save(path, evaluation)
    return evaluation
