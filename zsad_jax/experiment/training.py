"""The learned parameters of a run's variants: trained, several at a time, or read from files."""

import contextlib
import itertools
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import logging
from jaxtyping import PyTree

from zsad_jax.backbones import Backbone
from zsad_jax.backbones.feature_cache import Features
from zsad_jax.experiment import cache
from zsad_jax.experiment.results import Prompts
from zsad_jax.experiment.start import Run
from zsad_jax.experiment.variants import Variant
from zsad_jax.methods import Method, param_shapes
from zsad_jax.methods.base import encoder_of
from zsad_jax.methods.shared import prompt_files
from zsad_jax.report import CurveWriter, curve_files
from zsad_jax.train import DamagedCheckpointError, Member, OrbaxSaver, count_steps, train
from zsad_jax.utils import distributed, files, sharding
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.records import fingerprint

AFTER_A_CHANGE = "After a change of code, choose a --workdir in another folder."
TOGETHER = 16  # trainings in one compiled step, whose states and batches must fit into memory

# By (auxiliary dataset, label of the variant): one for each seed.
AllPrompts = Mapping[tuple[str | None, str], Sequence[Prompts]]


class Training(NamedTuple):
    """A training that a variant needs; those with the same `common` key differ only in what `member` has."""

    backbone: Backbone
    method: Method
    auxiliary: str
    member: Member
    common: str


def obtain_prompts(run: Run) -> AllPrompts:
    """Trains or loads the parameters of every variant for every auxiliary dataset."""
    prompts: dict[tuple[str | None, str], list[Prompts]] = {}
    trainings: dict[pathlib.Path, Training] = {}
    wanted: dict[tuple[str | None, str], list[pathlib.Path]] = {}
    for variant in run.variants:
        experiment, method, backbone = (
            variant.experiment,
            run.method(variant),
            run.backbone(variant),
        )
        learns = bool(param_shapes(method, backbone))
        # Targets with the same auxiliary dataset share their prompts.
        for auxiliary in dict.fromkeys(experiment.auxiliary_of(one.name) for one in run.targets):
            key = auxiliary, variant.label
            if not learns:
                prompts[key] = [Prompts()]
                continue
            assert auxiliary is not None  # see `Experiment.check_method`
            if not experiment.train:
                file = experiment.choose_prompts(method.name, auxiliary)
                # The files of other processes may differ.
                params = distributed.by_main(prompt_files.load)(file, method, backbone)
                prompts[key] = [Prompts(params, auxiliary, file.name, file.epoch)]
                continue
            found = _list_trainings(run, variant, auxiliary)
            trainings |= found
            wanted[key] = list(found)
    learned = _obtain(run, trainings)
    for key, folders in wanted.items():
        prompts[key] = [_describe(folder, trainings[folder], learned[folder]) for folder in folders]
    return prompts


def _list_trainings(run: Run, variant: Variant, auxiliary: str) -> dict[pathlib.Path, Training]:
    """Returns the training of each seed of a variant, by its folder."""
    variant = variant._replace(experiment=variant.experiment.on_auxiliary(auxiliary))
    experiment, method, backbone = variant.experiment, run.method(variant), run.backbone(variant)
    config = experiment.training_for(method)

    def key(member: Member | None) -> str:
        names = run.fingerprints[auxiliary], run.datasets[auxiliary].prompt_names
        return cache.training_key(experiment, backbone, method, (auxiliary, *names), member)

    common, place = key(None), run.workdir.local / "training"
    return {
        place / f"{files.safe_name(auxiliary)}-{key(member)}": Training(
            backbone, method, auxiliary, member, common
        )
        for member in (Member(seed, config) for seed in run.seeds(variant))
    }


def _describe(folder: pathlib.Path, training: Training, params: PyTree) -> Prompts:
    """Returns what results record of a training."""
    member = training.member
    epochs = sum(member.config.at(stage).epochs for stage in training.method.stages)
    return Prompts(params, training.auxiliary, folder.name, epochs, member.seed, folder)


def _obtain(run: Run, trainings: Mapping[pathlib.Path, Training]) -> dict[pathlib.Path, PyTree]:
    """Returns the parameters of each training; finished ones are read."""
    finished = distributed.once(lambda: [*itertools.starmap(_read_finished, trainings.items())])
    learned = dict(zip(trainings, finished, strict=True))
    places: dict[tuple[str, Backbone], dict[str, list[pathlib.Path]]] = {}
    for folder, training in trainings.items():
        if learned[folder] is None:
            place = places.setdefault((training.auxiliary, training.backbone), {})
            place.setdefault(training.common, []).append(folder)
    for (auxiliary, backbone), groups in places.items():
        # The images are read once for all trainings on them.
        methods = (trainings[folders[0]].method for folders in groups.values())
        stages = ((method, stage) for method in methods for stage in method.stages)
        features = run.features(auxiliary, backbone, dict(itertools.starmap(encoder_of, stages)))
        for folders in groups.values():
            for start in range(0, len(folders), TOGETHER):
                part = folders[start : start + TOGETHER]
                learned |= _train(run, {one: trainings[one] for one in part}, features)
    return learned


def _read_finished(folder: pathlib.Path, training: Training) -> PyTree | None:
    """Returns the parameters of a finished training, of this directory or one beside it, if any."""
    path = folder / "prompts.npz"
    if not path.exists():
        _copy_training(folder)
    if not path.exists():
        return None
    try:
        params = _read(folder, training)
    except UserError:
        logging.warning("%s cannot be read. Training resumes from its checkpoint.", path)
        return None
    logging.info("Reusing %s. %s", path, AFTER_A_CHANGE)
    return params


def _read(folder: pathlib.Path, training: Training) -> PyTree:
    file = prompt_files.find(str(folder / "prompts.npz"))
    return prompt_files.load(file, training.method, training.backbone)


def _copy_training(folder: pathlib.Path) -> None:
    """Copies a finished training with the same key from another working directory beside this one."""
    places = folder.absolute().parents[2]
    for other in sorted(places.glob(f"*/training/{folder.name}/prompts.npz"))[:1]:
        logging.info("Copying the finished training in %s.", other.parent)
        # The prompts come last: with them, the training is finished.
        for path in (*curve_files(other.parent), other):
            with files.replaced(folder / path.relative_to(other.parent)) as temporary:
                shutil.copyfile(path, temporary)


def _train(
    run: Run, trainings: Mapping[pathlib.Path, Training], features: Features
) -> dict[pathlib.Path, PyTree]:
    """Trains together what differs only in the members, or resumes from the last finished epoch."""
    folders, (first, *_) = list(trainings), trainings.values()
    keys = [encoder_of(first.method, stage)[0] for stage in first.method.stages]
    setting = first.method, first.member.config, len(features.dataset)
    # Checkpoints hold the states of all members.
    together = f"{files.safe_name(first.auxiliary)}-{fingerprint([one.name for one in folders])}"
    place = folders[0] if len(folders) == 1 else folders[0].with_name(together)
    saver = OrbaxSaver(place / "checkpoints", on_save=run.workdir.push)
    learned: list[PyTree] | None = None
    while learned is None:
        done = saver.latest()
        # The curves are cut at the restored epoch: later steps are trained again.
        resumed = None if done is None else count_steps(*setting, done)
        with contextlib.suppress(DamagedCheckpointError), contextlib.ExitStack() as stack:
            learned = train(
                first.method,
                first.backbone,
                features.select(keys),
                [one.member for one in trainings.values()],
                mesh=run.mesh,
                saver=saver,
                curves=[stack.enter_context(CurveWriter(one, resumed)) for one in folders],
            )
    saver.close()
    for folder, params in zip(folders, learned, strict=True):
        prompt_files.save(folder / "prompts.npz", sharding.to_host(params))
    run.workdir.push()
    # Read again: results of a first and of a resumed run are of the same stored numbers.
    return {folder: _read(folder, one) for folder, one in trainings.items()}
