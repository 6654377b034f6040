"""Training of a method's learnable parameters on an auxiliary dataset."""

import dataclasses
import errno
import hashlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree, UInt8, UInt32

from zsad_jax.backbones.base import AnyArray, Backbone
from zsad_jax.backbones.feature_cache import Features
from zsad_jax.backbones.transformer import place
from zsad_jax.data.dataset import ImageBatch, read_field
from zsad_jax.data.issues import Issue, log_issues
from zsad_jax.methods.base import Batch, Method, Stage, Terms, encoder_of, untrained
from zsad_jax.utils import distributed, files, sharding
from zsad_jax.utils.config import LARGEST, check_fields, within
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.progress import one_late, progress

SPARE_BYTES = 2**20  # besides the state: its description, and the curves
MEMBERS_AT_ONCE = 8
MAX_STEPS = 50  # of one call, after which progress is shown and signals are noticed
# Options in which the members of a training may differ: they are part of the optimizer's state.
SWEPT = ("learning_rate", "learning_rates", "weight_decay", "warmup_rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options of the optimization; by default Adam at a constant rate.

    Attributes:
      epochs: passes over the auxiliary set, for stages without their own number.
      batch_size: images per step; the last batch is padded and masked, never dropped.
      learning_rate: for every parameter group that `learning_rates` does not name.
      learning_rates: of single parameter groups, by name.
      optimizer: "adam", "adamw" with `weight_decay`, or "sgd" with `momentum` and `weight_decay`.
      b1, b2, eps: the constants of "adam" and "adamw".
      momentum: the constant of "sgd".
      weight_decay: added to the gradient by "sgd", as CoOp was trained, and to the update by "adamw".
      schedule: of the rate, epoch by epoch: "constant", or "cosine", which falls from the peak towards zero.
      milestones: numbers of steps after each of which the rate is halved.
      warmup_epochs: epochs at `warmup_rate` before it, which delay the cosine but do not shorten its period of
        `epochs`: the last `warmup_epochs` epochs of the period are never reached, as in CoOp's code.
      warmup_rate: learning rate of every group in the warm-up.
      shuffle: False keeps the dataset's order, class by class, as the published code does.
    """

    epochs: int = within(2, 1)
    batch_size: int = within(8, 1, sharding.MAX_BATCH)
    learning_rate: float = within(1e-3, 0)
    learning_rates: Mapping[str, float] = dataclasses.field(
        default_factory=dict, metadata={"within": (0, LARGEST)}
    )
    b1: float = within(0.5, 0, 1)
    b2: float = within(0.999, 0, 1)
    eps: float = within(1e-8, 0)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = within(0.9, 0, 1)
    weight_decay: float = within(5e-4, 0)
    schedule: Literal["constant", "cosine"] = "constant"
    milestones: tuple[int, ...] = ()
    warmup_epochs: int = within(0, 0)
    warmup_rate: float = within(1e-5, 0)
    shuffle: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def steps(self, num_images: int) -> int:
        """Returns the number of steps per epoch."""
        return -(-num_images // self.batch_size)

    def at(self, stage: Stage) -> "TrainingConfig":
        """Returns the options of a stage."""
        return dataclasses.replace(self, **stage.training)


class Member(NamedTuple):
    """A training that runs together with others, whose configs differ only in the fields `SWEPT`."""

    seed: int
    config: TrainingConfig


class TrainState(NamedTuple):
    """The state from which training resumes: of one member, or of all along a leading axis.

    `fixed` is that of the batches. It is computed from parameters that the stage does not train, so checkpoints
    do not have it.
    """

    params: PyTree
    optimizer: PyTree
    fixed: PyTree = None


# A step of the optimizer on one batch: (frozen, state, features, batch) -> (state, losses).
Step = Callable[[PyTree, TrainState, PyTree, Batch], tuple[TrainState, Terms]]
# The images of steps, [steps, 1 or members, rows] as positions of which -1 is padding, and [steps, members, 2]
# the random numbers of their keys.
Order = tuple[Int[np.ndarray, "steps orders rows ..."], UInt32[np.ndarray, "steps members 2"]]
# Steps of all members: (frozen, states, features and truth of images, their order) -> (states, [steps, members]
# whether any image was valid, and losses).
Steps = Callable[
    [PyTree, TrainState, tuple[PyTree, Batch], Order],
    tuple[TrainState, tuple[Bool[Array, "steps members"], Terms]],
]


class Curves(Protocol):
    """A record of the losses of each step."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...


def make_optimizer(
    config: TrainingConfig,
    method: Method,
    params: PyTree,
    stage: Stage,
    *,
    steps_per_epoch: int = 1,
) -> optax.GradientTransformation:
    """Returns the optimizer with each parameter group's own rate; groups outside the stage are frozen.

    Its state has the values of the fields `SWEPT`, so that one compiled step serves all members.
    """
    groups, config = method.groups(params), config.at(stage)
    names = set(jax.tree.leaves(groups))
    check_learning_rates(config, method)

    def make(peak: Any, warmup_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        rate = make_schedule(config, peak, warmup_rate, steps_per_epoch)
        if config.optimizer == "adam":
            return optax.adam(rate, config.b1, config.b2, config.eps)
        if config.optimizer == "adamw":
            betas = config.b1, config.b2
            return optax.adamw(rate, *betas, config.eps, weight_decay=weight_decay)
        decay = optax.add_decayed_weights(weight_decay)
        return optax.chain(decay, optax.sgd(rate, config.momentum))

    def transform(name: str) -> optax.GradientTransformation:
        if stage.groups is not None and name not in stage.groups:
            return optax.set_to_zero()
        peak = config.learning_rates.get(name, config.learning_rate)
        return optax.inject_hyperparams(make)(peak, config.warmup_rate, config.weight_decay)

    return optax.partition({name: transform(name) for name in names}, groups)


def check_learning_rates(config: TrainingConfig, method: Method) -> None:
    """Raises UserError if a learning rate is for a parameter group that the method never has."""
    for name in config.learning_rates:
        if name not in method.group_names:
            raise UserError(
                f"config.training.learning_rates names {name!r}, which is not a parameter group of"
                f" {method.name}. {suggest(name, method.group_names)}"
            )


def make_schedule(config: TrainingConfig, peak: Any, warmup_rate: Any, steps_per_epoch: int) -> Any:
    """Returns the rate of each step: a number, or an optax schedule."""
    if config.schedule == "constant" and not config.warmup_epochs and not config.milestones:
        return peak

    def rate(step: Any) -> Any:
        epoch = step // steps_per_epoch
        progress = (epoch - config.warmup_epochs) / config.epochs
        share = jnp.cos(jnp.pi * progress) / 2 + 0.5 if config.schedule == "cosine" else 1
        for milestone in config.milestones:
            share *= jnp.where(step < milestone, 1.0, 0.5)
        return jnp.where(epoch < config.warmup_epochs, warmup_rate, peak * share)

    return rate


def make_step(
    method: Method, backbone: Backbone, optimizer: optax.GradientTransformation, stage: Stage
) -> Step:
    """Returns the training step of one member, on features of `encoder_of`; it is not compiled."""
    loss_of, encode = stage.loss or method.loss, stage.features or method.features
    from_images = encoder_of(method, stage)[1] is None  # in place of features

    def loss(params: PyTree, frozen: PyTree, features: PyTree, batch: Batch):
        if from_images:
            features = encode(frozen, params, features)
        features = _zero_rows(batch.valid, features)
        return loss_of(frozen, params, features, batch)

    differentiate = jax.value_and_grad(loss, has_aux=True)

    def step(frozen: PyTree, state: TrainState, features: PyTree, batch: Batch):
        # Masks are kept as bool, which takes a quarter of the memory. Without the barrier, XLA fuses the
        # conversion with the losses, whose last bits change.
        masks = jax.lax.optimization_barrier(batch.masks.astype(jnp.float32))
        batch = dataclasses.replace(batch, masks=masks, fixed=state.fixed)
        if stage.augment:
            assert batch.key is not None  # see `make_steps`
            augmenting, key = jax.random.split(batch.key)
            each = jax.random.split(augmenting, len(masks)), features / np.float32(255), masks
            images, masks = jax.vmap(stage.augment)(*each)
            features, batch = 255 * images, dataclasses.replace(batch, masks=masks, key=key)
        if from_images:
            features = backbone.preprocess.normalize(features)
        (total, terms), gradient = differentiate(state.params, frozen, features, batch)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, optimizer=optimizer_state), {"loss": total, **terms}

    return step


def members_at_once(mesh: Mesh) -> int | None:
    """Returns the number of members that take a step together; None: one after the other."""
    # On the CPU that is faster, and the bits are those of each member alone.
    return None if mesh.devices.flat[0].platform == "cpu" else MEMBERS_AT_ONCE


def make_steps(step: Step, mesh: Mesh) -> Steps:
    """Returns the compiled function that takes several steps of all members; it donates the states."""
    step = jax.jit(step)  # traced once, although its shapes are asked for
    at_once, over_data = members_at_once(mesh), sharding.over_data(mesh)

    def run(frozen: PyTree, states: TrainState, stored: tuple[PyTree, Batch], order: Order):
        def step_one(
            state: TrainState, positions: Int[AnyArray, " rows"], draws: UInt32[AnyArray, "2"]
        ) -> Any:
            taken = jax.tree.map(lambda x: x[positions], stored)
            features, truth = jax.lax.with_sharding_constraint(taken, over_data)
            # The position -1 is that of the last image.
            truth = _zero_rows(truth.valid & (positions >= 0), truth)
            truth = dataclasses.replace(truth, key=jax.random.wrap_key_data(jnp.asarray(draws)))
            arguments = frozen, state, features, truth
            _, losses = jax.eval_shape(step, *arguments)
            unused = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), losses)
            # Without a gradient, momentum would still move the parameters. XLA would fuse a select with the
            # update, whose last bits would depend on the number of steps.
            used = truth.valid.any()
            stepped, losses = jax.lax.cond(used, step, lambda *_: (state, unused), *arguments)
            return stepped, (used, losses)

        def step_all(states: TrainState, order: Order) -> Any:
            positions, draws = order
            if len(draws) == 1:
                stepped = step_one(jax.tree.map(lambda x: x[0], states), positions[0], draws[0])
                return jax.tree.map(lambda x: x[None], stepped)
            if len(positions) == 1:  # not copied for each member
                step_shared = lambda x: step_one(x[0], positions[0], x[1])  # noqa: E731
                return jax.lax.map(step_shared, (states, draws), batch_size=at_once)
            each = states, positions, draws
            return jax.lax.map(lambda x: step_one(*x), each, batch_size=at_once)

        count, members = order[1].shape[:2]
        # The single step of a lone member gets an unused second one: XLA would take it out of its loop and
        # round in another way, so that members together would not have the bits of each alone.
        padded = _pad_steps(order, int(count == members == 1))
        states, results = jax.lax.scan(step_all, states, padded)
        return states, jax.tree.map(lambda x: x[:count], results)

    return jax.jit(run, donate_argnums=1, out_shardings=sharding.replicated(mesh))


def _pad_steps(order: Order, missing: int) -> Any:
    """Returns an order with further steps, which are not used."""
    (positions, draws), more = order, [(0, missing), (0, 0), (0, 0)]
    return jnp.pad(positions, more, constant_values=-1), jnp.pad(draws, more)


def _zero_rows(valid: Bool[AnyArray, " b"], tree: PyTree) -> PyTree:
    """Returns arrays with zeros in the rows that are not valid, where even a NaN then has no gradient."""
    # Selected, not multiplied: 0 times NaN is NaN.
    return jax.tree.map(
        lambda x: jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)), tree
    )


def train(
    method: Method,
    backbone: Backbone,
    features: Features,
    members: Sequence[Member],
    *,
    mesh: Mesh,
    saver: "OrbaxSaver",
    curves: Sequence[Curves],
) -> list[PyTree]:
    """Trains all stages, resumes where a killed run stopped, and returns the parameters of each member.

    Args:
      method: the method to train.
      backbone: the frozen model; its towers are placed on the mesh.
      features: of the auxiliary set, with the encoder of each stage.
      members: what is trained together. A seed is for the initial parameters, for what a loss or an
        augmentation draws and, with `shuffle`, the order of the images.
      mesh: the devices.
      saver: keeps the state after each epoch.
      curves: of each member, for the losses of each step.

    Raises:
      UserError: the dataset is empty, the method learns nothing, or a loss is not finite.
      DamagedCheckpointError: the newest checkpoint cannot be restored. Training can start again.
    """
    dataset, config = features.dataset, members[0].config
    # One key per epoch, derived from its number, so that a resumed run draws like an uninterrupted one.
    keys = [jax.random.split(jax.random.key(member.seed), 3) for member in members]
    frozen = place(backbone.params, mesh)
    params = [method.init(init_key, frozen) for init_key, *_ in keys]
    if not jax.tree.leaves(params):
        raise UserError(
            f"{method.name} has no learnable parameters with this config. Set config.train to False."
        )
    if not len(dataset):
        raise UserError(
            f"The auxiliary dataset {dataset.name} has no images. Check its folder or its split."
        )

    def train_epoch(
        stage: Stage, images: "_Images", run: Steps, states: TrainState, epoch: int
    ) -> TrainState:
        """Passes once over the data."""
        label = f"train {dataset.name} epoch {epoch + 1}"
        of_epoch = [[jax.random.fold_in(key, epoch) for key in own] for _, *own in keys]
        order = _make_order(config.at(stage), stage.mosaic, images.pools, of_epoch, mesh)

        def run_steps() -> Iterator[tuple[Bool[Array, "steps members"], Terms]]:
            nonlocal states
            for stored, part in images.load(order, label):
                states, results = run(frozen, states, stored, part)
                yield results

        size = config.at(stage).batch_size * images.steps_per_call
        calls = progress(one_late(run_steps()), total=len(dataset), label=label, step=size)
        number, trained = count_steps(method, config, len(dataset), epoch), False
        for results in calls:
            used, values = sharding.to_host(results)
            for row, learned in enumerate(used):
                number += 1
                for i in np.flatnonzero(learned).tolist():
                    trained, of_step = True, {name: float(x[row, i]) for name, x in values.items()}
                    if not np.isfinite(of_step["loss"]):
                        raise UserError(
                            f"The loss became {of_step['loss']} at step {number} ({label},"
                            f" {_describe(members[i], members)}). Lower config.training.learning_rate, or"
                            " remove its value from config.sweep."
                        )
                    curves[i].write(number, of_step)
        if not trained:
            raise UserError(
                f"No image of {dataset.name} could be read. Check the files of the dataset."
            )
        return states

    done, first_epoch = saver.latest() or 0, 0
    for stage in method.stages:
        each, of_stage = [], config.at(stage)
        per_epoch = of_stage.steps(len(dataset))
        for (_, own), one in zip(members, params, strict=True):
            optimizer = make_optimizer(own, method, one, stage, steps_per_epoch=per_epoch)
            each.append(TrainState(one, optimizer.init(one)))
        states = sharding.replicate(jax.tree.map(lambda *x: jnp.stack(x), *each), mesh)
        last_epoch = first_epoch + of_stage.epochs
        # Each stage has an optimizer of its own, so a state fits only the stage that saved it.
        if done > last_epoch:  # its parameters are part of a later stage's state
            first_epoch = last_epoch
            continue
        if done > first_epoch:
            if (restored := saver.restore(done, states)) is None:
                raise DamagedCheckpointError(f"epoch {done}")
            states = sharding.replicate(restored, mesh)
        if stage.fixed:
            compute = jax.jit(stage.fixed, static_argnums=2)
            names, held = tuple(dataset.prompt_names), untrained(method, stage, states.params)
            found = [
                compute(frozen, jax.tree.map(lambda x, i=i: x[i], held), names)
                for i in range(len(members) if held else 1)
            ]
            found *= len(members) // len(found)  # without parameters, it is the same for all
            states = states._replace(fixed=jax.tree.map(lambda *x: jnp.stack(x), *found))
        # All optimizers have the same update, which reads what differs from the state.
        step = make_step(method, backbone, optimizer, stage)
        run = make_steps(step, mesh)
        images = _Images(features, method, stage, per_epoch, mesh)
        for epoch in range(max(first_epoch, done), last_epoch):
            states = train_epoch(stage, images, run, states, epoch)
            saver.save(epoch + 1, states._replace(fixed=None))
        params = [jax.tree.map(lambda x, i=i: x[i], states.params) for i in range(len(members))]
        first_epoch = last_epoch
    return params


class _Images:
    """The images of the auxiliary set, as the steps of a stage receive them."""

    def __init__(
        self, features: Features, method: Method, stage: Stage, steps_per_epoch: int, mesh: Mesh
    ):
        self._key, _ = encoder_of(method, stage)
        self._features, self._mesh = features.select([self._key]), mesh
        self._dataset = dataset = features.dataset
        # For each image, the positions of the images from which a mosaic in its place is drawn.
        self.pools: list[Int[np.ndarray, " n"]] = [np.empty(0, int)] * len(dataset)
        if stage.mosaic:
            of_each, labels = (read_field(dataset, name) for name in ("category", "label"))
            fits = labels == 1 if stage.mosaic_of == "anomalous" else np.full(len(dataset), True)
            pools = {name: np.flatnonzero(fits & (of_each == name)) for name in {*of_each}}
            self.pools = [pools[name] for name in of_each]
        self._resident, self.steps_per_call = None, 1
        self._log = distributed.by_main(log_issues)
        if found := self._features.resident():
            images, by_key = found
            self._log(f"train {dataset.name}", itertools.chain(*images.issues))
            self._resident = by_key[self._key], sharding.replicate(self._truth(images), mesh)
            # Calls of equal length need one compilation.
            self.steps_per_call = -(-steps_per_epoch // -(-steps_per_epoch // MAX_STEPS))

    def load(self, order: Order, label: str) -> Iterator[tuple[tuple[PyTree, Batch], Order]]:
        """Yields images on devices, and the order among them of the steps of the next call."""
        positions, draws = order
        if self._resident is not None:
            padded = map(np.asarray, _pad_steps(order, -len(draws) % self.steps_per_call))
            parts = (np.split(x, len(x) // self.steps_per_call) for x in padded)
            yield from ((self._resident, part) for part in zip(*parts, strict=True))
            return
        orders, rows, *parts_of_mosaics = positions.shape[1:]
        own = np.arange(orders * rows).reshape(1, orders, rows)
        read = self._features.read(positions.reshape(-1, *parts_of_mosaics), own.size)
        issues: list[Issue] = []
        for draw, (images, by_key) in zip(draws, read, strict=True):
            issues += itertools.chain(*images.issues)
            truth = sharding.split_batch(self._truth(images), self._mesh)
            yield (by_key[self._key], truth), (own, draw[None])
        self._log(label, itertools.chain(*distributed.gather(issues)))

    def _truth(self, images: ImageBatch) -> Batch:
        fields = images.category, images.labels, images.masks, images.has_mask, images.valid
        return Batch(*fields, class_names=tuple(self._dataset.prompt_names))


def count_steps(method: Method, config: TrainingConfig, num_images: int, epochs: int) -> int:
    """Returns the number of steps in the first epochs of a training, over all stages."""
    count = 0
    for one in map(config.at, method.stages):
        count += min(epochs, one.epochs) * one.steps(num_images)
        epochs -= min(epochs, one.epochs)
    return count


def _make_order(
    config: TrainingConfig,
    mosaic: float,
    pools: Sequence[Int[np.ndarray, " n"]],
    keys: Sequence[Sequence[Array]],
    mesh: Mesh,
) -> Order:
    """Returns the order of an epoch, given two keys of each member: for its images, and for its steps.

    The first one shuffles, and draws the images of mosaics from each image's pool: each image then has four
    positions along a further axis, of which the last three are -1 where it is no mosaic.
    """
    count = len(pools)
    orders = [np.arange(count)]
    if config.shuffle or mosaic:
        seeds = [int(jax.random.randint(key, (), 0, 2**31 - 1)) for key, _ in keys]
        generators = [np.random.default_rng(seed) for seed in seeds]
        orders = [one.permutation(count) if config.shuffle else orders[0] for one in generators]
    if mosaic:
        for number, (own, one) in enumerate(zip(orders, generators, strict=True)):
            orders[number] = np.pad(own[:, None], [(0, 0), (0, 3)], constant_values=-1)
            for row in np.flatnonzero(one.random(count) < mosaic):
                if len(pool := pools[own[row]]):
                    orders[number][row] = one.choice(pool, 4)
    size, steps = config.batch_size, config.steps(count)
    rest = [(0, 0)] * (np.ndim(orders) - 2)
    padded = np.pad(orders, [(0, 0), (0, steps * size - count), *rest], constant_values=-1)
    order = padded.reshape(len(orders), steps, size, *padded.shape[2:]).swapaxes(0, 1)
    missing = sharding.round_up(size, mesh) - size
    positions = np.pad(order, [(0, 0), (0, 0), (0, missing), *rest], constant_values=-1)
    draws = [jax.random.key_data(jax.random.split(key, steps)) for _, key in keys]
    return positions, np.stack(draws, axis=1)


def _describe(member: Member, members: Sequence[Member]) -> str:
    """Returns what sets a member apart: its seed, and the fields in which the configs differ."""
    values = {name: [getattr(one.config, name) for one in members] for name in SWEPT}
    swept = [name for name, found in values.items() if any(one != found[0] for one in found)]
    fields = [f"{name}={getattr(member.config, name)}" for name in swept]
    return ", ".join([f"seed {member.seed}", *fields])


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be restored; it has been removed."""


class OrbaxSaver:
    """Storage of the newest states in a folder, written atomically; `on_save` is called after each.

    Of several processes, the first reads and writes.
    """

    @distributed.by_main
    def __init__(self, folder: pathlib.Path, on_save: Callable[[], None] = lambda: None):
        import orbax.checkpoint as ocp

        self._args, self._on_save = ocp.args, on_save
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, 0)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            # The state is small: saving in the background gains nothing, and would let a kill come in between.
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,  # of a killed training
            create=False,  # it is there, and several processes cannot
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
        )
        try:
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        except RecursionError as error:  # while orbax reads its own files
            raise UserError(
                f"The checkpoints in {folder} are damaged. Delete the folder to train anew."
            ) from error

    @distributed.by_main
    def latest(self) -> int | None:
        return self._manager.latest_step()

    @distributed.by_main
    def restore(self, epoch: int, like: PyTree) -> PyTree | None:
        """Returns the state after `epoch`, in the structure of `like`, as host arrays.

        A damaged one is removed, for None; the next newest can be restored instead.
        """
        shapes = jax.tree.map(lambda x: np.zeros(jnp.shape(x), x.dtype), like)
        stored = {"state": shapes, "digest": np.zeros(32, np.uint8)}
        try:
            restored = self._manager.restore(epoch, args=self._args.StandardRestore(stored))
            if not np.array_equal(restored["digest"], _digest(restored["state"])):
                raise ValueError("its digest differs")
            return restored["state"]
        except Exception:  # its storage raises errors of many kinds
            words = "Removing the damaged checkpoint of epoch %d in %s. An earlier one is used."
            logging.warning(words, epoch, self._manager.directory)
            self._manager.delete(epoch)
            return None

    @distributed.by_main
    def save(self, epoch: int, state: PyTree) -> None:
        state = sharding.to_host(state)
        _check_room(self._manager.directory, sum(x.nbytes for x in jax.tree.leaves(state)))
        stored = {"state": state, "digest": _digest(state)}
        self._manager.save(epoch, args=self._args.StandardSave(stored))
        self._manager.wait_until_finished()
        self._on_save()

    @distributed.by_main
    def close(self) -> None:
        self._manager.close()


def _check_room(folder: files.PathLike, size: int) -> None:
    """Raises OSError if a state and the curves do not fit: threads that write them would print tracebacks."""
    if shutil.disk_usage(folder).free < 2 * size + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder))


def _digest(state: PyTree) -> UInt8[np.ndarray, "32"]:
    """Returns the SHA-256 of the values of a state: orbax does not notice changed bytes."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        sha.update(np.asarray(leaf).tobytes())
    return np.frombuffer(sha.digest(), np.uint8)
