"""Time and peak memory of the demo's networks and of their fusions alone, as tables."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import detector
import hed
import torch
from checks import Subject
from demo_pictures import batch_of, detector_input, width_by_height
from demo_state import Demo, Measurement
from torch import Tensor, nn

import msr_cuda
from benchmarks import measure
from benchmarks.text import format_bytes, format_seconds

CONTENDERS = EAGER, COMPILED, OURS = ("PyTorch eager", "torch.compile", "msr_cuda")
DIRECTIONS = ("forward", "forward + backward")


class Contender(NamedTuple):
    """One way to compute a table's step."""

    forward: Callable[[], object]
    step: Callable[[], object]  # forward and backward
    reset: Callable[[], None]  # drops the gradients


def function_contender(function: Callable[[Sequence[Tensor]], Any], maps: Sequence[Tensor],
                       parameters: Sequence[Tensor] = ()) -> Contender:  # fmt: skip
    """A fusion alone, with every gradient that it has in a network."""
    leaves = [*maps, *parameters]

    def reset() -> None:
        for leaf in leaves:
            leaf.grad = None

    with torch.no_grad():
        probe = function(maps)
    outputs = list(probe) if isinstance(probe, list) else [probe]
    # The coarsest level of a pyramid is its own input: no work, and no gradient of its own.
    grads = [torch.ones_like(output) for output in outputs]

    def forward() -> object:
        with torch.no_grad():
            return function(maps)

    def step() -> object:
        reset()
        result = function(maps)
        torch.autograd.backward(result, grads if isinstance(result, list) else grads[0])
        return result

    return Contender(forward, step, reset)


def model_contender(subject: Subject, model: nn.Module, image: Tensor) -> Contender:
    """Inference and a training step of a whole network."""

    def reset() -> None:
        model.zero_grad(set_to_none=True)

    def forward() -> object:
        with torch.no_grad():
            return subject.predict(model, image)

    def step() -> object:
        reset()
        outputs, loss = subject.learn(model, image)
        loss.backward()
        return outputs

    return Contender(forward, step, reset)


def compiled_contender(
    demo: Demo, table: str, make: Callable[[], Contender], allowed: float
) -> Contender | None:
    """The contender of torch.compile, compiled; None, and a line that says why, if there is none.

    Nothing that goes wrong in a compiler may end the demo.

    Args:
        demo: its time is what counts.
        table: the name of it.
        make: makes the contender; the first calls compile it.
        allowed: seconds that compiling may take; 0: it is not wanted.
    """
    if not allowed:
        return None
    # What is still to be measured without it needs time, too.
    if demo.seconds_left() - 45 < allowed:
        more = f"it may take {allowed:.0f} s; --minutes gives more time than {demo.minutes:g}"
        demo.leave_out(f"torch.compile of {table}: {more}")
        return None
    demo.display.line(f"  torch.compile compiles {table} (at most {allowed:.0f} s) ...")
    torch._dynamo.reset()
    measure.prepare_compiler(demo.device)
    try:
        with measure.time_limit(allowed):
            contender = make()
            contender.forward()
            contender.step()
            return contender
    except TimeoutError as error:
        demo.leave_out(f"torch.compile of {table}: {error}")
    except Exception as error:
        demo.leave_out(f"torch.compile of {table}: {measure.first_line(error)}")
    return None


def measure_table(demo: Demo, table: str, about: str, contenders: dict[str, Contender]) -> None:
    """Measures and prints one table."""
    settings = demo.settings
    contenders = {name: contenders[name] for name in CONTENDERS if name in contenders}
    found: dict[tuple[str, str], Measurement] = {}
    steps = len(DIRECTIONS) * len(contenders) * settings.rounds
    with demo.display.progress(table, steps) as tick:
        for direction in DIRECTIONS:
            calls = {
                name: contender.forward if direction == "forward" else contender.step
                for name, contender in contenders.items()
            }
            timings = measure.interleaved(
                calls, demo.device, rounds=settings.rounds, seconds=settings.seconds_per_table,
                tick=tick,
            )  # fmt: skip
            for name, contender in contenders.items():
                contender.reset()
                peak = measure.peak_memory(calls[name], demo.device)
                contender.reset()
                found[name, direction] = Measurement(
                    table, about, name, direction, timings[name], peak
                )
    demo.measurements += found.values()
    print_table(demo, table, about, found)


def print_table(
    demo: Demo, table: str, about: str, found: dict[tuple[str, str], Measurement]
) -> None:
    """Time and memory of each contender, and msr_cuda against the others."""
    show = demo.display
    names = list(dict.fromkeys(name for name, _ in found))
    repeats = {len(m.timing.samples) for m in found.values()}
    low, high = min(repeats), max(repeats)
    medians = f"medians of {low}" + (f" to {high}" if high > low else "")
    show.line()
    show.line(f"  {table}: {about}; {medians}")
    columns = (("forward", "time", "peak memory"), ("forward + backward", "time", "peak memory"))
    show.line(f"    {'':<15}" + "".join(f"{c[0]:>30}" for c in columns))
    show.line(f"    {'':<15}" + "".join(f"{c[1]:>16}{c[2]:>14}" for c in columns))
    for name in names:
        cells = [found[name, direction] for direction in DIRECTIONS]
        text = "".join(
            f"{format_seconds(c.timing.median):>16}{format_bytes(c.peak_bytes):>14}" for c in cells
        )
        show.line(f"    {name:<15}{text}")
    for other in (name for name in names if name != OURS):
        cells = []
        for direction in DIRECTIONS:
            ours, theirs = found[OURS, direction], found[other, direction]
            cells.append(f"{format_speed(theirs.timing, ours.timing):>16}")
            cells.append(f"{format_change(theirs.peak_bytes, ours.peak_bytes):>14}")
        label = "against eager" if other == EAGER else "against compile"
        show.line(f"    {label:<15}" + "".join(cells))


def format_speed(theirs: measure.Timing, ours: measure.Timing) -> str:
    """How many times as fast; below one said the other way round, so that nobody overlooks it.

    A ``~`` marks what may be chance.
    """
    ratio = theirs.median / ours.median
    if 0.97 <= ratio <= 1.03:
        return "same"
    text = f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"
    return f"~{text}" if measure.overlap(theirs, ours) else text


def format_change(before: int, after: int) -> str:
    """A difference in percent."""
    if before <= 0:
        return "-"
    percent = 100 * (after - before) / before
    return "same" if abs(percent) < 1 else f"{percent:+.0f} %"


def measure_hed_fusion(demo: Demo, subject: Subject) -> None:
    """HED's fusion alone."""
    batch, height, width = demo.settings.hed_maps
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(batch, 1, -(-height // 2**i), -(-width // 2**i), generator=generator)
        .to(demo.device)
        .requires_grad_()
        for i in range(len(hed.HED.STAGES))
    ]
    fuse = copy.deepcopy(subject.model.fuse)
    parameters = list(fuse.parameters())

    def contender(function: Callable[..., Tensor]) -> Contender:
        return function_contender(lambda inputs: function(inputs, fuse), maps, parameters)

    table = "HED's fusion alone"
    found = {EAGER: contender(hed.fuse_in_steps), OURS: contender(hed.fuse_in_one_pass)}
    compiled = compiled_contender(
        demo, table, lambda: contender(torch.compile(hed.fuse_in_steps)),
        demo.settings.compile_hed_fusion,
    )  # fmt: skip
    if compiled is not None:
        found[COMPILED] = compiled
    about = f"5 maps of 1 channel to {height} x {width}, batch {batch}, float32"
    measure_table(demo, table, about, found)


def measure_pyramid_fusion(demo: Demo) -> None:
    """The top-down path alone."""
    batch, height, width = demo.settings.pyramid_image
    channels = 256
    generator = torch.Generator().manual_seed(0)
    laterals = [
        torch.randn(batch, channels, -(-height // stride), -(-width // stride), generator=generator)
        .to(demo.device)
        .requires_grad_()
        for stride in (8, 16, 32)
    ]
    table = "The pyramid's merges alone"
    found = {
        EAGER: function_contender(detector.merge_in_steps, laterals),
        OURS: function_contender(detector.merge_in_one_pass, laterals),
    }
    compiled = compiled_contender(
        demo, table, lambda: function_contender(torch.compile(detector.merge_in_steps), laterals),
        demo.settings.compile_merges,
    )  # fmt: skip
    if compiled is not None:
        found[COMPILED] = compiled
    size = f"{-(-height // 8)} x {-(-width // 8)}"
    about = f"3 maps of {channels} channels, the finest {size}, batch {batch}, float32"
    measure_table(demo, table, about, found)


def measure_model(
    demo: Demo,
    subject: Subject,
    image: Tensor,
    compilable: Callable[[nn.Module], nn.Module],
    allowed: float,
) -> None:
    """A whole network: as it is, swapped, and its ``compilable`` part compiled in that time."""
    table = f"{subject.name}, whole"
    swapped = copy.deepcopy(subject.model)
    msr_cuda.fuse(swapped)

    def compiled() -> Contender:
        model = copy.deepcopy(subject.model)
        compilable(model).compile()
        return model_contender(subject, model, image)

    found = {
        EAGER: model_contender(subject, copy.deepcopy(subject.model), image),
        OURS: model_contender(subject, swapped, image),
    }
    contender = compiled_contender(demo, table, compiled, allowed)
    if contender is not None:
        found[COMPILED] = contender
    about = f"{width_by_height(image)} pixels, batch {len(image)}, float32"
    if COMPILED in found and compilable(subject.model) is not subject.model:
        about += ", torch.compile on the backbone with its pyramid"
    measure_table(demo, table, about, found)


def measurements_section(demo: Demo, hed_model: Subject | None, pyramid: Subject) -> None:
    """All tables, and what is slower."""
    show = demo.display
    show.heading("4. Time and peak memory, side by side on this machine")
    for text in (
        "The contenders take turns; medians are compared. Peak memory is what PyTorch's",
        "allocator held at most above what was there before, weights not counted. A ~",
        "marks what may be chance: the middle halves of the two series of times overlap.",
    ):
        show.line(f"  {text}")
    if not demo.settings.compile_hed_fusion:
        demo.leave_out("torch.compile (--quick)")
    # The fusions first: should the time run out, they are what has been compiled.
    if hed_model is not None:
        measure_hed_fusion(demo, hed_model)
    measure_pyramid_fusion(demo)
    if hed_model is not None:
        image = hed.to_input(demo.photographs[-1].pixels).to(demo.device)
        image = batch_of(image, demo.settings.hed_image)
        measure_model(demo, hed_model, image, lambda model: model, demo.settings.compile_hed)
    image = batch_of(detector_input(demo), demo.settings.detector_image)
    # The glue of a detector (lists of boxes) is no graph; what it spends its time on is.
    measure_model(
        demo, pyramid, image, lambda model: getattr(model, "backbone", model),
        demo.settings.compile_detector,
    )  # fmt: skip
    show.line()
    worse = slower_or_larger(demo.measurements)
    if worse:
        show.line("  Where msr_cuda is behind here:", "yellow")
        for text in worse:
            show.line(f"    {text}")
    else:
        show.line("  msr_cuda is behind in none of these, on this machine and at these sizes.")


def slower_or_larger(measurements: Sequence[Measurement]) -> list[str]:
    """One line for each comparison that msr_cuda loses by more than 3 % of time or memory."""
    by_place = {(m.table, m.direction, m.contender): m for m in measurements}
    lines = []
    for (table, direction, contender), theirs in by_place.items():
        ours = by_place[table, direction, OURS]
        ratio = ours.timing.median / theirs.timing.median
        if ratio > 1.03:
            chance = " (may be chance)" if measure.overlap(theirs.timing, ours.timing) else ""
            lines.append(f"{table}, {direction}: {ratio:.2f}x the time of {contender}{chance}")
        if ours.peak_bytes > 1.03 * theirs.peak_bytes:
            more = format_change(theirs.peak_bytes, ours.peak_bytes)
            lines.append(f"{table}, {direction}: {more} peak memory against {contender}")
    return lines
