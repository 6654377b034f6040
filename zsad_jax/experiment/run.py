"""The work of a run: learned parameters per auxiliary set, an evaluation per target, each done once."""

import dataclasses
import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

import zsad_jax
from zsad_jax.backbones import Backbone
from zsad_jax.data.dataset import Dataset
from zsad_jax.evaluate import Contender, Evaluation, evaluate, make_scorer
from zsad_jax.experiment import cache
from zsad_jax.experiment.config import Experiment, fingerprint, target_name, to_json
from zsad_jax.methods import Method
from zsad_jax.methods.base import PyTree
from zsad_jax.methods.shared import learned, released
from zsad_jax.report import CurveWriter
from zsad_jax.train import OrbaxSaver, train
from zsad_jax.utils import files, sharding
from zsad_jax.utils.errors import UserError


class Learned(NamedTuple):
    """Parameters learned on one auxiliary set, and what results say of them."""

    params: Any
    auxiliary: str | None
    checkpoint: str | None
    epoch: int | None
    seed: int | None


class Evaluated(NamedTuple):
    """A target's evaluation, by which contenders, each with which learned parameters."""

    evaluation: Evaluation
    contenders: list[Contender]
    learned: list[Learned]


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
        self._names = ("", *experiment.comparisons)
        self._model = [
            backbone.digest, to_json(experiment)["backbone"], experiment.tokenizer_digest()
        ]  # fmt: skip
        self._learned = functools.lru_cache(maxsize=None)(self._learned_on)
        self._scorer = functools.lru_cache(maxsize=2)(self._make_scorer)

    def prompts_for(self, target: Any) -> list[Learned]:
        """What a target's contenders have learned: the main result's, then each comparison's."""
        return [self._learned(self.experiment.auxiliary_of(target), name) for name in self._names]

    def _learned_on(self, auxiliary: str | None, comparison: str) -> Learned:
        """The parameters for targets of this auxiliary set: trained, or loaded; none if nothing is learned.

        A comparison is trained in its own way; the fields of `method_for` change only how the parameters
        are used.
        """
        method = self._method(comparison)
        if not learned.learns(method, self.backbone):
            return Learned({}, None, None, None, None)
        assert auxiliary is not None  # see `Experiment.check_methods`
        if self.experiment.train:
            return self._train(auxiliary, method)
        return self._load(auxiliary, method)

    def _method(self, comparison: str, **fields: Any) -> Method:
        """The method of the main result ("") or of a comparison."""
        return self.experiment.make_method(self.backbone, comparison, **fields)

    def _load(self, auxiliary: str, method: Method) -> Learned:
        source = self.experiment.checkpoints.get(auxiliary)
        if source is None and auxiliary == learned.SHIPPED_AUXILIARY:
            shipped = learned.shipped_prompts(method.name, self.backbone.name)
            source = None if shipped is None else str(shipped)
        if source is None:
            raise UserError(
                f"There are no prompts learned on {auxiliary}: give them,"
                f" --config.checkpoints=\"{{'{auxiliary}': 'prompts.npz'}}\", or train them with"
                " --config.train=True."
            )
        params = learned.load(source, method, self.backbone)
        found = re.search(r"epoch(\d+)", source)
        name = source if source in released.names() else pathlib.Path(source).name
        return Learned(params, auxiliary, name, int(found[1]) if found else None, None)

    def _train(self, auxiliary: str, method: Method) -> Learned:
        experiment, dataset = self.experiment, self.datasets[auxiliary]
        settings = to_json(experiment)
        key = fingerprint(
            self._model,
            [method.name, dataclasses.asdict(method.config), settings["training"], experiment.seed],
            [auxiliary, dataset.fingerprint()],
            zsad_jax.__version__,
        )
        folder = self.workdir / "training" / f"{files.safe_name(auxiliary)}-{key}"
        finished = folder / "prompts.npz"
        if not finished.exists():
            learned.save(finished, self._optimise(method, dataset, folder))
        params = learned.load(str(finished), method, self.backbone)
        self.trained.append(folder)
        each = experiment.training_config.epochs
        epochs = sum(stage.epochs or each for stage in method.stages)
        return Learned(params, auxiliary, folder.name, epochs, experiment.seed)

    def _optimise(self, method: Method, dataset: Dataset, folder: pathlib.Path) -> PyTree:
        """Trains, or goes on from the last finished epoch in `folder`."""
        config = self.experiment.training_of(method)
        saver = OrbaxSaver(folder / "checkpoints")
        done = saver.latest()
        resumed = None if done is None else done * config.steps(len(dataset))
        with CurveWriter(folder, resumed) as curves:
            params = train(
                method,
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
        contenders, prompts = self._contenders(target)
        key = fingerprint(
            self._model,
            [
                (
                    c.method.name,
                    dataclasses.asdict(c.method.config),
                    c.variant,
                    learned.digest(c.params),
                )
                for c in contenders
            ],
            [name, dataset.fingerprint(), dataset.prompt_names],
            [experiment.exact_metrics, self.image_score],
            zsad_jax.__version__,
        )
        path = self.workdir / "evaluations" / f"{files.safe_name(name)}-{key}.npz"
        evaluation = cache.load(path)
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
            cache.save(path, evaluation)
        return Evaluated(evaluation, contenders, prompts)

    def _contenders(self, target: Any) -> tuple[list[Contender], list[Learned]]:
        """The main result's method and the comparisons', each with its parameters."""
        fields = self.experiment.method_for.get(target_name(target), {})
        prompts = self.prompts_for(target)
        contenders = [
            Contender(self._method(name, **fields), one.params, name)
            for name, one in zip(self._names, prompts, strict=True)
        ]
        return contenders, prompts

    def _make_scorer(self, target: str) -> Any:
        """One compilation for all targets that do not differ in the method's fields."""
        fields = self.experiment.method_for.get(target, {})
        contenders = [Contender(self._method(name, **fields), {}, name) for name in self._names]
        return make_scorer(contenders, self.backbone)
