"""Pixel-160K: the pixel-annotated robot data set and the toolkit to write, check and look at it.

What is named here is imported when it is used, so that `import pixel160k` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixel160k.read.episodes import ShardDirectory
    from pixel160k.read.loader import open_shards
    from pixel160k.read.samples import Sample
    from pixel160k.show.viewer import browse

__all__ = ["Sample", "ShardDirectory", "browse", "open_shards"]

_MODULES = {
    "Sample": "read.samples",
    "ShardDirectory": "read.episodes",
    "browse": "show.viewer",
    "open_shards": "read.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pixel160k' has no attribute {name!r}")
    return getattr(import_module(f"pixel160k.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
