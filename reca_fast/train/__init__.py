"""A training run: put together from the other rooms, stepped to its end, saved, and gone on with."""

from .run import train

__all__ = ["train"]
