"""What a step takes of a GPU's memory, counted without running it; gradient checkpointing and compiled blocks change no number."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

from test_pi0 import SETTINGS as PI0_SIZES  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: E402

from model.policy import PixelVLA  # noqa: E402
from model.processor import Observation  # noqa: E402
from model.settings import PRESETS, ModelSettings  # noqa: E402
from model.tokenizer import byte_tokenizer  # noqa: E402
from model.weights import without_memory  # noqa: E402
from pixel160k.format.prompts import point  # noqa: E402
from train import stages  # noqa: E402
from train.memory import GIB, StepMemory, choose_checkpointing, kept_bytes, step_memory  # noqa: E402
from train.settings import load_recipe  # noqa: E402


@pytest.mark.parametrize("stage", ["pretrain", "pue"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_expected_of_a_sample_is_what_autograd_keeps_of_it(stage, dtype):
    settings = load_recipe("tiny-sample", (f"stage={stage}", f"dtype={dtype}"))
    policy = PixelVLA.start("tiny", {}).train()
    if stage == "pue" and dtype == "bfloat16":
        policy.backbone.bfloat16()
    stages.prepare(policy, settings)
    mask, prompts = np.ones((64, 64), bool), [point(3, 4)]
    seen = [
        Observation(np.zeros((64, 64, 3), np.uint8), text, [mask], prompts) for text in ("a cup", "a much longer text")
    ]

    def kept(samples):
        batch = policy.processor(seen * (samples // 2))
        batch = batch._replace(actions=torch.zeros(samples, 8, 7), action_mask=torch.ones(samples, 8, dtype=torch.bool))
        with kept_bytes(policy) as kept, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = policy(batch).loss
        loss.backward()
        return sum(kept.values())

    length = policy.processor(seen).input_ids.shape[1]
    expected = step_memory(policy, settings, length, processes=1)
    assert expected.sample == pytest.approx((kept(4) - kept(2)) / 2, rel=0.1)
    policy.backbone.use_gradient_checkpointing()
    least = (kept(4) - kept(2)) / 2
    assert least < expected.checkpointed < expected.sample


def test_adapters_cast_nothing_to_float32_and_back():
    """Under autocast, which training always is: the same numbers to the bit, in fewer bytes."""
    settings = load_recipe("tiny-sample", ("stage=pue", "dtype=bfloat16"))
    policy = PixelVLA.start("tiny", {}).train()
    policy.backbone.bfloat16()
    stages.prepare(policy, settings)
    layers = stages.lora_layers(policy).values()
    for layer in layers:  # they begin as zeros, under which all that comes before has gradients of zero
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    batch = policy.processor(
        [Observation(np.zeros((64, 64, 3), np.uint8), text) for text in ("a cup", "a longer text")]
    )
    batch = batch._replace(actions=torch.zeros(2, 8, 7), action_mask=torch.ones(2, 8, dtype=torch.bool))

    def learn():
        policy.zero_grad()
        with kept_bytes(policy) as kept, torch.autocast("cpu", torch.bfloat16):
            output = policy(batch)
        output.loss.backward()
        gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
        return output.actions, gradients, sum(kept.values())

    actions, gradients, kept = learn()
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    expected_actions, expected, kept_before = learn()
    assert torch.equal(actions, expected_actions) and gradients.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())
    assert sum(".lora_A" in name and gradient.any().item() for name, gradient in gradients.items()) == len(layers)
    assert kept < 0.95 * kept_before, (kept, kept_before)


def test_what_is_expected_at_the_paper_s_size_is_what_a_gpu_took():
    """openvla-7b with LoRA on an H200, 308 tokens: 32.1 GiB at batch 8, 47.8 at 16. Here with two of its 32 layers."""
    changes = [f"backbone.vision.{tower}.depth=2" for tower in ("dino", "siglip")]
    changes += ["backbone.vision.levels=[0]", "backbone.language.num_hidden_layers=2"]
    sizes = ModelSettings.load(base=PRESETS["openvla-7b"].model_dump(), overrides=changes)
    policy = without_memory(partial(PixelVLA, sizes, byte_tokenizer(), {})).bfloat16()
    settings = load_recipe("pue-openvla")
    with torch.device("meta"):
        stages.prepare(policy, settings)
    policy.to_empty(device="cpu")  # places, which nobody touches

    def blocks():
        memory = step_memory(policy, settings, length=300, processes=1)
        return 32 * (memory.sample - memory.checkpointed) / GIB  # of two blocks the one that is not kept

    now = blocks()
    for layer in stages.lora_layers(policy).values():
        layer.cast_input_dtype_enabled = True  # as when it was measured
    assert blocks() == pytest.approx((47.8 - 32.1) / 8, rel=0.15)
    assert now < 0.9 * blocks()  # 1.50 and 1.80 GiB a sample


def test_checkpointing_is_chosen_where_a_step_does_not_fit():
    """openvla-7b at batch 16 took 47.8 GiB without it and 18.8 with it, on an H200."""
    settings = load_recipe("tiny-sample", ("gradient_checkpointing=auto", "batch_size=16"))
    memory = StepMemory(weights=16 * GIB, sample=2 * GIB, checkpointed=GIB // 5)
    chosen, told = choose_checkpointing(memory, settings, 80 * GIB)
    assert not chosen and "off (auto): a step is expected to take 48.0 of 80.0 GiB" in told
    chosen, told = choose_checkpointing(memory, settings, 48 * GIB)
    assert chosen and "on (auto): a step is expected to take 19.2 of 48.0 GiB" in told and "without it 48.0" in told


def small_policy(kind, *overrides):
    """A policy prepared for `pue` whose adapters do something, and batches of different lengths for it."""
    settings = load_recipe("tiny-sample", ("stage=pue", *overrides))
    changes = ["backbone.vision.image_size=48", "backbone.vision.patch_size=16"]
    if kind == "pi0":
        policy = PixelVLA(
            ModelSettings(backbone=PI0_SIZES.model_copy(update={"vocab_size": 320})), byte_tokenizer(), PROPRIO
        )
    else:
        policy = PixelVLA.start("tiny", {}, changes)
    torch.manual_seed(0)
    stages.prepare(policy.train(), settings)
    for name, parameter in policy.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    batches = []
    for texts in (("a cup", "a much longer text"), ("a bowl", "the bowl on the left"), ("one", "two")):
        state = np.zeros(7, np.float32) if kind == "pi0" else None
        seen = [
            Observation(np.full((64, 64, 3), 90, np.uint8), text, [np.ones((64, 64), bool)], [point(3, 4)], state, "d")
            for text in texts
        ]
        batch = policy.processor(seen)
        batches.append(batch._replace(actions=torch.zeros(2, 8, 7), action_mask=torch.ones(2, 8, dtype=torch.bool)))
    return policy, batches


PROPRIO = {"d": {"action": {}, "proprio": {"mean": [0.0] * 7, "std": [1.0] * 7}}}


def learn(policy, batch):
    """The loss of a batch and the gradients of all that is trained, with the bytes that were kept between the passes."""
    policy.zero_grad()
    with kept_bytes(policy) as kept:
        loss = policy(batch).loss
    loss.backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("kind", ["openvla", "pi0"])
def test_gradient_checkpointing_gives_the_same_gradients_in_less_memory(kind):
    policy, batches = small_policy(kind)
    expected = learn(policy, batches[0])
    policy.backbone.use_gradient_checkpointing()
    found = learn(policy, batches[0])
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-5, atol=1e-7)
    assert found[2] < 0.9 * expected[2], (found[2], expected[2])
    policy.backbone.use_gradient_checkpointing(False)
    assert learn(policy, batches[0])[2] == expected[2]


def test_compiled_blocks_learn_the_same_and_are_compiled_once_a_class():
    policy, batches = small_policy("openvla")
    names = policy.state_dict().keys()
    expected = [learn(policy, batch)[:2] for batch in batches]
    counters.clear()
    stages.compile_blocks(policy, backend="aot_eager")
    assert policy.state_dict().keys() == names
    for batch, wanted in zip(batches, expected, strict=True):
        torch.testing.assert_close(learn(policy, batch)[:2], wanted, rtol=1e-4, atol=1e-6)
    blocks = sum(isinstance(part, GradientCheckpointingLayer) for part in policy.modules())
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs < blocks, (graphs, blocks)


@pytest.mark.parametrize("kind", ["openvla", "pi0"])
def test_compiled_blocks_go_with_gradient_checkpointing(kind):
    policy, batches = small_policy(kind)
    expected = learn(policy, batches[0])
    stages.compile_blocks(policy, backend="aot_eager")
    policy.backbone.use_gradient_checkpointing()
    found = learn(policy, batches[0])
    unread = found[1].keys() - expected[1].keys()  # of π0's last layer: zeros of a graph, None without one
    assert not any(found[1].pop(name).any() for name in unread)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-4, atol=1e-6)
    assert found[2] < 0.9 * expected[2], (found[2], expected[2])
