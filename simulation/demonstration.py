"""From a solved attempt to a recorded demonstration: thinned actions, rendered frames, proprioception and truth."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pixel160k.format.masks import encode
from simulation.environment import AGENT_VIEW, CLOSE, CONTROL_HZ, GRIPPER, WRIST_VIEW, TaskEnvironment, category_of
from simulation.grasping import ATTEMPTS
from simulation.policy import Attempt, attempt
from simulation.thinning import thin_actions, window_starts
from simulation.truth import EpisodeTruth, StepTruth, phrase_of

IMAGE_QUALITY, WRIST_IMAGE_QUALITY = 90, 65  # JPEG


@dataclass(frozen=True)
class Demonstration:
    """A recorded episode: what `rlds.encode_episode` takes, and what only the truth table may hold."""

    episode: dict[str, Any]
    truth: EpisodeTruth


def solve(environment: TaskEnvironment, initial_state: int) -> list[Attempt]:
    """Attempt an initial state with ever other grasps until one attempt is solved; all attempts, the solved one last."""
    made: list[Attempt] = []
    for variation in ATTEMPTS:
        made.append(attempt(environment, initial_state, variation))
        if made[-1].solved:
            break
    return made


def record(
    environment: TaskEnvironment, initial_state: int, attempts: list[Attempt], episode_id: str, hz: int
) -> Demonstration:
    """Render the last of `attempts`, which was solved and after which the scene was not reset, at `hz` frames/s."""
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
    source = f"{suite}/task_{task_id:02d}/initial_state_{initial_state:02d}"
    truth = EpisodeTruth(
        episode_id=episode_id,
        suite=suite,
        task_id=task_id,
        initial_state=initial_state,
        instruction=environment.instruction,
        target_instance=solved.touched,
        target_phrase=phrase_of(category_of(solved.touched), environment.instruction),
        contact_step=solved.touch_step // window,
        grasp_step=int(np.argmax(actions[:, 6] == CLOSE)),
        home_step=solved.home_step // window,
        attempts=len(attempts),
        steps=truth_steps,
    )
    return Demonstration({"steps": steps, "episode_metadata": {"file_path": source}}, truth)


def jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode an image, uint8 (height, width, 3) RGB, as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _observe(environment: TaskEnvironment) -> dict[str, Any]:
    state, joint_state = environment.proprioception()
    return {
        "image": io.BytesIO(jpeg(environment.render(AGENT_VIEW), IMAGE_QUALITY)),
        "wrist_image": io.BytesIO(jpeg(environment.render(WRIST_VIEW), WRIST_IMAGE_QUALITY)),
        "state": state,
        "joint_state": joint_state,
    }


def _truth_of_step(environment: TaskEnvironment, target: str) -> StepTruth:
    masks = environment.instance_masks(AGENT_VIEW)
    others = {name: encode(mask) for name, mask in masks.items() if name not in (GRIPPER, target) and mask.any()}
    return StepTruth(encode(masks[GRIPPER]), encode(masks[target]), others)
