"""Features of datasets: encoded once and stored, or encoded as they are read."""

import dataclasses
import functools
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt8

import zsad_jax
from zsad_jax.backbones import feature_store
from zsad_jax.backbones.base import Backbone, FeaturesKey, Params
from zsad_jax.backbones.feature_store import Info, Store, to_batch
from zsad_jax.data.dataset import Dataset, ImageBatch
from zsad_jax.data.issues import Issue
from zsad_jax.data.loader import load_batches, report_notes
from zsad_jax.data.preprocess import Preprocess
from zsad_jax.utils import sharding
from zsad_jax.utils.config import check_fields, within
from zsad_jax.utils.progress import one_late, progress
from zsad_jax.utils.records import fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Options of stored features.

    Attributes:
      cache: where the features of a dataset are kept: "memory", for this run; "disk", also for later ones;
        "none", to encode the images each time; "auto", on disk or in memory where they fit, else "none".
      dtype: "bfloat16" halves the size of stored features; None: that of the backbone.
      max_gb: largest size of all stored features together, in GB.
    """

    cache: Literal["auto", "none", "memory", "disk"] = "auto"
    dtype: Literal["bfloat16"] | None = None
    max_gb: float = within(40.0, 0)

    def __post_init__(self) -> None:
        check_fields(self)


class EncodeFn(Protocol):
    """A function that computes features of normalized images: any pytree with leading axis b."""

    def __call__(self, frozen: Params, images: Float[Array, "b H W 3"], /) -> PyTree: ...


# Encoders by key, which is equal for encoders of the same features over one backbone. With the key None the
# features are the 8-bit images, for methods whose features depend on parameters. Only features whose key is a
# tuple of plain values are stored: other keys cannot be found again by a later run.
Encoders = Mapping[Hashable, EncodeFn | None]
FeaturesByKey = dict[Hashable, PyTree]

# Share of the free memory of a device that resident features may take, if they are on disk or in memory.
SHARE_OF_STORED, SHARE_OF_KEPT = 0.25, 0.5


class Features:
    """The features and the ground truth of a dataset's images, by position.

    With `FeaturesConfig.dtype`, features are rounded to it wherever they are kept.

    Attributes:
      dataset: whose images they are.
      rows: images that are encoded at a time, a multiple of the number of devices.
    """

    def __init__(
        self,
        dataset: Dataset,
        backbone: Backbone,
        encoders: Encoders,
        config: FeaturesConfig,
        *,
        mesh: Mesh,
        rows: int,
        num_workers: int | None = None,
    ):
        """Encodes what is not stored yet, if the config asks for it.

        Args:
          encoders: by key, see `Encoders`.
          rows: images that are encoded at a time. The last bits of features depend on it.

        Raises:
          UserError: the features do not fit where the config asks for them.
        """
        self.dataset = dataset
        self._backbone = backbone
        self._config = config
        self._mesh = mesh
        self.rows = sharding.round_up(rows, mesh)
        self._num_workers = num_workers
        self._frozen = sharding.replicate(backbone.params, mesh)
        self._size = backbone.preprocess.image_size
        images = jax.ShapeDtypeStruct((self.rows, self._size, self._size, 3), np.float32)
        # Features of an image as the encoder returns them, in shapes.
        self._shapes = {
            key: jax.eval_shape(encode, backbone.params, images)
            for key, encode in encoders.items()
            if encode and (config.dtype or isinstance(key, tuple))
        }
        fixed = backbone.preprocess, mesh, self.rows, config.dtype
        self._encode = {
            key: encode and _compile(encode, *fixed) for key, encode in encoders.items()
        }
        self._noted = False
        self._stores = self._open_stores()
        self._fill()

    def read(
        self, order: Int[np.ndarray, " n"], rows: int, *, pixels: bool = False
    ) -> Iterator[tuple[ImageBatch, FeaturesByKey]]:
        """Yields batches of `rows` images in an order, the last one padded, with their features by key.

        The position -1 is a row of padding, whose features can have any value. `rows` is a multiple of the
        number of devices, over which features are split. The batches have images only with `pixels`. The first
        pass without them logs the notes on the images.
        """
        padded = np.pad(order, (0, -len(order) % rows), constant_values=-1)
        stream: Iterator[ImageBatch | None] = itertools.repeat(None)
        if pixels or len(self._stores) < len(self._encode):
            stream = self._load(padded, rows)
        notes: list[Issue] = []
        for positions, loaded in zip(padded.reshape(-1, rows), stream, strict=False):
            batch, features = loaded, {}
            for key, store in self._stores.items():
                records, texts = store.read(positions)
                features[key] = sharding.split_batch(self._unpack(key, records), self._mesh)
                batch = batch or to_batch(records, texts, self._size)
            assert batch is not None
            if len(features) < len(self._encode):
                images = sharding.split_batch(batch.images, self._mesh)
                for key in self._encode.keys() - features.keys():
                    encode = self._encode[key]
                    features[key] = encode(self._frozen, images) if encode else images
            notes += batch.notes
            yield batch if pixels else batch._replace(images=None), self.restore(features)
        if not pixels:
            self._log_notes(notes)

    def resident(self) -> tuple[ImageBatch, FeaturesByKey] | None:
        """Returns all images, without pixels, with features on every device; None if they do not fit.

        Only features in memory are, and those that "auto" has put on disk. `restore` gives a batch of them the
        dtype of its encoder.
        """
        stores = self._stores
        if not stores or len(stores) < len(self._encode) or self._config.cache == "disk":
            return None
        size = sum(
            store.info.num_bytes + store.info.images * self._size**2 for store in stores.values()
        )
        on_disk = any(store.folder for store in stores.values())
        if size > (SHARE_OF_STORED if on_disk else SHARE_OF_KEPT) * _free_bytes(self._mesh):
            return None
        features: FeaturesByKey = {}
        for key, store in stores.items():
            records, texts = store.read(np.arange(len(self.dataset)))
            features[key] = sharding.replicate(self._unpack(key, records), self._mesh)
        batch = to_batch(records, texts, self._size)
        self._log_notes(batch.notes)
        return batch, features

    def restore(self, features: FeaturesByKey) -> FeaturesByKey:
        """Returns features in the dtypes of their encoders; others stay as they are. Use it inside jit."""
        return {
            key: jax.tree.map(lambda x, own: x.astype(own.dtype), found, self._shapes[key])
            if key in self._shapes
            else found
            for key, found in features.items()
        }

    def _open_stores(self) -> dict[Hashable, Store]:
        config, dataset, backbone = self._config, self.dataset, self._backbone
        keys = [key for key, encode in self._encode.items() if encode and isinstance(key, tuple)]
        if config.cache == "none" or not len(dataset):
            return {}
        types = {key: feature_store.record_type(self._leaves(key), self._size) for key in keys}
        infos = {
            key: Info(
                key=self._key(key),
                dataset=dataset.name,
                backbone=backbone.name,
                image_size=self._size,
                blocks=key.layers if isinstance(key, FeaturesKey) else None,
                images=len(dataset),
                rows=self.rows,
                row_bytes=types[key].itemsize,
            )
            for key in keys
        }
        place, reason = feature_store.choose_place(config.cache, config.max_gb, [*infos.values()])
        stores: dict[Hashable, Store] = {}
        for key, info in infos.items():
            if place == "none":
                _log_once(f"{info}, not stored: {reason}")
            else:
                stores[key] = feature_store.open_store(info, types[key], place)
                _log_once(f"{info}, {stores[key].describe()}")
        return stores

    def _key(self, key: Hashable) -> str:
        """Returns the name of all that stored features depend on, down to their last bits."""
        backbone, device = self._backbone, self._mesh.devices.flat[0]
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        return fingerprint(
            [self.dataset.name, self.dataset.categories, self.dataset.fingerprint()],
            [backbone.name, backbone.family, backbone.digest, backbone.options],
            [dataclasses.asdict(backbone.preprocess), key, self.rows, self._config.dtype],
            [device.device_kind, self._mesh.size, precision],
            [jax.__version__, zsad_jax.__version__],
        )

    def _fill(self) -> None:
        """Encodes what the stores lack, in one pass over the images."""
        missing = {key: {*store.missing().tolist()} for key, store in self._stores.items()}
        order = np.array(sorted(set().union(*missing.values())), int)
        if not len(order):
            return

        def run() -> Iterator[tuple[ImageBatch, FeaturesByKey]]:
            # Shards hold multiples of `rows`, so that a batch is missing as a whole or not at all.
            for batch in self._load(order, self.rows):
                images = sharding.split_batch(batch.images, self._mesh)
                wanted = (key for key in missing if int(batch.index[0]) in missing[key])
                yield batch, {key: self._encode[key](self._frozen, images) for key in wanted}  # type: ignore[misc]

        label = f"encode {self.dataset.name}"
        for batch, features in progress(
            one_late(run()), total=len(order), label=label, step=self.rows
        ):
            for key, found in features.items():
                self._stores[key].add(batch, jax.tree.leaves(sharding.to_host(found)))

    def _load(self, order: Int[np.ndarray, " n"], rows: int) -> Iterator[ImageBatch]:
        return load_batches(
            self.dataset,
            self._backbone.preprocess,
            batch_size=rows,
            num_workers=self._num_workers,
            indices=order.tolist(),
            log_notes=False,
        )

    def _log_notes(self, notes: Sequence[Issue]) -> None:
        if not self._noted:
            report_notes(self.dataset.name, notes)
        self._noted = True

    def _leaves(self, key: Hashable) -> list[tuple[np.dtype, tuple[int, ...]]]:
        """Returns the stored type and the shape of an image's features."""
        leaves = jax.tree.leaves(self._shapes[key])
        return [(_stored_dtype(one.dtype, self._config.dtype), one.shape[1:]) for one in leaves]

    def _unpack(self, key: Hashable, records: np.ndarray) -> PyTree:
        leaves = [
            np.ascontiguousarray(records[f"leaf{i}"]).view(dtype)
            for i, (dtype, _) in enumerate(self._leaves(key))
        ]
        return jax.tree.unflatten(jax.tree.structure(self._shapes[key]), leaves)


def _compile(
    encode: EncodeFn, preprocess: Preprocess, mesh: Mesh, rows: int, dtype: str | None
) -> Any:
    """Returns the compiled function that encodes 8-bit images; floating-point features are cast to `dtype`."""
    # Not a method: in a reference cycle, features would outlive their use.
    split = NamedSharding(mesh, PartitionSpec(sharding.DATA))

    def run(frozen: Params, images: UInt8[Array, "b S S 3"]) -> PyTree:
        images = jax.lax.with_sharding_constraint(images, split)
        found = encode(frozen, preprocess.normalize(images))
        # `Features.restore` is another program: XLA would remove a cast and its inverse.
        return jax.tree.map(lambda x: x.astype(_stored_dtype(x.dtype, dtype)), found)

    def run_in_parts(frozen: Params, images: UInt8[Array, "b S S 3"]) -> PyTree:
        # Matrix products of other sizes round differently: every image is encoded among `rows` of them.
        missing = -len(images) % rows
        padded = jnp.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
        if len(padded) == rows:
            found = run(frozen, padded)
        else:
            parts = padded.reshape(-1, rows, *images.shape[1:])
            found = jax.lax.map(lambda part: run(frozen, part), parts)
            found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
        return jax.tree.map(lambda x: x[: len(images)], found)

    return jax.jit(run_in_parts)


def _stored_dtype(own: np.dtype, chosen: str | None) -> np.dtype:
    """Returns the dtype that features of their `own` dtype are stored in."""
    return np.dtype(chosen) if chosen and jnp.issubdtype(own, jnp.floating) else own


@functools.cache
def _log_once(text: str) -> None:
    logging.info("Features of %s", text)


def _free_bytes(mesh: Mesh) -> float:
    """Returns the free memory of the fullest device, or a device's part of the host's."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if not all(stats):
        return feature_store.available_memory() / mesh.size
    return float(min(one["bytes_limit"] - one["bytes_in_use"] for one in stats))
