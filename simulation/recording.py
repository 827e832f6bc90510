"""Record a simulated data set with truth: draw scenes, demonstrate, keep the successes, write RLDS and the truth table.

A data set depends on the arguments alone: the same command writes the same bytes again.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from pixel160k.errors import InputError
from pixel160k.files import check_new_folder, new_folder
from simulation import truth
from simulation.demonstration import attempt_until_solved, render_demonstration
from simulation.environment import CONTROL_HZ, TaskEnvironment
from simulation.libero import SCRIPTED_TASKS, check_suite, drawn_by_default, import_libero, simulator_versions
from simulation.mishaps import check_mishaps, mishap_of
from simulation.rlds import encode_episode, libero_features, write_encoded_rlds

VERSION = "1.0.0"
ALL_INITIAL_STATES = range(50)  # those of every LIBERO task
# A suite's place says what a seed draws of it: new ones come last.
_SUITE_NUMBERS = ("libero_goal", "libero_object", "libero_spatial", "libero_10", "libero_90")

Progress = Callable[[int, int], None]
"""A function that is told how far a recording is: (episodes recorded so far, episodes asked for)."""


@dataclass
class Counts:
    """What happened on one task. An episode is one scene, for which one or more attempts were made."""

    attempts: int = 0
    failed_attempts: int = 0
    recorded: int = 0
    failed_episodes: int = 0  # not recorded, since all attempts failed; another scene was drawn for all of its group


@dataclass
class RecordingSummary:
    """What happened in a recording; `tasks` are (suite, task id) -> counts."""

    tasks: dict[tuple[str, int], Counts] = field(default_factory=dict)

    def total(self, suite: str | None = None) -> Counts:
        """The sum of the counts over all tasks, or over those of one suite."""
        chosen = [counts for (task_suite, _), counts in self.tasks.items() if suite in (None, task_suite)]
        return Counts(**{name: sum(getattr(counts, name) for counts in chosen) for name in vars(Counts())})


@dataclass(frozen=True, order=True)
class Scene:
    """A task in one of its initial states."""

    suite: str
    task_id: int
    initial_state: int


@dataclass(frozen=True)
class EpisodeGroup:
    """Episodes to be recorded in one scene, each with another target. If one fails, all of them try the next scene."""

    scenes: Iterator[Scene]  # where the scenes are taken from; several groups may take from one iterator
    episode_ids: dict[str, str]  # target -> episode id; "" stands for the target of the task itself
    mishap: str = ""  # what goes wrong in their demonstrations; "": nothing


def record_sample(
    suites: list[str] | str,
    episodes: int,
    seed: int,
    out: Path,
    name: str = "",
    files: int = 1,
    hz: int = 5,
    progress: Progress | None = None,
    tasks: Mapping[str, Sequence[int]] | None = None,
    initial_states: range = ALL_INITIAL_STATES,
    mishaps: Sequence[str] = (),
) -> RecordingSummary:
    """Record successful demonstrations as the RLDS data set `<out>/<name>/1.0.0/`, with truth in `<out>/truth.parquet`.

    `out` appears when everything is recorded.

    Args:
        suites: one or several of LIBERO's suites; several alternate, episode by episode.
        episodes: how many demonstrations to record. A scene in which all attempts fail is replaced by another.
        seed: decides which tasks and initial states are drawn.
        out: a folder that is missing or empty.
        name: of the data set; by default `<suite>_simulated`, for several suites `libero_simulated`.
        files: how many TFRecord files to write.
        hz: frames per second: 20, the control rate, or a divisor of it.
        progress: called after every recorded episode.
        tasks: suite -> the task ids to draw from, of `SCRIPTED_TASKS`; by default those that are `drawn_by_default`.
        initial_states: the initial states to draw from. Training and evaluation sets must not share a scene.
        mishaps: what goes wrong in the demonstrations, in turn (`simulation.mishaps.mishap_of`); by default nothing does.

    Raises:
        InputError: an argument is out of range, `out` is not empty, there are fewer scenes than episodes, a mishap shall
            happen in a task that carries nothing, or LIBERO is not installed.
    """
    suites = [suites] if isinstance(suites, str) else list(suites)
    if not suites:
        raise InputError(f"no suite given: choose from {', '.join(SCRIPTED_TASKS)}")
    for suite in suites:
        check_suite(suite)
    chosen_tasks = {suite: tuple((tasks or {}).get(suite, drawn_by_default(suite))) for suite in suites}
    check_request(episodes, out, files, hz)
    check_mishaps(mishaps)
    _check_scenes(chosen_tasks, tasks or {}, initial_states)
    import_libero()
    name = name or (f"{suites[0]}_simulated" if len(suites) == 1 else "libero_simulated")
    ids_by_file = episode_ids(name, "train", episodes, files)
    scenes = [draw_scenes(suite, seed, chosen_tasks[suite], initial_states) for suite in suites]
    ids = [episode_id for ids_of_file in ids_by_file for episode_id in ids_of_file]
    groups = [
        EpisodeGroup(
            scenes[number % len(scenes)],
            {"": episode_id},
            mishap_of(number // len(scenes), mishaps),
        )
        for number, episode_id in enumerate(ids)
    ]
    return record_data_set(out, name, {"train": ids_by_file}, groups, hz, progress)


def record_data_set(
    out: Path,
    name: str,
    splits: Mapping[str, Sequence[Sequence[str]]],
    groups: Sequence[EpisodeGroup],
    hz: int,
    progress: Progress | None,
    instruction: str = "",
) -> RecordingSummary:
    """Record groups of episodes as the data set `<out>/<name>/1.0.0/`, with truth in `<out>/truth.parquet`.

    `splits` are split -> files -> episode ids, the same ids as those of `groups`. `hz` are frames per second.
    `instruction`, if given, replaces the instructions of the tasks. `out` appears when everything is recorded.

    Raises:
        InputError: `out` is not empty, or there are not enough scenes.
    """
    with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder) as spool_folder:
        spool = Path(spool_folder)
        summary = _spool_groups(spool, groups, hz, progress, instruction)
        ids = [episode_id for files in splits.values() for ids_of_file in files for episode_id in ids_of_file]
        versions = simulator_versions()
        truth.write((_spooled_truth(spool, episode_id) for episode_id in ids), folder / truth.FILE_NAME, versions)
        payloads = {
            split: [(_spooled_record(spool, id_).read_bytes() for id_ in ids_of_file) for ids_of_file in files]
            for split, files in splits.items()
        }
        made_with = "Recorded with " + ", ".join(f"{name} {number}" for name, number in versions.items())
        write_encoded_rlds(folder, name, VERSION, libero_features(), payloads, made_with)
    return summary


def check_request(episodes: int, out: Path, files: int, hz: int) -> None:
    """Check what every recording must fulfil, before anything slow is done.

    Raises:
        InputError: `episodes` is below 1, `files` is not 1 to `episodes`, `hz` does not divide 20, or `out` is not empty.
    """
    if episodes < 1:
        raise InputError(f"cannot record {episodes} episodes: ask for at least 1")
    if not 1 <= files <= episodes:
        raise InputError(f"cannot spread {episodes} episodes over {files} files: ask for 1 to {episodes} files")
    if hz < 1 or CONTROL_HZ % hz:
        raise InputError(f"cannot record at {hz} Hz: the simulator acts at {CONTROL_HZ} Hz, choose a divisor such as 5")
    check_new_folder(out)


def _check_scenes(
    chosen_tasks: Mapping[str, Sequence[int]], restricted: Mapping[str, Sequence[int]], initial_states: range
) -> None:
    for suite in restricted:
        if suite not in chosen_tasks:
            raise InputError(f"tasks are restricted for {suite!r}, which is not among the recorded suites")
    for suite, tasks in chosen_tasks.items():
        possible = sorted(SCRIPTED_TASKS[suite])
        if not set(tasks) <= set(possible) or not tasks or len(set(tasks)) < len(tasks):
            raise InputError(
                f"cannot record tasks {list(tasks)} of {suite}: choose one or more of {possible}, each once"
            )
    if not set(initial_states) <= set(ALL_INITIAL_STATES) or not initial_states:
        raise InputError(f"cannot draw from initial states {initial_states}: a task has {ALL_INITIAL_STATES}")


def draw_scenes(
    suite: str, seed: int, tasks: Sequence[int] | None = None, initial_states: range = ALL_INITIAL_STATES
) -> Iterator[Scene]:
    """Yield all scenes of a suite in a random order: every task once, then every task once more, and so on.

    `tasks` (by default all of the suite) and `initial_states` say which scenes. Equal seeds give equal orders.
    """
    random = np.random.default_rng([seed, _SUITE_NUMBERS.index(suite)])
    tasks = drawn_by_default(suite) if tasks is None else tasks
    order_of_states = {task: random.permutation(initial_states) for task in tasks}
    for turn in range(len(initial_states)):
        for task in random.permutation(tasks):
            yield Scene(suite, int(task), int(order_of_states[int(task)][turn]))


def episode_ids(name: str, split: str, episodes: int, files: int) -> list[list[str]]:
    """The ids `{name}-{split}-{file}-{record}` of a split, one list per file; the files are of nearly equal length."""
    lengths = [len(part) for part in np.array_split(np.arange(episodes), files)]
    return [
        [f"{name}-{split}-{file:05d}-{number:05d}" for number in range(length)] for file, length in enumerate(lengths)
    ]


def _spool_groups(
    spool: Path, groups: Sequence[EpisodeGroup], hz: int, progress: Progress | None, instruction: str
) -> RecordingSummary:
    """Record the episodes of all groups into one pair of files per episode, so that memory stays flat.

    Each round takes a scene for every group that is not recorded yet, until all are. Within a round, scenes of the same
    task and target come together, since making an environment is what takes long.
    """
    summary = RecordingSummary()
    asked = sum(len(group.episode_ids) for group in groups)
    missing = list(groups)
    while missing:
        scenes = [_next_scene(group.scenes) for group in missing]
        work = sorted(
            (scene.suite, scene.task_id, target, scene.initial_state, number)
            for number, scene in enumerate(scenes)
            for target in missing[number].episode_ids
        )
        failed: set[int] = set()
        for (suite, task_id, target), items in groupby(work, key=lambda item: item[:3]):
            counts = summary.tasks.setdefault((suite, task_id), Counts())
            with TaskEnvironment(suite, task_id, target) as environment:
                environment.instruction = instruction or environment.instruction
                for *_, initial_state, number in items:
                    episode_id, mishap = missing[number].episode_ids[target], missing[number].mishap
                    if not _spool_episode(environment, initial_state, episode_id, hz, spool, counts, mishap):
                        failed.add(number)
                    elif progress:
                        progress(len(list(spool.glob("*.record"))), asked)
        for number, (group, scene) in enumerate(zip(missing, scenes, strict=True)):
            if number not in failed:
                summary.tasks[scene.suite, scene.task_id].recorded += len(group.episode_ids)
            for episode_id in group.episode_ids.values() if number in failed else ():
                _spooled_record(spool, episode_id).unlink(missing_ok=True)
        missing = [missing[number] for number in sorted(failed)]
    return summary


def _next_scene(scenes: Iterator[Scene]) -> Scene:
    scene = next(scenes, None)
    if scene is None:
        raise InputError("no initial state is left to draw: ask for fewer episodes or more suites")
    return scene


def _spool_episode(
    environment: TaskEnvironment,
    initial_state: int,
    episode_id: str,
    hz: int,
    spool: Path,
    counts: Counts,
    mishap: str,
) -> bool:
    """Demonstrate one scene and write its record and truth to the spool; False if all attempts failed."""
    attempts = attempt_until_solved(environment, initial_state, mishap)
    solved = attempts[-1].solved
    counts.attempts += len(attempts)
    counts.failed_attempts += len(attempts) - solved
    counts.failed_episodes += not solved
    if not solved:
        return False
    demonstration = render_demonstration(environment, initial_state, attempts, episode_id, hz, mishap)
    _spooled_record(spool, episode_id).write_bytes(encode_episode(demonstration.episode, libero_features()))
    truth.write([demonstration.truth], spool / f"{episode_id}.parquet", {})
    return True


def _spooled_record(spool: Path, episode_id: str) -> Path:
    return spool / f"{episode_id}.record"


def _spooled_truth(spool: Path, episode_id: str) -> truth.EpisodeTruth:
    return next(truth.iterate(spool / f"{episode_id}.parquet"))
