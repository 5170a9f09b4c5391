"""Calls from worker processes, from threads at once, many times over, and interrupted ones."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import msr_cuda

#: Calls of the test for leaks; a long run takes 100,000.
CALLS = int(os.environ.get("MSR_CUDA_EXAMPLES", "2000"))


def step(seed: int) -> tuple[Tensor, ...]:
    """A result and its gradients, of several operators; the same bits for a seed."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, 5, n, n + 1, generator=generator).requires_grad_() for n in (16, 9, 5)]
    weights = torch.rand(3, generator=generator).requires_grad_()
    total = msr_cuda.resample_sum(
        maps, weights=weights, normalize="softmax", mode="bilinear", activation="silu"
    )
    joined = msr_cuda.resample_cat(maps, mode="nearest", activation="relu")
    labels = torch.randint(0, 5, (2, 31, 40), generator=generator)
    loss = msr_cuda.resample_cross_entropy(maps[1], labels, mode="bilinear")
    grads = torch.autograd.grad(
        total.square().sum() + joined.square().sum() + loss, [*maps, weights]
    )
    return total.detach(), joined.detach(), loss.detach(), *grads


class Steps(Dataset[tuple[Tensor, ...]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return step(index)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loader_workers(method: str) -> None:
    """Also after the parent has used its own threads, which a forked child does not have."""
    if method not in multiprocessing.get_all_start_methods():
        return  # not on this platform
    expected = [step(index) for index in range(len(Steps()))]
    loader = DataLoader(Steps(), batch_size=None, num_workers=2, multiprocessing_context=method)
    for found, one in zip(loader, expected, strict=True):
        assert_same(tuple(found), one)


def test_threads_at_once() -> None:
    """Plans and tap tables are shared by threads; sizes differ, so that some are evicted."""
    seeds = [number % 7 for number in range(56)]
    expected = {seed: step(seed) for seed in set(seeds)}
    sizes = list(range(17, 45))

    def other(size: int) -> Tensor:
        x = torch.arange(12.0).view(1, 1, 3, 4)
        result = msr_cuda.resample(x, size=(size, 2 * size), mode="bicubic")
        assert isinstance(result, Tensor)
        return result

    alone = [other(size) for size in sizes]
    with ThreadPoolExecutor(8) as pool:
        steps = pool.map(step, seeds)
        others = pool.map(other, sizes * 2)
        for seed, found in zip(seeds, steps, strict=True):
            assert_same(found, expected[seed])
        for found, one in zip(others, alone * 2, strict=True):
            assert torch.equal(found, one)


def test_a_thread_that_ends_takes_its_scratch_with_it_only() -> None:
    """Scratch memory belongs to threads; a new one begins with none."""
    expected = step(3)
    for _ in range(20):
        found: list[tuple[Tensor, ...]] = []
        thread = threading.Thread(target=lambda into=found: into.append(step(3)))
        thread.start()
        thread.join()
        assert_same(found[0], expected)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_memory_does_not_grow() -> None:
    """Sizes come back in turn; more sizes than the caches keep."""

    def calls(count: int) -> None:
        for number in range(count):
            x = torch.empty(1, 2, 8 + number % 5, 9).requires_grad_()
            size = (20 + number % 97, 31)
            y = msr_cuda.resample_sum([x, x], size, mode=("bilinear", "area")[number % 2])
            y.backward(torch.ones_like(y))

    calls(500)
    gc.collect()
    before = resident_bytes()
    calls(CALLS)
    gc.collect()
    grown = resident_bytes() - before
    # A leak of a single map per call would be 5 KB at least.
    assert grown < 2_000_000 + 500 * CALLS, f"{grown} bytes after {CALLS} calls"


@pytest.mark.skipif(os.name == "nt", reason="no POSIX signals")
def test_an_interrupt_ends_a_loop_of_calls() -> None:
    """Ctrl-C raises KeyboardInterrupt after the call that runs, and the next calls work."""
    program = """
import signal, torch, msr_cuda
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for background jobs
x = torch.rand(1, 8, 64, 64)
expected = msr_cuda.resample(x, size=(128, 128), mode="bilinear")
print("ready", flush=True)
try:
    while True:
        msr_cuda.resample(x, size=(128, 128), mode="bilinear")
except KeyboardInterrupt:
    again = msr_cuda.resample(x, size=(128, 128), mode="bilinear")
    print("same" if torch.equal(again, expected) else "differs", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)  # somewhere in the loop
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert output == "same\n"
    assert process.returncode == 0
