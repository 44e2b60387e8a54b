"""Parity with the authors' code: what it computed was recorded, and is computed again by the code that trains."""

from .case import BagelCase

__all__ = ["BagelCase"]
