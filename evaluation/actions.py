"""How far a policy's actions are from the demonstrated ones on episodes that it never saw, and what pointing changes.

No simulator and no robot: each predicted chunk is compared with what the demonstrator did next, in robot units. The policy
predicts the same steps under several conditions: with no prompt, the right object's, a wrong object's. Errors are averaged
within each episode, then over episodes, with 95% bootstrap intervals over episodes. Two trivial policies are measured too:
one always gives the mean action of the training data, one repeats the last action.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotate.annotators.device import Batches
from evaluation.action_report import DEMONSTRATED, DIMENSIONS, EXAMPLES, Example, write_page
from evaluation.annotation_measures import bootstrap_interval
from evaluation.conditions import PROMPTS, WRONG
from model.policy import PixelVLA
from model.processor import Observation
from pixel160k.errors import InputError
from pixel160k.files import write_text
from pixel160k.format.prompts import Prompt
from pixel160k.format.shards import split_of
from pixel160k.format.table import ACCEPTED
from pixel160k.paths import AnyPath
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.samples import Sample
from pixel160k.seeding import seeded_generator
from train.checkpoints import load_policy, recipe_of, statistics_of
from train.data import masks_and_prompts
from train.settings import TrainSettings
from train.stream import is_held_out

MEAN_ACTION, REPEAT_LAST = "mean action", "repeat last"
_BATCH = 32

_Shown = tuple[list[np.ndarray], list[Prompt]]  # masks p_t and visual prompts


@dataclass(frozen=True)
class Errors:
    """Absolute errors of one condition on one episode, summed over the actions of all its chunks.

    Attributes:
        total: float64 (2, 7), in robot units: over all actions, and over those before the gripper closes.
        actions: int (2,): how many actions each of the two sums is over.
    """

    total: np.ndarray
    actions: np.ndarray


def choose_episodes(directory: ShardDirectory, recipe: TrainSettings | None, split: str | None = None) -> list[str]:
    """The ids of the episodes to measure a policy on: those of a split, or without one those that training held out.

    Args:
        directory: the shards that hold them.
        recipe: of the training (`train.checkpoints.recipe_of`); None where it is not known.
        split: such as "val".

    Raises:
        InputError: there are no such episodes, or neither recipe nor split is given.
    """
    if split is not None:
        chosen = [episode for episode in directory.episode_ids if split_of(episode) == split]
    elif recipe is None:
        raise InputError("the checkpoint does not say what it was trained on; name the episodes with --split")
    else:
        chosen = [episode for episode in directory.episode_ids if is_held_out(episode, recipe)]
    if not chosen:
        wanted = "that training held out" if split is None else f"of the split {split!r}"
        raise InputError(f"{directory.directory} holds no episode {wanted}; name a split with --split")
    return chosen


def evaluate(
    checkpoint: str | Path,
    shards: AnyPath,
    out: AnyPath,
    prompts: Sequence[str],
    split: str | None = None,
    device: str = "cpu",
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    merged: bool = True,
    scaled_as: str | None = None,
) -> dict[str, Any]:
    """Measure a trained policy on held-out episodes of a shard directory, and write evaluation.json and actions.html.

    Args:
        checkpoint: hub id, or the folder of a checkpoint or of a run.
        shards: output of `pixelcli build-shards`.
        out: the folder to write to.
        prompts, progress, scaled_as: see `measure_policy`.
        split: the episodes of this split; by default those that training held out.
        device: of the policy, such as "cuda:1".
        merged: see `train.checkpoints.load_policy`.

    Returns:
        See `measure_policy`.

    Raises:
        InputError: checkpoint or shards cannot be read, no episode is held out, or as `measure_policy`.
    """
    check_prompts(prompts)
    directory = ShardDirectory(shards)  # what can be said is said before a large policy is loaded
    dataset, known = scaled_as or directory.manifest["dataset"], sorted(statistics_of(checkpoint))
    episodes = choose_episodes(directory, recipe_of(checkpoint), split)
    if dataset not in known:
        told = f"{checkpoint} has no statistics of {dataset!r}, only of {', '.join(known) or 'no data set'}"
        raise InputError(f"{told}: name the one that it was trained on with --scaled-as")
    policy = load_policy(checkpoint, merged=merged, device=device)
    directory = ShardDirectory(shards, chunk=policy.settings.chunk)
    return measure_policy(policy, directory, episodes, prompts, out, progress, scaled_as)


def measure_policy(
    policy: PixelVLA,
    directory: ShardDirectory,
    episodes: Sequence[str],
    prompts: Sequence[str],
    out: AnyPath | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    scaled_as: str | None = None,
) -> dict[str, Any]:
    """Measure a policy on episodes of a shard directory.

    Args:
        policy: with statistics of the shards' data set, or of `scaled_as`.
        directory: opened with all members and the policy's chunk.
        episodes: ids; those that were rejected, whose prompts may mark something else, and those without any prompt are left
            out and counted, so that all conditions have the same episodes.
        prompts: the conditions, names of `PROMPTS`. Each is shown where its prompt still marks the object, as in training
            (`train.data.masks_and_prompts`). "wrong_" shows the prompts of another object on the very same steps: those of
            an episode that begins with the very same picture, if there is one (two-alike scenes), else of an episode
            drawn by the id.
        out: the folder that evaluation.json and actions.html go to; None writes nothing.
        progress: wraps the loop over episode ids, to show a bar.
        scaled_as: the data set whose statistics scale states and actions, and whose mean action the trivial policy gives;
            by default the shards' own. A policy that was not trained on these shards has only those of others.

    Returns:
        What evaluation.json holds: `dataset`, `scaled_as`, `episodes`, `left_out`, and `conditions`: by name, the two trivial policies
        among them, `all` and `before_close`, each with the mean absolute error of each dimension (`error`, 7) and of x and
        y together (`xy`, with `xy_95`), in robot units (m and rad where the source has them, the gripper in [0, 1]).

    Raises:
        InputError: a prompt is unknown, no episode is left, a wrong object is asked for and there is one episode only, or
            the policy has no statistics of the data set.
    """
    check_prompts(prompts)
    dataset = directory.manifest["dataset"]
    scaled_as = scaled_as or dataset
    mean = np.array(policy.processor.statistics_of(scaled_as)["action"]["mean"])
    pointed = [episode for episode in episodes if _is_pointed_at(_marks(directory, episode))]
    if not pointed:
        raise InputError(
            f"none of the {len(episodes)} episodes of {directory.directory} to evaluate on was accepted and has prompts"
        )
    wrong = _wrong_episodes(directory, pointed) if any(kind.startswith(WRONG) for kind in prompts) else {}
    if out is not None:  # first of all, since measuring may take hours
        out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Errors]] = defaultdict(list)
    examples: list[Example] = []
    batches = Batches(_BATCH)
    for episode in progress(pointed):
        samples = directory.episode(episode)
        other = _marks(directory, wrong[episode]) if wrong else None
        found[MEAN_ACTION].append(_errors(samples, [np.broadcast_to(mean, _actions(s).shape) for s in samples]))
        found[REPEAT_LAST].append(_errors(samples, _repeated(samples)))
        unprompted: dict[int, np.ndarray] = {}
        moves = {DEMONSTRATED: _actions(samples[0])[samples[0].action_mask, :2]}
        for kind in prompts:
            source = other if kind.startswith(WRONG) else None
            shown = [_shown(sample, kind.removeprefix(WRONG), source) for sample in samples]
            predicted = _predict(policy, samples, shown, unprompted, scaled_as, batches)
            found[kind].append(_errors(samples, predicted))
            moves[kind] = predicted[0][:, :2]
        if len(examples) < EXAMPLES:
            examples.append(Example(samples[0], directory.image(episode, samples[0].step), moves))
    result = {
        "dataset": dataset,
        "scaled_as": scaled_as,
        "episodes": len(pointed),
        "left_out": len(episodes) - len(pointed),
        "conditions": {name: _summary(errors) for name, errors in found.items()},
    }
    if out is not None:
        write_text(out / "evaluation.json", json.dumps(result, indent=1) + "\n")
        write_page(result, examples, out / "actions.html")
    return result


def check_prompts(prompts: Sequence[str]) -> None:
    """Check that all of these are names of `PROMPTS`, each there once: twice, it would count every episode twice.

    Raises:
        InputError: names one that is not.
    """
    if unknown := sorted(set(prompts) - set(PROMPTS)):
        raise InputError(f"there is no prompt {unknown[0]!r}; choose of {', '.join(PROMPTS)}")
    if len(set(prompts)) < len(prompts):
        raise InputError(f"name each prompt once, not {','.join(prompts)}")


def _marks(directory: ShardDirectory, episode: str) -> Sample:
    """What marks the target of an episode at its first step, without the image."""
    return directory.sample(episode, directory.steps(episode)[0], ("labels", "prompts"))


def _is_pointed_at(first: Sample) -> bool:
    """Whether prompts mark what an episode is about: a rejected one has those of the mask that was not believed."""
    return first.status == ACCEPTED and bool(first.prompts)


def _wrong_episodes(directory: ShardDirectory, pointed: Sequence[str]) -> dict[str, str]:
    """For each episode the id of another one, whose prompts show another object."""
    pictures = defaultdict(list)
    for episode in pointed:
        pictures[hashlib.sha256(directory.image(episode, directory.steps(episode)[0])).digest()].append(episode)
    twins = {episode: group for group in pictures.values() for episode in group}
    chosen = {}
    for episode in pointed:
        others = [other for other in twins[episode] if other != episode] or [o for o in pointed if o != episode]
        if not others:
            raise InputError("a wrong object's prompts come from another episode, and there is only one")
        chosen[episode] = others[seeded_generator("wrong prompt", episode).integers(len(others))]
    return chosen


def _shown(sample: Sample, kind: str, source: Sample | None) -> _Shown:
    """What a policy is shown of a sample's target; with `source`, on the same steps what points at the source's target."""
    masks, prompts = masks_and_prompts(sample, kind)
    return masks_and_prompts(source, kind) if source and (masks or prompts) else (masks, prompts)


def _predict(
    policy: PixelVLA,
    samples: Sequence[Sample],
    shown: Sequence[_Shown],
    unprompted: dict[int, np.ndarray],
    scaled_as: str,
    batches: Batches,
) -> list[np.ndarray]:
    """The action chunk of each sample, (N_c, 7) in robot units, with `shown` beside its image.

    `unprompted` keeps, by step, the chunks of samples beside which nothing is shown: they are the same in every condition.
    """
    told = list(zip(samples, shown, strict=True))
    todo = [(sample, one) for sample, one in told if any(one) or sample.step not in unprompted]
    pointed: dict[int, np.ndarray] = {}
    chunks = batches(todo, lambda some: [*policy.act([_observation(sample, *one, scaled_as) for sample, one in some])])
    for (sample, one), chunk in zip(todo, chunks, strict=True):
        (pointed if any(one) else unprompted)[sample.step] = chunk
    return [(pointed if any(one) else unprompted)[sample.step] for sample, one in told]


def _observation(sample: Sample, masks: Sequence[np.ndarray], prompts: Sequence[Prompt], scaled_as: str) -> Observation:
    assert sample.image is not None
    return Observation(sample.image, sample.instruction, masks, prompts, sample.state, scaled_as)


def _repeated(samples: Sequence[Sample]) -> Iterator[np.ndarray]:
    """For each sample a chunk that repeats the action before it; for the first no motion, the gripper open."""
    last = np.array([0, 0, 0, 0, 0, 0, 1.0])
    for sample in samples:
        yield np.broadcast_to(last, _actions(sample).shape)
        last = _actions(sample)[0]


def _actions(sample: Sample) -> np.ndarray:
    assert sample.actions is not None
    return sample.actions


def _errors(samples: Sequence[Sample], predictions: Iterator[np.ndarray] | Sequence[np.ndarray]) -> Errors:
    total, actions = np.zeros((2, len(DIMENSIONS))), np.zeros(2, int)
    for sample, predicted in zip(samples, predictions, strict=True):
        difference = np.abs(predicted - _actions(sample))
        steps = sample.step + np.arange(len(difference))
        assert sample.action_mask is not None  # read together with the actions
        before_close = steps < sample.metadata.close_step
        for row, counted in enumerate((sample.action_mask, sample.action_mask & before_close)):
            total[row] += difference[counted].sum(0)
            actions[row] += counted.sum()
    return Errors(total, actions)


def _summary(errors: Sequence[Errors]) -> dict[str, Any]:
    summary = {}
    for row, name in enumerate(("all", "before_close")):
        means = np.array([error.total[row] / error.actions[row] for error in errors if error.actions[row]])
        xy = means[:, :2].mean(1).tolist() if len(means) else []
        summary[name] = {
            "episodes": len(means),
            "error": [round(value, 6) for value in means.mean(0).tolist()] if len(means) else [],
            "xy": round(float(np.mean(xy)), 6) if xy else None,
            "xy_95": [round(bound, 6) for bound in bootstrap_interval(xy) or []],
        }
    return summary
