"""The execution of a run: prompts per auxiliary dataset, an evaluation per target, results and the report.

Everything that an earlier run with the same settings finished is reused.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from zsad_jax.backbones import Backbone
from zsad_jax.data.issues import issues_to_json
from zsad_jax.evaluate import Contender, Evaluation, dataset_scores, evaluate, make_scorer
from zsad_jax.experiment import cache, console, run_info
from zsad_jax.experiment.config import IN_TABLES, WITHOUT_EFFECT, Experiment, Target, is_one_of
from zsad_jax.experiment.results import Prompts, Result, TargetResults, collect
from zsad_jax.experiment.start import Run, start_run
from zsad_jax.experiment.training import AFTER_A_CHANGE, AllPrompts, obtain_prompts
from zsad_jax.experiment.workdir import check_workdir
from zsad_jax.methods.base import encoder_of
from zsad_jax.report import Report, names, read_curves, write_report
from zsad_jax.report.compare import IMAGES, WITHOUT_MASK, find_deviations, words_on
from zsad_jax.report.rows import combine_seeds
from zsad_jax.utils import distributed, files
from zsad_jax.utils.images import scale_of
from zsad_jax.utils.remote import Workdir

AT_ONCE = 8  # contenders that are scored in one pass over images
OUTPUTS = (
    *("config.json", "results.json", "results_by_seed.json", "comparisons.json", "run.json"),
    *("results.md", "results.csv", "results.tex", "report.html"),
    *("figures", "training", "evaluations"),
)


def run_experiment(
    experiment: Experiment,
    workdir: pathlib.Path | Workdir,
    changed: Mapping[str, Any] | None = None,
) -> None:
    """Trains what must be trained, evaluates every target, and writes the report.

    The values that differ from the config file, `changed`, are in the titles of tables.

    Raises:
      UserError: something is wrong or missing; it is raised before any long work.
    """
    clock = run_info.Stopwatch()
    workdir = workdir if isinstance(workdir, Workdir) else Workdir(workdir, workdir)
    check_workdir(workdir.local, experiment, workdir.path)
    console.show(console.describe_setting(experiment, workdir.path))
    run = start_run(experiment, workdir)
    clock.lap("start")
    prompts = obtain_prompts(run)
    clock.lap("prompts")
    results = []
    for target in run.targets:
        results.append(evaluate_target(run, target, prompts))
        clock.lap(f"evaluate {target.name}")
    if not distributed.is_main():
        return
    info = run_info.describe_process(clock)
    info |= run_info.describe_evaluations([one.evaluation for one in results])
    elsewhere = {*WITHOUT_EFFECT, *IN_TABLES}
    info["changed_keys"] = {k: v for k, v in (changed or {}).items() if not is_one_of(k, elsewhere)}
    if experiment.sweep:
        points = {one.label: one.point for one in run.variants if one.point}
        info["sweep"] = {"points": points}
    info["references"] = {
        f"{target}, shots {shots}, seed {seed}": drawn.images
        for (target, shots, seed), drawn in run.references.items()
    }
    # Also of other configs, whose files may change.
    info["settings"] = {one.label: one.describe() for one in run.variants[1:]}
    info |= run_info.describe_method(experiment, run.method(), run.backbone())
    of_main = (one for (_, label), seeds in prompts.items() if not label for one in seeds)
    trainings = dict.fromkeys(one.folder for one in of_main if one.folder)
    report = make_report(run, results, info, trainings)
    # Without times and versions, which are in run.json, so that the same run writes the same bytes.
    files.write_json(workdir.local / "results.json", report.rows)
    files.write_json(workdir.local / "comparisons.json", report.comparisons)
    (workdir.local / "results_by_seed.json").unlink(missing_ok=True)
    if experiment.seeds > 1:
        files.write_json(workdir.local / "results_by_seed.json", report.by_seed)
    issues = {name: issues_to_json(found) for name, found in report.issues.items()}
    files.write_json(workdir.local / "run.json", info | {"issues": issues})
    write_report(workdir.local, report)
    console.show(console.describe_results(report, workdir.path))


def make_report(
    run: Run,
    results: Sequence[TargetResults],
    info: dict[str, Any],
    trainings: Iterable[pathlib.Path],
) -> Report:
    """Returns the report of a run; `trainings` are the folders of the training curves."""
    evaluations = [one.evaluation for one in results]
    rows = [row for one in results for row in one.rows]
    comparisons = [row for one in results for row in one.comparisons]
    cases = [case for evaluation in evaluations for case in evaluation.cases]
    return Report(
        title=f"{names.method_name(run.method().name)} on {run.backbone().name}",
        rows=combine_seeds(rows),
        comparisons=combine_seeds(comparisons),
        by_seed=[*rows, *comparisons],
        notes={key: notes for one in results for key, notes in one.notes.items()},
        scores=[dataset_scores(evaluation, run.image_score) for evaluation in evaluations],
        cases=cases,
        history=[line for folder in trainings for line in read_curves(folder)],
        issues={one.dataset: one.issues for one in evaluations},
        config_text=(run.workdir.local / "config.json").read_text(encoding="utf-8"),
        run=info,
        demonstration=any(one.demonstration for one in run.backbones.values()),
        map_scale=run.method().map_range or scale_of(case.anomaly_map for case in cases),
        skipped=run.skipped,
    )


def evaluate_target(run: Run, target: Target, prompts: AllPrompts) -> TargetResults:
    """Evaluates all variants on a target, except finished ones."""
    dataset, place = run.datasets[target.name], run.workdir.local / "evaluations"
    identity = target.name, run.fingerprints[target.name], dataset.prompt_names
    contenders: list[tuple[pathlib.Path, Contender, Prompts, Backbone]] = []
    main_key = ""
    for variant in run.variants:
        backbone, shots = run.backbone(variant), variant.experiment.shots
        draws = shots or (run.experiment.seeds > 1 and variant.experiment.method_on().draws)
        of_seeds = prompts[variant.experiment.auxiliary_of(target.name), variant.label]
        if draws and of_seeds[0].seed is None:  # nothing is trained
            of_seeds = [of_seeds[0]._replace(seed=seed) for seed in run.seeds(variant)]
        for learned in of_seeds:
            references = run.references.get((target.name, shots or 0, learned.seed or 0))
            method = run.method(variant, target.name, learned.seed)
            contender = Contender(method, learned.params, variant.label, references)
            key = cache.evaluation_key(variant.experiment, backbone, contender, identity)
            main_key = main_key or key
            # The main one, which is the first, has pictures, chosen by this score.
            pictures = f"-{run.image_score}" if key == main_key else ""
            path = place / f"{files.safe_name(target.name)}-{key}{pictures}.npz"
            contenders.append((path, contender, learned, backbone))
    paths = [*dict.fromkeys(path for path, *_ in contenders)]
    found = dict(zip(paths, distributed.once(lambda: [*map(cache.load, paths)]), strict=True))
    if count := sum(one is not None for one in found.values()):
        some = "the" if count == len(found) else f"{count} of {len(found)}"
        words = "Reusing %s results of %s from an earlier run. %s"
        logging.info(words, some, target.name, AFTER_A_CHANGE)
    main = contenders[0][0]
    for backbone in run.backbones.values():
        pending = {
            path: contender
            for path, contender, _, own in contenders
            if found[path] is None and own is backbone
        }
        if pending:
            found |= _evaluate(run, target.name, backbone, pending, main)
    made = [
        Result(contender, learned, backbone, evaluation)
        for path, contender, learned, backbone in contenders
        if (evaluation := found[path])
    ]
    results = collect(made, dataset, run.image_score)
    without_mask = {WITHOUT_MASK: run_info.count_without_mask([results.evaluation])}
    deviations = find_deviations(results.rows, without_mask)
    sentences = words_on(deviations, [target.name], kinds=IMAGES)
    for words in sentences if distributed.is_main() else ():
        logging.warning("%s Differences to published results are omitted.", words)
    return results


def _evaluate(
    run: Run,
    target: str,
    backbone: Backbone,
    pending: Mapping[pathlib.Path, Contender],
    main: pathlib.Path,
) -> dict[pathlib.Path, Evaluation]:
    """Evaluates contenders over one backbone and stores the results; that of `main` has pictures."""
    experiment, found = run.experiment, {}
    encoders = dict(encoder_of(one.method) for one in pending.values())
    features = run.features(target, backbone, encoders)
    # With stored features each result is stored by itself, so that a killed run keeps it; images are read
    # once for several.
    size = 1 if features.stored else AT_ONCE
    for start in range(0, len(pending), size):
        paths = list(pending)[start : start + size]
        contenders = [pending[path] for path in paths]
        methods = tuple(one.method for one in contenders)
        key = tuple(one.score for one in methods)  # arrays in configs have no hash
        selected = features.select(dict(map(encoder_of, methods)))
        if key not in run.scorers:  # one compilation for all targets with the same methods
            binned = not experiment.exact_metrics
            run.scorers[key] = make_scorer(
                methods, backbone, selected.encoders, mesh=run.mesh, binned=binned
            )
        evaluations = evaluate(
            contenders,
            selected,
            backbone,
            mesh=run.mesh,
            scorer=run.scorers[key],
            exact=experiment.exact_metrics,
            cases_by=run.image_score if paths[0] == main else None,
        )
        for path, evaluation in zip(paths, evaluations, strict=True):
            cache.save(path, evaluation)
            if path == main and (share := evaluation.device_wait_share) is not None:
                words = "%s: devices waited for the host %.1f%% of the time."
                logging.info(words, target, 100 * share)
            found[path] = evaluation
        run.workdir.push()
    return found
