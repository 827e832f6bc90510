"""Random access to shards: any episode or step of a shard directory, read from its offset in the tar.

The index says where each sample lies, so that no tar is ever read from its start.
"""

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pixel160k.errors import InputError, one_line
from pixel160k.format import shards
from pixel160k.paths import AnyPath, open_path, read_range
from pixel160k.read import collate, folder
from pixel160k.read.samples import MEMBERS, Sample, check_cameras, check_chunk, check_history, check_members, decode
from pixel160k.read.stored import members_of_each

_EPISODE_ID = re.compile(r"[A-Za-z0-9_.-]+-[A-Za-z0-9_]+-\d+-\d+")  # its parts become names of exported files


class ShardDirectory:
    """The samples of a shard directory by episode and step.

    It is also a map-style data set for torch: `len` and `[number]` go over its samples in the shards' order, or, with
    `by="episode"`, over its episodes, each a list of samples. A `DataLoader` can shuffle it and read it with workers.

    Attributes:
        directory: where it is.
        split: the split that was asked for; None for all.
        manifest: manifest.json, with all keys of `pixel160k.format.schema.Manifest`.
        index: index.parquet as a table, one row per sample in the shards' order: `episode_id, step, status, shard, offset,
            bytes`, only of the split that was asked for; texts are dictionaries, each held once. A key follows from episode
            and step.
        episode_ids: the episodes in the shards' order.
    """

    def __init__(
        self,
        directory: str | AnyPath,
        members: Collection[str] = tuple(MEMBERS),
        chunk: int | None = None,
        split: str | None = None,
        by: Literal["step", "episode"] = "step",
        history: int = 0,
        cameras: Collection[str] = (),
    ) -> None:
        """Open a shard directory; of its tars nothing is read yet.

        Args:
            directory: output of `pixelcli build-shards`.
            members: what of its samples to decode: image, labels, prompts, actions, state.
            chunk: how many actions each sample is given; by default the whole horizon of the shards.
            split: only episodes of this split of the source, such as "train"; by default all.
            by: what `len` and `[number]` count: "step" or "episode".
            history: of how many steps before it each sample has the images too (`Sample.history`).
            cameras: further cameras whose images samples have too (`Sample.views`); `manifest["cameras"]` lists what there is.

        Raises:
            InputError: it holds no shards or those of an unknown format, its manifest or index is damaged, or a member,
                chunk, split or camera is asked for that the shards do not have.
        """
        self.directory = open_path(directory)
        self.split = split
        self.manifest = folder.read_manifest(self.directory)
        if by not in ("step", "episode"):
            raise InputError(f"by is 'step' or 'episode', not {by!r}")
        self._by = by
        self._members = check_members(members)
        self._cameras = check_cameras(cameras, self.manifest.get("cameras", ()), str(self.directory))
        check_history(history, self._members, self._cameras)
        self._history = history
        if chunk is not None:
            check_chunk(chunk, self.manifest["horizon"], str(self.directory))
        self._chunk = chunk or 0
        index = folder.read_index(self.directory, [name for name in shards.INDEX_SCHEMA.names if name != "key"])
        self.index = index if split is None else _of_split(index, split, str(self.directory))
        episodes = self.index["episode_id"].combine_chunks()
        runs = pc.run_end_encode(episodes.indices)
        self.episode_ids: list[str] = episodes.dictionary.take(runs.values).to_pylist()
        ends = runs.run_ends.to_pylist()
        self._rows = dict(zip(self.episode_ids, zip([0, *ends], ends, strict=False), strict=True))
        if len(self._rows) != len(self.episode_ids):
            fault = f"{self.directory}/index.parquet lists an episode in two places"
            raise InputError(f"{fault}; `pixelcli verify` says more")

    def __len__(self) -> int:
        """The number of samples, or of episodes with `by="episode"`."""
        return len(self.episode_ids) if self._by == "episode" else len(self.index)

    def __getitem__(self, number: int) -> Sample | list[Sample]:
        """A sample by its number in the shards' order, or an episode; negative numbers count from the end.

        Raises:
            IndexError: there are not so many.
            InputError: it cannot be read.
        """
        collate.register()
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.directory} holds {len(self)} {self._by}s, there is no number {number}")
        number %= len(self)
        if self._by == "episode":
            return self.episode(self.episode_ids[number])
        return self.sample(self.index["episode_id"][number].as_py(), self.index["step"][number].as_py())

    @property
    def splits(self) -> dict[str, list[str]]:
        """The ids of the episodes by split of the source: `train` first, the rest in the shards' order.

        Raises:
            InputError: the index lists what is no episode id.
        """
        found: dict[str, list[str]] = {}
        for episode_id in self.episode_ids:
            if not _EPISODE_ID.fullmatch(episode_id):
                fault = f"{self.directory}/index.parquet lists {episode_id!r}, which is no episode id"
                raise InputError(f"{fault}; `pixelcli verify` says more")
            found.setdefault(shards.split_of(episode_id), []).append(episode_id)
        return {split: found[split] for split in shards.order_splits(found)}

    @property
    def statistics(self) -> dict[str, Any]:
        """The data set's statistics as `pixel160k.format.actions.normalise` takes them, with OpenVLA's names.

        Raises:
            InputError: dataset_statistics.json is missing or does not hold them.
        """
        return folder.read_statistics(self.directory, self.manifest["dataset"])

    def steps(self, episode_id: str) -> list[int]:
        """The raw steps of an episode that are samples, in order.

        Raises:
            InputError: there is no such episode.
        """
        start, stop = self._range(episode_id)
        return self.index["step"][start:stop].to_pylist()

    def episode(self, episode_id: str) -> list[Sample]:
        """The samples of an episode, in order of their steps.

        Raises:
            InputError: there is no such episode, or its samples cannot be read.
        """
        encoded, history = list(self.episode_members(episode_id).items()), self._history_for(self._members)
        return [
            self._decode(dict(encoded[max(0, place - history) : place + 1]), self._members, history)
            for place in range(len(encoded))
        ]

    def sample(self, episode_id: str, step: int, members: Collection[str] | None = None) -> Sample:
        """The sample of a raw step of an episode.

        Args:
            episode_id: of the episode.
            step: the raw step.
            members: what to decode; by default what the directory was opened with.

        Raises:
            InputError: there is no such sample, or it cannot be read.
        """
        wanted = self._members if members is None else check_members(members)
        history = self._history_for(wanted)
        return self._decode(self._read(episode_id, step, history), wanted, history)

    def members(self, episode_id: str, step: int) -> dict[str, bytes]:
        """The bytes of a sample's members by their suffix (`jpg` or `png`, `mask.png`, ...), not decoded.

        Raises:
            InputError: there is no such sample, or it does not lie in the tar where the index says.
        """
        return self._read(episode_id, step, 0)[shards.sample_key(episode_id, step)]

    def episode_members(self, episode_id: str) -> dict[str, dict[str, bytes]]:
        """`members` of every sample of an episode, by their keys, in order of their steps: one reading, of a store one request.

        Raises:
            InputError: as `members` does.
        """
        steps = self.steps(episode_id)
        return self._read(episode_id, steps[-1], len(steps) - 1)

    def _history_for(self, wanted: Collection[str]) -> int:
        return self._history if self._cameras or "image" in wanted else 0

    def _decode(self, encoded: dict[str, dict[str, bytes]], wanted: Collection[str], history: int) -> Sample:
        """The sample of the last of these steps; those before it are its history."""
        key, members = encoded.popitem()
        try:
            return decode(key, members, wanted, self._chunk, history, encoded, self._cameras)
        except InputError as error:
            raise InputError(f"{self.directory}: {error}; `pixelcli verify` says more") from None

    def _read(self, episode_id: str, step: int, history: int) -> dict[str, dict[str, bytes]]:
        """The members of the sample of a step and of up to `history` before it, oldest first, by their keys: one reading."""
        start, _ = self._range(episode_id)
        steps = self.steps(episode_id)
        if step not in steps:
            raise InputError(f"{self.directory} holds the steps {steps[0]} to {steps[-1]} of {episode_id}, not {step}")
        place = steps.index(step)
        first = max(0, place - history)
        rows = self.index.slice(start + first, place + 1 - first).to_pylist()
        shard, offset, end = rows[-1]["shard"], rows[0]["offset"], rows[-1]["offset"] + rows[-1]["bytes"]
        path = self.directory / PurePosixPath(shard).name  # a name and no path, whatever the index says
        samples = [(shards.sample_key(episode_id, row["step"]), row["bytes"]) for row in rows]
        try:
            if sum(length for _, length in samples) != end - offset or rows[0]["step"] != step - (place - first):
                raise InputError("the index does not list one step after the other")
            members = members_of_each(read_range(path, offset, end - offset), samples)
        except (OSError, InputError) as error:
            fault = f"{path} cannot be read at {offset} ({one_line(error)})"
            raise InputError(f"{fault}; `pixelcli verify` says more") from None
        for of_sample in members.values():
            if missing := shards.missing_members(of_sample):
                raise InputError(f"{path} lacks {missing[0]} at {offset}; `pixelcli verify` says more")
        return members

    def image(self, episode_id: str, step: int) -> bytes:
        """The bytes of a sample's image, JPEG or PNG. Raises InputError as `members` does."""
        members = self.members(episode_id, step)
        return members[shards.image_member(members)]

    def _range(self, episode_id: str) -> tuple[int, int]:
        if episode_id not in self._rows:
            raise InputError(f"{self.directory} holds no episode {episode_id!r}")
        return self._rows[episode_id]


def _of_split(index: pa.Table, split: str, where: str) -> pa.Table:
    """The rows of an index whose episodes are of a split; InputError where there are none."""
    episodes = index["episode_id"].combine_chunks()
    splits = [shards.split_of(episode_id) for episode_id in episodes.dictionary.to_pylist()]
    if split not in splits:
        known = ", ".join(shards.order_splits(splits)) or "none at all"
        raise InputError(f"{where} holds no episode of the split {split!r}; it has {known}")
    wanted = pa.array([found == split for found in splits])
    return index.filter(wanted.take(episodes.indices)).combine_chunks()
