"""Shards to be exported: the sample, of which one episode has masks of both classes at every step."""

import io
import json
import tarfile

import numpy as np

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from annotate.sources.sample import default_directory
from pixel160k.format import masks
from pixel160k.format.table import read_part
from pixel160k.format.tracks import StepMasks, write_tracks


def sample_shards(path):
    """Annotate the sample by motion, draw tracks for its first episode, and build shards in `path / "shards"`."""
    annotate("sample", default_directory(), path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    part = path / "annotations" / "part-train-00000.parquet"
    (path / "annotations" / "tracks").mkdir()
    write_tracks(path / "annotations" / "tracks" / part.name, drawn_tracks(read_part(part)[0]))
    build_shards(path / "annotations", path / "shards", Execution(), include="all")
    return path / "shards"


def drawn_tracks(row):
    """A square object that the square gripper covers more and more; on the last step neither is to be seen."""

    def square(x, y, side):
        mask = np.zeros((row.image_height, row.image_width), bool)
        mask[y : y + side, x : x + side] = True
        return masks.encode(mask)

    last = row.num_steps - 1
    return [
        StepMasks(
            row.episode_id,
            step,
            square(100, 90, 0 if step == last else 20),
            step < last,
            square(60 + step, 80, 0 if step == last else 30),
            step < last,
        )
        for step in range(row.num_steps)
    ]


def raw_samples(directory):
    """Every sample of a shard directory in order: its key, members as bytes, and `metadata`, `action`, `state` decoded."""
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            sample = {}
            for member in tar:
                key, _, suffix = member.name.partition(".")
                sample[suffix] = tar.extractfile(member).read()
                if len(sample) == 5:
                    yield sample | {
                        "key": key,
                        "metadata": json.loads(sample["json"]),
                        "action": np.load(io.BytesIO(sample["action.npy"]))[0],
                        "state": np.load(io.BytesIO(sample["state.npy"])),
                    }
                    sample = {}
