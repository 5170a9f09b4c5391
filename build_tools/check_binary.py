#!/usr/bin/env python3
"""Checks that a built _C.abi3.so keeps to the stable ABIs, then loads it.

One binary serves every later torch and Python only while it refers to no C++ symbol of torch, and
while what only a CUDA torch has is weak. Prints what the binary says of itself and its operators.

    python build_tools/check_binary.py [--with-cuda] path/to/_C.abi3.so
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

# C++ names of namespaces at, c10 and torch, also const members (_ZNK) and type information (_ZTI).
TORCH_CXX = re.compile(r"^_Z(?:N[KVRO]*|T[IVS]N?|GV)(?:2at|3c10|5torch)")
# Defined by a CUDA build of torch alone.
CUDA_ONLY = re.compile(r"^(?:aoti_torch_\w*cuda_(?:guard|stream)\w*|torch_c10_cuda\w*)$")


def undefined_symbols(binary: Path) -> list[tuple[str, str]]:
    """``(kind, name)``: ``U`` must be found at load time, ``w`` or ``v`` (weak) need not be."""
    command = ["nm", "-D", "--undefined-only", str(binary)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    pairs = [line.split()[-2:] for line in lines if line.strip()]
    return [(kind, name.split("@")[0]) for kind, name in pairs]


def main() -> int:
    """Prints one line for each offence; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--with-cuda", action="store_true", help="it must hold CUDA kernels")
    arguments = parser.parse_args()
    offences = []
    for kind, name in undefined_symbols(arguments.binary):
        if TORCH_CXX.match(name):
            offences.append(f"refers to C++ of torch, which changes between releases: {name}")
        if kind == "U" and CUDA_ONLY.match(name):
            offences.append(f"needs a CUDA build of torch (a `#pragma weak` is missing): {name}")
    if not offences:
        import torch

        torch.ops.load_library(str(arguments.binary.resolve()))
        build = json.loads(torch.ops.msr_cuda.build_info())
        print("check_binary:", ", ".join(f"{name} {value}" for name, value in build.items()))
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        names = torch._C._dispatch_get_all_op_names()
        ours = sorted(name for name in names if name.startswith("msr_cuda::"))
        for key in ("CPU", "CUDA"):
            held = [name.removeprefix("msr_cuda::") for name in ours if has(name, key)]
            print(f"check_binary: {len(held)} operators for {key}: {' '.join(held)}")
        if arguments.with_cuda:
            lacking = [name for name in ours if has(name, "CPU") and not has(name, "CUDA")]
            offences += [f"has a CPU kernel and no CUDA kernel: {name}" for name in lacking]
            if not build["with_cuda"]:
                offences.append("was built without CUDA")
    for offence in offences:
        print(f"check_binary: {arguments.binary.name} {offence}")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
