"""OpenVLA's own checkpoints as they are: the anchor that others report, acting by its own action tokens.

An action is seven tokens from the end of the vocabulary, each one of 255 bins between the data set's 1% and 99% quantiles
(`OpenVLAForActionPrediction.predict_action`). Images go through the preprocessing of `run_libero_eval.py`. Prompts and masks are
not for it, and are refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.backbones.openvla import OpenVLABackbone
from model.checkpoint import open_checkpoint
from model.sequence import sequence_ids
from model.weights import locate, on_device, reading_to
from pixel160k.errors import InputError
from pixel160k.files import read_json_object
from pixel160k.format.actions import ACTION_DIMENSIONS, unnormalise
from pixel160k.geometry import CROPPED_AREA
from policies.base import Seen

_BINS = 256  # edges, so 255 bins


def is_openvla(model: str) -> bool:
    """Whether a checkpoint, a hub id or folder, is one of OpenVLA's own and not of a policy of ours."""
    config = locate(model) / "config.json"
    return config.is_file() and read_json_object(config).get("model_type") == "openvla"


class OpenVLAPolicy:
    """Greedy decoding of one action at a time, as the original does it. It keeps nothing of an episode."""

    def __init__(self, backbone: OpenVLABackbone, tokenizer: Any, statistics: dict[str, Any], vocabulary: int) -> None:
        """`statistics`: of the data set whose robot acts; `vocabulary`: tokens without those that only pad it."""
        self._backbone, self._tokenizer, self._statistics = backbone, tokenizer, statistics
        self._vocabulary = vocabulary

    @classmethod
    def load(cls, model: str | Path, device: str = "cpu", dataset: str | None = None) -> "OpenVLAPolicy":
        """Load a checkpoint of OpenVLA.

        Args:
            model: hub id or folder.
            device: such as "cuda:1".
            dataset: whose robot acts, a key of its norm_stats; by default the only one. As in OpenVLA's evaluation,
                "libero_spatial" also finds "libero_spatial_no_noops".

        Raises:
            InputError: it cannot be loaded, or has no statistics of the data set (lists those there are).
        """
        checkpoint = open_checkpoint(model)
        config = read_json_object(checkpoint.folder / "config.json")
        if heads := sorted(path.name for path in checkpoint.folder.glob("action_head--*")):
            raise InputError(
                f"{checkpoint.folder} is a checkpoint of OpenVLA-OFT ({heads[0]}), whose actions do not come as tokens: serve it "
                "with its own code and evaluate http://HOST:PORT/act"
            )
        if checkpoint.tokenizer is None:
            raise InputError(f"{checkpoint.folder} has no tokenizer.json; put the one of its language model there")
        if config.get("n_action_bins", _BINS) != _BINS:
            raise InputError(f"{checkpoint.folder}: n_action_bins must be {_BINS}, not {config['n_action_bins']}")
        known = checkpoint.statistics
        names = [dataset, f"{dataset}_no_noops"] if dataset is not None else list(known) if len(known) == 1 else []
        name = next((name for name in names if name in known), None)
        if name is None:
            raise InputError(f"{model} has statistics of {', '.join(sorted(known))}: name one of them with --dataset")
        with reading_to(device):
            backbone = OpenVLABackbone.load(checkpoint.folder)
        padded_by = config.get("pad_to_multiple_of", 64)
        return cls(
            on_device(backbone, device).eval(),
            checkpoint.tokenizer,
            known[name],
            backbone.settings.language.vocab_size - padded_by,
        )

    def reset(self, episode: str, instruction: str) -> None:
        """There is nothing to forget."""

    @torch.inference_mode()
    def act(self, seen: Sequence[Seen]) -> np.ndarray:
        """The next action of each, a chunk of one; see `policies.base.Policy.act`."""
        return np.stack([self._action(one)[None] for one in seen])

    def _action(self, seen: Seen) -> np.ndarray:
        if seen.masks or seen.prompts:
            raise InputError(
                "OpenVLA's own checkpoints take neither masks nor prompts; evaluate them with prompts=[none]"
            )
        settings = self._backbone.settings
        image = as_openvla_sees(seen.image, settings.vision.image_size)
        ids = sequence_ids(self._tokenizer, settings.text_form, seen.instruction, settings.vision.grid**2)
        text = [token for token in ids if token >= 0]
        return action_of_tokens(
            self.decode(torch.from_numpy(image)[None], torch.tensor([text])), self._statistics, self._vocabulary
        )

    def decode(self, images: torch.Tensor, input_ids: torch.Tensor) -> np.ndarray:
        """The seven likeliest tokens, one after the other, int64 (7,).

        Args:
            images: RGB uint8 (1, image_size, image_size, 3).
            input_ids: int64 (1, tokens), BOS first.
        """
        backbone = self._backbone
        device = next(backbone.parameters()).device
        projected = backbone.project(backbone.vision(backbone.pixels(images.to(device))).patch_features)
        text = backbone.embed(input_ids.to(device))
        following = torch.cat([text[:, :1], projected, text[:, 1:]], dim=1)
        tokens, past = [], None
        for _ in range(ACTION_DIMENSIONS):
            output = backbone.language_model(inputs_embeds=following, past_key_values=past, use_cache=True)
            past = output.past_key_values
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(token))
            following = backbone.embed(token)
        return np.array(tokens)


def action_of_tokens(tokens: np.ndarray, statistics: dict[str, Any], vocabulary: int) -> np.ndarray:
    """The action, float32 (7,) in robot units, that seven tokens mean; OpenVLA's rule.

    Args:
        tokens: int (7,).
        statistics: of the data set.
        vocabulary: tokens of the language model; the last of them is the first bin.
    """
    edges = np.linspace(-1, 1, _BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    bins = np.clip(vocabulary - tokens - 1, 0, len(centres) - 1)
    return unnormalise(centres[bins], statistics)


def as_openvla_sees(image: np.ndarray, size: int) -> np.ndarray:
    """An image as OpenVLA's evaluation gives it to the model: uint8 (size, size, 3).

    TensorFlow's Lanczos3 resizing with antialiasing, then the middle 0.9 of its area, resized back. The JPEG round trip
    that the original has before it is a setting of the evaluation.

    Args:
        image: RGB uint8 (height, width, 3).
        size: pixels per side.
    """
    height, width = image.shape[:2]
    resized = np.einsum(
        "yh,hwc,xw->yxc", _lanczos(height, size), image.astype(np.float32), _lanczos(width, size), optimize=True
    )
    levels = np.clip(np.round(resized), 0, 255).astype(np.float32) / 255
    inside = _middle(size)
    cropped = np.einsum("yh,hwc,xw->yxc", inside, levels, inside, optimize=True)
    return np.clip(cropped * 255.5, 0, 255).astype(np.uint8)


def _lanczos(length: int, size: int) -> np.ndarray:
    """What each pixel of a side of `length` adds to each of `size`: float32 (size, length); `tf.image.resize`'s."""
    scale = length / size
    stretch = max(scale, 1.0)  # antialiasing: the kernel is as wide as what it averages
    centres = (np.arange(size) + 0.5) * scale
    away = (np.arange(length) + 0.5 - centres[:, None]) / stretch
    weights = np.where(np.abs(away) < 3, np.sinc(away) * np.sinc(away / 3), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _middle(size: int) -> np.ndarray:
    """The same for the middle part of a side, enlarged to all of it: `tf.image.crop_and_resize`'s bilinear weights."""
    share = CROPPED_AREA**0.5
    at = ((1 - share) / 2 + np.linspace(0, share, size)) * (size - 1)
    below = np.floor(at).astype(int)
    weights = np.zeros((size, size), np.float32)
    weights[np.arange(size), below] = 1 - (at - below)
    weights[np.arange(size), np.minimum(below + 1, size - 1)] += at - below
    return weights
