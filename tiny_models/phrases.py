"""The phrases that name what is in the simulator's scenes: those of LIBERO's instructions, and a few shorter ones."""

from simulation.environment import GRIPPER, ROBOT_ARM
from simulation.libero import category_of

# Categories whose phrases differ from their names; the most usual phrase first.
_OTHER_PHRASES = {
    GRIPPER: ("robot gripper", "gripper"),
    ROBOT_ARM: ("robot arm",),
    "akita_black_bowl": ("black bowl", "bowl"),
    "cookies": ("cookie box", "cookies"),
    "flat_stove": ("stove",),
    "glazed_rim_porcelain_ramekin": ("ramekin",),
    "top_drawer_handle": ("drawer handle", "handle"),
    "middle_drawer_handle": ("drawer handle", "handle"),
    "bottom_drawer_handle": ("drawer handle", "handle"),
    "stove_knob": ("stove knob", "knob"),
    "wine_rack": ("wine rack", "rack"),
    "wooden_cabinet": ("cabinet", "wooden cabinet"),
}
# Words that no phrase above has: with tokens of their own, so that they are not spelt letter by letter.
COMMON_WORDS = (
    "a an the of in on to and or from with between next top bottom left right front back center red green blue white "
    "yellow black brown can box bottle cup mug bowl plate drawer pot pan book caddy microwave frypan tomato hand object "
    "food block toy table basket tray robot gripper arm pick up place put"
).split()


def phrases_of(instance: str) -> tuple[str, ...]:
    """The phrases that name an instance, the most usual first: `akita_black_bowl_1` -> ("black bowl", "bowl")."""
    category = category_of(instance)
    return _OTHER_PHRASES.get(category, (category.replace("_", " "),))
