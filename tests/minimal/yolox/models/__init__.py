"""Models."""

from .yolo_fpn import YOLOFPN as YOLOFPN
from .yolo_pafpn import YOLOPAFPN as YOLOPAFPN
