"""The samples that every exporter reads. All of a sample is decoded except its image, whose bytes pass through."""

import io
import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from pixel160k.errors import InputError
from pixel160k.format.metadata import Metadata
from pixel160k.format.shards import camera_member, image_member
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
        views: of each further camera that the episode has, file name and bytes of its image.
    """

    key: str
    metadata: Metadata
    image_name: str
    image: bytes
    mask_png: bytes
    labels: np.ndarray
    action: np.ndarray
    state: np.ndarray
    views: dict[str, tuple[str, bytes]]

    def view(self, camera: str, size: tuple[int, int]) -> tuple[str, bytes]:
        """File name and bytes of a further camera's image; a black one of this height and width where there is none."""
        return self.views.get(camera) or (f"{self.key}.{camera}.png", _black_png(*size))


@cache
def _black_png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


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
        for key, members in shards.episode_members(episode_id).items():
            sample = decode(key, members, ("labels", "actions", "state"))
            if sample.episode_id != episode_id:
                raise InputError(f"{sample.key} says that it is of {sample.episode_id}; `pixelcli verify` says more")
            assert sample.labels is not None and sample.actions is not None and sample.state is not None  # asked for
            name = image_member(members)
            images = f"{sample.key}.{name}", members[name], members["mask.png"]
            named = ((camera, camera_member(members, camera)) for camera in shards.manifest.get("cameras", ()))
            views = {camera: (f"{sample.key}.{member}", members[member]) for camera, member in named if member}
            arrays = sample.labels, sample.actions[0], sample.state
            episode.append(Step(sample.key, sample.metadata, *images, *arrays, views))
        done += len(episode)
        progress(done)
        yield episode
