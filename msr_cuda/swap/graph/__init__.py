"""Rewrites graphs: for what a model does in its own ``forward``, where no module is to be swapped.

::

    compiled = torch.compile(model, backend="msr_cuda")
    with msr_cuda.swap.recording() as reports:
        compiled(x)
    print(*reports)  # each site: fused how, or left and why

The backend takes the graph that Dynamo captures, replaces resampling and what its result goes to by
one call of an operator each, and hands the graph to Inductor, or to the backend that
``options={"inner": "eager"}`` names. Nothing of PyTorch is patched, and the model itself stays as
it is. Training, dynamic shapes, autocast, ``fullgraph=True``, ``channels_last`` and modules that
:func:`msr_cuda.fuse` swapped before work as with the inner backend. Where the package is not
installed, but only on the path, pass ``backend=msr_cuda.swap.backend``.

What is recognized, in any of PyTorch's spellings (functions, methods, operators, modules, in
place):

- ``interpolate``, also as ``nn.Upsample``; a map of one pixel that is expanded over the image; in
  sums max- and average-pooling, too;
- summed: ``+``, ``-``, ``sum`` of a ``stack`` or list, trees of them, up to eight maps, with
  numbers and tensors as factors: one for the map, one per channel (gates ``[N, C, 1, 1]``), or one
  per pixel (``[N, 1, H, W]``); concatenated along the channels; or the ``maximum`` of them, where
  no gradient is asked for;
- followed by relu, relu6, leaky_relu (slope 0.01), silu, gelu (exact), hardswish or sigmoid;
- logits that go to ``cross_entropy``, ``nll_loss`` of ``log_softmax``,
  ``binary_cross_entropy_with_logits``, ``argmax``, ``max`` or ``topk(1)`` over the classes (also of
  the softmax, and with the winning probability), to one of these or to several, and to nothing
  else: each takes the logits before the upsampling. Losses are computed in float32, and
  differentiable once.

A site is left alone, and the report says why, where the result could differ: the resampled map has
other users, shapes are broadcast or not known to be equal, something in between writes to what is
read, memory that is changed in place is read later, autocast or gradients are switched in between,
or the result would lie in memory in another order. The result has the dtype that PyTorch gives it,
but for CUDA autocast: there it has the dtype of the maps, as everywhere in this package.

``options={"fuse": "all"}`` fuses every site; ``"auto"``, the default, leaves some to Inductor: see
:func:`msr_cuda.swap.graph.objection`.

:func:`rewrite` does the same to a ``torch.fx`` graph, without ``torch.compile``.
"""

from ._backend import backend
from ._policy import objection
from ._report import GraphReport, GraphSite, recording
from ._rewrite import rewrite

__all__ = ["GraphReport", "GraphSite", "backend", "objection", "recording", "rewrite"]
