"""Loaders that want an environment of their own, for benchmarks/loading.py, which starts this with that environment's Python.

    python loading_others.py lerobot FOLDER        # an export of `pixelcli export --to lerobot`
    python loading_others.py streaming FOLDER      # shards of mosaicml-streaming,
    python loading_others.py write-streaming SHARDS FOLDER    # made by this from those of a shard directory

Each line on stdin, `image` or `all`, asks for one epoch in random order; the answer is one line of JSON with the CPU seconds
that it took, the samples, and the memory in kB: held after imports and one sample, and at most. Nothing of ours is imported.
"""

import importlib.metadata
import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIZE = 224


def with_lerobot(folder: str) -> Callable[[bool], Iterator[Any]]:
    """LeRobot's own data set. It decodes all that a frame has, whatever is asked for, to tensors of floats."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    dataset = LeRobotDataset("local/exported", root=folder)

    def epoch(everything: bool) -> Iterator[Any]:
        for place in torch.randperm(len(dataset)).tolist():
            frame = dataset[place]
            image = frame["observation.images.image"].permute(1, 2, 0).numpy()
            yield cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA), frame

    return epoch


def with_streaming(folder: str) -> Callable[[bool], Iterator[Any]]:
    """mosaicml-streaming, with the decoders that the pipeline of plain webdataset has."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=1)

    def epoch(everything: bool) -> Iterator[Any]:
        for sample in dataset:
            image = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR_RGB)
            assert image is not None
            image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            if not everything:
                yield image
                continue
            labels = np.asarray(Image.open(io.BytesIO(sample["mask"])))
            labels = cv2.resize(labels, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
            arrays = [np.load(io.BytesIO(sample[name]), allow_pickle=False) for name in ("action", "state")]
            yield image, labels, json.loads(sample["json"]), *arrays

    return epoch


def write_streaming(shards: str, folder: str) -> None:
    """Write the samples of a shard directory as shards of mosaicml-streaming, the very bytes of their members."""
    from streaming import MDSWriter

    names = {"jpg": "jpg", "mask.png": "mask", "json": "json", "action.npy": "action", "state.npy": "state"}
    with MDSWriter(out=folder, columns=dict.fromkeys(names.values(), "bytes")) as writer:
        for path in sorted(Path(shards).glob("*.tar")):
            sample: dict[str, bytes] = {}
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    sample[names[member.name.partition(".")[2]]] = file.read()
                    if len(sample) == len(names):
                        writer.write(sample)
                        sample = {}


def kilobytes(what: str) -> int:
    """As in benchmarks/loading.py."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0])


def main() -> None:
    """Write, or answer one line for each on stdin."""
    what, folder, *rest = sys.argv[1:]
    cv2.setNumThreads(1)
    if what == "write-streaming":
        write_streaming(folder, rest[0])
        return
    package = {"lerobot": "lerobot", "streaming": "mosaicml-streaming"}[what]
    epoch = {"lerobot": with_lerobot, "streaming": with_streaming}[what](folder)
    next(epoch(False))
    before = kilobytes("VmRSS")
    for line in sys.stdin:
        began, samples = time.process_time(), 0
        for _ in epoch(line.strip() == "all"):
            samples += 1
        found = {"seconds": time.process_time() - began, "samples": samples, "memory": [before, kilobytes("VmHWM")]}
        print(json.dumps(found | {"version": importlib.metadata.version(package)}), flush=True)


if __name__ == "__main__":
    main()
