"""Lets models of OpenMMLab be imported beside mmcv-lite, which has no compiled operators.

``mmdet.models``, ``mmseg.models`` and ``mmpose.models`` import every model, and some of them look
for the operators of mmcv's full build, for two more builds of the COCO tools, and for a renderer of
bodies. The modules of the zoo need none of these. Import this module first: what is missing can be
imported then, and raises where it is called.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

#: Module -> what has to be there.
_WANTED = ("mmcv._ext", "xtcocotools", "xtcocotools.coco", "xtcocotools.cocoeval",
           "xtcocotools.mask", "chumpy")  # fmt: skip


class Missing(ModuleType):
    """A module whose functions and classes raise when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        class Absent:
            def __init__(self, *args: object, **options: object) -> None:
                raise RuntimeError(f"{name} needs {Absent.__module__}, which is not installed")

        Absent.__name__ = Absent.__qualname__ = name
        Absent.__module__ = self.__name__
        return Absent


def install() -> list[str]:
    """Puts a :class:`Missing` in place of each module that is absent.

    Returns:
        Their names; none without mmcv.
    """
    if importlib.util.find_spec("mmcv") is None:
        return []
    absent = []
    for name in _WANTED:
        parent, _, child = name.rpartition(".")
        if parent in absent or importlib.util.find_spec(name) is None:
            module = Missing(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__path__ = []
            sys.modules[name] = module
            if parent in absent:
                setattr(sys.modules[parent], child, module)
            absent.append(name)
    return absent


ABSENT = install()
