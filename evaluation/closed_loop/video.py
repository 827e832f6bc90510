"""The film of an episode: what the camera saw, with what marked the target drawn in; H.264, which browsers play."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evaluation.closed_loop.episode import FILM_EVERY, Film
from evaluation.closed_loop.pointing import Shown
from pixel160k.errors import InputError
from pixel160k.owner import temporary_name
from pixel160k.show.painting import paint
from simulation.environment import CONTROL_HZ


@contextmanager
def film(file: Path) -> Iterator[Film]:
    """Yield what takes the images of an episode; `file`, an MP4, is there when the block ends, if there was an image.

    Raises:
        InputError: it could not be written whole, as on a full disk; ffmpeg says why on stderr.
    """
    import imageio_ffmpeg

    unfinished, writer, images = file.with_name(temporary_name(file.name)), None, 0

    def take(image: np.ndarray, shown: Shown) -> None:
        nonlocal writer, images
        picture = paint(image, *shown)
        if writer is None:
            size = (picture.shape[1], picture.shape[0])
            writer = imageio_ffmpeg.write_frames(str(unfinished), size, fps=CONTROL_HZ // FILM_EVERY, quality=6)
            writer.send(None)
        try:
            writer.send(np.ascontiguousarray(picture))
        except OSError:
            raise _not_whole(file) from None
        images += 1

    try:
        yield take
        if writer is not None:
            writer.close()
            if _images_in(unfinished) != images:  # nobody says how ffmpeg ended
                raise _not_whole(file)
            os.replace(unfinished, file)
    finally:
        if writer is not None:
            writer.close()
        unfinished.unlink(missing_ok=True)


def _images_in(file: Path) -> int:
    """How many images a film has; 0 of one that cannot be read."""
    import imageio_ffmpeg

    try:
        return int(imageio_ffmpeg.count_frames_and_secs(file)[0])
    except RuntimeError:
        return 0


def _not_whole(file: Path) -> InputError:
    return InputError(f"the film {file} was not written whole; where the disk has room again, the same command goes on")
