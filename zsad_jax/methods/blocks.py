"""Block numbers of configs on towers of another depth than the one they were written for."""

from collections.abc import Sequence

VISION_DEPTH = 24  # what block numbers in configs count on: ViT-L
TEXT_DEPTH = 12


def scale_block(block: int, depth: int, *, of: int = VISION_DEPTH) -> int:
    """The block of a tower of `depth` blocks that lies where `block` lies in one of `of` blocks.

    Blocks count from 1; halves are rounded up.
    """
    return min(max((2 * block * depth + of) // (2 * of), 1), depth)


def scale_blocks(blocks: Sequence[int], depth: int, *, of: int = VISION_DEPTH) -> tuple[int, ...]:
    """The same for several blocks; two may fall together in a shallow tower."""
    return tuple(scale_block(block, depth, of=of) for block in blocks)
