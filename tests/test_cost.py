"""The account of a run: FLOPs as torch counts them, and sums that go on after a resume."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from model.policy import PixelVLA  # noqa: E402
from model.processor import Observation  # noqa: E402
from model.settings import PRESETS  # noqa: E402
from model.tokenizer import byte_tokenizer  # noqa: E402
from model.weights import without_memory  # noqa: E402
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


@pytest.mark.parametrize(
    ("preset", "stage", "patch", "token", "read", "query", "mark"),
    [
        ("openvla-7b", "pretrain", 4_547_404_800, 38_856_032_256, 38_856_032_256, 44_083_200, 421_724_544),
        ("openvla-7b", "cat", 1_515_801_600, 12_952_010_752, 25_904_021_504, 44_083_200, 281_149_696),
        ("openvla-7b", "pue", 1_515_801_600, 26_383_745_024, 26_383_745_024, 44_083_200, 421_724_544),
        ("pi0", "pretrain", 2_484_642_816, 11_890_851_840, 11_890_851_840, 1_893_967_872, 135_451_008),
        ("pi0", "cat", 828_214_272, 3_963_617_280, 7_927_234_560, 1_271_048_192, 90_300_672),
        ("pi0", "pue", 828_214_272, 8_162_574_336, 8_162_574_336, 1_354_213_376, 135_451_008),
    ],
)
def test_flops_of_the_real_sizes(preset, stage, patch, token, read, query, mark):
    """By hand from the sizes; `read` is what a query costs in the language model, through which its gradient flows."""
    policy = without_memory(partial(PixelVLA, PRESETS[preset], byte_tokenizer(), {}))
    with torch.device("meta"):
        stages.prepare(policy, load_recipe("tiny-sample", (f"stage={stage}",)))
    count = FlopCount(policy)
    batch = SimpleNamespace(
        input_ids=torch.zeros(2, 300),
        token_count=2 * 290,
        mask_used=torch.ones(2, 1),
        prompt_used=torch.ones(2, 2),
    )
    assert count(batch) == patch * 2 * 256 + token * 2 * 290 + (read + query) * 2 * 8 + mark * 6
    alone = batch.__dict__ | {"mask_used": torch.zeros(2, 0), "prompt_used": torch.zeros(2, 0)}
    assert count(batch) - count(SimpleNamespace(**alone)) == mark * 6


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
