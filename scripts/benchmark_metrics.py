"""Benchmark of all pixel metrics of a category against the published procedure for AUPRO only.

    python scripts/benchmark_metrics.py --maps 100 --size 518

The published procedure labels the regions of every mask again at each of 200 thresholds. It is implemented
here independently of the library, with scipy's labeling instead of scikit-image's.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import scipy.ndimage as ndimage

from zsad_jax.metrics import AUPRO_200STEP, category


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


def library_metrics(
    maps: np.ndarray, masks: np.ndarray, *, exact: bool, batch: int = 8
) -> dict[str, float]:
    """Returns all metrics of the library, updated in batches as in an evaluation."""
    state = category.init(exact=exact)
    scores, labels = maps.max(axis=(1, 2)), masks.any(axis=(1, 2))
    for start in range(0, len(maps), batch):
        part = slice(start, start + batch)
        state = category.update(state, scores[part], labels[part], maps[part], masks[part])
    return category.compute(state).values


def timed(call: Callable, *args, **options) -> tuple[float, float | dict[str, float]]:
    start = time.perf_counter()
    result = call(*args, **options)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=100, help="number of maps")
    parser.add_argument("--size", type=int, default=518, help="side of a map, in pixels")
    options = parser.parse_args()
    maps, masks = make_category(options.maps, options.size)
    library_metrics(maps[:2], masks[:2], exact=False)  # warm-up: excludes imports from the timings
    streaming_s, streaming = timed(library_metrics, maps, masks, exact=False)
    exact_s, exact = timed(library_metrics, maps, masks, exact=True)
    published_s, published = timed(published_aupro, maps, masks)
    print(f"{options.maps} maps of {options.size}x{options.size}")
    print(f"published loop, AUPRO only  {published_s:8.2f} s")
    for name, seconds, values in (("streaming", streaming_s, streaming), ("exact", exact_s, exact)):
        print(f"{name:9s}, all metrics      {seconds:8.2f} s   {published_s / seconds:.1f}x faster")
        print("  " + "  ".join(f"{key} {value:.5f}" for key, value in values.items()))
    error = max(abs(streaming[key] - exact[key]) for key in exact)
    print(f"largest difference between streaming and exact: {error:.1e}")
    error = published - exact[AUPRO_200STEP]
    print(
        f"AUPRO of the published loop {published:.5f}, difference from {AUPRO_200STEP}: {error:+.1e}"
    )


if __name__ == "__main__":
    main()
