"""The target noun from an instruction, by a verb-pattern grammar: what does the robot grasp first?

    instruction = [filler] clause (rest clause)* [rest]          clause = verb [particle] noun-phrase

The words are in words.py. Any form of a verb will do ("moves", "moved", "moving"); a word that may be a noun as well, and a
form that may be an adjective, is a verb only where a clause can begin. A particle ("up", "out", "on" after "turn", ...) may
follow the verb; the noun phrase then loses leading determiners and runs to the first word that begins something else (a
preposition, a conjunction, an adverb, a side such as "left", punctuation). Two exceptions: the word after an article belongs
to the noun phrase whatever else it could be ("the back burner", "the stack"), and so does an "and" between two colours
("yellow and white mug").

A clause that says what others do or what was done ("the cook opened the window", "the floor has been swept") counts only
where none says what to do; where it is about no handling that the grammar knows ("guests will come this evening"), never.

The target is the object of the first clause whose verb carries something away: knobs are turned and drawers pulled
before anything is grasped to be carried ("turn on the stove and put the pan on it" -> "pan"). Where no clause carries, it
is the first clause's object, or the tool where one is named ("wipe the table with the cloth" -> "cloth"). Pronouns stand for
what was named before ("fold the cloth and put it away" -> "cloth"); words for any or all objects name none. The answer is
always a run of the instruction's own words.

The grammar says when it is not sure: a verb that it does not know or that seems mistyped, no verb, another language, a noun
phrase longer than nouns are. Then a language model is asked, where there is one (language_model.py).
docs/annotation.md gives the grammar with examples and its measured accuracy.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from annotate.annotators import words as table

_LONGEST_NOUN = 5  # words; a longer noun phrase has likely swallowed something else
_GLUED = re.compile(rf"({'|'.join(sorted(table.PREPOSITIONS | set('pick put and'.split())))})(the)")


@dataclass(frozen=True)
class Reading:
    """What the grammar reads in an instruction."""

    target: str
    """The noun phrase, lower-case and without determiner, that the robot grasps first; "" where none is named."""
    verb: str
    """The verb whose object that is, in its base form; "" where there is none."""
    kind: str
    """The class of the verb, with its object: pick_place, open, close, push, turn, tilt, wipe, fold, or other."""
    doubt: str
    """Why the grammar is not sure; "" where it is."""
    missing: str
    """Why there is no target; "" where there is one."""


class _Run(NamedTuple):
    """A clause, or with the verb "" a noun phrase elsewhere ([] for none)."""

    verb: str
    phrase: list[str]
    before: str  # the word before all of it
    after: str  # the word after it
    doubt: str = ""
    is_told: bool = False  # it says what others do, or what was done
    sentence: int = 0  # the number of its sentence or subordinate clause


def read(instruction: str) -> Reading:
    """Read an instruction."""
    words = _words(instruction)
    runs = list(_runs(words))
    idle = {run.sentence for run in runs if run.is_told and not run.verb}
    runs = [run for run in runs if run.sentence not in idle or (run.verb and not run.is_told)]
    clauses = [run for run in runs if run.verb]
    clauses = [clause for clause in clauses if not clause.is_told] or clauses
    # "pick and place the can": a verb without even a pronoun after it shares the next one's object.
    with_object = [clause for clause in clauses if clause.phrase] or clauses
    if _is_foreign(words):
        return Reading("", "", "other", *["not English, as far as the grammar can tell"] * 2)
    if not with_object:
        doubt = "no verb that the grammar knows" if any(word[0].isalnum() for word in words) else ""
        target = next((_named(run.phrase) for run in runs if _stands_alone(run)), "")
        return Reading(target, "", "other", doubt, "" if target else doubt or "no words")
    clause = next((clause for clause in with_object if _kind(clause) == "pick_place"), with_object[0])
    target = _target(clause, runs)
    doubt = clause.doubt or ("a long noun phrase" if len(target.split()) > _LONGEST_NOUN else "")
    missing = f'"{" ".join(clause.phrase)}" names no object' if clause.phrase else f'no noun after "{clause.verb}"'
    return Reading(target, clause.verb, _kind(clause), doubt, "" if target else missing)


def verb_class(instruction: str) -> str:
    """The class of an instruction's verb; see `Reading.kind`."""
    return read(instruction).kind


def target_object(instruction: str) -> str:
    """The noun phrase, lower-case and without determiner, that the robot grasps first; "" where none is named.

    >>> target_object("Pick up the alphabet soup and place it in the basket.")
    'alphabet soup'
    >>> target_object("put everything in the box")
    ''
    """
    return read(instruction).target


def candidate_phrases(instruction: str) -> list[str]:
    """Every noun phrase that could be the target, in the instruction's order, without determiners and repeats.

    A language model chooses among them. Each is as long as it can be between verbs, boundary words and
    punctuation; runs that name no object ("it", "everything", "left", the robot itself) are left out.

    >>> candidate_phrases("put the white mug on the left plate and put it to the right")
    ['white mug', 'left plate']
    """
    words = _words(instruction)
    runs = _foreign_runs(words) if _is_foreign(words) else _runs(words)
    named = (_named(run.phrase) for run in runs if run.verb or not _is_robot(run.phrase))
    return list(dict.fromkeys(phrase for phrase in named if phrase))


def phrase_of_answer(answer: str, instruction: str) -> str:
    """The noun phrase that an answer begins with, if the instruction holds that very run of words, else "".

    >>> phrase_of_answer("The red cup, of course.", "pick up the red cup")
    'red cup'
    >>> phrase_of_answer("the mug", "pick up the red cup")
    ''
    """
    phrase, _ = _noun_phrase(_words(answer), 0, elsewhere=True)
    words = _words(instruction)
    held = any(words[index : index + len(phrase)] == phrase for index in range(len(words)))
    return _named(phrase) if held else ""


class GrammarNamer:
    """The verb-pattern grammar in the role of the target namer (roles.py)."""

    def name_targets(self, instructions: Sequence[str]) -> list[str]:
        """One noun phrase per instruction; see `target_object`."""
        return [target_object(instruction) for instruction in instructions]


def _target(clause: _Run, runs: list[_Run]) -> str:
    """What is grasped first in the clause that counts."""
    index = next(index for index, run in enumerate(runs) if run is clause)
    later = [run for run in runs[index + 1 :] if not run.verb]
    if clause.verb in table.MAKING:
        return next((_named(run.phrase) for run in later if run.before in ("with", "from", "using", "of")), "")
    if _kind(clause) == "wipe":
        tool = next((_named(run.phrase) for run in later if run.before in ("with", "using")), "")
        if tool:
            return tool
    if (named := _named(clause.phrase)) or table.REFERRING.isdisjoint(clause.phrase):
        return named
    earlier = [run for run in runs[:index] if _named(run.phrase) and (run.verb or not _is_robot(run.phrase))]
    referred = next((run for run in reversed(earlier) if run.verb), earlier[0] if earlier else None)
    return _named(referred.phrase) if referred else ""


def _kind(clause: _Run) -> str:
    kind = table.VERB_CLASS.get(clause.verb, "other")
    head = clause.phrase[-1] if clause.phrase else ""
    moved = kind in ("push", "tilt") or clause.verb in ("move", "shift", "use")
    if kind == "push" and clause.after in table.STATES:
        return table.STATES[clause.after]
    if moved and head in table.CONTROLS:
        return "turn"
    return "push" if moved and head in table.FIXTURES else kind


def _named(phrase: list[str]) -> str:
    return "" if table.NO_OBJECT.issuperset(phrase) else " ".join(phrase)


def _is_robot(phrase: list[str]) -> bool:
    return "effector" in phrase or table.SUBJECTS.issuperset(phrase)


def _stands_alone(run: _Run) -> bool:
    """Can a noun phrase without any verb be the target ("carrot on plate")? Not if nothing or a statement follows."""
    states = table.BE | table.HELPERS | table.NEGATIONS | {"and", "or"}
    return run.after[0].isalnum() and run.after not in states and bool(_named(run.phrase)) and not _is_robot(run.phrase)


def _is_foreign(words: list[str]) -> bool:
    """Two short words of another language, other letters, or an accent in what does not begin like an English instruction."""
    letters = [letter for letter in "".join(words) if letter.isalpha()]
    ascii_letters = sum(map(str.isascii, letters))
    english = table.BOUNDARIES | table.OPENERS | table.DETERMINERS | table.SUBJECTS
    accented = ascii_letters < len(letters) and not (words[0] in table.VERB_OF or words[0] in english)
    return accented or len(table.FOREIGN & set(words)) > 1 or 2 * ascii_letters < len(letters)


def _foreign_runs(words: list[str]) -> Iterator[_Run]:
    """What stands between the short words of another language; nothing where it is not in Latin letters."""
    phrase: list[str] = []
    for word in [*words, "."]:
        if word in table.FOREIGN or not (word[0].isalnum() and word[0].isascii()):
            if phrase:
                yield _Run("", phrase, ".", word)
            phrase = []
        else:
            phrase.append(word)


def _runs(words: list[str]) -> Iterator[_Run]:
    """The clauses and the noun phrases elsewhere, in order."""
    index, last, is_told, sentence = 0, _Run("", [], ".", "."), False, 0
    while index < len(words):
        if words[index] in table.VERB_OF and _is_negated(words, index):
            index += 1
            continue
        verb, doubt = _verb_at(words, index)
        before = _word(words, index - 1)
        if verb:
            is_told = (is_told and before in ("and", "or")) or _is_told(words, index)
        elif not words[index][0].isalnum() or words[index] in table.SUBORDINATING:
            is_told, sentence = False, sentence + 1
        start = _after_verb(words, index, verb) if verb else index
        phrase, end = _noun_phrase(words, start, elsewhere=not verb)
        if not verb and "of" in phrase and table.DIRECTIONS.issuperset(phrase[: (of := phrase.index("of"))]):
            phrase = [word for word in phrase[of + 1 :]]  # "to the left of the pot"
        if verb and not phrase and before in table.BE and not last.verb:  # "the cup should be moved"
            phrase = last.phrase
        is_label = _word(words, end + _word(words, end).isdigit()) == ":"  # "step 1:"
        if verb or (phrase and not is_label):
            does = verb in table.VERB_CLASS and verb not in table.GOING
            acts = verb if does or not is_told else ""  # "guests will come": nothing is done to anything
            last = _Run(acts, phrase, before, _word(words, end), doubt, bool(verb) and is_told, sentence)
            yield last
        index = max(end, index + 1)


def _word(words: list[str], index: int) -> str:
    """The word at `index`; beyond the ends there is punctuation."""
    return words[index] if 0 <= index < len(words) else "."


def _verb_at(words: list[str], index: int) -> tuple[str, str]:
    """The verb that begins a clause at `index`, in its base form, and the doubt about it; "" for no verb."""
    word, before, after = (_word(words, at) for at in (index, index - 1, index + 1))
    if before in table.ARTICLES or _is_negated(words, index) or (word == "using" and index):
        return "", ""
    opens = not before[0].isalnum() or before in table.OPENERS
    with_determiner = after in table.DETERMINERS
    ends = not after[0].isalnum() or (after in table.BOUNDARIES and after not in table.PARTICLES | table.DETERMINERS)
    if verb := table.VERB_OF.get(word):
        if (word in table.WEAK_FORMS and after == "of") or (word == "upright" and (not opens or ends)):
            return "", ""
        if (word == verb and word not in table.ALSO_NOUNS) or with_determiner:
            return verb, ""
        adjective = word in table.WEAK_FORMS and word != verb and before in ("and", "or", "to", "by", "before", "after")
        return (verb, "") if opens and not adjective else ("", "")
    if not opens or not word.isalpha() or word in table.BOUNDARIES | table.NO_OBJECT | table.COLOURS | table.SUBJECTS:
        return "", ""
    unsure = "" if with_determiner else f'"{word}" is no verb that the grammar knows'
    if (verb := table.MISTYPED_VERBS.get(word, "")) and not ends:
        return verb, unsure
    if with_determiner or (index == 0 and re.fullmatch(r"\w{3,}(ing|ed)", word) and not ends):
        return word, unsure
    return "", ""


def _is_told(words: list[str], index: int) -> bool:
    """Does the verb at `index` say what somebody else does, or what was done ("guests will come"), instead of what to do?"""
    first = index
    while _word(words, first - 1) in table.HELPERS | table.BE | {"just", "already", "soon"}:
        first -= 1
    verb, subject, helpers = words[index], _word(words, first - 1), words[first:index]
    if not table.BE.isdisjoint(helpers[-1:]) and not verb.endswith("ing"):  # "the floor has been swept"
        return not table.PAST.isdisjoint(helpers)
    if subject in table.OTHERS or (helpers and subject in ("and", "or")):
        return True
    if subject in table.SPEAKERS:  # "I will cook", but "we should move the cup"
        return not {"will", *table.PAST}.isdisjoint(helpers)
    is_noun = subject[0].isalnum() and subject not in table.BOUNDARIES | table.OPENERS | table.DETERMINERS
    return is_noun and (bool(helpers) or verb != table.VERB_OF.get(verb, verb))


def _is_negated(words: list[str], index: int) -> bool:
    before = _word(words, index - 1)
    return before in table.NEGATIONS or before.endswith("n't")


def _after_verb(words: list[str], index: int, verb: str) -> int:
    """Where the object of the verb at `index` begins: after its particles."""
    start = index + 1
    if _word(words, start) == ":" or _word(words, start) in table.RECEIVERS:  # "pick: red cup", "hand me the cup"
        return start + 1
    if verb in table.GOING:
        while _word(words, start) in table.PREPOSITIONS:
            start += 1
        return start
    if _word(words, start) in table.PARTICLES:
        start += 1
    determined = _word(words, start + 1) in table.ARTICLES
    if (
        determined and _word(words, start) in table.PARTICLES | table.SIDES
    ):  # "press down on the lid", "push left the block"
        return start + 1
    if determined and _word(words, start) == "in" and verb in ("plug", "screw", "push", "press", "slide"):
        return start + 1
    return start


def _noun_phrase(words: list[str], start: int, elsewhere: bool) -> tuple[list[str], int]:
    """The noun phrase at `start`, without determiners unless it is nothing else, and where it ends.

    A verb's object may hold a verb ("turn on the light switch") unless an object of its own follows; a noun phrase
    elsewhere ends at any verb.
    """
    first = start
    while first < len(words) and (words[first] in table.DETERMINERS or (words[first] == "of" and first > start)):
        first += 1
    end = first
    while end < len(words) and words[end][0].isalnum():
        after_article = end == first > start and words[end - 1] in table.ARTICLES
        if not after_article and (_opens_clause(words, end, elsewhere) or _ends_phrase(words, first, end)):
            break
        end += 1
    return words[first:end] or words[start:first], end


def _opens_clause(words: list[str], index: int, elsewhere: bool) -> bool:
    verb, _ = _verb_at(words, index)
    after = _word(words, index + 1)
    return bool(verb) and (
        elsewhere or after in table.DETERMINERS or (after in table.BOUNDARIES and words[index] not in table.ALSO_NOUNS)
    )


def _ends_phrase(words: list[str], first: int, index: int) -> bool:
    """Does the word at `index` end the noun phrase that begins at `first`?"""
    word, after = words[index], _word(words, index + 1)
    if word in table.BOUNDARIES:
        return not (word == "and" and table.COLOURS.issuperset((_word(words, index - 1), after)))
    if _is_adverb(word):
        return True
    if not _named(words[first:index]):  # nothing is named yet
        return False
    ends = not after[0].isalnum() or after in table.BOUNDARIES or _is_adverb(after)
    if word in table.ARTICLES or word == "all":  # "the cup a bit to the left", but "piece of a puzzle"
        return words[index - 1] != "of"
    if word in table.STATES:
        return ends
    if word in table.SIDES:
        return ends or after.isdigit() or after == "of" or after in table.DIRECTIONS
    if word in table.DIRECTIONS:
        return after in table.SIDES or after == "of" or (ends and word in ("front", "back"))
    if re.fullmatch(r"\w{2,}(ing|ed)", word) and word not in table.NOT_PARTICIPLES:
        return after in table.PREPOSITIONS
    return word.isdigit() and (ends or after in table.UNITS)  # the number of an object or an episode, or "90 degrees"


def _is_adverb(word: str) -> bool:
    return re.fullmatch(r"\w{3,}(ly|wards?)", word) is not None and word not in table.NOT_ADVERBS


def _words(instruction: str) -> list[str]:
    """Lower-case words (hyphens and apostrophes inside them kept) and punctuation marks, in order."""
    text = instruction.lower().replace("_", " ").replace("’", "'").replace("cardboard fence", "cardboardfence")
    text = re.sub(r"\bcan (?=(?:you|we|i)\b)", "could ", text)  # else it is a thing
    text = re.sub(r"\bpickup\b", "pick up", re.sub(r"-(?=(?:up|down|off|on|out|over)\b)", " ", text))
    found = re.findall(r"[^\W_]+(?:[-'][^\W_]+)*|[.,;:!?()/]", text)
    parts = (_GLUED.fullmatch(word) for word in found)
    return [part for word, glued in zip(found, parts, strict=True) for part in (glued.groups() if glued else [word])]
