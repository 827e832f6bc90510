"""How an evaluation of actions is shown: a table for the terminal, and a page with the first moves of a few episodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.table import Table

from pixel160k.files import write_text
from pixel160k.format.prompts import PIXEL_MASK
from pixel160k.paths import AnyPath
from pixel160k.read.samples import Sample
from pixel160k.show import drawing
from train.data import masks_and_prompts

DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
DEMONSTRATED = "demonstrated"  # the demonstrator's own moves, beside the conditions
EXAMPLES = 12  # episodes whose first moves the page shows
_TEMPLATE = Path(__file__).with_name("action_report.html")


@dataclass(frozen=True)
class Example:
    """What the page shows of one episode: its first image, and where the first action chunk of each condition leads.

    Attributes:
        sample: the episode's first.
        image: the sample's, JPEG or PNG.
        moves: by condition, float (N_c, 2): x and y of each action of the chunk, in robot units; the demonstrator's under
            `DEMONSTRATED`.
    """

    sample: Sample
    image: bytes
    moves: Mapping[str, np.ndarray]


def summary_table(result: dict[str, Any]) -> Table:
    """The result of `evaluation.actions.evaluate` for the terminal, one row per condition; the page has every dimension."""
    table = Table(title=f"{result['dataset']}: mean absolute error, {result['episodes']} held-out episodes")
    for name in ("", "x, y before the close [95%]", "x, y", "z", "gripper"):
        table.add_column(name, justify="right" if name else "left")
    for name, condition in result["conditions"].items():
        before, whole = condition["before_close"], condition["all"]
        told = "–" if before["xy"] is None else "{:.4f} [{:.4f}, {:.4f}]".format(before["xy"], *before["xy_95"])
        errors = dict(zip(DIMENSIONS, whole["error"], strict=True))
        table.add_row(name, told, f"{whole['xy']:.4f}", f"{errors['z']:.4f}", f"{errors['gripper']:.4f}")
    return table


def write_page(result: dict[str, Any], examples: Sequence[Example], file: AnyPath) -> None:
    """Write the result of `evaluation.actions.evaluate` as one HTML file: bars, tables of every dimension, and the examples."""
    reach = max((np.abs(move.cumsum(0)).max() for one in examples for move in one.moves.values()), default=0) or 1
    cards = [
        {
            "episode": one.sample.episode_id,
            "instruction": one.sample.instruction,
            "picture": _picture(one),
            "paths": {name: _path(name, move, reach) for name, move in one.moves.items()},
        }
        for one in examples
    ]
    values = {"title": f"{result['dataset']}: held-out action error", "names": DIMENSIONS, "cards": cards, **result}
    write_text(file, drawing.render(_TEMPLATE, values))


def _picture(example: Example) -> Markup:
    masks, points = masks_and_prompts(example.sample, PIXEL_MASK)[0], masks_and_prompts(example.sample, "point")[1]
    layers = [drawing.mask_layer(mask, "target") for mask in masks] + [drawing.prompt_layer(point) for point in points]
    assert example.sample.image is not None
    return drawing.picture(example.image, example.sample.image.shape[:2], layers, "the first frame and the target")


def _path(condition: str, moves: np.ndarray, reach: float) -> Markup:
    """A line from the middle of a square of 200 pixels to where the moves lead, x to the right and y up."""
    points = np.concatenate([np.zeros((1, 2)), moves.cumsum(0)]) * (95 / reach, -95 / reach)
    kinds = {DEMONSTRATED: DEMONSTRATED, "none": "plain"}
    kind = kinds.get(condition) or ("wrong" if condition.startswith("wrong_") else "right")
    return drawing.line_layer([(x, y) for x, y in points.tolist()], f"move {kind}")
