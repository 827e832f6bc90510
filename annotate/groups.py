"""Groups: episodes of one viewpoint, gathered in the order of the file and with little of it in memory.

Which episodes make a group decides what a discrete video shows, and so the rows. It follows from the order of the episodes
alone, never from what was ready first.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def grouped(items: Iterable[tuple[str, Item]], size: int, waiting: int) -> Iterator[list[Item]]:
    """Gather items of one key into groups.

    Args:
        items: each with its key.
        size: how many make a whole group.
        waiting: how many items may wait for others at most. Beyond that, the group goes to which nothing was added for the
            longest time: it is the least likely to be filled.

    Yields:
        Each item in one group; first those that are whole or have to go, at the end all others.
    """
    groups: dict[str, list[Item]] = {}  # to which something was added last, stands last
    for key, item in items:
        groups[key] = [*groups.pop(key, []), item]
        if len(groups[key]) == size:
            yield groups.pop(key)
        elif sum(map(len, groups.values())) > waiting:
            yield groups.pop(next(iter(groups)))
    while groups:
        yield groups.pop(next(iter(groups)))


def batched(groups: Iterable[list[Item]], least: int) -> Iterator[list[list[Item]]]:
    """Take groups together until they hold so many items; the last may hold fewer."""
    batch: list[list[Item]] = []
    for group in groups:
        batch.append(group)
        if sum(map(len, batch)) >= least:
            yield batch
            batch = []
    if batch:
        yield batch
