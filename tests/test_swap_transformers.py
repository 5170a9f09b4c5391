"""Losses that models of transformers compute from upsampled logits, when they are swapped."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import need_kernel
from swap_checks import fused_copy, get, run
from swapping import one_thread  # noqa: F401
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zoo import Model
from zoo.transformers import labels

from msr_cuda import testing
from msr_cuda.swap import _registry, fuse, unfuse

SEGFORMER, UPERNET, BEIT = "SegFormer", "UPerNet on Swin", "BEiT with UPerNet"
DATA2VEC, TIPS = "Data2Vec with UPerNet", "TIPSv2 with DPT, segmentation"


@functools.cache
def made(name: str) -> tuple[Model, nn.Module]:
    entry = get("transformers", name)
    return entry, entry.new()


def model_of(name: str) -> tuple[Any, Tensor]:
    """A model to be changed, and images for it."""
    entry, model = made(name)
    return copy.deepcopy(model), entry.images()


def target(x: Tensor, extra: int = 0) -> Tensor:
    return labels(x, [n + extra for n in x.shape[2:]])


class Written(TorchDispatchMode):
    """The names of all operators, and the shapes of what they make; the backward's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        self.shapes += [tuple(x.shape) for x in tree_leaves(output) if isinstance(x, Tensor)]
        return output


def with_logits(shapes: list[tuple[int, ...]], classes: int, y: Tensor) -> int:
    """How many of the tensors have the shape of upsampled logits."""
    return shapes.count((y.shape[0], classes, *y.shape[1:]))


@pytest.mark.parametrize("name", [SEGFORMER, BEIT, DATA2VEC])
def test_no_upsampled_logits_are_written(name: str) -> None:
    need_kernel("cpu")
    model, x = model_of(name)
    y = target(x, 5)
    counts = []
    for twin in (model, fused_copy(model)[0]):
        with Written() as written:
            twin(x, labels=y).loss.backward()
        counts.append(with_logits(written.shapes, 5, y))
    assert counts[0] > 0 == counts[1]


def test_logits_that_are_a_result_are_written_once() -> None:
    """And an auxiliary head's are not upsampled, where there are no labels."""
    need_kernel("cpu")
    model, x = model_of(UPERNET)
    fuse(model)
    y = target(x)
    for options in ({"labels": y}, {}):
        with Written() as written, torch.no_grad():
            logits = model(x, **options).logits
        assert logits.shape == (2, 5, *y.shape[1:])
        assert with_logits(written.shapes, 5, y) == 1


def binary_segformer() -> nn.Module:
    model, _ = model_of(SEGFORMER)
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    torch.manual_seed(2)
    return type(model)(config).train()


def binary(model: Any, x: Tensor) -> Any:
    return model(x, labels=torch.where(target(x, 5) == 255, 255, target(x, 5) % 2))


def test_binary_loss() -> None:
    """One class has a loss of its own: errors are those of the model, but for chance."""
    entry = Model(binary_segformer, (2, 3, 72, 104), binary)
    model = binary_segformer()
    twin, report = fused_copy(model)
    assert report.skipped == []
    x = entry.images()
    truth = run(entry, copy.deepcopy(model).double(), x.double())
    expected, actual = run(entry, model, x), run(entry, twin, x)
    assert actual[0].keys() == expected[0].keys() and actual[1].keys() == expected[1].keys()
    norms = []
    for found in (expected, actual):
        norms.append([(found[1][k].double() - v).norm() / v.norm() for k, v in truth[1].items()])
    before, after = (torch.stack(list_).median() for list_ in norms)
    assert after <= testing.SWAPPED_ERROR_RATIO * before
    torch.testing.assert_close(actual[0]["output.loss"], expected[0]["output.loss"])
    # PyTorch's loss of float64 logits is rounded to float32, and stays PyTorch's.
    same = run(entry, copy.deepcopy(twin).double(), x.double())[0]
    assert same["output.loss"].dtype == truth[0]["output.loss"].dtype
    torch.testing.assert_close(same["output.loss"], truth[0]["output.loss"], rtol=1e-7, atol=0)


def test_binary_loss_upsamples_no_logits() -> None:
    need_kernel("cpu")
    model = binary_segformer()
    _, x = model_of(SEGFORMER)
    counts = []
    for twin in (model, fused_copy(model)[0]):
        with Written() as written:
            binary(twin, x).loss.backward()
        counts.append(sum("upsample" in name for name in written.names))
    assert counts[0] > 0 == counts[1]


@pytest.mark.parametrize("name", [SEGFORMER, UPERNET])
def test_results_as_a_tuple(name: str) -> None:
    model, x = model_of(name)
    twin, _ = fused_copy(model)
    with torch.no_grad():
        expected, actual = (
            m(x, labels=target(x), return_dict=False, output_hidden_states=True)
            for m in (model, twin)
        )
    assert len(actual) == len(expected) > 2
    torch.testing.assert_close(actual, expected)


def wrong_size(y: Tensor) -> Tensor:
    return y[:, 1:]


def of_another_batch(y: Tensor) -> Tensor:
    return torch.cat([y, y])


def probabilities(y: Tensor) -> Tensor:
    return torch.ones(2, 5, *y.shape[1:]) / 5


@pytest.mark.parametrize("change", [wrong_size, of_another_batch, Tensor.int, probabilities])
def test_labels_that_the_model_refuses(change: Callable[[Tensor], Tensor]) -> None:
    model, x = model_of(UPERNET)
    twin, _ = fused_copy(model)
    messages = []
    for module in (model, twin):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            module(x, labels=change(target(x)))
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]


def test_half_logits_have_a_half_loss() -> None:
    model, x = model_of(SEGFORMER)
    model, x = model.bfloat16(), x.bfloat16()
    twin, _ = fused_copy(model)
    expected, actual = (m(x, labels=target(x)).loss for m in (model, twin))
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected)


def loud(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """A loss function of one's own; it tells what it got."""
    loud.told.append((logits.shape, sorted(options)))  # type: ignore[attr-defined]
    return logits.sum()


@pytest.mark.parametrize("name", [BEIT, TIPS])
def test_a_loss_function_of_ones_own(name: str) -> None:
    loud.told = []  # type: ignore[attr-defined]
    model, x = model_of(name)
    twin, _ = fused_copy(model)
    model.loss_function = twin.loss_function = loud  # after fusing, too
    model(x, labels=target(x))
    twin(x, labels=target(x))
    first, second = loud.told  # type: ignore[attr-defined]
    assert first == second
    (site,) = [site for site in fuse(model).skipped if "" in site.names]
    assert site.how == "its loss_function is not the known ForSemanticSegmentationLoss"


def test_a_method_that_is_not_the_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_of(DATA2VEC)
    model.compute_loss = loud
    (site,) = [site for site in fuse(model).skipped if "" in site.names]
    assert site.how.endswith(
        "Data2VecVisionForSemanticSegmentation.compute_loss is not a known one"
    )


def test_a_subclass_is_left_alone() -> None:
    model, _ = model_of(SEGFORMER)

    class Own(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model.__class__ = Own
    (site,) = [site for site in fuse(model).skipped if "" in site.names]
    assert "with its own" in site.how and "forward" in site.how


def test_a_model_is_saved_under_the_name_that_it_had(tmp_path: Any) -> None:
    model, x = model_of(SEGFORMER)
    original = type(model)
    fuse(model)
    assert type(model).__name__ == original.__name__
    assert _registry.describe(type(model)).endswith(".FusedSegformerForSemanticSegmentation")
    model.save_pretrained(tmp_path)
    loaded, told = original.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.config.architectures == ["SegformerForSemanticSegmentation"]
    assert not any(told.values())
    copied = pickle.loads(pickle.dumps(model))
    assert type(copied) is type(model)
    assert unfuse(copied) and type(copied) is original
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, model(x).logits)


def test_bytes_of_a_loss_are_reported() -> None:
    need_kernel("cpu")
    model, x = model_of(SEGFORMER)
    report = fuse(model)
    y = target(x)
    (site,) = [site for site in report.measure(x, labels=y).swapped if "" in site.names]
    assert site.traffic is not None and site.traffic.fallback is None
    # PyTorch writes and reads the upsampled logits, then their logarithms; kept is one per pixel.
    upsampled = 4 * 5 * y.numel()
    assert site.traffic.saved_bytes == 4 * upsampled - 4 * y.numel()
    assert site.traffic.saved_launches == 2
