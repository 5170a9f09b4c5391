#!/usr/bin/env python3
"""Makes a CUDA build of torch importable without its CUDA libraries, for tests of installation.

`pip install --no-deps torch` brings half a gigabyte, the CUDA libraries that it links to another
three. To import torch, to compile and link an extension against it and to run what needs no GPU,
only the names in them are needed. This writes libraries that define those names into torch/lib;
every function in them traps, so that nothing can compute with one. Never do this where a GPU is.

    python build_tools/cuda_stand_ins.py SITE_PACKAGES

libcudart and libcupti must be real, as torch calls them when it is imported: nvidia-cuda-runtime
and nvidia-cuda-cupti are small.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# What the system has, and what torch calls when it is imported.
REAL = re.compile(
    r"(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux.*|libgomp|libutil|libz"
    r"|libquadmath|libcudart|libcupti)[.-]"
)
# Unversioned names: those that the CUDA libraries define, and not the system's.
CUDA_NAME = re.compile(r"p?nccl|nvshmem|nvtx|nvrtc|nvJit|cu[A-Zdbfsr]")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _needed_versions(library: Path) -> dict[str, str]:
    """Version of a symbol -> the library that has to define it."""
    owners: dict[str, str] = {}
    in_needs, file = False, ""
    for line in _output("readelf", "-V", "-W", str(library)).splitlines():
        if line.startswith("Version"):
            in_needs = line.startswith("Version needs section")
        if in_needs and (found := re.search(r"File: (\S+)", line)):
            file = found[1]
        if in_needs and (found := re.search(r"Name: (\S+)", line)):
            owners[found[1]] = file
    return owners


def stand_ins(folder: Path) -> dict[str, dict[str, set[str]]]:
    """What the libraries of a folder need and do not find: library -> version -> names.

    The version "" holds names without one. Nothing says whose those are: the first gets them.
    """
    libraries = [p for p in folder.glob("lib*.so*") if not p.is_symlink()]
    here = {path.name for path in libraries}
    absent: dict[str, dict[str, set[str]]] = {}
    defined: set[str] = set()
    unversioned: set[str] = set()
    versioned: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in libraries:
        for name in re.findall(r"NEEDED.*\[(.*)\]", _output("readelf", "-d", str(path))):
            if name not in here and not REAL.match(name):
                absent[name] = {}
        owners = _needed_versions(path)
        for line in _output("nm", "-D", "--with-symbol-versions", str(path)).splitlines():
            kind, symbol = line.split()[-2:]
            name, _, version = symbol.partition("@")
            if kind not in ("U", "w", "v"):
                defined.add(name)
            elif not version:
                unversioned.add(name)
            elif owner := owners.get(version.lstrip("@")):
                versioned[owner][version.lstrip("@")].add(name)
    for library, names in absent.items():
        names.update(versioned.get(library, {}))
    if absent:
        loose = {name for name in unversioned - defined if CUDA_NAME.match(name)}
        absent[min(absent)].setdefault("", set()).update(loose)
    return absent


def write(path: Path, versions: dict[str, set[str]]) -> None:
    """A library of that name whose functions trap."""
    names = sorted(set().union(*versions.values()))
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch, "names.c"), Path(scratch, "names.map")
        text = "".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in names)
        source.write_text(text, encoding="utf-8")
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-o", str(path), str(source)]
        command.append(f"-Wl,-soname,{path.name}")
        blocks = [
            f"{version} {{ global: {' '.join(f'{n};' for n in sorted(found))} }};\n"
            for version, found in versions.items()
            if version
        ]
        if blocks:
            script.write_text("".join(blocks), encoding="utf-8")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def main() -> int:
    """Writes them, and says how many."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site_packages", type=Path)
    folder = parser.parse_args().site_packages / "torch" / "lib"
    absent = stand_ins(folder)
    for name, versions in sorted(absent.items()):
        write(folder / name, versions)
    print(f"cuda_stand_ins: {len(absent)} libraries: {' '.join(sorted(absent))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
