"""Further cameras of episodes: their frames beside those of the main camera, and what the manifest says of them.

An episode of which a camera cannot be published is kept without that camera, since masks and prompts are the main camera's.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from annotate.sources.episode import BadImage, Episode, Published
from annotate.sources.frames import read_header
from pixel160k.errors import InputError, one_line
from pixel160k.format.shards import form_of

View = list[Published] | BadImage | None
"""The frames of a camera at an episode's valid steps; None where they are blank, or why they cannot be published."""


def check_cameras(wanted: Sequence[str], main: str, known: Sequence[str]) -> tuple[str, ...]:
    """The further cameras asked for, each once.

    Args:
        wanted: their names.
        main: the camera that was annotated.
        known: all of the source.

    Raises:
        InputError: one of them is not the source's, or is the main one; names those that there are.
    """
    further = [name for name in known if name != main]
    if wrong := [name for name in wanted if name not in further]:
        there = ", ".join(further) or "none"
        raise InputError(f"no further camera {wrong[0]!r}; beside {main}, which was annotated, this source has {there}")
    return tuple(dict.fromkeys(wanted))


def read_views(episode: Episode) -> dict[str, View]:
    """What the further cameras of an episode with valid steps show, by their names."""
    found: dict[str, View] = {}
    for camera in episode.views:
        try:
            found[camera] = episode.view(camera)
        except BadImage as error:
            found[camera] = error
    return found


def members_at(views: dict[str, View], place: int) -> dict[str, bytes]:
    """The members of the sample of a valid step, counted from 0, that hold what further cameras show."""
    images = {camera: frames[place].image for camera, frames in views.items() if isinstance(frames, list)}
    return {f"{camera}.{form_of(image)}": image for camera, image in images.items()}


class CameraCounts:
    """What the manifest says of the further cameras (`pixel160k.format.schema.Camera`), counted episode by episode."""

    def __init__(self, cameras: Sequence[str]) -> None:
        """Of no episode yet."""
        self._images: dict[str, Counter[str]] = {camera: Counter() for camera in cameras}
        self._converted: dict[str, Counter[str]] = {camera: Counter() for camera in cameras}
        self._episodes, self._blank = Counter[str](), Counter[str]()
        self._sizes: dict[str, set[tuple[int, int]]] = {camera: set() for camera in cameras}
        self._unusable: dict[str, dict[str, str]] = {camera: {} for camera in cameras}

    def add(self, episode_id: str, views: dict[str, View]) -> None:
        """Count an episode that is in the shards."""
        for camera, frames in views.items():
            if frames is None:
                self._blank[camera] += 1
            elif isinstance(frames, BadImage):
                self._unusable[camera][episode_id] = one_line(frames)
            else:
                self._episodes[camera] += 1
                self._images[camera].update(form_of(frame.image) for frame in frames)
                self._converted[camera].update(frame.was for frame in frames if frame.was)
                header = read_header(frames[0].image)
                self._sizes[camera].add((header.height, header.width))

    def merge(self, counted: dict[str, dict[str, Any]]) -> None:
        """Add what `summary` said of other episodes."""
        for camera, of in counted.items():
            self._episodes[camera] += of["episodes"]
            self._blank[camera] += of["blank"]
            self._images[camera].update(of["images"])
            self._converted[camera].update(of["converted"])
            self._sizes[camera] |= {(height, width) for height, width in of["sizes"]}
            self._unusable[camera] |= of["unusable"]

    def summary(self) -> dict[str, dict[str, Any]]:
        """By camera, as JSON."""
        return {
            camera: {
                "episodes": self._episodes[camera],
                "images": dict(sorted(self._images[camera].items())),
                "sizes": [list(size) for size in sorted(self._sizes[camera])],
                "converted": dict(sorted(self._converted[camera].items())),
                "blank": self._blank[camera],
                "unusable": self._unusable[camera],
            }
            for camera in self._images
        }


def total_counts(cameras: Sequence[str], summaries: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the files' summaries say of the cameras together."""
    counts = CameraCounts(cameras)
    for summary in summaries:
        counts.merge(summary["cameras"])
    return counts.summary()
