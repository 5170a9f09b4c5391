"""diffusers: upsampling in U-Nets and decoders. A convolution comes next: nothing to fuse with."""

from __future__ import annotations

from .._rewrite import Rewrites

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find

REWRITES.add(
    "diffusers.models.upsampling:Upsample2D",
    fingerprints=["604fbb4dbbf08055"],
    summary="One gather each way; the result has the input's dtype under autocast.",
    edits={"F.interpolate": "msr.resample"},
)
