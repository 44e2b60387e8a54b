"""What the frozen encoders make of every picture, computed once (`reca-fast cache`): training from it needs neither."""

from .make import make_cache

__all__ = ["make_cache"]
