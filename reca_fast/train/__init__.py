"""A training run: put together from the other rooms, stepped to its end, saved, and gone on with; or a row of them."""

from .run import train
from .stages import train_stages

__all__ = ["train", "train_stages"]
