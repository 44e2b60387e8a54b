"""How the elementwise losses divide rows of channels among programs."""

from .optional_triton import triton


def tile_of(channels: int) -> dict[str, int]:
    """Launch options for rows of `channels` numbers: a program of 4 warps takes 1024 numbers, 8 neighbours per thread.

    That is as many whole rows as fit (BLOCK_T), or parts of one row (BLOCK_C numbers at a time) where channels > 1024.
    """
    block_c = min(1024, max(4, triton.next_power_of_2(channels)))
    return {"C": channels, "BLOCK_T": 1024 // block_c, "BLOCK_C": block_c, "num_warps": 4}
