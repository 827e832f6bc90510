"""The tiny Grounding DINO: its configuration, vocabulary and initial weights, from which it learns on a CPU; its losses."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import BertConfig, BertTokenizer, ConvNextConfig, GroundingDinoConfig, GroundingDinoForObjectDetection
from transformers.loss.loss_for_object_detection import _set_aux_loss, generalized_box_iou
from transformers.loss.loss_grounding_dino import GroundingDinoHungarianMatcher, GroundingDinoImageLoss
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoObjectDetectionOutput,
    build_label_maps,
)

from tiny_models.frames import SIZE
from tiny_models.training import box_corners

TEXT_LENGTH = 64
STRIDES = (8, 16, 32)
LOSS_WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
POSITIVES_PER_OBJECT = 5  # tokens that answer for one object in the one-to-many loss

# BERT's ids of the tokens that transformers' Grounding DINO knows by number.
_SPECIAL_TOKENS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def write_vocabulary(words: set[str], path: Path) -> None:
    """Write a vocabulary file of BERT, one token per line: special tokens, the words, and characters to spell others."""
    lines = [_SPECIAL_TOKENS.get(number, f"[unused{number}]") for number in range(max(_SPECIAL_TOKENS) + 1)]
    lines += sorted(words | set(_CHARACTERS)) + [f"##{character}" for character in _CHARACTERS]
    path.write_text("\n".join(lines) + "\n")


def new_detector(tokenizer: BertTokenizer) -> GroundingDinoForObjectDetection:
    """A Grounding DINO of 1.8 million parameters with random weights, for 256 x 256 images and the tokens of a tokenizer."""
    config = GroundingDinoConfig(
        backbone_config=ConvNextConfig(
            depths=[1, 1, 3, 1],
            hidden_sizes=[32, 64, 128, 192],
            out_indices=[2, 3, 4],  # type: ignore[call-arg]  # documented, but missing in the type hints
            drop_path_rate=0.0,
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=TEXT_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        d_model=96,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        encoder_n_points=2,
        decoder_n_points=4,
        num_feature_levels=len(STRIDES),
        num_queries=40,
        max_text_len=TEXT_LENGTH,
        dropout=0.0,
        fusion_droppath=0.0,
        auxiliary_loss=True,
        class_cost=2.0,
    )
    model = GroundingDinoForObjectDetection(config)
    model.loss_function = grounding_loss
    # A score is the product of image and text features, without scale or bias. Small features with means of opposite
    # signs make all scores low at the start.
    with torch.no_grad():
        for norm, sign in (
            (model.model.enc_output_norm, 1),
            (model.model.decoder.layer_norm, 1),
            (model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after, -1),
        ):
            norm.weight.fill_(0.3)
            norm.bias.fill_(0.2 * sign)
    return model


class _ImageLoss(GroundingDinoImageLoss):
    """The loss of transformers with its labels corrected.

    Version 5.23 shifts the class labels of sample i by the number of phrases of that sample, not by the sum of all
    samples before it. This is right only if all prompts of a batch have equally many phrases.
    """

    def _get_target_classes_one_hot(self, outputs: dict, targets: list[dict], indices: list[tuple]) -> torch.Tensor:
        one_hot = torch.zeros_like(outputs["logits"], dtype=torch.long)
        for sample, (queries, objects) in enumerate(indices):
            if len(queries):
                labels = targets[sample]["class_labels"][objects]
                one_hot[sample, queries] = outputs["label_maps"][sample][labels].to(torch.long)
        return one_hot


def grounding_loss(
    logits: torch.Tensor,
    labels: list[dict],
    device: torch.device,
    pred_boxes: torch.Tensor,
    config: GroundingDinoConfig,
    label_maps: tuple[torch.Tensor, ...],
    text_mask: torch.Tensor,
    outputs_class: torch.Tensor | None = None,
    outputs_coord: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[dict]]:
    """The decoder's loss, called by transformers instead of its own: (total, losses by name, auxiliary outputs).

    Logits are (batch, queries, text tokens), boxes (batch, queries, 4) as centre and sides from 0 to 1. `labels` hold
    `class_labels` (the numbers of the phrases) and `boxes` of each image. The encoder's loss is `one_to_many_loss`.
    """
    matcher = GroundingDinoHungarianMatcher(
        class_cost=config.class_cost, bbox_cost=config.bbox_cost, giou_cost=config.giou_cost
    )
    criterion = _ImageLoss(matcher, config.focal_alpha, ["labels", "boxes"])
    texts = {"label_maps": label_maps, "text_mask": text_mask}
    auxiliary = [{**output, **texts} for output in _set_aux_loss(outputs_class, outputs_coord)]
    outputs = {"logits": logits, "pred_boxes": pred_boxes, **texts, "auxiliary_outputs": auxiliary}
    losses = criterion(outputs, labels)
    total = sum(value * LOSS_WEIGHTS[name.rstrip("_0123456789")] for name, value in losses.items())
    return total, losses, auxiliary


def _token_centres() -> torch.Tensor:
    """The centres (tokens, 2) of the encoder's image tokens, x and y from 0 to 1."""
    levels = []
    for stride in STRIDES:
        ticks = (torch.arange(SIZE // stride) + 0.5) / (SIZE // stride)
        rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
        levels.append(torch.stack([columns, rows], -1).view(-1, 2))
    return torch.cat(levels)


TOKEN_CENTRES = _token_centres()


def one_to_many_loss(
    output: GroundingDinoObjectDetectionOutput, inputs: dict[str, torch.Tensor], labels: list[dict]
) -> torch.Tensor:
    """The encoder's loss (a scalar) over all its image tokens, with several tokens per object.

    The built-in loss of transformers gives the encoder's box head no gradient, and with one query per object the model
    learns too slowly for an hour on a CPU. `inputs` and `labels` are those of the model's call.
    """
    logits, coordinates = output.enc_outputs_class, output.enc_outputs_coord_logits
    assert logits is not None and coordinates is not None
    label_maps = build_label_maps(logits, inputs["input_ids"])  # type: ignore[arg-type]  # of dtype long
    valid = torch.isfinite(coordinates).all(-1)
    boxes = torch.where(valid[..., None], coordinates, torch.zeros_like(coordinates)).sigmoid()
    targets = torch.zeros_like(logits)
    chosen_boxes, true_boxes = [], []
    for sample, label in enumerate(labels):
        for phrase, box in zip(label["class_labels"], label["boxes"], strict=True):
            chosen = _tokens_of(box, boxes[sample].detach(), valid[sample])
            for token in label_maps[sample][phrase].nonzero()[:, 0]:
                targets[sample, chosen, token] = 1
            chosen_boxes.append(boxes[sample, chosen])
            true_boxes.append(box.expand(len(chosen), 4))
    text = functional.pad(inputs["attention_mask"], (0, logits.shape[-1] - inputs["attention_mask"].shape[1])).bool()
    counted = text[:, None, :] & valid[..., None] & torch.isfinite(logits)
    positives = max(sum(len(part) for part in chosen_boxes), 1)
    loss = 2 * _focal(logits[counted], targets[counted]) / positives
    if chosen_boxes:
        chosen_all, true_all = torch.cat(chosen_boxes), torch.cat(true_boxes)
        overlap = generalized_box_iou(box_corners(chosen_all), box_corners(true_all))
        distance = functional.l1_loss(chosen_all, true_all, reduction="sum") / positives
        loss = loss + 5 * distance + 2 * (1 - overlap.diagonal()).sum() / positives
    return loss


def _tokens_of(box: torch.Tensor, boxes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The indices of the tokens that shall answer for an object: those near it whose boxes fit best already."""
    half_sides = (box[2:] / 2).clamp(min=0.02)
    distance = ((TOKEN_CENTRES - box[:2]).abs() / half_sides).amax(-1)  # below 1: inside the box
    overlap = generalized_box_iou(box_corners(boxes), box_corners(box[None]))[:, 0]
    cost = distance - 2 * overlap + 1e3 * ~valid + 50 * (distance > 1.5)
    best = cost.topk(POSITIVES_PER_OBJECT, largest=False).indices
    return best[(distance[best] < 2.5) & valid[best]]


def _focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = logits.sigmoid() * targets + (1 - logits.sigmoid()) * (1 - targets)
    weight = 0.25 * targets + 0.75 * (1 - targets)
    return (weight * (1 - right) ** 2 * entropy).sum()
