"""How far a policy's actions are from the demonstrated ones on episodes that it never saw, and what pointing changes.

No simulator and no robot: the error of each predicted chunk against what the demonstrator did next, in robot units. The
same steps are asked with several prompts: none, the right object's, a wrong object's. Errors are means over episodes of
an episode's mean, with 95% bootstrap intervals over episodes. Two trivial policies stand beside: the mean action of the
training data, and repeating the last action.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.action_report import DEMONSTRATED, DIMENSIONS, EXAMPLES, Example, write_page
from evaluation.annotation_measures import bootstrap_interval
from model.policy import PixelVLA
from model.processor import Observation
from pixel160k.errors import InputError
from pixel160k.format.prompts import PROMPT_KINDS
from pixel160k.format.shards import split_of
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.samples import Sample
from pixel160k.seeding import seeded_generator
from train.data import PIXEL_MASK, point_at
from train.settings import TrainSettings
from train.stream import is_held_out

PROMPTS = ("none", *PROMPT_KINDS, PIXEL_MASK, *(f"wrong_{kind}" for kind in (*PROMPT_KINDS, PIXEL_MASK)))
MEAN_ACTION, REPEAT_LAST = "mean action", "repeat last"
_BATCH = 32


@dataclass(frozen=True)
class Errors:
    """Absolute errors of one way of acting on one episode, summed over the rows that count.

    Attributes:
        total: float64 (2, 7): over all rows, and over those before the gripper closes.
        rows: how many rows each of the two sums is over.
    """

    total: np.ndarray
    rows: np.ndarray


def choose_episodes(directory: ShardDirectory, recipe: TrainSettings | None, split: str | None = None) -> list[str]:
    """The ids of the episodes to measure a policy on: those that its training held out, or those of a split.

    Args:
        directory: where they are.
        recipe: of the training (`train.checkpoints.recipe_of`); only None where a split is given.
        split: as "val".

    Raises:
        InputError: there are no such episodes.
    """
    if split is not None:
        chosen = [episode for episode in directory.episode_ids if split_of(episode) == split]
    else:
        assert recipe is not None
        chosen = [episode for episode in directory.episode_ids if is_held_out(episode, recipe)]
    if not chosen:
        wanted = "that training held out" if split is None else f"of the split {split!r}"
        raise InputError(f"{directory.directory} holds no episode {wanted}; name a split with --split")
    return chosen


def evaluate(
    policy: PixelVLA,
    directory: ShardDirectory,
    episodes: Sequence[str],
    prompts: Sequence[str],
    out: Path | None = None,
    progress: Callable[[Sequence[str]], Any] = iter,
) -> dict[str, Any]:
    """Measure a policy on episodes of a shard directory.

    Args:
        policy: with statistics of the shards' data set.
        directory: opened with all members and the policy's chunk.
        episodes: ids; those without any prompt are left out and counted, so that all conditions are over the same.
        prompts: of `PROMPTS`. "wrong_" takes the prompts of another object: those of the episode that begins with the
            very same picture, if there is one (two-alike scenes), else of an episode drawn by the id.
        out: where evaluation.json and actions.html go; None writes nothing.
        progress: wraps the loop over episodes.

    Returns:
        What evaluation.json holds: `episodes`, `left_out`, and by condition, the two trivial ones among them, `all` and
        `before_close`: the mean absolute error of each dimension (`error`, 7) and of x and y together (`xy`, with
        `xy_95`), in robot units (m and rad where the source has them, the gripper in [0, 1]).

    Raises:
        InputError: an unknown prompt, no episode left, or no statistics of the data set.
    """
    if unknown := sorted(set(prompts) - set(PROMPTS)):
        raise InputError(f"there is no prompt {unknown[0]!r}; choose of {', '.join(PROMPTS)}")
    dataset = directory.manifest["dataset"]
    mean = np.array(policy.processor.statistics_of(dataset)["action"]["mean"])
    firsts = {episode: directory.sample(episode, directory.steps(episode)[0]) for episode in episodes}
    pointed = {episode: sample for episode, sample in firsts.items() if sample.prompts}
    if not pointed:
        raise InputError(f"none of the {len(firsts)} episodes of {directory.directory} to evaluate on has prompts")
    wrong = _wrong_episodes(directory, pointed)
    found: dict[str, list[Errors]] = defaultdict(list)
    examples: list[Example] = []
    for episode in progress(list(pointed)):
        samples = directory.episode(episode)
        found[MEAN_ACTION].append(_errors(samples, [np.broadcast_to(mean, _actions(s).shape) for s in samples]))
        found[REPEAT_LAST].append(_errors(samples, _repeated(samples)))
        moves = {DEMONSTRATED: _actions(samples[0])[samples[0].action_mask, :2]}
        for kind in prompts:
            source = pointed[wrong[episode]] if kind.startswith("wrong_") else None
            predicted = list(_predict(policy, samples, kind.removeprefix("wrong_"), source))
            found[kind].append(_errors(samples, predicted))
            moves[kind] = predicted[0][:, :2]
        if len(examples) < EXAMPLES:
            examples.append(Example(samples[0], directory.members(episode, samples[0].step)["jpg"], moves))
    result = {
        "dataset": dataset,
        "episodes": len(pointed),
        "left_out": len(firsts) - len(pointed),
        "conditions": {name: _summary(errors) for name, errors in found.items()},
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_page(result, examples, out / "actions.html")
    return result


def _wrong_episodes(directory: ShardDirectory, pointed: dict[str, Sample]) -> dict[str, str]:
    """For every episode another whose object is not its own."""
    pictures = defaultdict(list)
    for episode, sample in pointed.items():
        pictures[hashlib.sha256(directory.members(episode, sample.step)["jpg"]).digest()].append(episode)
    twins = {episode: group for group in pictures.values() for episode in group}
    chosen = {}
    for episode in pointed:
        others = [other for other in twins[episode] if other != episode] or [o for o in pointed if o != episode]
        if not others:
            raise InputError("a wrong object's prompts come from another episode, and there is only one")
        chosen[episode] = others[seeded_generator("wrong prompt", episode).integers(len(others))]
    return chosen


def _predict(policy: PixelVLA, samples: Sequence[Sample], kind: str, source: Sample | None) -> Iterator[np.ndarray]:
    """Chunks of actions in robot units, (N_c, 7) a sample; prompts of `source` instead of the samples' own, if given."""
    for begin in range(0, len(samples), _BATCH):
        observations = []
        for sample in samples[begin : begin + _BATCH]:
            assert sample.image is not None
            masks, prompts = point_at(source or sample, kind)
            observations.append(
                Observation(sample.image, sample.instruction, masks, prompts, sample.state, sample.dataset)
            )
        yield from policy.act(observations)


def _repeated(samples: Sequence[Sample]) -> Iterator[np.ndarray]:
    """Before each step's first action the one before it; at the start none was made: no motion, the gripper open."""
    last = np.array([0, 0, 0, 0, 0, 0, 1.0])
    for sample in samples:
        yield np.broadcast_to(last, _actions(sample).shape)
        last = _actions(sample)[0]


def _actions(sample: Sample) -> np.ndarray:
    assert sample.actions is not None
    return sample.actions


def _errors(samples: Sequence[Sample], predictions: Iterator[np.ndarray] | Sequence[np.ndarray]) -> Errors:
    total, rows = np.zeros((2, len(DIMENSIONS))), np.zeros(2, int)
    for sample, predicted in zip(samples, predictions, strict=True):
        difference = np.abs(predicted - _actions(sample))
        steps = sample.step + np.arange(len(difference))
        assert sample.action_mask is not None  # read together with the actions
        for place, counted in enumerate(
            (sample.action_mask, sample.action_mask & (steps < sample.metadata.close_step))
        ):
            total[place] += difference[counted].sum(0)
            rows[place] += counted.sum()
    return Errors(total, rows)


def _summary(errors: Sequence[Errors]) -> dict[str, Any]:
    summary = {}
    for place, name in enumerate(("all", "before_close")):
        means = np.array([error.total[place] / error.rows[place] for error in errors if error.rows[place]])
        xy = means[:, :2].mean(1).tolist() if len(means) else []
        summary[name] = {
            "episodes": len(means),
            "error": [round(value, 6) for value in means.mean(0).tolist()] if len(means) else [],
            "xy": round(float(np.mean(xy)), 6) if xy else None,
            "xy_95": [round(bound, 6) for bound in bootstrap_interval(xy) or []],
        }
    return summary
