"""run.py: what it installs and starts. Installs nothing."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "run.py").is_file(), reason="only the package is here")


def load():
    spec = importlib.util.spec_from_file_location("_tested_run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["_tested_run"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("version", "vision"), [("2.10.0", 25), ("2.11.0+cu130", 26), ("2.13.0", 28)]
)
def test_run_pairs_torchvision_with_torch(version, vision):
    group = load().torchvision_for(version)
    assert group.packages[0].requirement == f"torchvision==0.{vision}.*"


def test_run_preloads_sanitizers_for_an_extension_that_has_them(monkeypatch):
    run = load()
    monkeypatch.delenv("MSR_CUDA_SANITIZE", raising=False)
    assert run.sanitizer_environment() == {}
    monkeypatch.setenv("MSR_CUDA_SANITIZE", "1")
    monkeypatch.setattr(run, "binaries", dict)
    with pytest.raises(SystemExit, match="the extension did not compile"):
        run.sanitizer_environment()
    monkeypatch.setattr(run, "binaries", lambda: {"_C.abi3.so": "its content"})
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    build = importlib.import_module("harness.build")
    monkeypatch.setattr(build, "sanitizer_libraries", lambda: ["/lib/libasan.so", "/lib/libub.so"])
    variables = run.sanitizer_environment()
    assert variables["LD_PRELOAD"] == "/lib/libasan.so /lib/libub.so"
    assert "detect_leaks=0" in variables["ASAN_OPTIONS"]
    assert "halt_on_error=1" in variables["UBSAN_OPTIONS"]


def test_run_rejects_an_unknown_command():
    done = subprocess.run(
        [sys.executable, "run.py", "tset"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.strip().endswith(
        "expected one of demo, test, bench, docs, gpu-check, setup, lint, format, clean, help, "
        "got tset"
    )


@pytest.mark.parametrize(
    ("arguments", "cuda", "cores", "options"),
    [
        ([], None, 2, ["-n", "2", "--dist", "worksteal"]),
        (["--ignore=tests/test_demo.py"], None, 64, ["-n", "8", "--dist", "worksteal"]),
        (["-k", "nearest"], None, 2, []),
        (["tests/test_demo.py"], None, 2, []),
        ([], "13.0", 2, []),
        ([], None, 1, []),
    ],
)
def test_the_whole_suite_runs_in_several_processes(monkeypatch, arguments, cuda, cores, options):
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    toolchain = importlib.import_module("toolchain")
    monkeypatch.setattr(toolchain, "default_jobs", lambda gigabytes: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run, there = load(), ["xdist", "execnet"]
    monkeypatch.setattr(run, "install_optional", lambda groups, consequence: None)
    monkeypatch.setattr(run, "probe", lambda *modules: {"modules": there})
    facts = {"torch": {"cuda": cuda}}
    variables = {"OMP_NUM_THREADS": "1"} if options else {}
    assert run.side_by_side(arguments, facts) == (options, variables)
    there.remove("xdist")
    assert run.side_by_side(arguments, facts) == ([], {})
