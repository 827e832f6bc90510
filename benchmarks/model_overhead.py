"""What the pixel-aware encoder, the prompt encoder and the action decoder cost: time, memory, FLOPs.

    python benchmarks/model_overhead.py [--rounds 10] [--batch 2] [--masks 1] [--prompts 4]

Time and memory: a forward and a backward pass of the preset `small` through every parameter, random weights (time does not
depend on them), against the bare backbone on a sequence of the same length, no logits in either. Both run in turn in one
process, so that the machine's drift hits them alike; CPU time is counted and the median of the rounds' ratios is printed.
Peak memory is that of one such pass in a process of its own. FLOPs are counted of one forward pass of `openvla-7b`, one
observation, on tensors without memory.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.backbones.openvla import OpenVLABackbone
from model.policy import PixelVLA
from model.processor import Batch
from model.prompt_encoder import MASK_CELL, PromptBatch
from model.sequence import IMAGE, MASK, PROMPT
from model.settings import PRESETS, ModelSettings
from model.tokenizer import byte_tokenizer
from pixel160k.format.prompts import PROMPT_KINDS

TEXT_TOKENS = 20  # of "In: What action ...", with an instruction of ordinary length


def make_policy(settings: ModelSettings) -> PixelVLA:
    """A policy with random weights."""
    torch.manual_seed(0)
    return PixelVLA(settings, byte_tokenizer(), {})


def openvla_of(policy: PixelVLA) -> OpenVLABackbone:
    """The backbone of a policy over OpenVLA, which alone can be run bare."""
    assert isinstance(policy.backbone, OpenVLABackbone)
    return policy.backbone


def make_batch(settings: ModelSettings, size: int, masks: int, prompts: int) -> Batch:
    """Random observations with masks and prompts of every kind in turn, and random actions."""
    vision = settings.backbone.vision
    slots = [MASK] * (masks * settings.tokens_per_mask) + [PROMPT] * prompts
    ids = [1, *[IMAGE] * vision.grid**2, *range(2, 2 + TEXT_TOKENS), *slots, 9, 9]
    side = vision.grid * MASK_CELL
    kinds = torch.arange(prompts) % len(PROMPT_KINDS)
    dense = (kinds == PROMPT_KINDS.index("mask"))[:, None, None] * (torch.rand(prompts, side, side) < 0.2)
    points = torch.arange(2) < torch.tensor([1, 2, 2, 0])[kinds][:, None]
    encoded = PromptBatch(
        kinds.repeat(size, 1),
        torch.rand(size, prompts, 2, 2),
        points.repeat(size, 1, 1),
        dense.float().repeat(size, 1, 1, 1),
    )
    return Batch(
        torch.randint(256, (size, vision.image_size, vision.image_size, 3), dtype=torch.uint8),
        torch.tensor(ids).repeat(size, 1),
        None,
        (torch.rand(size, masks, side, side) < 0.1).float(),
        torch.ones(size, masks, dtype=torch.bool),
        encoded,
        torch.ones(size, prompts, dtype=torch.bool),
        None,
        torch.rand(size, settings.chunk, 7),
        torch.ones(size, settings.chunk, dtype=torch.bool),
    )


def whole_pass(policy: PixelVLA, batch: Batch) -> None:
    """Forward and backward through the whole policy."""
    loss = policy(batch).loss
    loss.backward()


def bare_pass(policy: PixelVLA, batch: Batch) -> None:
    """Forward and backward through the backbone alone, ordinary tokens where masks, prompts and queries were."""
    backbone = openvla_of(policy)
    patches = policy.settings.backbone.vision.grid**2
    ids = torch.full((len(batch.input_ids), batch.input_ids.shape[1] - patches + policy.settings.chunk), 9)
    text = backbone.embed(ids)
    projected = backbone.project(backbone.vision(backbone.pixels(batch.images)).patch_features)
    sequence = torch.cat([text[:, :1], projected, text[:, 1:]], dim=1)
    backbone.read_sequence(sequence, torch.ones(sequence.shape[:2], dtype=torch.int64)).mean().backward()


PASSES = {"bare backbone": bare_pass, "with the modules": whole_pass}


def cpu_seconds(name: str, policy: PixelVLA, batch: Batch) -> float:
    """CPU time of one pass, gradients from zero."""
    policy.zero_grad(set_to_none=True)
    start = time.process_time()
    PASSES[name](policy, batch)
    return time.process_time() - start


def peak_megabytes(name: str, size: int, masks: int, prompts: int, threads: int) -> float:
    """The most memory a process ever had that does one pass and nothing else."""
    torch.set_num_threads(threads)
    settings = PRESETS["small"]
    PASSES[name](make_policy(settings), make_batch(settings, size, masks, prompts))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forward_flops(settings: ModelSettings, masks: int, prompts: int) -> dict[str, int]:
    """FLOPs of each part in a forward pass for one observation; none of them has memory."""
    with torch.device("meta"):
        policy = make_policy(settings)
        batch = make_batch(settings, 1, masks, prompts)
        backbone, vision = openvla_of(policy), settings.backbone.vision
        features = torch.empty(1, vision.grid**2, backbone.projector.fc1.in_features)
        level = torch.empty(1, vision.grid**2, vision.level_size)
        short, long = 1 + vision.grid**2 + TEXT_TOKENS, batch.input_ids.shape[1] + settings.chunk
        hidden = torch.empty(1, settings.chunk, backbone.query_size)

        def read(length: int) -> object:  # a mask of four dimensions is used as it is, so that no value is looked at
            mask = torch.empty(1, 1, length, length, dtype=torch.bool)
            return backbone.read_sequence(torch.empty(1, length, backbone.hidden_size), mask)

        parts: dict[str, Callable[[], object]] = {
            "vision": lambda: backbone.vision(backbone.pixels(batch.images)),
            "projector": lambda: backbone.project(features),
            "language model": lambda: read(short),
            "its longer sequence": lambda: read(long),
            "masks": lambda: policy._mask_tokens([level] * len(vision.levels), batch.masks),
            "prompts": lambda: policy._prompt_tokens([level] * len(vision.levels), batch.prompts),
            "action decoder": lambda: policy.action_decoder(hidden),
        }
        counted = {}
        for part, run in parts.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                run()
            counted[part] = counter.get_total_flops()
    counted["its longer sequence"] -= counted["language model"]
    return counted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--masks", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = arguments.batch, arguments.masks, arguments.prompts
    peaks = {}
    for name in PASSES:  # first, while this process is small: a child's peak counts from its parent's
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[name] = pool.apply(peak_megabytes, (name, *sizes, arguments.threads))

    policy, batch = make_policy(PRESETS["small"]), make_batch(PRESETS["small"], *sizes)
    for name in PASSES:  # warm up
        cpu_seconds(name, policy, batch)
    rounds = [{name: cpu_seconds(name, policy, batch) for name in PASSES} for _ in range(arguments.rounds)]
    bare, whole = PASSES
    ratios = sorted(seconds[whole] / seconds[bare] for seconds in rounds)
    print("small, batch {}, masks {}, prompts {}".format(*sizes))
    for name in PASSES:
        seconds = statistics.median(seconds[name] for seconds in rounds)
        print(f"{name:18s}{seconds:8.2f} s CPU, forward and backward{peaks[name]:9.0f} MB at most")
    print(f"ratio {statistics.median(ratios):.3f} (rounds from {ratios[0]:.3f} to {ratios[-1]:.3f})")

    flops = forward_flops(PRESETS["openvla-7b"], arguments.masks, arguments.prompts)
    whole_flops = sum(flops.values())
    bare_flops = flops["vision"] + flops["projector"] + flops["language model"]
    print("\nopenvla-7b, forward pass of one observation")
    for part, count in flops.items():
        print(f"{part:20s}{count / 1e9:12.2f} GFLOPs")
    print(f"{'without the modules':20s}{bare_flops / 1e9:12.2f} GFLOPs")
    print(f"{'with the modules':20s}{whole_flops / 1e9:12.2f} GFLOPs, {whole_flops / bare_flops - 1:.2%} more")


if __name__ == "__main__":
    main()
