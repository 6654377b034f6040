"""A whole run as checked, frozen data: what the config file and its overrides say."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
from absl import logging

from zsad_jax.backbones import Backbone, load_backbone
from zsad_jax.backbones.feature_cache import FeaturesConfig
from zsad_jax.backbones.load import check_image_size, describe_backbone
from zsad_jax.backbones.registry import RELEASES
from zsad_jax.data.benchmarks.availability import default_data_dir
from zsad_jax.data.benchmarks.facts import DATASETS
from zsad_jax.data.open import Spec, parse_spec
from zsad_jax.data.protocols import Naming, check_name, parse_name, training_parts
from zsad_jax.methods import Method, config_class, image_score, make_method, param_shapes
from zsad_jax.methods.base import check_references
from zsad_jax.methods.shared import prompt_files
from zsad_jax.methods.shared.config import MethodConfig
from zsad_jax.report.compare import unlike_paper
from zsad_jax.train import TrainingConfig, check_learning_rates
from zsad_jax.utils import sharding
from zsad_jax.utils.config import check_fields, config_from, merged, plain, within
from zsad_jax.utils.errors import UserError, located, nearest, suggest
from zsad_jax.utils.files import PathLike, user_path

# Keys that results do not depend on, apart from the last bits.
WITHOUT_EFFECT = (
    *("batch_size", "num_workers", "model_devices", "distributed", "data_dir", "skip_missing"),
    *("features.cache", "features.max_gb"),
)
# Keys whose values are in the tables.
IN_TABLES = ("targets", "data", "comparisons", "sweep", "seeds", "shots")


def is_one_of(key: str, keys: Collection[str]) -> bool:
    """Returns whether a dotted key of the config, or its section, is one of `keys`."""
    return key in keys or key.partition(".")[0] in keys


class Target(NamedTuple):
    """A dataset to evaluate, by its key in results and as `open_dataset` takes it.

    `auxiliary` is the dataset whose prompts serve it (None if nothing is learned).
    """

    name: str
    spec: Spec
    auxiliary: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run: what is trained and evaluated, and on which datasets.

    Attributes:
      method: {"name": ..., and any field of the method's config}.
      backbone: {"name": ..., and any argument of `load_backbone`}.
      targets: the benchmarks to evaluate, by name or as {"folder": PATH, …} or {"meta_json": ROOT, …}.
      data: the user's own folder, {"folder": PATH, …}, evaluated in place of `targets`.
      naming: names of categories in prompts, see `zsad_jax.data.prompt_name`.
      method_for: target -> fields of the method's config that differ there.
      auxiliary: the dataset whose prompts serve every target except those of `auxiliary_for`.
      auxiliary_for: target -> auxiliary dataset.
      train: train the prompts on the auxiliary datasets instead of loading `checkpoints`.
      training: fields of `TrainingConfig`.
      trained_on: auxiliary dataset -> {"method": fields, "training": fields} that differ in trainings on it.
      checkpoints: auxiliary dataset -> released name or file; not used with `train`.
      comparisons: label -> what differs, evaluated beside the main result: fields of the method's config,
        another method's "name" with its fields, sections such as "training", or another "config" as a whole.
      sweep: dotted key -> values; every combination is evaluated beside the main result.
      image_score: which of the method's image scores the tables show; None: its first.
      batch_size: images per evaluation step.
      exact_metrics: keep every pixel's score instead of histograms.
      skip_missing: skip datasets that are not prepared, with a warning, instead of stopping.
      data_dir: folder of prepared datasets; None: under the cache directory.
      num_workers: decoding processes; None: chosen automatically.
      model_devices: number of devices over which each tower is split; batches are split over the others.
      features: fields of `FeaturesConfig`, on storing what the frozen tower computes.
      distributed: whether the run has several processes; False: one, with all devices of this machine.
      shots: number of normal references of each category, drawn from the targets' train splits; None: none.
      seed: of the initial parameters, of shuffling, of the draw of references and of draws in scoring.
      seeds: number of trainings and draws, with the seeds `seed`, `seed` + 1, …; results are their means.
    """

    method: Mapping[str, Any]
    backbone: Mapping[str, Any]
    targets: tuple[Spec, ...] = ()
    data: Mapping[str, Any] | None = None
    naming: Naming = "published"
    method_for: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    auxiliary: str | None = None
    auxiliary_for: Mapping[str, str] = dataclasses.field(default_factory=dict)
    train: bool = False
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trained_on: Mapping[str, Mapping[str, Mapping[str, Any]]] = dataclasses.field(
        default_factory=dict
    )
    checkpoints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    comparisons: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    sweep: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    image_score: str | None = None
    batch_size: int = within(8, 1, sharding.MAX_BATCH)
    exact_metrics: bool = False
    skip_missing: bool = False
    data_dir: str | None = None
    num_workers: int | None = within(None, 0, 1024)
    model_devices: int = within(1, 1)
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    distributed: bool = False
    shots: int | None = within(None, 1)
    seed: int = within(0, 0, 2**31 - 1)
    seeds: int = within(1, 1, 1000)

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            # A mapping with a mistake remains text on the command line.
            folder = "PATH" if self.data.lstrip().startswith("{") else self.data
            raise UserError(
                f"config.data is {self.data!r}. Write {{'folder': {folder!r}}}, or set config.targets."
            )
        # Configs hold None for each auxiliary dataset, so that the command line can set a checkpoint.
        if isinstance(self.checkpoints, Mapping):
            given = {
                name: source for name, source in self.checkpoints.items() if source is not None
            }
            object.__setattr__(self, "checkpoints", given)
        check_fields(self)
        if self.data is not None:
            object.__setattr__(self, "targets", (self.data,))
        for part in ("method", "backbone"):
            if not isinstance(getattr(self, part).get("name"), str):
                raise UserError(f"config.{part}.name is missing. Name the {part}.")
        if not self.targets:
            raise UserError("config.targets is empty. Name at least one benchmark to evaluate.")
        self._check_targets()
        check_image_size(self.backbone["name"], self.backbone.get("image_size"))
        _ = self.training_config, self.features_config, self.method_on()
        if self.distributed and self.features_config.cache == "disk":
            raise UserError(
                "config.features.cache is 'disk', but runs of several processes (config.distributed=True) keep"
                " features in memory. Set it to 'auto', 'memory' or 'none'."
            )
        if self.distributed and self.exact_metrics:
            raise UserError(
                "config.exact_metrics is True, but runs of several processes (config.distributed=True) do not"
                " send the scores of all pixels. Set one of them to False."
            )
        for source in () if self.train else self.checkpoints.values():
            prompt_files.find(source)
        for name in self.trained_on:
            with located(f"config.trained_on[{name!r}]"):
                self.on_auxiliary(name)

    def _check_targets(self) -> None:
        names = [target.name for target in self.resolved]
        if len(set(names)) < len(names):
            raise UserError(
                f"config.targets contains {max(names, key=names.count)!r} twice. Give one of them another"
                " name, for example {'folder': PATH, 'name': NAME}."
            )
        for target in self.resolved:
            # A user's own folder may have the name of a benchmark and is still another dataset.
            if isinstance(target.spec, str) and _keys(target.name) & _keys(target.auxiliary):
                raise UserError(
                    f"{target.name} would be evaluated with prompts trained on {target.auxiliary}. Name another"
                    f" auxiliary dataset, for example --config.auxiliary_for=\"{{'{target.name}': 'visa'}}\"."
                )
        known = sorted({*names, *self.auxiliaries(), *DATASETS})
        for field in ("method_for", "trained_on", "auxiliary_for", "checkpoints"):
            for name in sorted({*getattr(self, field)} - {*known}):
                # Any other name may be the user's own dataset, which is not evaluated this time.
                if not _keys(name) <= {*known} and nearest(name, known, cutoffs=(0.8,)):
                    raise UserError(
                        f"config.{field} names {name!r}, which is neither a target nor a dataset."
                        f" {suggest(name, known)}"
                    )

    @functools.cached_property
    def training_config(self) -> TrainingConfig:
        """The checked training section."""
        with located("config.training"):
            return config_from(TrainingConfig, self.training)

    @functools.cached_property
    def features_config(self) -> FeaturesConfig:
        """The checked section on stored features."""
        with located("config.features"):
            return config_from(FeaturesConfig, self.features)

    @functools.cached_property
    def resolved(self) -> tuple[Target, ...]:
        """All targets with what holds for each."""
        names = map(_target_name, self.targets)
        return tuple(
            Target(name, spec, self.auxiliary_of(name))
            for name, spec in zip(names, self.targets, strict=True)
        )

    def auxiliary_of(self, target: str) -> str | None:
        """Returns the dataset whose prompts serve a target, None if nothing is learned."""
        return self.auxiliary_for.get(target, self.auxiliary)

    def method_on(self, target: str = "") -> MethodConfig:
        """Returns the config of the method as evaluated on a target; "": as it is trained."""
        return self._configs.get(target, self._configs[""])

    def settings_on(self, auxiliary: str) -> Mapping[str, Mapping[str, Any]]:
        """Returns the sections, with their fields, that differ in trainings on a dataset."""
        parts = training_parts(auxiliary)
        return next((x for k, x in self.trained_on.items() if training_parts(k) == parts), {})

    def on_auxiliary(self, name: str) -> "Experiment":
        """Returns the experiment with the method and the training of an auxiliary dataset."""
        own = self.settings_on(name)
        if other := sorted({*own} - {"method", "training"}):
            raise UserError(f"Unknown section {other[0]!r}. Expected 'method' or 'training'.")
        alone = config_class(self.method["name"]).training_only
        for key in own.get("method", {}):
            if key not in alone:
                raise UserError(
                    f"Scoring reads config.method.{key} as well. Set it there; these differ in training alone:"
                    f" {', '.join(alone) or 'none'}."
                )
        sections: dict[str, Any] = {k: merged(getattr(self, k), x) for k, x in own.items()}
        return dataclasses.replace(self, trained_on={}, **sections) if sections else self

    def main_method(self, backbone: Backbone) -> Method:
        """Returns the method over a backbone, as it is trained."""
        return make_method(self.method["name"], backbone, self.method_on())

    @functools.cached_property
    def _configs(self) -> dict[str, MethodConfig]:
        """The method's config on the targets with fields of their own, and on all others ("")."""
        return {name: self._configure(name) for name in ("", *self.method_for)}

    def _configure(self, target: str) -> MethodConfig:
        options = {**self.method, **self.method_for.get(target, {})}
        name = options.pop("name")
        with located(f"config.method_for[{target!r}]" if target else "config.method"):
            for key in self.method_for.get(target, {}):
                if key in config_class(name).training_only:
                    raise UserError(
                        f"Training alone reads {key!r}, which is the same for all targets. Set it in"
                        " config.method or config.trained_on."
                    )
            return config_from(config_class(name), options)

    def auxiliaries(self) -> tuple[str, ...]:
        """Returns every auxiliary dataset that the targets need, each once."""
        return tuple(dict.fromkeys(t.auxiliary for t in self.resolved if t.auxiliary))

    @property
    def data_folder(self) -> PathLike:
        """The folder of prepared datasets, which may be remote."""
        if self.data_dir is None:
            return default_data_dir()
        return user_path(self.data_dir, "config.data_dir", remote=True)

    @property
    def backbone_options(self) -> dict[str, Any]:
        """The arguments of `load_backbone` that are given."""
        return {key: value for key, value in self.backbone.items() if value is not None}

    def load_backbone(self) -> Backbone:
        """Loads the frozen model."""
        backbone = load_backbone(**self.backbone_options)
        if backbone.options["dtype"] == "float32" and jax.default_backend() == "gpu":
            words = "On GPUs, %s is several times faster with --config.backbone.dtype=bfloat16."
            logging.info(words, backbone.name)
        return backbone

    def choose_prompts(self, method: str, auxiliary: str) -> prompt_files.PromptFile:
        """Returns the prompts of a method that were learned on a dataset; raises UserError without any."""
        given, backbone = self.checkpoints.get(auxiliary), self.backbone["name"]
        file = prompt_files.choose(method, backbone, given, auxiliary=auxiliary)
        if not file.source:
            raise UserError(
                f"There are no prompts learned on {auxiliary}. Name a file"
                f" (--config.checkpoints=\"{{'{auxiliary}': 'prompts.npz'}}\"), or train them"
                " (--config.train=True)."
            )
        return file

    def check_method(
        self, backbone: Backbone | None = None, class_name: str = "object", *, main: bool = True
    ) -> None:
        """Rejects options that do not work together.

        Args:
          backbone: the loaded one; None: the shapes of a released one, over which no prompts are encoded.
          class_name: the longest name in prompts.
          main: False for comparisons, which may share options with other methods.
        """
        if backbone is None and self.backbone["name"] not in RELEASES:
            return
        over = backbone or describe_backbone(self.backbone["name"])
        if main:
            self._check_main(self.main_method(over), over)
        # Equal ones are traced once.
        trained = [self.on_auxiliary(name).method_on() for name in self.trained_on]
        for config in {repr(one): one for one in (*self._configs.values(), *trained)}.values():
            method = make_method(config.name, over, config)
            params = param_shapes(method, over)
            check_references(method, bool(self.shots))
            if params and not all(target.auxiliary for target in self.resolved):
                raise UserError(
                    f"config.auxiliary is missing, but {method.name} as configured needs learned prompts. Name"
                    " the dataset that they are trained on."
                )
            if params and not (self.train or self.skip_missing):
                for auxiliary in self.auxiliaries():
                    self.choose_prompts(method.name, auxiliary)
            if backbone is not None and method.references != "required":
                # Tracing finds errors of shape in prompts without computing anything.
                encode = jax.jit(method.prototypes, static_argnums=2)
                encode.eval_shape(over.params, params, (class_name,))

    def _check_main(self, method: Method, backbone: Backbone) -> None:
        image_score(method, self.image_score)
        for one in (self, *map(self.on_auxiliary, self.trained_on)):
            check_learning_rates(one.training_config, method)
        if self.train and not param_shapes(method, backbone):
            raise UserError(
                f"config.train is True, but {method.name} as configured learns nothing. Set it to False."
            )

    def training_for(self, method: Method) -> TrainingConfig:
        """Returns the training section with the learning rates of the groups that a method has."""
        config = self.training_config
        rates = {k: v for k, v in config.learning_rates.items() if k in method.group_names}
        return dataclasses.replace(config, learning_rates=rates)


def _keys(name: str | None) -> set[str]:
    """Returns the keys of the datasets in a name; two splits of a dataset are the same dataset."""
    return {part.key for part in parse_name(name)} if name else set()


def _target_name(spec: Spec) -> str:
    """Returns the key of a target: its name, or that of a folder."""
    if isinstance(spec, str):
        if "," in spec:
            quoted = ", ".join(repr(name.strip()) for name in spec.split(","))
            raise UserError(
                f"config.targets contains {spec!r}, which is read as one name. Write"
                f' --config.targets="({quoted})".'
            )
        parse_name(spec)
        return spec
    _, path, options = parse_spec(spec)
    name = str(options.get("name", pathlib.Path(path).resolve().name))
    check_name(name)
    return name


def from_config(config: Mapping[str, Any]) -> Experiment:
    """Returns the experiment of a config; raises `UserError` for an unknown key or a bad value."""
    # ConfigDicts hold None where an option has no value, which stands for the field's default.
    given = {name: value for name, value in plain(config).items() if value is not None}
    return config_from(Experiment, given)


def to_json(experiment: Experiment) -> dict[str, Any]:
    """Returns the resolved config as plain JSON data."""
    # Through JSON, so that tuples become lists as in a file that is read back.
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def compare_with_recipe(experiment: Experiment) -> dict[str, list[Any]]:
    """Returns [ours, the paper's] of options that differ and that results do not have as columns."""
    method, backbone = experiment.method["name"], experiment.backbone
    without_effect = {"name", "image_size", "dtype", "attention", "tokenizer", "bit_depth"}
    options = sorted({*backbone, *config_class(method).recipe.backbone} - without_effect)
    setting = {"naming": experiment.naming, **{key: backbone.get(key) for key in options}}
    if experiment.train:
        setting |= dataclasses.asdict(experiment.training_config)
        setting["trained_on"] = {k: x for k, x in plain(experiment.trained_on).items() if x}
    return unlike_paper(method, "", setting)
