"""Swaps known modules of a model for twins that run the fused operators; undoable.

::

    report = msr_cuda.fuse(model)     # in place
    print(report)                     # what was fused how, what was left and why
    msr_cuda.unfuse(model)            # exactly the model as it was

    with msr_cuda.fused(model):       # or for a while
        ...

    print(msr_cuda.verify(model, x))  # fused against not: outputs and gradients

A swapped module stays the same object, with its parameters, buffers, hooks and flags; only its
class changes, to a subclass that overrides ``forward`` alone. :func:`register` teaches :func:`fuse`
modules of your own. What a model does in its own ``forward`` only a graph shows:
``torch.compile(model, backend="msr_cuda")``, see :mod:`msr_cuda.swap.graph`.
"""

from ._fuse import fuse, fused, unfuse
from ._measure import Traffic
from ._registry import register, unregister
from ._report import Report, Site
from ._source import fingerprint
from ._verify import Verification, verify
from .graph import GraphReport, GraphSite, backend, recording, rewrite

__all__ = [
    "GraphReport",
    "GraphSite",
    "Report",
    "Site",
    "Traffic",
    "Verification",
    "backend",
    "fingerprint",
    "fuse",
    "fused",
    "recording",
    "register",
    "rewrite",
    "unfuse",
    "unregister",
    "verify",
]
