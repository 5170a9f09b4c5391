"""Random programs: whatever is rewritten, values, gradients and changed memory are the same."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import Spy, compile_with, doubles
from swapping import one_thread, weigh  # noqa: F401
from torch import Tensor, nn

from msr_cuda import testing

# Without kernels, nothing is fused by default.
pytestmark = pytest.mark.usefixtures("kernels")

SIZES = [(4, 6), (8, 12), (16, 24)]
MODES = ["nearest", "bilinear", "bicubic", "area", "nearest-exact"]
PROGRAMS = int(os.environ.get("MSR_CUDA_EXAMPLES", "25"))


class Program(nn.Module):
    """Steps on a list of maps; each takes some by number, and may append one.

    Losses and decisions go to a second list.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        random_ = random.Random(seed)
        self.gate = nn.Parameter(torch.rand(3, generator=torch.Generator().manual_seed(seed)))
        self.text: list[str] = []
        self.steps: list[Callable[[list[Tensor], list[Tensor]], object]] = []
        sizes = [*range(len(SIZES))] * 2  # of the maps: the inputs, and copies that may be changed
        for _ in range(random_.randint(4, 14)):
            self._add_step(random_, sizes)
        count = random_.randint(1, 4)
        self.results = sorted({len(sizes) - 1, *random_.choices(range(len(sizes)), k=count)})

    def _add_step(self, choose: random.Random, sizes: list[int]) -> None:
        i = choose.randrange(len(sizes))
        same = [k for k, size in enumerate(sizes) if size == sizes[i]]
        j, mode, number = choose.choice(same), choose.choice(MODES), choose.choice([-1, 0.5, 2])
        like = choose.randrange(len(sizes))
        in_place = choose.randrange(3, len(sizes))
        pair = choose.choice([k for k, size in enumerate(sizes) if size == sizes[in_place]])
        factor = 2.0 ** (sizes[like] - sizes[i])
        g = choose.randrange(3)
        smoothing, reduction = choose.choice([0.0, 0.1]), choose.choice(["none", "mean", "sum"])

        def by_size(x: list[Tensor]) -> Tensor:
            return F.interpolate(x[i], x[like].shape[2:], mode=mode)

        def by_scale(x: list[Tensor]) -> Tensor:
            return F.interpolate(x[i], scale_factor=factor, mode=mode)

        def classes(x: list[Tensor]) -> Tensor:
            return x[like].argmax(1)

        def cross_entropy(x: list[Tensor]) -> Tensor:
            return F.cross_entropy(
                by_scale(x), classes(x), label_smoothing=smoothing, reduction=reduction
            )

        def likelihood(x: list[Tensor]) -> Tensor:
            return F.nll_loss(
                by_size(x).log_softmax(1), classes(x), self.gate.detach().repeat(2)[:4]
            )

        def binary_cross_entropy(x: list[Tensor]) -> Tensor:
            masks = x[like].detach()
            return F.binary_cross_entropy_with_logits(by_size(x), masks, reduction=reduction)

        def several(x: list[Tensor]) -> Tensor:
            logits = by_size(x)
            share = (logits.argmax(1) == classes(x)).to(logits.dtype).mean()
            return F.cross_entropy(logits, classes(x)) + share

        def in_part(x: list[Tensor]) -> None:
            x[in_place][:, 1:].mul_(number)

        makes: dict[str, tuple[Callable[[list[Tensor]], Tensor], int]] = {
            f"size {i} {like} {mode}": (by_size, sizes[like]),
            f"scale {i} {like} {mode}": (by_scale, sizes[like]),
            f"add {i} {j}": (lambda x: x[i] + x[j], sizes[i]),
            f"alpha {i} {j}": (lambda x: x[i].add(x[j], alpha=number), sizes[i]),
            f"sub {i} {j}": (lambda x: x[i] - x[j], sizes[i]),
            f"mul {i}": (lambda x: x[i] * number, sizes[i]),
            f"weight {i}": (lambda x: self.gate[g] * x[i], sizes[i]),
            f"channels {i} {j}": (lambda x: x[i] * x[j].mean((2, 3), True), sizes[i]),
            f"stack {i} {j}": (lambda x: torch.stack([x[i], x[j]], 1).mean(1), sizes[i]),
            f"cat {i} {j}": (lambda x: torch.cat([x[i], x[j]], 1)[:, ::2], sizes[i]),
            f"relu {i}": (lambda x: F.relu(x[i]), sizes[i]),
            f"silu {i}": (lambda x: F.silu(x[i]), sizes[i]),
            f"view {i}": (lambda x: x[i][:], sizes[i]),
        }
        changes: dict[str, Callable[[list[Tensor]], object]] = {
            f"add_ {in_place} {pair}": lambda x: x[in_place].add_(x[pair]),
            f"relu_ {in_place}": lambda x: F.relu(x[in_place], inplace=True),
            f"mul_ {in_place}": lambda x: x[in_place].mul_(number),
            f"part {in_place}": in_part,
        }
        ends: dict[str, Callable[[list[Tensor]], Tensor]] = {
            f"cross entropy {i} {like} {mode} {reduction}": cross_entropy,
            f"likelihood {i} {like} {mode}": likelihood,
            f"binary {i} {like} {mode} {reduction}": binary_cross_entropy,
            f"argmax {i} {like} {mode}": lambda x: by_scale(x).argmax(1, keepdim=True),
            f"indices {i} {like} {mode}": lambda x: by_size(x).softmax(1).max(1)[1],
            f"several {i} {like} {mode}": several,
        }
        name = choose.choice([*list(makes)[:3] * 3, *makes, *changes, *ends])
        self.text.append(name)
        if name in changes:
            self.steps.append(lambda x, _: changes[name](x))
        elif name in ends:
            self.steps.append(lambda x, found: found.append(ends[name](x)))
        else:
            make, size = makes[name]
            sizes.append(size)
            self.steps.append(lambda x, _: x.append(make(x)))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        maps = [*inputs, *(x * 1.5 for x in inputs)]
        found: list[Tensor] = []
        for step in self.steps:
            step(maps, found)
        return [*(maps[i] for i in self.results), *found]


def run(program: nn.Module, inputs: tuple[Tensor, ...], gradient: bool) -> list[Tensor] | None:
    """Results and gradients; None: it changes in place what must not be, for the backward."""
    inputs = tuple(x.clone().requires_grad_(gradient) for x in inputs)
    try:
        results = program(*inputs)
        found = [y.detach().clone() for y in results]
        if gradient:
            leaves = [*inputs, *program.parameters()]
            loss = weigh({str(i): y for i, y in enumerate(results)})
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            found += [torch.zeros(1) if g is None else g for g in gradients]
    except RuntimeError as error:
        if not gradient or not re.search("in-?place operation", str(error)):
            raise
        return None
    return found


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_random_programs(gradient: bool) -> None:
    inputs = doubles(*((2, 4, *size) for size in SIZES))
    operators: Counter[str] = Counter()
    compared = 0
    for seed in range(PROGRAMS):
        program = Program(seed).double()
        expected = run(program, inputs, gradient)
        if expected is None:
            continue
        torch._dynamo.reset()
        spy = Spy()
        actual = run(compile_with(program, spy), inputs, gradient)
        where = f"program {seed}: {program.text}, results {program.results}"
        assert actual is not None, where
        for y, truth in zip(actual, expected, strict=True):
            assert y.shape == truth.shape and y.stride() == truth.stride(), where
            error, largest = (y - truth).abs().max(), truth.abs().max()
            assert error <= testing.SWAPPED_RTOL * largest, where
        operators += spy.count()
        compared += 1
    assert compared > PROGRAMS // 2
    assert operators["resample_sum"] > 2 and operators["resample_cat"] > 0
    ends = (
        "resample_cross_entropy",
        "resample_binary_cross_entropy_with_logits",
        "resample_argmax",
    )
    assert all(operators[name] > 0 for name in ends)
