"""What the shifts of the domain do to one scene of LIBERO, as one picture: each kind at levels 1, 3 and 5 (docs/shifts.md).

Run: python benchmarks/shift_sheet.py --suite libero_goal --task 0 --state 2 --out shifts.png
"""

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from evaluation.noise import noisy
from evaluation.shifts import DISTRACTORS, KINDS, WORDING, Shift
from pixel160k.seeding import seeded_generator
from simulation.environment import AGENT_VIEW, TaskEnvironment

LEVELS = (1, 3, 5)
SIDE, CAPTION = 144, 13  # pixels


def shown(environment: TaskEnvironment, suite: str, state: int, shift: Shift) -> np.ndarray:
    """The agent view, uint8 RGB, of a scene under a shift."""
    environment.change = shift.change(suite, 0)
    environment.reset(state)
    noise = shift.noise(shift.draws(suite, environment.task_id, state, 0))
    image = environment.render(AGENT_VIEW)
    return noisy(image, noise, seeded_generator("sheet")) if noise else image


@click.command()
@click.option("--suite", default="libero_goal", show_default=True)
@click.option("--task", default=0, show_default=True)
@click.option("--state", default=2, show_default=True, help="The initial state.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A PNG file.")
def main(suite: str, task: int, state: int, out: Path) -> None:
    """Draw the picture."""
    kinds = [kind for kind in KINDS if kind != WORDING]
    images = {}
    with TaskEnvironment(suite, task, reflections=True) as environment:
        for kind in kinds:
            for level in LEVELS if kind != DISTRACTORS else ():
                images[kind, level] = shown(environment, suite, state, Shift(kind, level))
    for level in LEVELS:
        shift = Shift(DISTRACTORS, level)
        with TaskEnvironment(suite, task, reflections=True, added=shift.added(suite, task, 0)) as environment:
            images[DISTRACTORS, level] = shown(environment, suite, state, shift)
    rows = (len(kinds) + 1) // 2
    sheet = Image.new("RGB", (SIDE * 2 * len(LEVELS), (SIDE + CAPTION) * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (kind, level) in enumerate((kind, level) for kind in kinds for level in LEVELS):
        row, column = divmod(number, 2 * len(LEVELS))
        x, y = column * SIDE, row * (SIDE + CAPTION)
        draw.text((x + 3, y), f"{kind}-{level}", fill="black")
        sheet.paste(Image.fromarray(images[kind, level]).resize((SIDE, SIDE), Image.Resampling.BOX), (x, y + CAPTION))
    palette = sheet.quantize(256, Image.Quantize.MAXCOVERAGE)
    sheet.quantize(palette=palette).save(out, optimize=True)


if __name__ == "__main__":
    main()
