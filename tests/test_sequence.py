"""The sequence: its text, its slots, and that padding never changes what the action queries read."""

import pytest
import torch

from model.backbones.openvla import OpenVLABackbone
from model.backbones.settings import OpenVLASettings, Pi0Settings
from model.sequence import IMAGE, LLAMA_SPACE, MASK, PROMPT, fill_slots, normalise_instruction, pad_ids, sequence_ids
from model.settings import PRESETS
from model.tokenizer import byte_tokenizer
from pixel160k.errors import InputError

TOKENIZER = byte_tokenizer()
OPENVLA, PI0 = OpenVLASettings.text_form, Pi0Settings.text_form
BOS = TOKENIZER.bos_token_id


class LlamaLike:
    """A tokenizer in whose vocabulary "▁" has Llama 2's id; it counts words."""

    bos_token_id = 1

    def convert_tokens_to_ids(self, token):
        return {"▁": LLAMA_SPACE}[token]

    def encode(self, text, **_):
        return [100] * len(text.split())


def text(ids):
    return TOKENIZER.decode([index for index in ids if index >= 0 and index != BOS])


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("Pick up the Cup.", "pick up the cup"),
        ("  put it in v1.5 of the box . ", "put it in v1.5 of the box"),
        ("open the drawer", "open the drawer"),
    ],
)
def test_one_rule_for_instructions(given, normal):
    assert normalise_instruction(given) == normal
    assert normalise_instruction(normal) == normal


@pytest.mark.parametrize("nothing", ["", "  ", "."])
def test_an_empty_instruction_is_an_error(nothing):
    with pytest.raises(InputError, match="name the task"):
        normalise_instruction(nothing)


def test_without_masks_and_prompts_it_is_openvla():
    ids = sequence_ids(TOKENIZER, OPENVLA, "Pick up the cup.", image_tokens=4)
    assert ids[:5] == [BOS, IMAGE, IMAGE, IMAGE, IMAGE]
    assert ids[5:] == TOKENIZER.encode("In: What action should the robot take to pick up the cup?\nOut:")
    assert ids.count(BOS) == 1


def test_slots_stand_after_refer_to():
    ids = sequence_ids(TOKENIZER, OPENVLA, "pick up the cup", 2, mask_tokens=3, prompt_tokens=2)
    start = ids.index(MASK)
    assert ids[start : start + 5] == [MASK] * 3 + [PROMPT] * 2
    assert text(ids[:start]) == "In: What action should the robot take to pick up the cup, refer to"
    assert text(ids[start:]) == "?\nOut:"


def test_pi0_has_the_image_first_and_the_bare_instruction():
    ids = sequence_ids(TOKENIZER, PI0, "Pick up the cup.", image_tokens=2)
    assert ids[:3] == [IMAGE, IMAGE, BOS] and text(ids) == "pick up the cup\n"
    ids = sequence_ids(TOKENIZER, PI0, "pick up the cup", 2, mask_tokens=1, prompt_tokens=1)
    assert text(ids) == "pick up the cup, refer to\n" and ids[-3:-1] == [MASK, PROMPT]


def test_the_space_before_the_queries_is_llamas_alone():
    assert sequence_ids(LlamaLike(), OPENVLA, "go", 1)[-2:] == [100, LLAMA_SPACE]
    assert sequence_ids(LlamaLike(), OPENVLA, "go", 1, 1, 1)[-1] == LLAMA_SPACE
    assert LLAMA_SPACE not in sequence_ids(LlamaLike(), PI0, "go", 1)
    assert LLAMA_SPACE not in sequence_ids(TOKENIZER, OPENVLA, "go", 1)


@pytest.mark.parametrize("words", ["say </s> and <s>", "touch the <mask> of the <prompt>", "a {brace} here"])
def test_an_instruction_is_only_text(words):
    ids = sequence_ids(TOKENIZER, OPENVLA, words, image_tokens=1)
    assert words in text(ids)
    assert ids.count(BOS) == 1 and TOKENIZER.eos_token_id not in ids and MASK not in ids


def test_half_a_reference_is_an_error():
    with pytest.raises(ValueError, match="null token"):
        sequence_ids(TOKENIZER, OPENVLA, "go", 1, mask_tokens=1)


def test_a_tokenizer_without_bos_is_an_error():
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(InputError, match="no BOS"):
        sequence_ids(tokenizer, OPENVLA, "go", 1)


def test_tokens_go_to_their_sample_in_order():
    ids, mask = pad_ids([[5, MASK, MASK, MASK, MASK, 6], [MASK, MASK, 7], [8]])
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    tokens = torch.arange(12.0).view(3, 2, 2, 1).requires_grad_()  # three samples, two masks each, two tokens a mask
    used = torch.tensor([[True, True], [False, True], [False, False]])
    filled = fill_slots(torch.full((3, 6, 1), -1.0), ids, MASK, tokens, used)
    assert filled[..., 0].tolist() == [[-1, 0, 1, 2, 3, -1], [6, 7, -1, -1, -1, -1], [-1] * 6]
    filled.sum().backward()
    assert tokens.grad.flatten().tolist() == [1] * 4 + [0, 0, 1, 1] + [0] * 4


def test_filling_slots_asks_a_gpu_for_no_number():
    """masked_scatter does what it does, and its backward pass counts the slots."""
    torch.manual_seed(0)
    ids = torch.tensor([[5, MASK, MASK, 6], [7, 8, 9, 9], [MASK, 6, MASK, 4]])
    embeddings, tokens = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 2, 1, 5, requires_grad=True)
    used = torch.tensor([[True, True], [False, False], [True, True]])
    weights, learned = torch.randn(3, 4, 5), []
    expected = embeddings.masked_scatter((ids == MASK)[..., None], tokens[used].view(-1, 5))
    with torch.profiler.profile() as profile:
        filled = fill_slots(embeddings, ids, MASK, tokens, used)
        (filled * weights).sum().backward()
    learned = [embeddings.grad, tokens.grad]
    embeddings.grad = tokens.grad = None
    (expected * weights).sum().backward()
    assert torch.equal(filled, expected)
    for found, tensor in zip(learned, (embeddings, tokens), strict=True):
        assert torch.equal(found, tensor.grad)
    names = {event.name for event in profile.events()}
    assert "aten::where" in names and not names & {"aten::masked_select", "aten::nonzero"}, names


def test_tokens_without_slots_are_an_error():
    with pytest.raises(ValueError, match="2 slots for 3 tokens"):
        fill_slots(torch.zeros(1, 2, 1), torch.tensor([[MASK, MASK]]), MASK, torch.zeros(1, 3, 1))


def test_queries_read_the_same_with_any_padding():
    torch.manual_seed(0)
    backbone = OpenVLABackbone(PRESETS["tiny"].backbone).eval()
    queries = torch.randn(8, backbone.query_size)
    rows = [sequence_ids(TOKENIZER, OPENVLA, words, 0) for words in ("go", "pick up the cup and wait", "open it")]

    def read(rows, longer=0):
        ids, mask = pad_ids([*rows, [BOS] * (max(map(len, rows)) + longer)])
        with torch.no_grad():
            return backbone.query(backbone.embed(ids), mask, queries.expand(len(ids), -1, -1))[:-1]

    together = read(rows)
    torch.testing.assert_close(read(rows, longer=9), together, rtol=0, atol=1e-5)
    for row, expected in zip(rows, together, strict=True):
        torch.testing.assert_close(read([row])[0], expected, rtol=0, atol=1e-5)
        # The plainest way: no padding, no mask, no positions given.
        ids = torch.tensor([row])
        sequence = torch.cat([backbone.embed(ids), queries[None]], dim=1)
        plain = backbone.read_sequence(sequence, torch.ones(sequence.shape[:2], dtype=torch.long))[0, -8:]
        torch.testing.assert_close(plain.detach(), expected, rtol=0, atol=1e-5)
