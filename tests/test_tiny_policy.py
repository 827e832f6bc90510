"""The policy that ships: it is what its recipe says, and it goes where it is pointed."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

from pixel160k.errors import InputError
from pixel160k.format.prompts import point
from policies.base import Seen
from policies.checkpoint import CheckpointPolicy
from policies.choose import SHIPPED, TINY, open_policy
from simulation.two_alike import INSTRUCTION, TARGETS


def test_the_shipped_policy_acts_in_float32():
    """A click elsewhere is another action; it is stored in half precision, and small."""
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    state = np.zeros(8, np.float32)
    with open_policy(TINY) as policy:
        left, right = policy.act([Seen(image, INSTRUCTION, (), [point(x, 128.5)], None, state) for x in (60.5, 190.5)])
    assert left.shape == (8, 7) and left.dtype == np.float32 and np.abs(left - right).max() > 0.01
    assert (SHIPPED / "model.safetensors").stat().st_size < 6e6 and (SHIPPED / "README.md").is_file()


def test_whose_robot_acts_is_known_before_weights_are_read(tmp_path):
    policy = shutil.copytree(SHIPPED, tmp_path / "policy", ignore=shutil.ignore_patterns("*.safetensors"))
    ((name, known),) = json.loads((policy / "dataset_statistics.json").read_text()).items()
    (policy / "dataset_statistics.json").write_text(json.dumps({name: known, "other": known}))
    for dataset, said in (
        (None, f"statistics of {name}, other: name whose"),
        ("bridge_orig", "name whose"),
        ("other", "neither"),
    ):
        with pytest.raises(InputError, match=said), open_policy(str(policy), dataset=dataset):
            pass


def test_a_full_gpu_is_one_line():
    import torch

    class Full:
        def act(self, observations):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")

    seen = Seen(np.zeros((4, 4, 3), np.uint8), INSTRUCTION)
    with pytest.raises(InputError, match=r"does not hold 2 episodes at once \(CUDA out of memory\): lower --batch"):
        CheckpointPolicy(Full(), "here").act([seen, seen])


@pytest.mark.slow
def test_a_click_leads_the_shipped_policy_in_closed_loop(tmp_path):
    pytest.importorskip("libero", reason="needs the extra [sim]")
    from evaluation.closed_loop import results
    from evaluation.closed_loop.run import evaluate
    from evaluation.closed_loop.settings import LiberoSettings

    held_out = {"two_alike": True, "tasks": [0], "first_state": 40, "episodes": 1}
    pace = {"hz": 5, "replan": 4, "most_steps": 100, "reflections": False}
    settings = LiberoSettings.load(values={**held_out, **pace, "prompts": ["point", "wrong_point"]})
    evaluate(TINY, settings, tmp_path)
    touched = {row.condition: (row.first_touch, row.meant) for row in results.read(tmp_path)[0]}
    meant = touched["point"][1]
    (other,) = set(TARGETS) - {meant}
    assert touched == {"point": (meant, meant), "wrong_point": (other, meant)}
