"""The learned parameters of a run's variants: trained, several at a time, or read from files."""

import contextlib
import itertools
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from jaxtyping import PyTree

from zsad_jax.backbones import Backbone
from zsad_jax.backbones.feature_cache import Features
from zsad_jax.experiment import cache
from zsad_jax.experiment.config import Experiment
from zsad_jax.experiment.results import Prompts
from zsad_jax.experiment.start import Run
from zsad_jax.methods import Method, param_shapes
from zsad_jax.methods.base import encoder_of
from zsad_jax.methods.shared import prompt_files
from zsad_jax.report import CurveWriter, curve_files
from zsad_jax.train import DamagedCheckpointError, Member, OrbaxSaver, train
from zsad_jax.utils import files, sharding
from zsad_jax.utils.errors import UserError

AFTER_A_CHANGE = "After a change of code, choose a --workdir in another folder."

# By (auxiliary dataset, label of the variant): one for each seed.
AllPrompts = Mapping[tuple[str | None, str], Sequence[Prompts]]


class Training(NamedTuple):
    """Trainings that run together: of one method on one dataset, with several seeds and learning rates.

    `experiment` is that of any of them: they differ only in what the `members` have.
    """

    experiment: Experiment
    backbone: Backbone
    method: Method
    auxiliary: str
    members: list[Member]

    def folder(self, run: Run) -> pathlib.Path:
        """Returns the folder of the training in the working directory."""
        key = self.key(run, self.members)
        return run.workdir / "training" / f"{files.safe_name(self.auxiliary)}-{key}"

    def key(self, run: Run, members: Sequence[Member] = ()) -> str:
        """Returns the key of what is learned; without members, of what they have in common."""
        dataset = run.datasets[self.auxiliary]
        return cache.training_key(
            self.experiment, self.backbone, self.method, self.auxiliary, dataset, members
        )

    def paths(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Returns the files of the learned parameters of each member."""
        if len(self.members) == 1:
            return [folder / "prompts.npz"]
        seeds = [one.seed for one in self.members]
        numbered = len(set(seeds)) < len(seeds)
        names = (f"{f'{i}-' * numbered}seed-{seed}" for i, seed in enumerate(seeds, 1))
        return [folder / name / "prompts.npz" for name in names]


def obtain_prompts(run: Run) -> AllPrompts:
    """Trains or loads the parameters of every variant for every auxiliary dataset."""
    prompts: dict[tuple[str | None, str], list[Prompts]] = {}
    trainings: dict[str, Training] = {}
    wanted: dict[tuple[str | None, str], tuple[str, list[Member]]] = {}
    for variant, backbone in zip(run.variants, run.backbones, strict=True):
        experiment, method = variant.experiment, variant.experiment.main_method(backbone)
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
                params = prompt_files.load(file, method, backbone)
                prompts[key] = [Prompts(params, auxiliary, file.name, file.epoch)]
                continue
            training = Training(experiment, backbone, method, auxiliary, [])
            common = training.key(run)
            training = trainings.setdefault(common, training)
            config = experiment.training_for(method)
            seeds = range(experiment.seed, experiment.seed + run.experiment.seeds)
            members = [Member(seed, config) for seed in seeds]
            training.members.extend(one for one in members if one not in training.members)
            wanted[key] = common, members
    trained = _obtain(run, trainings)
    for key, (common, members) in wanted.items():
        known = trainings[common].members
        prompts[key] = [trained[common][known.index(one)] for one in members]
    return prompts


def _obtain(run: Run, trainings: Mapping[str, Training]) -> dict[str, list[Prompts]]:
    """Returns the results of each training, one for each member; finished trainings are read."""
    learned = {key: _read_finished(run, training) for key, training in trainings.items()}
    pending = [key for key, params in learned.items() if params is None]

    def place(key: str) -> tuple[str, int]:
        return trainings[key].auxiliary, run.backbones.index(trainings[key].backbone)

    for (auxiliary, number), group in itertools.groupby(sorted(pending, key=place), place):
        keys = list(group)
        # The images are read once for all trainings on them.
        features = Features(
            run.datasets[auxiliary],
            run.backbones[number],
            dict(encoder_of(trainings[key].method) for key in keys),
            run.experiment.features_config,
            mesh=run.mesh,
            rows=run.experiment.batch_size,
            num_workers=run.experiment.num_workers,
        )
        for key in keys:
            own, _ = encoder_of(trainings[key].method)
            learned[key] = _train(run, trainings[key], features.select([own]))
    return {
        key: _describe(run, trainings[key], params) for key, params in learned.items() if params
    }


def _describe(run: Run, training: Training, params: Sequence[Any]) -> list[Prompts]:
    """Returns what results record of each member."""
    folder, each = training.folder(run), training.experiment.training_config.epochs
    epochs = sum(stage.epochs or each for stage in training.method.stages)
    return [
        Prompts(
            one,
            training.auxiliary,
            path.parent.relative_to(folder.parent).as_posix(),
            epochs,
            member.seed,
            folder,
        )
        for one, path, member in zip(params, training.paths(folder), training.members, strict=True)
    ]


def _read_finished(run: Run, training: Training) -> list[PyTree] | None:
    """Returns the parameters of a finished training, of this directory or one beside it, if any."""
    folder = training.folder(run)
    paths = training.paths(folder)
    if not all(path.exists() for path in paths):
        _copy_training(folder, [path.relative_to(folder) for path in paths])
    if not all(path.exists() for path in paths):
        return None
    try:
        params = [_read(path, training) for path in paths]
    except UserError:
        logging.warning("%s cannot be read. Training resumes from its checkpoint.", folder)
        return None
    logging.info("Reusing %s. %s", paths[0] if len(paths) == 1 else folder, AFTER_A_CHANGE)
    return params


def _read(path: pathlib.Path, training: Training) -> PyTree:
    return prompt_files.load(prompt_files.find(str(path)), training.method, training.backbone)


def _copy_training(folder: pathlib.Path, names: Sequence[pathlib.Path]) -> None:
    """Copies a finished training with the same key from another working directory beside this one."""
    places = folder.absolute().parents[2]
    for other in sorted(places.glob(f"*/training/{folder.name}")):
        if all((other / name).exists() for name in names):
            logging.info("Copying the finished training in %s.", other)
            # The prompts come last: with them, the training is finished.
            for path in (*curve_files(other), *(other / name for name in names)):
                with files.replaced(folder / path.relative_to(other)) as temporary:
                    shutil.copyfile(path, temporary)
            return


def _train(run: Run, training: Training, features: Features) -> list[PyTree]:
    """Trains, or resumes from the last finished epoch."""
    folder = training.folder(run)
    steps = training.experiment.training_config.steps(len(features.dataset))
    saver = OrbaxSaver(folder / "checkpoints")
    learned: list[PyTree] | None = None
    while learned is None:
        done = saver.latest()
        # The curve is cut at the restored epoch: later steps are trained again.
        resumed = None if done is None else done * steps
        with contextlib.suppress(DamagedCheckpointError), CurveWriter(folder, resumed) as curves:
            learned = train(
                training.method,
                training.backbone,
                features,
                training.members,
                mesh=run.mesh,
                saver=saver,
                curves=curves,
            )
    saver.close()
    # Read again: results of a first and of a resumed run are of the same stored numbers.
    paths = training.paths(folder)
    for path, params in zip(paths, learned, strict=True):
        prompt_files.save(path, sharding.to_host(params))
    return [_read(path, training) for path in paths]
