"""The only room that knows all rooms: it assembles a run and drives it."""

from .run import run

__all__ = ["run"]
