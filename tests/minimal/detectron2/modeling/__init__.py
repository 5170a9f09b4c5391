"""Models."""

from .backbone.fpn import FPN as FPN
from .meta_arch.semantic_seg import SemSegFPNHead as SemSegFPNHead
