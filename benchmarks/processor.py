"""What a policy's inputs cost: milliseconds of one core for each observation, for acting and for training.

    OMP_NUM_THREADS=1 python benchmarks/processor.py [--rounds 20]

An image of 256 x 256 with a mask and a point, of OpenVLA's size; decoding is not part of it. For training the view is a
random crop and the colours change. Processor time is counted, so that what else runs on the machine matters little.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from model.processor import Observation, Processor
from model.settings import PRESETS
from model.tokenizer import byte_tokenizer
from pixel160k.format.prompts import point
from pixel160k.geometry import colour_jitter, random_crop_view

BATCH, SIDE = 8, 256


def milliseconds(function: Callable[[], object], rounds: int) -> float:
    """The median of processor time for one of `BATCH` observations."""
    function()
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        function()
        spent.append(time.process_time() - began)
    return 1000 * statistics.median(spent) / BATCH


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    settings, random = PRESETS["openvla-7b"], np.random.default_rng(0)
    process = Processor(settings, byte_tokenizer(), {})
    image = random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[50:90, 60:120] = True

    def observe(image: np.ndarray) -> Observation:
        return Observation(image, "pick up the black bowl", [mask], [point(60.5, 60.5)])

    def train() -> object:
        size = settings.backbone.vision.image_size
        views = [random_crop_view(SIDE, SIDE, size, generator=random) for _ in range(BATCH)]
        return process([observe(colour_jitter(image, random)) for _ in range(BATCH)], views)

    print(f"acting:   {milliseconds(lambda: process([observe(image)] * BATCH), rounds):.2f} ms an observation")
    print(f"training: {milliseconds(train, rounds):.2f} ms an observation, with a random crop and other colours")


if __name__ == "__main__":
    main()
