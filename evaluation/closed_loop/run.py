"""`pixelcli evaluate libero`: policies act in LIBERO's scenes by OpenVLA's protocol, and success is counted."""

import json
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from itertools import groupby, product
from math import ceil
from pathlib import Path
from typing import Any

from annotate.jobs.claims import remove_leftovers
from evaluation.closed_loop import results
from evaluation.closed_loop.degradation import by_shift
from evaluation.closed_loop.episode import EpisodeResult
from evaluation.closed_loop.measures import cost, paired, summarise
from evaluation.closed_loop.report import write_page
from evaluation.closed_loop.scenes import most_steps, scenes_of
from evaluation.closed_loop.scripted import Expert, Replay, Scripted, recorded_commands
from evaluation.closed_loop.settings import LiberoSettings
from evaluation.closed_loop.workers import Episode, Unit, run_units
from evaluation.shifts import NONE
from pixel160k.errors import InputError
from pixel160k.files import only_writer, working_folder, write_text
from policies.base import about
from policies.choose import RANDOM, device_name, open_policy
from simulation.environment import CONTROL_HZ
from simulation.libero import simulator_versions

EXPERT, REPLAY = "expert", "replay:"  # policies that live in the simulators' processes
FILMS = "films"  # the folder beside the page
_AT_ONCE = 5  # scenes in a unit of work, at most, so that several processes can share a task


def evaluate(
    policy: str,
    settings: LiberoSettings,
    out: Path,
    workers: int = 1,
    batch: int = 1,
    device: str = "cpu",
    dataset: str | None = None,
    films: bool = False,
    against: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Let a policy act in the scenes of an evaluation, and write `episodes.parquet`, `evaluation.json` and `libero.html`.

    What `out` already holds of the same evaluation is kept, but for episodes that had an error: they are tried again.

    Args:
        policy: as `policies.choose.open_policy` takes it; or "expert", the scripted demonstrator; or "replay:FOLDER", the
            actions of a recording, in the scenes that it has.
        settings: of the evaluation.
        out: a folder.
        workers, batch: see `workers.run_units`.
        device, dataset: of a checkpoint.
        films: whether to make a film of each episode, in `out/films`.
        against: another evaluation of the same scenes, to compare with.
        progress: called with episodes done and episodes in all.

    Returns:
        What evaluation.json holds: see `measures.summarise`, which has the first shift's rows; `shifts`, see
        `degradation.by_shift`, where there are shifts; `policy`, `against`, the other one's name, `suite`, `episodes`, `cost`, and
        `made_with`.

    Raises:
        InputError: settings, policy or scenes are not as they should be; `out` holds another evaluation, or another process
            evaluates there now; `against` is of other scenes; or no episode came to its end.
    """
    scripted = Scripted(Expert) if policy == EXPERT else None
    most_steps(settings)
    scenes = scenes_of(settings)
    if policy.startswith(REPLAY):
        recorded = recorded_commands(Path(policy.removeprefix(REPLAY)), scenes, settings.suite)
        scenes = [scene for scene in scenes if (scene.task_id, scene.initial_state) in recorded]
        scripted = Scripted(partial(Replay, recorded))
    if scripted and settings.hz != CONTROL_HZ:
        raise InputError(f"the {policy.partition(':')[0]} policy acts at {CONTROL_HZ} Hz: leave hz as it is")
    if policy == EXPERT and settings.fixtures == "once":
        raise InputError("the expert tries a scene before it acts, and fixtures=once never has the same scene twice")
    if dataset and (scripted or policy == RANDOM):
        raise InputError(f"--dataset says whose robot a checkpoint acts for; {policy.partition(':')[0]} knows none")
    episodes = [(scene, condition) for scene in scenes for condition in settings.prompts]
    made_with = _made_with(policy, settings, device, dataset)
    other = _other(against, settings)
    with only_writer(out), working_folder(out, "simulators") as scratch:
        found, theirs = _kept(out, made_with)
        made_with = {**theirs, **made_with}  # also what the server said, which is not asked where nothing is left to do
        (out / FILMS if films else out).mkdir(parents=True, exist_ok=True)
        for folder in (out, out / FILMS):  # what a killed evaluation did not finish
            remove_leftovers(folder)
        progress(len(found), len(episodes))
        if units := _units(episodes, found.keys(), settings, workers):
            with nullcontext(scripted) if scripted else open_policy(policy, device, dataset, settings.seed) as acting:
                if not isinstance(acting, Scripted) and ((said := about(acting)) or "server" in made_with):
                    made_with["server"] = said
                    _kept(out, made_with)  # which refuses to go on with what another server did
                into, ended = out / FILMS if films else None, bool(found)
                for result in run_units(
                    units, settings, acting, workers, batch, into, out / "bugs.log", scratch, ended
                ):
                    found[result.scene, result.condition] = result
                    results.write(found.values(), made_with, out)
                    progress(len(found), len(episodes))
        rows = [found[episode] for episode in episodes]
        summary = _summary(rows, settings, made_with, other)
        write_text(out / "evaluation.json", json.dumps(summary, indent=1) + "\n")
        write_page(summary, rows, out)
    if rows and all(row.error for row in rows):
        raise InputError(f"no episode came to its end; the first: {rows[0].error}")
    return summary


def _other(against: Path | None, settings: LiberoSettings) -> tuple[list[EpisodeResult], dict[str, Any]] | None:
    """The evaluation to compare with. Its scenes must be what the same names mean here."""
    if against is None:
        return None
    other = results.read(against)
    theirs, ours = other[1]["settings"], settings.model_dump(mode="json")
    for key in ("suite", "two_alike", *(["seed"] if settings.shifts != (NONE,) else [])):
        if theirs.get(key) != ours[key]:
            raise InputError(f"{against} is of other scenes: {key} is {theirs.get(key)} there and {ours[key]} here")
    return other


def _summary(
    rows: Sequence[EpisodeResult],
    settings: LiberoSettings,
    made_with: dict[str, Any],
    other: tuple[list[EpisodeResult], dict[str, Any]] | None,
) -> dict[str, Any]:
    """What `evaluate` returns."""
    first = settings.shifts[0]
    summary = {
        "policy": made_with["policy"],
        "suite": settings.suite,
        "episodes": len(rows),
        **summarise([row for row in rows if row.shift == first], settings.prompts),
        "shifts": [],
        "against": other[1]["policy"] if other else None,
        "cost": cost(rows),
        "made_with": made_with,
    }
    if settings.shifts != (NONE,):
        summary["shifts"] = by_shift(rows, settings.prompts, settings.shifts, other[0] if other else None)
    if other is not None:
        for condition in settings.prompts:
            ours, theirs = (
                [row for row in of if row.condition == condition and row.shift == first] for of in (rows, other[0])
            )
            names = {"first": f"{condition}, here", "second": f"{condition}, {other[1]['policy']}"}
            summary["paired"].append({**names, **paired(ours, theirs)})
    return summary


def _made_with(policy: str, settings: LiberoSettings, device: str, dataset: str | None) -> dict[str, Any]:
    """What decides the results, but for what the policy itself is made of."""
    return {
        "policy": policy,
        "settings": settings.model_dump(mode="json"),
        "versions": {**simulator_versions(), "pixelvla": version("pixelvla")},
        "device": device_name(device),
        "dataset": dataset,
        "renderer": os.environ.get("MUJOCO_GL"),
    }


def _kept(out: Path, made_with: dict[str, Any]) -> tuple[dict[Episode, EpisodeResult], dict[str, Any]]:
    """The rows that an evaluation can go on from, by episode, and what they were made with."""
    if not (out / results.FILE_NAME).exists():
        return {}, {}
    rows, theirs = results.read(out)
    # Of before these were kept, nobody knows.
    if unlike := sorted(key for key in made_with if made_with[key] != theirs.get(key, made_with[key])):
        raise InputError(
            f"{out} holds another evaluation, with another {', another '.join(unlike)}; name another --out"
        )
    return {(row.scene, row.condition): row for row in rows if not row.error}, theirs


def _units(episodes: list[Episode], done: Collection[Episode], settings: LiberoSettings, workers: int) -> list[Unit]:
    """Work for one environment each. Where fixtures wander, all episodes of a task, shift and condition follow each other."""
    units = []
    most = _AT_ONCE * len(settings.prompts) * len(settings.shifts)
    length = max(1, min(most, ceil((len(episodes) - len(done)) / workers)))
    wandering = settings.fixtures == "once"
    for shift, condition in product(settings.shifts, settings.prompts) if wandering else [("", "")]:
        ours = [of for of in episodes if shift in ("", of[0].shift) and condition in ("", of[1])]
        ours.sort(key=lambda episode: episode[0].environment)
        for _, group in groupby(ours, lambda episode: episode[0].environment):
            of_task = list(group)
            if wandering:
                first = next((n for n, episode in enumerate(of_task) if episode not in done), len(of_task))
                before = tuple(scene.initial_state for scene, _ in of_task[:first])
                units.append(Unit(tuple(of_task[first:]), before))
                continue
            todo = [episode for episode in of_task if episode not in done]
            units += [Unit(tuple(todo[begin : begin + length])) for begin in range(0, len(todo), length)]
    return [unit for unit in units if unit.todo]
