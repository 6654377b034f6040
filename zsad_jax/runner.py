"""The work of a run: learned parameters per auxiliary set, an evaluation per target, each done once."""

import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from zsad_jax import learned, sharding, stored
from zsad_jax.backbones import Backbone
from zsad_jax.data.base import Dataset
from zsad_jax.errors import UserError
from zsad_jax.evaluate import Contender, Evaluation, evaluate, make_scorer
from zsad_jax.experiment import Experiment, fingerprint, target_name, to_json
from zsad_jax.methods import Method, released
from zsad_jax.methods.base import PyTree
from zsad_jax.report import CurveWriter
from zsad_jax.train import OrbaxSaver, train


class Learned(NamedTuple):
    """Parameters learned on one auxiliary set, and what results say of them."""

    params: Any
    auxiliary: str | None
    checkpoint: str | None
    epoch: int | None
    seed: int | None


class Evaluated(NamedTuple):
    """A target's evaluation, by which contenders, with which learned parameters."""

    evaluation: Evaluation
    contenders: list[Contender]
    learned: Learned


class Runner:
    """Does the work of a run; what an earlier run with the same settings finished is taken over.

    Args:
      experiment: what is to be done.
      workdir: keeps training/ and evaluations/.
      backbone: the frozen model.
      mesh: the devices.
      datasets: every dataset that is needed, by name.
      image_score: the score that tables show.
    """

    def __init__(
        self,
        experiment: Experiment,
        workdir: pathlib.Path,
        backbone: Backbone,
        mesh: Mesh,
        datasets: dict[str, Dataset],
        image_score: str,
    ):
        self.experiment = experiment
        self.workdir = workdir
        self.backbone = backbone
        self.mesh = mesh
        self.datasets = datasets
        self.image_score = image_score
        self.trained: list[pathlib.Path] = []
        self.learned_on = functools.lru_cache(maxsize=None)(self._learned_on)
        self._scorer = functools.lru_cache(maxsize=2)(self._make_scorer)

    def _learned_on(self, auxiliary: str | None) -> Learned:
        """The parameters for targets of this auxiliary set: trained, or loaded."""
        if auxiliary is None or not learned.learns(self._method, self.backbone):
            return Learned({}, None, None, None, None)
        return self._train(auxiliary) if self.experiment.train else self._load(auxiliary)

    @functools.cached_property
    def _method(self) -> Method:
        return self.experiment.make_method(self.backbone)

    def _load(self, auxiliary: str) -> Learned:
        source = self.experiment.checkpoints.get(auxiliary)
        if source is None:
            raise UserError(
                f"There are no prompts learned on {auxiliary}: set config.checkpoints.{auxiliary}, or train"
                " them with --config.train=True."
            )
        params = learned.load(source, self._method, self.backbone)
        found = re.search(r"epoch(\d+)", source)
        name = source if source in released.names() else pathlib.Path(source).name
        return Learned(params, auxiliary, name, int(found[1]) if found else None, None)

    def _train(self, auxiliary: str) -> Learned:
        experiment, dataset, method = self.experiment, self.datasets[auxiliary], self._method
        settings = to_json(experiment)
        key = fingerprint(
            self.backbone.digest, settings["backbone"], settings["method"], settings["training"],
            experiment.seed, auxiliary, len(dataset),
        )  # fmt: skip
        folder = self.workdir / "training" / f"{auxiliary}-{key}"
        finished = folder / "prompts.npz"
        if not finished.exists():
            learned.save(finished, self._optimise(dataset, folder))
        params = learned.load(str(finished), method, self.backbone)
        self.trained.append(folder)
        each = experiment.training_config.epochs
        epochs = sum(stage.epochs or each for stage in method.stages)
        return Learned(params, auxiliary, folder.name, epochs, experiment.seed)

    def _optimise(self, dataset: Dataset, folder: pathlib.Path) -> PyTree:
        """Trains, or goes on from the last finished epoch in `folder`."""
        config = self.experiment.training_config
        saver = OrbaxSaver(folder / "checkpoints")
        done = saver.latest()
        resumed = None if done is None else done * config.steps(len(dataset))
        with CurveWriter(folder, resumed) as curves:
            params = train(
                self._method,
                self.backbone,
                dataset,
                config,
                key=jax.random.key(self.experiment.seed),
                mesh=self.mesh,
                saver=saver,
                curves=curves,
                num_workers=self.experiment.num_workers,
            )
        saver.close()
        return sharding.to_host(params)

    def evaluate(self, target: Any) -> Evaluated:
        """A target's evaluation, computed or taken over."""
        name, experiment = target_name(target), self.experiment
        dataset = self.datasets[name]
        prompts = self.learned_on(experiment.auxiliary_of(target))
        contenders = self._contenders(name, prompts)
        key = fingerprint(
            self.backbone.digest,
            to_json(experiment)["backbone"],
            [(c.method.config, c.variant, learned.digest(c.params)) for c in contenders],
            [target, len(dataset), dataset.prompt_names],
            [experiment.exact_metrics, self.image_score],
        )
        path = self.workdir / "evaluations" / f"{name}-{key}.npz"
        evaluation = stored.load(path)
        if evaluation is None:
            evaluation = evaluate(
                contenders,
                self.backbone,
                dataset,
                mesh=self.mesh,
                batch_size=experiment.batch_size,
                scorer=self._scorer(name if name in experiment.method_for else ""),
                exact=experiment.exact_metrics,
                image_score=self.image_score,
                num_workers=experiment.num_workers,
            )
            stored.save(path, evaluation)
        return Evaluated(evaluation, contenders, prompts)

    def _contenders(self, target: str, prompts: Learned) -> list[Contender]:
        experiment = self.experiment
        fields = experiment.method_for.get(target, {})
        main = Contender(experiment.make_method(self.backbone, **fields), prompts.params)
        others = []
        for variant, changes in experiment.comparisons.items():
            method = experiment.make_method(self.backbone, **{**fields, **changes})
            params = prompts.params if learned.learns(method, self.backbone) else {}
            others.append(Contender(method, params, variant))
        return [main, *others]

    def _make_scorer(self, target: str) -> Any:
        """One compilation for all targets that do not differ in the method's fields."""
        return make_scorer(
            self._contenders(target, Learned({}, None, None, None, None)), self.backbone
        )
