"""ultralytics: necks that concatenate or sum what they upsample.

First, ``nn.Upsample`` whose result goes to one ``Concat``, as in the neck of every YOLO.

A model calls its layers in turn; each says by number whose results it takes. The Upsample becomes a
module that hands its input on, and the Concat resamples that straight into its channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from ultralytics.nn.modules.conv import Concat
from ultralytics.nn.tasks import BaseModel

from ... import functional
from .._chain import Chain, Wiring, part, register_container
from .._gather import MAX_MAPS, absorbed_upsample_reasons, expect_size, gather_options
from .._rewrite import Rewrites
from .._source import fingerprint

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find

#: Methods that pass data between the layers: those of ultralytics 8.3 to 8.4.190.
_KNOWN_LOOPS = {
    "forward": {"5d434c3a9ba7de02"},
    "predict": {
        # BaseModel
        "1199b7db2b088f1b",
        "c16aa7772466563c",
        # RTDETRDetectionModel
        "41460cc1b692ce32",
        "c612d8d87a8c4177",
        "e92a512bdaff8ede",
        # WorldModel
        "583615bdb5f48db6",
        "e782a26f0e25d216",
        "e9349a285ff85896",
        # YOLOEModel
        "9339a9319cc2464b",
        "de1368ac09ad9d75",
        "e8799dc7e796507a",
    },
    "_predict_once": {"5f2a59733cba8615", "76923d8bab466dd8", "f67afe15569c54c5"},
}


@part(nn.Upsample, forward_fingerprints=["608d9f1e057982f5"])
class HandedOnUpsample(nn.Upsample):
    """Leaves the upsampling to a Concat."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns ``input``."""
        return input


@part(Concat, forward_fingerprints=["65421852cd925623"])
class FusedConcat(Concat):
    """Upsampling straight into the concatenation."""

    _msr_cuda_wiring: Wiring  # its data: per input, the Upsample whose work is to be done

    def forward(self, x: list[Tensor]) -> Tensor:
        """As the original, with maps in ``x`` that have not been upsampled yet."""
        upsamples = self._msr_cuda_wiring.data
        full = [map_ for map_, up in zip(x, upsamples, strict=True) if up is None]
        size = full[0].shape[2:] if full else None
        if size is not None:
            expect_size("Concat", full, size, x[0].shape[0])
        return functional.resample_cat(x, size, **gather_options(upsamples))


@register_container(BaseModel)
def find_chains(model: nn.Module) -> list[Chain]:
    """Concats that get the result of an Upsample, in the order of the layers."""
    layers = getattr(model, "model", None)
    if not isinstance(layers, nn.Sequential):
        return []
    sources = [_sources(i, layer) for i, layer in enumerate(layers)]
    loop_reasons = _loop_reasons(model, layers)
    chains = []
    for i, layer in enumerate(layers):
        if type(layer) is not Concat:
            continue
        inputs = sources[i]
        members: dict[int, nn.Upsample] = {}
        for k in inputs:
            source = layers[k] if k >= 0 else None
            if isinstance(source, nn.Upsample):
                members[k] = source
        if not members:
            continue
        reasons = list(loop_reasons)
        if layer.d != 1:
            reasons.append(f"it concatenates along dimension {layer.d}, not the channels")
        if len(inputs) > MAX_MAPS:
            reasons.append(f"{len(inputs)} maps are more than one operator takes")
        for k, up in members.items():
            reasons += absorbed_upsample_reasons(up, f"layer {k}")
            uses = sum(used.count(k) for used in sources)
            if uses > 1:
                reasons.append(f"the result of layer {k} is used {uses} times")
        chains.append(
            Chain(
                layer,
                ((layer, FusedConcat), *((up, HandedOnUpsample) for up in members.values())),
                tuple(members.get(k) for k in inputs),
                reasons,
            )
        )
    return chains


def _sources(index: int, layer: nn.Module) -> list[int]:
    """The numbers of the layers whose results a layer takes; -1 is the image."""
    taken = getattr(layer, "f", None)
    numbers = taken if isinstance(taken, (list, tuple)) else [taken]
    return [k if k >= 0 else index + k for k in numbers if isinstance(k, int)]


def _loop_reasons(model: nn.Module, layers: nn.Sequential) -> list[str]:
    """Why it is not known how data passes between the layers of a model."""
    reasons = []
    for name, known in _KNOWN_LOOPS.items():
        method = getattr(type(model), name)
        try:
            found = fingerprint(method)
        except (OSError, TypeError):
            found = "without source"
        if name in vars(model) or found not in known:
            reasons.append(f"{type(model).__qualname__}.{name} ({found}) is not a known one")
    for i, layer in enumerate(layers):
        taken = getattr(layer, "f", None)
        numbers = taken if isinstance(taken, (list, tuple)) else [taken]
        if getattr(layer, "i", None) != i or not all(isinstance(k, int) for k in numbers):
            reasons.append(f"layer {i} does not say which results it takes")
    return reasons


# YOLOv9 and YOLO26: sums.

REWRITES.add(
    "ultralytics.nn.modules.block:CBFuse",
    fingerprints=["e042f1edbf2d1e27"],
    summary="All maps are upsampled and summed in one pass.",
    edits={
        "F.interpolate": "msr.up",
        "torch.sum(torch.stack(res + xs[-1:]), dim=0)": "msr.add(*res, *xs[-1:])",
    },
)
REWRITES.add(
    "ultralytics.nn.modules.block:Proto26",
    fingerprints=["4008fc42c683593b"],
    summary="All levels are upsampled and summed in one pass.",
    edits={
        "for i, f in enumerate(self.feat_refine):\n"
        "    up_feat = f(x[i + 1])\n"
        "    up_feat = F.interpolate(up_feat, scale_factor=2 ** (i + 1), mode='nearest')\n"
        "    feat = feat + up_feat": (
            "feat = msr.add(feat, *(msr.up(f(x[i + 1]), scale_factor=2 ** (i + 1)) "
            "for i, f in enumerate(self.feat_refine)))"
        ),
    },
)
