"""transformers."""

from __future__ import annotations

import dataclasses
import importlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import Model, OnPyramid


def transformer(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A model by name, on the options of its configuration, of which callables are made first."""

    def make() -> nn.Module:
        import transformers

        made = {key: value() if callable(value) else value for key, value in options.items()}
        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**made))
        return model

    return make


def configuration(name: str, **options: Any) -> Callable[[], Any]:
    """The configuration of a backbone or of a part."""

    def make() -> Any:
        import transformers

        made = {key: value() if callable(value) else value for key, value in options.items()}
        return getattr(transformers, name)(**made)

    return make


def part(
    model: str,
    name: str,
    arguments: Callable[[], dict[str, Any]],
    channels: tuple[int, ...],
    sizes: tuple[int, ...],
    call: Callable[[Any, list[Tensor]], Any] = lambda part, maps: part(maps),
) -> Callable[[], nn.Module]:
    """One class of a model's file, on maps."""

    def make() -> nn.Module:
        file = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        return OnPyramid(getattr(file, name)(**arguments()), channels, sizes, call)

    return make


_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_SWIN = configuration(
    "SwinConfig", image_size=64, embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 4],
    window_size=2, out_features=_STAGES, drop_path_rate=0.0,
)  # fmt: skip
_RESNET = configuration(
    "ResNetConfig", embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1] * 4,
    layer_type="basic", out_features=_STAGES,
)  # fmt: skip
_RTDETR_BACKBONE = configuration(
    "RTDetrResNetConfig", embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1] * 4,
    layer_type="basic", out_features=_STAGES[1:],
)  # fmt: skip
_DINO = configuration(
    "Dinov2Config", image_size=56, hidden_size=24, num_hidden_layers=4, num_attention_heads=2,
    out_features=_STAGES, reshape_hidden_states=False,
)  # fmt: skip
_DETECTOR = dict(
    encoder_in_channels=[16, 32, 32], encoder_hidden_dim=16, d_model=16, num_queries=6,
    decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16, decoder_in_channels=[16] * 3,
    decoder_attention_heads=2, encoder_attention_heads=2, num_denoising=0, dropout=0.0,
)  # fmt: skip
_DETR = dict(
    d_model=16, encoder_layers=1, decoder_layers=1, num_queries=3, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, dropout=0.0,
)  # fmt: skip
_VIT = dict(
    image_size=64, hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24
)


def _stage() -> dict[str, Any]:
    return dict(fpn_channels=8, current_channels=16, output_channels=8)


def _apply(part: nn.Module, maps: list[Tensor]) -> Any:
    return part(*maps)


def _sam(name: str) -> Any:
    options = dict(
        fpn_hidden_size=8, backbone_channel_list=[24, 16, 12, 8], backbone_feature_sizes=None
    )
    return configuration(name, **options)()


_SAM = (
    (8, 12, 16, 24), (4, 8, 16, 32),
    lambda part, maps: part([x.permute(0, 2, 3, 1) for x in maps]),
)  # fmt: skip


def _ocr() -> Any:
    kernels = {"long": 7, "mid": 5, "short": 3}
    shapes = {
        "vertical_long_to_small_conv": (1, 0),
        "horizontal_small_to_long_conv": (0, 1),
        "symmetric_conv_long": (1, 1),
    }
    blocks: dict[str, Any] = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
    for name, axes in shapes.items():
        for ratio, size in kernels.items():
            kernel = [size if axis else 1 for axis in axes]
            blocks[f"{name}_{ratio}ratio"] = [kernel, [1, 1], [k // 2 for k in kernel]]
    return types.SimpleNamespace(
        interpolate_mode="nearest", layer_list_out_channels=[8, 12, 16, 24], neck_out_channels=16,
        reduction=4, dilated_kernel_size=5, hidden_act="relu", reduce_factor=2,
        intraclass_block_number=4, intraclass_block_config=blocks, scale_factor_list=[1, 2, 4, 8],
        backbone_config=types.SimpleNamespace(stage_out_channels=[8, 12, 16, 24]), mode="large",
    )  # fmt: skip


_OCR = ((8, 12, 16, 24), (4, 8, 16, 32))


def _encoder(name: str, **options: Any) -> dict[str, Any]:
    defaults = dict(
        encoder_in_channels=[16] * 3, encoder_hidden_dim=16, encoder_ffn_dim=16,
        encoder_attention_heads=2, dropout=0.0,
    )  # fmt: skip
    return dict(config=configuration(name, **{**defaults, **options})())


_NECK = ((16, 16, 16), (8, 16, 32))

#: Of models that compute a loss.
_CLASSES = 5


def labels(x: Tensor, size: Sequence[int]) -> Tensor:
    """Classes, of which some count nothing."""
    generator = torch.Generator().manual_seed(5)
    found = torch.randint(0, _CLASSES, (x.shape[0], *size), generator=generator)
    return torch.where(torch.rand(found.shape, generator=generator) < 0.2, 255, found)


def _segment(model: Any, x: Tensor) -> Any:
    """With a loss, whose labels may be larger than the images."""
    return model(x, labels=labels(x, [n + 5 for n in x.shape[2:]]))


def _segment_exactly(model: Any, x: Tensor) -> Any:
    """With a loss, whose labels have to be of the images' size."""
    return model(x, labels=labels(x, x.shape[2:]))


MODELS: dict[str, Model] = {
    "SegFormer": Model(
        transformer(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            num_labels=_CLASSES,
            hidden_sizes=[16, 16, 32, 32],
            depths=[1] * 4,
            decoder_hidden_size=16,
            num_attention_heads=[1, 2, 2, 4],
            drop_path_rate=0.0,
            classifier_dropout_prob=0.0,
        ),
        (2, 3, 72, 104),
        _segment,
    ),
    "UPerNet on Swin": Model(
        transformer(
            "UperNetForSemanticSegmentation",
            "UperNetConfig",
            num_labels=_CLASSES,
            backbone_config=_SWIN,
            hidden_size=16,
            auxiliary_channels=8,
            auxiliary_in_channels=64,
        ),
        (2, 3, 64, 96),
        _segment_exactly,
        no_gradient=("*.layernorm.*",),
    ),
    "BEiT with UPerNet": Model(
        transformer(
            "BeitForSemanticSegmentation",
            "BeitConfig",
            num_labels=_CLASSES,
            **_VIT,
            out_indices=[1, 2, 3, 4],
            use_auxiliary_head=True,
            auxiliary_channels=8,
            auxiliary_in_channels=24,
            drop_path_rate=0.0,
        ),
        (2, 3, 64, 64),
        _segment,
        no_gradient=("beit.layers.3.*", "*mask_token", "*pooler*"),
    ),
    "Data2Vec with UPerNet": Model(
        transformer(
            "Data2VecVisionForSemanticSegmentation",
            "Data2VecVisionConfig",
            num_labels=_CLASSES,
            **_VIT,
            out_indices=[0, 1, 2, 3],
            use_auxiliary_head=True,
            auxiliary_channels=8,
            auxiliary_in_channels=24,
            drop_path_rate=0.0,
        ),
        (2, 3, 64, 64),
        _segment,
        no_gradient=(
            "data2vec_vision.encoder.layer.[23].*",
            "*mask_token",
            "*pooler*",
        ),
    ),
    "MaskFormer": Model(
        transformer(
            "MaskFormerForInstanceSegmentation",
            "MaskFormerConfig",
            backbone_config=_SWIN,
            fpn_feature_size=32,
            mask_feature_size=16,
            decoder_config=configuration("DetrConfig", **_DETR),
        ),
        (2, 3, 64, 96),
        no_gradient=("*.layernorm.*", "*.decoder.layers.0.self_attn.*"),
    ),
    "Mask2Former": Model(
        transformer(
            "Mask2FormerForUniversalSegmentation",
            "Mask2FormerConfig",
            backbone_config=_SWIN,
            feature_size=32,
            mask_feature_size=16,
            hidden_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            num_queries=4,
            num_attention_heads=2,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
        ),
        (2, 3, 64, 96),
        no_gradient=("*.layernorm.*",),
    ),
    "DETR with masks": Model(
        transformer(
            "DetrForSegmentation",
            "DetrConfig",
            use_timm_backbone=False,
            backbone_config=_RESNET,
            **{**_DETR, "d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8},
        ),
        (1, 3, 70, 100),
        no_gradient=("*.decoder.layers.0.self_attn.*",),
    ),
    "RT-DETR": Model(
        transformer(
            "RTDetrForObjectDetection",
            "RTDetrConfig",
            backbone_config=_RTDETR_BACKBONE,
            **_DETECTOR,
        ),
        (2, 3, 128, 96),
    ),
    "RT-DETRv2": Model(
        transformer(
            "RTDetrV2ForObjectDetection",
            "RTDetrV2Config",
            backbone_config=_RTDETR_BACKBONE,
            **_DETECTOR,
        ),
        (2, 3, 128, 96),
    ),
    "D-FINE": Model(
        transformer(
            "DFineForObjectDetection", "DFineConfig", backbone_config=_RTDETR_BACKBONE, **_DETECTOR
        ),
        (2, 3, 128, 96),
        no_gradient=("*.pre_bbox_head.*", "*.lqe_layers.0.*", "*.class_embed.0.*"),
    ),
    "DPT": Model(
        transformer(
            "DPTForDepthEstimation",
            "DPTConfig",
            **_VIT,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=16,
        ),
        (2, 3, 64, 64),
        no_gradient=("*.layernorm.*", "neck.fusion_stage.layers.0.residual_layer1.*"),
    ),
    "DPT, segmentation": Model(
        transformer(
            "DPTForSemanticSegmentation",
            "DPTConfig",
            **_VIT,
            num_labels=_CLASSES,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=16,
            semantic_classifier_dropout=0.0,
        ),
        (2, 3, 64, 64),
        _segment,
        no_gradient=("*.layernorm.*", "neck.fusion_stage.layers.0.residual_layer1.*"),
    ),
    "Sapiens2, segmentation": Model(
        transformer(
            "Sapiens2ForSemanticSegmentation",
            "Sapiens2Config",
            **_VIT,
            num_labels=_CLASSES,
            num_key_value_attention_heads=2,
            num_first_full_attention_layers=1,
            num_last_full_attention_layers=1,
            head_config=dict(upsample_out_channels=[8, 8], conv_out_channels=[8]),
        ),
        (2, 3, 64, 64),
        _segment,
    ),
    "TIPSv2 with DPT, segmentation": Model(
        transformer(
            "Tipsv2DptForSemanticSegmentation",
            "Tipsv2DptConfig",
            num_labels=_CLASSES,
            backbone_config=configuration(
                "Tipsv2VisionConfig",
                **{**_VIT, "image_size": 56},
                patch_size=14,
                out_indices=[1, 2, 3, 4],
                apply_layernorm=True,
                reshape_hidden_states=False,
            ),
            neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=16,
        ),
        (2, 3, 56, 56),
        _segment,
        no_gradient=("*.mask_token", "neck.fusion_stage.layers.0.residual_layer1.*"),
    ),
    "Depth Anything": Model(
        transformer(
            "DepthAnythingForDepthEstimation",
            "DepthAnythingConfig",
            backbone_config=_DINO,
            reassemble_hidden_size=24,
            neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=8,
            head_hidden_size=8,
        ),
        (2, 3, 56, 70),
        no_gradient=("*.mask_token", "neck.fusion_stage.layers.0.residual_layer1.*"),
    ),
    "ZoeDepth": Model(
        transformer(
            "ZoeDepthForDepthEstimation",
            "ZoeDepthConfig",
            backbone_config=configuration(
                "BeitConfig",
                **_VIT,
                out_features=_STAGES,
                reshape_hidden_states=False,
                use_relative_position_bias=True,
                drop_path_rate=0.0,
            ),
            neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=16,
            bottleneck_features=16,
            num_relative_features=8,
            bin_embedding_dim=8,
            num_attractors=[4, 2, 2, 1],
            bin_configurations=[dict(n_bins=8, min_depth=0.1, max_depth=10.0, name="nyu")],
        ),
        (1, 3, 64, 64),
        no_gradient=("neck.fusion_stage.layers.0.residual_layer1.*",),
    ),
    "GLPN": Model(
        transformer(
            "GLPNForDepthEstimation",
            "GLPNConfig",
            hidden_sizes=[16, 16, 32, 32],
            num_attention_heads=[1, 2, 4, 8],
            depths=[1] * 4,
            decoder_hidden_size=16,
            drop_path_rate=0.0,
        ),
        (2, 3, 64, 96),
    ),
    "ViTMatte": Model(
        transformer(
            "VitMatteForImageMatting",
            "VitMatteConfig",
            backbone_config=configuration(
                "VitDetConfig",
                image_size=64,
                num_channels=4,
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                out_features=["stage2"],
                residual_block_indices=[],
                window_block_indices=[0],
            ),
            hidden_size=24,
            convstream_hidden_sizes=[8, 12, 16],
            fusion_hidden_sizes=[24, 16, 12, 8],
        ),
        (2, 4, 64, 64),
    ),
    "MobileViT with DeepLabV3": Model(
        transformer(
            "MobileViTForSemanticSegmentation",
            "MobileViTConfig",
            num_labels=_CLASSES,
            image_size=64,
            hidden_sizes=[16, 24, 24],
            neck_hidden_sizes=[8, 8, 16, 24, 24, 24, 32],
            num_attention_heads=2,
            aspp_out_channels=16,
            aspp_dropout_prob=0.0,
        ),
        (2, 3, 64, 96),
        _segment,
    ),
    "MobileViTV2 with DeepLabV3": Model(
        transformer(
            "MobileViTV2ForSemanticSegmentation",
            "MobileViTV2Config",
            num_labels=_CLASSES,
            image_size=64,
            width_multiplier=0.25,
            aspp_out_channels=16,
            aspp_dropout_prob=0.0,
        ),
        (2, 3, 64, 96),
        _segment,
    ),
    "MobileNetV2 with DeepLabV3+": Model(
        transformer(
            "MobileNetV2ForSemanticSegmentation",
            "MobileNetV2Config",
            num_labels=_CLASSES,
            image_size=64,
            depth_multiplier=0.25,
            classifier_dropout_prob=0.0,
        ),
        (2, 3, 64, 96),
        _segment,
        no_gradient=("*.conv_1x1.*",),
    ),
    "OneFormer, pixel decoder": Model(
        part(
            "oneformer",
            "OneFormerPixelDecoder",
            lambda: dict(
                config=configuration(
                    "OneFormerConfig",
                    conv_dim=32,
                    mask_dim=16,
                    encoder_layers=1,
                    num_attention_heads=2,
                    encoder_feedforward_dim=16,
                    dropout=0.0,
                )(),
                feature_channels=[8, 12, 16, 24],
            ),
            (8, 12, 16, 24),
            (4, 8, 16, 32),
        ),
        (2, 3, 64, 96),
    ),
    "Conditional DETR, mask stage": Model(
        part("conditional_detr", "ConditionalDetrFPNFusionStage", _stage, (16, 8), (8, 3), _apply),
        (2, 3, 48, 72),
    ),
    "MaskFormer's DETR, mask stage": Model(
        part("maskformer", "MaskFormerDetrFPNFusionStage", _stage, (16, 8), (8, 3), _apply),
        (2, 3, 48, 72),
    ),
    "SAM 2, neck": Model(
        part("sam2", "Sam2VisionNeck", lambda: dict(config=_sam("Sam2VisionConfig")), *_SAM),
        (2, 3, 64, 96),
    ),
    "EdgeTAM, neck": Model(
        part(
            "edgetam", "EdgeTamVisionNeck", lambda: dict(config=_sam("EdgeTamVisionConfig")), *_SAM
        ),
        (2, 3, 64, 96),
    ),
    "SAM 3, pixel decoder": Model(
        part(
            "sam3",
            "Sam3PixelDecoder",
            lambda: dict(
                config=configuration(
                    "Sam3MaskDecoderConfig", hidden_size=16, num_upsampling_stages=2
                )()
            ),
            (16,) * 3,
            (2, 5, 11),
        ),
        (2, 3, 55, 66),
    ),
    "SAM 3 LiteText, pixel decoder": Model(
        part(
            "sam3_lite_text",
            "Sam3LiteTextPixelDecoder",
            lambda: dict(
                config=configuration(
                    "Sam3LiteTextMaskDecoderConfig", hidden_size=16, num_upsampling_stages=2
                )()
            ),
            (16,) * 3,
            (2, 5, 11),
        ),
        (2, 3, 55, 66),
    ),
    "PP-OCRv5 mobile, neck": Model(
        part("pp_ocrv5_mobile_det", "PPOCRV5MobileDetNeck", lambda: dict(config=_ocr()), *_OCR),
        (2, 3, 64, 96),
    ),
    "PP-OCRv6 small, neck": Model(
        part("pp_ocrv6_small_det", "PPOCRV6SmallDetNeck", lambda: dict(config=_ocr()), *_OCR),
        (2, 3, 64, 96),
        no_gradient=("*.squeeze_excitation_module.*",),
    ),
    "PP-OCRv5 server, neck": Model(
        part(
            "pp_ocrv5_server_det",
            "PPOCRV5ServerDetNeck",
            lambda: dict(config=_ocr()),
            *_OCR,
        ),
        (2, 3, 64, 96),
    ),
    "PP-OCRv6 medium, neck": Model(
        part(
            "pp_ocrv6_medium_det",
            "PPOCRV6MediumDetNeck",
            lambda: dict(config=_ocr()),
            *_OCR,
        ),
        (2, 3, 64, 96),
    ),
    "PP-DocLayoutV2, encoder": Model(
        part(
            "pp_doclayout_v2",
            "PPDocLayoutV2HybridEncoder",
            lambda: _encoder("PPDocLayoutV2Config"),
            *_NECK,
        ),
        (2, 3, 64, 96),
    ),
    "PP-DocLayoutV4, encoder": Model(
        part(
            "pp_doclayout_v4",
            "PPDocLayoutV4HybridEncoder",
            lambda: _encoder("PPDocLayoutV4Config"),
            *_NECK,
        ),
        (2, 3, 64, 96),
    ),
    "PP-DocLayoutV3, encoder": Model(
        part(
            "pp_doclayout_v3",
            "PPDocLayoutV3HybridEncoder",
            lambda: _encoder("PPDocLayoutV3Config", mask_feature_channels=[8, 8], x4_feat_dim=8),
            (16, 16, 16, 8),
            (8, 16, 32, 4),
            lambda part, maps: part(maps[:3], x4_feat=maps[3:]),
        ),
        (2, 3, 64, 96),
    ),
    "DEIMv2, encoder": Model(
        part(
            "deimv2",
            "Deimv2HybridEncoder",
            lambda: _encoder("Deimv2Config", depth_mult=0.34),
            *_NECK,
        ),
        (2, 3, 64, 96),
    ),
    "DEIMv2, light encoder": Model(
        part(
            "deimv2",
            "Deimv2LiteEncoder",
            lambda: _encoder("Deimv2Config", depth_mult=0.34, encoder_in_channels=[16, 16]),
            (16, 16),
            (8, 16),
        ),
        (2, 3, 64, 96),
        no_gradient=("part.down_conv1.*", "part.bi_fusion_conv.*"),
    ),
    "OmDet-Turbo, encoder": Model(
        part(
            "omdet_turbo",
            "OmDetTurboHybridEncoder",
            lambda: _encoder(
                "OmDetTurboConfig",
                encoder_dropout=0.0,
                backbone_config=_SWIN(),
                text_config=configuration("CLIPTextConfig", hidden_size=8)(),
            ),
            *_NECK,
        ),
        (2, 3, 64, 96),
    ),
    "SLANet, neck": Model(
        part(
            "slanet",
            "SLANetCSPPAN",
            lambda: dict(
                config=configuration("SLANetConfig", post_conv_out_channels=16)(),
                in_channel_list=[8, 12, 16, 24],
            ),
            (8, 12, 16, 24),
            (4, 8, 16, 32),
        ),
        (2, 3, 64, 96),
    ),
}

# Copies of the code of BEiT, RT-DETR, MobileViT, DETR, SAM 2, SAM 3 and PP-OCRv5.
for _name in (
    "Data2Vec with UPerNet", "RT-DETRv2", "D-FINE", "PP-DocLayoutV2, encoder",
    "PP-DocLayoutV4, encoder", "MobileViTV2 with DeepLabV3", "Conditional DETR, mask stage",
    "MaskFormer's DETR, mask stage", "EdgeTAM, neck", "SAM 3 LiteText, pixel decoder",
    "PP-OCRv6 small, neck", "PP-OCRv6 medium, neck",
):  # fmt: skip
    MODELS[_name] = dataclasses.replace(MODELS[_name], same_code=True)
