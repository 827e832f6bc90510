"""Shards of a source with several splits, which tests of readers load."""

from scene import episode

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from simulation.rlds import libero_features, write_rlds

SPLITS = {"train": [1, 1], "test": [1], "validation": [1]}
"""Split -> how many episodes each of its files holds. By name `test` comes before `train`."""


def write_source(path, splits):
    """Write the RLDS data set `drawn`; each episode has a scene and an instruction of its own."""
    seeds = iter(range(100))
    written = {
        split: [[_episode(split, next(seeds)) for _ in range(count)] for count in files]
        for split, files in splits.items()
    }
    write_rlds(path, "drawn", "1.0.0", libero_features(), written)
    return path


def _episode(split, seed):
    """Off the training split the arm is shown to move three times as far."""
    made = episode(f"pick up the red disc and place it on the plate {seed}", seed=seed)
    for step in made["steps"]:
        step["action"][0] *= 1 if split == "train" else 3
    return made


def build(path, splits, include="all"):
    """Annotate such a source and build its shards in `path / "shards"`."""
    data = write_source(path / "data", splits)
    annotate("libero", data, path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    build_shards(path / "annotations", path / "shards", Execution(), include=include)
    return path / "shards"
