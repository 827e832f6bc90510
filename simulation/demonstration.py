"""From a solved attempt to a recorded demonstration: thinned actions, rendered frames, proprioception and truth."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pixel160k.format.masks import encode
from simulation.environment import AGENT_VIEW, CONTROL_HZ, GRIPPER, WRIST_VIEW, TaskEnvironment
from simulation.grasping import GRASP_VARIATIONS
from simulation.libero import category_of
from simulation.mishaps import script_of
from simulation.policy import Attempt, run_attempt
from simulation.rlds import RldsEpisode
from simulation.script import do_task
from simulation.thinning import thin_actions, window_starts
from simulation.truth import EpisodeTruth, StepTruth, phrase_of

IMAGE_QUALITY, WRIST_IMAGE_QUALITY = 90, 65  # JPEG


@dataclass(frozen=True)
class Demonstration:
    """A recorded episode: what goes into the RLDS data set, and what only the truth table may hold."""

    episode: RldsEpisode
    truth: EpisodeTruth


def attempt_until_solved(environment: TaskEnvironment, initial_state: int, mishap: str = "") -> list[Attempt]:
    """Attempt a task from an initial state, each time with another variation, until it is solved.

    `mishap` is one of `simulation.mishaps.MISHAPS`, or "" for none. Returns all attempts in order. The last one is the
    solved one, unless all of them failed.
    """
    attempts: list[Attempt] = []
    seed = (environment.suite, environment.task_id, initial_state)
    script = script_of(mishap, seed) if mishap else do_task
    for variation in GRASP_VARIATIONS:
        attempts.append(run_attempt(environment, initial_state, script, variation))
        if attempts[-1].solved:
            break
    return attempts


def render_demonstration(
    environment: TaskEnvironment,
    initial_state: int,
    attempts: list[Attempt],
    episode_id: str,
    hz: int,
    mishap: str = "",
) -> Demonstration:
    """Turn the solved attempt, the last of `attempts`, into a demonstration with `hz` frames per second.

    The frames are rendered from the stored states, so the scene must not have been reset since. `hz` divides 20. The
    name of a mishap ends the episode's `file_path`.
    """
    solved = attempts[-1]
    window = CONTROL_HZ // hz
    actions = thin_actions(np.stack(solved.actions), window)
    steps: list[dict[str, Any]] = []
    truth_steps: list[StepTruth] = []
    for number, start in enumerate(window_starts(len(solved.actions), window)):
        environment.restore(solved.states[start])
        last = number == len(actions) - 1
        steps.append(
            {
                "observation": _observe(environment),
                "action": actions[number],
                "discount": 1.0,
                "reward": float(last),
                "is_first": number == 0,
                "is_last": last,
                "is_terminal": last,
                "language_instruction": environment.instruction,
            }
        )
        truth_steps.append(_truth_of_step(environment, solved.touched))
    suite, task_id = environment.suite, environment.task_id
    source = f"{suite}/task_{task_id:02d}/initial_state_{initial_state:02d}{mishap and f'/{mishap}'}"
    truth = EpisodeTruth(
        episode_id=episode_id,
        suite=suite,
        task_id=task_id,
        initial_state=initial_state,
        instruction=environment.instruction,
        target_instance=solved.touched,
        target_phrase=phrase_of(category_of(solved.touched), environment.instruction),
        contact_step=solved.touch_step // window,
        grasp_step=solved.grasp_step // window,
        home_step=solved.home_step // window,
        attempts=len(attempts),
        steps=truth_steps,
    )
    return Demonstration({"steps": steps, "episode_metadata": {"file_path": source}}, truth)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode an image, uint8 (height, width, 3) RGB, as JPEG of a quality from 1 to 95."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _observe(environment: TaskEnvironment) -> dict[str, Any]:
    state, joint_state = environment.proprioception()
    return {
        "image": io.BytesIO(encode_jpeg(environment.render(AGENT_VIEW), IMAGE_QUALITY)),
        "wrist_image": io.BytesIO(encode_jpeg(environment.render(WRIST_VIEW), WRIST_IMAGE_QUALITY)),
        "state": state,
        "joint_state": joint_state,
    }


def _truth_of_step(environment: TaskEnvironment, target: str) -> StepTruth:
    masks = environment.instance_masks(AGENT_VIEW)
    others = {name: encode(mask) for name, mask in masks.items() if name not in (GRIPPER, target) and mask.any()}
    return StepTruth(encode(masks[GRIPPER]), encode(masks[target]), others)
