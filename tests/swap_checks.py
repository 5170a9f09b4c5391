"""What holds for every swapped model. Called by ``test_swap_models.py``."""

from __future__ import annotations

import copy
import fnmatch
import sys

import torch
from conftest import ROOT, missing, need_kernel, require_or_skip
from swapping import Outputs, weigh
from torch import Tensor, nn
from tracing import Call
from zoo import LIBRARIES, Model, models, offline

from msr_cuda import testing
from msr_cuda.swap import Report, fuse, unfuse

sys.path.insert(0, str(ROOT / "build_tools"))
import model_table


def get(library: str, name: str) -> Model:
    """A model of the zoo, if its library is there."""
    with offline():
        for needed in LIBRARIES[library]:
            require_or_skip(needed)
    return models(library)[name]


def fused_copy(model: nn.Module) -> tuple[nn.Module, Report]:
    """A swapped copy. A model may also have nothing to swap, which is not what is tested here."""
    twin = copy.deepcopy(model)
    return twin, fuse(twin)


def unexplained(calls: list[Call], report: Report) -> list[Call]:
    """Calls that resample for a fusion, in modules that the report does not list as left alone."""
    left = [name for site in report.skipped for name in site.names]
    return [
        call
        for call in calls
        if call.counts
        and call.is_fused
        and call.function == "interpolate"
        and not any(call.module == name or call.module.startswith(f"{name}.") for name in left)
    ]


def check_sites(library: str, name: str, entry: Model) -> None:
    """Every traced resampling is done by an operator, or explained; docs/models.md says the same.

    Where nothing is fused, the report says so of each place.
    """
    need_kernel("cpu")  # the reference calls PyTorch's poolings, which the tracer would count
    row, report, before, after = model_table.examine(name, entry)
    assert unexplained(after, report) == []
    # Nothing was lost: what PyTorch does not resample any more, the operators do.
    gone = sum(call.counts for call in before) - sum(call.counts for call in after)
    assert gone == row.fused + row.alone
    if not report.swapped:
        left = {left_name for site in report.skipped for left_name in site.names}
        assert {call.module for call in after if call.function == "interpolate"} <= left
    sections = documented()
    head = model_table.heading(library)
    if head not in sections:
        missing(f"docs/models.md is of another version than {head[3:]}")
    assert [r for r in sections[head] if r.startswith(f"| {name} |")] == [str(row)]


def documented() -> dict[str, list[str]]:
    """The rows of docs/models.md, by heading."""
    sections: dict[str, list[str]] = {}
    for line in model_table.DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            rows = sections[line] = []
        elif line.startswith("| ") and not line.startswith("| model |"):
            rows.append(line)
    return sections


def run(entry: Model, model: nn.Module, x: Tensor) -> tuple[Outputs, Outputs]:
    """Results, and gradients of the images and of the parameters."""
    model.zero_grad()
    x = x.detach().requires_grad_()
    torch.manual_seed(8)  # for dropout
    outputs = {key: value for key, value in entry.run(model, x).items() if value.requires_grad}
    weigh(outputs).backward()
    gradients = {} if x.grad is None else {"the images": x.grad}
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[key] = parameter.grad
    return {key: value.detach() for key, value in outputs.items()}, gradients


def check_float64(entry: Model, *, training: bool) -> None:
    """Outputs and gradients are within 1e-9 of their largest magnitude; no weight's is zero."""
    model = entry.new().double().train(training)
    twin, _ = fused_copy(model)
    x = entry.images(torch.float64)
    if not training:
        # Maps of both layouts meet.
        for module in (model, twin):
            _to_channels_last(module)
        x = x.to(memory_format=_CHANNELS_LAST[x.dim()])
    expected, actual = run(entry, model, x), run(entry, twin, x)
    largest_gradient = max(float(g.abs().max()) for g in expected[1].values())
    for kind, (wanted, found) in enumerate(zip(expected, actual, strict=True)):
        assert found.keys() == wanted.keys()
        assert wanted
        for key, truth in wanted.items():
            largest = float(truth.abs().max())
            error = float((found[key] - truth).abs().max())
            assert found[key].dtype == truth.dtype and found[key].shape == truth.shape
            if kind and largest < 1e-12 * largest_gradient:
                # Zero but for rounding: a bias ahead of a batch norm, or of the keys of attention.
                assert key.endswith("bias") or _is_listed(key, entry), f"no gradient of {key}"
                largest = largest_gradient
            assert largest > 0, f"{key} is zero, so the comparison says nothing"
            assert error <= testing.SWAPPED_RTOL * largest, f"{key} is off by {error / largest}"
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and key not in expected[1]:
            assert _is_listed(key, entry), f"no gradient of {key}"


def _is_listed(key: str, entry: Model) -> bool:
    return any(fnmatch.fnmatch(key, pattern) for pattern in entry.no_gradient)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _to_channels_last(model: nn.Module) -> None:
    """If its convolutions are of one rank: PyTorch converts no others."""
    ranks = {parameter.dim() for parameter in model.parameters()} & set(_CHANNELS_LAST)
    if len(ranks) == 1:
        model.to(memory_format=_CHANNELS_LAST[ranks.pop()])


def check_undo(entry: Model) -> None:
    """Only classes change; copies work; everything comes back, bit for bit."""
    model = entry.new()
    x = entry.images()
    original = copy.deepcopy(model)
    modules, parameters = list(model.modules()), list(model.parameters())
    with torch.no_grad():
        expected = entry.run(original, x)
        report = fuse(model)
        swapped = entry.run(model, x)
        twin = copy.deepcopy(model)
        assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert list(model.state_dict()) == list(original.state_dict())
        model.load_state_dict(original.state_dict())
        for other in (twin, model):
            assert_equal(entry.run(other, x), swapped)
            assert unfuse(other) >= len(report.swapped)
            assert [type(m) for m in other.modules()] == [type(m) for m in original.modules()]
            assert_equal(entry.run(other, x), expected)


def assert_equal(actual: Outputs, expected: Outputs) -> None:
    """Bitwise."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def check_autocast(entry: Model) -> None:
    """Under autocast, results have the dtype they had, and an error that is no larger."""
    model = entry.new()
    twin, _ = fused_copy(model)
    x = entry.images()
    with torch.no_grad():
        truth = entry.run(copy.deepcopy(model).double(), x.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, actual = entry.run(model, x), entry.run(twin, x)
    errors: list[float] = []
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        before, after = (float((y[key].double() - truth[key]).norm()) for y in (expected, actual))
        # That of a single number, as a loss is, is chance.
        if before > 0 and value.dim() > 0:
            errors.append(after / before)
    # The rounding of a whole network, seen once: the norm over a map hardly varies.
    assert errors and max(errors) <= testing.SWAPPED_ERROR_RATIO


def check_compile(entry: Model) -> None:
    """Dynamo captures the swapped modules; the result is that of eager."""
    need_kernel("cpu")  # without, Dynamo would only spend its time on the reference
    twin, report = fused_copy(entry.new())
    x = entry.images()
    torch._dynamo.reset()
    with torch.no_grad():
        expected = entry.run(twin, x)
        # One of each class: compiling takes longer than all else here.
        for site in {site.twin: site for site in report.swapped}.values():
            twin.get_submodule(site.names[0]).compile(backend="eager", fullgraph=True)
        actual = entry.run(twin, x)
    torch._dynamo.reset()
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value)
