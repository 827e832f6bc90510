"""The language model as a namer, on tiny Llamas whose next word is rigged: no download, no network."""

import functools
import subprocess
import sys

import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra foundation")
transformers = pytest.importorskip("transformers", reason="needs the extra foundation")

from annotate.annotators.grammar import candidate_phrases  # noqa: E402
from annotate.annotators.language_model import ANSWER, LanguageModelNamer  # noqa: E402

MUG_ON_PLATE = "white mug on the left plate"  # no verb, so the grammar is not sure
SPECIAL = ["<unk>", "<end>"]
TEMPLATE = "{% for message in messages %}{{ message['role'] + ' : ' + message['content'] + ' ' }}{% endfor %}"


def save_tokenizer(folder, template):
    """A tokenizer of whole words, over those that the tests use."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    text = f"{MUG_ON_PLATE} which one object robot first grasp in this task user assistant : ? . {ANSWER} and bin spoon"
    words = [*SPECIAL, *dict.fromkeys(text.split())]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return words


def tiny_llama(words, layers=2):
    """A random Llama whose hidden size is a dimension a word."""
    torch.manual_seed(0)
    size = -(-len(words) // 16) * 16
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=4,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


@pytest.fixture
def random_model(tmp_path):
    """A folder with a random Llama."""
    tiny_llama(save_tokenizer(tmp_path, TEMPLATE)).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def rigged_model(tmp_path):
    """Makes a folder with a Llama that continues each word by the one named for it (and anything else by the end)."""

    def make(template=TEMPLATE, **follows):
        words = save_tokenizer(tmp_path, template)
        model = tiny_llama(words, layers=1)
        with torch.no_grad():
            layer = model.model.layers[0]
            layer.self_attn.o_proj.weight.zero_()  # the only layer passes its input on ...
            layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(len(model.lm_head.weight)))  # ... which is the last word
            model.lm_head.weight.zero_()
            for index, word in enumerate(words):
                following = words.index(follows.get(word, "<end>"))
                model.lm_head.weight[following, index] = 1.0
        model.save_pretrained(tmp_path)
        return str(tmp_path)

    return make


@pytest.fixture
def calls(monkeypatch):
    """The batch size of each forward call."""
    sizes = []
    forward = transformers.LlamaForCausalLM.forward

    @functools.wraps(forward)
    def counting(self, input_ids=None, **options):
        sizes.append(len(input_ids))
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", counting)
    return sizes


def test_ranking_chooses_a_phrase_of_the_instruction(random_model):
    assert LanguageModelNamer(random_model).name_targets([MUG_ON_PLATE])[0] in candidate_phrases(MUG_ON_PLATE)


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["chat", "plain"])
@pytest.mark.parametrize(("next_word", "target"), [("white", "white mug"), ("left", "left plate")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranking_follows_the_model(rigged_model, template, next_word, target, dtype):
    folder = rigged_model(template, the=next_word)
    assert LanguageModelNamer(folder, dtype=dtype).name_targets([MUG_ON_PLATE]) == [target]


def test_scores_are_the_likelihood_per_token_whatever_the_batch(random_model):
    namer = LanguageModelNamer(random_model)
    together = namer._scores(MUG_ON_PLATE, ["white mug", "plate", "left white mug"])
    alone = [namer._scores(MUG_ON_PLATE, [phrase])[0] for phrase in ("white mug", "plate", "left white mug")]
    assert together == pytest.approx(alone, abs=1e-5)  # padding changes nothing
    prompt = namer._tokens(namer._prompt(MUG_ON_PLATE))
    row = namer._tokens(f"{namer._prompt(MUG_ON_PLATE)} white mug")
    with torch.inference_mode():
        logits = namer._model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    steps = [logits[index - 1, row[index]].item() for index in range(len(prompt), len(row))]
    assert len(steps) == 2
    assert together[0] == pytest.approx(sum(steps) / 2, abs=1e-5)


def test_a_distinct_instruction_is_asked_about_once_and_in_one_batch(random_model, calls):
    namer = LanguageModelNamer(random_model)
    first = namer.name_targets([MUG_ON_PLATE, MUG_ON_PLATE])
    assert namer.name_targets([MUG_ON_PLATE]) == first[:1] == first[1:]
    assert calls == [2]  # both candidates at once
    namer.name_targets(["white mug in the bin near the plate"])
    assert calls == [2, 3]


@pytest.mark.parametrize(
    "instruction", ["cup next to the " + "mug and the {} and " * 900, "cup near the mug" + ",mug{}" * 900]
)
def test_an_endless_instruction_is_cut_and_ranked_in_batches(random_model, calls, instruction):
    """Time and memory grow with the square of its length; none may stop a job."""
    instruction = instruction.format(*(f"thing{number}" for number in range(900)))
    (target,) = LanguageModelNamer(random_model).name_targets([instruction])
    assert target and all(word in instruction.lower() for word in target.split())
    assert calls and max(calls) <= 16 and sum(calls) <= 700


@pytest.mark.parametrize("generate", [False, True])
def test_nothing_is_asked_where_no_object_is_named(random_model, calls, generate):
    namer = LanguageModelNamer(random_model, generate=generate)
    assert namer.name_targets(["put everything to the left", "", "pick it up"]) == ["", "", ""]
    assert calls == []


def test_a_single_candidate_needs_no_ranking(random_model, calls):
    assert LanguageModelNamer(random_model).name_targets(["spoon to the left"]) == ["spoon"]
    assert calls == []


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize(
    ("instruction", "target"),
    [(f"put the {MUG_ON_PLATE}", "white mug"), ("folded the cloth near the bin", "cloth"), ("put it on the plate", "")],
)
def test_nothing_is_asked_where_the_grammar_is_sure(random_model, calls, instruction, target, generate):
    assert LanguageModelNamer(random_model, generate=generate).name_targets([instruction]) == [target]
    assert calls == []


@pytest.mark.parametrize(
    "instruction", [MUG_ON_PLATE, "palce mug on plate", "leg die Tasse auf den Teller", "pon la taza en el plato"]
)
def test_the_model_is_asked_where_the_grammar_is_not_sure(random_model, calls, instruction):
    LanguageModelNamer(random_model).name_targets([instruction])
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("follows", "answer"),
    [
        ({"the": "left", "left": "plate"}, "left plate"),
        (
            {"the": "white", "white": "mug", "mug": "and", "and": "bin"},
            "white mug",
        ),  # what follows the noun is left out
        ({"the": "spoon"}, ""),  # not a word of the instruction
        ({"the": "white", "white": "plate"}, ""),  # its words, but not a run of them
        ({}, ""),
    ],
)
def test_free_generation_must_stay_within_the_instruction(rigged_model, follows, answer):
    assert LanguageModelNamer(rigged_model(**follows), generate=True).name_targets([MUG_ON_PLATE]) == [answer]


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_model_that_is_not_there_is_one_line_that_names_it(tmp_path, what):
    folder = tmp_path / what
    if what == "empty":
        folder.mkdir()
    with pytest.raises(InputError, match="folder") as error:
        LanguageModelNamer(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_id_without_network_is_one_line_that_names_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^[^\n]*nobody/no-such-model[^\n]*FOLDER$"):
        LanguageModelNamer("nobody/no-such-model")


def test_importing_it_loads_no_torch():
    code = "import sys, annotate.annotators.language_model; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
