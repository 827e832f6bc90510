"""Bugs that one episode meets: a failed row, the traceback in the log, and the next episode goes on."""

import contextvars
import dataclasses
import logging
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pixel160k.errors import InputError, one_line
from pixel160k.format import table
from pixel160k.format.table import EpisodeAnnotation

LOGGER = logging.getLogger("annotate")
"""Gets the traceback of every bug."""
LOGGER.setLevel(logging.WARNING)  # whatever the level of all others is

_LOG: contextvars.ContextVar[object] = contextvars.ContextVar("log", default=None)  # whose log is written to

_ROOT = Path(__file__).parents[1]
_ROOMS = {"annotate", "pixel160k"}


class WorkerUnusable(InputError):
    """This process can do no file at all, and none is at fault: its device cannot be used, or a model cannot be loaded."""


def internal_error(row: EpisodeAnnotation, error: Exception) -> EpisodeAnnotation:
    """The failed row of an episode that met a bug: its detail says what and where; the log gets the traceback.

    Args:
        row: what was known of the episode before.
        error: the exception, while it is handled or after it was.
    """
    LOGGER.error("%s:", row.episode_id, exc_info=error)
    return dataclasses.replace(row, status=table.FAILED, reason="internal_error", detail=describe_error(error))


def name_errors(rows: Iterable[EpisodeAnnotation], few: int = 3) -> list[str]:
    """Episode and detail of the first few rows that met a bug."""
    return [f"{row.episode_id}: {row.detail}" for row in rows if row.reason == "internal_error"][:few]


def describe_error(error: Exception) -> str:
    """Type, message and place (`file:line`, in this package where it passed through it) of an exception, on one line."""
    message = f": {one_line(error)}" if str(error).strip() else ""
    text = f"{type(error).__name__}{message[:500]} ({_place(error)})"
    return text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be stored


def is_of_the_device(error: Exception) -> bool:
    """Whether this process can do nothing more on its device, whatever the episode or the file."""
    if isinstance(error, WorkerUnusable):
        return True
    return any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__)  # of torch, which may not be there


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in _ROOMS:
            return f"{path.relative_to(_ROOT).as_posix()}:{frame.lineno}"
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"


@contextmanager
def tracebacks_to(log: Path) -> Iterator[None]:
    """Within this block, append what this thread logs of bugs to a file, which is made when there is something to say.

    And what threads log that work for it, with its context variables.
    """
    handler = logging.FileHandler(log, delay=True, encoding="utf-8")
    handler.addFilter(lambda record: _LOG.get() is handler)  # the other threads have handlers of their own
    before = _LOG.set(handler)
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        _LOG.reset(before)
        handler.close()
