"""The tiny SAM 2: its configuration, a start from which it learns on a CPU, and the loss that small masks need."""

import torch
import torch.nn.functional as functional
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoPromptEncoderConfig,
    Sam2VisionConfig,
)

from pixel160k.errors import InputError
from tiny_models.frames import SIZE

CHANNELS = 128
REMEMBERED_FRAMES = 4
LEARNED_IN_MEMORY_PHASE = (
    "memory_attention",
    "memory_encoder",
    "object_pointer_proj",
    "no_object_pointer",
    "memory_temporal_positional_encoding",
    "occlusion_spatial_embedding_parameter",
    "no_memory_embedding",
    "prompt_encoder.point_embed",
    "prompt_encoder.not_a_point_embed",
    "prompt_encoder.no_mask_embed",
    "mask_decoder",
)

_PROMPT_ENCODER = {"hidden_size": CHANNELS, "image_size": SIZE, "patch_size": 16, "mask_input_channels": 4}
# Stability-based switching may answer with a multimask token, and those are never trained here.
_MASK_DECODER = {
    "hidden_size": CHANNELS,
    "mlp_dim": 256,
    "num_attention_heads": 4,
    "iou_head_hidden_dim": 64,
    "dynamic_multimask_via_stability": False,
}


def vision_config() -> Sam2VisionConfig:
    """A four-stage Hiera; blocks with global attention may not start a stage."""
    widths = [32, 64, 128, 192]
    hiera = Sam2HieraDetConfig(
        hidden_size=widths[0],
        num_attention_heads=1,
        image_size=[SIZE, SIZE],
        blocks_per_stage=[1, 2, 4, 1],
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[1, 2, 4, 6],
        window_size_per_stage=[8, 4, 8, 8],
        window_positional_embedding_background_size=[8, 8],
        global_attention_blocks=[4, 6],
        mlp_ratio=3.0,
    )
    return Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[SIZE // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=CHANNELS,
    )


def new_image_model() -> Sam2Model:
    """A Sam2Model to be trained from scratch."""
    config = Sam2Config(
        vision_config=vision_config(),
        prompt_encoder_config=Sam2PromptEncoderConfig(**_PROMPT_ENCODER),
        mask_decoder_config=Sam2MaskDecoderConfig(**_MASK_DECODER),
    )
    model = Sam2Model(config)
    _reset(model)
    # Let prompt and pixel positions match in the cross-attentions from the first step on: keys start as queries.
    transformer = model.mask_decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    with torch.no_grad():
        for attention in attentions:
            attention.q_proj.weight.normal_(0, 1.7 / attention.q_proj.in_features**0.5)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.q_proj.bias.zero_()
            attention.k_proj.bias.zero_()
    return model


def new_video_model(image_model: Sam2Model) -> Sam2VideoModel:
    """A Sam2VideoModel with the image model's weights and an untrained memory; only the memory phase's weights learn."""
    config = Sam2VideoConfig(
        vision_config=vision_config(),
        image_size=SIZE,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(**_PROMPT_ENCODER),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(**_MASK_DECODER),
        num_maskmem=REMEMBERED_FRAMES,
        max_object_pointers_in_encoder=REMEMBERED_FRAMES,
        enable_temporal_pos_encoding_for_object_pointers=False,
        multimask_output_in_sam=False,
        multimask_output_for_tracking=False,
        memory_attention_hidden_size=CHANNELS,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=256,
        memory_attention_rope_feat_sizes=[SIZE // 16] * 2,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_encoder_hidden_size=CHANNELS,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=CHANNELS,
        memory_fuser_embed_dim=CHANNELS,
        memory_fuser_intermediate_dim=256,
        memory_fuser_num_layers=2,
        memory_fuser_layer_scale_init_value=0.1,
    )
    model = Sam2VideoModel(config)
    unexpected = model.load_state_dict(image_model.state_dict(), strict=False).unexpected_keys
    if unexpected:
        raise InputError(f"the image model has weights that the video model lacks: {unexpected}")
    for module in (model.memory_attention, model.memory_encoder, model.object_pointer_proj):
        _reset(module)
    with torch.no_grad():
        model.no_object_pointer.normal_(0, 0.02)
        model.memory_temporal_positional_encoding.normal_(0, 0.02)
        model.occlusion_spatial_embedding_parameter.normal_(0, 0.02)
        # Masks of "no object" pass no gradient: begin with every object seen.
        model.mask_decoder.pred_obj_score_head.proj_out.bias.add_(4.0)
    for name, parameter in model.named_parameters():
        learned = name.startswith(LEARNED_IN_MEMORY_PHASE)
        parameter.requires_grad_(learned and not name.startswith("mask_decoder.conv_s"))  # conv_s makes features
    return model.eval()


def _reset(model: torch.nn.Module) -> None:
    """torch's default initialisation: transformers' standard deviation of 0.02 is far too small at these widths."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.reset_parameters()


def mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Loss by mask of logits and truth (..., height, width): balanced cross-entropy and dice.

    The usual focal loss collapses to empty masks on objects of 1% of the image; here the foreground is averaged over
    the object, the background weighted by the model's own belief and scaled by the object's area.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    belief = logits.sigmoid()
    area = masks.sum((-1, -2))
    foreground = (entropy * masks).sum((-1, -2)) / (area + 1)
    background = (entropy * (1 - masks) * belief.detach()).sum((-1, -2)) / (8 * area + 64)
    dice = 1 - (2 * (belief * masks).sum((-1, -2)) + 1) / (belief.sum((-1, -2)) + area + 1)
    return 0.5 * foreground + background + dice


def mask_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of bool masks (..., height, width)."""
    shared, joined = (first & second).sum((-1, -2)), (first | second).sum((-1, -2))
    return shared.float() / joined.clamp(min=1).float()


def upsample(logits: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Mask logits (batch, masks, height, width) at another size."""
    return functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
