"""Lets packages be imported that cannot be installed beside a torch without CUDA, or by pip at all.

``tests/minimal`` has models of our own in their place, small, with the names of the packages'
modules, classes and attributes and with what their ``forward`` does. Recipes for the packages are
tested on these. Import this module first: they go before a package that is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "minimal"
#: The packages that are there.
PACKAGES = sorted(path.name for path in FOLDER.iterdir() if (path / "__init__.py").exists())

if str(FOLDER) not in sys.path:
    sys.path.insert(0, str(FOLDER))
