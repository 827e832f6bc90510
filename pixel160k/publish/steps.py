"""The samples that every exporter reads. All of a sample is decoded except its image, whose bytes pass through."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pixel160k.errors import InputError
from pixel160k.format.metadata import Metadata
from pixel160k.format.shards import image_member, sample_key
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.samples import decode


class Step(NamedTuple):
    """One step of an episode.

    Attributes:
        key: the sample's key.
        metadata: the JSON member.
        image_name: file name of the image, `{key}.jpg` or `{key}.png`.
        image, mask_png: the bytes of image and label image.
        labels: the label image, uint8 (height, width).
        action: float32 (7,) in robot units, this step's alone.
        state: float32 (S,).
    """

    key: str
    metadata: Metadata
    image_name: str
    image: bytes
    mask_png: bytes
    labels: np.ndarray
    action: np.ndarray
    state: np.ndarray


def read_episodes(shards: ShardDirectory, progress: Callable[[int], None]) -> Iterator[list[Step]]:
    """Each episode as the list of its steps, split by split as `shards.splits` has them; memory holds one episode.

    Args:
        shards: where they are.
        progress: called with the number of samples read so far.

    Raises:
        InputError: a sample is missing, damaged, or of another episode than the index says.
    """
    done = 0
    for episode_id in itertools.chain(*shards.splits.values()):
        episode = []
        for step in shards.steps(episode_id):
            members = shards.members(episode_id, step)
            sample = decode(sample_key(episode_id, step), members, ("labels", "actions", "state"))
            if sample.episode_id != episode_id:
                raise InputError(f"{sample.key} says that it is of {sample.episode_id}; `pixelcli verify` says more")
            assert sample.labels is not None and sample.actions is not None and sample.state is not None  # asked for
            name = image_member(members)
            images = f"{sample.key}.{name}", members[name], members["mask.png"]
            episode.append(Step(sample.key, sample.metadata, *images, sample.labels, sample.actions[0], sample.state))
        done += len(episode)
        progress(done)
        yield episode
