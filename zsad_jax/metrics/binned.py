"""Anomaly maps in 16 bits a pixel, for the way from devices to the host.

Codes are in the order of the scores. Each map has its own segments of float32 numbers. They start at quantiles
of the map and have the same number of codes, so that neither saturated scores nor an outlier take the
resolution from the others. Codes stand for multiples of a power of two, and for every number in segments of up
to 4,092 of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt16

NUM_CODES = 2**16
BITS = 12  # of the codes of a segment
# Shares of the map from the start of each segment on: most codes are for high scores, on which all metrics but
# AUROC depend. The last segment is the highest score.
SHARES = (
    *(1, 0.999, 0.9, 0.6, 0.4, 0.25, 0.15, 0.09),
    *(0.05, 0.03, 0.015, 0.008, 0.004, 0.002, 5e-4, 0),
)
SIDE = 64  # of the grid of pixels from which quantiles are taken


class BinnedMaps(NamedTuple):
    """Maps on devices or on the host, or one of them without the first axis.

    Attributes:
      codes: of each pixel.
      starts: the first key, see `to_keys`, of each segment.
      shifts: the number of low bits of a key that each segment drops.
    """

    codes: UInt16[Any, "b H W"]
    starts: Int[Any, "b 16"]
    shifts: Int[Any, "b 16"]

    def keys(self) -> Int[np.ndarray, " 65536"]:
        """Returns the rounded key of each code of one map; the start of a segment is not rounded."""
        starts, shifts = self.starts[:, None], self.shifts[:, None]
        keys = (_round(starts, shifts) + np.arange(1 << BITS, dtype=np.int32)) << shifts
        # Rounding must not lead into another segment. An empty segment has no codes.
        keys = np.clip(keys, starts, np.append(starts[1:] - 1, starts[-1:], axis=0))
        keys[:, 0] = self.starts
        return keys.ravel()

    def decode(self) -> Float[np.ndarray, "H W"]:
        """Returns one map as scores, on the host."""
        return to_scores(self.keys())[self.codes]


def bin_maps(maps: Float[Array, "b H W"]) -> BinnedMaps:
    """Rounds maps to 65,536 scores each; can be compiled."""
    keys = to_keys(maps.astype(jnp.float32))
    step = max(min(maps.shape[1:]) // SIDE, 1)
    grid = keys[:, ::step, ::step].reshape(len(keys), -1)
    # With the extremes of all rows, a sample has the extremes of the map, and no other pixel beside an outlier.
    sample = jnp.sort(jnp.concatenate([grid, keys.max(axis=2), keys.min(axis=2)], axis=1), axis=1)
    starts = sample[:, np.rint(np.subtract(1, SHARES) * (sample.shape[1] - 1)).astype(int)]
    widths = jnp.diff(starts, append=starts[:, -1:]).view(jnp.uint32)
    # The fewest bits of keys that must be dropped. Four codes of a segment (2^-(BITS - 2) of them) are left
    # free, since rounding adds up to two.
    bits = 32 - jax.lax.clz(widths + (widths >> (BITS - 2))).astype(jnp.int32)
    shifts = jnp.maximum(bits - BITS, 0)
    codes = jnp.zeros_like(keys)
    for segment in range(len(SHARES)):
        start, shift = (x[:, segment, None, None] for x in (starts, shifts))
        code = (segment << BITS) + _round(keys, shift) - _round(start, shift)
        codes = jnp.where(keys >= start, code, codes)
    return BinnedMaps(codes.astype(jnp.uint16), starts, shifts)


def _round(keys: Any, shift: Any) -> Any:
    """Returns the nearest multiple of 2^shift, divided by it."""
    return (keys + ((1 << shift) >> 1)) >> shift


def to_keys(scores: Float[Any, "..."]) -> Int[Any, "..."]:
    """Returns integers in the order of float32 scores: their bits, flipped for negative ones.

    IEEE 754 numbers of one sign are ordered like their bits as integers; negative ones in reverse.
    """
    bits = scores.view(np.int32)
    keys = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return keys + (keys == -1)  # -0.0 is the equal of 0.0


def to_scores(keys: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Inverts `to_keys`."""
    return (keys ^ ((keys >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)
