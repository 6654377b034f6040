"""Evaluation of methods on a dataset: scores, and the metrics of every category."""

import contextlib
import dataclasses
import functools
import itertools
import pickle
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn
from zlib import compress, decompress

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8
from PIL import Image

from zsad_jax import metrics
from zsad_jax.backbones.base import Backbone
from zsad_jax.backbones.feature_cache import (
    CompiledEncoders,
    Features,
    FeaturesByKey,
    FeatureStream,
)
from zsad_jax.backbones.transformer import place
from zsad_jax.data.dataset import Dataset, ImageBatch, join_batches, read_field
from zsad_jax.data.issues import DOUBTFUL, UNREADABLE, Issue, log_issues
from zsad_jax.data.references import References
from zsad_jax.methods.base import AcrossFn, Method, Scores, encoder_of
from zsad_jax.metrics import Metrics
from zsad_jax.metrics.binned import NUM_CODES, BinnedMaps, bin_maps
from zsad_jax.utils import distributed, interrupts, sharding
from zsad_jax.utils.errors import UserError, located, plural
from zsad_jax.utils.progress import one_late, progress


class Contender(NamedTuple):
    """A method with its parameters, and with normal images of the categories if it takes any.

    `label` is its key in comparisons, "" for the main one.
    """

    method: Method
    params: PyTree
    label: str = ""
    references: References | None = None


class Scored(NamedTuple):
    """The scores and metrics of one contender on one dataset.

    Attributes:
      image_scores: by name, one per readable image, in the dataset's order.
      metrics: category -> name of the image score -> the metrics.
    """

    image_scores: dict[str, Float[np.ndarray, " n"]]
    metrics: dict[str, dict[str, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DatasetScores:
    """Every image score of a dataset.

    Attributes:
      dataset: key of the dataset.
      file_names: of each image, relative to the dataset's root.
      categories: of each image.
      labels: 0 normal, 1 anomalous.
      scores: higher = more anomalous.
    """

    dataset: str
    file_names: Sequence[str]
    categories: Sequence[str]
    labels: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """An image with its score and map, for showing.

    Attributes:
      image: with its own aspect, its longer side as long as for the model.
      anomaly_map: of the same content at any resolution.
      mask: ground truth at any resolution; None where there is none.
    """

    dataset: str
    category: str
    file_name: str
    label: int
    score: float
    image: UInt8[np.ndarray, "H W 3"]
    anomaly_map: Float[np.ndarray, "h w"]
    mask: Bool[np.ndarray, "mh mw"] | None = None


class Evaluation(NamedTuple):
    """A dataset's evaluation by one contender.

    Attributes:
      positions: of the readable images in the dataset.
      file_names, categories, labels: of those images.
      scored: their scores, and the metrics.
      cases: images to show; () for all but the first of several contenders.
      issues: of the dataset as a whole, then images that could not be read and masks that could not be used.
      num_unreadable: number of images that could not be read.
      device_wait_share: share of the time in which the devices waited for the host while the images were
        encoded and, so far, scored; None for stored evaluations and all but the first of several contenders.
        What `across` computes before is not part of it.
    """

    dataset: str
    positions: Int[np.ndarray, " n"]
    file_names: tuple[str, ...]
    categories: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    scored: Scored
    cases: tuple[Case, ...]
    issues: tuple[Issue, ...]
    num_unreadable: int = 0
    device_wait_share: float | None = None


class Result(NamedTuple):
    """The scores of a batch by one contender, on devices or on the host.

    Attributes:
      image: image scores by name.
      maps: at the size of the images.
    """

    image: dict[str, Float[Any, " b"]]
    maps: Float[Any, "b S S"] | BinnedMaps


Stream = Iterator[tuple[ImageBatch, Sequence[Result]]]


def make_scorer(
    methods: Sequence[Method],
    backbone: Backbone,
    encoders: CompiledEncoders,
    *,
    mesh: Mesh,
    binned: bool,
) -> jax.stages.Wrapped:
    """Returns the compiled function that scores a batch by every method, with a `Result` of each.

    It takes the frozen parameters; of each method, its parameters, its prototypes and the batch's features
    or, of a method with `across`, its scores; the 8-bit images (None: all features are given); and the
    categories. Features that are None are encoded, once for methods with equal keys of `encoder_of`.
    `encoders` are those of `Features`.
    Results are split over the mesh. With `binned`, maps with more pixels than codes have 16 bits a pixel, see
    `bin_maps`.
    """
    size = backbone.preprocess.image_size
    binned = binned and size**2 > NUM_CODES
    keys = [encoder_of(method)[0] for method in methods]

    @functools.partial(jax.jit, out_shardings=sharding.over_data(mesh))
    def score(frozen, params, prototypes, features, images, category) -> list[Result]:
        @functools.cache
        def encode(key: Hashable) -> PyTree:
            return jax.tree.map(_as_stored, encoders[key](frozen, images))

        results = []
        each = zip(methods, keys, params, prototypes, features, strict=True)
        for method, key, learned, texts, own in each:
            if not isinstance(own, Scores):
                if not method.cacheable:
                    own = method.features(frozen, learned, backbone.preprocess.normalize(images))
                own = encode(key) if own is None else own
                own = method.score(frozen, learned, texts, own, category)
            maps = method.anomaly_map(own.patches, size)
            results.append(Result(own.image, bin_maps(maps) if binned else maps))
        return results

    return score


def _as_stored(x: Array) -> Array:
    """Returns features as if they were stored: other layouts or fusions would change last bits of scores."""
    row_major = Layout(tuple(range(x.ndim)))
    return jax.lax.optimization_barrier(with_layout_constraint(x, row_major))


def evaluate(
    contenders: Sequence[Contender],
    features: Features,
    backbone: Backbone,
    *,
    mesh: Mesh,
    scorer: jax.stages.Wrapped | None = None,
    exact: bool = False,
    cases_by: str | None = None,
) -> tuple[Evaluation, ...]:
    """Scores every image of a dataset once and computes the metrics of every category, for each contender.

    Args:
      contenders: what is compared.
      features: of the dataset that is scored, with the encoders of all contenders.
      backbone: the frozen model that they share.
      mesh: the devices.
      scorer: from `make_scorer` with the same contenders, to compile once for many datasets; its maps are
        binned unless `exact`.
      exact: keep every pixel's score, in memory that grows with the images.
      cases_by: the image score by which the cases of the first evaluation are chosen; None: it has none.

    Raises:
      UserError: the dataset is empty, or none of its images can be read.
    """
    dataset, rows = features.dataset, features.rows
    if not len(dataset):
        raise UserError(
            f"The dataset {dataset.name} has no images to score. Check its folder or its split."
        )
    methods = [contender.method for contender in contenders]
    frozen = place(backbone.params, mesh)
    scorer = scorer or make_scorer(
        methods, backbone, features.encoders, mesh=mesh, binned=not exact
    )
    keys = [encoder_of(method)[0] for method in methods]
    params = [sharding.replicate(contender.params, mesh) for contender in contenders]
    # Once for all images.
    prototypes = [
        encode_prototypes(
            one._replace(params=learned),
            features.encoders,
            frozen,
            dataset.prompt_names,
            one.references and one.references.read(backbone.preprocess),
            mesh,
            rows=rows,
            seed=one.references.seed if one.references else 0,
        )
        for one, learned in zip(contenders, params, strict=True)
    ]

    def run(positions: Int[np.ndarray, " n"], *, pixels: bool = False) -> Stream:
        """Yields batches with their results on the host."""

        def score(batch: ImageBatch, found: FeaturesByKey) -> list[Result]:
            category = sharding.split_batch(batch.category, mesh)
            stored = [found.get(key) for key in keys]
            for number, scores in together.items():
                of_batch = jax.tree.map(lambda x: x[batch.index], scores)
                stored[number] = sharding.split_batch(of_batch, mesh)
            return scorer(frozen, params, prototypes, stored, found.get(None), category)

        batches = features.read(positions, rows, pixels=pixels, encode=False)
        started: Iterator[Any] = ((batch, score(batch, found)) for batch, found in batches)
        # Few images have pictures.
        for batch, results in one_late(started if pixels else features.clock.watch(started)):
            yield batch, sharding.to_host(results)

    def show(stream: Stream, work: str, total: int) -> Stream:
        return progress(stream, label=f"{work} {dataset.name}", total=total, step=rows)

    # The scores of all patches fit into memory; their maps, which the scorer makes, do not.
    together = {
        number: _score_across(method.across, features.select([keys[number]]), frozen, *own)
        for number, (method, *own) in enumerate(zip(methods, params, prototypes, strict=True))
        if method.across and contenders[number].references is None
    }
    scored = show(run(np.arange(len(dataset))), "evaluate", len(dataset))
    main, *others = _gather(scored, dataset, methods, exact=exact)
    main = main._replace(device_wait_share=features.clock.waited / features.clock.total)
    if cases_by:
        image_scores = dataset_scores(main, cases_by)
        chosen = choose_cases(image_scores)
        shown = run(main.positions[chosen], pixels=True)
        cases = {
            int(batch.index[row]): _case(image_scores, main.positions, batch, row, results[0])
            for batch, results in show(shown, "pictures of", len(chosen))
            for row in np.flatnonzero(batch.valid).tolist()
        }
        found = itertools.chain(*(part.items() for part in distributed.gather(cases)))
        main = main._replace(cases=tuple(case for _, case in sorted(found, key=itemgetter(0))))
    return main, *others


def encode_prototypes(
    contender: Contender,
    encoders: CompiledEncoders,
    frozen: PyTree,
    class_names: Sequence[str],
    references: Iterable[UInt8[np.ndarray, "k S S 3"]] | None,
    mesh: Mesh,
    *,
    rows: int,
    seed: int = 0,
) -> PyTree:
    """Returns the prototypes of all categories, on every device of a mesh.

    `encoders` are as for `make_scorer`, `frozen` and the contender's parameters are on every device, and
    `references` are normal images of each category, the same number; None: none are given. Up to `rows` of
    them, a multiple of the number of devices, are encoded at a time. `seed` is that of random views.
    """
    method, encoded = contender.method, []
    encode = encoders[encoder_of(method)[0]]
    if encode:
        encode = jax.jit(encode, out_shardings=sharding.replicated(mesh))
    # Class names are static, since they are tokenized on the host.
    compute = jax.jit(method.prototypes, static_argnums=2)
    # Where references are required, one category at a time: their features are often larger than prototypes.
    # The method compiles what does not depend on the name.
    alone = method.references == "required"
    for number, images in enumerate(references or ()):
        if method.reference_views:
            # By name: independent of the other categories.
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(class_names[number].encode()))
            images = method.reference_views(images, key)
        count = len(images)
        size = min(rows, sharding.round_up(count, mesh))
        padded = np.pad(images, [(0, -count % size), *[(0, 0)] * 3])
        parts = (
            encode(frozen, sharding.split_batch(part[sharding.own_rows(size, mesh)], mesh))
            for part in padded.reshape(-1, size, *images.shape[1:])
        )
        own = jax.tree.map(lambda *x, n=count: jnp.concatenate(x)[None, :n], *parts)
        if alone:
            own = method.prototypes(frozen, contender.params, (class_names[number],), own)
        encoded.append(own)
    if not encoded:
        return compute(frozen, contender.params, tuple(class_names))
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *encoded)
    return joined if alone else compute(frozen, contender.params, tuple(class_names), joined)


def dataset_scores(evaluation: Evaluation, image_score: str) -> DatasetScores:
    """Returns the image scores of this name."""
    scores = evaluation.scored.image_scores
    return DatasetScores(
        dataset=evaluation.dataset,
        file_names=evaluation.file_names,
        categories=evaluation.categories,
        labels=evaluation.labels,
        scores=scores[image_score],
    )


def choose_cases(scores: DatasetScores) -> list[int]:
    """Returns the positions of the images to show: per category and label, the lowest and the highest score.

    The positions are sorted and unique. Of equal scores, the first is chosen.
    """
    labels, values = np.asarray(scores.labels), np.asarray(scores.scores)
    categories = np.asarray(scores.categories)
    chosen: set[int] = set()
    for category, label in itertools.product(dict.fromkeys(scores.categories), (0, 1)):
        (members,) = np.nonzero((categories == category) & (labels == label))
        if len(members):
            chosen |= {int(members[find(values[members])]) for find in (np.argmin, np.argmax)}
    return sorted(chosen)


class _NoImageError(Exception):
    """No image of a category can be read."""


def _score_across(
    across: AcrossFn, features: Features, frozen: PyTree, params: PyTree, prototypes: PyTree
) -> Scores:
    """Returns the scores of all images, by position; those of unreadable images are zeros."""
    dataset, (key,) = features.dataset, features.encoders
    of_images = read_field(dataset, "category")
    valid = np.zeros(len(dataset), bool)
    issues: list[Issue] = []
    found, order = [], []

    def blocks(read: Callable[[], FeatureStream]) -> Iterator[tuple[PyTree, np.ndarray]]:
        readable = False
        for batch, by_key in read():
            interrupts.check()
            issues.extend(itertools.chain(*batch.issues))
            if batch.valid.any():
                readable = True
                valid[batch.index[batch.valid]] = True
                yield by_key[key], batch.valid
        if not readable:
            raise _NoImageError

    categories = progress(
        enumerate(dataset.categories),
        label=f"score {dataset.name}",
        total=len(dataset.categories),
        unit="category",
    )
    for number, name in categories:
        (members,) = np.nonzero(of_images == name)
        if not len(members):
            continue
        with located(f"category {name}"), contextlib.suppress(_NoImageError):
            of_category = functools.partial(blocks, features.replay(members))
            found.append(across(frozen, params, prototypes, of_category, number))
            order.append(members[valid[members]])
    if not found:
        _reject_unreadable(dataset, issues)

    def at_positions(*of_categories: np.ndarray) -> np.ndarray:
        joined = np.concatenate(of_categories)
        placed = np.zeros((len(dataset), *joined.shape[1:]), joined.dtype)
        placed[np.concatenate(order)] = joined
        return placed

    return jax.tree.map(at_positions, *found)


@dataclasses.dataclass
class _Tally:
    """The scores and metrics of one contender, gathered batch by batch."""

    method: Method
    dataset: Dataset
    exact: bool
    image_scores: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    states: dict[str, metrics.category.State] = dataclasses.field(default_factory=dict)
    packed: dict[str, bytes] = dataclasses.field(default_factory=dict)
    found: dict[str, dict[str, Metrics]] = dataclasses.field(default_factory=dict)

    def add(self, batch: ImageBatch, rows: Int[np.ndarray, " r"], result: Result) -> None:
        """Adds the readable rows of a batch."""
        self.image_scores.append({name: value[rows] for name, value in result.image.items()})
        # A batch may contain the end of one category and the beginning of the next.
        for category in dict.fromkeys(batch.category[rows].tolist()):
            name = self.dataset.categories[category]
            done = [one for one in self.states if one != name and self.dataset.contiguous]
            if jax.distributed.is_initialized():  # others may have more images of them
                self.packed |= {x: compress(pickle.dumps(self.states.pop(x)), 1) for x in done}
            else:
                self._complete(done)
            members = rows[batch.category[rows] == category]
            self.states[name] = metrics.category.update(
                self.states.get(name) or metrics.category.init(exact=self.exact),
                {name: value[members] for name, value in result.image.items()},
                batch.labels[members],
                jax.tree.map(lambda x, r=members: x[r], result.maps),
                batch.masks[members],
                batch.has_mask[members],
            )

    def scored(self, order: Int[np.ndarray, " n"]) -> Scored:
        """Returns the scores in an order, and the metrics in the order of the dataset's categories."""
        self._complete(self.dataset.categories)
        parts = [*itertools.chain(*distributed.gather(self.image_scores))]
        joined = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
        categories = [name for name in self.dataset.categories if name in self.found]
        return Scored(joined, {name: self.found[name] for name in categories})

    def _complete(self, categories: Sequence[str]) -> None:
        """Computes the metrics of categories and drops their states of 24 MB each."""
        for category in categories:
            own: Any = self.packed.pop(category, None) or self.states.pop(category, None)
            if parts := [*filter(None, distributed.gather(own))]:
                states = (pickle.loads(decompress(x)) if isinstance(x, bytes) else x for x in parts)
                state = functools.reduce(metrics.category.merge, states)
                self.found[category] = {
                    name: distributed.by_main(metrics.category.compute)(
                        state, image_score=name, thresholds=self.method.aupro_thresholds
                    )
                    for name in state.scores
                }


def _gather(
    stream: Stream, dataset: Dataset, methods: Sequence[Method], *, exact: bool
) -> tuple[Evaluation, ...]:
    """Returns the evaluation by each method, without cases; none of the images or maps is kept."""
    tallies = [_Tally(method, dataset, exact) for method in methods]
    own: list[ImageBatch] = []
    for batch, results in stream:
        own.append(batch._replace(masks=batch.masks[:, :0]))
        rows = np.flatnonzero(batch.valid)
        for tally, result in zip(tallies, results, strict=True):
            tally.add(batch, rows, result)

    batch = join_batches([*itertools.chain(*distributed.gather(own))])
    read = np.flatnonzero(batch.valid)
    order = np.argsort(batch.index[read])  # of several processes, one after the other
    rows, by_position = read[order], np.argsort(batch.index, kind="stable").tolist()
    issues = [*itertools.chain(*(batch.issues[row] for row in by_position))]
    notes = itertools.chain(*(batch.notes[row] for row in by_position))
    doubtful = (note for note in notes if note.kind in DOUBTFUL)
    if not len(rows):
        _reject_unreadable(dataset, issues)
    distributed.by_main(log_issues)(dataset.name, issues)  # the loader logs notes
    first, *others = (tally.scored(order) for tally in tallies)
    evaluation = Evaluation(
        dataset=dataset.name,
        positions=batch.index[rows].astype(int),
        file_names=tuple(batch.file_names[row] for row in rows),
        categories=tuple(dataset.categories[number] for number in batch.category[rows]),
        labels=batch.labels[rows].astype(int),
        scored=first,
        cases=(),
        # Preparation may have recorded the same issues.
        issues=tuple(dict.fromkeys((*dataset.issues, *issues, *doubtful))),
        num_unreadable=sum(issue.kind in UNREADABLE for issue in issues),
    )
    return evaluation, *(evaluation._replace(scored=scored) for scored in others)


def _reject_unreadable(dataset: Dataset, issues: Sequence[Issue]) -> NoReturn:
    """Raises `UserError`, since none of the images can be read."""
    unreadable = [issue for issue in issues if issue.kind in UNREADABLE]
    raise UserError(
        f"No image of {dataset.name} could be read ({plural(len(unreadable), 'image')}). The first issue:"
        f" {unreadable[0]}. Check the files of the dataset."
    )


def _case(
    scores: DatasetScores,
    positions: Int[np.ndarray, " n"],
    batch: ImageBatch,
    row: int,
    result: Result,
) -> Case:
    """Returns the case of a row of a batch; `positions` are those of the scores in the dataset."""
    assert batch.images is not None  # see `evaluate`
    at = int(np.searchsorted(positions, batch.index[row]))
    found = jax.tree.map(lambda x: x[row], result.maps)
    return Case(
        dataset=scores.dataset,
        category=scores.categories[at],
        file_name=scores.file_names[at],
        label=int(scores.labels[at]),
        score=float(scores.scores[at]),
        image=_restore_aspect(batch.images[row], float(batch.aspect[row])),
        anomaly_map=found.decode() if isinstance(found, BinnedMaps) else found,
        mask=batch.masks[row] if batch.has_mask[row] else None,
    )


def _restore_aspect(image: UInt8[np.ndarray, "S S 3"], aspect: float) -> UInt8[np.ndarray, "H W 3"]:
    """Undoes the change of aspect of an image that was resized to a square; its longer side stays."""
    side = len(image)
    size = round(side * min(aspect, 1)) or 1, round(side / max(aspect, 1)) or 1
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
