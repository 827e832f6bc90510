"""Groups: episodes of one viewpoint, and those left over, gathered in the order of the file and with little of it in memory.

Which episodes make a group decides what a discrete video shows, and so the rows. It follows from the order of the episodes
alone, never from what was ready first.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def grouped(items: Iterable[tuple[str, Item]], size: int, waiting: int, alone: int = 1) -> Iterator[list[Item]]:
    """Gather items of one key into groups; where too few of a key come, items of several keys.

    Args:
        items: each with its key.
        size: how many make a whole group.
        waiting: how many items may wait for others at most. Beyond that, the group goes to which nothing was added for the
            longest time: it is the least likely to be filled.
        alone: so many items may go alone. Fewer take others with them that would be too few, those that wait the longest first.

    Yields:
        Each item in one group; first those that are whole or have to go, at the end all others.
    """
    groups: dict[str, list[Item]] = {}  # to which something was added last, stands last
    for key, item in items:
        groups[key] = [*groups.pop(key, []), item]
        if len(groups[key]) == size:
            yield groups.pop(key)
        elif sum(map(len, groups.values())) > waiting:
            yield _longest_waiting(groups, size, alone)
    while groups:
        yield _longest_waiting(groups, size, alone)


def _longest_waiting(groups: dict[str, list[Item]], size: int, alone: int) -> list[Item]:
    """Take the group that waits the longest, and others with it where both are too few."""
    taken = groups.pop(next(iter(groups)))
    if len(taken) < alone:
        for key in [key for key, group in groups.items() if len(group) < alone]:
            if len(taken) + len(groups[key]) > size:
                break
            taken += groups.pop(key)
    return taken


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
