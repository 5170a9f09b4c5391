"""Layers."""

from .aspp import ASPP as ASPP
from .wrappers import Conv2d as Conv2d
