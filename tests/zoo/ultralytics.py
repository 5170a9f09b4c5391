"""ultralytics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import Model, OnPyramid


def yolo(configuration: str) -> Callable[[], nn.Module]:
    """A detector by the name of its file, of which the smallest size is made."""

    def make() -> nn.Module:
        from ultralytics.nn.tasks import DetectionModel

        return DetectionModel(configuration, nc=3, verbose=False)

    return make


def cbfuse() -> nn.Module:
    from ultralytics.nn.modules.block import CBFuse

    def call(part: nn.Module, maps: list[Tensor]) -> Any:
        return part([(x,) for x in maps[:-1]] + maps[-1:])

    return OnPyramid(CBFuse([0, 0, 0]), (6,) * 4, (4, 8, 16, 2), call)


def proto26() -> nn.Module:
    from ultralytics.nn.modules.block import Proto26

    return OnPyramid(Proto26((8, 12, 16), 8, 4, 3), (8, 12, 16), (4, 8, 16))


MODELS: dict[str, Model] = {
    name: Model(yolo(configuration), (1, 3, 64, 96), compared=False)
    for name, configuration in {
        "YOLOv3-tiny": "yolov3-tiny.yaml",
        "YOLOv5": "yolov5n.yaml",
        "YOLOv8": "yolov8n.yaml",
        "YOLOv10": "yolov10n.yaml",
        "YOLO11": "yolo11n.yaml",
        "YOLO12": "yolo12n.yaml",
        "YOLO26": "yolo26n.yaml",
    }.items()
}
MODELS["YOLOv9, CBFuse"] = Model(cbfuse, (2, 3, 48, 64))
MODELS["YOLO26, Proto26"] = Model(proto26, (2, 3, 64, 96), no_gradient=("part.semseg.*",))
