"""Samples as they stand in the tars: bytes of image and mask untouched, episode by episode, for those who pass them on."""

import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RawSample:
    """One step.

    Attributes:
        key: the sample's key.
        about: the JSON member.
        jpeg: the source's own bytes.
        mask_png: the indexed label image, encoded.
        action: float32 (7,), this step's action in robot units.
        state: float32 (S,).
    """

    key: str
    about: dict[str, Any]
    jpeg: bytes
    mask_png: bytes
    action: np.ndarray
    state: np.ndarray


class ShardReader:
    """Reads a shard directory once, front to back; memory holds one episode."""

    def __init__(self, directory: Path, manifest: dict[str, Any], progress: Callable[[int], None]) -> None:
        """Nothing is read yet; `progress` will be called with the number of samples read so far."""
        self.directory, self.manifest = directory, manifest
        self._progress = progress
        self._read = 0

    def shards(self) -> Iterator[tuple[str, Iterator[list[RawSample]]]]:
        """Each shard's file name with its episodes.

        Raises:
            ValueError: the shards hold fewer or more samples than the manifest says.
        """
        for shard in self.manifest["shards"]:
            before = self._read
            yield shard["name"], self._episodes(shard["name"])
            if self._read - before != shard["samples"]:
                raise ValueError(
                    f"{shard['name']} holds {self._read - before} samples, the manifest says {shard['samples']}; "
                    "see `pixelcli verify`"
                )

    def episodes(self) -> Iterator[list[RawSample]]:
        """The episodes of all shards, each the list of its samples in order of their steps."""
        for _, episodes in self.shards():
            yield from episodes

    def _episodes(self, name: str) -> Iterator[list[RawSample]]:
        for _, samples in itertools.groupby(self._samples(name), key=lambda sample: sample.about["episode_id"]):
            episode = list(samples)
            self._read += len(episode)
            yield episode
            self._progress(self._read)

    def _samples(self, name: str) -> Iterator[RawSample]:
        import webdataset

        path = self.directory / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; see `pixelcli verify`")
        for members in webdataset.WebDataset(str(path), shardshuffle=False):
            try:
                arrays = (io.BytesIO(members[suffix]) for suffix in ("action.npy", "state.npy"))
                chunk, state = (np.load(array, allow_pickle=False) for array in arrays)
                about = json.loads(members["json"])
                yield RawSample(members["__key__"], about, members["jpg"], members["mask.png"], chunk[0], state)
            except (KeyError, ValueError, IndexError, EOFError) as error:
                raise ValueError(
                    f"{name}: sample {members.get('__key__')} is damaged ({error}); see `pixelcli verify`"
                ) from None
