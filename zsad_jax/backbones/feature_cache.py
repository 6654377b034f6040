"""Features of datasets: encoded once and stored, or encoded as they are read."""

import dataclasses
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt8

from zsad_jax.backbones.base import Backbone, Params
from zsad_jax.data.dataset import Dataset, ImageBatch
from zsad_jax.data.loader import load_batches
from zsad_jax.utils import sharding
from zsad_jax.utils.config import check_fields, within


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
# features are the 8-bit images, for methods whose features depend on parameters.
Encoders = Mapping[Hashable, EncodeFn | None]
FeaturesByKey = dict[Hashable, PyTree]


class Features:
    """The features and the ground truth of a dataset's images, by position.

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
        """
        self.dataset = dataset
        self._backbone = backbone
        self._mesh = mesh
        self.rows = sharding.round_up(rows, mesh)
        self._num_workers = num_workers
        self._frozen = sharding.replicate(backbone.params, mesh)
        self._encode = {key: encode and self._compile(encode) for key, encode in encoders.items()}

    def read(
        self, order: Int[np.ndarray, " n"], rows: int, *, pixels: bool = False
    ) -> Iterator[tuple[ImageBatch, FeaturesByKey]]:
        """Yields batches of `rows` images in an order, the last one padded, with their features by key.

        The position -1 is a row of padding. `rows` is a multiple of the number of devices, over which features
        are split. The batches have images only with `pixels`.
        """
        batches = load_batches(
            self.dataset,
            self._backbone.preprocess,
            batch_size=rows,
            num_workers=self._num_workers,
            indices=order.tolist(),
        )
        for batch in batches:
            images = sharding.split_batch(batch.images, self._mesh)
            features = {
                key: encode(self._frozen, images) if encode else images
                for key, encode in self._encode.items()
            }
            yield batch, features

    def resident(self) -> tuple[ImageBatch, FeaturesByKey] | None:
        """Returns all images, without pixels, with features on every device; None if they do not fit."""
        return None

    def _compile(self, encode: EncodeFn) -> Any:
        def run(frozen: Params, images: UInt8[Array, "b S S 3"]) -> PyTree:
            return encode(frozen, self._backbone.preprocess.normalize(images))

        def run_in_parts(frozen: Params, images: UInt8[Array, "b S S 3"]) -> PyTree:
            # Matrix products of other sizes round differently: every image is encoded among `rows` of them.
            missing = -len(images) % self.rows
            padded = jnp.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
            if len(padded) == self.rows:
                found = run(frozen, padded)
            else:
                parts = padded.reshape(-1, self.rows, *images.shape[1:])
                found = jax.lax.map(lambda part: run(frozen, part), parts)
                found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
            return jax.tree.map(lambda x: x[: len(images)], found)

        return jax.jit(run_in_parts)
