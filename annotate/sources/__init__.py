"""One module a data set: each turns its RLDS schema into the one `Episode`."""

from annotate.sources import bridge_orig, fractal, libero, sample

SOURCES = {module.SOURCE.name: module.SOURCE for module in (sample, bridge_orig, fractal, libero)}
