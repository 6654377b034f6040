"""A whole run as checked, frozen data: what the config file and its overrides say."""

import dataclasses
import difflib
import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax

from zsad_jax.backbones import Backbone, load_backbone
from zsad_jax.backbones.load import check_image_size, describe_backbone, locate_files
from zsad_jax.backbones.registry import WeightFiles
from zsad_jax.backbones.sizes import SIZES
from zsad_jax.data.protocols import DATASETS, check_name, parse_name
from zsad_jax.methods import Method, check_config, count_learned, image_score, make_method
from zsad_jax.methods.shared import learned, released
from zsad_jax.methods.shared.recipes import UNLIKE_PAPER, recipe_of
from zsad_jax.report.compare import unlike_paper
from zsad_jax.train import TrainingConfig, make_optimizer
from zsad_jax.utils import files
from zsad_jax.utils.config import check_fields, config_from, within
from zsad_jax.utils.errors import UserError

# Columns of their own in the results, so not named again in `variant`.
COLUMNS_OF_THEIR_OWN = ("prompt_family", "sigma")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained and evaluated, and on what.

    Attributes:
      method: {"name": ..., and any field of the method's config}.
      backbone: {"name": ..., and any argument of `load_backbone`}.
      targets: the benchmarks to evaluate, by name or as {"folder": PATH, …} or {"meta_json": ROOT, …}.
      data: a folder that somebody has prepared, {"folder": PATH, …}, evaluated in place of `targets`.
      naming: what categories are called in prompts, see `zsad_jax.data.prompt_name`.
      method_for: target -> fields of the method's config that differ there.
      auxiliary: the dataset whose prompts serve every target ...
      auxiliary_for: ... but these: target -> auxiliary.
      train: train the prompts on the auxiliary sets instead of taking `checkpoints`.
      training: fields of `TrainingConfig`.
      checkpoints: auxiliary -> released name, or file; used unless `train`.
      comparisons: label -> fields of the method's config, or another method's "name" with its fields;
        evaluated beside the main result.
      image_score: which of the method's image scores the tables show; None: its first.
      batch_size: images per evaluation step.
      exact_metrics: keep every pixel's score instead of histograms.
      skip_missing: leave out datasets that are not prepared, with a word, instead of stopping.
      data_dir: where prepared datasets lie; None: under the cache directory.
      num_workers: decoding processes; None chooses.
      seed: of the initial parameters and of shuffling.
      hint: what else the user can run when something is missing.
    """

    method: Mapping[str, Any]
    backbone: Mapping[str, Any]
    targets: tuple[Any, ...] = ()
    data: Mapping[str, Any] | None = None
    naming: Literal["published", "plain", "descriptive"] = "published"
    method_for: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    auxiliary: str | None = None
    auxiliary_for: Mapping[str, str] = dataclasses.field(default_factory=dict)
    train: bool = False
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checkpoints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    comparisons: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    image_score: str | None = None
    batch_size: int = within(8, 1)
    exact_metrics: bool = False
    skip_missing: bool = False
    data_dir: str | None = None
    num_workers: int | None = within(None, 0)
    seed: int = 0
    hint: str = ""

    def __post_init__(self) -> None:
        given = {name: source for name, source in self.checkpoints.items() if source is not None}
        object.__setattr__(self, "checkpoints", given)
        if self.data is not None:
            object.__setattr__(self, "targets", (self.data,))
        check_fields(self)
        for part in ("method", "backbone"):
            if "name" not in getattr(self, part):
                raise UserError(f"config.{part}.name is missing; name the {part}.")
        if not self.targets:
            raise UserError("config.targets is empty; name at least one benchmark to evaluate.")
        names = [target_name(target) for target in self.targets]
        if len(set(names)) < len(names):
            raise UserError(
                f"config.targets holds {max(names, key=names.count)!r} twice; give one of them another"
                " name, as in {'folder': PATH, 'name': NAME}."
            )
        for target in filter(lambda target: isinstance(target, str), self.targets):
            if _keys(target) & _keys(self.auxiliary_of(target) or ""):
                raise UserError(
                    f"{target} would be trained on and evaluated on; name another dataset for it:"
                    f" --config.auxiliary_for=\"{{'{target}': 'visa'}}\"."
                )
        check_image_size(self.backbone["name"], self.backbone.get("image_size"))
        self._check_targets_named()
        self._check_methods()
        self._check_checkpoints()

    def _check_targets_named(self) -> None:
        """Misspelt names of targets; a name that is like none is a dataset of the user's own."""
        known = {*map(target_name, self.targets), *DATASETS}
        for field in ("method_for", "auxiliary_for"):
            for name in set(getattr(self, field)) - known:
                for near in difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8):
                    raise UserError(
                        f"config.{field} names {name!r}, which is no target and no dataset; did you mean"
                        f" {near}?"
                    )

    def _check_methods(self) -> None:
        """Every variant's fields and the training section, so that a mistake is told before long work."""
        for fields in ({}, *self.method_for.values()):
            for comparison in ("", *self.comparisons):
                options = self.method_options(comparison, **fields)
                check_config(options.pop("name"), options)
        config_from(TrainingConfig, self.training)

    def _check_checkpoints(self) -> None:
        for source in () if self.train else self.checkpoints.values():
            if source not in released.names() and not pathlib.Path(source).is_file():
                raise UserError(
                    f"config.checkpoints names {source!r}, which is neither a file nor a released name"
                    f" ({', '.join(released.names())})."
                )

    @property
    def training_config(self) -> TrainingConfig:
        """The checked training section."""
        return config_from(TrainingConfig, self.training)

    def auxiliary_of(self, target: Any) -> str | None:
        """The dataset whose prompts serve a target; None when nothing is learned."""
        return self.auxiliary_for.get(target_name(target), self.auxiliary)

    def auxiliaries(self) -> tuple[str, ...]:
        """Every auxiliary set that the targets need, each once."""
        names = (self.auxiliary_of(target) for target in self.targets)
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def data_folder(self) -> pathlib.Path:
        """Where prepared datasets lie."""
        return pathlib.Path(self.data_dir) if self.data_dir else files.home() / "data"

    def load_backbone(self) -> Backbone:
        """The frozen model."""
        options = {key: value for key, value in self.backbone.items() if value is not None}
        return load_backbone(options.pop("name"), **options)

    def locate_backbone(self) -> WeightFiles:
        """The backbone's files; what a released name lacks is fetched first."""
        options = {key: value for key, value in self.backbone.items() if value is not None}
        return locate_files(options.pop("name"), **options)

    def tokenizer_digest(self) -> str | None:
        """SHA-256 of the backbone's tokenizer, which its own digest does not cover."""
        tokenizer = self.locate_backbone().tokenizer
        return None if tokenizer is None else files.digest(tokenizer)

    def method_options(self, comparison: str = "", **fields: Any) -> dict[str, Any]:
        """Name and fields of the main result's method ("") or of a comparison's.

        Args:
          comparison: a key of `comparisons`; one that names another method has its own fields alone.
          fields: that differ for a target.
        """
        changes = self.comparisons.get(comparison, {})
        if changes.get("name", self.method["name"]) != self.method["name"]:
            return dict(changes)
        return {**self.method, **fields, **changes}

    def make_method(self, backbone: Backbone, comparison: str = "", **fields: Any) -> Method:
        """The method of the main result ("") or of a comparison, with some fields changed."""
        options = self.method_options(comparison, **fields)
        return make_method(options.pop("name"), backbone, options)

    def check_methods(self, backbone: Backbone | None = None) -> None:
        """Rejects options that do not work together.

        Args:
          backbone: the loaded one; None: a description of a released one, over which no prompts are encoded.
        """
        if backbone is None and self.backbone["name"] not in SIZES:
            return
        over = backbone or describe_backbone(self.backbone["name"])
        main = self.make_method(over)
        image_score(main, self.image_score)
        params = learned.expected(main, over)
        make_optimizer(self.training_config, main, params, main.stages[0])
        if self.train and not params:
            raise UserError(
                f"config.train is True, but {main.name} as configured learns nothing; leave it False."
            )
        differing = {repr(fields): fields for fields in ({}, *self.method_for.values())}
        for fields, comparison in itertools.product(differing.values(), ("", *self.comparisons)):
            method = self.make_method(over, comparison, **fields)
            params = learned.expected(method, over)
            if params and not all(map(self.auxiliary_of, self.targets)):
                raise UserError(
                    f"{method.name} as configured learns prompts, but config.auxiliary does not say on what;"
                    " name a dataset."
                )
            if backbone is not None:
                encode = jax.jit(method.prototypes, static_argnums=2)
                encode.eval_shape(over.params, params, ("object",))

    def training_of(self, method: Method) -> TrainingConfig:
        """Returns the training section with the learning rates of the groups that a method has."""
        config = self.training_config
        rates = {k: v for k, v in config.learning_rates.items() if k in method.group_names}
        return dataclasses.replace(config, learning_rates=rates)


def _keys(name: str) -> set[str]:
    """The keys of the datasets in a name; two splits of one dataset are the same dataset."""
    return {part.key for part in parse_name(name)} if name else set()


def target_name(target: Any) -> str:
    """The key of a target: its name, or that of a folder given as {"folder": ..., "name": ...}."""
    if isinstance(target, str):
        if "," in target:
            quoted = ", ".join(repr(name.strip()) for name in target.split(","))
            raise UserError(
                f"config.targets holds {target!r}, which is read as one name; write"
                f' --config.targets="({quoted})".'
            )
        parse_name(target)
        return target
    if isinstance(target, Mapping):
        for kind in ("folder", "meta_json"):
            if isinstance(target.get(kind), str):
                name = target.get("name", pathlib.Path(target[kind]).resolve().name)
                check_name(str(name))
                return str(name)
    raise UserError(
        f"config.targets (or config.data) holds {target!r}; give a benchmark's name, {{'folder': PATH}} or"
        " {'meta_json': ROOT}."
    )


def from_config(config: Mapping[str, Any]) -> Experiment:
    """The experiment of a `ConfigDict` or mapping.

    Raises:
      UserError: for an unknown key or a bad value, named.
    """
    return config_from(
        Experiment, {name: value for name, value in _plain(config).items() if value is not None}
    )


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The resolved config as plain JSON data."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def changed_options(method: Method) -> dict[str, Any]:
    """The fields of the method's config that differ from its defaults."""
    return {
        field.name: getattr(method.config, field.name)
        for field in dataclasses.fields(method.config)
        if getattr(method.config, field.name) != field.default
    }


def describe_variant(method: Method) -> str:
    """What differs from the method's defaults, "" when nothing does."""
    changed = changed_options(method)
    return ", ".join(
        f"{name}={value}"
        for name, value in sorted(changed.items())
        if name not in COLUMNS_OF_THEIR_OWN
    )


def describe_method(experiment: Experiment, method: Method, backbone: Backbone) -> dict[str, Any]:
    """What run.json says of the method: its changed options, and how much it learns, counted two ways."""
    learned = count_learned(method, backbone)
    return {
        "method": method.name,
        "changed_options": changed_options(method),
        UNLIKE_PAPER: compare_with_recipe(experiment),
        "trainable_parameters": learned,
        "trainable_parameters_as_published": learned + method.unused_parameters,
    }


def compare_with_recipe(experiment: Experiment) -> dict[str, list[Any]]:
    """Returns [ours, the paper's] of options that differ and that results do not have as columns."""
    method, backbone = experiment.method["name"], experiment.backbone
    without_effect = {"name", "image_size", "dtype", "tokenizer", "bit_depth"}
    options = sorted({*backbone, *recipe_of(method).backbone} - without_effect)
    setting = {"naming": experiment.naming, **{key: backbone.get(key) for key in options}}
    if experiment.train:
        setting |= dataclasses.asdict(experiment.training_config)
    return unlike_paper(method, "", setting)


def fingerprint(*parts: Any) -> str:
    """A short name for what a result depends on: 12 hexadecimal digits of the SHA-256 of its JSON."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """ConfigDicts as dicts, sequences as tuples."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value
