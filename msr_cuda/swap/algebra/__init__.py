"""Recipes that reorder linear operations, for ``fuse(model, algebra=True)``.

A 1x1 convolution mixes channels at each pixel, a resampling mixes pixels in each channel: in real
arithmetic their order does not matter. Applied to the small map, the convolution has fewer pixels
to do, and what is resampled is often narrower::

    conv(cat(R_0(x_0), R_1(x_1), ...))  =  R_0(W_0 x_0) + R_1(W_1 x_1) + ... + b
    conv(R(x)) + y                      =  R(conv(x)) + y

with ``W_i`` the columns of the weight that meet ``x_i``; the bias commutes too, because the weights
of a resampled element sum to one. A batch norm in eval mode is a scale and a bias per channel: the
fused sum applies it, and the activation behind it. In float64 models agree as after any other swap;
below it, rounding differs by what a reordered sum of that many terms differs.

``<library>.py`` is imported by ``fuse`` where the library already is, as in
:mod:`msr_cuda.swap.recipes`.
"""

from __future__ import annotations

#: Module of this package -> the module that has to be imported before a model can have its classes.
NEEDS = {
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "torchvision": "torchvision.models.segmentation",
    "transformers_chmv2": "transformers.models.chmv2.modeling_chmv2",
    "transformers_depth_anything": "transformers.models.depth_anything.modeling_depth_anything",
    "transformers_dpt": "transformers.models.dpt.modeling_dpt",
    "transformers_prompt_depth_anything": (
        "transformers.models.prompt_depth_anything.modeling_prompt_depth_anything"
    ),
    "transformers_segformer": "transformers.models.segformer.modeling_segformer",
    "transformers_tipsv2_dpt": "transformers.models.tipsv2_dpt.modeling_tipsv2_dpt",
    "transformers_zoedepth": "transformers.models.zoedepth.modeling_zoedepth",
}
