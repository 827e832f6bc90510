"""What a run says while it trains: transformers' bar, which knows the time left, with lines that a person reads over it."""

from typing import Any

from transformers import ProgressCallback

_WORDS = {  # of what is logged, what is shown and how; TensorBoard gets all of it
    "loss": "loss {:.4f}",
    "eval_loss": "held-out loss {:.4f}",
    "learning_rate": "learning rate {:.1e}",
    "samples": "{:,} samples",
    "waited_for_data": "{:.1%} of the time waiting for data",
}


class Progress(ProgressCallback):
    """The bar of the first process."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a line above the bar for the loss of some steps, or that of the held-out batches."""
        told = [form.format(logs[name]) for name, form in _WORDS.items() if logs and name in logs]
        if self.training_bar is not None and logs and ("loss" in logs or "eval_loss" in logs):
            self.training_bar.write(f"step {state.global_step}: {', '.join(told)}")
