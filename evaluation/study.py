"""`pixelcli study`: what a choice is worth. A policy is trained for every combination of a grid and every seed, and measured.

Each combination is trained on the same shards through the same stages, from nothing or from one checkpoint, and its held-out
action error is measured under the same conditions (`evaluation.actions`). Of several data sets all are trained on together, in
a study across data sets each alone too, and every policy is measured on each. What is finished is kept, so a study that was
stopped goes on. Tables and plots give 95% intervals over seeds: those of few episodes or of one seed would say less than they
seem to.
"""

import difflib
import hashlib
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

from evaluation.actions import MEAN_ACTION, check_prompts, evaluate
from model.presets import PUBLISHED
from model.settings import PRESETS, ModelSettings
from model.weights import check_device
from pixel160k.errors import InputError
from pixel160k.files import only_writer, read_json_object, write_text, written_atomically
from pixel160k.paths import AnyPath, open_path
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.folder import read_manifest
from train import checkpoints
from train.checks import check_policy
from train.mixture import check_mixture
from train.run import train
from train.settings import TrainSettings, load_recipe

STEPS = {"pretrain": 300, "cat": 100, "pue": 300}
"""The stages in their order, each with its optimizer steps where nothing else is said."""
MULTISCALE = "multiscale"
"""A name in a grid for `backbone.vision.levels`: "on" are the policy's levels of the vision tower, "off" is its last one alone."""


@dataclass(frozen=True)
class Study:
    """What a study compares.

    Attributes:
        grid: settings of the policy, of the recipe, or `MULTISCALE`, each with the values to try.
        seeds: of each combination.
        steps: optimizer steps of each stage that is trained, in their order; those of `stages_after`.
        recipe: a shipped recipe's name, or a YAML file.
        init: the preset or checkpoint that all start from; "": the recipe's. A trained policy's own settings are fixed.
        cross: train on each data set alone, and on all together; else on all together only.
        overrides: texts `key=value`, for all of them.
        conditions: what points at the target when they are measured.
    """

    grid: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    steps: Mapping[str, int]
    recipe: str = "tiny-sample"
    init: str = ""
    cross: bool = False
    overrides: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ("none", "point", "pixel_mask")

    def combinations(self) -> list[dict[str, str]]:
        """Each combination of the grid's values, by setting."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


def stages_after(init: str) -> tuple[str, ...]:
    """The stages that a study trains which starts from `init`.

    Args:
        init: as in `Study`.

    Raises:
        InputError: it is a checkpoint of the last stage.
    """
    stages = tuple(STEPS)
    if not init or (init in PRESETS and init not in PUBLISHED):
        return stages
    recipe = checkpoints.recipe_of(init)
    if recipe is None:  # published, or merged: a pretrained VLA
        return stages[1:]
    if recipe.stage == stages[-1]:
        raise InputError(f"a study trains the stages after a checkpoint, and {init} is one of {recipe.stage}, the last")
    return stages[stages.index(recipe.stage) + 1 :]


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
    study: Study,
    shards: Sequence[str],
    out: Path,
    progress: Callable[[int, int], None] = lambda done, of: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train and measure everything that `out` does not hold yet; write `study.json` and `study.png`.

    Args:
        study: what to compare.
        shards: shard directories, each of another data set. On each is measured, by the episodes that training holds out.
        out: a folder.
        progress: called with how many policies are measured, and how many there will be.
        device: on which policies are measured, such as "cuda"; training takes the GPU that it sees.

    Returns:
        What study.json holds: the study's `recipe`, `init`, `overrides`, `conditions`, `seeds`, `steps`, and `rows`: for each
        combination, data set measured on and data sets trained on, `values`, `measured_on`, `trained_on`, `scaled_as` (the
        data set whose statistics scale states and actions: the one measured on where the policy was trained on it, else the
        one trained on), `episodes` measured, and in `measures`, by condition and for the policy that always gives
        `scaled_as`'s mean action, `xy` (the mean absolute error of x and y before the gripper closes, in robot units) and
        `all` (of every dimension and step), each as `over_seeds`.

    Raises:
        InputError: a setting is unknown or wrong, a data set has nothing to train on or nothing held out, a condition is
            unknown, or the device cannot be used, which is said before anything is trained; `out` holds policies of another
            recipe, of other steps or of other shards, or another process writes there; or as `train.run.train`.
    """
    check_prompts(study.conditions)
    check_device(device)
    plan = [(values, _recipes(study, values)) for values in study.combinations()]
    sources = _sources(shards)
    for _, stages in plan:
        check_policy(stages[0], shards)
        check_mixture(stages[-1], shards)
    if study.cross and len(sources) == 1:
        raise InputError("a study across data sets needs two of them or more: repeat --shards")
    with only_writer(out):
        _keep_shards(sources, out)
        result = {
            "recipe": study.recipe,
            "init": study.init,
            "overrides": list(study.overrides),
            "conditions": list(study.conditions),
            "seeds": list(study.seeds),
            "steps": dict(study.steps),
            "rows": _rows(study, plan, sources, out, progress, device),
        }
        write_text(out / "study.json", json.dumps(result, indent=1) + "\n")
        _draw(result, out / "study.png")
    return result


def _keep_shards(sources: Mapping[str, AnyPath], out: Path) -> None:
    """Write down the bytes of the shards that policies in `out` are trained and measured on; where they lie may change.

    Raises:
        InputError: `out` holds policies of others.
    """
    file = out / "shards.json"
    known = read_json_object(file) if file.exists() else {}
    for name, directory in sources.items():
        tars = [tar["sha256"] for tar in read_manifest(directory)["shards"]]
        digest = hashlib.sha256("".join(tars).encode()).hexdigest()
        if known.setdefault(name, digest) != digest:
            raise InputError(f"{out} is of a study on other shards of {name} than {directory}: choose another --out")
    write_text(file, json.dumps(known, indent=1) + "\n")


def _rows(
    study: Study,
    plan: Sequence[tuple[dict[str, str], list[TrainSettings]]],
    sources: Mapping[str, AnyPath],
    out: Path,
    progress: Callable[[int, int], None],
    device: str,
) -> list[dict[str, Any]]:
    """What `run_study` says of each combination in `plan`, data set measured on and data sets trained on."""
    trained = [*([(name,) for name in sources] if study.cross else ()), tuple(sources)]
    total = len(plan) * len(trained) * len(study.seeds)
    rows: list[dict[str, Any]] = []
    done = 0
    for values, stages in plan:
        found: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {}
        for trained_on in trained:
            for seed in study.seeds:
                folder = out / _folder(values) / "+".join(trained_on) / f"seed_{seed}"
                run = _trained(stages, {name: sources[name] for name in trained_on}, folder, seed)
                for name, of_one in sources.items():
                    scaled_as = name if name in trained_on else trained_on[0]
                    one = _measured(study, run, of_one, folder / f"on_{name}", scaled_as, device)
                    found.setdefault((name, trained_on), []).append(one)
                progress(done := done + 1, total)
        rows += [
            {"values": values, "measured_on": name, "trained_on": list(trained_on)}
            | _summary(study, found[name, trained_on])
            for name in sources
            for trained_on in trained
        ]
    return rows


def _sources(shards: Sequence[str]) -> dict[str, AnyPath]:
    """The folder of each data set, by its name. That a data set lies in two is found by `check_mixture`."""
    directories = [ShardDirectory(open_path(folder)) for folder in shards]
    return {directory.manifest["dataset"]: directory.directory for directory in directories}


def _recipes(study: Study, values: Mapping[str, str]) -> list[TrainSettings]:
    """The recipe of each stage of one combination. Settings of the policy belong to the first one: later they are fixed."""
    start = {"init": study.init} if study.init else {}
    base = load_recipe(study.recipe, study.overrides, start)
    model, overrides = list(base.model), list(study.overrides)
    for key, value in values.items():
        if key == MULTISCALE:
            switched: Any = yaml.safe_load(value)
            if not isinstance(switched, bool):
                raise InputError(f"{MULTISCALE} is on or off, not {value!r}")
            if not switched:
                model.append(f"backbone.vision.levels=[{_policy_of(base).backbone.vision.levels[-1]}]")
        elif _kind(key) == "model":
            model.append(f"{key}={value}")
        else:
            overrides.append(f"{key}={value}")
    of_stages = [{"stage": stage, "max_steps": steps, "model": []} for stage, steps in study.steps.items()]
    of_stages[0]["model"] = model
    return [load_recipe(study.recipe, tuple(overrides), {**start, **fixed}) for fixed in of_stages]


def _policy_of(recipe: TrainSettings) -> ModelSettings:
    """The settings of the policy that a recipe starts from."""
    known = PRESETS.get(recipe.init) or checkpoints.settings_of(checkpoints.run_or_checkpoint(recipe.init))[0]
    return ModelSettings.load(base=known.model_dump(), overrides=recipe.model)


def _folder(values: Mapping[str, str]) -> str:
    return "+".join(f"{key}={re.sub(r'[^0-9A-Za-z.,_-]', '', value)}" for key, value in values.items()) or "as it is"


def _trained(stages: Sequence[TrainSettings], sources: Mapping[str, AnyPath], folder: Path, seed: int) -> Path:
    """The run of the last stage of one policy, trained as far as it is not yet."""
    shards = [str(directory) for directory in sources.values()]
    init = stages[0].init
    for settings in stages:
        run = folder / settings.stage
        last = checkpoints.latest(run)
        before = checkpoints.recipe_of(last) if last else None
        # Going on, later stages would stand on what is no longer there.
        if before and before.max_steps != settings.max_steps:
            raise InputError(
                f"{run} is of a study with {before.max_steps} steps of {settings.stage}, and this one has "
                f"{settings.max_steps}: choose another --out"
            )
        mixture = {name: weight for name, weight in settings.mixture.items() if name in sources}
        changed = {"init": init, "seed": seed, "mixture": mixture}
        train(settings.model_copy(update=changed), shards, run, resume=last is not None)
        init = str(run)
    return run


def _measured(study: Study, run: Path, shards: AnyPath, out: Path, scaled_as: str, device: str) -> dict[str, Any]:
    """What `evaluation.actions.evaluate` says of a run on one data set; it is measured if it is not yet."""
    known = read_json_object(out / "evaluation.json") if (out / "evaluation.json").exists() else {}
    if not {*study.conditions} <= {*known.get("conditions", ())}:
        known = evaluate(run, shards, out, study.conditions, device=device, scaled_as=scaled_as)
    return known


def _summary(study: Study, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a row of a study says of its policies, one a seed."""
    measures = {}
    for condition in (*study.conditions, MEAN_ACTION):
        of_seeds = [one["conditions"][condition] for one in found]
        measures[condition] = {
            "xy": over_seeds([one["before_close"]["xy"] for one in of_seeds]),
            "all": over_seeds([float(np.mean(one["all"]["error"])) for one in of_seeds]),
        }
    return {"scaled_as": found[0]["scaled_as"], "episodes": found[0]["episodes"], "measures": measures}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean of one value a seed, with its 95% interval by Student's t; the interval of a single seed is None."""
    mean = float(np.mean(values))
    interval = None
    if len(values) > 1:
        half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
        interval = [round(mean - half, 6), round(mean + half, 6)]
    return {"mean": round(mean, 6), "interval": interval, "seeds": [round(float(value), 6) for value in values]}


def summary_table(result: dict[str, Any]) -> Table:
    """A study for the terminal: one row a combination and data sets, the x, y error before the close under each condition."""
    shown = [*result["conditions"], MEAN_ACTION]
    title = f"x, y error before the close [95% over {len(result['seeds'])} seeds]"
    caption = f"{MEAN_ACTION}: always that of the data set whose statistics scale the actions"
    table = Table(*_columns(result), *shown, title=title, caption=caption)
    for row in result["rows"]:
        table.add_row(*_columns(result, row), *(_told(row["measures"][name]["xy"]) for name in shown))
    return table


def _columns(result: dict[str, Any], row: dict[str, Any] | None = None) -> list[str]:
    """What tells rows apart: the names, or with a row its values. Data sets are named where there are several."""
    several = len({row["measured_on"] for row in result["rows"]}) > 1
    if row is None:
        return [*result["rows"][0]["values"], *(["measured on", "trained on"] if several else [])]
    return [*row["values"].values(), *([row["measured_on"], " + ".join(row["trained_on"])] if several else [])]


def _told(measure: dict[str, Any]) -> str:
    interval = measure["interval"]
    return f"{measure['mean']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _draw(result: dict[str, Any], file: Path) -> None:
    """One group of points a row, one colour a condition, bars for intervals, small points for seeds, a cross for the mean action."""
    from matplotlib.figure import Figure

    rows, conditions = result["rows"], result["conditions"]
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(rows)), layout="constrained")
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
    trivial = [row["measures"][MEAN_ACTION]["xy"]["mean"] for row in rows]
    axes.plot(trivial, range(len(rows)), "x", color="0.4", label=MEAN_ACTION)
    names = _columns(result)
    axes.set_yticks(
        range(len(rows)),
        [
            "\n".join(f"{name} {value}" for name, value in zip(names, _columns(result, row), strict=True))
            for row in rows
        ],
        fontsize="small",
    )
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("mean absolute error of x and y before the gripper closes, robot units")
    figure.legend(loc="outside upper center", ncols=len(conditions) + 1, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with written_atomically(file) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
