"""Instructions in other words, by fixed rules: what LIBERO-Plus has a language model do, ours does with tables.

Five levels, each with what the one below it does: other verbs; asked politely; other names of things; other words for where
they are; a sentence before that says nothing about the task. No name is one of another object of LIBERO, and no "it" changes
what it stands for.
"""

import re

import numpy as np

_VERBS = {
    "pick up": ("grab", "take", "grasp"),
    "put": ("set", "lay", "move"),
    "place": ("set", "put", "lay"),
    "open": ("pull open", "slide open"),
    "close": ("shut",),
    "push": ("slide", "shove"),
    "turn on": ("switch on",),
    "turn off": ("switch off",),
    "stack": ("pile",),
}
_POLITE = ("please {}", "could you {}", "I would like you to {}", "would you kindly {}")
_NAMES = {
    "black bowl": ("dark bowl",),
    "plate": ("dish",),
    "ramekin": ("custard cup",),
    "cookie box": ("box of cookies",),
    "cabinet": ("cupboard",),
    "stove": ("cooker", "hob"),
    "basket": ("hamper",),
    "alphabet soup": ("can of alphabet soup",),
    "tomato sauce": ("can of tomato sauce",),
    "cream cheese box": ("box of cream cheese",),
    "cream cheese": ("packet of cream cheese",),
    "butter": ("packet of butter",),
    "chocolate pudding": ("box of chocolate pudding",),
    "salad dressing": ("bottle of salad dressing",),
    "bbq sauce": ("barbecue sauce",),
    "ketchup": ("bottle of ketchup",),
    "milk": ("carton of milk",),
    "orange juice": ("carton of orange juice",),
    "wine bottle": ("bottle of wine",),
    "rack": ("bottle holder",),
    "moka pot": ("coffee maker",),
    "moka pots": ("coffee makers",),
    "mug": ("cup",),
    "book": ("volume",),
    "caddy": ("desk organizer",),
    "compartment": ("section",),
    "microwave": ("microwave oven",),
    "frying pan": ("skillet",),
    "tray": ("serving tray",),
}
_WHERE = {
    "next to": ("beside", "close to"),
    "between": ("in the gap between",),
    "on top of": ("on the top of",),
    "from table center": ("from the middle of the table",),
    "in the": ("inside the",),
    "on the": ("atop the",),
    "to the right of": ("at the right side of",),
    "to the left of": ("at the left side of",),
    "to the front of": ("in front of",),
    "under": ("below",),
}
_BEFORE = (
    "The floor has just been swept.",
    "Some guests will come this evening.",
    "It is almost time for lunch.",
    "Nothing here is in a hurry.",
)
_SIDES = r"(?! (?:left|right|front|back|middle)\b)"  # "the mug on the left": a name, not a place


def reworded(instruction: str, level: int, rng: np.random.Generator) -> str:
    """An instruction in other words.

    Args:
        instruction: as LIBERO words it, in small letters.
        level: 1 to 5; 0 leaves it as it is.
        rng: what words are chosen by; choices do not depend on the level.
    """
    chosen = {
        words: others[rng.integers(len(others))]
        for table in (_VERBS, _NAMES, _WHERE)
        for words, others in table.items()
    }
    polite, before = _POLITE[rng.integers(len(_POLITE))], _BEFORE[rng.integers(len(_BEFORE))]
    tables = [_VERBS] * (level >= 1) + [_NAMES] * (level >= 3) + [_WHERE] * (level >= 4)
    known = sorted({words for table in tables for words in table}, key=len, reverse=True)
    if known:
        ends = {"on the": _SIDES, "in the": _SIDES}
        pattern = "|".join(re.escape(words) + ends.get(words, "") for words in known)
        instruction = re.sub(rf"\b(?:{pattern})\b", lambda found: chosen[found[0]], instruction)
    if level >= 2:
        instruction = polite.format(instruction)
    return f"{before} {instruction}" if level >= 5 else instruction
