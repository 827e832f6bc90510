"""`pixelcli study`: what a choice is worth. A policy is trained for every combination of a grid and every seed, and measured.

Each combination is trained from nothing through all three stages, on the same shards, and its held-out action error is measured under
the same conditions (`evaluation.actions`). What is finished is kept, so a study that was stopped goes on. Tables and plots give
95% intervals over seeds: those of few episodes or of one seed would say less than they seem to.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table
from scipy.stats import t

from evaluation.actions import evaluate
from model.settings import PRESETS, ModelSettings
from pixel160k.errors import InputError
from pixel160k.files import read_json_object, write_text, written_atomically
from train import checkpoints
from train.run import train
from train.settings import TrainSettings, load_recipe

STAGES = ("pretrain", "cat", "pue")
MULTISCALE = "multiscale"
"""A name in a grid for `backbone.vision.levels`: "on" are the preset's levels of the vision tower, "off" is its last one alone."""


@dataclass(frozen=True)
class Study:
    """What a study compares.

    Attributes:
        grid: settings of the policy, of the recipe, or `MULTISCALE`, each with the values to try.
        seeds: of each combination.
        steps: optimizer steps of each stage.
        recipe: a shipped recipe's name, or a YAML file; its `init` is the preset that all start from.
        overrides: texts `key=value`, for all of them.
        conditions: what points at the target when they are measured.
    """

    grid: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    steps: Mapping[str, int]
    recipe: str = "tiny-sample"
    overrides: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ("none", "point", "pixel_mask")

    def combinations(self) -> list[dict[str, str]]:
        """Each combination of the grid's values, by setting."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


def read_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Grids as the command line has them, "decoder_blocks=1,2,3": by setting the values, texts that are YAML.

    Raises:
        InputError: one is of another form, or names no setting.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found = [value.strip() for value in re.split(r",(?![^\[({]*[\])}])", values)]  # not the commas of a list
        if not equals or not all(found) or key in grid:
            raise InputError(f"--grid takes key=value,value..., each key once, not {text!r}")
        _kind(key)
        grid[key] = found
    return grid


def _kind(key: str) -> str:
    """Whose setting a key is: "model" or "recipe"."""
    first = key.partition(".")[0]
    if key == MULTISCALE or first in ModelSettings.model_fields:
        return "model"
    if first in TrainSettings.model_fields and first not in ("stage", "init", "model", "max_steps", "seed"):
        return "recipe"
    known = [MULTISCALE, *ModelSettings.model_fields, *TrainSettings.model_fields]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    raise InputError(f"a grid cannot vary {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def run_study(
    study: Study, shards: Sequence[str], out: Path, progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """Train and measure everything that `out` does not hold yet; write `study.json` and `study.png`.

    Args:
        study: what to compare.
        shards: to train on; the first is measured on, by what training held out.
        out: a folder.
        progress: called with how many policies are measured, and how many there will be.

    Returns:
        What study.json holds: `conditions`, and `rows`: for each combination `values`, and by condition `xy` (the mean absolute
        error of x and y before the gripper closes, in robot units) and `all` (of every dimension and step), each as `over_seeds`.

    Raises:
        InputError: a setting is unknown or wrong, which is said before anything is trained; or as `train.run.train`.
    """
    combinations = study.combinations()
    recipes = [[_recipe(study, values, stage) for stage in STAGES] for values in combinations]
    total = len(combinations) * len(study.seeds)
    rows: list[dict[str, Any]] = []
    for values, stages in zip(combinations, recipes, strict=True):
        folder = out / _folder(values)
        found = []
        for seed in study.seeds:
            found.append(_measured(study, stages, shards, folder / f"seed_{seed}", seed))
            progress(len(rows) * len(study.seeds) + len(found), total)
        measures = {
            condition: {
                "xy": over_seeds([one[condition]["before_close"]["xy"] for one in found]),
                "all": over_seeds([float(np.mean(one[condition]["all"]["error"])) for one in found]),
            }
            for condition in study.conditions
        }
        rows.append({"values": values, "measures": measures})
    result = {
        "conditions": list(study.conditions),
        "seeds": list(study.seeds),
        "steps": dict(study.steps),
        "rows": rows,
    }
    write_text(out / "study.json", json.dumps(result, indent=1) + "\n")
    _draw(result, out / "study.png")
    return result


def _recipe(study: Study, values: Mapping[str, str], stage: str) -> TrainSettings:
    """The recipe of a stage of one combination."""
    base = load_recipe(study.recipe, study.overrides)
    model, overrides = list(base.model), list(study.overrides)
    for key, value in values.items():
        if key == MULTISCALE:
            switched: Any = yaml.safe_load(value)
            if not isinstance(switched, bool):
                raise InputError(f"{MULTISCALE} is on or off, not {value!r}")
            if not switched:
                model.append(f"backbone.vision.levels=[{_start(base).backbone.vision.levels[-1]}]")
        elif _kind(key) == "model":
            model.append(f"{key}={value}")
        else:
            overrides.append(f"{key}={value}")
    _start(base, model)  # a wrong one is found before anything is trained
    fixed: dict[str, Any] = {"stage": stage, "max_steps": study.steps[stage]}
    return load_recipe(study.recipe, tuple(overrides), fixed | ({"model": model} if stage == "pretrain" else {}))


def _start(recipe: TrainSettings, model: Sequence[str] = ()) -> ModelSettings:
    """The settings of the policy that a combination begins with."""
    if recipe.init not in PRESETS:
        raise InputError(f"a study starts from a preset, one of {', '.join(PRESETS)}, not from {recipe.init}")
    return ModelSettings.load(base=PRESETS[recipe.init].model_dump(), overrides=model)


def _folder(values: Mapping[str, str]) -> str:
    return "+".join(f"{key}={re.sub(r'[^0-9A-Za-z.,_-]', '', value)}" for key, value in values.items()) or "as it is"


def _measured(
    study: Study, stages: Sequence[TrainSettings], shards: Sequence[str], folder: Path, seed: int
) -> dict[str, Any]:
    """The held-out errors of one policy by condition; it is trained as far as it is not yet."""
    if not (folder / "evaluation.json").exists():
        init = stages[0].init
        for settings in stages:
            run = folder / settings.stage
            last = checkpoints.latest(run)
            if last is None or checkpoints.steps_of(last) < settings.max_steps:
                train(settings.model_copy(update={"init": init, "seed": seed}), shards, run, resume=last is not None)
            init = str(run)
        evaluate(folder / STAGES[-1], Path(shards[0]), folder, study.conditions)
    found: dict[str, Any] = read_json_object(folder / "evaluation.json")["conditions"]
    if missing := [condition for condition in study.conditions if condition not in found]:
        raise InputError(
            f"{folder} was measured without {', '.join(missing)}; delete its evaluation.json to do it again"
        )
    return found


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean of one value a seed, with its 95% interval by Student's t; the interval of a single seed is None."""
    mean = float(np.mean(values))
    interval = None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
        interval = [round(mean - half, 6), round(mean + half, 6)]
    return {"mean": round(mean, 6), "interval": interval, "seeds": [round(float(value), 6) for value in values]}


def summary_table(result: dict[str, Any]) -> Table:
    """A study for the terminal: one row a combination, the x, y error before the close under each condition."""
    keys = list(result["rows"][0]["values"])
    title = f"x, y error before the close [95% over {len(result['seeds'])} seeds]"
    table = Table(*keys, *result["conditions"], title=title)
    for row in result["rows"]:
        table.add_row(*row["values"].values(), *(_told(row["measures"][name]["xy"]) for name in result["conditions"]))
    return table


def _told(measure: dict[str, Any]) -> str:
    interval = measure["interval"]
    return f"{measure['mean']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _draw(result: dict[str, Any], file: Path) -> None:
    """One group of points a combination, one colour a condition, bars for intervals, small points for seeds."""
    from matplotlib.figure import Figure

    rows, conditions = result["rows"], result["conditions"]
    figure = Figure(figsize=(8, 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for number, condition in enumerate(conditions):
        colour, shift = f"C{number}", 0.5 * ((number + 0.5) / len(conditions) - 0.5)
        for place, row in enumerate(rows):
            measure = row["measures"][condition]["xy"]
            label = condition if place == 0 else None
            axes.plot(measure["mean"], place + shift, "o", color=colour, label=label)
            axes.plot(measure["seeds"], [place + shift] * len(measure["seeds"]), "|", color=colour, alpha=0.6)
            if measure["interval"]:
                axes.plot(measure["interval"], [place + shift] * 2, color=colour, linewidth=1.5)
    axes.set_yticks(range(len(rows)), [", ".join(f"{k}={v}" for k, v in row["values"].items()) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("mean absolute error of x and y before the gripper closes, robot units")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with written_atomically(file) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
