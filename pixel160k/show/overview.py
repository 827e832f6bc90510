"""Which episodes of a shard directory are shown, and in what order: filters, and the worst first by any score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pixel160k.errors import InputError
from pixel160k.format.episode_rows import EpisodeRow
from pixel160k.format.table import NOT_APPLICABLE

SCORES = {"score": "detection score", "mask_score": "mask score", "evidence_score": "motion evidence"}
"""The scores of an episode, by their names in the JSON and the table of episodes, and what people call them."""
FILTERS = ("status", "reason", "verb", "target_object")
"""The columns of which one value can be asked for."""


@dataclass(frozen=True)
class Choice:
    """Which episodes, and in what order. "" asks for nothing.

    Attributes:
        status, reason, verb, target_object: episodes with this value alone.
        text: words that the instruction, the object's words or the episode's id must all contain, in any case of letters.
        worst: one of `SCORES`: the episodes that have it, the lowest first; else all, in the shards' order.
    """

    status: str = ""
    reason: str = ""
    verb: str = ""
    target_object: str = ""
    text: str = ""
    worst: str = ""


def has_score(name: str, value: Any, evidence_status: Any) -> Any:
    """Whether an episode has one of `SCORES`, or for arrays, which episodes have it: 0 stands for none, or motion could judge."""
    return evidence_status != NOT_APPLICABLE if name == "evidence_score" else value > 0


class Overview:
    """The episodes of a shard directory, to choose from. Nothing here grows with what is shown but the answers."""

    def __init__(self, table: pa.Table) -> None:
        """Of a table of episodes, as `pixel160k.read.episode_table` reads it."""
        self.table = table
        words = [table[name] for name in ("instruction", "target_object", "episode_id")]
        self._text = pc.utf8_lower(pc.binary_join_element_wise(*words, " "))

    def __len__(self) -> int:
        return len(self.table)

    def counts(self, column: str) -> dict[str, int]:
        """How many episodes have each value of a column, "" left out, the most frequent first."""
        counted = pc.value_counts(self.table[column]).to_pylist()
        values = {str(item["values"]): int(item["counts"]) for item in counted if item["values"]}
        return dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))

    def check(self, choice: Choice) -> None:
        """Check that what a user asked for is there.

        Raises:
            InputError: no episode has such a value; names those that there are.
        """
        for column in FILTERS:
            wanted, there = getattr(choice, column), self.counts(column)
            if wanted and wanted not in there:
                raise InputError(f"no episode here has the {column} {wanted!r}; there are {', '.join(there) or 'none'}")

    def choose(self, choice: Choice) -> np.ndarray:
        """The numbers of the chosen episodes, counted from 0 in the shards' order: int (n,), in the order asked for."""
        keep = np.ones(len(self.table), bool)
        for column in FILTERS:
            if wanted := getattr(choice, column):
                keep &= pc.equal(self.table[column], wanted).to_numpy()
        for word in choice.text.lower().split():
            keep &= pc.match_substring(self._text, word).to_numpy()
        if not choice.worst:
            return np.flatnonzero(keep)
        scores = self.table[choice.worst].to_numpy()
        chosen = np.flatnonzero(keep & has_score(choice.worst, scores, self.table["evidence_status"].to_numpy()))
        return chosen[np.argsort(scores[chosen], kind="stable")]

    def rows(self, numbers: Sequence[int] | np.ndarray) -> list[EpisodeRow]:
        """The rows of these episodes."""
        return [EpisodeRow(**row) for row in self.table.take(np.asarray(numbers, np.int64)).to_pylist()]


def pages(page: int, count: int) -> list[int]:
    """Numbers of pages to offer beside this one, of `count`, all from 1: the first, the last, and some around it."""
    near = {1, count, *range(page - 2, page + 3)}
    return sorted(number for number in near if 1 <= number <= count)
