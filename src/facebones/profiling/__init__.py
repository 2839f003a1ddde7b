"""The cost of a network: counted (parameters, MACs) and measured (latency, throughput, memory)."""

from facebones.profiling.conditions import Conditions

__all__ = ["Conditions"]
