"""basicsr: what resamples in it, of which ``tests/minimal`` has models of our own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import Model, OnPyramid


def network(file: str, name: str) -> nn.Module:
    from basicsr import archs

    return getattr(getattr(archs, f"{file}_arch"), name)()


def frames(model: Any, x: Tensor) -> Any:
    return model(torch.stack([x, x.flip(2), x.flip(3)], 1))


def temporal_fusion() -> nn.Module:
    return OnPyramid(
        network("edvr", "TSAFusion"), (4,), (2,), lambda part, maps: frames(part, *maps)
    )


MODELS: dict[str, Model] = {
    "SRVGGNetCompact": Model(lambda: network("srvgg", "SRVGGNetCompact"), (2, 3, 15, 21)),
    "BasicVSR": Model(lambda: network("basicvsr", "BasicVSR"), (2, 3, 15, 21), frames),
    "EDVR, deblurring": Model(lambda: network("edvr", "PredeblurModule"), (2, 3, 32, 48)),
    "EDVR, attention": Model(temporal_fusion, (2, 3, 32, 48)),
    "RRDBNet": Model(lambda: network("rrdbnet", "RRDBNet"), (2, 3, 15, 21), compared=False),
}
