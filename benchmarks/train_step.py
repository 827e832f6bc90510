"""What the trainer adds to a training step, and how often a step makes a GPU wait.

    python benchmarks/train_step.py [--preset small] [--stage pue] [--batch 4] [--steps 12] [--device cpu]

One policy with random weights learns from the same batches twice in one run: in a bare loop of forward, backward, clipping
and AdamW, then in `PolicyTrainer`, with logging every 10 steps and the account. Loading is left out: the batches are there.

Then a step is read operator by operator. "waits" are those that a GPU cannot do without the host looking at a value
(`.item()`, indexing by a mask), by the file that asks; "casts" copy a tensor to another type. A CPU shows both, and two kinds
that a GPU does not meet: the account (train/cost.py) reads batches that still lie on the host, and the check of slots
(model/sequence.py) is made on a CPU alone. Where nothing before
the queries is learned (`cat`), the bare loop is also run with a graph through the whole sequence, as a naive loop has it.
"""

import argparse
import statistics
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from model_overhead import make_batch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from model.policy import PixelVLA
from model.processor import Batch
from model.settings import PRESETS
from model.tokenizer import byte_tokenizer
from train import stages
from train.settings import TrainSettings
from train.trainer import PolicyTrainer

# Seen from outside: what they are made of is not counted again, so an operator that hides one of these must be named, too.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "masked_scatter_backward", "unique_dim", "unique_consecutive",
         "_unique", "_unique2", "repeat_interleave"}  # fmt: skip


class Operators(TorchDispatchMode):
    """Counts the operators of a step that make a GPU wait, and those that cast."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        by_mask = name == "index" and any(part is not None and part.dtype == torch.bool for part in arguments[1])
        if by_mask or name in WAITS:
            caller = next(
                frame for frame in reversed(traceback.extract_stack()[:-1]) if "/torch/" not in frame.filename
            )
            self.counts[f"waits in {'/'.join(Path(caller.filename).parts[-2:])}"] += 1
        if name == "_to_copy" and (named or {}).get("dtype") not in (None, arguments[0].dtype):
            self.counts["casts"] += 1
        self.counts["operators"] += 1
        return operator(*arguments, **(named or {}))


class Ready:
    """The same batches again and again, in place of loaded ones."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for batch in self.batches:
                yield {"batch": batch, "keys": ["drawn"] * len(batch.input_ids)}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: no run is resumed."""
        return {}


class Watch(TrainerCallback):
    """Notes when each step ended, and the operators until then."""

    def __init__(self, operators: Operators | None = None) -> None:
        self.operators, self.ends = operators, [time.perf_counter()]
        self.counts: list[dict[str, int]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer."""
        self.ends.append(time.perf_counter())
        if self.operators:
            self.counts.append(dict(self.operators.counts))
            self.operators.counts.clear()

    @property
    def seconds(self) -> list[float]:
        """Of each step."""
        return [end - begin for begin, end in zip(self.ends, self.ends[1:], strict=False)]


def new_policy(preset: str, settings: TrainSettings, device: str) -> PixelVLA:
    """A policy with random weights, ready for its stage."""
    torch.manual_seed(0)
    policy = PixelVLA(PRESETS[preset], byte_tokenizer(), {}).train().to(device)
    stages.prepare(policy, settings)
    return policy


def bare(policy: PixelVLA, batches: list[Batch], steps: int, watch: Watch, device: str) -> None:
    """The loop that anybody would write."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    for step in range(steps):
        loss = policy(batches[step % len(batches)].to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device != "cpu":
            torch.cuda.synchronize()
        watch.on_step_end()


def with_trainer(policy: PixelVLA, settings: TrainSettings, batches: list[Batch], watch: Watch) -> None:
    """The same steps by `pixelcli train`'s trainer."""
    with tempfile.TemporaryDirectory() as folder:
        ready: Any = Ready(batches)
        held_out: Any = [next(iter(ready))]
        trainer = PolicyTrainer(policy, settings, "", ready, held_out, Path(folder))
        trainer.add_callback(watch)
        trainer._save_checkpoint = lambda *_: None  # type: ignore[method-assign]
        trainer.train()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--stage", default="pue", choices=["cat", "pue"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    marks = (1, 1) if chosen.stage == "pue" else (0, 0)
    batches = [make_batch(PRESETS[chosen.preset], chosen.batch, *marks) for _ in range(2)]
    settings = TrainSettings(
        stage=chosen.stage, init="x", max_steps=chosen.steps, batch_size=chosen.batch, dtype="float32", schedule="constant",
        evaluate_every=10**6, save_every=10**6, report_to=(), log_every=10,
    )  # fmt: skip
    ways: dict[str, list[float]] = {"bare": [], "trainer": []}
    if chosen.stage == "cat":
        ways["bare, a graph through all"] = []
    for _ in range(chosen.rounds):
        for name, seconds in ways.items():
            policy, watch = new_policy(chosen.preset, settings, chosen.device), Watch()
            if name == "trainer":
                with_trainer(policy, settings, batches, watch)
            else:
                if name != "bare":
                    policy.backbone.get_language_model().get_input_embeddings().requires_grad_(True)
                bare(policy, batches, chosen.steps, watch, chosen.device)
            seconds += watch.seconds[2:]
    base = statistics.median(ways["bare"])
    for name, seconds in ways.items():
        print(f"{chosen.preset}, {chosen.stage}, {name}: {statistics.median(seconds):.3f} s a step, ", end="")
        print(f"{statistics.median(seconds) / base:.3f} of the bare step's")
    with Operators() as operators:
        watch = Watch(operators)
        with_trainer(new_policy(chosen.preset, settings, chosen.device), settings, batches, watch)
    print(f"a step that logs nothing: {watch.counts[4]}")


if __name__ == "__main__":
    main()
