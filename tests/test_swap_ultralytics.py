"""The recipe for ultralytics: pairs of layers that only the model connects."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_libraries import narrow_yolo, ultralytics  # noqa: F401
from swapping import (
    Case,
    assert_same_in_float64,
    flatten,
    fused_names,
    images,
    one_thread,  # noqa: F401
    run_model,
)
from torch import Tensor, nn

from msr_cuda.swap import fuse, unfuse
from msr_cuda.swap.recipes.torch import FusedUpsample

pytestmark = pytest.mark.usefixtures("ultralytics")

SITES = ["model.11", "model.14"]


def skipped(model: nn.Module, **options: Any) -> dict[str, str]:
    return {site.names[0]: site.how for site in fuse(model, **options).skipped}


def assert_same(model: nn.Module, twin: nn.Module) -> None:
    model, twin = copy.deepcopy(model).double().eval(), copy.deepcopy(twin).double().eval()
    case = Case(nn.Identity, (), run_model, [])
    assert_same_in_float64(case, model, twin, images(1, 3, 64, 96).double())


def class_names(model: nn.Module, *layers: int) -> list[str]:
    return [type(model.model[i]).__name__ for i in layers]


CONFIGURATIONS = {
    "yolov3-tiny.yaml": 1,
    "yolov5n.yaml": 2,
    "yolov8n-p2.yaml": 3,
    "yolov9t.yaml": 2,
    "yolov10n.yaml": 2,
    "yolo12n.yaml": 2,
    "yolo26n.yaml": 2,
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_upsampling_of_a_model_is_found(configuration: str) -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(configuration, verbose=False)
    upsamplings = [m for m in model.model if isinstance(m, nn.Upsample)]
    assert len(upsamplings) == CONFIGURATIONS[configuration]
    report = fuse(model, strict=True)
    assert len(report.swapped) == len(upsamplings)
    assert {type(m).__name__ for m in upsamplings} == {"HandedOnUpsample"}


def test_layers_between_and_relative_numbers() -> None:
    """RT-DETR's Concat takes the Upsample of two layers before: ``f = [-2, -1]``."""
    from ultralytics.nn.tasks import RTDETRDetectionModel

    with torch.device("meta"):
        model = RTDETRDetectionModel("rtdetr-l.yaml", verbose=False)
    report = fuse(model, strict=True)
    assert len(report.swapped) == 2
    for site in report.swapped:
        assert model.get_submodule(site.names[0]).f == [-2, -1]


def test_report_names_both_layers() -> None:
    (first, second) = fuse(narrow_yolo()).swapped
    assert first.how == "Upsampling straight into the concatenation, in place of model.10."
    assert second.how.endswith("in place of model.13.")


def test_training_step_and_checkpoint() -> None:
    """With the loss of ultralytics itself, and its copy of the model for the running average."""
    from ultralytics.cfg import get_cfg
    from ultralytics.utils.torch_utils import ModelEMA

    model = narrow_yolo()
    model.args = get_cfg()
    twin = copy.deepcopy(model)
    fuse(twin)
    batch = {
        "img": images(2, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.6, 0.5, 0.5]]),
    }
    losses = []
    for module in (model, twin):
        module.train()
        loss, _ = module(batch)
        loss.sum().backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0])
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    swapped = [p.grad for p in twin.parameters() if p.grad is not None]
    for actual, expected in zip(swapped, gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    average = ModelEMA(twin).ema
    average.load_state_dict(model.state_dict())
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(average).half(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert class_names(loaded, 10, 11) == ["HandedOnUpsample", "FusedConcat"]
    assert unfuse(loaded) == 4


def test_survives_the_fusing_of_batch_norms() -> None:
    model = narrow_yolo().eval()
    twin = copy.deepcopy(model)
    fuse(twin)
    model.fuse(verbose=False)
    twin.fuse(verbose=False)
    assert twin.is_fused()
    assert_same(model, twin)
    unfuse(twin)
    assert class_names(twin, 10, 11) == ["Upsample", "Concat"]
    assert_same(model, twin)


def test_profile_and_embeddings() -> None:
    model = narrow_yolo().eval()
    twin = copy.deepcopy(model)
    fuse(twin)
    x = images(2, 3, 64, 96)
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        expected = flatten(model(x))
        profiled = flatten(twin(x, profile=True))
        # The mean over the pixels is the same before and after upsampling by 2.
        for layers in ([11], [9, 10, 14], [21]):
            embeddings = model(x, embed=layers), twin(x, embed=layers)
            for a, b in zip(*embeddings, strict=True):
                torch.testing.assert_close(a, b)
    for name, value in expected.items():
        torch.testing.assert_close(profiled[name], value)


def test_bilinear_upsampling() -> None:
    model = narrow_yolo()
    model.model[10].mode = "bilinear"
    model.model[13].mode = "bilinear"
    model.model[13].align_corners = True
    twin = copy.deepcopy(model)
    assert fused_names(fuse(twin, strict=True)) == SITES
    assert_same(model, twin)


def test_several_upsamplings_into_one_concat() -> None:
    """In any order, of several kinds, and also without a map that has the size already."""
    from ultralytics.nn.modules.conv import Concat
    from ultralytics.nn.tasks import BaseModel

    class Net(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            layers = [
                (nn.Conv2d(3, 4, 3, 2, 1), -1),
                (nn.Conv2d(4, 5, 3, 2, 1), -1),
                (nn.Upsample(scale_factor=4, mode="bilinear"), -1),
                (nn.Upsample(scale_factor=2), 0),
                (nn.Conv2d(3, 2, 1), [-1]),
                (Concat(), [3, 2]),
                (nn.Upsample(scale_factor=(2, 1), mode="nearest-exact"), 1),
                (nn.Upsample(scale_factor=(1, 2)), -1),
                (Concat(), [0, -1]),
            ]
            layers[4] = (nn.Identity(), 3)
            self.model = nn.Sequential(*(layer for layer, _ in layers))
            for i, (layer, source) in enumerate(layers):
                layer.i, layer.f, layer.type, layer.np = i, source, "layer", 0
            self.save = list(range(9))

    net = Net()
    assert skipped(net) == {"model.5": "the result of layer 3 is used 2 times"}
    assert class_names(net, 2, 3, 6, 7, 8) == [
        "FusedUpsample",
        "FusedUpsample",
        "FusedUpsample",
        "HandedOnUpsample",
        "FusedConcat",
    ]
    unfuse(net)
    net.model[4].f = 0
    twin = copy.deepcopy(net)
    assert fused_names(fuse(twin)) == ["model.5", "model.6", "model.8"]
    x = images(2, 3, 16, 24)
    torch.testing.assert_close(twin(x), net(x))
    seen: list[Tensor] = []
    for module in (net, twin):
        module.model[5].register_forward_hook(lambda module, args, output: seen.append(output))
        module(x)
    torch.testing.assert_close(seen[1], seen[0])


# What is left alone, and why.


def set_layer(index: int, **attributes: Any) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for name, value in attributes.items():
            setattr(model.model[index], name, value)

    return change


def add_hook(index: int, register_hook: str) -> Callable[[nn.Module], None]:
    return lambda model: getattr(model.model[index], register_hook)(lambda *args: None)


def share(model: nn.Module) -> None:
    model.shortcut = model.model[10]


CHANGES = {
    "second use": (set_layer(19, f=[-1, 10]), "the result of layer 10 is used 2 times"),
    "dimension": (set_layer(11, d=2), "it concatenates along dimension 2, not the channels"),
    "mode": (set_layer(10, mode="lanczos"), "layer 10: unknown mode 'lanczos'"),
    "size": (
        set_layer(10, size=(4, 6), scale_factor=None),
        "layer 10 has a size of its own",
    ),
    "recomputed": (
        set_layer(10, recompute_scale_factor=True),
        "layer 10 recomputes its scale factor",
    ),
    "shared": (share, "model.10 is used elsewhere, too"),
    "own forward": (
        set_layer(10, forward=lambda input: input),
        "model.10: the instance has its own forward attribute",
    ),
    "own forward of the Concat": (
        set_layer(11, forward=lambda x: x[0]),
        "the instance has its own forward attribute",
    ),
    "hook": (
        add_hook(10, "register_forward_hook"),
        "a hook on model.10 would see another map than now",
    ),
    "pre-hook of the Concat": (
        add_hook(11, "register_forward_pre_hook"),
        "a hook on model.11 would see another map than now",
    ),
    "backward hook": (
        add_hook(11, "register_full_backward_hook"),
        "a hook on model.11 would see another map than now",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_pairs_that_are_left_alone(change: str) -> None:
    model = narrow_yolo()
    alter, reason = CHANGES[change]
    alter(model)
    found = skipped(model)
    assert found["model.11"] == reason
    assert class_names(model, 11, 13, 14) == ["Concat", "HandedOnUpsample", "FusedConcat"]
    with pytest.raises(RuntimeError, match="strict=True"):
        fuse(narrow_changed(alter), strict=True)


def narrow_changed(alter: Callable[[nn.Module], None]) -> nn.Module:
    model = narrow_yolo()
    alter(model)
    return model


def test_an_upsampling_that_is_left_to_itself_is_still_fused() -> None:
    model = narrow_yolo()
    add_hook(11, "register_forward_hook")(model)
    twin = copy.deepcopy(model)
    fuse(twin)
    assert type(twin.model[10]) is FusedUpsample
    assert_same(model, twin)
    # Not even when the reason has gone: it is another site now.
    twin.model[11]._forward_hooks.clear()
    assert skipped(twin) == {"model.11": "model.10: is fused by itself: unfuse it first"}
    unfuse(twin.model[10])
    assert skipped(twin) == {}


def test_filter_is_asked_for_both() -> None:
    for name, upsample in (("model.11", "FusedUpsample"), ("model.10", "Upsample")):
        model = narrow_yolo()
        found = skipped(model, strict=True, filter=lambda _, asked, left=name: asked != left)
        assert found["model.11"] == "left out by the filter"
        assert class_names(model, 10, 11, 14) == [upsample, "Concat", "FusedConcat"]


def test_half_of_a_pair_is_never_restored_alone() -> None:
    model = narrow_yolo().eval()
    x = images(1, 3, 64, 64)
    expected = flatten(model(x))
    for part in (10, 11):
        fuse(model)
        assert unfuse(model.model[part]) == 2
        assert class_names(model, 10, 11, 13, 14) == [
            "Upsample",
            "Concat",
            "HandedOnUpsample",
            "FusedConcat",
        ]
        assert unfuse(model) == 2
    for name, value in flatten(model(x)).items():
        assert torch.equal(value, expected[name])


def test_models_that_call_their_layers_in_another_way_are_left_alone() -> None:
    from ultralytics.nn.tasks import DetectionModel

    class Other(DetectionModel):
        def _predict_once(self, x: Tensor, profile: bool = False, embed: Any = None) -> Any:
            return super()._predict_once(x, profile, embed)

    model = narrow_yolo()
    model.__class__ = Other
    found = skipped(model)
    assert set(found) == set(SITES)
    assert "Other._predict_once" in found["model.11"]
    assert "is not a known one" in found["model.11"]

    model = narrow_yolo()
    model._predict_once = lambda x, *args: x
    assert "DetectionModel._predict_once" in skipped(model)["model.11"]

    class Derived(DetectionModel):
        """Calls its layers as its base does."""

        def init_criterion(self) -> None:
            return None

    model = narrow_yolo()
    model.__class__ = Derived
    assert skipped(model) == {}


def test_layers_without_numbers_are_left_alone() -> None:
    model = narrow_yolo()
    del model.model[4].f
    assert "layer 4 does not say which results it takes" in skipped(model)["model.11"]
    model = narrow_yolo()
    model.model[4].i = 5
    assert "layer 4 does not say which results it takes" in skipped(model)["model.14"]


def test_layers_without_their_model_are_no_pairs() -> None:
    """What is not the model cannot know that nothing else uses the upsampled map."""
    model = narrow_yolo()
    assert fused_names(fuse(model.model)) == ["10", "13"]
    assert type(model.model[10]) is FusedUpsample


def test_the_model_may_be_part_of_another() -> None:
    model = narrow_yolo()
    both = nn.ModuleDict({"a": model, "b": model})
    report = fuse(both)
    assert [site.names for site in report.swapped] == [
        ("a.model.11", "b.model.11"),
        ("a.model.14", "b.model.14"),
    ]
    assert unfuse(both) == 4
