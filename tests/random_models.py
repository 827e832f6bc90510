"""Tiny Grounding DINO and SAM 2 folders with random weights: everything of a checkpoint but the training."""

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    ConvNextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoPromptEncoderConfig,
    Sam2VisionConfig,
)


def write_detector(folder, size=256):
    """A random Grounding DINO of about 0.3 M parameters with tokenizer and image processor."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    words = [f"[unused{index}]" for index in range(1030)]  # Grounding DINO knows these ids by number
    for index, word in {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }.items():
        words[index] = word
    words += ["red", "disc", "robot", "gripper", "black", "bowl"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": size, "longest_edge": size}).save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config=ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_indices=[2, 3, 4]),
        text_config=BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64,
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=10, num_feature_levels=3, encoder_n_points=2,
        decoder_n_points=2, max_text_len=64,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return folder


def write_segmenter(folder, size=256):
    """A random SAM 2 with video memory of about 1 M parameters, for which everything is there; ages of pointers count much."""
    torch.manual_seed(0)
    width = 128
    backbone = Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[size, size], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 48, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 8, 8], window_positional_embedding_background_size=[8, 8],
        global_attention_blocks=[3],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 48, 32, 16], fpn_hidden_size=width,
        backbone_feature_sizes=[[size // 4] * 2, [size // 8] * 2, [size // 16] * 2],
    )  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=vision, image_size=size,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=width, image_size=size, patch_size=16),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=width, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
        ),
        memory_attention_hidden_size=width, memory_attention_num_layers=1, memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[size // 16, size // 16], memory_encoder_hidden_size=width,
        memory_encoder_output_channels=64, mask_downsampler_embed_dim=width, memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=32, memory_fuser_num_layers=1,
    )  # fmt: skip
    model = Sam2VideoModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.startswith("vision_encoder"):
                parameter *= 3
        model.temporal_positional_encoding_projection_layer.weight *= 30
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(99)
    model.save_pretrained(folder)
    return folder
