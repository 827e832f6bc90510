"""What the tests of serving share: a policy of no weights that does as its instruction says, one of few, and a server in a thread."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from test_policy import STATISTICS

from model.policy import PixelVLA
from model.processor import Processor
from model.settings import PRESETS, ModelSettings
from model.tokenizer import byte_tokenizer
from serve.server import PolicyServer, bind
from serve.settings import ServeSettings

SMALLEST = ["backbone.vision.image_size=64", "backbone.vision.patch_size=16", "backbone.language.num_hidden_layers=2"]


def small_policy():
    """A random policy that acts in milliseconds."""
    torch.manual_seed(0)
    settings = ModelSettings.load(base=PRESETS["tiny"].model_dump(), overrides=SMALLEST)
    return PixelVLA(settings, byte_tokenizer(), STATISTICS).eval()


class Stub:
    """Opens the gripper, closes it on a black image, and moves by the first pixel; "break" and "nan" do what they say, "slow" waits for
    `release`, "late" closes from the fifth action on."""

    def __init__(self):
        self.acted = []  # the instructions, batch by batch
        self.told = []  # all observations
        self.busy, self.release = threading.Event(), threading.Event()
        self.settings = SimpleNamespace(chunk=8, reads_state=False)
        self.processor = SimpleNamespace(
            statistics=STATISTICS, statistics_of=lambda name: Processor.statistics_of(self.processor, name)
        )

    def act(self, observations):
        self.acted.append([observation.instruction for observation in observations])
        self.told += observations
        for observation in observations:
            self.processor.statistics_of(observation.dataset)
        if any(observation.instruction == "break" for observation in observations):
            raise KeyError("what only our log may tell")
        if any(observation.instruction == "slow" for observation in observations):
            self.busy.set()
            self.release.wait(60)
        actions = np.full((len(observations), 8, 7), 1, np.float32)
        for row, observation in enumerate(observations):
            actions[row, :, 6] = observation.image.any()
            actions[row, 4:, 6] *= observation.instruction != "late"
            actions[row, :, 0] = np.nan if observation.instruction == "nan" else observation.image[0, 0, 0] / 255
        return actions


@contextmanager
def serving(policy, key="", compiled=False, pointing=None, **settings):
    """A server in a thread; ends with it."""
    listener = bind("127.0.0.1", 0)
    server = PolicyServer(policy, listener, ServeSettings(**settings), None, key, compiled, "test", pointing)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
