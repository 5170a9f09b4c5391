"""transformers: necks and heads that resample and fuse, wherever a model of the library has one.

Each model of the library has a copy of what it needs in a file of its own, so that one recipe
serves several classes. Nothing of the library is imported here: twins are made of the classes that
a program has imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ... import functional
from .._gather import MAX_MAPS, mode_reasons
from .._glue import Part, Upsampled, add, cat, computed, cross_entropy, known_reasons
from .._hooks import has_hooks
from .._registry import ModuleType
from .._rewrite import Rewrites
from .._source import fingerprint

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find


def _classes(*names: str) -> list[str]:
    """``model:Class`` for each, as the recipes name classes."""
    pairs = (name.split(":") for name in names)
    return [f"transformers.models.{model}.modeling_{model}:{cls}" for model, cls in pairs]


def _announce(twin: ModuleType) -> None:
    """Tells the library which outputs it can record of a class: it looks that up by its name."""
    capturing = sys.modules.get("transformers.utils.output_capturing")
    registry = getattr(capturing, "_CAN_RECORD_REGISTRY", None)
    if isinstance(registry, dict):
        dict.__setitem__(registry, str(twin), getattr(twin, "_can_record_outputs", None))


# SegFormer: one concatenation of all levels.

REWRITES.add(
    *_classes("segformer:SegformerDecodeHead"),
    fingerprints=["e41c5815efea7b1f"],
    summary="Every level is upsampled straight into the concatenation.",
    edits={
        "nn.functional.interpolate": "msr.up",
        "torch.cat(all_hidden_states[::-1], dim=1)": "msr.cat(all_hidden_states[::-1])",
    },
)

# UPerNet: pooled maps, top-down sums and the concatenation of all levels.

_BEIT_HEADS = [
    *_classes("beit:BeitUperHead"),
    "transformers.models.data2vec.modeling_data2vec_vision:Data2VecVisionUperHead",
]
_TOP_DOWN = (
    "laterals[i - 1] = laterals[i - 1] + nn.functional.interpolate("
    "laterals[i], size=prev_shape, mode='bilinear', align_corners={corners})"
)
_FUSED_TOP_DOWN = (
    "laterals[i - 1] = msr.add(laterals[i - 1], msr.up("
    "laterals[i], size=prev_shape, mode='bilinear', align_corners={corners}))"
)


def pooled_maps(module: Any, x: Tensor) -> list[Tensor | Upsampled]:
    """The pooled maps of a ``PyramidPoolingModule``, which wait for the concatenation."""
    if hasattr(module, "align_corners"):  # UperNet, whose blocks do not interpolate
        pooled, align_corners = [block(x) for block in module.blocks], module.align_corners
    else:
        pooled, align_corners = [block.conv(block.pooling(x)) for block in module.blocks], False
    size = x.shape[2:]
    return [Upsampled(p, size, mode="bilinear", align_corners=align_corners) for p in pooled]


def _pooling_reasons(module: Any) -> list[str]:
    pooling = module.psp_modules
    if len(pooling.blocks) >= MAX_MAPS:
        return [f"{len(pooling.blocks)} pooled maps are more than one operator takes"]
    reasons = known_reasons(pooling, "psp_modules", _POOLING)
    for i, block in enumerate(pooling.blocks):
        reasons += known_reasons(block, f"psp_modules.{i}", _POOLING)
    return reasons


def _pooling_modules(module: Any) -> list[nn.Module]:
    pooling = module.psp_modules
    # The blocks of UperNet are called as they are.
    blocks = [] if hasattr(pooling, "align_corners") else list(pooling.blocks)
    return [pooling, *blocks]


#: The fingerprints of modules of pyramid pooling, and of their blocks.
_POOLING = {
    "UperNetPyramidPoolingModule": ["1a5c737075453337"],
    "UperNetPyramidPoolingBlock": ["81212d29dc8d0abf"],
    "BeitPyramidPoolingModule": ["66eadff310562419"],
    "BeitPyramidPoolingBlock": ["ed6ad5f5318c7432"],
    "Data2VecVisionPyramidPoolingModule": ["66eadff310562419"],
    "Data2VecVisionPyramidPoolingBlock": ["ed6ad5f5318c7432"],
}

REWRITES.add(
    *_classes("upernet:UperNetHead"),
    fingerprints=["16e36b700ee0b9e7"],
    methods={"psp_forward": ["c0efa70e8416b302"]},
    summary="Pooled maps and levels are upsampled straight into concatenations and sums.",
    skip_reasons=_pooling_reasons,
    absorbed_modules=_pooling_modules,
    edits={
        "self.psp_forward(encoder_hidden_states)": (
            "self.bottleneck(msr.cat([encoder_hidden_states[-1], "
            "*recipe.pooled_maps(self.psp_modules, encoder_hidden_states[-1])]))"
        ),
        _TOP_DOWN.format(corners="self.align_corners"): _FUSED_TOP_DOWN.format(
            corners="self.align_corners"
        ),
        "nn.functional.interpolate": "msr.up",
        "torch.cat(fpn_outs, dim=1)": "msr.cat(fpn_outs)",
    },
)
REWRITES.add(
    *_BEIT_HEADS,
    fingerprints=["10caf57100d5b4d8"],
    methods={"psp_forward": ["6dc57d9e708b2cde"]},
    summary="Pooled maps and levels are upsampled straight into concatenations and sums.",
    skip_reasons=_pooling_reasons,
    absorbed_modules=_pooling_modules,
    edits={
        "self.psp_forward(encoder_hidden_states)": (
            "self.psp_bottleneck(msr.cat([encoder_hidden_states[-1], "
            "*recipe.pooled_maps(self.psp_modules, encoder_hidden_states[-1])]))"
        ),
        _TOP_DOWN.format(corners="False"): _FUSED_TOP_DOWN.format(corners="False"),
        "nn.functional.interpolate": "msr.up",
        "torch.cat(fpn_outs, dim=1)": "msr.cat(fpn_outs)",
    },
)

# Top-down sums: MaskFormer, DETR's masks, Mask2Former, OneFormer, SAM 2 and 3.

REWRITES.add(
    *_classes("maskformer:MaskFormerFPNLayer"),
    fingerprints=["e25d0c2ce2d40f36"],
    summary="Upsampling and lateral sum in one pass.",
    edits={
        "nn.functional.interpolate": "msr.up",
        "down += left": "down = msr.add(down, left, dtype=down.input.dtype)",
    },
)
REWRITES.add(
    *_classes(
        "detr:DetrFPNFusionStage",
        "conditional_detr:ConditionalDetrFPNFusionStage",
        "maskformer:MaskFormerDetrFPNFusionStage",
    ),
    fingerprints=["eae0242cb59fecc0"],
    summary="Upsampling and lateral sum in one pass.",
    edits={
        "nn.functional.interpolate": "msr.up",
        "fpn_features + features": "msr.add(fpn_features, features)",
    },
)
REWRITES.add(
    *_classes("mask2former:Mask2FormerPixelDecoder"),
    fingerprints=["dd21ff086996f974"],
    summary="Upsampling and lateral sum in one pass.",
    edits={
        "out = current_fpn + nn.functional.interpolate("
        "outputs[-1], size=current_fpn.shape[-2:], mode='bilinear', align_corners=False)": (
            "out = msr.add(current_fpn, msr.up("
            "outputs[-1], size=current_fpn.shape[-2:], mode='bilinear', align_corners=False))"
        ),
    },
)
REWRITES.add(
    *_classes("oneformer:OneFormerPixelDecoder"),
    fingerprints=["cf7db03152e25498"],
    summary="Upsampling and lateral sum in one pass.",
    edits={
        "y = cur_fpn + nn.functional.interpolate("
        "out[-1], size=cur_fpn.shape[-2:], mode='bilinear', align_corners=False)": (
            "y = msr.add(cur_fpn, msr.up("
            "out[-1], size=cur_fpn.shape[-2:], mode='bilinear', align_corners=False))"
        ),
    },
)


def top_down(x: Tensor) -> Tensor | Upsampled:
    """``F.interpolate(x.to(torch.float32), scale_factor=2.0)``: no rounding, if not of float64."""
    if x.dtype == torch.float64:
        return nn.functional.interpolate(x.to(torch.float32), scale_factor=2.0).to(x.dtype)
    return Upsampled(x, scale_factor=2.0)


REWRITES.add(
    *_classes("sam2:Sam2VisionNeck", "edgetam:EdgeTamVisionNeck"),
    fingerprints=["546129506a07d23d"],
    summary="Upsampling and lateral sum in one pass, without float32 in between.",
    edits={
        "top_down_features = F.interpolate(prev_features.to(dtype=torch.float32), "
        "scale_factor=2.0, mode='nearest', align_corners=None, antialias=False)"
        ".to(lateral_features.dtype)": ("top_down_features = recipe.top_down(prev_features)"),
        "lateral_features + top_down_features": (
            "msr.add(lateral_features, top_down_features, dtype=lateral_features.dtype)"
        ),
    },
)
REWRITES.add(
    *_classes("sam3:Sam3PixelDecoder", "sam3_lite_text:Sam3LiteTextPixelDecoder"),
    fingerprints=["b897305b024ee595"],
    summary="Upsampling and sum of each level in one pass.",
    edits={
        "F.interpolate": "msr.up",
        "prev_fpn + backbone_feat": "msr.add(prev_fpn, backbone_feat)",
    },
)

# Top-down concatenations: the family of RT-DETR, SLANet, ViTMatte, EfficientLoFTR.

REWRITES.add(
    *_classes(
        "rt_detr:RTDetrHybridEncoder",
        "rt_detr_v2:RTDetrV2HybridEncoder",
        "d_fine:DFineHybridEncoder",
        "pp_doclayout_v2:PPDocLayoutV2HybridEncoder",
        "pp_doclayout_v4:PPDocLayoutV4HybridEncoder",
    ),
    fingerprints=["59486b91c9fd6dc0"],
    summary="Upsampling straight into the concatenation with the level below.",
    on_made=_announce,
    edits={
        "F.interpolate": "msr.up",
        "torch.concat([top_fpn_feature_map, backbone_feature_map], dim=1)": (
            "msr.cat([top_fpn_feature_map, backbone_feature_map])"
        ),
    },
)
REWRITES.add(
    *_classes("pp_doclayout_v3:PPDocLayoutV3HybridEncoder"),
    fingerprints=["e6f2606b753a8fdc"],
    summary="Upsampling straight into concatenations, and into the sum of the mask features.",
    on_made=_announce,
    edits={
        "F.interpolate": "msr.up",
        "torch.concat([top_fpn_feature_map, backbone_feature_map], dim=1)": (
            "msr.cat([top_fpn_feature_map, backbone_feature_map])"
        ),
        "mask_feat += self.encoder_mask_lateral(x4_feat[0])": (
            "mask_feat = msr.add("
            "mask_feat, self.encoder_mask_lateral(x4_feat[0]), dtype=mask_feat.input.dtype)"
        ),
    },
)
REWRITES.add(
    *_classes("pp_doclayout_v3:PPDocLayoutV3MaskFeatFPN"),
    fingerprints=["4b03e2629cde77fd"],
    summary="All levels are upsampled and summed in one pass.",
    on_made=_announce,
    edits={
        "for i in range(1, len(self.fpn_strides)):\n"
        "    output = output + F.interpolate(self.scale_heads[i](x[i]), size=output.shape[2:], "
        "mode='bilinear', align_corners=self.align_corners)": (
            "output = msr.add(output, *(msr.up(self.scale_heads[i](x[i]), size=output.shape[2:], "
            "mode='bilinear', align_corners=self.align_corners) "
            "for i in range(1, len(self.fpn_strides))))"
        ),
    },
)


def fuse_feature_maps(x: Upsampled, skip: Tensor, how: str) -> Tensor:
    """The function of that name in Deimv2's file."""
    return add(x, skip) if how == "sum" else cat([x, skip])


REWRITES.add(
    *_classes("deimv2:Deimv2HybridEncoder"),
    fingerprints=["0c4445c347e4cec9"],
    summary="Upsampling and sum, or concatenation, in one pass.",
    on_made=_announce,
    edits={
        "F.interpolate": "msr.up",
        "fuse_feature_maps(top_fpn_feature_map, backbone_feature_map, self.fuse_op)": (
            "recipe.fuse_feature_maps(top_fpn_feature_map, backbone_feature_map, self.fuse_op)"
        ),
    },
)
REWRITES.add(
    *_classes("deimv2:Deimv2LiteEncoder"),
    fingerprints=["452191a414d95c5f"],
    summary="Upsampling and sum in one pass.",
    on_made=_announce,
    edits={
        "projected_features[0] + F.interpolate("
        "projected_features[1], scale_factor=2.0, mode='nearest')": (
            "msr.add(projected_features[0], msr.up(projected_features[1], scale_factor=2.0))"
        ),
    },
)
REWRITES.add(
    *_classes("deimv2:Deimv2DINOv3ConvEncoder"),
    fingerprints=["5ed7b4042ad8b051"],
    summary="Resampling straight into the concatenation with the detail.",
    on_made=_announce,
    edits={
        "F.interpolate": "msr.up",
        "torch.cat([semantic_feature.to(detail_feature.device), detail_feature], dim=1)": (
            "msr.cat([semantic_feature._replace("
            "input=semantic_feature.input.to(detail_feature.device)), detail_feature])"
        ),
    },
)
REWRITES.add(
    *_classes("omdet_turbo:OmDetTurboHybridEncoder"),
    fingerprints=["971fef2dfa8bb083"],
    summary="Upsampling straight into the concatenation with the level below.",
    edits={
        "F.interpolate": "msr.up",
        "torch.concat([upsample_feat, feat_low], dim=1)": "msr.cat([upsample_feat, feat_low])",
    },
)
REWRITES.add(
    *_classes("slanet:SLANetCSPPAN"),
    fingerprints=["6536c62102c86b45"],
    summary="Upsampling straight into the concatenation with the level below.",
    edits={
        "F.interpolate": "msr.up",
        "torch.cat([upsampled_feature, low_level_feature], dim=1)": (
            "msr.cat([upsampled_feature, low_level_feature])"
        ),
    },
)
REWRITES.add(
    *_classes("vitmatte:VitMatteFusionBlock"),
    fingerprints=["a98669343e41fead"],
    summary="Upsampling straight into the concatenation with the detail.",
    edits={
        "nn.functional.interpolate": "msr.up",
        "torch.cat([detailed_feature_map, upscaled_features], dim=1)": (
            "msr.cat([detailed_feature_map, upscaled_features])"
        ),
    },
)
REWRITES.add(
    *_classes("efficientloftr:EfficientLoFTRAggregatedAttention"),
    fingerprints=["0c7cb8450d583c9a"],
    summary="Upsampling straight into the concatenation.",
    edits={
        "torch.nn.functional.interpolate": "msr.up",
        "torch.cat([hidden_states, attn_output], dim=1)": "msr.cat([hidden_states, attn_output])",
    },
)

# The necks of PP-OCR's text detection: sums, then one concatenation.


def _interpolate_mode_reasons(module: Any) -> list[str]:
    return mode_reasons(module.interpolate_mode)


REWRITES.add(
    *_classes("pp_ocrv5_mobile_det:PPOCRV5MobileDetNeck", "pp_ocrv6_small_det:PPOCRV6SmallDetNeck"),
    fingerprints=["84de6a5878cc2de2"],
    summary="Upsampling and sum of each level in one pass; all levels straight into one map.",
    skip_reasons=_interpolate_mode_reasons,
    edits={
        "fused[i] + F.interpolate(fused[i + 1], scale_factor=2, mode=self.interpolate_mode)": (
            "msr.add(fused[i], msr.up(fused[i + 1], scale_factor=2, mode=self.interpolate_mode))"
        ),
        "F.interpolate": "msr.up",
        "torch.cat(processed[::-1], dim=1)": "msr.cat(processed[::-1])",
    },
)
REWRITES.add(
    *_classes(
        "pp_ocrv5_server_det:PPOCRV5ServerDetNeck", "pp_ocrv6_medium_det:PPOCRV6MediumDetNeck"
    ),
    fingerprints=["2506cf7869698cc3"],
    summary="Upsampling and sum of each level in one pass; all levels straight into one map.",
    skip_reasons=_interpolate_mode_reasons,
    edits={
        "channel_adjusted[i] + F.interpolate("
        "top_down[i + 1], scale_factor=2, mode=self.interpolate_mode)": (
            "msr.add(channel_adjusted[i], msr.up("
            "top_down[i + 1], scale_factor=2, mode=self.interpolate_mode))"
        ),
        # What this computes is computed anew below.
        "for feature, scale_factor in zip(intraclass_refined, self.scale_factor_list):\n"
        "    if scale_factor > 1:\n"
        "        hidden_states = F.interpolate("
        "feature, scale_factor=scale_factor, mode=self.interpolate_mode)\n"
        "    else:\n"
        "        hidden_states = feature\n"
        "    upsampled.append(hidden_states)": "pass",
        "F.interpolate": "msr.up",
        "torch.cat(upsampled[::-1], dim=1)": "msr.cat(upsampled[::-1])",
    },
)

# ASPP: one pixel is spread straight into the concatenation.


def _aspp_reasons(module: Any) -> list[str]:
    return known_reasons(module.convs[-1], "the last of convs", _ASPP_POOLING)


_ASPP_POOLING = {
    "MobileViTASPPPooling": ["d12839cb4575fa3e"],
    "MobileViTV2ASPPPooling": ["d12839cb4575fa3e"],
}

REWRITES.add(
    *_classes("mobilevit:MobileViTASPP", "mobilevitv2:MobileViTV2ASPP"),
    fingerprints=["0fe0cb3ce8c885c4"],
    summary="The pooled branch is spread straight into the concatenation.",
    skip_reasons=_aspp_reasons,
    absorbed_modules=lambda module: [module.convs[-1]],
    edits={
        "for conv in self.convs:\n    pyramid.append(conv(features))": (
            "*convs, pooling = self.convs\n"
            "for conv in convs:\n"
            "    pyramid.append(conv(features))\n"
            "pyramid.append(msr.up(pooling.conv_1x1(pooling.global_pool(features)), "
            "size=features.shape[-2:], mode='bilinear', align_corners=False))"
        ),
        "torch.cat(pyramid, dim=1)": "msr.cat(pyramid)",
    },
)
REWRITES.add(
    *_classes("mobilenet_v2:MobileNetV2DeepLabV3Plus"),
    fingerprints=["541ee203b0951ce0"],
    summary="The pooled branch is spread straight into the concatenation.",
    edits={
        "nn.functional.interpolate": "msr.up",
        "torch.cat([features_pool, features_aspp], dim=1)": (
            "msr.cat([features_pool, features_aspp])"
        ),
    },
)

# Depth: sums of attractors and concatenations of ZoeDepth. In the layers of DPT and its kin a
# convolution comes between interpolation and sum.

REWRITES.add(
    *_classes("zoedepth:ZoeDepthAttractorLayer", "zoedepth:ZoeDepthAttractorLayerUnnormed"),
    fingerprints=["1491685276b443a5", "e6aabcfca48ae21d"],
    summary="Upsampling and sum of the embeddings in one pass.",
    edits={
        "prev_bin_embedding = nn.functional.interpolate("
        "prev_bin_embedding, x.shape[-2:], mode='bilinear', align_corners=True)": (
            "prev_bin_embedding = msr.up("
            "prev_bin_embedding, x.shape[-2:], mode='bilinear', align_corners=True)"
        ),
        "x + prev_bin_embedding": "msr.add(x, prev_bin_embedding)",
        "nn.functional.interpolate": "msr.resample",
    },
)


def log_binomial(module: nn.Module, x: Tensor, condition: Upsampled) -> Tensor:
    """Calls ZoeDepth's softmax, which concatenates; if it is fused, it upsamples, too."""
    fused = type(module).__name__ == "FusedZoeDepthConditionalLogBinomialSoftmax"
    if fused and not has_hooks(module):
        result: Tensor = module(x, condition)
    else:
        result = module(x, functional.resample(*condition))
    return result


REWRITES.add(
    *_classes("zoedepth:ZoeDepthConditionalLogBinomialSoftmax"),
    fingerprints=["961562945b9fcfc5"],
    summary="The condition is upsampled straight into the concatenation.",
    edits={
        "torch.concat((main_feature, condition_feature), dim=1)": (
            "msr.cat([main_feature, condition_feature])"
        ),
    },
)
_EMBEDDING = (
    "bin_embedding = nn.functional.interpolate("
    "bin_embedding, last.shape[-2:], mode='bilinear', align_corners=True)"
)
_FUSED_EMBEDDING = _EMBEDDING.replace("nn.functional.interpolate", "msr.up")
REWRITES.add(
    *_classes("zoedepth:ZoeDepthMultipleMetricDepthEstimationHeads"),
    fingerprints=["84187f29f7a4a0ec"],
    summary="Upsampling of the bins; their embedding waits for its concatenation.",
    edits={
        _EMBEDDING: _FUSED_EMBEDDING,
        "conditional_log_binomial(last, bin_embedding)": (
            "recipe.log_binomial(conditional_log_binomial, last, bin_embedding)"
        ),
        "nn.functional.interpolate": "msr.resample",
    },
)
REWRITES.add(
    *_classes("zoedepth:ZoeDepthMetricDepthEstimationHead"),
    fingerprints=["8cfde1e81dcf2005"],
    summary="The relative depth is upsampled straight into the concatenation, as the embedding is.",
    edits={
        "relative_conditioning = nn.functional.interpolate("
        "relative_conditioning, size=last.shape[2:], mode='bilinear', align_corners=True)": (
            "relative_conditioning = msr.up("
            "relative_conditioning, size=last.shape[2:], mode='bilinear', align_corners=True)"
        ),
        "torch.cat([last, relative_conditioning], dim=1)": "msr.cat([last, relative_conditioning])",
        _EMBEDDING: _FUSED_EMBEDDING,
        "self.conditional_log_binomial(last, bin_embedding)": (
            "recipe.log_binomial(self.conditional_log_binomial, last, bin_embedding)"
        ),
        "nn.functional.interpolate": "msr.resample",
    },
)
for _name, _fingerprint in {
    "dpt:DPTFeatureFusionLayer": "ed722d01b8651605",
    "depth_anything:DepthAnythingFeatureFusionLayer": "42f8e5e18cdde723",
    "depth_anything:DepthAnythingDepthEstimationHead": "aa52c2ac86f789a2",
    "prompt_depth_anything:PromptDepthAnythingFeatureFusionLayer": "26c23606b71ffa1f",
    "prompt_depth_anything:PromptDepthAnythingDepthEstimationHead": "2f9674daf44a69c3",
    "zoedepth:ZoeDepthFeatureFusionLayer": "ed722d01b8651605",
    "chmv2:CHMv2FeatureFusionLayer": "87ac72ce50e7804a",
    "tipsv2_dpt:Tipsv2DptFeatureFusionLayer": "ed722d01b8651605",
    "efficientloftr:EfficientLoFTROutConvBlock": "3e486260b0cf0b0d",
}.items():
    REWRITES.add(
        *_classes(_name),
        fingerprints=[_fingerprint],
        summary="One gather each way.",
        edits={"nn.functional.interpolate": "msr.resample"},
    )
REWRITES.add(
    *_classes("swin2sr:NearestConvUpsampler"),
    fingerprints=["4a3e07847a229de8"],
    summary="One gather each way.",
    edits={"torch.nn.functional.interpolate": "msr.resample"},
)

# Losses of upsampled logits, in whole models. Those are saved, and looked up, by the name of their
# class.

_LOSS = "The loss, without the upsampled logits."

REWRITES.add(
    *_classes(
        "dpt:DPTForSemanticSegmentation",
        "mobilevit:MobileViTForSemanticSegmentation",
        "mobilevitv2:MobileViTV2ForSemanticSegmentation",
        "mobilenet_v2:MobileNetV2ForSemanticSegmentation",
    ),
    fingerprints=["657ebe152ace1665", "8de74cfa4a82dae6", "51a425fafef14289", "3e85cbcb64eb3fb9"],
    summary=_LOSS,
    on_made=_announce,
    keeps_name=True,
    edits={"nn.functional.interpolate": "msr.up", "CrossEntropyLoss": "msr.criterion"},
)
REWRITES.add(
    *_classes("segformer:SegformerForSemanticSegmentation"),
    fingerprints=["d1787177acd9e02e"],
    summary=_LOSS,
    on_made=_announce,
    keeps_name=True,
    edits={
        "nn.functional.interpolate": "msr.up",
        "CrossEntropyLoss": "msr.criterion",
        "loss_fct = BCEWithLogitsLoss(reduction='none')\n"
        "loss = loss_fct(upsampled_logits.squeeze(1), labels.float())\n"
        "loss = (loss * valid_mask).mean()": (
            "loss = msr.masked_binary_cross_entropy(upsampled_logits, labels.float(), valid_mask)"
        ),
    },
)
_LOGITS = "logits = {up}(logits, size=pixel_values.shape[2:], mode='bilinear', align_corners=False)"
REWRITES.add(
    *_classes("upernet:UperNetForSemanticSegmentation"),
    fingerprints=["15ce8100e7ec4a50"],
    summary="The losses, without upsampled logits: those of the decoder are made as a result only.",
    on_made=_announce,
    keeps_name=True,
    edits={
        _LOGITS.format(up="nn.functional.interpolate"): (
            f"waiting_{_LOGITS.format(up='msr.up')}\nlogits = msr.resample(*waiting_logits)"
        ),
        "nn.functional.interpolate": "msr.up",
        "CrossEntropyLoss": "msr.criterion",
        "loss_fct(logits, labels)": "loss_fct(waiting_logits, labels)",
    },
)


def data2vec_loss(
    model: Any, logits: Tensor, auxiliary_logits: Tensor | None, labels: Tensor
) -> Tensor:
    """The method ``compute_loss`` of Data2Vec's model."""
    return semantic_loss(
        logits,
        labels,
        ignore_index=model.config.semantic_loss_ignore_index,
        auxiliary_logits=auxiliary_logits,
        auxiliary_loss_weight=model.config.auxiliary_loss_weight,
    )


REWRITES.add(
    "transformers.models.data2vec.modeling_data2vec_vision:Data2VecVisionForSemanticSegmentation",
    fingerprints=["a6a95857eef6be65"],
    methods={"compute_loss": ["ee0dfbd57e470169"]},
    summary=_LOSS,
    on_made=_announce,
    keeps_name=True,
    edits={
        "self.compute_loss(logits, auxiliary_logits, labels)": (
            "recipe.data2vec_loss(self, logits, auxiliary_logits, labels)"
        )
    },
)


def _library_loss() -> Callable[..., Tensor] | None:
    """What these models have as their ``loss_function``; None: it is not the known one."""
    losses = sys.modules.get("transformers.loss.loss_utils")
    known = {
        "fixed_cross_entropy": "df711188a228f97b",
        "ForSemanticSegmentationLoss": "8a54e02a02f91d24",
    }
    loss = None
    for name, expected in known.items():
        loss = getattr(losses, name, None)
        try:
            if loss is None or fingerprint(loss) != expected:
                return None
        except (OSError, TypeError):
            return None
    return loss


_LIBRARY_LOSS = _library_loss()


def _loss_reasons(model: Any) -> list[str]:
    if model.loss_function is _LIBRARY_LOSS:
        return []
    return ["its loss_function is not the known ForSemanticSegmentationLoss"]


def loss_of(model: Any) -> Callable[..., Tensor]:
    """The model's ``loss_function``, by operators unless it was given another one since."""
    function = model.loss_function
    if function is _LIBRARY_LOSS:
        return semantic_loss
    return lambda logits, *args, **kwargs: function(computed(logits), *args, **kwargs)


def semantic_loss(
    logits: Part,
    labels: Tensor,
    *,
    ignore_index: int,
    auxiliary_logits: Tensor | None = None,
    auxiliary_loss_weight: float = 0.4,
) -> Tensor:
    """The library's ``ForSemanticSegmentationLoss``.

    Args:
        logits: ``[N, C, h, w]``; those that wait do so for the size of the labels.
        labels: class indices ``[N, H, W]``.
        ignore_index: class index that counts nothing.
        auxiliary_logits, auxiliary_loss_weight: of a second head, and the factor on its loss.
    """
    size = labels.shape[-2:]

    def loss_of_one(logits: Part) -> Tensor:
        if not isinstance(logits, Upsampled):
            logits = Upsampled(logits, size, mode="bilinear", align_corners=False)
        return cross_entropy(logits, labels, ignore_index=ignore_index)

    loss = loss_of_one(logits)
    if auxiliary_logits is not None:
        loss = loss + auxiliary_loss_weight * loss_of_one(auxiliary_logits)
    return loss


REWRITES.add(
    *_classes("beit:BeitForSemanticSegmentation", "sapiens2:Sapiens2ForSemanticSegmentation"),
    fingerprints=["19cf95da71641ae8", "e9a47ff36da8faf8"],
    summary=_LOSS,
    skip_reasons=_loss_reasons,
    on_made=_announce,
    keeps_name=True,
    edits={"self.loss_function": "recipe.loss_of(self)"},
)
REWRITES.add(
    *_classes("tipsv2_dpt:Tipsv2DptForSemanticSegmentation"),
    fingerprints=["72ddd18256ff2dfa"],
    summary=_LOSS,
    skip_reasons=_loss_reasons,
    on_made=_announce,
    keeps_name=True,
    edits={
        "nn.functional.interpolate": "msr.up",
        "self.loss_function": "recipe.loss_of(self)",
    },
)

# What has nothing to fuse with is not worth the class of a whole model.

REWRITES.leave(
    *_classes("efficientloftr:EfficientLoFTRFineFusionLayer", "swin2sr:PixelShuffleAuxUpsampler"),
    reason="a convolution comes next: there is nothing to fuse with",
)
REWRITES.leave(
    *_classes("dinov2:Dinov2Embeddings", "vitdet:VitDetEmbeddings"),
    reason="its position embeddings are those of one small image: there is hardly a byte to save",
)
