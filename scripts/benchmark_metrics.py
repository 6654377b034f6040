"""Benchmark of all metrics of a category against the published procedure.

    python scripts/benchmark_metrics.py --maps 1000 --size 518

The published procedure labels the regions of every mask again at each of 200 thresholds. It is implemented
here independently of the library, with scipy's labeling instead of scikit-image's, measured on the first maps
and extrapolated, in proportion to their number. An evaluation uses binned maps, which the device has made, so
their binning is not measured here; `exact` keeps every score. Memory grows by `memory_growth_mib` between the
first maps and all of them.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.ndimage as ndimage
from benchmark_sides import report

from zsad_jax.metrics import AUPRO_200STEP, category
from zsad_jax.metrics.binned import bin_maps
from zsad_jax.utils import command_line
from zsad_jax.utils.memory import peak_memory

BATCH = 8  # maps per update


def make_category(num_maps: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns smooth maps in [0, 1] and masks; every second image has one to four defects."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((num_maps, size, size), bool)
    rows, columns = np.mgrid[:size, :size]
    for mask in masks[::2]:
        for _ in range(rng.integers(1, 5)):
            center, axes = rng.uniform(0, size, 2), rng.uniform(size / 60, size / 10, 2)
            mask |= ((rows - center[0]) / axes[0]) ** 2 + ((columns - center[1]) / axes[1]) ** 2 < 1
    coarse = rng.normal(size=(num_maps, 37, 37))
    noise = np.stack(
        [
            ndimage.zoom(image, size / 37, order=1, grid_mode=True, mode="nearest")
            for image in coarse
        ]
    )
    logits = np.stack([ndimage.gaussian_filter(image, 4) for image in noise + 1.5 * masks]) * 2 - 3
    return (1 / (1 + np.exp(-logits))).astype(np.float32), masks


def published_aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    """Returns AUPRO by the published loop, which labels every mask again at each threshold."""
    low, high = float(maps.min()), float(maps.max())
    masks = masks.astype(np.uint8)
    predicted = np.zeros(maps.shape, bool)
    points = []
    for threshold in np.arange(low, high, (high - low) / 200, dtype=np.float32):
        predicted[maps <= threshold], predicted[maps > threshold] = False, True
        overlaps = []
        for prediction, mask in zip(predicted, masks, strict=True):
            labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
            for index, box in enumerate(ndimage.find_objects(labels), start=1):
                region = labels[box] == index
                overlaps.append(prediction[box][region].sum() / region.sum())
        normal = 1 - masks
        points.append((np.logical_and(normal, predicted).sum() / normal.sum(), np.mean(overlaps)))
    fpr, pro = np.array([point for point in points if point[0] < 0.3]).T
    fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
    return float(np.trapezoid(pro[::-1], fpr[::-1]))


def published_metrics(scores: np.ndarray, maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Returns AUROC, AP and F1-max of images and pixels by scikit-learn, and AUPRO by the published loop."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    found = {AUPRO_200STEP: published_aupro(maps, masks)}
    labels = masks.any(axis=(1, 2))
    for name, truth, values in (("image", labels, scores), ("pixel", masks, maps)):
        pair = truth.ravel(), values.ravel()
        precision, recall, _ = precision_recall_curve(*pair)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        found |= {
            f"{name}_auroc": float(roc_auc_score(*pair)),
            f"{name}_ap": float(average_precision_score(*pair)),
            f"{name}_f1max": float(f1.max()),
        }
    return found


def library_metrics(
    maps: Any, masks: np.ndarray, scores: np.ndarray, *, count: int, exact: bool = False
) -> dict[str, float]:
    """Returns all metrics of `count` maps, the given ones in turn, in batches as in an evaluation."""
    state, labels = category.init(exact=exact), masks.any(axis=(1, 2))
    for start in range(0, count, BATCH):
        part = np.arange(start, min(start + BATCH, count)) % len(masks)
        some = jax.tree.map(lambda x, p=part: x[p], maps)
        state = category.update(state, scores[part], labels[part], some, masks[part])
    return category.compute(state).values


def peak_mib() -> float:
    return peak_memory() / 2**20


def timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call(*arguments, **options)
    return time.perf_counter() - start, result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=1000, help="number of maps")
    parser.add_argument("--size", type=int, default=518, help="side of a map, in pixels")
    parser.add_argument("--first", type=int, default=60, help="maps of the published procedure")
    parser.add_argument("--cores", type=int, default=1, help="number of cores")
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures all procedures, and prints and writes the results."""
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(available)[: options.cores])
    first = min(options.first, options.maps)
    maps, masks = make_category(first, options.size)
    scores, binned = maps.max(axis=(1, 2)), jax.device_get(jax.jit(bin_maps)(maps))
    truth = masks, scores
    rounded = library_metrics(binned, *truth, count=first)  # imports, like the next line
    published_metrics(scores[:2], maps[:2], masks[:2])
    memory = peak_mib()
    binned_s, _ = timed(library_metrics, binned, *truth, count=options.maps)
    memory = peak_mib() - memory
    exact_s, exact = timed(library_metrics, maps, *truth, count=first, exact=True)
    loop_s, loop = timed(published_aupro, maps, masks)
    published_s, published = timed(published_metrics, scores, maps, masks)
    os.sched_setaffinity(0, available)
    times = {
        "binned maps": (binned_s, options.maps),
        "exact": (exact_s, first),
        "published, AUPRO only": (loop_s, first),
        "published, all metrics": (published_s, first),
    }
    rows = [
        {
            "procedure": name,
            "measured_maps": count,
            "ms_per_map": 1e3 * seconds / count,
            "seconds_for_all": seconds / count * options.maps,
            "times_as_fast_as_loop": loop_s / first / (seconds / count),
        }
        for name, (seconds, count) in times.items()
    ]
    report(
        options,
        rows,
        memory_growth_mib=round(memory, 1),
        binned_difference=max(abs(rounded[name] - exact[name]) for name in exact),
        published_difference=max(abs(value - exact[name]) for name, value in published.items()),
        loop_difference=abs(loop - exact[AUPRO_200STEP]),
    )


if __name__ == "__main__":
    sys.exit(main())
