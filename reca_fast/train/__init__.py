"""The only room that knows all rooms: it assembles a run and drives it."""

from .run import train

__all__ = ["train"]
