"""Record a simulated data set with truth: draw scenes, demonstrate, keep the successes, write RLDS and truth table.

A data set depends on its arguments alone: the same command twice writes the same bytes.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from pixel160k.errors import InputError
from simulation import truth
from simulation.demonstration import record, solve
from simulation.environment import CONTROL_HZ, PICK_AND_PLACE_TASKS, TaskEnvironment, check_suite, import_libero
from simulation.rlds import check_empty, encode_episode, libero_features, write_encoded_rlds

VERSION = "1.0.0"
ALL_INITIAL_STATES = range(50)  # a task of LIBERO has so many

Progress = Callable[[int, int], None]
"""Called with (episodes recorded so far, episodes asked for)."""


@dataclass
class Counts:
    """What happened on one task: an episode is a drawn initial state, with one attempt or more."""

    attempts: int = 0
    failed_attempts: int = 0
    recorded: int = 0
    failed_episodes: int = 0  # all attempts failed; not recorded, another scene was drawn instead


@dataclass
class RecordingSummary:
    """What a recording did, by task: (suite, task id) -> counts."""

    tasks: dict[tuple[str, int], Counts] = field(default_factory=dict)

    def total(self, suite: str | None = None) -> Counts:
        """The counts over all tasks, or over those of one suite."""
        chosen = [counts for (task_suite, _), counts in self.tasks.items() if suite in (None, task_suite)]
        return Counts(**{name: sum(getattr(counts, name) for counts in chosen) for name in vars(Counts())})


@dataclass(frozen=True, order=True)
class Scene:
    """A task in one of its initial states."""

    suite: str
    task_id: int
    initial_state: int


@dataclass(frozen=True)
class Place:
    """What one drawn scene fills: an episode for each target ("" is the task's own), all of them or none."""

    draws: Iterator[Scene]  # where the scene comes from, and the next one should it fail
    episodes: dict[str, str]  # target -> episode id


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
) -> RecordingSummary:
    """Record `episodes` successful demonstrations into `<out>/<name>/1.0.0/` and `<out>/truth.parquet`.

    Several suites alternate, episode by episode. `name` defaults to `<suite>_simulated` (several suites:
    `libero_simulated`), `files` is the number of TFRecord files. `hz` is 20, the control rate, or a divisor of it.
    `tasks` (task ids by suite; a suite not in it keeps all of its own) and `initial_states` restrict what is drawn:
    training and evaluation sets must not share a scene.
    """
    suites = [suites] if isinstance(suites, str) else list(suites)
    chosen_tasks = {suite: tuple((tasks or {}).get(suite, PICK_AND_PLACE_TASKS.get(suite, ()))) for suite in suites}
    if not suites:
        raise InputError(f"no suite given: choose from {', '.join(PICK_AND_PLACE_TASKS)}")
    for suite in suites:
        check_suite(suite)
    check_request(episodes, out, files, hz)
    _check_scenes(chosen_tasks, tasks or {}, initial_states)
    import_libero()
    name = name or (f"{suites[0]}_simulated" if len(suites) == 1 else "libero_simulated")
    out.mkdir(parents=True, exist_ok=True)
    parts = episode_ids(name, "train", episodes, files)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=out) as folder:
        spool = Path(folder)
        draws = [draw_scenes(suite, seed, chosen_tasks[suite], initial_states) for suite in suites]
        identifiers = [identifier for part in parts for identifier in part]
        places = [Place(draws[number % len(draws)], {"": identifier}) for number, identifier in enumerate(identifiers)]
        summary = record_places(spool, places, hz, progress)
        write_spooled(spool, out, name, {"train": parts})
    return summary


def write_spooled(spool: Path, out: Path, name: str, splits: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Write the truth table and the RLDS data set of spooled episodes: split -> files -> episode ids."""
    identifiers = [identifier for files in splits.values() for part in files for identifier in part]
    truth.write((_spooled_truth(spool, identifier) for identifier in identifiers), out / truth.FILE_NAME)
    payloads = {
        split: [(_spooled_record(spool, identifier).read_bytes() for identifier in part) for part in files]
        for split, files in splits.items()
    }
    write_encoded_rlds(out, name, VERSION, libero_features(), payloads)


def check_request(episodes: int, out: Path, files: int, hz: int) -> None:
    """Raise a ValueError if a recording of this size and rate cannot be made, or not into this folder."""
    if episodes < 1:
        raise InputError(f"cannot record {episodes} episodes: ask for at least 1")
    if not 1 <= files <= episodes:
        raise InputError(f"cannot spread {episodes} episodes over {files} files: ask for 1 to {episodes} files")
    if hz < 1 or CONTROL_HZ % hz:
        raise InputError(f"cannot record at {hz} Hz: the simulator acts at {CONTROL_HZ} Hz, choose a divisor such as 5")
    check_empty(out)


def _check_scenes(
    chosen_tasks: Mapping[str, Sequence[int]], restricted: Mapping[str, Sequence[int]], initial_states: range
) -> None:
    for suite in restricted:
        if suite not in chosen_tasks:
            raise InputError(f"tasks are restricted for {suite!r}, which is not among the recorded suites")
    for suite, tasks in chosen_tasks.items():
        unknown = sorted(set(tasks) - set(PICK_AND_PLACE_TASKS[suite]))
        if unknown or not tasks or len(set(tasks)) < len(tasks):
            raise InputError(
                f"cannot record tasks {list(tasks)} of {suite}: choose one or more of "
                f"{list(PICK_AND_PLACE_TASKS[suite])}, each once"
            )
    if not set(initial_states) <= set(ALL_INITIAL_STATES) or not initial_states:
        raise InputError(f"cannot draw from initial states {initial_states}: a task has {ALL_INITIAL_STATES}")


def draw_scenes(
    suite: str, seed: int, tasks: Sequence[int] | None = None, initial_states: range = ALL_INITIAL_STATES
) -> Iterator[Scene]:
    """All scenes of a suite in the random order of a seed: every task once before any comes again.

    `tasks` (all of the suite's by default) and `initial_states` restrict them.
    """
    random = np.random.default_rng([seed, sorted(PICK_AND_PLACE_TASKS).index(suite)])
    tasks = PICK_AND_PLACE_TASKS[suite] if tasks is None else tasks
    order_of_states = {task: random.permutation(initial_states) for task in tasks}
    for turn in range(len(initial_states)):
        for task in random.permutation(tasks):
            yield Scene(suite, int(task), int(order_of_states[int(task)][turn]))


def episode_ids(name: str, split: str, episodes: int, files: int) -> list[list[str]]:
    """`{name}-{split}-{file}-{record}` of every episode, by file, consecutive ones in one."""
    lengths = [len(part) for part in np.array_split(np.arange(episodes), files)]
    return [
        [f"{name}-{split}-{file:05d}-{number:05d}" for number in range(length)] for file, length in enumerate(lengths)
    ]


def record_places(
    spool: Path, places: Sequence[Place], hz: int, progress: Progress | None, instruction: str = ""
) -> RecordingSummary:
    """Record the episodes of every place into the spool folder, so that memory does not grow with their number.

    Scenes are worked off by task and target, since making an environment is what takes long. A place of which an episode
    failed in all attempts is filled by the next scene drawn for it, until every place is filled. `instruction` takes the
    place of the tasks' own.
    """
    summary = RecordingSummary()
    asked = sum(len(place.episodes) for place in places)
    open_places = list(places)
    while open_places:
        scenes = [_next_scene(place.draws) for place in open_places]
        work = sorted(
            (scene.suite, scene.task_id, target, scene.initial_state, number)
            for number, scene in enumerate(scenes)
            for target in open_places[number].episodes
        )
        failed: set[int] = set()
        for (suite, task_id, target), items in groupby(work, key=lambda item: item[:3]):
            counts = summary.tasks.setdefault((suite, task_id), Counts())
            with TaskEnvironment(suite, task_id, target) as environment:
                environment.instruction = instruction or environment.instruction
                for *_, initial_state, number in items:
                    identifier = open_places[number].episodes[target]
                    if not _record_scene(environment, initial_state, identifier, hz, spool, counts):
                        failed.add(number)
                    elif progress:
                        progress(len(list(spool.glob("*.record"))), asked)
        open_places = [open_places[number] for number in sorted(failed)]
        for identifier in (identifier for place in open_places for identifier in place.episodes.values()):
            _spooled_record(spool, identifier).unlink(missing_ok=True)
    return summary


def _next_scene(draws: Iterator[Scene]) -> Scene:
    scene = next(draws, None)
    if scene is None:
        raise InputError("no initial state is left to draw: ask for fewer episodes or more suites")
    return scene


def _record_scene(
    environment: TaskEnvironment, initial_state: int, identifier: str, hz: int, spool: Path, counts: Counts
) -> bool:
    """Demonstrate one scene and spool its record and truth; False if all attempts failed."""
    attempts = solve(environment, initial_state)
    solved = attempts[-1].solved
    counts.attempts += len(attempts)
    counts.failed_attempts += len(attempts) - solved
    counts.recorded += solved
    counts.failed_episodes += not solved
    if not solved:
        return False
    demonstration = record(environment, initial_state, attempts, identifier, hz)
    _spooled_record(spool, identifier).write_bytes(encode_episode(demonstration.episode, libero_features()))
    truth.write([demonstration.truth], spool / f"{identifier}.parquet")
    return True


def _spooled_record(spool: Path, identifier: str) -> Path:
    return spool / f"{identifier}.record"


def _spooled_truth(spool: Path, identifier: str) -> truth.EpisodeTruth:
    return next(truth.iterate(spool / f"{identifier}.parquet"))
