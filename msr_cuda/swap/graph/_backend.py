"""The backend of ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from ._rewrite import check_fuse, rewrite_in_place
from ._values import EXAMPLE_VALUE

_NAME = "msr_cuda"


def backend(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """What ``torch.compile(model, backend="msr_cuda")`` runs; see :mod:`msr_cuda.swap.graph`.

    Args:
        graph_module: what Dynamo captured; it is changed.
        example_inputs: as the inner backend takes them.
        options: ``inner``, the backend that compiles the rewritten graph, by its name or itself
            (default: ``"inductor"``); ``fuse``, ``"auto"`` (default) or ``"all"``; the others are
            Inductor's.
        mode: of :func:`torch.compile`, for Inductor.

    Raises:
        ValueError: an unknown option or value.
    """
    others = dict(options or {})
    inner, fuse = others.pop("inner", "inductor"), others.pop("fuse", "auto")
    check_fuse(_NAME, fuse)
    compile_inner = _inner(inner, others, mode)
    inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    for node, value in zip(inputs, example_inputs, strict=False):
        # DDP hands over parts of what Dynamo captured, which know less.
        node.meta.setdefault(EXAMPLE_VALUE, value)
    inner_name = inner if isinstance(inner, str) else None
    rewrite_in_place(graph_module, inner=inner_name, fuse=fuse, guarded=True)
    return compile_inner(graph_module, example_inputs)


def _inner(
    name: str | Callable[..., Any], options: dict[str, Any], mode: str | None
) -> Callable[..., Any]:
    """The inner backend as a function of graph and inputs."""
    # Imported late: importing it takes seconds, and who compiles has it anyway.
    from torch._dynamo.backends.registry import list_backends, lookup_backend

    known = set(list_backends(exclude_tags=None)) - {_NAME}
    if not callable(name) and name not in known:
        raise ValueError(
            f"{_NAME}: expected inner to be one of {', '.join(sorted(known))}, got {name!r}"
        )
    compiler: Callable[..., Any] = lookup_backend(name)
    if not options and mode is None:
        return compiler
    if name != "inductor":
        given = [*options, *(["mode"] if mode is not None else [])]
        raise ValueError(f"{_NAME}: expected only options inner and fuse with {name}, got {given}")
    import torch._inductor as inductor

    unknown = set(options) - set(inductor.list_options())
    if unknown:
        raise ValueError(f"{_NAME}: expected inner, fuse or an option of Inductor, got {unknown}")
    patches = {**(inductor.list_mode_options(mode) if mode is not None else {}), **options}
    return lambda graph, inputs: compiler(graph, inputs, config_patches=patches)
