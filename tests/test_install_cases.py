"""build_tools/install_cases.py: its table of cases, and what it makes of them. Installs nothing."""

from __future__ import annotations

import ctypes
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "build_tools").is_dir() or sys.platform != "linux",
    reason="it measures with Linux's resource module, in a checkout",
)


@pytest.fixture
def install_cases(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    return importlib.import_module("install_cases")


def test_cases_are_in_order(install_cases: ModuleType) -> None:
    """A case may use the object files and the wheels of those before it, and no others."""
    seen: set[str] = set()
    for case in install_cases.CASES:
        assert case.name not in seen
        assert case.expect in ("cuda", "cpu", "none", "stops")
        assert case.torch is None or case.torch in install_cases.TORCHES
        assert not case.keeps or case.keeps in seen
        wheels = [word.partition(":")[2] for word in case.install if word.startswith("WHEEL:")]
        assert set(wheels) <= seen
        # Whoever gets less than was asked for, or nothing, is told.
        assert case.says or case.expect in ("cpu", "cuda")
        seen.add(case.name)


def test_commands_are_what_a_user_types(install_cases: ModuleType) -> None:
    written = {case.name: install_cases.written(case) for case in install_cases.CASES}
    assert written["isolated"] == "pip install ."
    assert written["no-compiler"] == "PATH=/empty pip install ."
    assert written["unknown-architecture"] == 'TORCH_CUDA_ARCH_LIST="9.0;9.7" pip install .'
    assert written["sdist"] == "pip install msr_cuda-*.tar.gz"
    assert written["wheel"] == "pip wheel --no-deps -w dist ."
    assert written["wheel-oldest-torch"] == "pip install msr_cuda-*.whl"


def test_what_pip_fetched_is_read_from_its_log(install_cases: ModuleType) -> None:
    log = """\
Processing /somewhere/source
  Downloading ninja-1.13.2-py3-none-manylinux2014_x86_64.whl (180 kB)
Requirement already satisfied: torch>=2.10 in /venv/lib (from msr-cuda==0.1.0) (2.13.0+cpu)
  Using cached torch-2.15.0-cp311-cp311-manylinux_2_28_x86_64.whl (530 MB)
Processing /wheels/numpy-2.4.6-cp311-cp311-linux_x86_64.whl
  msr_cuda: C++ compiler = c++
  │ msr_cuda: MSR_CUDA_BUILD=cpu needs a C++17 compiler; found: none
  msr_cuda: installing pure Python, no kernels: no compiler
"""
    found = [name.partition("-")[0] for name in install_cases.FETCHED.findall(log)]
    assert found == ["ninja", "torch", "/wheels/numpy"]
    assert install_cases.SAID.findall(log) == [
        "msr_cuda: MSR_CUDA_BUILD=cpu needs a C++17 compiler; found: none",
        "msr_cuda: installing pure Python, no kernels: no compiler",
    ]


def test_cases_run_later_join_the_others(install_cases: ModuleType) -> None:
    def run(commit: str, **seconds: int) -> dict[str, object]:
        rows = [{"case": name, "seconds": value} for name, value in seconds.items()]
        return {"commit": commit, "cases": rows}

    later = run("b", none=3, isolated=4)
    assert install_cases.joined(None, later) is later
    assert install_cases.joined(run("a", none=1, sdist=2), later) == {
        "commit": "a",
        "cases": [
            {"case": "isolated", "seconds": 4, "commit": "b"},
            {"case": "none", "seconds": 3, "commit": "b"},
            {"case": "sdist", "seconds": 2},
        ],
    }


def test_stand_ins_let_a_library_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library needs another, which is then gone: its stand-in has the names."""
    if not all(shutil.which(tool) for tool in ("gcc", "nm", "readelf")):
        pytest.skip("no gcc, nm and readelf")
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    stand_ins = importlib.import_module("cuda_stand_ins")

    def link(name: str, code: str, *options: str) -> None:
        (tmp_path / "code.c").write_text(code)
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", name, "code.c"]
        subprocess.run([*command, *options], cwd=tmp_path, check=True)

    (tmp_path / "map").write_text("CUFAKE_1 { global: cuFirst; };\nCUFAKE_2 { global: cuNext; };\n")
    link("libcufake.so.1", "int cuFirst() { return 1; } int cuNext() { return 2; }",
         "-Wl,--version-script=map")  # fmt: skip
    link("libcuplain.so.1", "int cuPlain() { return 3; }")
    code = "int cuFirst(); int cuNext(); int cuPlain();\n"
    code += "int seven() { return 7; } int all() { return cuFirst() + cuNext() + cuPlain(); }"
    link("libtorch_test.so", code, "-L.", "-l:libcufake.so.1", "-l:libcuplain.so.1",
         "-Wl,-z,now", "-Wl,-rpath,$ORIGIN")  # fmt: skip
    for name in ("libcufake.so.1", "libcuplain.so.1"):
        (tmp_path / name).unlink()

    absent = stand_ins.stand_ins(tmp_path)
    assert absent == {
        "libcufake.so.1": {"CUFAKE_1": {"cuFirst"}, "CUFAKE_2": {"cuNext"}, "": {"cuPlain"}},
        "libcuplain.so.1": {},
    }
    with pytest.raises(OSError, match=r"libcu(fake|plain)\.so\.1"):
        ctypes.CDLL(str(tmp_path / "libtorch_test.so"))
    for name, versions in absent.items():
        stand_ins.write(tmp_path / name, versions)
    assert ctypes.CDLL(str(tmp_path / "libtorch_test.so")).seven() == 7


def committed() -> list[Path]:
    return sorted(ROOT.glob("benchmarks/results/*/install.json"))


def test_there_is_a_committed_run() -> None:
    assert committed()


@pytest.mark.parametrize("path", committed(), ids=lambda path: path.parent.name)
def test_committed_runs_were_as_expected(install_cases: ModuleType, path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert not content["commit"].endswith("-dirty")
    rows = content["cases"]
    assert [row["case"] for row in rows if row["problems"]] == []
    # No file of torch was touched and none of it fetched, or there would be a problem.
    assert len({row["case"] for row in rows}) == len(rows)
    table = install_cases.table(rows)
    for row in rows:
        assert f"| `{row['command']}` |" in table
        assert all(line in table for line in row["said"])
