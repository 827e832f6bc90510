"""Which policy a text names: a checkpoint of ours or of OpenVLA, a server, or one that learned nothing."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pixel160k.packages import require_packages
from policies.base import Policy
from policies.simple import RandomPolicy

RANDOM, TINY = "random", "tiny"
SHIPPED = Path(__file__).parent / TINY  # tiny_models/policy.py trains it
KEY_VARIABLE = "PIXELVLA_API_KEY"  # what a server wants of its clients


@contextmanager
def open_policy(name: str, device: str = "cpu", dataset: str | None = None, seed: int = 0) -> Iterator[Policy]:
    """Open a policy for as long as the block runs.

    Args:
        name: "random"; "tiny", the policy that ships, which knows one task of the simulator; the address of a server, as
            ws://127.0.0.1:8000 (openpi's protocol) or http://127.0.0.1:8000/act (OpenVLA's); else a hub id, or the folder of a
            checkpoint or of a run. An OpenVLA checkpoint acts as it is, by its own action tokens.
        device: of a checkpoint, such as "cuda:1".
        dataset: whose robot acts: a key of the statistics of a checkpoint, or of those of a server.
        seed: of a policy that draws.

    Raises:
        InputError: it cannot be loaded, or there is no server.
    """
    if name == RANDOM:
        yield RandomPolicy(seed)
    elif "://" in name:
        require_packages("serve", "msgpack", "websockets")
        from policies.remote import ActPolicy, OpenpiPolicy

        key = os.environ.get(KEY_VARIABLE, "")
        act = name.startswith("http")
        with closing(ActPolicy(name, dataset, api_key=key) if act else OpenpiPolicy(name, key, dataset)) as server:
            yield server
    elif name == TINY:
        import torch

        from policies.checkpoint import CheckpointPolicy

        yield CheckpointPolicy.load(SHIPPED, device, dataset, torch.float32)  # stored in half of it
    else:
        from policies.checkpoint import CheckpointPolicy
        from policies.openvla import OpenVLAPolicy, is_openvla

        load = OpenVLAPolicy.load if is_openvla(name) else CheckpointPolicy.load
        yield load(name, device, dataset)


def device_name(device: str) -> str:
    """What a device is called: "cpu", or the name of the GPU."""
    if not device.startswith("cuda"):
        return device
    import torch

    try:
        return torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError):  # there is none such, which loading a policy says
        return device
