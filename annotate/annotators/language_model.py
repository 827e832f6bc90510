"""The target noun by an instruct language model, as in the paper: asked which object the robot grasps first.

It is asked where the grammar (annotate/annotators/grammar.py) is not sure; what the grammar is sure of, it knows better.
Small models choose better than they answer, so by default the instruction's own noun phrases are ranked by their
likelihood as the answer. Free generation is there to compare. `benchmarks/target_nouns.py` measures both.
torch and transformers are imported only when a model is loaded.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from annotate.annotators.grammar import candidate_phrases, phrase_of_answer, read
from annotate.annotators.pretrained import load, torch_dtype

QUESTION = "which one object the robot first grasp in this task {instruction}"
"""The paper's words (arXiv 2511.01571, Fig. 6)."""

ANSWER = "The robot first picks up the"
"""How the answer begins. Without it a small model judges what may start a reply rather than which object is meant:
SmolLM2-135M ranks 63 of LIBERO's 101 pick instructions right without it, 96 with "... grasps the" and 100 with this,
which also says that what is carried counts rather than a handle or a knob."""

_WORDS, _CHARACTERS = 200, 2000  # of an instruction, that the model gets to read
_CANDIDATES = 16  # noun phrases in one forward pass
_ANSWER_TOKENS = 16  # a noun phrase and a little more, which says where the phrase ends


class LanguageModelNamer:
    """A causal language model in the role of the target namer (roles.py)."""

    def __init__(self, model: str, device: str = "cpu", dtype: str = "float32", generate: bool = False) -> None:
        """Load a model.

        Args:
            model: hub id or local folder, with or without `@REVISION`, in the layout of transformers' `save_pretrained`,
                tokenizer included.
            device: as torch names it.
            dtype: "float32" or "bfloat16".
            generate: let the model answer freely (greedily) instead of ranking the instruction's noun phrases.

        Raises:
            InputError: the model cannot be loaded, neither from a folder nor from the hub.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        def from_pretrained(path: str, revision: str = "main") -> tuple[Any, Any]:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch_dtype(dtype), use_safetensors=True, revision=revision
            )
            return loaded, AutoTokenizer.from_pretrained(path, revision=revision)

        loaded, self._tokenizer = load("target.model", model, from_pretrained)
        self._model = loaded.to(device).eval()
        self._generate = generate
        self._targets: dict[str, str] = {}

    def name_targets(self, instructions: Sequence[str]) -> list[str]:
        """One noun phrase per instruction, lower-case, without determiner; "" where none is named.

        It is always a run of the instruction's own words, of its first 200 where it is longer: the time and the memory that
        the model takes grow with their number squared. The model is asked once about each distinct instruction of which
        the grammar is not sure, and never about one that names no object.
        """
        for instruction in instructions:
            if instruction not in self._targets:
                self._targets[instruction] = self._name(instruction)
        return [self._targets[instruction] for instruction in instructions]

    def _name(self, instruction: str) -> str:
        if len(words := instruction.split()) > _WORDS:
            instruction = " ".join(words[:_WORDS])
        instruction = instruction[:_CHARACTERS]
        reading = read(instruction)
        if not reading.doubt:
            return reading.target
        candidates = candidate_phrases(instruction)
        if candidates and self._generate:
            return phrase_of_answer(self._answer(instruction), instruction)
        if len(candidates) > 1:
            scores = self._scores(instruction, candidates)
            return candidates[scores.index(max(scores))]
        return candidates[0] if candidates else ""

    def _prompt(self, instruction: str) -> str:
        """The question, and the answer's beginning, in the model's own chat form where it has one."""
        question = QUESTION.format(instruction=instruction)
        if self._tokenizer.chat_template is None:
            return f"{question}?\n{ANSWER}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}]
        return self._tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)

    def _tokens(self, text: str) -> list[int]:
        # A chat template writes the special tokens itself.
        return self._tokenizer(text, add_special_tokens=self._tokenizer.chat_template is None)["input_ids"]

    def _scores(self, instruction: str, candidates: Sequence[str]) -> list[float]:
        """Each candidate's mean log-likelihood per token as the answer."""
        from annotate.annotators.device import Batches

        return Batches(_CANDIDATES)(candidates, partial(self._batch_scores, instruction))

    def _batch_scores(self, instruction: str, candidates: Sequence[str]) -> list[float]:
        """`_scores` of candidates in one batch."""
        import torch

        prompt = self._prompt(instruction)
        # Tokenized together with the prompt, since a tokenizer may treat a text's first word differently.
        rows = [self._tokens(f"{prompt} {candidate}") for candidate in candidates]
        columns = enumerate(zip(self._tokens(prompt), *rows, strict=False))
        asked = next((index for index, tokens in columns if len(set(tokens)) > 1), len(self._tokens(prompt)))
        longest = max(map(len, rows))
        # Right padding: causal attention never sees it, so its token does not matter, nor does a mask.
        tokens = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows], device=self._model.device)
        answered = torch.tensor([[index < len(row) for index in range(asked, longest)] for row in rows])
        with torch.inference_mode():
            logits = self._model(input_ids=tokens, logits_to_keep=longest - asked + 1).logits[:, :-1]
        likelihood = logits.float().log_softmax(-1).gather(-1, tokens[:, asked:, None])[..., 0].cpu()
        return ((likelihood * answered).sum(1) / answered.sum(1)).tolist()

    def _answer(self, instruction: str) -> str:
        """The greedy continuation of the answer."""
        import torch

        tokens = torch.tensor([self._tokens(self._prompt(instruction))], device=self._model.device)
        answer = self._model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=_ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=self._model.generation_config.pad_token_id or 0,
        )
        return self._tokenizer.decode(answer[0, tokens.shape[1] :], skip_special_tokens=True)
