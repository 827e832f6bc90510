"""The words for what is in the simulator's scenes: those of LIBERO's instructions, and a few shorter ones."""

from simulation.environment import GRIPPER, ROBOT_ARM, category_of

# Where people's words are not simply those of the category's name; most usual first.
_OTHER_PHRASES = {
    GRIPPER: ("robot gripper", "gripper"),
    ROBOT_ARM: ("robot arm",),
    "akita_black_bowl": ("black bowl", "bowl"),
    "cookies": ("cookie box", "cookies"),
    "flat_stove": ("stove",),
    "glazed_rim_porcelain_ramekin": ("ramekin",),
    "wine_rack": ("wine rack", "rack"),
    "wooden_cabinet": ("cabinet", "wooden cabinet"),
}
# Words of other scenes and of people: whole tokens, so that an unknown one is not spelt.
COMMON_WORDS = (
    "a an the of in on to and or from with between next top bottom left right front back center red green blue white "
    "yellow black brown can box bottle cup mug bowl plate drawer pot pan book caddy microwave frypan tomato hand object "
    "food block toy table basket tray robot gripper arm pick up place put"
).split()


def phrases_of(instance: str) -> tuple[str, ...]:
    """The phrases for an instance, most usual first: `akita_black_bowl_1` -> ("black bowl", "bowl")."""
    category = category_of(instance)
    return _OTHER_PHRASES.get(category, (category.replace("_", " "),))
