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
    if not mask.any():
        return np.zeros(0), 0
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return 1.0 / stats[labels[mask], cv2.CC_STAT_AREA], count - 1
