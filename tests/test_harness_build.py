"""The modules of the harness: what sanitizers find in one, and when another is built."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from harness import build, cases_io, replay
from harness.cases_io import Case, Expected
from harness.selftest import block_sum_case, place

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the harness reads ELF symbol tables"
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---- under sanitizers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized() -> None:
    try:
        build.sanitizer_libraries()
    except build.BuildError as error:
        pytest.skip(str(error))
    build.build([True])


def run_sanitized(code: str) -> subprocess.CompletedProcess[str]:
    prelude = f"""
        import sys
        sys.path.insert(0, {str(build.HARNESS.parent)!r})
        import numpy as np
        from harness import build
        module = build.load(sanitize=True)
        selftest = module.selftest
        assert module.sanitized and "torch" not in sys.modules
    """
    program = textwrap.dedent(prelude) + textwrap.dedent(code) + "\nprint('finished')\n"
    return subprocess.run(
        [sys.executable, "-c", program],
        env=build.sanitizer_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.usefixtures("sanitized")
@pytest.mark.parametrize(
    ("fault", "call", "report"),
    [
        (
            "read_past_end",
            "read_past_end(x=np.ones(100, np.float32), out=np.empty(1, np.float32))",
            "AddressSanitizer: heap-buffer-overflow .*READ of size 4",
        ),
        (
            "write_past_end",
            "write_past_end(out=np.empty(100, np.float32))",
            "AddressSanitizer: heap-buffer-overflow .*WRITE of size 4",
        ),
        (
            "static_shared_overflow",
            "static_shared_overflow(index=128, out=np.empty(128, np.float32))",
            "AddressSanitizer: global-buffer-overflow .*WRITE of size 4",
        ),
        (
            "dynamic_shared_overflow",
            "dynamic_shared_overflow(index=128, out=np.empty(128, np.float32))",
            "AddressSanitizer: heap-buffer-overflow .*WRITE of size 4",
        ),
        (
            "misaligned_load",
            "misaligned_load(x=np.ones(16, np.float32), offset=1, out=np.empty(1, np.float32))",
            "runtime error: .* misaligned address .*, which requires 16 byte alignment",
        ),
        (
            "signed_overflow",
            "signed_overflow(x=2**31 - 1, out=np.empty(1, np.int32))",
            "runtime error: signed integer overflow",
        ),
    ],
)
def test_sanitizers_find(fault: str, call: str, report: str) -> None:
    done = run_sanitized(f"selftest.{call}")
    assert done.returncode != 0
    assert "finished" not in done.stdout
    assert re.search(report, done.stderr, re.DOTALL), done.stderr
    assert re.search(place(fault) + r"\b", done.stderr), done.stderr


@pytest.mark.usefixtures("sanitized")
def test_sanitizers_accept_right_kernels_and_caught_errors() -> None:
    done = run_sanitized(
        """
        def fails(function, **arguments):
            try:
                function(**arguments)
            except RuntimeError:
                return
            raise AssertionError(function)

        for portable in (False, True):
            module.set_portable_fibers(portable)
            for order in ("forward", "reverse", "shuffled"):
                module.set_thread_order(order)
                x = np.arange(1000, dtype=np.float32)
                partial = np.empty(8, np.float32)
                selftest.block_sum(x=x, partial=partial)
                assert partial.sum() == x.sum()
                shared = np.empty((3, 12), np.uint32)
                selftest.unwritten_shared(write=True, blocks=3, out=shared)
                assert (shared == 0xFFFFFFFF).all()
                destroyed = np.zeros(1, np.int32)
                out = np.empty(128, np.float32)
                fails(selftest.early_return, n=7, out=out, destroyed=destroyed)
                assert destroyed[0] == 128
                fails(selftest.missing_lane, out=np.empty(64, np.int32))
                fails(selftest.divergent_barrier, out=np.empty(64, np.float32))
                fails(selftest.trap, blocks=9, block=5, thread=3, out=np.empty(1, np.int32))
        """
    )
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "ERROR" not in done.stderr
    assert "runtime error" not in done.stderr


@pytest.mark.usefixtures("sanitized")
def test_sanitized_replay(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "cases.npz"
    good = block_sum_case(rng)
    cases_io.write_cases(path, [good, good])
    done = replay.replay_apart(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("2 passed, 0 failed\n")

    bad = block_sum_case(rng, name="bad", expected={"partial": Expected(np.zeros(2))})
    cases_io.write_cases(path, [bad, good])
    # Started plainly, the script gets itself the sanitizers.
    command = [sys.executable, replay.__file__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED bad (selftest.block_sum): CaseError: output partial: " in done.stdout
    assert done.stdout.endswith("1 passed, 1 failed\n")

    overflow = {"out": np.empty(100, np.float32)}
    crash = Case(
        "crash", "selftest.write_past_end", overflow, {"out": Expected(np.ones(100))}
    )  # fmt: skip
    cases_io.write_cases(path, [good, crash, good])
    done = replay.replay_apart(path)
    assert done.returncode == 97
    assert done.stdout.splitlines()[-1] == "crash ..."
    assert "heap-buffer-overflow" in done.stderr


# ---- the build -----------------------------------------------------------------------------------


def test_sanitized_module_needs_its_environment() -> None:
    with pytest.raises(RuntimeError, match="expected a process started with sanitizer_environm"):
        build.load(sanitize=True)


def test_build_error_has_the_compilers_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main() { return no_such_name; }\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "BUILD", tmp_path / "build")
    monkeypatch.setattr(build, "HARNESS", tmp_path)
    monkeypatch.setattr(build, "KERNELS", tmp_path)
    with pytest.raises(build.BuildError, match=r"(?s)broken\.cpp.*no_such_name"):
        build.build()


def test_bindings_cannot_contain_kernels(tmp_path: Path) -> None:
    source = build.HARNESS / "binding.cpp"
    flags = build._flags(source, sanitize=True)
    test = tmp_path / "bind.cpp"
    test.write_text('#include "selftest_kernels.cuh"\n')
    with pytest.raises(build.BuildError, match="compile with nvcc, or with -DMSR_CUDA_ON_CPU"):
        build._run([*build.compiler(), *flags, "-fsyntax-only", str(test)])


def test_a_change_of_any_source_or_header_makes_another_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, kernels = tmp_path / "harness", tmp_path / "kernels"
    harness.mkdir()
    kernels.mkdir()
    (harness / "bind.cpp").write_text('#include "bind.h"\n')
    (harness / "bind.h").write_text("")
    (kernels / "sum.cu").write_text('#include "sum.cuh"\n')
    (kernels / "sum.cuh").write_text("")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "HARNESS", harness)
    monkeypatch.setattr(build, "KERNELS", kernels)
    seen = {build.module_path(False), build.module_path(True)}
    assert len(seen) == 2
    for changed in (harness / "bind.h", kernels / "sum.cuh", kernels / "sum.cu"):
        objects = [build._object_path(source, False) for source in build.sources()]
        changed.write_text(changed.read_text() + "// changed\n")
        assert build.module_path(False) not in seen
        seen.add(build.module_path(False))
        # Only what includes it is compiled again.
        again = [build._object_path(source, False) for source in build.sources()]
        differs = [a != b for a, b in zip(objects, again, strict=True)]
        assert differs == [changed.suffix == ".h", changed.suffix != ".h"]
