"""What the operation has to move."""

from ..common.registry import Cost


def cost(*, tokens: int, heads: int, kv_heads: int, head_dim: int, itemsize: int = 2) -> Cost:
    """For `tokens` rows, heads of `head_dim` numbers of `itemsize` bytes, and fp32 tables of cosines and sines.

    Queries and keys pass memory five times: read and written going forward; going backward the gradient and the saved
    input are read and the new gradient is written. Of either table half is read, in each direction. The weights are too
    small to count.
    """
    numbers = tokens * (heads + kv_heads) * head_dim
    tables = 2 * (2 * tokens * head_dim // 2) * 4
    return Cost(numbers * 5 * itemsize + tables)
