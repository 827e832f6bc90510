"""FSDP trains the policy that DDP trains, in the same checkpoints. Two CPU processes; it was never run on GPUs."""

import json
from pathlib import Path

import numpy as np
import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

import test_train  # noqa: E402
from forked import launch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_train import QUICK, act, observe, tiny_pi0, train, words_of  # noqa: E402

from train import checkpoints  # noqa: E402

shards, trained = test_train.shards, test_train.trained

ON_CPU = Path(__file__).with_name("fsdp_on_cpu.py")
TWO_STEPS = (*QUICK, "schedule=constant", "evaluate_every=1")
# Some batches of one process have no mask and no prompt, none of both at once: DDP then leaves parameters alone that FSDP
# goes on moving by momentum.
POINTED = ("prompts.text_only=0.5", "prompts.point=0", "prompts.line=0", "prompts.region=0")


@pytest.fixture
def sharded_and_whole(shards, tmp_path):
    """Trains four steps with DDP and with FSDP, there from two on `resumed`: the last checkpoints."""

    def run_both(*overrides, resumed=False):
        overrides = (*TWO_STEPS, *overrides)
        launch(words_of(shards, tmp_path / "whole", 4, overrides))
        for steps, more in [(2, ()), (4, ("--resume",))] if resumed else [(4, ())]:
            told = launch(words_of(shards, tmp_path / "sharded", steps, (*overrides, "fsdp=true"), *more), ON_CPU)
            assert told.count("holds 0.5 of the policy") == 2
            trains_all = "stage=pretrain" in overrides  # and from scratch, or from a checkpoint of its own
            assert "process 0: all of the frozen parameters were the same before" in told
            assert trains_all or "process 1: not all of the frozen parameters were the same before" in told
        return tmp_path / "sharded" / "checkpoint-4", tmp_path / "whole" / "checkpoint-4"

    return run_both


def history(checkpoint, key):
    return [
        entry[key]
        for entry in json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        if key in entry
    ]


def assert_alike(sharded, whole, atol):
    """Their files, their losses and their weights."""
    names = {path.relative_to(whole).as_posix().replace("optimizer.pt", "optimizer.bin") for path in whole.rglob("*")}
    assert {path.relative_to(sharded).as_posix() for path in sharded.rglob("*")} == names
    for key in ("loss", "eval_loss"):
        assert len(history(sharded, key)) == 4
        np.testing.assert_allclose(history(sharded, key), history(whole, key), atol=atol)
    for file in whole.rglob("*.safetensors"):
        first, second = load_file(sharded / file.relative_to(whole)), load_file(file)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert tensor.dtype == second[name].dtype
            torch.testing.assert_close(
                tensor, second[name], atol=atol, rtol=0, msg=lambda told, name=name: f"{name}: {told}"
            )
    torch.load(sharded / "optimizer.bin", weights_only=True)


@pytest.mark.slow
def test_a_sharded_pretraining_is_that_of_ddp(sharded_and_whole, shards):
    """With tied embeddings, which `tiny` has. What no batch of this stage uses decays under FSDP (1e-5 a step)."""
    sharded, whole = sharded_and_whole("stage=pretrain", "init=tiny", resumed=True)
    assert_alike(sharded, whole, atol=2e-4)
    policies = [checkpoints.load_policy(checkpoint) for checkpoint in (sharded, whole)]
    np.testing.assert_allclose(*(act(policy, shards) for policy in policies), atol=1e-4)


@pytest.mark.slow
def test_a_sharded_pue_is_that_of_ddp(sharded_and_whole, trained, shards, tmp_path):
    sharded, whole = sharded_and_whole("stage=pue", f"init={trained / 'cat'}", *POINTED, resumed=True)
    assert_alike(sharded, whole, atol=5e-6)
    checkpoints.merge(sharded, tmp_path / "merged")
    policies = [checkpoints.load_policy(checkpoint) for checkpoint in (tmp_path / "merged", sharded, whole)]
    merged, parts, by_ddp = (act(policy, shards) for policy in policies)
    np.testing.assert_array_equal(merged, parts)
    np.testing.assert_allclose(parts, by_ddp, atol=1e-5)
    with pytest.raises(InputError, match=r"cannot be resumed with another recipe: .*fsdp was true and is now false"):
        train(shards, tmp_path / "sharded", "stage=pue", f"init={trained / 'cat'}", resume=True)
    train(shards, tmp_path / "next", "stage=pue", f"init={tmp_path / 'sharded'}")


@pytest.mark.slow
def test_a_sharded_backbone_may_be_bfloat16(sharded_and_whole, trained):
    """Under what is trained in float32, with gradient checkpointing: as the recipe for OpenVLA has it."""
    sharded, whole = sharded_and_whole(
        "stage=pue", f"init={trained / 'cat'}", *POINTED, "dtype=bfloat16", "gradient_checkpointing=true"
    )
    assert_alike(sharded, whole, atol=8e-3)  # eight steps of the learning rate: signs of tiny gradients differ


@pytest.mark.slow
def test_a_sharded_pi0_is_that_of_ddp(sharded_and_whole, shards, tmp_path):
    tiny_pi0(tmp_path / "pi0")
    own_sizes = ("model=[]", "dtype=float32")
    train(shards, tmp_path / "cat", "stage=cat", f"init={tmp_path / 'pi0'}", *own_sizes)
    sharded, whole = sharded_and_whole("stage=pue", f"init={tmp_path / 'cat'}", *POINTED, *own_sizes)
    assert_alike(sharded, whole, atol=2e-5)
    sample = observe(shards)
    for checkpoint in (sharded, whole):
        policy = checkpoints.load_policy(checkpoint)
        assert np.isfinite(policy.predict_action(sample.image, "go", dataset="drawn", state=sample.state)).all()


@pytest.mark.slow
def test_cpus_are_refused(shards, tmp_path):
    """Where accelerate trains by DDP and does not say so."""
    with pytest.raises(AssertionError, match="Error: fsdp spreads a policy over GPUs, and there are none here"):
        launch(words_of(shards, tmp_path / "out", 2, (*TWO_STEPS, "fsdp=true")))
    assert not (tmp_path / "out" / "checkpoint-2").exists()
