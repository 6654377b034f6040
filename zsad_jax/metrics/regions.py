"""Connected anomalous regions of a ground-truth mask."""

import numpy as np
from jaxtyping import Bool, Float


def region_overlap(mask: Bool[np.ndarray, "H W"]) -> tuple[Float[np.ndarray, " p"], int]:
    """Weighs each anomalous pixel by one over the area of its 8-connected region.

    Args:
      mask: True where anomalous.

    Returns:
      1 / |region| of the anomalous pixels in the order of `map[mask]`, and the number of regions.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(0), 0
    import cv2

    # Labelling only the box around all regions is several times faster for the usual small defects.
    mask = np.ascontiguousarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    region = labels[mask]
    return 1.0 / np.bincount(region, minlength=count)[region], count - 1
