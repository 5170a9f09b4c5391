"""YOLOX: its necks, of which ``tests/minimal`` has models of our own."""

from __future__ import annotations

from torch import nn

from . import Model


def neck(name: str) -> nn.Module:
    from yolox import models

    return getattr(models, name)((6, 8, 10))


MODELS: dict[str, Model] = {
    "YOLOPAFPN": Model(lambda: neck("YOLOPAFPN"), (2, 3, 64, 96)),
    "YOLOFPN": Model(lambda: neck("YOLOFPN"), (2, 3, 64, 96)),
}
