"""The account of a run: FLOPs as torch counts them, and sums that go on after a resume."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from model.policy import PixelVLA  # noqa: E402
from model.processor import Observation  # noqa: E402
from pixel160k.format.prompts import point  # noqa: E402
from train import stages  # noqa: E402
from train.cost import Account, FlopCount  # noqa: E402
from train.settings import load_recipe  # noqa: E402


@pytest.mark.parametrize("stage", ["pretrain", "cat", "pue"])
def test_flops_are_those_that_torch_counts(stage):
    """But for what `FlopCount` leaves out: attention's own products, which weigh more in a model as small as tiny."""
    policy = PixelVLA.start("tiny", {}).train()
    stages.prepare(policy, load_recipe("tiny-sample", (f"stage={stage}",)))
    image, mask = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), bool)
    shown = {"masks": [mask], "prompts": [point(3, 4)]} if stage == "pue" else {}
    batch = policy.processor([Observation(image, "pick up the black bowl", **shown) for _ in range(2)])
    batch = batch._replace(actions=torch.zeros(2, 8, 7), action_mask=torch.ones(2, 8, dtype=torch.bool))
    with FlopCounterMode(display=False) as counter:
        policy(batch).loss.backward()
    attention = sum(
        flops
        for name, flops in counter.get_flop_counts()["Global"].items()
        if "attention" in str(name) or "bmm" in str(name)
    )
    assert FlopCount(policy)(batch) == pytest.approx(counter.get_total_flops() - attention, rel=0.06)


def test_an_account_goes_on():
    account = Account(processes=2)
    account.samples, account.tokens, account.flops, account.waited = 10, 300, 5 * 10**15, 0.0
    resumed, state = Account(processes=2), account.state_dict()
    resumed.load_state_dict(state)
    assert resumed.so_far() | {"cpu_process_hours": 0, "waited_for_data": 0} == {
        "samples": 20, "tokens": 600, "petaflops": 10.0, "waited_for_data": 0, "cpu_process_hours": 0
    }  # fmt: skip
    assert resumed.seconds >= state["seconds_before"]
    assert "20 samples, 600 tokens, 10 PFLOP" in resumed.summary() and "21,500 A100 hours" in resumed.summary()
