"""Tokenizers: reading that of a checkpoint, and making that of the `tiny` preset.

The latter knows bytes and a few words, so that it needs no files and reads every instruction. The words are those that all
sequences share and those of many instructions. Spelled in bytes they would be half of all that a tiny policy reads, and so
half of its time.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pixel160k.errors import InputError, one_line

_SPECIAL = ("<pad>", "<s>", "</s>")  # ids 0, 1 and 2; the 256 bytes follow, then pieces of words
_SIZE = 320
_WORDS = """In: What action should the robot take to pick up the black bowl and place it on the plate, refer to?\nOut:
In: What action should the robot take to put the cream cheese in the basket, refer to?\nOut:"""


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint's folder.

    Raises:
        InputError: its tokenizer.json is missing or damaged.
    """
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} has no tokenizer.json; put the one of its language model there")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception at a damaged file
        raise InputError(f"cannot read the tokenizer of {folder}: {one_line(error)}") from None


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 320 ids: padding, BOS, EOS, the bytes of UTF-8, and pieces that make frequent words one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    pad, bos, eos = _SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
