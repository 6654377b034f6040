"""Block numbers of configs on towers of another depth than the one they were written for."""

from collections.abc import Sequence

from zsad_jax.errors import UserError

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


def check_blocks(key: str, blocks: Sequence[int], *, of: int = VISION_DEPTH) -> None:
    """Checks a config field that lists blocks.

    Raises:
      UserError: when there is none, or one that a tower of `of` blocks does not have.
    """
    if not blocks or not all(1 <= block <= of for block in blocks):
        raise UserError(
            f"Config key '{key}' is {tuple(blocks)!r}; name at least one block between 1 and {of} (they are"
            " scaled to the depth of the tower)."
        )
