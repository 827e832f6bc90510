"""Work that is shared among processes of this machine and comes back in its own order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from pixel160k.errors import InputError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def in_order(work: Callable[[_Task], _Result], tasks: Iterable[_Task], workers: int) -> Iterator[_Result]:
    """What `work` makes of each task, in the order of the tasks; tasks are taken as they are needed.

    Args:
        work: a function that can be pickled, and raises what can be pickled.
        tasks: what can be pickled.
        workers: how many processes; with one, all happens in this process. They end when this process ends.

    Raises:
        InputError: a process died.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)
    waiting: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) > 2 * workers:  # enough for none to wait, few enough to hold in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError("a worker process died (killed, or the memory was full?); try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Make this worker end when its parent does, however that ends, and quietly at Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
