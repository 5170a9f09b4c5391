"""The build, the loader and what they say of themselves. Compiles nothing, needs no network."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from msr_cuda import _extension, _info
from msr_cuda._version import __version__

ROOT = Path(__file__).resolve().parents[1]
needs_extension = pytest.mark.skipif(not _extension.LOADED, reason=f"{_extension.WHY_NOT}")
needs_checkout = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="only the package is here"
)


def load(path):
    """A module of the checkout that is not part of the package."""
    name = f"_tested_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build_tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    yield ROOT / "build_tools"
    for name in ("toolchain", "plan"):
        sys.modules.pop(name, None)


@pytest.fixture
def toolchain(build_tools):
    return importlib.import_module("toolchain")


@pytest.fixture
def plan(toolchain):
    return importlib.import_module("plan")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def python(*arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MSR_CUDA_")}
    environment.update(variables)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- info -----------------------------------------------------------------------------------------


def test_info_names_versions_and_is_json():
    facts = _info.info()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["msr_cuda"] == __version__
    assert facts["torch"] == torch.__version__
    assert facts["torch_cuda"] == torch.version.cuda
    assert len(facts["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    extension = facts["extension"]
    assert extension["loaded"] == (extension["why_not"] is None) == (extension["path"] is not None)


def test_format_info_names_every_operator():
    facts = _info.info()
    text = _info.format_info(facts)
    for name, keys in facts["kernels"].items():
        assert re.search(rf"^  {re.escape(name)} +{' '.join(keys)}", text, re.MULTILINE), name
    for line in facts["advice"]:
        assert line in text


@needs_extension
def test_info_names_the_instruction_set_of_the_cpu_kernels():
    cpu = _info.info()["cpu"]
    assert cpu == {"isa": torch.ops.msr_cuda.cpu_isa(), "why_not": None}
    assert f"CPU kernels {cpu['isa']}" in _info.format_info().splitlines()


@needs_extension
def test_info_survives_an_unknown_instruction_set():
    message = "MSR_CUDA_CPU_ISA: expected avx512, avx2 or generic"
    done = python("-m", "msr_cuda", "info", MSR_CUDA_CPU_ISA="sse")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"CPU kernels none: {message}" in lines
    assert f"to do       every CPU kernel refuses to run ({message}): change or unset it" in lines


def test_info_without_the_extension_says_why_there_is_no_instruction_set():
    done = python("-m", "msr_cuda", "info", "--json", MSR_CUDA_DISABLE_EXTENSION="1")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["cpu"] == {"isa": None, "why_not": facts["extension"]["why_not"]}
    assert len(facts["advice"]) == 1
    assert "MSR_CUDA_CPU_ISA" not in facts["advice"][0]


@needs_extension
def test_binary_is_of_this_version():
    assert _info.info()["extension"]["build"]["version"] == __version__


@needs_extension
@needs_checkout
@pytest.mark.parametrize("key", ["CPU", "CUDA", "CompositeExplicitAutograd"])
def test_info_agrees_with_the_registrations_in_the_sources(key):
    """What the sources register is what the dispatcher of the loaded binary reports."""
    bindings = (ROOT / "csrc/ops/bindings.h").read_text()
    functions = re.findall(r"void (register_\w+)\(Library& m\) \{(.*?)\n\}", bindings, re.DOTALL)
    shared = {name: re.findall(r'm\.impl\("([\w.]+)"', body) for name, body in functions}
    assert shared
    registered = set()
    for path in ROOT.glob("csrc/ops/*.cpp"):
        if path.stem.endswith("_cuda") and not _extension.has_kernels("cuda"):
            continue
        blocks = re.split(r"STABLE_TORCH_LIBRARY_IMPL\(msr_cuda, (\w+), m\)", path.read_text())
        for block_key, block in zip(blocks[1::2], blocks[2::2], strict=True):
            if block_key == key:
                registered |= set(re.findall(r'm\.impl\(\s*"([\w.]+)"', block))
                for name in re.findall(r"msr::(register_\w+)<", block):
                    registered |= set(shared[name])
    kernels = _info.info()["kernels"]
    assert {name for name, keys in kernels.items() if key in keys} >= registered
    schemas = re.findall(r'm\.def\(\s*"([\w.]+)\(', (ROOT / "csrc/ops/library.cpp").read_text())
    assert "build_info" in schemas
    reported = {name for name in schemas if key in kernels[name]}
    assert reported == registered


@needs_extension
def test_has_kernels_is_what_the_binary_says():
    assert _extension.has_kernels("cpu")
    built = json.loads(torch.ops.msr_cuda.build_info())
    assert _extension.has_kernels("cuda") is built["with_cuda"]
    assert not _extension.has_kernels("mps")


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("7.5;8.0;9.0+PTX", "9.0", True),
        ("7.5;8.0;9.0+PTX", "8.6", True),  # machine code of 8.0
        ("7.5;8.0;9.0+PTX", "12.0", True),  # PTX
        ("7.5;8.0;9.0", "12.0", False),
        ("7.5 8.0", "7.0", False),
        ("8.6", "8.0", False),
        ("8.0+PTX", "7.5", False),
        ("9.0a", "9.0", True),
        ("9.0a", "10.0", False),
        ("Hopper", "7.5", True),  # not guessed
    ],
)
def test_architectures_serve_a_gpu(architectures, capability, runs):
    assert _info._serves(architectures, capability) is runs


# --- the loader -----------------------------------------------------------------------------------


def test_disabled_extension_is_silent_and_says_why():
    code = (
        "import msr_cuda; from msr_cuda import _extension as e; import sys;"
        "assert not e.LOADED and e.PATH is None and not e.has_kernels('cpu');"
        "assert not e.has_kernels('cuda') and e.BUILD == {};"
        "sys.exit('why: ' + e.WHY_NOT)"
    )
    done = python("-c", code, MSR_CUDA_DISABLE_EXTENSION="1")
    # The assertions inside hold, and importing printed nothing of its own.
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["why: MSR_CUDA_DISABLE_EXTENSION=1 is set"]


def test_info_command_without_extension_says_what_to_do():
    done = python("-m", "msr_cuda", "info", "--json", MSR_CUDA_DISABLE_EXTENSION="1")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["extension"]["loaded"] is False
    assert not any({"CPU", "CUDA"} & set(keys) for keys in facts["kernels"].values())
    assert facts["advice"] == ["the extension is switched off: unset MSR_CUDA_DISABLE_EXTENSION"]


def test_info_command_needs_nothing_that_training_needs():
    hidden = ("numpy", "safetensors", "PIL", "tqdm", "cryptography", "torchvision")
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({hidden}))\n"
        "sys.argv = ['msr_cuda', 'info']\n"
        "runpy.run_module('msr_cuda', run_name='__main__')"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("msr_cuda ")


def test_require_raises_with_the_reason():
    done = python("-c", "import msr_cuda", MSR_CUDA_DISABLE_EXTENSION="1", MSR_CUDA_REQUIRE="1")
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: msr_cuda: MSR_CUDA_REQUIRE=1, but ")
    assert "MSR_CUDA_DISABLE_EXTENSION=1 is set" in last
    assert "-m pip install" in last


def test_a_file_that_does_not_load_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MSR_CUDA_DISABLE_EXTENSION", raising=False)
    (tmp_path / "_C.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(_extension, "_folders", lambda: iter([tmp_path]))
    path, reason = _extension._load()
    assert path is None
    assert reason.startswith(f"{tmp_path / '_C.abi3.so'} does not load: ")


def test_the_recorded_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("MSR_CUDA_DISABLE_EXTENSION", raising=False)
    monkeypatch.setattr(_extension, "_folders", lambda: iter([tmp_path]))
    assert _extension._load() == (None, "it was not built")
    (tmp_path / "_build_reason.txt").write_text("no compiler\n")
    assert _extension._load() == (None, "it was not built: no compiler")


# --- what the build decides -----------------------------------------------------------------------


def make_toolkit(toolchain, home="/cuda", version=(13, 0), library=True):
    home = Path(home)
    library_dir = home / "lib64" if library else None
    return toolchain.CudaToolkit(home, home / "include", library_dir, version, "CUDA_HOME")


@needs_checkout
@pytest.mark.parametrize(
    ("asked", "torch_version", "torch_cuda", "toolkit", "kind", "message"),
    [
        ("auto", "2.13.0+cpu", None, (13, 0), "cpu", "torch 2.13.0+cpu is a build without CUDA"),
        ("auto", "2.11.0+cu130", "13.0", (13, 0), "cuda", None),
        ("auto", "2.11.0+cu130", "13.0", (13, 2), "cuda", None),
        ("auto", "2.11.0+cu130", "13.0", None, "cpu", "CUDA kernels need a CUDA toolkit"),
        ("auto", "2.11.0+cu128", "12.8", (13, 0), "cpu", "need a CUDA 12 toolkit"),
        ("auto", "2.9.1", "12.8", (12, 8), "none", "needs torch >= 2.10; found: torch 2.9.1"),
        ("auto", None, None, (13, 0), "none", "needs torch >= 2.10"),
        ("", "2.13.0+cpu", None, None, "cpu", "a build without CUDA"),
        ("cpu", "2.11.0+cu130", "13.0", (13, 0), "cpu", "MSR_CUDA_BUILD=cpu"),
        ("cuda", "2.13.0+cpu", None, (13, 0), "cuda", None),
        ("none", "2.13.0+cpu", None, (13, 0), "none", "MSR_CUDA_BUILD=none"),
    ],
)
def test_plan(plan, monkeypatch, asked, torch_version, torch_cuda, toolkit, kind, message):
    tools = plan.toolchain
    found = tools.TorchInstallation(Path("/torch"), torch_version, torch_cuda)
    monkeypatch.setattr(tools, "find_torch", lambda: found if torch_version else None)
    monkeypatch.setattr(tools, "find_compiler", lambda environ: ("c++", "c++"))
    result = (make_toolkit(tools, version=toolkit), "found") if toolkit else (None, "no nvcc")
    monkeypatch.setattr(tools, "find_cuda_toolkit", lambda environ: result)
    made = plan.make_plan({"MSR_CUDA_BUILD": asked})
    assert made.error is None
    assert made.kind == kind
    if message is None:
        assert made.missing is None
    else:
        assert message in made.missing
        assert "\n" not in made.missing


@needs_checkout
@pytest.mark.parametrize(
    ("asked", "torch_version", "torch_cuda", "version", "library", "message"),
    [
        ("cuda", "2.11.0+cu128", "12.8", (13, 0), True, "needs a CUDA 12 toolkit"),
        ("cuda", "2.13.0+cpu", None, (13, 0), False, "needs libcudart_static.a"),
        ("cuda", None, None, (13, 0), True, "python -m pip install torch && "),
        ("cpu", "2.9.1", None, (13, 0), True, "python -m pip install 'torch>=2.10' && "),
    ],
)
def test_plan_stops(plan, monkeypatch, asked, torch_version, torch_cuda, version, library, message):
    tools = plan.toolchain
    found = tools.TorchInstallation(Path("/torch"), torch_version, torch_cuda)
    monkeypatch.setattr(tools, "find_torch", lambda: found if torch_version else None)
    monkeypatch.setattr(tools, "find_compiler", lambda environ: ("c++", "c++"))
    toolkit = make_toolkit(tools, version=version, library=library)
    monkeypatch.setattr(tools, "find_cuda_toolkit", lambda environ: (toolkit, "CUDA at /cuda"))
    made = plan.make_plan({"MSR_CUDA_BUILD": asked})
    assert message in made.error
    assert f"MSR_CUDA_BUILD={asked} python -m pip install" in made.error
    assert "\n" not in made.error


@needs_checkout
@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_plan_names_architectures_that_nvcc_does_not_know(plan, monkeypatch, tmp_path, asked):
    tools = plan.toolchain
    found = tools.TorchInstallation(Path("/torch"), "2.11.0+cu129", "12.9")
    monkeypatch.setattr(tools, "find_torch", lambda: found)
    monkeypatch.setattr(tools, "find_compiler", lambda environ: ("c++", "c++"))
    environ = {"MSR_CUDA_BUILD": asked, "CUDA_HOME": str(make_fake_cuda(tmp_path))}
    made = plan.make_plan({**environ, "TORCH_CUDA_ARCH_LIST": "7.5 9.7;9.0a;10.1+PTX"})
    assert made.error == (
        "TORCH_CUDA_ARCH_LIST=7.5 9.7;9.0a;10.1+PTX needs an nvcc that compiles for 9.7 and 10.1; "
        f"found: CUDA 12.9 at {tmp_path} (CUDA_HOME), which compiles for 7.5, 9.0, 10.0. Then run: "
        f'TORCH_CUDA_ARCH_LIST="7.5;9.0+PTX" MSR_CUDA_BUILD={asked} {plan.INSTALL}'
    )
    for known in ("", "native", "Hopper", "7.5;9.0a;10.0+PTX"):
        assert plan.make_plan({**environ, "TORCH_CUDA_ARCH_LIST": known}).kind == "cuda"


@needs_checkout
def test_setup_demands_a_toolkit(tmp_path):
    script(tmp_path / "bin" / "c++", "exit 0\n")
    done = python(
        "setup.py",
        "-q",
        "build_ext",
        f"--build-lib={tmp_path}/lib",
        f"--build-temp={tmp_path}/temp",
        MSR_CUDA_BUILD="cuda",
        PATH=str(tmp_path / "bin"),
        CUDA_HOME="/nonexistent",
        CXX="",
    )
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("msr_cuda: MSR_CUDA_BUILD=cuda needs a CUDA toolkit (bin/nvcc and ")
    assert "found: CUDA_HOME=/nonexistent has no bin/nvcc" in last
    assert "CUDA_HOME=/path/to/cuda MSR_CUDA_BUILD=cuda python -m pip install" in last
    assert not (tmp_path / "lib").exists()


@needs_checkout
def test_setup_rejects_an_unknown_mode(tmp_path):
    done = python(
        "setup.py", "-q", "build_ext", f"--build-lib={tmp_path}/lib", MSR_CUDA_BUILD="gpu"
    )
    assert done.returncode != 0
    expected = "msr_cuda: MSR_CUDA_BUILD: expected one of auto, cpu, cuda, none, got gpu"
    assert done.stderr.splitlines()[-1] == expected


@needs_checkout
def test_setup_without_a_compiler_records_why(tmp_path):
    package = tmp_path / "lib" / "msr_cuda"
    package.mkdir(parents=True)
    (package / "_C.abi3.so").write_bytes(b"of an earlier build")
    done = python(
        "setup.py",
        "-q",
        "build",
        f"--build-base={tmp_path}/base",
        f"--build-lib={tmp_path}/lib",
        MSR_CUDA_BUILD="auto",
        PATH=str(tmp_path),
        CXX="",
    )
    assert done.returncode == 0, done.stderr
    reason = (package / "_build_reason.txt").read_text().strip()
    assert reason.startswith("the extension needs a C++17 compiler; found: neither ")
    assert f"installing pure Python, no kernels: {reason}" in done.stdout
    assert (package / "_extension.py").is_file()
    assert (package / "py.typed").is_file()
    assert not (package / "_C.abi3.so").exists()


# --- builds with tools that compile nothing ---

# Hides torch from the whole process; Python imports it at its start.
NO_TORCH = "import sys; sys.modules['torch'] = None\n"
# A compiler as far as torch looks at it: a version, and the file that it was to write.
COMPILER = """\
printf '%s\\n' "$*" >> {log}
while [ $# -gt 0 ]; do
  case "$1" in
    -dumpfullversion) echo 12.2.0; exit ;;
    -v|--version) echo "c++ (GCC) 12.2.0"; exit ;;
    -o) : > "$2"; exit ;;
  esac
  shift
done
"""


def setup_build(folder, **variables):
    """`setup.py build` into a folder; what pip runs for a wheel."""
    return python(
        "setup.py", "-q", "build", f"--build-base={folder}/base", f"--build-lib={folder}/lib",
        **{"CXX": "", "MAX_JOBS": "1", **variables},
    )  # fmt: skip


@needs_checkout
def test_setup_without_torch_records_why(tmp_path):
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(NO_TORCH)
    done = setup_build(tmp_path, MSR_CUDA_BUILD="auto", PYTHONPATH=str(tmp_path / "hide"))
    assert done.returncode == 0, done.stderr
    reason = (tmp_path / "lib/msr_cuda/_build_reason.txt").read_text().strip()
    assert reason.startswith("the extension needs torch >= 2.10 in the environment it is installed")
    assert reason.endswith(f"found: no torch for {sys.executable}")
    assert [line for line in done.stdout.splitlines() if line.startswith("msr_cuda: ")] == [
        f"msr_cuda: installing pure Python, no kernels: {reason}"
    ]


@needs_checkout
def test_setup_stops_where_the_compiler_fails(tmp_path):
    compiler = script(tmp_path / "bin" / "c++", "echo out of memory >&2; exit 1\n")
    done = setup_build(tmp_path, MSR_CUDA_BUILD="cpu", CXX=str(compiler))
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("msr_cuda: the extension did not compile, see above")
    assert "MAX_JOBS=1" in last
    assert not list(tmp_path.glob("lib/**/_C*.so"))


@needs_checkout
def test_cuda_kernels_are_built_without_a_gpu(tmp_path):
    """As while an image is built: a CUDA build of torch and nvcc, and no device to ask."""
    home = make_fake_cuda(tmp_path / "cuda")
    compiled = tmp_path / "nvcc.log"
    nvcc = (home / "bin" / "nvcc").read_text().removeprefix("#!/bin/sh\n")
    script(home / "bin" / "nvcc", nvcc + COMPILER.format(log=compiled))
    compiler = script(tmp_path / "bin" / "c++", COMPILER.format(log=tmp_path / "c++.log"))
    # torch is a CPU build here, but for what the build asks of it.
    (tmp_path / "claim").mkdir()
    claim = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'build_tools')!r}]\n"
        "import dataclasses, toolchain\n"
        "found = toolchain.find_torch\n"
        "toolchain.find_torch = lambda: dataclasses.replace(found(), cuda='12.9')\n"
    )
    (tmp_path / "claim" / "sitecustomize.py").write_text(claim)
    done = setup_build(
        tmp_path, MSR_CUDA_BUILD="auto", CXX=str(compiler), CUDA_HOME=str(home),
        PYTHONPATH=str(tmp_path / "claim"), CUDA_VISIBLE_DEVICES="", TORCH_CUDA_ARCH_LIST="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "msr_cuda: MSR_CUDA_BUILD = auto -> cuda" in done.stdout
    assert "msr_cuda: TORCH_CUDA_ARCH_LIST = 7.5;9.0+PTX" in done.stdout
    lines = compiled.read_text().splitlines()
    for source in ROOT.glob("csrc/kernels/*.cu"):
        (line,) = [line for line in lines if f"csrc/kernels/{source.name} " in line]
        for code in ("compute_75,code=sm_75", "compute_90,code=sm_90", "code=compute_90"):
            assert code in line
    assert (tmp_path / "lib/msr_cuda/_C.abi3.so").exists()
    assert not (tmp_path / "lib/msr_cuda/_build_reason.txt").exists()


@needs_checkout
def test_isolated_install_finds_torch_and_fetches_nothing(tmp_path):
    """pip hides the environment from the build; what it then needs must come from there."""
    # Not by find_spec("pip"): at that, setuptools takes its distutils out of this process.
    if not any(importlib.metadata.distributions(name="pip")):
        pytest.skip("no pip")
    for name in ("csrc", "build_tools", "msr_cuda"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build_reason.txt")
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    # The compiler fails, so that there is something to record, and nothing to wait for.
    compiler = script(tmp_path / "bin" / "c++", "exit 1\n")
    done = python(
        "-m", "pip", "install", "-v", "--no-deps", "--no-index", f"--target={tmp_path}/installed",
        tmp_path / "source", MSR_CUDA_BUILD="auto", CXX=str(compiler), MAX_JOBS="1",
        PIP_FIND_LINKS="",
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert f"msr_cuda: torch = {torch.__version__} at {Path(torch.__file__).parent}" in said
    assert "Downloading" not in said
    reason = (tmp_path / "installed/msr_cuda/_build_reason.txt").read_text()
    assert reason.startswith("the extension did not compile (")
    assert [p.name for p in (tmp_path / "installed").glob("torch*")] == []


@needs_checkout
def test_sdist_has_every_source(tmp_path):
    done = python(
        "setup.py", "-q", "egg_info", f"--egg-base={tmp_path}", "sdist", f"--dist-dir={tmp_path}",
        MSR_CUDA_BUILD="none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"setup.py", "pyproject.toml", "README.md", "LICENSE"}
    for pattern in ("csrc/**/*.*", "build_tools/*.py", "msr_cuda/**/*.py", "msr_cuda/py.typed"):
        found = {str(p.relative_to(ROOT)) for p in ROOT.glob(pattern)}
        assert found, pattern
        wanted |= found
    assert wanted - names == set()
    assert [name for name in names if name.endswith((".so", ".o", "_build_reason.txt"))] == []


# --- finding the toolkit --------------------------------------------------------------------------


def make_fake_cuda(home):
    script(
        home / "bin" / "nvcc",
        f'case "$1" in\n'
        f'--dryrun) echo "#\\$ _HERE_={home}/bin" ;;\n'
        f'--version) echo "Cuda compilation tools, release 12.9, V12.9.1" ;;\n'
        f"--list-gpu-code) printf 'sm_75\\nsm_90\\nsm_100\\n' ;;\n"
        f"esac\n",
    )
    for name in ("include/cuda_runtime.h", "lib64/libcudart_static.a"):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("")
    return home


@needs_checkout
def test_toolkit_behind_a_wrapper_script(toolchain, tmp_path):
    """A script named nvcc elsewhere on the PATH: the folder above it is not the toolkit."""
    home = make_fake_cuda(tmp_path / "real")
    wrapper = script(tmp_path / "other" / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"\n')
    toolkit, found = toolchain.find_cuda_toolkit({"PATH": str(wrapper.parent)})
    assert toolkit is not None, found
    assert toolkit.home == home
    assert toolkit.version == (12, 9)
    assert toolkit.include_dir == home / "include"
    assert toolkit.library_dir == home / "lib64"


@needs_checkout
def test_explicit_cuda_home_is_not_second_guessed(toolchain, tmp_path):
    home = make_fake_cuda(tmp_path / "real")
    (home / "include" / "cuda_runtime.h").unlink()
    toolkit, found = toolchain.find_cuda_toolkit(
        {"PATH": os.environ["PATH"], "CUDA_HOME": str(home)}
    )
    assert toolkit is None
    assert found == f"CUDA_HOME={home} has no include/cuda_runtime.h"


@needs_checkout
def test_default_architectures(toolchain, tmp_path):
    toolkit, found = toolchain.find_cuda_toolkit({"CUDA_HOME": str(make_fake_cuda(tmp_path))})
    assert toolkit is not None, found
    assert toolchain.supported_architectures(toolkit) == ["7.5", "9.0", "10.0"]
    assert toolchain.default_architectures(toolkit, []) == "7.5;9.0+PTX"  # this nvcc has no 8.0
    assert toolchain.default_architectures(toolkit, [(9, 0), (7, 5), (9, 0)]) == "7.5;9.0"
    # A GPU that this nvcc does not know: the newest PTX.
    assert toolchain.default_architectures(toolkit, [(12, 0)]) == "10.0+PTX"


@needs_checkout
@pytest.mark.parametrize(
    ("memory", "cores", "jobs"), [(64.0, 8, 8), (7.9, 8, 3), (0.5, 8, 1), (None, 4, 4)]
)
def test_jobs_are_bounded_by_memory(toolchain, monkeypatch, memory, cores, jobs):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(toolchain, "available_memory_gb", lambda: memory)
    assert toolchain.default_jobs() == jobs


# --- the backend and the tools --------------------------------------------------------------------


@needs_checkout
@pytest.mark.parametrize(
    ("installed", "mode", "wanted"),
    [
        ({"setuptools": "80.9.0", "ninja": "1.13"}, "auto", []),
        ({"setuptools": "80.9.0"}, "auto", ["ninja"]),
        ({"setuptools": "80.9.0"}, "none", []),
        ({"setuptools": "68.2.0", "ninja": "1.13"}, "cuda", ["wheel"]),
        ({"setuptools": "59.6.0", "wheel": "0.37"}, "cpu", ["setuptools>=64", "ninja"]),
        ({}, "auto", ["setuptools>=64", "ninja"]),
    ],
)
def test_backend_asks_for_what_is_missing_and_never_for_torch(monkeypatch, installed, mode, wanted):
    backend = load(ROOT / "build_tools" / "backend.py")

    def version(name):
        if name not in installed:
            raise backend.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(backend.metadata, "version", version)
    monkeypatch.setattr(backend.shutil, "which", lambda program: None)
    monkeypatch.setenv("MSR_CUDA_BUILD", mode)
    assert backend.get_requires_for_build_wheel() == wanted
    assert backend.get_requires_for_build_editable() == wanted
    assert backend.get_requires_for_build_sdist() == [w for w in wanted if w != "ninja"]


@needs_checkout
def test_backend_stops_where_pip_would_replace_torch(monkeypatch, build_tools):
    backend = load(build_tools / "backend.py")
    versions = {"setuptools": "80.9.0", "ninja": "1.13"}
    monkeypatch.setattr(backend.metadata, "version", versions.__getitem__)
    for version in ("2.9.1+cu128", "2.10.0a0+b4e4ee8.nv25.12", "2.10.0.dev20251101", "1.13"):
        versions["torch"] = version
        with pytest.raises(SystemExit) as stopped:
            backend.get_requires_for_build_wheel()
        assert str(stopped.value) == (
            f"msr_cuda: needs torch >= 2.10; found: torch {version}, which pip would replace by "
            "the newest there is, perhaps for another CUDA version. To update it, then install: "
            "python -m pip install 'torch>=2.10' && python -m pip install . "
            "To keep it: python -m pip install --no-build-isolation --no-deps ."
        )
    for version in ("2.10.0", "2.10.1a0", "2.13.0+cpu", "2.11.0a0+git1234567"):
        versions["torch"] = version
        assert backend.get_requires_for_build_wheel() == []


@needs_checkout
def test_package_accepts_any_torch_that_the_binary_loads_into(plan):
    oldest = ".".join(map(str, plan.OLDEST_TORCH))
    text = (ROOT / "pyproject.toml").read_text()
    assert f'dependencies = ["torch>={oldest}", "numpy"]' in text
    assert "requires = []" in text


@needs_checkout
def test_sweep_reads_ptxas(build_tools):
    sweep = load(build_tools / "nvcc_sweep.py")
    output = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_90'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 352 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90'
ptxas info    : Function properties for _Z3badPf
    32 bytes stack frame, 28 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 32 bytes cumulative stack size
"""
    assert sweep.parse_ptxas(output) == [
        sweep.Kernel("_Z4goodPf", registers=40, stack=0, shared=2048, spilled=0),
        sweep.Kernel("_Z3badPf", registers=64, stack=32, shared=0, spilled=44),
    ]


@needs_checkout
def test_binary_check_knows_what_is_stable(build_tools):
    check = load(build_tools / "check_binary.py")
    for name in (
        "_ZN2at6Tensor3addEv",
        "_ZNK3c1010TensorImpl4dataEv",
        "_ZTIN5torch8autograd4NodeE",
        "_ZN3c10lsERSoNS_6DeviceE",
    ):
        assert check.TORCH_CXX.match(name), name
    for name in ("torch_library_impl", "aoti_torch_get_size", "_ZNSt6vectorIlSaIlEE7reserveEm"):
        assert not check.TORCH_CXX.match(name), name
    for name in ("aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg"):
        assert check.CUDA_ONLY.match(name), name
    assert not check.CUDA_ONLY.match("aoti_torch_device_type_cuda")  # a CPU torch has it too


@needs_extension
@needs_checkout
def test_built_binary_keeps_to_the_stable_abi(build_tools):
    check = load(build_tools / "check_binary.py")
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    symbols = check.undefined_symbols(Path(_extension.PATH))
    assert "aoti_torch_library_init_def" in {name for _, name in symbols}
    assert [name for _, name in symbols if check.TORCH_CXX.match(name)] == []
    assert [n for kind, n in symbols if kind == "U" and check.CUDA_ONLY.match(n)] == []
