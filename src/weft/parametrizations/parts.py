"""Features cut into consecutive parts, as equal as they can be."""

from __future__ import annotations


def part_sizes(total: int, parts: int) -> list[int]:
    """Sizes of consecutive parts that are as equal as possible, the larger ones first.

    Args:
        total: what is split, at least ``parts``.
        parts: into how many.

    Returns:
        the sizes.

    Example:
        >>> part_sizes(11, 4)
        [3, 3, 3, 2]
    """
    size, larger = divmod(total, parts)
    return [size + 1] * larger + [size] * (parts - larger)
