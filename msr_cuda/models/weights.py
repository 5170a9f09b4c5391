"""Loads the weights of a plain ResNet into the trunk of a multi-scale network.

Example::

    >>> from msr_cuda.models import load_trunk, multiscale_resnet18
    >>> plain = multiscale_resnet18(scales=[1.0], num_classes=10)
    >>> weights = {n.removeprefix("encoder.trunk."): v for n, v in plain.state_dict().items()}
    >>> report = load_trunk(multiscale_resnet18(num_classes=5, in_channels=1), weights)
    >>> print(report)
    loaded 120 tensors into the trunk; adapted: conv1.weight (3 to 1 input channels)
    of another shape, left as they were: fc.weight, fc.bias
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .resnet import Classifier, ResNetTrunk

_STEM = "conv1.weight"
#: With the stem, these tell a ResNet from other networks that have a ``conv1``.
_MARKS = ("bn1.weight", "layer1.0.conv1.weight")


@dataclass
class WeightsReport:
    """What :func:`load_trunk` did, by the names of a plain ResNet.

    Attributes:
        loaded: copied into the network, the adapted ones among them.
        adapted: copied after a change, with what was changed.
        missing: of the network, and not in the file: left as they were.
        unexpected: in the file, and not of the network.
        mismatched: of another shape: left as they were.
        prefix: what the file's names of the ResNet start with.
    """

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    prefix: str = ""

    def __str__(self) -> str:
        text = f"loaded {len(self.loaded)} tensors into the trunk"
        if self.adapted:
            changes = ", ".join(f"{name} ({what})" for name, what in self.adapted.items())
            text += f"; adapted: {changes}"
        lines = [text]
        for title, names in (
            ("not in the file, left as they were", self.missing),
            ("in the file, not of the network", self.unexpected),
            ("of another shape, left as they were", self.mismatched),
        ):
            if names:
                lines.append(f"{title}: {', '.join(names)}")
        return "\n".join(lines)


def load_trunk(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, strict: bool = False
) -> WeightsReport:
    """Copies a plain ResNet's weights into the :class:`ResNetTrunk` of a network.

    Names are those of torchvision and timm, also with a prefix in front (``module.``,
    ``backbone.``). The classifier's ``fc`` is copied too, where the network has one of its shape. A
    first convolution for another number of channels is adapted as timm does it: for one channel,
    the weights are summed over the channels; else they are repeated in turn, and scaled by the
    ratio of the numbers of channels.

    Args:
        model: a network of this package, or any that holds one :class:`ResNetTrunk`.
        state_dict: of the plain ResNet.
        strict: raise unless every tensor of the trunk was loaded.

    Returns:
        WeightsReport: what was loaded, adapted, and left.

    Raises:
        ValueError: no trunk in ``model``, or several; no ResNet in ``state_dict``; with ``strict``,
            tensors that are missing or of another shape. The network is unchanged then.
    """
    trunks = [m for m in model.modules() if isinstance(m, ResNetTrunk)]
    if len(trunks) != 1:
        raise ValueError(f"load_trunk: expected a model with one ResNetTrunk, got {len(trunks)}")
    target = trunks[0].state_dict()
    wanted = set(target)  # what strict asks for
    classifier = next((m.fc for m in model.modules() if isinstance(m, Classifier)), None)
    if classifier is not None:
        target |= {f"fc.{name}": value for name, value in classifier.state_dict().items()}

    prefix = _find_prefix(state_dict)
    report = WeightsReport(prefix=prefix)
    copies: dict[str, Tensor] = {}
    for full_name, value in state_dict.items():
        name = full_name.removeprefix(prefix)
        if not full_name.startswith(prefix) or name not in target:
            report.unexpected.append(full_name)
            continue
        shape = target[name].shape
        if name == _STEM and value.dim() == len(shape) and value.shape[1] != shape[1]:
            report.adapted[name] = f"{value.shape[1]} to {shape[1]} input channels"
            value = _adapt_channels(value, shape[1])
        if value.shape != shape:
            report.adapted.pop(name, None)
            report.mismatched.append(name)
            continue
        report.loaded.append(name)
        copies[name] = value
    report.missing = [n for n in target if n not in copies and n not in report.mismatched]
    lacking = sorted(wanted.intersection([*report.missing, *report.mismatched]))
    if strict and lacking:
        raise ValueError(f"load_trunk: expected every tensor of the trunk, lacking {lacking}")
    with torch.no_grad():
        for name, value in copies.items():
            target[name].copy_(value)
    return report


def _find_prefix(state_dict: Mapping[str, Tensor]) -> str:
    """What stands before the names of a ResNet."""
    candidates = [
        name.removesuffix(_STEM)
        for name in state_dict
        if name == _STEM or name.endswith("." + _STEM)
    ]
    found = [p for p in candidates if all(p + mark in state_dict for mark in _MARKS)]
    if not found:
        shown = ", ".join(list(state_dict)[:3]) or "nothing"
        raise ValueError(
            f"load_trunk: expected the state_dict of a ResNet, with {_STEM}, "
            f"{' and '.join(_MARKS)}; got {shown}, ..."
        )
    return min(found, key=len)


def _adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """First-layer weights ``[out, given, ...]`` as ``[out, channels, ...]``."""
    given = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    index = torch.arange(channels, device=weight.device) % given
    return weight.index_select(1, index) * (given / channels)
