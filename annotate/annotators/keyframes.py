"""The few frames of an episode that the annotators look at: decoding all of them would cost more than everything else."""

from dataclasses import dataclass

import numpy as np

from annotate.settings import AnnotateSettings
from annotate.sources.episode import BadImage, Episode, Grasp


@dataclass(frozen=True)
class Keyframes:
    """The few decoded frames of an episode, RGB uint8 (height, width, 3), all of one size."""

    initial: np.ndarray
    approach: list[np.ndarray]  # after the first step and well before the episode's first close
    close: np.ndarray
    evidence: list[np.ndarray]  # after the object was lifted; the last three end the episode
    evidence_steps: list[int]  # the raw step of each evidence frame
    carried: list[bool]  # per evidence frame: the gripper had not opened again yet
    grasp: Grasp


def decode_keyframes(
    episode: Episode, grasp: Grasp, settings: AnnotateSettings, initial: np.ndarray | None = None
) -> Keyframes:
    """Decode the frames of an episode that the annotators look at.

    Args:
        episode: the episode.
        grasp: the one of the episode that is looked at.
        settings: how many approach and evidence frames to decode.
        initial: the first valid frame, if it is decoded already.

    Raises:
        BadImage: one of these frames is broken, or they differ in size.
    """
    close, release, last = grasp.close, grasp.release, episode.num_steps - 1
    lift = grasp.lift if grasp.lift >= 0 else min(close + 1, last)

    # The last steps before a close hide the object; after a failed grasp it may stand elsewhere.
    approach_end = max(episode.first_step, episode.close_steps[0] - 3)
    approach_steps = _spread(episode.first_step + 1, approach_end, settings.approach_frames)
    final_steps = [step for step in range(last - 2, last + 1) if step > close]
    carry_steps = _spread(lift, min(release, last), settings.evidence_frames - len(final_steps))
    evidence_steps = sorted({*carry_steps, *final_steps} - {close})
    initial = episode.frame(episode.first_step) if initial is None else initial
    frames = {step: episode.frame(step) for step in [*approach_steps, close, *evidence_steps]}
    for step, frame in frames.items():
        if frame.shape != initial.shape:
            raise BadImage(f"step {step}: the frame has another size than that of step {episode.first_step}")
    return Keyframes(
        initial=initial,
        approach=[frames[step] for step in approach_steps],
        close=frames[close],
        evidence=[frames[step] for step in evidence_steps],
        evidence_steps=evidence_steps,
        carried=[lift <= step <= release for step in evidence_steps],
        grasp=grasp,
    )


def _spread(first: int, last: int, count: int) -> list[int]:
    """Up to `count` distinct whole steps, evenly spread over first..last, both included."""
    if last < first or count < 1:
        return []
    return sorted(set(np.linspace(first, last, count).round().astype(int).tolist()))
