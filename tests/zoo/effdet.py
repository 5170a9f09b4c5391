"""effdet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from . import Model


def detector(
    name: str, size: tuple[int, int] = (128, 128), **options: Any
) -> Callable[[], nn.Module]:
    """A detector with few channels and repetitions."""

    def make() -> nn.Module:
        from effdet import EfficientDet, get_efficientdet_config

        config = get_efficientdet_config(name)
        changes = dict(
            image_size=size, num_classes=2, fpn_channels=8, fpn_cell_repeats=2, box_class_repeats=1
        )
        config.update({**changes, "backbone_args": {"drop_path_rate": 0.0}, **options})
        return EfficientDet(config, pretrained_backbone=False)

    return make


_BACKBONE = dict(backbone_name="test_resnet.r160_in1k", backbone_indices=(2, 3, 4))

MODELS: dict[str, Model] = {
    "EfficientDet-D0": Model(detector("tf_efficientdet_d0", fpn_cell_repeats=3), (2, 3, 128, 128)),
    "EfficientDet-D7, sums": Model(
        detector("tf_efficientdet_d7", (128, 192), **_BACKBONE), (1, 3, 128, 192)
    ),
    "EfficientDet-Q0": Model(detector("efficientdet_q0", **_BACKBONE), (2, 3, 128, 128)),
    "CSPResDet50": Model(detector("cspresdet50", **_BACKBONE), (2, 3, 128, 128)),
    "EfficientDet-D0, softmax": Model(
        detector("efficientdet_d0", **_BACKBONE, fpn_name="bifpn_attn"), (2, 3, 128, 128)
    ),
}
