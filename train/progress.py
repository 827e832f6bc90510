"""What a run prints while it trains: transformers' progress bar, and above it a line for each loss that is logged."""

from typing import Any

from transformers import ProgressCallback

_WORDS = {  # the logged values that are printed, and how; TensorBoard gets all
    "loss": "loss {:.4f}",
    "eval_loss": "held-out loss {:.4f}",
    "learning_rate": "learning rate {:.1e}",
    "samples": "{:,} samples",
    "waited_for_data": "{:.1%} of the time waiting for data",
}


class Progress(ProgressCallback):
    """The progress bar; only the first of several processes has one."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print one line above the bar where a loss was logged, of training steps or of held-out batches."""
        told = [form.format(logs[name]) for name, form in _WORDS.items() if logs and name in logs]
        if self.training_bar is not None and logs and ("loss" in logs or "eval_loss" in logs):
            self.training_bar.write(f"step {state.global_step}: {', '.join(told)}")
