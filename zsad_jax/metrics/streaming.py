"""Pixel metrics in constant memory, from three histograms that adapt their resolution to the scores.

Every pixel metric follows from the numbers of normal, anomalous and region-weighted anomalous pixels at each
score. Bins are runs of neighboring float32 numbers: the bits of a number, in an order-preserving form, without
the lowest `level` bits. At level 0 nothing is rounded. Memory is allocated in pages of 2^PAGE_BITS neighboring
numbers, for those that contain a score, and `level` is the smallest at which all these pages fit into NUM_BINS
bins. So scores that saturate near 0 or 1, and scores that are very close to each other, have the resolution of
float32, and their range need not be known beforehand. The level depends only on which pages contain scores,
not on their order, so merging two states equals one pass.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from zsad_jax.metrics import checks
from zsad_jax.metrics.binned import NUM_CODES, BinnedMaps, to_keys, to_scores
from zsad_jax.metrics.curve import Curve
from zsad_jax.metrics.regions import region_overlap
from zsad_jax.metrics.result import Metrics, Note, pixel_metrics
from zsad_jax.metrics.stepped import Thresholds
from zsad_jax.utils.threads import map_in_threads, num_cores

PAGE_BITS = 16
NUM_BINS = 2**20
HISTOGRAMS = ("negatives", "positives", "overlap")
CROWDED = 0.01  # a bin with a larger share of the pixels is worth a warning


class State(NamedTuple):
    """The three histograms. Page i owns a run of 2^(PAGE_BITS - level) bins, in order of appearance.

    Attributes:
      pages: which page (a number's highest bits) each run belongs to.
      negatives: normal pixels per bin.
      positives: anomalous pixels per bin.
      overlap: sum of 1 / |region| over the anomalous pixels of each bin.
      num_regions: anomalous regions.
      span: smallest and largest score; (inf, -inf) before the first.
    """

    pages: Int[np.ndarray, " p"]
    negatives: Int[np.ndarray, " n"]
    positives: Int[np.ndarray, " n"]
    overlap: Float[np.ndarray, " n"]
    num_regions: int = 0
    span: tuple[float, float] = (np.inf, -np.inf)

    @property
    def level(self) -> int:
        """The number of low bits of a score that are dropped."""
        return PAGE_BITS - min(PAGE_BITS, (NUM_BINS // max(len(self.pages), 1)).bit_length() - 1)


def init() -> State:
    """Returns the state without pixels, of 24 MB like every later one."""
    negatives, positives = np.zeros((2, NUM_BINS), np.int64)
    return State(np.zeros(0, np.int32), negatives, positives, np.zeros(NUM_BINS))


def update(
    state: State, maps: Float[np.ndarray, "b H W"] | BinnedMaps, *, masks: Bool[np.ndarray, "b H W"]
) -> State:
    """Adds images. Use only the returned state afterwards: the histograms are changed in place.

    Args:
      state: the images so far.
      maps: anomaly maps, finite; converted to float32. `BinnedMaps` are counted several times as fast.
      masks: True where anomalous.

    Raises:
      UserError: on non-finite maps, or shapes that do not match.
    """
    maps, masks = checks.check_maps(maps, masks, (np.float32,))
    if not masks.size:
        return state
    images: Any = map(BinnedMaps, *maps) if isinstance(maps, BinnedMaps) else maps
    pairs = zip(images, masks, strict=True)
    # Threads do not change the order in which images are added, and so not the rounding of sums.
    counted: Iterator[Any] = map_in_threads(_count, pairs, num_workers=num_cores())
    for keys, *counts, regions in counted:
        state, bins = _find_bins(state, keys)
        for name, values in zip(HISTOGRAMS, counts, strict=True):
            total, some = getattr(state, name), np.flatnonzero(values)
            np.add.at(total, bins[some], values[some].astype(total.dtype))
        low, high = to_scores(np.array([keys.min(), keys.max()])).tolist()
        span = min(state.span[0], low), max(state.span[1], high)
        state = state._replace(num_regions=state.num_regions + regions, span=span)
    return state


def _count(image: tuple[Any, Bool[np.ndarray, "H W"]]) -> tuple[Any, ...]:
    """Returns the keys in a map, the three counts of each, and the number of regions."""
    scores, mask = image
    overlap, regions = region_overlap(mask)
    if not isinstance(scores, BinnedMaps):
        of_pixels = np.zeros(mask.shape)
        of_pixels[mask] = overlap
        return *(x.ravel() for x in (to_keys(scores), ~mask, mask, of_pixels)), regions
    import cv2

    # Without Python's lock; float32 numbers are exact up to 2^24 pixels.
    pixels = cv2.calcHist([scores.codes], [0], None, [NUM_CODES], [0, NUM_CODES]).ravel()
    anomalous = scores.codes[mask] if regions else np.zeros(0, np.uint16)
    positives, weights = (np.bincount(anomalous, x, NUM_CODES) for x in (None, overlap))
    found = np.flatnonzero(pixels)
    return *(x[found] for x in (scores.keys(), pixels - positives, positives, weights)), regions


def merge(a: State, b: State) -> State:
    """Returns the state after both, equal to one pass over the pixels of both; neither is changed."""
    copied = a._replace(**{name: getattr(a, name).copy() for name in HISTOGRAMS})
    # Bins of `b` are added as if each were one pixel at its lowest score. Its pages are a subset of the merged
    # pages, so its level is not above the merged one, and each of its bins is within one merged bin.
    merged, bins = _find_bins(copied, _firsts(b))
    for name in HISTOGRAMS:
        np.add.at(getattr(merged, name), bins.ravel(), getattr(b, name)[: bins.size])
    return merged._replace(
        num_regions=a.num_regions + b.num_regions,
        span=(min(a.span[0], b.span[0]), max(a.span[1], b.span[1])),
    )


def curve(state: State) -> Curve:
    """Returns the counts of every occupied bin, at the lowest score of the bin."""
    order = np.argsort(-state.pages)
    firsts = _firsts(state)[order, ::-1]
    counts = [
        getattr(state, n)[: firsts.size].reshape(firsts.shape)[order, ::-1].ravel()
        for n in HISTOGRAMS
    ]
    occupied = np.flatnonzero(counts[0] + counts[1])
    return Curve(to_scores(firsts.ravel()[occupied]), *(c[occupied] for c in counts))


def compute(state: State, *, thresholds: Thresholds = "torch") -> Metrics:
    """Computes the pixel metrics, AUPRO as published code does, and a note if the bins are too coarse."""
    counted = curve(state)
    found = pixel_metrics(
        counted, num_regions=state.num_regions, span=state.span, thresholds=thresholds
    )
    pixels = counted.negatives + counted.positives
    if not pixels.any() or (share := pixels.max() / pixels.sum()) <= CROWDED:
        return found
    score = counted.scores[np.argmax(pixels)]
    reason = (
        f"{share:.0%} of the pixels share the score {score:.6g} and are ranked as ties"
        if state.level == 0
        else f"{share:.0%} of the pixels fall into one bin at the score {score:.6g}, so unless they are"
        " true ties, pixel metrics may be off by about that much; the exact mode keeps every score"
    )
    logging.warning("%s.", reason)
    return found._replace(notes=(*found.notes, Note((), reason)))


def _firsts(state: State) -> Int[np.ndarray, "p n"]:
    """Returns the lowest key of each bin, page by page."""
    within = np.arange(1 << (PAGE_BITS - state.level), dtype=np.int32) << state.level
    return (state.pages[:, None] << PAGE_BITS) + within


def _find_bins(state: State, keys: Int[np.ndarray, "..."]) -> tuple[State, Int[np.ndarray, "..."]]:
    """Finds the bin of every key, after adding new pages and making bins coarser if necessary."""
    # A table of all 65,536 pages replaces a search per pixel; nearly always it has every page already.
    half = np.int32(1 << (31 - PAGE_BITS))
    pages = (keys >> PAGE_BITS) + half  # from 0 on
    first_bins = _first_bins(state).take(pages)
    if first_bins.min(initial=0) < 0:
        new = np.zeros(2 * half, bool)
        new[pages] = True
        new[state.pages + half] = False
        state = _add_pages(state, np.flatnonzero(new).astype(np.int32) - half)
        first_bins = _first_bins(state).take(pages)
    first_bins += (keys & np.int32((1 << PAGE_BITS) - 1)) >> state.level
    return state, first_bins


def _first_bins(state: State) -> Int[np.ndarray, " all_pages"]:
    """Returns the first bin of each page, in the order of scores; -1 for pages without any."""
    half = 1 << (31 - PAGE_BITS)
    table = np.full(2 * half, -1, np.int32)
    table[state.pages + half] = np.arange(len(state.pages)) << (PAGE_BITS - state.level)
    return table


def _add_pages(state: State, pages: Int[np.ndarray, " q"]) -> State:
    """Adds pages and halves the resolution of the histograms, in place, until all fit."""
    opened = state._replace(pages=np.concatenate([state.pages, pages]))
    # Runs keep their order, so that joining neighbors in place moves every page to its new first bin at once.
    for _ in range(opened.level - state.level if len(state.pages) else 0):
        for name in HISTOGRAMS:
            counts = getattr(state, name)
            counts[: NUM_BINS // 2] = counts[::2] + counts[1::2]
            counts[NUM_BINS // 2 :] = 0
    return opened
