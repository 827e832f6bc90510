"""Items made ahead: a thread reads and decodes what comes next while the models are at work."""

import contextvars
import threading
from collections.abc import Generator, Iterable
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item], count: int) -> Generator[Item]:
    """Yield the items of an iterable, of which a thread has up to `count` ready before they are asked for.

    Order and items are those of the iterable. What it raises is raised here, after the items before, with its traceback. The
    thread ends with the items, or when this generator is closed, once it has made the item that it is at. It sees the context
    variables of the thread that asks.

    Args:
        items: only the thread iterates over it, also when it is a generator that has to be closed.
        count: 0 makes every item when it is asked for, without a thread.
    """
    if not count:
        yield from items
        return
    made: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()
    room, stopped = threading.Semaphore(count - 1), threading.Event()

    def make() -> None:
        try:
            for item in items:
                made.put((item,))
                room.acquire()
                if stopped.is_set():
                    break
            made.put(None)
        except BaseException as error:  # whatever it is, nobody may wait for ever
            made.put(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(make,), name="ahead", daemon=True)
    thread.start()
    try:
        while (got := made.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            room.release()
            yield got[0]
    finally:
        stopped.set()
        room.release()
        thread.join()
