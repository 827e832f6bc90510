"""The film of an episode: what the camera saw, with what marked the target drawn in; H.264, which browsers play."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evaluation.closed_loop.episode import FILM_EVERY, Film
from evaluation.closed_loop.pointing import Shown
from pixel160k.owner import temporary_name
from pixel160k.show.painting import paint
from simulation.environment import CONTROL_HZ


@contextmanager
def film(file: Path) -> Iterator[Film]:
    """Yield what takes the images of an episode; `file`, an MP4, is there when the block ends, if there was an image.

    Raises:
        InputError: the extra [sim] is not installed.
    """
    import imageio_ffmpeg

    unfinished, writer = file.with_name(temporary_name(file.name)), None

    def take(image: np.ndarray, shown: Shown) -> None:
        nonlocal writer
        picture = paint(image, *shown)
        if writer is None:
            size = (picture.shape[1], picture.shape[0])
            writer = imageio_ffmpeg.write_frames(str(unfinished), size, fps=CONTROL_HZ // FILM_EVERY, quality=6)
            writer.send(None)
        writer.send(np.ascontiguousarray(picture))

    try:
        yield take
        if writer is not None:
            writer.close()
            os.replace(unfinished, file)
    finally:
        if writer is not None:
            writer.close()
        unfinished.unlink(missing_ok=True)
