"""The tiny SAM 2: its configuration and initial weights, from which it learns on a CPU, and a loss for small masks."""

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
from transformers.models.sam2.modeling_sam2 import Sam2TwoWayAttentionBlock

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
    "prompt_encoder.mask_embed",
    "mask_downsample",
    "mask_decoder",
)

_PROMPT_ENCODER = {"hidden_size": CHANNELS, "image_size": SIZE, "patch_size": 16, "mask_input_channels": 4}
# The multimask tokens are copies of the single one (`tie_mask_tokens`): there is nothing to switch to.
_MASK_DECODER = {
    "hidden_size": CHANNELS,
    "mlp_dim": 256,
    "num_attention_heads": 4,
    "iou_head_hidden_dim": 64,
    "dynamic_multimask_via_stability": False,
}


def vision_config() -> Sam2VisionConfig:
    """The configuration of the image encoder: a Hiera of four stages. The first block of a stage is never a global one."""
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
    """A Sam2Model of 1.8 million parameters with random weights, for images of 256 x 256."""
    config = Sam2Config(
        vision_config=vision_config(),
        prompt_encoder_config=Sam2PromptEncoderConfig.from_dict(_PROMPT_ENCODER),
        mask_decoder_config=Sam2MaskDecoderConfig.from_dict(_MASK_DECODER),
    )
    model = Sam2Model(config)
    _reset(model)
    # Equal weights of queries and keys: in the cross-attentions, prompts match pixels at their positions from the start.
    transformer = model.mask_decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        assert isinstance(layer, Sam2TwoWayAttentionBlock)
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    with torch.no_grad():
        for attention in attentions:
            attention.q_proj.weight.normal_(0, 1.7 / attention.q_proj.in_features**0.5)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.q_proj.bias.zero_()
            attention.k_proj.bias.zero_()
    return model


def new_video_model(image_model: Sam2Model) -> Sam2VideoModel:
    """A Sam2VideoModel with the weights of an image model and an untrained memory, in evaluation mode.

    Only the parameters of LEARNED_IN_MEMORY_PHASE require a gradient.

    Raises:
        InputError: the image model is not of this shape.
    """
    config = Sam2VideoConfig(
        vision_config=vision_config(),
        image_size=SIZE,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig.from_dict(_PROMPT_ENCODER),
        mask_decoder_config=Sam2VideoMaskDecoderConfig.from_dict(_MASK_DECODER),
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
    for module in (
        model.memory_attention,
        model.memory_encoder,
        model.object_pointer_proj,
        model.prompt_encoder.mask_embed,
    ):
        _reset(module)
    assert model.occlusion_spatial_embedding_parameter is not None and model.mask_downsample.bias is not None
    with torch.no_grad():
        model.mask_downsample.weight.fill_(1 / 16)  # the share of a cell that a mask covers
        torch.nn.init.zeros_(model.mask_downsample.bias)
        model.no_object_pointer.normal_(0, 0.02)
        model.memory_temporal_positional_encoding.normal_(0, 0.02)
        model.occlusion_spatial_embedding_parameter.normal_(0, 0.02)
        # A mask of "no object" passes no gradient: at the start every object shall count as visible.
        model.mask_decoder.pred_obj_score_head.proj_out.bias.add_(4.0)
    for name, parameter in model.named_parameters():
        learned = name.startswith(LEARNED_IN_MEMORY_PHASE)
        parameter.requires_grad_(learned and not name.startswith("mask_decoder.conv_s"))  # conv_s makes features
    return model.eval()


@torch.no_grad()
def tie_mask_tokens(model: Sam2Model | Sam2VideoModel) -> None:
    """Make the three multimask tokens copies of the single one, to be called after each step of the optimizer.

    `Sam2VideoModel` takes the object pointer of a mask prompt from the multimask tokens, and no prompt here means several
    things: one answer for all.
    """
    decoder = model.mask_decoder
    decoder.mask_tokens.weight[1:] = decoder.mask_tokens.weight[0]
    single, *others = decoder.output_hypernetworks_mlps
    for other in others:
        other.load_state_dict(single.state_dict())


def _reset(model: torch.nn.Module) -> None:
    """Initialise as torch does by default: transformers' standard deviation of 0.02 is far too small at these widths."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.reset_parameters()


def mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The loss (...) of each mask: balanced cross-entropy plus dice, of logits and true masks (..., height, width).

    With the usual focal loss, masks of objects of 1% of the image become empty. Here the foreground is averaged over the
    object; the background is weighted by what the model believes, and scaled by the object's area.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    belief = logits.sigmoid()
    area = masks.sum((-1, -2))
    foreground = (entropy * masks).sum((-1, -2)) / (area + 1)
    background = (entropy * (1 - masks) * belief.detach()).sum((-1, -2)) / (8 * area + 64)
    dice = 1 - (2 * (belief * masks).sum((-1, -2)) + 1) / (belief.sum((-1, -2)) + area + 1)
    return 0.5 * foreground + background + dice


def mask_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The IoU (...) of every pair of masks, bool (..., height, width); 0 where both are empty."""
    shared, joined = (first & second).sum((-1, -2)), (first | second).sum((-1, -2))
    return shared.float() / joined.clamp(min=1).float()


def upsample(logits: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Mask logits (batch, masks, height, width) resized to (batch, masks, size, size), bilinear."""
    return functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
