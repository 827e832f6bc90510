"""The simulated sample that ships with the package: LIBERO's schema, needs no data directory, has truth beside it."""

import dataclasses
from importlib.resources import files
from pathlib import Path

from annotate.sources import libero

SOURCE = dataclasses.replace(libero.SOURCE, name="sample")


def default_directory() -> Path:
    """The installed sample's directory; its truth.parquet lies in it, and the annotation path never opens that."""
    return Path(str(files("simulation"))) / "sample"
