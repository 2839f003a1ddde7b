"""Margins on cosines and the class centres that training needs; nothing of this is kept for recognition."""

from facebones.heads.margins import arcface, combined_margin, cosface
from facebones.heads.partial_fc import PartialFC

__all__ = ["PartialFC", "arcface", "combined_margin", "cosface"]
