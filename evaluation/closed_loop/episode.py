"""One episode in LIBERO: the policy is asked, its actions are carried out, and what became of it is one row."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from evaluation.closed_loop.pointing import Shown, point_at_target
from evaluation.closed_loop.scenes import Scene, most_steps
from evaluation.closed_loop.settings import LiberoSettings
from evaluation.noise import noisy
from evaluation.shifts import NONE, WORDING, Shift
from evaluation.wording import reworded
from pixel160k.errors import InputError
from pixel160k.format.prompts import Prompt
from pixel160k.seeding import seeded_generator
from policies.base import Policy, Seen, looks
from simulation import two_alike
from simulation.environment import AGENT_VIEW, CLOSE, CONTROL_HZ, OPEN, WRIST_VIEW, TaskEnvironment

Film = Callable[[np.ndarray, Shown], None]
"""Takes each image of an episode, RGB uint8, and what the policy was last shown of its target."""
FILM_EVERY = 2  # control steps: 10 images a second
_DARK = np.zeros((0, 0, 3), np.uint8)  # what a policy is shown that does not look


@dataclass(frozen=True)
class EpisodeResult:
    """What became of an episode.

    Attributes:
        task_id, target, initial_state: its scene.
        condition: what pointed at the target, of `LiberoSettings.prompts`.
        shift: of the scene, of `LiberoSettings.shifts`.
        instruction: what the policy was told.
        success: whether the simulator said so before the steps ran out.
        control_steps: that were carried out (1 / 20 s each), without those in which the scene settles.
        meant: what the hand should touch first: the target where something is pointed at, also if that is another object, or
            where nothing is, each object of the task, with commas between; "" where a touch of it cannot be told, as of a microwave's door.
        first_touch: the first movable object that a finger touched, "" for none.
        close_step: the first control step that closed the gripper, -1 for none.
        error: why it did not come to its end; "" where it did.
        seconds, policy_seconds, render_seconds: how long it took, how much of that the policy (its reset, too), and rendering;
            what is left is the simulator. No two runs have the same.
        video: the name of its film, "" for none.
    """

    task_id: int
    target: str
    initial_state: int
    condition: str
    shift: str = NONE
    instruction: str = ""
    success: bool = False
    control_steps: int = 0
    meant: str = ""
    first_touch: str = ""
    close_step: int = -1
    error: str = ""
    seconds: float = 0.0
    policy_seconds: float = 0.0
    render_seconds: float = 0.0
    video: str = ""

    @property
    def scene(self) -> Scene:
        """The scene that it was in."""
        return Scene(self.task_id, self.target, self.initial_state, self.shift)

    def filmed(self, video: str) -> "EpisodeResult":
        """The same with the name of its film."""
        return replace(self, video=video)


def episode_name(suite: str, scene: Scene, condition: str) -> str:
    """What an episode is called: for seeds, servers and films."""
    target = f"_{scene.target}" if scene.target else ""
    shift = f"_{scene.shift}" if scene.shift != NONE else ""
    return f"{suite}_task_{scene.task_id:02d}{target}_state_{scene.initial_state:02d}_{condition}{shift}"


def _meant(environment: TaskEnvironment, scene: Scene, condition: str) -> str:
    """What `EpisodeResult.meant` says."""
    pointed = condition != "none" or scene.target
    things = [environment.target] if pointed else [subtask.thing for subtask in environment.subtasks]
    return ",".join(dict.fromkeys(thing for thing in things if thing in environment.touchable))


def commands(action: np.ndarray, window: int) -> list[np.ndarray]:
    """The control steps, float32 (7,) each, that do what an action of the protocol says.

    Args:
        action: (7,) in LIBERO's units, the gripper in [0, 1], 1 = open.
        window: how many control steps it is spread over.
    """
    motion = np.clip(action[:6] / window, -1, 1)
    return [np.array([*motion, CLOSE if action[6] < 0.5 else OPEN], np.float32)] * window


def jpeg_round_trip(image: np.ndarray, quality: int) -> np.ndarray:
    """An image as it is after it was stored as JPEG of this quality; 0 stands for none."""
    if not quality:
        return image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


class _Clock:
    """Adds up what a part of an episode takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begin


def run_episode(
    environment: TaskEnvironment,
    policy: Policy,
    settings: LiberoSettings,
    scene: Scene,
    condition: str,
    film: Film | None = None,
) -> EpisodeResult:
    """Let a policy act from an initial state until the task is solved or the steps run out.

    Args:
        environment: of the scene's task and target, with the objects that its shift adds.
        policy: its actions are in LIBERO's units (1 = 0.05 m or 0.5 rad), as shards of LIBERO have them.
        settings: of the evaluation.
        scene: where it begins.
        condition: what points at the target.
        film: takes the images of a film.

    Raises:
        InputError: the policy cannot act on what it sees; an episode that cannot be begun has its reason in `error`.
    """
    begin, asked, rendered = time.perf_counter(), _Clock(), _Clock()
    name = episode_name(settings.suite, scene, condition)
    instruction = two_alike.INSTRUCTION if settings.two_alike else environment.instruction
    shift = Shift.named(scene.shift)
    draws = shift.draws(settings.suite, scene.task_id, scene.initial_state, settings.seed)
    noise = shift.noise(draws)
    if shift.kind == WORDING:
        instruction = reworded(instruction, shift.level, draws)
    environment.change = shift.change(settings.suite, settings.seed)
    looked_at = film is not None or looks(policy)
    with asked:
        policy.reset(name, instruction)
    environment.reset(scene.initial_state, seeded=settings.fixtures == "episode")
    result = EpisodeResult(
        scene.task_id, scene.target, scene.initial_state, condition, scene.shift, instruction,
        meant=_meant(environment, scene, condition),
    )  # fmt: skip
    looked = 0

    def look() -> np.ndarray:
        """The main camera's next image."""
        nonlocal looked
        looked, image = looked + 1, environment.render(AGENT_VIEW)
        if noise:
            image = noisy(image, noise, seeded_generator("noise", name, looked))
        return jpeg_round_trip(image, settings.jpeg)

    try:
        with rendered:
            image = look() if looked_at or condition != "none" else _DARK
        pointing = point_at_target(condition, environment, scene.initial_state, image, instruction, settings.foundation)
    except InputError as error:
        return replace(result, error=str(error))
    window, limit = CONTROL_HZ // settings.hz, most_steps(settings)
    step, closed_at, touched, solved = 0, -1, "", False
    wrist, masks, prompts = None, list[np.ndarray](), list[Prompt]()
    while step < limit and not solved:
        if looked_at:
            with rendered:
                image = look() if step else image
                wrist = jpeg_round_trip(environment.render(WRIST_VIEW), settings.jpeg) if settings.wrist else None
                masks, prompts = pointing.shown(image, closed_at >= 0)
        with asked:
            state = environment.proprioception()[0]
            chunk = policy.act([Seen(image, instruction, masks, prompts, wrist, state, name)])[0]
        if not np.isfinite(chunk).all():
            raise InputError(f"the policy's actions in {name} are not finite numbers")
        for action in chunk[: settings.replan or None]:
            if action[6] < 0.5 and closed_at < 0:
                closed_at = step
            for command in commands(action, window)[: limit - step]:
                if film is not None and step % FILM_EVERY == 0:
                    with rendered:
                        film(environment.render(AGENT_VIEW), ([], []) if closed_at >= 0 else (masks, prompts))
                environment.step(command)
                step += 1
                touched = touched or environment.touched_object() or ""
                if solved := environment.succeeded():
                    break
            if solved or step >= limit:
                break
    if film is not None:
        film(environment.render(AGENT_VIEW), ([], []))
    return replace(
        result,
        success=solved,
        control_steps=step,
        first_touch=touched,
        close_step=closed_at,
        seconds=round(time.perf_counter() - begin, 3),
        policy_seconds=round(asked.seconds, 3),
        render_seconds=round(rendered.seconds, 3),
    )
