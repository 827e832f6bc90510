"""Does this implementation compute what the original OpenVLA code computed? `python -m model.parity DIR`

DIR is a checkpoint in OpenVLA's format with an `io.safetensors` beside it: inputs, and what the original code made of them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.backbones.openvla import OpenVLABackbone, mask_with_patches
from pixel160k.errors import InputError, one_line

TOLERANCES = {"patch_features": 3e-5, "projected": 5e-6, "last_hidden_state": 3e-5, "logits": 3e-5}
"""Largest absolute difference in float32. Another thread count or attention kernel moves the original by a sixth of them
at most; wrong activations, norms, token orders or block indices by three times or more."""


@dataclass(frozen=True)
class Difference:
    """One output compared, over all valid positions.

    Attributes:
        output: its name, a key of `TOLERANCES`.
        largest: the largest absolute difference.
        compared: how many numbers were compared.
    """

    output: str
    largest: float
    compared: int

    @property
    def passes(self) -> bool:
        """Whether it lies within the tolerance; a difference that is not a number does not."""
        return self.largest <= TOLERANCES[self.output]


def compare(folder: Path) -> list[Difference]:
    """Run the checkpoint of a folder on its inputs, in float32, and compare each output.

    Raises:
        InputError: the checkpoint does not load, or `io.safetensors` is missing, incomplete or of other shapes.
    """
    file = folder / "io.safetensors"
    try:
        given = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {file}: {one_line(error)}") from None
    inputs = ("pixel_values", "input_ids", "attention_mask")
    if absent := sorted({*inputs, *TOLERANCES} - given.keys()):
        raise InputError(f"{file} lacks {', '.join(absent)}")
    backbone = OpenVLABackbone.load(folder, torch.float32)
    side = backbone.settings.vision.image_size
    if given["pixel_values"].shape[1:] != (6, side, side):
        raise InputError(
            f"{file}: pixel_values is {tuple(given['pixel_values'].shape)}, not (batch, 6, {side}, {side})"
        )
    with torch.inference_mode():
        output = backbone(**{name: given[name] for name in inputs})
    patches = torch.ones(output.projected.shape[:2], dtype=torch.bool)
    valid = mask_with_patches(given["attention_mask"], patches.shape[1]).bool()
    differences = []
    for name in TOLERANCES:
        ours, theirs = getattr(output, name), given[name]
        if ours.shape != theirs.shape:
            raise InputError(f"{file}: {name} is {tuple(theirs.shape)}, but this checkpoint gives {tuple(ours.shape)}")
        chosen = patches if name in ("patch_features", "projected") else valid
        difference = (ours - theirs)[chosen].abs()
        differences.append(Difference(name, difference.max().item(), difference.numel()))
    return differences


@click.command(help="Compare this implementation with the outputs of the original OpenVLA code kept in FOLDER.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
def main(folder: Path) -> None:
    """Print the largest difference of each output; exit 1 if one is above its tolerance, 2 if it cannot be compared."""
    try:
        differences = compare(folder)
    except InputError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    for difference in differences:
        verdict = "ok" if difference.passes else "TOO LARGE"
        click.echo(
            f"{difference.output:<18} largest difference {difference.largest:.2e} of {difference.compared:,} numbers, "
            f"tolerance {TOLERANCES[difference.output]:.0e}: {verdict}"
        )
    sys.exit(0 if all(difference.passes for difference in differences) else 1)


if __name__ == "__main__":
    main()
