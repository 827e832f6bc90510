"""Which close of the gripper counts: that of the first grasp that carries something.

Failed grasps are common: the fingers close on air, beside the object, or lose it at once. The states are asked first, since
they cost no decoding: the end effector goes away while the gripper is closed, and the fingers, where the source measures
them, do not meet. Where that leaves several grasps, or fingers that nobody measured, motion decides: something left its place.

What is opened, turned, pushed or wiped is not carried away. There the hand must hold something if any grasp does, and
the first close counts if none does.
"""

from functools import cache

import numpy as np

from annotate.annotators.grammar import verb_class
from annotate.annotators.keyframes import decode_keyframes
from annotate.annotators.roles import KeyframedEpisode
from annotate.settings import AnnotateSettings
from annotate.sources.episode import Episode, Grasp

CARRYING = "pick_place"
"""The verb class (grammar.py) that wants something carried away: without that the grasp failed."""


def holding_grasp(
    episode: Episode, settings: AnnotateSettings, initial: np.ndarray | None = None
) -> KeyframedEpisode | None:
    """The episode with the keyframes of the grasp that counts; None where none does.

    Args:
        episode: the episode.
        settings: those of the run.
        initial: the first valid frame, RGB uint8 (height, width, 3), if it is decoded already.

    Raises:
        BadImage: one of the keyframes is broken, or they differ in size.
    """
    grasps = episode.grasps(settings.motion.lift_distance, settings.motion.min_finger_opening)

    @cache  # the grasp that is returned may be one that was looked at before
    def look(grasp: Grasp) -> KeyframedEpisode:
        return KeyframedEpisode(episode, decode_keyframes(episode, grasp, settings, initial), settings.motion)

    lifted = [grasp for grasp in grasps if grasp.lift >= 0 and grasp.holds is not False]
    felt = next((grasp for grasp in lifted if grasp.holds), None)
    if felt and len(lifted) == 1:
        return look(felt)
    for grasp in lifted:
        keyframed = look(grasp)
        # A camera that moves hides what is carried: then the first lift counts.
        unseen = episode.base_moves or keyframed.motion.camera_moved
        if unseen or keyframed.motion.carried_away:
            return keyframed
    if felt:  # motion saw nothing, as with an object of the background's grey
        return look(felt)
    if not grasps or verb_class(episode.instruction) == CARRYING:
        return None
    return look(next((grasp for grasp in grasps if grasp.holds is not False), grasps[0]))
