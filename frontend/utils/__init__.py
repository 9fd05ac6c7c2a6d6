"""Utilities: ``weft.utils.data``."""

from weft.utils import data

__all__ = ["data"]
