"""The words that the grammar of instructions knows (grammar.py): verbs with their classes and forms, and what is no noun.

Chosen from the instructions of Bridge, fractal, LIBERO and other Open-X sets, without those that the results hold out
(docs/results.md). A word that is missing costs certainty, not an error: the grammar then says that it is not sure.
"""

import re
from itertools import chain
from string import ascii_lowercase

_VERBS = {
    "pick_place": "pick grab grasp take get lift place put set move bring carry transfer drop relocate stack return remove "
    "insert throw fetch hold raise collect hang load unload swap retrieve gather deliver arrange align attach detach hand "
    "give shift reposition transport position deposit dump toss catch pinch grip seize extract release lower leave keep "
    "store stow pack unpack tuck drape hook unhook pile lay layout rest plug unplug connect disconnect install mount join "
    "separate combine exchange sort scatter assemble disassemble nest dip add wave shake clear empty scoop use route thread "
    "wrap unwrap unstack distribute dispose discard withdraw pluck hoist elevate orient center serve feed pass dunk submerge "
    "create make build form construct draw write",
    "open": "open unlock uncover uncap unzip unseal",
    "close": "close shut lock cover cap zip seal",
    "push": "push pull drag nudge shove sweep knock topple slide scoot poke bump roll kick squeeze",
    "turn": "turn twist switch toggle press rotate spin screw unscrew click tap crank ring activate deactivate swivel dial",
    "tilt": "flip tip tilt pour upright invert overturn sprinkle",
    "wipe": "wipe clean scrub mop stir mix swipe wash rinse dry dust brush polish erase cut slice chop spread smear scrape swirl",
    "fold": "fold unfold straighten flatten crumple unroll smooth",
    "other": "go reach touch approach navigate walk drive look search find point come do want need like hit do stop see",
}
VERB_CLASS: dict[str, str] = {verb: name for name, verbs in _VERBS.items() for verb in verbs.split()}
"""Verb -> class, the `verb` of a row: pick_place is grasped and lifted or carried; push is pushed, pulled, slid or knocked;
turn is turned, pressed or switched; tilt is tipped, flipped or poured; wipe is worked on with a tool."""

MAKING = set("create make build form construct draw write".split())
"""Their object is not there yet: what is grasped is what it is made "with", "from" or "of"."""

GOING = set("go reach navigate walk drive look search point come".split())
"""A preposition may stand before their object ("go towards the block", "reach for the cup")."""

ALSO_NOUNS = set(
    "open close clean light press mop cover lock brush screw plug hook cap switch drop slide rest pack store sort tip tap "
    "touch point hand pass shift mix pile set hold form ring dial wrap zip seal seal cut slice spread roll dust wash polish dry "
    "center load return catch grip position mount lower release like need do use stop empty dip lay layout smooth wave shake "
    "nest feed serve stack fold turn squeeze clear separate level exchange transfer kick upright".split()
)
"""Verbs that are things or properties as well ("hand towel", "open drawer"): verbs only where a clause can begin."""

_IRREGULAR = {
    "take": "took taken", "get": "got gotten", "bring": "brought", "throw": "threw thrown", "hold": "held", "hang": "hung",
    "give": "gave given", "catch": "caught", "lay": "laid", "sweep": "swept", "shut": "shut", "spin": "spun", "go": "went",
    "keep": "kept", "transfer": "transferred transferring", "withdraw": "withdrew withdrawn", "shake": "shook shaken",
    "find": "found", "make": "made", "build": "built", "draw": "drew drawn", "write": "wrote written", "see": "saw seen",
    "cut": "cut", "spread": "spread", "feed": "fed", "come": "came", "drive": "drove driven", "do": "did does done",
    "center": "centre centring", "ring": "rang rung",
}  # fmt: skip
_AS_ADJECTIVES = set(
    "cutting measuring drying cleaning washing mixing serving rolling folding closed opened folded stacked cut sliced "
    "chopped covered wrapped used made placed held lowered raised mixed washed shaking dusting wiping pouring spread".split()
)


def forms(verb: str) -> list[str]:
    """A verb with its inflected forms; also without the doubled consonant, as it is often typed ("puting")."""
    doubled = verb + verb[-1] if re.fullmatch(r"(un)?[^aeiou]*[aeiou][^aeiouwxy]", verb) else verb
    soft = re.search(r"[^aeiou]y$", verb)
    s = verb[:-1] + "ies" if soft else verb + ("es" if re.search(r"(s|x|z|ch|sh|o)$", verb) else "s")
    stem = verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb
    past = [verb[:-1] + "ied"] if soft else [f"{each.removesuffix('e')}ed" for each in (verb, doubled)]
    going = [f"{each}ing" for each in (stem, doubled if doubled != verb else stem)]
    return list(dict.fromkeys([verb, s, *past, *going, *_IRREGULAR.get(verb, "").split()]))


VERB_OF: dict[str, str] = {form: verb for verb in reversed(VERB_CLASS) for form in forms(verb)} | {
    verb: verb for verb in VERB_CLASS
}
"""The stem table: form -> verb."""

WEAK_FORMS = ALSO_NOUNS | _AS_ADJECTIVES
"""Forms that stand before a noun or are one, so they begin a clause only at its place."""

PARTICLES = set("up out off over down on away back".split())
ARTICLES = set("the a an my your his her its teh hte th thr tha tbe thw tge tje".split())
# What may lead a noun phrase or stand for one.
DETERMINERS = ARTICLES | set(
    "this that these those one some any another both all each every it them two three four five six several few many".split()
)
REFERRING = set("it them this that these those one ones both each".split())
BE = set("is are was were be been being isn't aren't wasn't".split())
NEGATIONS = set("not never without avoid no don't doesn't didn't cannot".split())
RECEIVERS = set("me us him".split())
HELPERS = set("will would shall should could may might must has have had".split())
"""What stands between a subject and its verb."""
PAST = set("has have had was were".split())
"""Helpers of what was done already ("has been swept", not "should be swept")."""
_ASKING = RECEIVERS | set(
    "please kindly could would should will shall must may might let lets let's help try i you we he she they there "
    "now next first finally again also just ok okay so thanks thank simply start begin".split()
)
SUBORDINATING = set("before after while until if as because when where so".split())
SPEAKERS = set("i we".split())
OTHERS = set("they he she it this that these those there who which".split())
SUBJECTS = set("robot robotic arm gripper hand end effector manipulator person human user someone hey hello hi".split())
OPENERS = BE | _ASKING | SUBJECTS | set("and then or while after before by go can to".split())
"""Words after which a clause can begin; so can it after punctuation."""

_PREPOSITIONS = set(
    "from to on onto in into inside near next beside besides between behind at with over under underneath up by toward "
    "towards away off out outside down through around along against above below beneath before after across within atop "
    "alongside via per for amid infront ontop".split()
)
STATES = {"open": "open", "opened": "open", "shut": "close", "closed": "close", "close": "close"}
"""How something is afterwards ("push the drawer shut"), with the class of the verb that this makes."""
_OTHER_BOUNDARIES = set(
    "and or then upright that which who whose so until while if as because where when using it them located lying placed "
    "sitting standing back together apart vertical vertically horizontal horizontally clockwise counterclockwise "
    "anticlockwise forward backward aside upside closer closest nearest further farther farthest far more has have had "
    "distractors cardboardfence".split()  # Bridge's labels of scenes, which end some instructions
)
COLOURS = set(
    "black white grey gray silver gold golden red orange yellow green blue purple violet pink brown beige transparent".split()
)
SIDES = set("left right".split())
DIRECTIONS = SIDES | set("front back middle center centre top bottom side upper lower corner edge end half way".split())
NO_OBJECT = DETERMINERS | DIRECTIONS | set(
    "of they everything anything something nothing ones other object objects thing things stuff item items task grasped".split()
)  # fmt: skip
CONTROLS = set("switch button knob lever dial faucet tap key".split())
"""Moved where they are: to push, move or flip one is to turn it."""
FIXTURES = set("door drawer window slider".split())
UNITS = set("degrees cm centimeters centimetres mm inches times steps".split())
NOT_ADVERBS = set("jelly belly lily fly butterfly dolly trolley family assembly supply doily ply holly".split())
NOT_PARTICIPLES = set(
    "thing nothing something everything anything string ring spring king wing pudding ceiling icing earring clothing "
    "dressing stuffing seasoning casing tubing railing building sling bed seed bread weed reed shed sled thread".split()
)
FOREIGN = set(
    "der die das den dem ein eine einen und auf mit el la los las una unos en y con le les une et dans sur il lo gli nel "
    "sul di da du des au aux del della os um uma na em het een op".split()
)
"""Short words of other languages; two of them make an instruction foreign."""

_OFTEN_MISTYPED = (
    "pick place put move take grab grasp lift push pull open close turn fold slide remove flip wipe sweep pour".split()
)
_NOT_MISTYPED = frozenset(
    {*VERB_OF, *_PREPOSITIONS, *BE, *_ASKING, *_OTHER_BOUNDARIES, *COLOURS, *NO_OBJECT, *SUBJECTS}
    | set(
        "plate plates cake lake rake tape stick stock sack slack rack oven cove love dove glove clove nose rose hose lid lit "
        "peck tick kick sick wick pump bush gold cold bold wine pine pipe bull ball bell fill full mole mode mouse pan pot "
        "pit pen pin but tube tuna tune burn torn barn sour tour hour slit steep sleep sweet slice glide lace plane palace "
        "tale tack crab grass grape raft soft poll pool plush puss nut hut gut our bowl cup lime form fork text nest net "
        "bear pear neat tea thread bead bellow elbow udder insides ear abode coward rom fro wit".split()
    )
)


def _errors(word: str, other_letter: bool) -> frozenset[str]:
    """A word with one letter left out, doubled, swapped with the next, or another in its place; no word of its own."""
    cuts = [(word[:index], word[index:]) for index in range(len(word))]
    swapped = (left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1)
    doubled = (left + right[0] + right for left, right in cuts)
    missing = (left + right[1:] for left, right in cuts if len(word) > 3)
    other = (left + letter + right[1:] for left, right in cuts for letter in ascii_lowercase if other_letter)
    return frozenset(chain(swapped, doubled, missing, other)) - _NOT_MISTYPED


_MISTYPED_TOO = "from into onto next near with under behind between beside inside above below toward towards".split()
PREPOSITIONS = _PREPOSITIONS.union(
    {"ont", "ot", "tot", "inot"}, *(_errors(word, other_letter=len(word) > 4) for word in _MISTYPED_TOO)
)
MISTYPED_VERBS: dict[str, str] = {
    error: verb
    for verb in reversed(_OFTEN_MISTYPED)
    for error in _errors(verb, other_letter=len(verb) > 3) - PREPOSITIONS
}
"""What is one typing error away from a common verb, with that verb."""
BOUNDARIES = PREPOSITIONS | BE | NEGATIONS | _ASKING | _OTHER_BOUNDARIES
"""What a noun phrase ends at."""
