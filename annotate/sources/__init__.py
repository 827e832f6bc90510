"""One module a data set: each turns its RLDS schema into the one `Episode`."""

from annotate.rlds import Source
from annotate.sources import bridge_orig, fractal, libero, sample

SOURCES: dict[str, Source] = {"sample": sample, "bridge_orig": bridge_orig, "fractal": fractal, "libero": libero}
