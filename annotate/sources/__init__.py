"""One module per data set: each turns the records of its RLDS schema into the one `Episode`."""

from importlib import import_module

from annotate.sources.rlds import Source
from pixel160k.format.origins import ORIGINS

SOURCES: dict[str, Source] = {name: import_module(f"annotate.sources.{name}").SOURCE for name in ORIGINS}
"""The sources by name: a module for every entry of the registry of data sets."""
