"""Swaps known modules of a model for twins that run the fused operators; undoable.

    report = msr_cuda.fuse(model)     # in place
    print(report)                     # what was fused how, what was left and why
    msr_cuda.unfuse(model)            # exactly the model as it was

    with msr_cuda.fused(model):       # or for a while
        ...

    print(msr_cuda.verify(model, x))  # fused against not: outputs and gradients

A swapped module stays the same object, with its parameters, buffers, hooks and flags; only its
class changes, to a subclass that overrides ``forward`` alone. :func:`register` teaches :func:`fuse`
modules of your own.
"""

from ._fuse import fuse, fused, unfuse
from ._measure import Traffic
from ._registry import register, unregister
from ._report import Report, Site
from ._source import fingerprint
from ._verify import Verification, verify

__all__ = [
    "Report",
    "Site",
    "Traffic",
    "Verification",
    "fingerprint",
    "fuse",
    "fused",
    "register",
    "unfuse",
    "unregister",
    "verify",
]
