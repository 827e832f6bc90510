"""The target noun from an instruction, by a verb-pattern grammar: what does the robot grasp first?

    instruction = [filler] verb [particle] noun-phrase [rest]

The first known verb starts the pattern; a particle ("up", "out", "on" after "turn", ...) may follow; the noun phrase then
runs to the first word that begins something else (a preposition, a conjunction, an adverb, punctuation), and loses
leading determiners. Pronouns and words for any or all objects name no object. The answer is always a run of the
instruction's own words. docs/annotation.md gives the grammar with examples and its measured accuracy.
"""

import re

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
"""Verb -> class. Only pick_place carries an object away from its place, so only there motion can contradict a mask."""

_PARTICLES = set("up out off over down on away back and".split())
_DETERMINERS = set(
    "a an the this that these those his her its your my one some any another both all each every of".split()
)
_BOUNDARIES = set(
    "from to on onto in into inside near next beside besides between behind at and then with over under underneath up "
    "upright by toward towards away off out down through around along against above below beneath before after across "
    "that which who so until while for using it them is are was located lying placed sitting standing back together "
    "vertical vertically horizontal horizontally clockwise counterclockwise forward forwards backward backwards aside "
    "sideways closer further farther far where without".split()
)
_NO_OBJECT = set(
    "it them they this that these those everything anything something nothing all any one ones object objects thing "
    "things stuff item items".split()
)


def find_verb(instruction: str) -> str:
    """The first known verb of an instruction, "" where there is none."""
    return next((word for word in _words(instruction) if word in VERB_CLASS), "")


def verb_class(instruction: str) -> str:
    """The class of the instruction's first known verb: pick_place, open, close, push, turn, wipe, or other."""
    return VERB_CLASS.get(find_verb(instruction), "other")


def target_object(instruction: str) -> str:
    """The noun phrase, lower-case and without determiner, that the robot grasps first; "" where none is named.

    >>> target_object("Pick up the alphabet soup and place it in the basket.")
    'alphabet soup'
    >>> target_object("put everything in the box")
    ''
    """
    words = _words(instruction)
    start = next((place for place, word in enumerate(words) if word in VERB_CLASS), None)
    if start is None:
        return ""
    rest = words[start + 1 :]
    if rest and rest[0] in _PARTICLES:
        rest = rest[1:]
    while rest and rest[0] in _DETERMINERS:
        rest = rest[1:]
    phrase: list[str] = []
    for word in rest:
        if word in _BOUNDARIES or not word[0].isalnum():
            break
        phrase.append(word)
    return "" if _NO_OBJECT.issuperset(phrase) else " ".join(phrase)


def _words(instruction: str) -> list[str]:
    """Lower-case words (hyphens and apostrophes inside them kept) and punctuation marks, in order."""
    return re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*|[.,;:!?()]", instruction.lower().replace("_", " "))
