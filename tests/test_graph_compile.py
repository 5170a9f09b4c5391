"""The backend of torch.compile: names and options, dynamic shapes, layouts, dtypes, training."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import (
    Function,
    Spy,
    assert_same,
    check,
    compile_with,
    doubles,
    outputs_and_gradients,
)
from swapping import UNet, images, one_thread  # noqa: F401
from torch import Tensor, nn

from msr_cuda import swap

# Without kernels, nothing is fused by default.
pytestmark = pytest.mark.usefixtures("kernels")

A, B, C = (2, 4, 9, 14), (2, 4, 5, 7), (2, 4, 18, 28)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def up(x: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode=mode)


class InlineUNet(nn.Module):
    """As people write it: everything in forward, for any size of image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down1 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.merge2 = nn.Sequential(nn.Conv2d(28, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.lateral = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)
        self.weights = nn.Parameter(torch.tensor([1.0, 0.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x1 = F.silu(self.stem(x))
        x2 = F.silu(self.down1(x1))
        x3 = F.silu(self.down2(x2))
        y = F.interpolate(x3, size=x2.shape[-2:], mode="nearest")
        y = F.relu(self.merge2(torch.cat([y, x2], dim=1)), inplace=True)
        z = self.lateral(x1)
        z += F.interpolate(y, size=z.shape[-2:], mode="bilinear", align_corners=False)
        low = F.interpolate(y[:, :, ::2, ::2], size=x.shape[-2:], mode="bicubic")
        z = self.weights[0] * z + self.weights[1] * low + self.weights[2] * x1
        return self.head(F.leaky_relu(z, 0.01, inplace=True))


SITES = {"resample_cat": 1, "resample_sum": 2}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_a_unet(training: bool, channels_last: bool) -> None:
    model = InlineUNet().double().train(training)
    (x,) = doubles((2, 3, 21, 30))
    if channels_last:
        model, x = (v.to(memory_format=torch.channels_last) for v in (model, x))
    state = copy.deepcopy(model.state_dict())
    spy, (report,) = check(model, (x,))
    assert spy.count() == SITES
    assert list(model.state_dict()) == list(state)
    (cat, lateral, sum_) = report.swapped
    assert cat.operator == "resample_cat" and sum_.how.endswith("leaky_relu")
    assert "2 maps" in lateral.how and "3 maps" in sum_.how and "scalar weights" in sum_.how
    assert cat.line is not None and cat.line.endswith(
        "y = F.relu(self.merge2(torch.cat([y, x2], dim=1)), inplace=True)"
    )
    assert Path(cat.line.partition(":")[0]).name == Path(__file__).name
    assert report.to_dict()["swapped"][0]["nodes"] == list(cat.nodes)


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_inner_backends(inner: str) -> None:
    model = InlineUNet().double()
    (x,) = doubles((1, 3, 16, 20))
    expected = outputs_and_gradients(copy.deepcopy(model), (x,))
    compiled = torch.compile(
        copy.deepcopy(model), backend=swap.backend, fullgraph=True, options={"inner": inner}
    )
    with swap.recording() as reports:
        actual = outputs_and_gradients(compiled, (x,))
    assert_same(expected, {k.replace("_orig_mod.", ""): v for k, v in actual.items()})
    assert Counter(site.operator for site in reports[0].swapped) == SITES


def test_options_of_inductor_and_modes() -> None:
    a, b = doubles(A, B)
    function = lambda a, b: F.relu(a + up(b, a))
    expected = function(a, b)
    for given in ({"options": {"epilogue_fusion": False}}, {"mode": "max-autotune-no-cudagraphs"}):
        compiled = torch.compile(function, backend=swap.backend, **given)
        torch.testing.assert_close(compiled(a, b), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"inner": "msr_cuda"}}, "expected inner to be one of .*inductor.*got 'msr_cu"),
        ({"options": {"inner": "fast"}}, "expected inner to be one of .*got 'fast'"),
        ({"options": {"fuse": "some"}}, 'expected fuse to be "auto" or "all", got \'some\''),
        ({"options": {"fast": 1}}, "expected inner, fuse or an option of Inductor, got .*fast"),
        ({"options": {"inner": "eager", "x": 1}}, "only options inner and fuse with eager, got"),
    ],
)
def test_wrong_options(given: dict[str, Any], message: str) -> None:
    compiled = torch.compile(lambda x: x + 1, backend=swap.backend, **given)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message):
        compiled(torch.ones(2))


def test_backend_is_known_by_name_where_it_is_installed(tmp_path: Path) -> None:
    """An entry point as pyproject.toml has it, found in a new process."""
    root = Path(__file__).resolve().parent.parent
    declared = '[project.entry-points."torch_dynamo_backends"]\nmsr_cuda = "'
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    value = text.partition(declared)[2].partition('"')[0]
    assert metadata.EntryPoint("msr_cuda", value, "torch_dynamo_backends").load() is swap.backend
    distribution = tmp_path / "msr_cuda-0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: msr-cuda\nVersion: 0\n")
    (distribution / "entry_points.txt").write_text(f"[torch_dynamo_backends]\nmsr_cuda = {value}\n")
    program = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]
import torch, torch.nn.functional as F
function = lambda a, b: F.relu(a + F.interpolate(b, size=a.shape[2:]))
compiled = torch.compile(function, backend="msr_cuda", options={{"inner": "eager"}})
a, b = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 3, 4)
assert torch.equal(compiled(a, b), function(a, b))
print("msr_cuda" in torch.compiler.list_backends())
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "True"


# Dynamic shapes.

DYNAMIC = {
    "sizes": lambda a, b, c: F.relu(a + up(b, a) + up(c, a)),
    "factors": lambda a, b, c: torch.cat([F.interpolate(b, scale_factor=2), a], 1),
    "pools": lambda a, b, c: a + F.max_pool2d(c, 2) + F.interpolate(b, scale_factor=2.0),
    "gates": lambda a, b, c: a * a.mean((2, 3), keepdim=True) + up(c, a),
    "pixels": lambda a, b, c: a * a.mean(1, keepdim=True) + up(b, a),
    "only factors": lambda a, b, c: F.gelu(
        nn.Upsample(scale_factor=2)(b) - F.interpolate(c, scale_factor=(0.5, 0.5))
    ),
}


def mark(module: nn.Module, maps: tuple[Tensor, ...]) -> None:
    for x in maps:
        for axis in (0, 2, 3):
            torch._dynamo.maybe_mark_dynamic(x, axis)


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "dynamic") for name in DYNAMIC), ("sizes", "marked"), ("pools", "marked")],
)
def test_one_graph_for_all_sizes(name: str, how: str) -> None:
    def inputs(n: int, h: int, w: int) -> tuple[Tensor, ...]:
        return doubles((n, 3, 2 * h, 2 * w), (n, 3, h, w), (n, 3, 4 * h, 4 * w))

    model = Function(DYNAMIC[name], inputs(2, 5, 7)).double()
    spy = Spy()
    compiled = compile_with(
        model, spy, dynamic=True if how == "dynamic" else None, inner="aot_eager"
    )
    if how == "marked":
        compiled.register_forward_pre_hook(mark)
    with swap.recording() as reports:
        for n, h, w in ((2, 5, 7), (3, 6, 11), (5, 9, 4)):
            maps = inputs(n, h, w)
            expected = outputs_and_gradients(model, maps)
            actual = outputs_and_gradients(compiled, maps)
            assert_same(expected, {k.replace("_orig_mod.", ""): v for k, v in actual.items()})
    (report,) = reports  # one graph was compiled
    assert [site.operator for site in report.swapped] == [
        "resample_cat" if name == "factors" else "resample_sum"
    ]
    assert not report.skipped
