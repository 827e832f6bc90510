"""What a job shows while it runs: a bar of the files done and lines above it; what workers and libraries print goes to its log."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from pixel160k.paths import AnyPath
from pixel160k.stores import StorePath


def interval(folder: AnyPath) -> float:
    """How many seconds lie between two looks into a folder: in a store each look costs a little."""
    return 5.0 if isinstance(folder, StorePath) else 0.5


@contextmanager
def worker_output_to(log: Path) -> Iterator[TextIO]:
    """Send what this process and its children write to stderr into a file; yields the terminal's own stderr.

    Beam and the libraries below it chatter on stderr at a level that no option reaches.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(log, "ab") as file, open(terminal, "w", closefd=False) as stream:
            os.dup2(file.fileno(), 2)
            yield stream
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextmanager
def progress(title: str, done: AnyPath, names: list[str], terminal: TextIO) -> Iterator[Callable[[str], None]]:
    """A bar that counts the done-markers, which is all that any runner shows of its progress.

    Yields what prints a line above the bar.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeElapsedColumn())
    ended, wanted = threading.Event(), {f"{name}.json" for name in names}

    def count() -> int:
        return len(wanted.intersection(path.name for path in done.glob("*")))

    with Progress(*columns, TimeRemainingColumn(), console=Console(file=terminal)) as bar:
        task = bar.add_task(title, total=len(names), completed=count())

        def watch() -> None:
            while not ended.wait(interval(done)):
                with suppress(OSError):  # of a store or network: the next look will do
                    bar.update(task, completed=count())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield lambda line: bar.console.print(line, markup=False, highlight=False)
        finally:
            ended.set()
            watcher.join()
            with suppress(OSError):
                bar.update(task, completed=count())
