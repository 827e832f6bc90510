"""What a run prints while it trains: transformers' progress bar, and above it a line for each loss that is logged."""

import re
from typing import Any

from transformers import ProgressCallback

_WORDS = {  # the logged values that are printed, and how; TensorBoard gets all
    "loss": "loss {:.4f}",
    "learning_rate": "learning rate {:.1e}",
    "samples": "{:,} samples",
    "waited_for_data": "{:.1%} of the time waiting for data",
}

_HELD_OUT = re.compile(r"eval_(?:(.+)_)?loss")


class Progress(ProgressCallback):
    """The progress bar; only the first of several processes has one."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print one line above the bar where a loss was logged, of training steps or of held-out batches."""
        logs = logs or {}
        held_out = [f"held-out loss{_of(name)} {logs[name]:.4f}" for name in logs if _HELD_OUT.fullmatch(name)]
        told = [*held_out, *(form.format(logs[name]) for name, form in _WORDS.items() if name in logs)]
        if self.training_bar is not None and (held_out or "loss" in logs):
            self.training_bar.write(f"step {state.global_step}: {', '.join(told)}")


def _of(name: str) -> str:
    """of DATASET, where there are several."""
    found = _HELD_OUT.fullmatch(name)
    return f" of {found[1]}" if found and found[1] else ""
