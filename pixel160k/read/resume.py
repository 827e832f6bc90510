"""States of readers: how far each is in its epoch, found in what a `StatefulDataLoader` saves, and put together.

A reader's state says how many samples it gave of its turns. All readers of a run together say which samples of the epoch
were given; what is left can be shared out anew among any number of readers. Such a time with one set of readers is a leg.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pixel160k.errors import InputError
from pixel160k.read.order import Reader, turns_of

Legs = dict[int, list[list[int]]]
"""Of each epoch, the legs that lie behind: how many samples each reader gave."""

_KEYS = {"epoch", "given", "finished", "reader", "legs", "order"}
_REPLAYED = "_steps_since_snapshot"  # batches that a StatefulDataLoader would give again and throw away


class Begin(NamedTuple):
    """Where a reader goes on: after `given` samples of its turns in what the legs of that epoch left."""

    epoch: int
    given: int
    legs: Legs


def find_states(saved: Any) -> list[dict[str, Any]]:
    """The readers' states in what was saved: one, or those within the states of StatefulDataLoaders, one of each process.

    Raises:
        InputError: there is none, or not that of the batch given last.
    """
    states = list(_find(saved))
    if not states:
        raise InputError("this is no state of a loader: give what state_dict() of it or of its StatefulDataLoader said")
    return states


def _find(saved: Any) -> Iterator[dict[str, Any]]:
    if isinstance(saved, Mapping):
        if saved.keys() >= _KEYS:
            yield dict(saved)
            return
        if saved.get(_REPLAYED):
            raise InputError("this state is older than the last batch; save with snapshot_every_n_steps=1")
        for value in saved.values():
            yield from _find(value)
    elif isinstance(saved, list | tuple):
        for value in saved:
            yield from _find(value)


def begin_of(states: Sequence[Mapping[str, Any]], reader: Reader, total: int) -> Begin:
    """Where a reader goes on after these states of an order of `total` samples per epoch.

    A reader that finds its own state goes on in it, as if it had not stopped. Others share out what was left.

    Raises:
        InputError: the states are not of all readers; says of how many.
    """
    for state in states:
        if state["reader"] == [reader.number, reader.count]:
            return Begin(state["epoch"], state["given"], {epoch: list(legs) for epoch, legs in state["legs"]})
    count = states[0]["reader"][1]
    by_number = {state["reader"][0]: state for state in states if state["reader"][1] == count}
    if len(by_number) < count or len(states) > count:
        found = "1 reader" if len(by_number) == 1 else f"{len(by_number)} readers"
        raise InputError(
            f"this is the state of {found} of {count}; to go on with another number of workers or processes give a list "
            "of what state_dict() of every process said"
        )
    first = min(states, key=lambda state: state["epoch"])
    legs: Legs = {epoch: list(behind) for epoch, behind in first["legs"]}
    for epoch in range(first["epoch"], max(state["epoch"] for state in states) + 1):
        left = total - sum(map(sum, legs.get(epoch, [])))
        counts = []
        for number in range(count):
            state = by_number[number]
            turns = turns_of(left, Reader(number, count))  # all of them, where the reader is in a later epoch
            counts.append(turns if state["epoch"] > epoch else state["given"] if state["epoch"] == epoch else 0)
        if any(counts):
            legs.setdefault(epoch, []).append(counts)
    return Begin(first["epoch"], 0, legs)
