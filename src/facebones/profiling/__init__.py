"""`facebones profile`: what a network costs, counted and measured."""

from facebones.profiling.conditions import Conditions
from facebones.profiling.profile import profile

__all__ = ["Conditions", "profile"]
