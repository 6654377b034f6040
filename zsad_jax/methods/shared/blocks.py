"""Block numbers of configs on towers of another depth than the one they were written for."""

from collections.abc import Sequence

from zsad_jax.utils.errors import UserError

VISION_DEPTH = 24  # what block numbers in configs count on: ViT-L
TEXT_DEPTH = 12


def scale_block(block: int, depth: int, *, of: int = VISION_DEPTH) -> int:
    """The block of a tower of `depth` blocks that lies where `block` lies in one of `of` blocks.

    Blocks count from 1; halves are rounded up.
    """
    return min(max((2 * block * depth + of) // (2 * of), 1), depth)


def scale_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Scales several vision blocks; two may become the same in a shallow tower."""
    return tuple(scale_block(block, depth) for block in blocks)


def check_blocks(key: str, blocks: Sequence[int]) -> None:
    """Checks a config field that lists vision blocks.

    Raises:
      UserError: if there is none, or one that a tower of `VISION_DEPTH` blocks does not have.
    """
    if not blocks or not all(1 <= block <= VISION_DEPTH for block in blocks):
        raise UserError(
            f"Config key '{key}' is {tuple(blocks)!r}; name at least one block between 1 and {VISION_DEPTH}"
            " (they are scaled to the depth of the tower)."
        )
