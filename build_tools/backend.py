"""PEP 517 backend: setuptools.build_meta, with torch taken from the user's own environment.

An extension must be compiled against the torch it will be loaded into. A plain
``[build-system] requires = ["torch"]`` makes ``pip install .`` download the newest torch (several
GB, perhaps of another CUDA version) into a throw-away environment and compile against that one.
pip runs the build with the very interpreter that is being installed into and merely hides its
site-packages, so this backend looks there. It works without a network too: nothing is fetched when
that environment already has setuptools and ninja.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import sys
import sysconfig
from collections.abc import Callable
from importlib import metadata, util
from typing import Any


def _host_site_packages() -> list[str]:
    """Where the interpreter that runs the build keeps its packages (hidden by build isolation)."""
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if virtual_env := os.environ.get("VIRTUAL_ENV"):
        # Front ends other than pip (uv, `python -m build`) isolate in an environment of their own;
        # an activated virtual environment still says where the user's torch is.
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        paths.append(os.path.join(virtual_env, "lib", version, "site-packages"))
    paths += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        paths.append(site.getusersitepackages())
    return [path for path in dict.fromkeys(paths) if os.path.isdir(path)]


def _borrow_torch() -> None:
    """Append (never prepend) the host's site-packages: what the isolation installed must win."""
    if util.find_spec("torch") is not None:
        return
    paths = _host_site_packages()
    for path in paths:
        if os.path.isdir(os.path.join(path, "torch")):
            sys.path.append(path)
            return
    # A virtual environment made on top of another one reaches torch through a .pth file.
    for path in paths:
        site.addsitedir(path)
        if util.find_spec("torch") is not None:
            return


def _has(name: str, minimum: tuple[int, ...] = ()) -> bool:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return tuple(int(number) for number in re.findall(r"\d+", found)[:2]) >= minimum


def _setuptools_requirements() -> list[str]:
    # 64 is the first that can do editable installs. No upper bound: torch has its own opinion on
    # that and it is the user's environment. Before 70.1 wheels were built by another package.
    if not _has("setuptools", (64,)):
        return ["setuptools>=64"]
    if not _has("setuptools", (70, 1)) and not _has("wheel"):
        return ["wheel"]
    return []


def _keep_torch() -> None:
    """Stops where pip would go on to replace the torch that is there by a newer one."""
    try:
        found = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return
    from plan import OLDEST_TORCH  # beside this file, which the front end puts on the path

    oldest = ".".join(map(str, OLDEST_TORCH))
    # To pip 2.10.0a0 is older than 2.10; containers have such builds.
    earlier = re.match(rf"{re.escape(oldest)}(\.0)*\.?(a|b|rc|dev)\d", found)
    if earlier or not _has("torch", OLDEST_TORCH):
        sys.exit(
            f"msr_cuda: needs torch >= {oldest}; found: torch {found}, which pip would replace by "
            "the newest there is, perhaps for another CUDA version. To update it, then install: "
            f"python -m pip install 'torch>={oldest}' && python -m pip install . "
            "To keep it: python -m pip install --no-build-isolation --no-deps ."
        )


def get_requires_for_build_sdist(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 517 hook: what must be installed before an sdist can be made."""
    return _setuptools_requirements()


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """PEP 517 hook: what must be installed before a wheel can be built. Never torch."""
    _keep_torch()
    requirements = _setuptools_requirements()
    if os.environ.get("MSR_CUDA_BUILD", "auto") != "none" and not (
        _has("ninja") or shutil.which("ninja")
    ):
        requirements.append("ninja")
    return requirements


get_requires_for_build_editable = get_requires_for_build_wheel


def _delegate(name: str) -> Callable[..., Any]:
    def hook(*args: Any, **kwargs: Any) -> Any:
        # Not at the top of the file: the front end asks for the requirements before it is there.
        from setuptools import build_meta

        return getattr(build_meta, name)(*args, **kwargs)

    hook.__name__ = name
    return hook


_borrow_torch()

build_sdist = _delegate("build_sdist")
build_wheel = _delegate("build_wheel")
build_editable = _delegate("build_editable")
prepare_metadata_for_build_wheel = _delegate("prepare_metadata_for_build_wheel")
prepare_metadata_for_build_editable = _delegate("prepare_metadata_for_build_editable")
