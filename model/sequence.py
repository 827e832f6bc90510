"""The sequence that the language model reads: the only module that writes its text and says what stands where.

A sequence is a row of token ids in which negative ids are slots for embeddings that come from elsewhere: the image E_v, the
masks E_p, the prompts E_s. The action queries follow it; the backbone adds them, since π0 reads them in its expert. The
words and their order are those that the backbone was trained with (its `TextForm`):

    openvla   BOS, E_v, "In: What action should the robot take to {instruction}?\\nOut:", 29871
              BOS, E_v, "In: What action should the robot take to {instruction}, refer to", E_p, E_s, "?\\nOut:", 29871
    pi0       E_v, BOS, "{instruction}\\n"
              E_v, BOS, "{instruction}, refer to", E_p, E_s, "\\n"

Without masks and prompts that is the original's sequence to the last token. With either of them both slots are there, and
the one without content takes its encoder's null token.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from model.backbones.settings import TextForm
from pixel160k.errors import InputError

IMAGE, MASK, PROMPT = -1, -2, -3  # the slots
LLAMA_SPACE = 29871  # "▁" in Llama 2's vocabulary: OpenVLA has it after "Out:", in training and in use

_REFERENCE = ", refer to"


def is_instruction(text: str) -> bool:
    """Whether a text says anything, so that `normalise_instruction` takes it."""
    return bool(text.strip().rstrip(". "))


def check_length(tokens: int, positions: int | None, instruction: str) -> None:
    """Check that a sequence has a place in the language model.

    Args:
        tokens: of the whole sequence, with the action queries.
        positions: how many the language model knows; None for any number.
        instruction: its own, for the message.

    Raises:
        InputError: it is too long.
    """
    if positions is not None and tokens > positions:
        raise InputError(
            f"with the instruction {instruction[:40]!r}... of {len(instruction)} characters the sequence has {tokens} tokens, "
            f"and the language model knows {positions} positions; shorten it"
        )


def normalise_instruction(instruction: str) -> str:
    """An instruction as every policy reads it: lower case, without space around it, without a final period.

    Raises:
        InputError: nothing is left.
    """
    normalised = instruction.strip().lower().rstrip(". ")
    if not normalised:
        raise InputError(f"the instruction {instruction!r} says nothing; name the task, as 'pick up the red cup'")
    return normalised


def sequence_ids(
    tokenizer: Any,
    form: TextForm,
    instruction: str,
    image_tokens: int,
    mask_tokens: int = 0,
    prompt_tokens: int = 0,
) -> list[int]:
    """The token ids of one sample, with slots for the image and for what masks and prompts become.

    Text is encoded without special tokens and BOS is written here, so that there is exactly one whatever the tokenizer
    does by itself, and an instruction that spells a slot's name or a special token stays text.

    Args:
        tokenizer: a tokenizer of transformers.
        form: how the backbone was trained to be told its task.
        instruction: as the data set or the user has it.
        image_tokens: visual tokens of the image.
        mask_tokens: tokens of all masks together. Where this is 0, `prompt_tokens` is 0 too: no reference at all.
        prompt_tokens: tokens of all prompts together.

    Raises:
        InputError: the instruction is empty, or the tokenizer has no BOS token.
        ValueError: only one of masks and prompts has tokens.
    """
    if bool(mask_tokens) != bool(prompt_tokens):
        raise ValueError(
            f"{mask_tokens} mask tokens and {prompt_tokens} prompt tokens: with either both slots are there, "
            "the null token in the one without content"
        )
    if tokenizer.bos_token_id is None:
        raise InputError("the tokenizer has no BOS token, with which every sequence starts; set its bos_token")
    before, after = form.before.format(normalise_instruction(instruction)), form.after
    image, bos = [IMAGE] * image_tokens, [tokenizer.bos_token_id]
    ids = [*image, *bos] if form.image_first else [*bos, *image]
    if mask_tokens:
        ids += _encode(tokenizer, before + _REFERENCE) + [MASK] * mask_tokens + [PROMPT] * prompt_tokens
        ids += _encode(tokenizer, after)
    else:
        ids += _encode(tokenizer, before + after)
    if form.llama_space and tokenizer.convert_tokens_to_ids("▁") == LLAMA_SPACE:
        ids.append(LLAMA_SPACE)
    return ids


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def pad_ids(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pad token ids on the right: ids int64 (batch, length), and their mask int64 (batch, length), 1 = token, 0 = padding.

    The mask is None where all rows are of one length. Nothing reads what stands at padding, so its id is 0 whatever the
    tokenizer.
    """
    lengths = np.array([len(row) for row in rows])
    ids, used = np.zeros((len(rows), lengths.max()), np.int64), np.arange(lengths.max()) < lengths[:, None]
    ids[used] = [token for row in rows for token in row]  # torch.tensor of lists takes ten times as long
    return torch.from_numpy(ids), None if used.all() else torch.from_numpy(used.astype(np.int64))


def fill_slots(
    embeddings: torch.Tensor, input_ids: torch.Tensor, slot: int, tokens: torch.Tensor, used: torch.Tensor | None = None
) -> torch.Tensor:
    """Put tokens into the slots of sequences, sample by sample, in order.

    Args:
        embeddings: word embeddings, (batch, length, D); what stands at the slots is without meaning.
        input_ids: (batch, length) with the slots.
        slot: `IMAGE`, `MASK` or `PROMPT`.
        tokens: (batch, items, ..., D): an item is a patch, a mask or a prompt.
        used: bool (batch, items), false for padding; all by default.

    Returns:
        (batch, length, D), where the slots hold the tokens.

    Raises:
        ValueError: there are more or fewer slots than tokens. Only seen on a CPU, where nobody has to wait for the look.
    """
    slots, chosen = input_ids == slot, tokens.flatten(0, 1)
    if used is not None:  # those in use first, in order; choosing them by a mask would make a GPU wait, too
        chosen = chosen[(~used).flatten().byte().argsort(stable=True)]
    if slots.device.type == "cpu" and not torch.compiler.is_compiling():
        count = (len(chosen) if used is None else int(used.sum())) * chosen[0, ..., 0].numel()
        if int(slots.sum()) != count:
            raise ValueError(f"the sequences have {int(slots.sum())} slots for {count} tokens; build both together")
    # What masked_scatter does, whose backward pass waits for a GPU to count the slots.
    rows = chosen.reshape(-1, embeddings.shape[-1]).to(embeddings.dtype)
    place = (slots.flatten().cumsum(0) - 1).clamp(min=0).view_as(slots)  # of each slot's token among the rows
    return torch.where(slots[..., None], rows[place], embeddings)
