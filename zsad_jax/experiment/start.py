"""The start of a run: everything is checked, opened and loaded before any long work."""

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

import zsad_jax
from zsad_jax.backbones import Backbone, registry, transformer
from zsad_jax.backbones.feature_cache import Encoders, Features
from zsad_jax.data.dataset import Dataset, read_sample
from zsad_jax.data.open import Spec, open_dataset, open_train_split
from zsad_jax.data.references import References, draw_references
from zsad_jax.experiment import config_files, console
from zsad_jax.experiment.config import Experiment, Target, to_json
from zsad_jax.experiment.variants import Variant, make_variants
from zsad_jax.methods import Method, image_score, make_method, param_shapes
from zsad_jax.methods.shared import prompt_files
from zsad_jax.train import check_learning_rates
from zsad_jax.utils import distributed, files, sharding
from zsad_jax.utils.errors import NoSplitError, NotPreparedError, UserError, located, plural
from zsad_jax.utils.remote import Workdir

AllReferences = dict[tuple[str, int, int], References]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """The state that all steps of a run share.

    `datasets` are targets, and auxiliary datasets to train on; `skipped` targets have a reason. `references`
    are by target, number of images of each category and seed, `backbones` by their options, and `methods` also
    by their name and config; `scorers` are by methods. The tables show the `image_score` of the main method.
    """

    experiment: Experiment
    workdir: Workdir
    variants: tuple[Variant, ...]
    backbones: dict[str, Backbone]
    datasets: dict[str, Dataset]
    skipped: dict[str, str]
    references: AllReferences
    mesh: Mesh
    methods: dict[tuple[str, str, str], Method] = dataclasses.field(default_factory=dict)
    scorers: dict[Hashable, jax.stages.Wrapped] = dataclasses.field(default_factory=dict)

    @property
    def targets(self) -> list[Target]:
        """The targets that are evaluated."""
        return [target for target in self.experiment.resolved if target.name in self.datasets]

    def backbone(self, variant: Variant | None = None) -> Backbone:
        """Returns the backbone of a variant; None: the main one."""
        return self.backbones[_options(variant or self.variants[0])]

    def method(
        self, variant: Variant | None = None, target: str = "", seed: int | None = None
    ) -> Method:
        """Returns the method of a variant (None: the main one) on a target; "": as it is trained.

        The seed, one of `seeds`, is that of draws in scoring.
        """
        variant = variant or self.variants[0]
        options, config = _options(variant), variant.experiment.method_on(target)
        if seed is not None and config.draws:
            first = getattr(config, config.draws)
            changed = {config.draws: first + seed - variant.experiment.seed}
            config = dataclasses.replace(config, **changed)
        # Equal methods must be one object: compiled functions are found by identity.
        key = options, config.name, repr(config)
        if key not in self.methods:
            self.methods[key] = make_method(config.name, self.backbones[options], config)
        return self.methods[key]

    def seeds(self, variant: Variant) -> range:
        """Returns the seeds of the trainings and draws of a variant."""
        first = variant.experiment.seed
        return range(first, first + self.experiment.seeds)

    def features(self, name: str, backbone: Backbone, encoders: Encoders) -> Features:
        """Returns the features of a dataset by each encoder, in one pass over what is not stored."""
        return Features(
            self.datasets[name],
            backbone,
            encoders,
            self.experiment.features_config,
            mesh=self.mesh,
            rows=self.experiment.batch_size,
            num_workers=self.experiment.num_workers,
        )

    @functools.cached_property
    def image_score(self) -> str:
        """The image score of the tables."""
        return image_score(self.method(), self.experiment.image_score)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the datasets, for which all files are looked up."""
        return {name: one.fingerprint() for name, one in self.datasets.items()}


def start_run(experiment: Experiment, workdir: Workdir) -> Run:
    """Checks the experiment, opens its datasets, loads the backbones and writes config.json."""
    # First what needs no files, then datasets, then weights: mistakes show before long waits.
    mesh = sharding.make_mesh(model=experiment.model_devices)
    variants = make_variants(experiment)
    for one in variants:
        with _naming(one):
            one.experiment.check_method(main=not one.label)
    datasets, skipped, references = open_datasets(variants)
    in_prompts = (name for one in datasets.values() for name in one.prompt_names)
    # A text has no more tokens than bytes.
    longest = max(in_prompts, key=lambda name: len(name.encode(errors="replace")))
    backbones: dict[str, Backbone] = {}
    for one in variants:
        options = _options(one)
        with _naming(one):
            if options not in backbones:
                loaded = one.experiment.load_backbone()
                # In place of those that are on the first device as a whole.
                placed = transformer.place(loaded.params, mesh)
                backbones[options] = dataclasses.replace(loaded, params=placed)
            one.experiment.check_method(backbones[options], longest, main=not one.label)
            if one.experiment.method["name"] == experiment.method["name"]:
                method = one.experiment.main_method(backbones[options])
                check_learning_rates(one.experiment.training_config, method)
    run = Run(
        experiment=experiment,
        workdir=workdir,
        variants=variants,
        backbones=backbones,
        datasets=datasets,
        skipped=skipped,
        references=references,
        mesh=mesh,
    )
    for one, target in itertools.product(variants, run.targets):
        method = run.method(one, target.name)
        if method.min_images > 1 and not one.experiment.shots:
            with _naming(one):
                _check_counts(datasets[target.name], method)
    config, versions = to_json(experiment), (jax.__version__, zsad_jax.__version__)
    data = [*map(_describe_data, datasets.values())] if experiment.distributed else []
    setting = config, versions, data, [one.digest for one in backbones.values()]
    if any(one != setting for one in distributed.gather(setting)):
        raise UserError(
            "The processes of this run have different configs, data, weights or versions. Start all of them"
            " with the same command, files and versions."
        )
    if experiment.distributed:  # from here on, warnings of the processes differ
        logging.set_verbosity(max(logging.get_verbosity(), logging.WARNING))
    # After all checks: a rejected config must not replace the one behind earlier results.
    files.write_json(workdir.local / "config.json", config)
    learned = bool(param_shapes(run.method(), run.backbone()))
    console.show(console.describe_inputs(experiment, datasets, learned=learned))
    return run


def _describe_data(dataset: Dataset) -> Any:
    # Reading the records of all samples would take long.
    samples = (read_sample(dataset, i) for i in range(0, len(dataset), len(dataset) // 64 + 1))
    named = [(getattr(one, "file_name", ""), getattr(one, "label", -1)) for one in samples]
    return dataset.name, len(dataset), dataset.categories, named


def _check_counts(dataset: Dataset, method: Method) -> None:
    """Raises UserError if a category has images, but fewer than the method needs."""
    counts: collections.Counter[str | None] = collections.Counter()
    # In random order, so that few of the samples of a large dataset are read.
    for position in np.random.default_rng(0).permutation(len(dataset)).tolist():
        counts[getattr(read_sample(dataset, position), "category", None)] += 1
        if all(counts[name] >= method.min_images for name in dataset.categories):
            return
    for name in dataset.categories:
        if 0 < counts[name] < method.min_images:
            raise UserError(
                f"{dataset.name} has {plural(counts[name], 'image')} of the category {name}, but {method.name}"
                f" needs {method.min_images} to compare. Add images, or use references (--config.shots)."
            )


def _options(variant: Variant) -> str:
    return repr(variant.experiment.backbone_options)


def _naming(variant: Variant) -> contextlib.AbstractContextManager[None]:
    """Puts the label of a comparison before the errors on it."""
    return located(f"{variant.label!r}") if variant.label else contextlib.nullcontext()


def open_datasets(
    variants: Sequence[Variant],
) -> tuple[dict[str, Dataset], dict[str, str], AllReferences]:
    """Opens every dataset that the variants need.

    Also returns the skipped targets with the reason, and references for all settings.

    Raises:
      UserError: datasets are missing; the message lists the commands for all that is missing, weights included.
        Or a target has too few normal images for references.
    """
    experiment = variants[0].experiment
    needed: dict[str, Any] = {target.name: target.spec for target in experiment.resolved}
    trained = [one.experiment for one in variants if one.experiment.train]
    auxiliaries = {
        name: [one for one in dict.fromkeys(each.auxiliary_of(name) for each in trained) if one]
        for name in needed
    }
    needed |= {name: name for names in auxiliaries.values() for name in names}
    datasets: dict[str, Dataset] = {}
    missing: dict[str, str] = {}
    references: AllReferences = {}
    for name, spec in needed.items():
        try:
            datasets[name] = open_dataset(spec, experiment.data_folder, naming=experiment.naming)
            if name in auxiliaries:
                references |= _draw_references(variants, name, spec, datasets[name].categories)
        # Only what is absent can be skipped. A damaged dataset ends the run.
        except (NotPreparedError, NoSplitError) as error:
            missing[name] = str(error)
    skipped = {target: missing[target] for target in auxiliaries if target in missing}
    # A target whose prompts cannot be trained is skipped like a missing one.
    for target, names_of in auxiliaries.items():
        for auxiliary in filter(missing.get, names_of):
            reason = f"its prompts are trained on {auxiliary}: {missing[auxiliary]}"
            skipped.setdefault(target, reason)
    left = [target for target in auxiliaries if target not in skipped]
    if not left or (skipped and not experiment.skip_missing):
        raise UserError("\n".join([*missing.values(), *_hints(experiment)]))
    for name, reason in skipped.items():
        logging.warning("Skipping %s: %s", name, reason)
    wanted = {*left, *(name for target in left for name in auxiliaries[target])}
    return {name: one for name, one in datasets.items() if name in wanted}, skipped, references


def _draw_references(
    variants: Sequence[Variant], target: str, spec: Spec, categories: Sequence[str]
) -> AllReferences:
    """Draws the references of a target for each number of images and seed that the variants need."""
    main, settings = variants[0].experiment, [one.experiment for one in variants]
    draws = {
        (one.shots, one.seed + number)
        for one in settings
        for number in range(main.seeds)
        if one.shots
    }
    if not draws:
        return {}
    with located(f"References of {target}"):
        source = open_train_split(spec, main.data_folder)
        drawn = draw_references(source, categories, sorted(draws))
        return {(target, *one): references for one, references in drawn.items()}


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
