"""The execution of a run: prompts per auxiliary dataset, an evaluation per target, results and the report.

Everything that an earlier run with the same settings finished is reused.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from jax.sharding import Mesh
from jaxtyping import PyTree

from zsad_jax.backbones import Backbone, registry
from zsad_jax.backbones.feature_cache import Features, FeaturesConfig
from zsad_jax.data.dataset import Dataset
from zsad_jax.data.issues import issues_to_json
from zsad_jax.data.open import open_dataset
from zsad_jax.evaluate import Contender, Scorer, dataset_scores, evaluate, make_scorer
from zsad_jax.experiment import cache, config_files, console, run_info
from zsad_jax.experiment.config import ELSEWHERE, Experiment, MethodSpec, Target, to_json
from zsad_jax.experiment.results import Prompts, TargetResults, collect
from zsad_jax.experiment.workdir import check_workdir
from zsad_jax.methods import Method, image_score, param_shapes
from zsad_jax.methods.base import encoder_of
from zsad_jax.methods.shared import prompt_files
from zsad_jax.report import CurveWriter, Report, curve_files, names, read_curves, write_report
from zsad_jax.report.compare import IMAGES, WITHOUT_MASK, find_deviations, words_on
from zsad_jax.train import DamagedCheckpointError, Member, OrbaxSaver, train
from zsad_jax.utils import files, sharding
from zsad_jax.utils.errors import NoSplitError, NotPreparedError, UserError

AFTER_A_CHANGE = "After a change of code, choose a --workdir in another folder."
OUTPUTS = (
    *("config.json", "results.json", "comparisons.json", "run.json"),
    *("results.md", "results.csv", "results.tex", "report.html"),
    *("figures", "training", "evaluations"),
)


class Run(NamedTuple):
    """The state that all steps of a run share.

    `datasets` are targets, and auxiliary datasets to train on; `skipped` targets have a reason. The tables show
    the `image_score` of the main `method`.
    """

    experiment: Experiment
    workdir: pathlib.Path
    backbone: Backbone
    mesh: Mesh
    datasets: dict[str, Dataset]
    skipped: dict[str, str]
    method: Method
    image_score: str

    @property
    def targets(self) -> list[Target]:
        """The targets that are evaluated."""
        return [target for target in self.experiment.resolved if target.name in self.datasets]


# By (auxiliary dataset, label of the method).
AllPrompts = Mapping[tuple[str | None, str], Prompts]


def run_experiment(
    experiment: Experiment, workdir: pathlib.Path, changed: Mapping[str, Any] | None = None
) -> None:
    """Trains what must be trained, evaluates every target, and writes the report.

    The values that differ from the config file, `changed`, are in the titles of tables.

    Raises:
      UserError: something is wrong or missing; it is raised before any long work.
    """
    clock = run_info.Stopwatch()
    check_workdir(workdir, experiment)
    _show(console.describe_setting(experiment, workdir))
    run = start_run(experiment, workdir)
    clock.lap("start")
    prompts = obtain_all_prompts(run, clock)
    scorers: dict[Hashable, Scorer] = {}  # one compilation for all targets with the same methods
    results = []
    for target in run.targets:
        results.append(evaluate_target(run, target, prompts, scorers))
        clock.lap(f"evaluate {target.name}")
    info = run_info.describe_process(clock)
    info |= run_info.describe_evaluations([one.evaluation for one in results])
    effective = {k: v for k, v in (changed or {}).items() if k.partition(".")[0] not in ELSEWHERE}
    info |= {"changed_keys": effective}
    info |= run_info.describe_method(experiment, run.method, run.backbone)
    trainings = dict.fromkeys(one.folder for one in prompts.values() if one.folder)
    report = make_report(run, results, info, trainings)
    # Without times and versions, which are in run.json, so that the same run writes the same bytes.
    files.write_json(workdir / "results.json", report.rows)
    files.write_json(workdir / "comparisons.json", report.comparisons)
    issues = {name: issues_to_json(found) for name, found in report.issues.items()}
    files.write_json(workdir / "run.json", info | {"issues": issues})
    write_report(workdir, report)
    _show(console.describe_results(report, workdir))


def _show(text: str) -> None:
    print(text, flush=True)  # also into a pipe, before long work


def start_run(experiment: Experiment, workdir: pathlib.Path) -> Run:
    """Checks the experiment, opens its datasets, loads the backbone and writes config.json."""
    # First what needs no files, then datasets, then weights: mistakes show before long waits.
    experiment.check_methods()
    datasets, skipped = open_datasets(experiment)
    backbone = experiment.load_backbone()
    in_prompts = (name for one in datasets.values() for name in one.prompt_names)
    # A text has no more tokens than bytes.
    longest = max(in_prompts, key=lambda name: len(name.encode(errors="replace")))
    experiment.check_methods(backbone, longest)
    method = experiment.main_method(backbone)
    score = image_score(method, experiment.image_score)
    # After all checks: a rejected config must not replace the one behind earlier results.
    files.write_json(workdir / "config.json", to_json(experiment))
    mesh = sharding.make_mesh()
    learned = bool(param_shapes(method, backbone))
    _show(console.describe_inputs(experiment, datasets, learned=learned))
    return Run(experiment, workdir, backbone, mesh, datasets, skipped, method, score)


def obtain_all_prompts(run: Run, clock: run_info.Stopwatch) -> AllPrompts:
    """Trains or loads the parameters of every method for every auxiliary dataset."""
    prompts: dict[tuple[str | None, str], Prompts] = {}
    for target in run.targets:
        for spec in run.experiment.methods():
            key = target.auxiliary, spec.label
            # Targets with the same auxiliary dataset share their prompts.
            if key not in prompts:
                prompts[key] = obtain_prompts(run, spec, target.auxiliary)
        if any(one.auxiliary for key, one in prompts.items() if key[0] == target.auxiliary):
            clock.lap(f"prompts from {target.auxiliary}")
    return prompts


def make_report(
    run: Run,
    results: Sequence[TargetResults],
    info: dict[str, Any],
    trainings: Iterable[pathlib.Path],
) -> Report:
    """Returns the report of a run; `trainings` are the folders of the training curves."""
    evaluations = [one.evaluation for one in results]
    return Report(
        title=f"{names.method_name(run.method.name)} on {run.backbone.name}",
        rows=[row for one in results for row in one.rows],
        comparisons=[row for one in results for row in one.comparisons],
        notes={key: notes for one in results for key, notes in one.notes.items()},
        scores=[dataset_scores(evaluation, run.image_score) for evaluation in evaluations],
        cases=[case for evaluation in evaluations for case in evaluation.cases],
        history=[line for folder in trainings for line in read_curves(folder)],
        issues={one.dataset: one.issues for one in evaluations},
        config_text=(run.workdir / "config.json").read_text(encoding="utf-8"),
        run=info,
        demonstration=run.backbone.demonstration,
        map_scale=run.method.map_range,
        skipped=run.skipped,
    )


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
        # Only what is absent can be skipped. A damaged dataset ends the run.
        except (NotPreparedError, NoSplitError) as error:
            missing[name] = str(error)
    skipped = {target: missing[target] for target in auxiliary_of if target in missing}
    # A target whose prompts cannot be trained is skipped like a missing one.
    for target, auxiliary in auxiliary_of.items():
        if auxiliary in missing:
            reason = f"its prompts are trained on {auxiliary}: {missing[str(auxiliary)]}"
            skipped.setdefault(target, reason)
    left = [target for target in auxiliary_of if target not in skipped]
    if not left or (skipped and not experiment.skip_missing):
        raise UserError("\n".join([*missing.values(), *_hints(experiment)]))
    for name, reason in skipped.items():
        logging.warning("Skipping %s: %s", name, reason)
    wanted = {*left, *(auxiliary_of[target] for target in left)}
    return {name: one for name, one in datasets.items() if name in wanted}, skipped


def _hints(experiment: Experiment) -> list[str]:
    """Returns the commands for other missing files, and for the method's demo if it has one."""
    name, lineage = experiment.backbone["name"], experiment.backbone.get("lineage") or "native"
    commands = {}
    if name in registry.RELEASES and registry.missing_files(name, lineage):
        commands[f"weights of {name}"] = registry.fetch_command(name, lineage)
    auxiliaries = () if experiment.train else experiment.auxiliaries()
    for source in filter(None, map(experiment.checkpoints.get, auxiliaries)):
        if not prompt_files.find(source).path.exists():
            commands[f"prompts {source}"] = registry.fetch_command(source)
    hints = [
        f"Also missing (downloaded on first use): {what}. To download now: {command}."
        for what, command in commands.items()
    ]
    config_file = f"configs/{experiment.method['name']}.py"
    if config_file in config_files.included():  # a registered method has none
        demo = f"python -m zsad_jax.main --config {config_file}:demo"
        hints.append(f"To try the method without downloads: {demo}")
    return hints


def obtain_prompts(run: Run, spec: MethodSpec, auxiliary: str | None) -> Prompts:
    """Trains or loads the parameters of a method for the targets of an auxiliary dataset, if it learns any."""
    method = spec.make(run.backbone)
    if not param_shapes(method, run.backbone):
        return Prompts()
    assert auxiliary is not None  # see `Experiment.check_methods`
    if run.experiment.train:
        return _train(run, method, auxiliary)
    file = run.experiment.choose_prompts(method.name, auxiliary)
    params = prompt_files.load(file, method, run.backbone)
    return Prompts(params, auxiliary, file.name, file.epoch)


def _train(run: Run, method: Method, auxiliary: str) -> Prompts:
    experiment, dataset = run.experiment, run.datasets[auxiliary]
    key = cache.training_key(experiment, run.backbone, method, auxiliary, dataset)
    folder = run.workdir / "training" / f"{files.safe_name(auxiliary)}-{key}"
    finished = folder / "prompts.npz"

    def read() -> PyTree:
        return prompt_files.load(prompt_files.find(str(finished)), method, run.backbone)

    if not finished.exists():
        _copy_training(folder)
    try:
        params = read()
        logging.info("Reusing %s. %s", finished, AFTER_A_CHANGE)
    except UserError:
        if finished.exists():
            logging.warning("%s cannot be read. Training resumes from its checkpoint.", finished)
        prompt_files.save(finished, _optimize(run, method, dataset, folder))
        # Read again: results of a first and of a resumed run are of the same stored numbers.
        params = read()
    each = experiment.training_config.epochs
    epochs = sum(stage.epochs or each for stage in method.stages)
    return Prompts(params, auxiliary, folder.name, epochs, experiment.seed, folder)


def _copy_training(folder: pathlib.Path) -> None:
    """Copies a finished training with the same key from another working directory beside this one."""
    places = folder.absolute().parents[2]
    for other in sorted(places.glob(f"*/training/{folder.name}/prompts.npz"))[:1]:
        logging.info("Copying the finished training in %s.", other.parent)
        # The prompts come last: with them, the training is finished.
        for path in (*curve_files(other.parent), other):
            with files.replaced(folder / path.relative_to(other.parent)) as temporary:
                shutil.copyfile(path, temporary)


def _optimize(run: Run, method: Method, dataset: Dataset, folder: pathlib.Path) -> PyTree:
    """Trains, or resumes from the last finished epoch in `folder`."""
    config = run.experiment.training_for(method)
    features = make_features(run, dataset, [method])
    saver = OrbaxSaver(folder / "checkpoints")
    while True:
        done = saver.latest()
        # The curve is cut at the restored epoch: later steps are trained again.
        resumed = None if done is None else done * config.steps(len(dataset))
        with contextlib.suppress(DamagedCheckpointError), CurveWriter(folder, resumed) as curves:
            (params,) = train(
                method,
                run.backbone,
                features,
                [Member(run.experiment.seed, config)],
                mesh=run.mesh,
                saver=saver,
                curves=curves,
            )
            saver.close()
            return sharding.to_host(params)


def make_features(run: Run, dataset: Dataset, methods: Iterable[Method]) -> Features:
    """Returns the features that methods need of a dataset."""
    return Features(
        dataset,
        run.backbone,
        dict(map(encoder_of, methods)),
        FeaturesConfig(cache="none"),
        mesh=run.mesh,
        rows=run.experiment.batch_size,
        num_workers=run.experiment.num_workers,
    )


def evaluate_target(
    run: Run, target: Target, prompts: AllPrompts, scorers: dict[Hashable, Scorer]
) -> TargetResults:
    """Evaluates all methods on a target, unless it is finished; `scorers` holds those of earlier targets."""
    experiment, dataset = run.experiment, run.datasets[target.name]
    own = [prompts[target.auxiliary, spec.label] for spec in target.methods]
    contenders = [
        Contender(spec.make(run.backbone), one.params, spec.label)
        for spec, one in zip(target.methods, own, strict=True)
    ]
    keys = [
        cache.evaluation_key(
            experiment,
            run.backbone,
            contender,
            dataset,
            target=target.name,
            image_score=run.image_score,
        )
        for contender in contenders
    ]
    name = files.safe_name(target.name)
    paths = [run.workdir / "evaluations" / f"{name}-{key}.npz" for key in keys]
    evaluations = {path: cache.load(path) for path in paths}
    missing = [number for number, path in enumerate(paths) if evaluations[path] is None]
    if not missing:
        logging.info(
            "Reusing the results of %s from an earlier run. %s", target.name, AFTER_A_CHANGE
        )
    else:
        methods = [contenders[number].method for number in missing]
        # Methods hold closures, which compare by identity; their configs compare by value.
        specs = repr([target.methods[number] for number in missing])
        encoders = [encoder_of(method)[0] for method in methods]
        found = evaluate(
            [contenders[number] for number in missing],
            make_features(run, dataset, methods),
            run.backbone,
            mesh=run.mesh,
            scorer=scorers.setdefault((specs, *encoders), make_scorer(methods, run.backbone)),
            exact=experiment.exact_metrics,
            image_score=run.image_score,
            pictures=0 in missing,
        )
        for number, evaluation in zip(missing, found, strict=True):
            cache.save(paths[number], evaluation)
            evaluations[paths[number]] = evaluation
    complete = [one for one in evaluations.values() if one is not None]
    results = collect(complete, contenders, own, run.backbone, dataset, run.image_score)
    without_mask = {WITHOUT_MASK: run_info.count_without_mask([results.evaluation])}
    deviations = find_deviations(results.rows, without_mask)
    for words in words_on(deviations, [target.name], kinds=IMAGES):
        logging.warning("%s Differences to published results are omitted.", words)
    return results
