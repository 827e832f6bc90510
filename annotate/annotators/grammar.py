"""The target noun from an instruction, by a verb-pattern grammar: what does the robot grasp first?

    instruction = [filler] clause (rest clause)* [rest]          clause = verb [particle] noun-phrase

A particle ("up", "out", "on" after "turn", ...) may follow a known verb; the noun phrase then loses leading determiners
and runs to the first word that begins something else (a preposition, a conjunction, an adverb, punctuation). Two
exceptions: the word after an article belongs to the noun phrase whatever else it could be ("the back burner", "the
stack"), and so does an "and" between two colours ("yellow and white mug").

The target is the object of the first clause whose verb carries something away: knobs are turned and drawers pulled
before anything is grasped to be carried ("turn on the stove and put the pan on it" -> "pan"). Where no clause carries,
it is the first clause's object. Pronouns and words for any or all objects name no object, but stand for one that was
named before ("fold the cloth and put it away" -> "cloth"). The answer is always a run of the instruction's own words.
docs/annotation.md gives the grammar with examples and its measured accuracy.
"""

import re
from collections.abc import Iterator, Sequence

_VERBS = {
    "pick_place": "pick grab grasp take get lift place put set move bring carry transfer drop relocate stack return remove "
    "insert throw fetch hold raise collect hang load unload slide swap",
    "open": "open unlock unfold",
    "close": "close shut fold lock",
    "push": "push pull drag nudge shove sweep knock topple tip flip rotate tilt pour stir",
    "turn": "turn twist switch toggle press",
    "wipe": "wipe clean scrub mop",
}
VERB_CLASS: dict[str, str] = {verb: name for name, verbs in _VERBS.items() for verb in verbs.split()}
"""Verb -> class. Only pick_place carries an object away, so only there motion can contradict a mask."""

_PARTICLES = set("up out off over down on away back".split())
_ARTICLES = set("the a an my your his her its".split())
# What may lead a noun phrase or stand for one.
_DETERMINERS = _ARTICLES | set("this that these those one some any another both all each every it them".split())
_BOUNDARIES = set(
    "from to on onto in into inside near next beside besides between behind at and or then with over under underneath up "
    "upright by toward towards away off out down through around along against above below beneath before after across "
    "that which who so until while for using it them is are was located lying placed sitting standing back together "
    "vertical vertically horizontal horizontally clockwise counterclockwise forward forwards backward backwards aside "
    "sideways closer further farther far where without".split()
)
_COLOURS = set(
    "black white grey gray silver gold golden red orange yellow green blue purple pink brown beige transparent".split()
)
_NO_OBJECT = _DETERMINERS | set(
    "of they everything anything something nothing ones object objects thing things stuff item items "
    "left right front back middle center centre top bottom side".split()
)


def find_verb(instruction: str) -> str:
    """The verb of an instruction whose object is the target, lower-case; "" where there is no known verb."""
    return _target_clause(instruction)[0]


def verb_class(instruction: str) -> str:
    """The class of the verb that `find_verb` finds in an instruction: pick_place, open, close, push, turn, wipe, or other."""
    return VERB_CLASS.get(find_verb(instruction), "other")


def target_object(instruction: str) -> str:
    """The noun phrase, lower-case and without determiner, that the robot grasps first; "" where none is named.

    >>> target_object("Pick up the alphabet soup and place it in the basket.")
    'alphabet soup'
    >>> target_object("put everything in the box")
    ''
    """
    return _target_clause(instruction)[1]


def candidate_phrases(instruction: str) -> list[str]:
    """Every noun phrase that could be the target, in the instruction's order, without determiners and repeats.

    A language model chooses among them. Each is as long as it can be between verbs, boundary words and
    punctuation; runs that name no object ("it", "everything", "left") are left out.

    >>> candidate_phrases("put the white mug on the left plate and put it to the right")
    ['white mug', 'left plate']
    """
    named = (_named(phrase) for _, phrase in _runs(_words(instruction)))
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


def _target_clause(instruction: str) -> tuple[str, str]:
    """Verb and object, each "" for none, of the clause that says what is grasped first."""
    clauses = [(verb, phrase) for verb, phrase in _runs(_words(instruction)) if verb]
    # "pick and place the can": a verb without even a pronoun after it shares the next one's object.
    with_object = [clause for clause in clauses if clause[1]] or clauses
    if not with_object:
        return "", ""
    verb, first = with_object[0][0], _named(with_object[0][1])
    for carrying, phrase in with_object:
        if VERB_CLASS[carrying] == "pick_place":
            return carrying, _named(phrase) or first
    return verb, first


def _named(phrase: list[str]) -> str:
    return "" if _NO_OBJECT.issuperset(phrase) else " ".join(phrase)


def _runs(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each verb with its noun phrase ([] for none), and each noun phrase elsewhere with the verb ""."""
    index = 0
    while index < len(words):
        verb = words[index] if _is_verb(words, index) else ""
        start = index + bool(verb)
        if verb and start < len(words) and words[start] in _PARTICLES:
            start += 1
        phrase, end = _noun_phrase(words, start, elsewhere=not verb)
        if verb or phrase:
            yield verb, phrase
        index = max(end, index + 1)


def _is_verb(words: list[str], index: int) -> bool:
    return words[index] in VERB_CLASS and (index == 0 or words[index - 1] not in _ARTICLES)


def _noun_phrase(words: list[str], start: int, elsewhere: bool) -> tuple[list[str], int]:
    """The noun phrase at `start`, without determiners unless it is nothing else, and where it ends.

    A verb's object may hold a verb ("turn on the light switch") unless an object of its own follows; a noun phrase
    elsewhere ends at any verb.
    """
    first = start
    while first < len(words) and (words[first] in _DETERMINERS or (words[first] == "of" and first > start)):
        first += 1
    end = first
    while end < len(words) and words[end][0].isalnum():
        after_article = end == first > start and words[end - 1] in _ARTICLES
        opens_clause = _is_verb(words, end) and (elsewhere or not _DETERMINERS.isdisjoint(words[end + 1 : end + 2]))
        if not after_article and (opens_clause or (words[end] in _BOUNDARIES and not _joins_colours(words, end))):
            break
        end += 1
    return words[first:end] or words[start:first], end


def _joins_colours(words: list[str], index: int) -> bool:
    return (
        words[index] == "and" and _COLOURS.issuperset(words[index - 1 : index + 2 : 2]) and 0 < index < len(words) - 1
    )


def _words(instruction: str) -> list[str]:
    """Lower-case words (hyphens and apostrophes inside them kept) and punctuation marks, in order."""
    return re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*|[.,;:!?()]", instruction.lower().replace("_", " "))
