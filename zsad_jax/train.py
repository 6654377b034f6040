"""Training of a method's learnable parameters on an auxiliary dataset."""

import dataclasses
import errno
import functools
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree, UInt8

from zsad_jax.backbones.base import AnyArray, Backbone
from zsad_jax.data.dataset import Dataset
from zsad_jax.data.loader import load_batches
from zsad_jax.methods.base import Batch, Method, Stage, Terms
from zsad_jax.utils import files, sharding
from zsad_jax.utils.config import LARGEST, check_fields, within
from zsad_jax.utils.errors import UserError, suggest
from zsad_jax.utils.progress import one_late, progress

SPARE_BYTES = 2**20  # besides the state: its description, and the curves


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options of the optimization; by default Adam at a constant rate.

    Attributes:
      epochs: passes over the auxiliary set, for stages without their own number.
      batch_size: images per step; the last batch is padded and masked, never dropped.
      learning_rate: for every parameter group that `learning_rates` does not name.
      learning_rates: of single parameter groups, by name.
      optimizer: "adam", or "sgd" with `momentum` and `weight_decay`, as CoOp was trained.
      b1, b2, eps: the constants of "adam".
      momentum, weight_decay: the constants of "sgd".
      schedule: of the rate, epoch by epoch: "constant", or "cosine", which falls from the peak towards zero.
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
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = within(0.9, 0, 1)
    weight_decay: float = within(5e-4, 0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = within(0, 0)
    warmup_rate: float = within(1e-5, 0)
    shuffle: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def steps(self, num_images: int) -> int:
        """Returns the number of steps per epoch."""
        return -(-num_images // self.batch_size)


class TrainState(NamedTuple):
    """The state from which training resumes."""

    params: PyTree
    optimizer: PyTree


# A step of the optimizer on one batch: (frozen, state, 8-bit images, batch) -> (state, losses).
Step = Callable[[PyTree, TrainState, UInt8[Array, "b S S 3"], Batch], tuple[TrainState, Terms]]


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
    """Returns the optimizer with each parameter group's own rate; groups outside the stage are frozen."""
    groups = method.groups(params)
    names = set(jax.tree.leaves(groups))
    check_learning_rates(config, method)

    def transform(name: str) -> optax.GradientTransformation:
        if stage.groups is not None and name not in stage.groups:
            return optax.set_to_zero()
        peak = config.learning_rates.get(name, config.learning_rate)
        rate = make_schedule(config, peak, stage.epochs or config.epochs, steps_per_epoch)
        if config.optimizer == "adam":
            return optax.adam(rate, config.b1, config.b2, config.eps)
        decay = optax.add_decayed_weights(config.weight_decay)
        return optax.chain(decay, optax.sgd(rate, config.momentum))

    return optax.partition({name: transform(name) for name in names}, groups)


def check_learning_rates(config: TrainingConfig, method: Method) -> None:
    """Raises UserError if a learning rate is for a parameter group that the method never has."""
    for name in config.learning_rates:
        if name not in method.group_names:
            raise UserError(
                f"config.training.learning_rates names {name!r}, which is not a parameter group of"
                f" {method.name}. {suggest(name, method.group_names)}"
            )


def make_schedule(
    config: TrainingConfig, peak: float, epochs: int, steps_per_epoch: int
) -> float | optax.Schedule:
    """Returns the rate of each step, which is constant within an epoch."""
    if config.schedule == "constant" and not config.warmup_epochs:
        return peak

    def rate(step: Any) -> Any:
        epoch = step // steps_per_epoch
        progress = (epoch - config.warmup_epochs) / epochs
        share = jnp.cos(jnp.pi * progress) / 2 + 0.5 if config.schedule == "cosine" else 1
        return jnp.where(epoch < config.warmup_epochs, config.warmup_rate, peak * share)

    return rate


def make_step(
    method: Method, backbone: Backbone, optimizer: optax.GradientTransformation, stage: Stage
) -> Step:
    """Returns the compiled training step."""
    # Features, loss and update are one program: XLA drops what the loss does not use of the features.
    loss_of = stage.loss or method.loss

    def loss(params: PyTree, frozen: PyTree, images: jax.Array, batch: Batch):
        features = method.features(frozen, params, backbone.preprocess.normalize(images))
        features = jax.tree.map(functools.partial(_zero_rows, batch.valid), features)
        return loss_of(frozen, params, features, batch)

    differentiate = jax.value_and_grad(loss, has_aux=True)

    @jax.jit
    def step(frozen: PyTree, state: TrainState, images: jax.Array, batch: Batch):
        (total, terms), gradient = differentiate(state.params, frozen, images, batch)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, optimizer_state), {"loss": total, **terms}

    return step


def _zero_rows(valid: Bool[AnyArray, " b"], x: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """Returns x with zeros in the rows that are not valid, where even a NaN then has no gradient."""
    # Selected, not multiplied: 0 times NaN is NaN.
    return jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def train(
    method: Method,
    backbone: Backbone,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    key: jax.Array,
    mesh: Mesh,
    saver: "OrbaxSaver",
    curves: Curves,
    num_workers: int | None = None,
) -> PyTree:
    """Trains all stages, resumes where a killed run stopped, and returns the parameters.

    Args:
      method: the method to train.
      backbone: the frozen model; its parameters are replicated over the mesh.
      dataset: the auxiliary set, with labels and masks.
      config, mesh: the optimization's options, and the devices.
      key: for the initial parameters and, with `shuffle`, the order of the images.
      saver: keeps the state after each epoch.
      curves: receives the losses of each step.
      num_workers: decoding processes; None: chosen automatically.

    Raises:
      UserError: the dataset is empty, the method learns nothing, or a loss is not finite.
      DamagedCheckpointError: by the saver. Training can start again.
    """
    # One key per epoch, derived from its number, so that a resumed run shuffles like an uninterrupted one.
    init_key, order_key = jax.random.split(key)
    frozen = sharding.replicate(backbone.params, mesh)
    params = sharding.replicate(method.init(init_key, frozen), mesh)
    if not jax.tree.leaves(params):
        raise UserError(
            f"{method.name} has no learnable parameters with this config. Set config.train to False."
        )
    if not len(dataset):
        raise UserError(
            f"The auxiliary dataset {dataset.name} has no images. Check its folder or its split."
        )
    per_epoch = config.steps(len(dataset))

    def train_epoch(step: Step, state: TrainState, epoch: int) -> TrainState:
        """Passes once over the data."""
        label = f"train {dataset.name} epoch {epoch + 1}"
        epoch_key = jax.random.fold_in(order_key, epoch)  # all that the order depends on
        batches = load_batches(
            dataset,
            backbone.preprocess,
            batch_size=config.batch_size,
            num_workers=num_workers,
            seed=int(jax.random.randint(epoch_key, (), 0, 2**31 - 1)) if config.shuffle else None,
        )
        batches = progress(batches, total=len(dataset), label=label, step=config.batch_size)

        def run_steps(state: TrainState) -> Iterator[tuple[int, TrainState, Terms]]:
            for number, images in enumerate(batches, start=epoch * per_epoch + 1):
                for issue in images.issues:
                    logging.warning("%s: %s", label, issue)
                # Without a gradient, momentum would still move the parameters.
                if not images.valid.any():
                    continue
                truth = Batch(
                    category=images.category,
                    labels=images.labels,
                    masks=images.masks.astype(np.float32),
                    has_mask=images.has_mask,
                    valid=images.valid,
                    class_names=tuple(dataset.prompt_names),
                )
                inputs = sharding.split_batch((images.images, truth), mesh)
                state, losses = step(frozen, state, *inputs)
                yield number, state, losses

        number = None
        for number, newest, losses in one_late(run_steps(state)):
            state = newest
            values = {name: float(value) for name, value in losses.items()}
            if not np.isfinite(values["loss"]):
                raise UserError(
                    f"The loss became {values['loss']} at step {number} ({label}). Lower"
                    " config.training.learning_rate."
                )
            curves.write(number, values)
        if number is None:
            raise UserError(
                f"No image of {dataset.name} could be read. Check the files of the dataset."
            )
        return state

    done, first_epoch = saver.latest() or 0, 0
    for stage in method.stages:
        optimizer = make_optimizer(config, method, params, stage, steps_per_epoch=per_epoch)
        state = sharding.replicate(TrainState(params, optimizer.init(params)), mesh)
        last_epoch = first_epoch + (stage.epochs or config.epochs)
        # Each stage has an optimizer of its own, so a state fits only the stage that saved it.
        if done > last_epoch:  # its parameters are part of a later stage's state
            first_epoch = last_epoch
            continue
        if done > first_epoch:
            state = sharding.replicate(saver.restore(done, state), mesh)
        step = make_step(method, backbone, optimizer, stage)
        for epoch in range(max(first_epoch, done), last_epoch):
            state = train_epoch(step, state, epoch)
            saver.save(epoch + 1, state)
        params, first_epoch = state.params, last_epoch
    return params


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be restored; it has been removed."""


class OrbaxSaver:
    """Storage of the newest states in a folder, from which a killed run resumes; orbax writes atomically."""

    def __init__(self, folder: pathlib.Path):
        import orbax.checkpoint as ocp

        self._args = ocp.args
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, 0)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            # The state is small: saving in the background gains nothing, and would let a kill come in between.
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,  # of a killed training
        )
        try:
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        except RecursionError as error:  # while orbax reads its own files
            raise UserError(
                f"The checkpoints in {folder} are damaged. Delete the folder to train anew."
            ) from error

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, epoch: int, like: PyTree) -> PyTree:
        """Returns the state after `epoch`, in the structure of `like`, as host arrays.

        A damaged one raises `DamagedCheckpointError`; the next newest can be restored instead.
        """
        shapes = jax.tree.map(lambda x: np.zeros(jnp.shape(x), x.dtype), like)
        stored = {"state": shapes, "digest": np.zeros(32, np.uint8)}
        try:
            restored = self._manager.restore(epoch, args=self._args.StandardRestore(stored))
            if not np.array_equal(restored["digest"], _digest(restored["state"])):
                raise ValueError("its digest differs")
            return restored["state"]
        except Exception as error:  # its storage raises errors of many kinds
            words = "Removing the damaged checkpoint of epoch %d in %s. An earlier one is used."
            logging.warning(words, epoch, self._manager.directory)
            self._manager.delete(epoch)
            raise DamagedCheckpointError(f"epoch {epoch}") from error

    def save(self, epoch: int, state: PyTree) -> None:
        state = sharding.to_host(state)
        _check_room(self._manager.directory, sum(x.nbytes for x in jax.tree.leaves(state)))
        stored = {"state": state, "digest": _digest(state)}
        self._manager.save(epoch, args=self._args.StandardSave(stored))
        self._manager.wait_until_finished()

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
