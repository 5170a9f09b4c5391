"""Builds msr_cuda._C: one binary for every torch >= 2.10 and every Python >= 3.10.

That is what libtorch's stable ABI and CPython's limited API buy. Only torch's headers are compiled
against, so the CUDA kernels are built (and linked, and loaded) with a CPU torch just as well.

Environment:
    MSR_CUDA_BUILD        auto (default), cpu, cuda or none; see build_tools/plan.py
    TORCH_CUDA_ARCH_LIST  default: the visible GPUs', else 7.5;8.0;9.0+PTX
    MAX_JOBS              compilers at once; default: one per core and per 2 GB of free memory
    MSR_CUDA_SANITIZE     1: AddressSanitizer and UndefinedBehaviorSanitizer in the host code
    CXX, CUDA_HOME        the compiler, the toolkit
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as setuptools_build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))

import count_kernels  # noqa: E402 (it lies in build_tools)
import toolchain  # noqa: E402
from plan import INSTALL, Plan, make_plan  # noqa: E402

TORCH_TARGET = "0x020a000000000000"  # the oldest torch the binary loads into: 2.10
PYTHON_TARGET = "0x030a0000"  # and Python: 3.10
REASON_FILE = "_build_reason.txt"  # msr_cuda._extension reads it
VERSION = runpy.run_path(str(ROOT / "msr_cuda" / "_version.py"))["__version__"]


def say(text: str) -> None:
    """One line of the build's own, apart from those of the tools it runs."""
    print(f"msr_cuda: {text}", flush=True)


def switched_on(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether an environment variable says 1; anything but 1, 0 and nothing is a mistake."""
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"msr_cuda: {name}: expected 0 or 1, got {value}")
    return value == "1"


def source_files(with_cuda: bool) -> list[str]:
    """Sorted, so that two builds link in the same order."""
    bindings = sorted(ROOT.glob("csrc/ops/*.cpp"))
    cpu_kernels = sorted(ROOT.glob("csrc/kernels/*.cpp"))
    cuda_kernels = sorted(ROOT.glob("csrc/kernels/*.cu"))
    if not with_cuda:
        bindings = [path for path in bindings if not path.stem.endswith("_cuda")]
        cuda_kernels = []
    return [str(path.relative_to(ROOT)) for path in bindings + cpu_kernels + cuda_kernels]


def architecture_list(toolkit: toolchain.CudaToolkit) -> str:
    """TORCH_CUDA_ARCH_LIST, resolved and checked before anything is compiled.

    torch's own default dies with an IndexError where no GPU is visible.
    """
    import torch
    from torch.utils import cpp_extension

    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if asked in ("", "native"):
        visible = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        if asked == "native" and not visible:
            default = toolchain.default_architectures(toolkit, [])
            sys.exit(
                "msr_cuda: TORCH_CUDA_ARCH_LIST=native, but no GPU is visible: "
                f'leave it away, or name them, as in TORCH_CUDA_ARCH_LIST="{default}"'
            )
        asked = toolchain.default_architectures(toolkit, visible)
    os.environ["TORCH_CUDA_ARCH_LIST"] = asked
    try:
        cpp_extension._get_cuda_arch_flags([])
    except ValueError as error:
        sys.exit(f"msr_cuda: TORCH_CUDA_ARCH_LIST={asked}: {error}")
    return asked


def make_extension(plan: Plan) -> Extension:
    """The one extension, and the environment that torch's build reads."""
    from torch.utils import cpp_extension

    assert plan.compiler is not None
    os.environ["CXX"] = plan.compiler  # torch and setuptools have different defaults
    jobs = os.environ.setdefault("MAX_JOBS", str(toolchain.default_jobs()))
    try:
        import ninja  # `venv/bin/pip` without activation leaves venv/bin off the PATH

        os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ.get("PATH", "")
    except ImportError:
        pass
    # torch defines Py_LIMITED_API from this; a second definition of ours would collide with it.
    cpp_extension.min_supported_cpython = PYTHON_TARGET

    with_cuda = plan.kind == "cuda"
    sanitize = switched_on("MSR_CUDA_SANITIZE")
    # python3 itself was built with -g, and hands that on: it makes the binary fifty times larger.
    common = ["-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    cxx = [*common, "-g0", "-fvisibility=hidden", "-Wall", f'-DMSR_VERSION="{VERSION}"']
    nvcc = [*common, "-Xcompiler=-fvisibility=hidden,-Wall"]
    link = []
    include_dirs = [str(ROOT / "csrc")]
    library_dirs = []
    facts = [
        ("MSR_CUDA_BUILD", f"{plan.asked} -> {plan.kind}"),
        *plan.notes,
        ("compiler version", toolchain.compiler_version(plan.compiler)),
        ("MAX_JOBS", jobs),
        ("MSR_CUDA_SANITIZE", str(int(sanitize))),
    ]
    if sys.platform == "linux":
        # torch's libraries are loaded privately: only as a dependency of ours do their symbols
        # resolve. libtorch.so is empty but for its own dependency on libtorch_cuda.so, which
        # --as-needed, the default of some distributions, would drop.
        link += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
        link += [] if sanitize else ["-Wl,-s"]
    if with_cuda:
        toolkit = plan.toolkit
        assert toolkit is not None
        # A CPU torch leaves CUDA_HOME None, and a script named nvcc leads it to the wrong folder.
        os.environ["CUDA_HOME"] = str(toolkit.home)
        cpp_extension.CUDA_HOME = str(toolkit.home)
        architectures = architecture_list(toolkit)
        facts.append(("TORCH_CUDA_ARCH_LIST", architectures))
        sources_cu = sum(path.endswith(".cu") for path in source_files(True))
        threads = max(1, min(architectures.count(";") + 1, int(jobs) // max(1, sources_cu)))
        # USE_CUDA makes torch's headers declare what only a CUDA torch defines.
        cxx += ["-DUSE_CUDA", "-DMSR_WITH_CUDA"]
        cxx += [f'-DMSR_CUDA_TOOLKIT="{toolkit.version_text}"']
        cxx += [f'-DMSR_CUDA_ARCHITECTURES="{architectures}"']
        # No flag here may contain "arch": torch would then drop TORCH_CUDA_ARCH_LIST.
        nvcc += ["-DUSE_CUDA", "-DMSR_WITH_CUDA", f"--threads={threads}"]
        if toolkit.include_dir != Path("/usr/include"):
            # As a system directory: -Wall is for our files.
            cxx += ["-isystem", str(toolkit.include_dir)]
        library_dirs.append(str(toolkit.library_dir))
        # Static: torch brings its own libcudart, of its own version, and may be a CPU build.
        link += ["-lcudart_static", "-lrt", "-ldl", "-lpthread"]
        link += ["-Wl,--exclude-libs,libcudart_static.a"]
    if sanitize:
        flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        # -O1: instrumented templates take minutes at -O3.
        cxx += [*flags, "-O1", "-fno-omit-frame-pointer", "-g1", "-DMSR_SANITIZE"]
        link += flags
    facts.append(("sources", " ".join(source_files(with_cuda))))
    extension = cpp_extension.CppExtension(
        "msr_cuda._C",
        source_files(with_cuda),
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
        py_limited_api=True,
    )
    extension.facts = facts
    return extension


def record(folder: Path, reason: str | None) -> None:
    """Leaves the reason where the package finds it, or removes that of an earlier build."""
    path = folder / REASON_FILE
    if reason is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(reason + "\n", encoding="utf-8")
    elif path.exists():
        path.unlink()


def remove_binaries(folder: Path) -> None:
    """An earlier build's binary must not stand in for the one that was not made."""
    for path in folder.glob("_C*.so"):
        say(f"removing {path}, made by an earlier build")
        path.unlink()


def make_commands(plan: Plan, base: type[setuptools_build_ext]) -> dict[str, type]:
    """The two commands of setuptools that this build changes."""

    class BuildPython(build_py):
        """Records what was left out when no extension is built at all."""

        def run(self) -> None:
            super().run()
            if self.distribution.has_ext_modules():
                return
            assert plan.missing is not None
            folder = ROOT / "msr_cuda" if self.editable_mode else Path(self.build_lib, "msr_cuda")
            say(f"installing pure Python, no kernels: {plan.missing}")
            remove_binaries(folder)
            record(folder, plan.missing)

    class BuildExtension(base):  # type: ignore[misc, valid-type]
        """Says what it builds, and in auto mode survives a compiler that does not work."""

        def finalize_options(self) -> None:
            super().finalize_options()
            if getattr(self, "editable_mode", False):
                # setuptools gives an editable build a throw-away folder; in a lasting one, ninja
                # compiles only what changed.
                kind = plan.kind + ("-sanitized" if switched_on("MSR_CUDA_SANITIZE") else "")
                self.build_temp = str(ROOT / "build" / f"editable-{kind}")

        def run(self) -> None:
            if plan.error is not None:
                sys.exit(f"msr_cuda: {plan.error}")
            for extension in self.extensions:
                for name, value in extension.facts:
                    say(f"{name} = {value}")
            if plan.missing is not None and plan.asked == "auto":
                say(f"building the CPU kernels only: {plan.missing}")
            super().run()

        def build_extensions(self) -> None:
            self._drop_outdated_cuda_objects()
            folders = {Path(self.get_ext_fullpath(ext.name)).parent for ext in self.extensions}
            if getattr(self, "editable_mode", False):
                folders.add(ROOT / "msr_cuda")
            reason = plan.missing
            try:
                super().build_extensions()
            except Exception as error:
                if plan.asked != "auto":
                    sys.exit(
                        f"msr_cuda: the extension did not compile, see above ({error}). If memory "
                        f"ran out: MAX_JOBS=1 MSR_CUDA_BUILD={plan.asked} {INSTALL}"
                    )
                reason = f"the extension did not compile ({type(error).__name__}: {error})"
                say(f"installing pure Python, no kernels: {reason}")
                for extension in self.extensions:
                    extension.optional = True  # setuptools looks for the file otherwise
                for folder in folders:
                    remove_binaries(folder)
            for folder in folders:
                record(folder, reason)
            # The binary itself has no symbols left.
            counts = count_kernels.count_in(sorted(Path(self.build_temp).rglob("*.o")))
            if counts is not None:
                say(count_kernels.summary(counts))

        def _drop_outdated_cuda_objects(self) -> None:
            """A CPU torch's ninja file does not know which headers a .cu file includes."""
            newest = max((path.stat().st_mtime for path in ROOT.glob("csrc/**/*.*h")), default=0.0)
            for path in Path(self.build_temp).glob("**/csrc/kernels/*.o"):
                if path.stat().st_mtime < newest:
                    path.unlink()

    return {"build_py": BuildPython, "build_ext": BuildExtension}


def main() -> None:
    """Plans, then hands over to setuptools."""
    os.chdir(ROOT)
    plan = make_plan(os.environ)
    base: type[setuptools_build_ext] = setuptools_build_ext
    extensions: list[Extension] = []
    if plan.error is not None:
        # Not here: metadata and sdists need no compiler. The command that does will say it.
        extensions = [Extension("msr_cuda._C", ["csrc/ops/library.cpp"])]
    elif plan.kind != "none":
        try:
            from torch.utils.cpp_extension import BuildExtension

            base = BuildExtension
            extensions = [make_extension(plan)]
        except (ImportError, OSError) as error:
            broken = f"torch {plan.torch.version if plan.torch else ''} cannot be imported: {error}"
            if plan.asked != "auto":
                sys.exit(f"msr_cuda: MSR_CUDA_BUILD={plan.asked}: {broken}")
            plan = Plan(plan.asked, "none", missing=broken)
    setup(
        ext_modules=extensions,
        cmdclass=make_commands(plan, base),
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
    )


if __name__ == "__main__":
    main()
