"""The cases: multi-scale steps of real networks, at sizes they run at.

Each is defined once, as the plain PyTorch that people write (:attr:`Workload.eager`) and as calls
of msr_cuda (:attr:`Workload.fused`); tests and benchmarks take both from here.
"""

from .core import (
    DTYPES,
    LAYOUTS,
    SMALL,
    TINY,
    Parameter,
    Shape,
    Size,
    Tensors,
    Traffic,
    Workload,
    fused_traffic,
    memory_format,
    parse_size,
)
from .grid import WORKLOADS, Cell, cells, make_inputs

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "SMALL",
    "TINY",
    "WORKLOADS",
    "Cell",
    "Parameter",
    "Shape",
    "Size",
    "Tensors",
    "Traffic",
    "Workload",
    "cells",
    "fused_traffic",
    "make_inputs",
    "memory_format",
    "parse_size",
]
