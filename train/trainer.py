"""Hugging Face's Trainer with what a policy needs: our loader, our checkpoints, a loss that must be finite, an account.

tests/test_overrides.py lists what we override of theirs, and fails where a release changes it.
"""

import json
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer import SCHEDULER_NAME

from model.policy import PixelVLA
from model.weights import writing
from pixel160k.errors import InputError, one_line
from pixel160k.files import TEMPORARY, read_json
from train import checkpoints
from train.cost import Account, FlopCount
from train.progress import Progress
from train.settings import TrainSettings
from train.stream import HeldOut, resume_stream


class PolicyTrainer(Trainer):
    """Trains one policy by one recipe.

    Attributes:
        account: what the run has cost.
    """

    def __init__(
        self,
        policy: PixelVLA,
        settings: TrainSettings,
        base: str,
        stream: Any,
        held_out: HeldOut | Mapping[str, HeldOut],
        out: Path,
    ) -> None:
        """Set a trainer up; `train` begins.

        Args:
            policy: after `train.stages.prepare`.
            settings: the recipe.
            base: see `train.checkpoints.save`.
            stream: see `train.stream.open_stream`.
            held_out: the batches to evaluate on, of several data sets those of each by name.
            out: where checkpoints go.

        Raises:
            InputError: FSDP is asked for where there are no GPUs.
        """
        self._settings, self._base, self._stream, self._held_out, self._out = settings, base, stream, held_out, out
        self._flops = FlopCount(policy)
        super().__init__(policy, _arguments(policy, settings, out), eval_dataset=held_out)
        if settings.fsdp and not self.is_fsdp_enabled:  # accelerate leaves CPUs to DDP without a word
            raise InputError("fsdp spreads a policy over GPUs, and there are none here: leave it out, --set fsdp=false")
        if self.pop_callback(ProgressCallback):  # a notebook has another, a table
            self.add_callback(Progress)
        self.account = Account(self.args.world_size)
        self.loss_is_scaled_for_ga = True  # `_get_num_items_in_batch` counts for all batches of a step
        self._unchecked: list[tuple[int, list[str], torch.Tensor]] = []

    def get_train_dataloader(self) -> Any:
        """Our own stream, in place of a `DataLoader`: it knows its process and workers, and how to resume."""
        return _Timed(self._stream, self.account)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The held-out batches, always the same; `eval_dataset` names the data set where there are several."""
        return self._held_out[eval_dataset] if isinstance(self._held_out, Mapping) else self._held_out

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """The parameters that decay: not those that are one vector for what there is one of, as a query or a null token."""
        kept = re.compile(r"(queries|null_tokens?|kind_embeddings\.weight)$")
        return [name for name in super().get_decay_parameter_names(model) if not kept.search(name)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' AdamW, with the modules' own learning rate where the recipe has one."""
        optimizer = super().create_optimizer(model)
        if (rate := self._settings.modules_learning_rate) is not None:
            trained: Any = self.model if model is None else model
            ours = {parameter for name, parameter in trained.named_parameters() if "backbone." not in name}
            for group in list(optimizer.param_groups):
                apart = [parameter for parameter in group["params"] if parameter in ours]
                group["params"] = [parameter for parameter in group["params"] if parameter not in ours]
                if apart:
                    optimizer.add_param_group({**group, "params": apart, "lr": rate})
        return optimizer

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"batch": inputs["batch"].to(self.args.device), "keys": inputs["keys"]}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The L1 loss of a batch; in training its share of the step's loss, the mean over all actions of the step's batches.

        Args:
            model: the policy.
            inputs: what `train.data.Collator` makes.
            return_outputs: also return the policy's output.
            num_items_in_batch: actions in all batches of the step, of all processes, that are not past an episode's end;
                None where the loss is the batch's own.
        """
        output = model(inputs["batch"])
        self._unchecked.append((self.state.global_step + model.training, inputs["keys"], output.loss.detach()))
        loss = output.loss
        if num_items_in_batch is not None:  # times processes: their gradients are averaged
            loss = loss * (inputs["batch"].action_mask.sum() * self.args.world_size / num_items_in_batch)
        return (loss, output) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        # From the loader's pinned memory, for which a GPU is not waited; a sum made here would lie in other memory.
        masks = [inputs["batch"].action_mask for inputs in batch_samples]
        actions: Any = sum(mask.to(device, non_blocking=mask.is_pinned()).sum() for mask in masks)
        return self.accelerator.gather(actions).sum()

    def _check_losses(self) -> None:
        """Check all losses since the last call, which on a GPU waits for them, so that steps between do not.

        It comes before what they led to is logged or saved.

        Raises:
            InputError: one is not finite; names its samples.
        """
        losses, self._unchecked = self._unchecked, []
        for step, keys, loss in losses:
            if not torch.isfinite(loss):
                raise InputError(
                    f"the loss is {loss.item()} at step {step}, in the batch of {', '.join(keys)}; "
                    "the last checkpoint is kept: look at these samples, or lower learning_rate"
                )

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """The held-out loss of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Learn from a batch, and add it to the account."""
        self.account.add(inputs["batch"], self._flops(inputs["batch"]))
        return super().training_step(model, inputs, num_items_in_batch)

    def told(self, error: torch.OutOfMemoryError) -> InputError:
        """What to say where a GPU's memory is full: in a step, its optimizer, or an evaluation; names what would need less."""
        less = ["a smaller batch_size with more accumulation"]
        if self._settings.stage != "cat" and not self.policy.backbone.is_checkpointed:
            less.append("--set gradient_checkpointing=true")
        if not self._settings.fsdp:
            less.append("several GPUs with --set fsdp=true")
        return InputError(
            f"the GPU's memory is full at step {self.state.global_step + 1} with {self._settings.batch_size} samples a batch "
            f"({one_line(error)}); what needs less: {', or '.join(less)}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the account too.

        Raises:
            InputError: a loss was not finite (`_check_losses`).
        """
        self._check_losses()
        super().log(logs | self.account.so_far(), start_time)

    def store_flos(self) -> None:
        """Count no FLOPs: the account does. Theirs gathers a tensor at the end of a run, which gloo's threads survive badly."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint under a temporary name and rename it, so that there is never half of one; then delete old ones."""
        self._check_losses()
        out, unfinished = self._out, self._out / f"{TEMPORARY}checkpoint"
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()  # the other processes write into it as well
        self.args.output_dir = str(unfinished)
        name = f"checkpoint-{self.state.global_step}"
        try:
            with writing(unfinished):
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            progress = {"stream": self._stream.state_dict(), "account": self.account.state_dict()}
            (unfinished / name / checkpoints.progress_file(self.args.process_index)).write_text(json.dumps(progress))
        except OSError as error:
            raise InputError(
                f"{out / name} cannot be written ({one_line(error)}); the checkpoint before it is "
                "whole: make room and go on with --resume"
            ) from None
        finally:
            self.args.output_dir = str(out)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            shutil.rmtree(out / name, ignore_errors=True)
            (unfinished / name).rename(out / name)
            unfinished.rmdir()
            for old in checkpoints.of_run(out)[: -self._settings.keep]:
                shutil.rmtree(old, ignore_errors=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint without the trainer's state (`train.checkpoints.save`), gathered from all processes."""
        gathered = checkpoints.tensors_to_save(self.policy, self._settings)
        tensors = {name: tensor for name, tensor in gathered if self.args.should_save}
        if self.args.should_save:
            checkpoints.save(Path(output_dir or self._out), self.policy, tensors, self._settings, self._base)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._settings.fsdp:
            return super()._save_optimizer_and_scheduler(output_dir)
        # As transformers does it, which however saves the whole policy too, with its frozen backbone.
        save_fsdp_optimizer(
            self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir
        )
        assert self.lr_scheduler is not None
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(self, *arguments: Any) -> Any:
        prepared = super()._prepare_for_training(*arguments)
        if self._settings.fsdp:
            model: Any = self.model
            # A batch without masks leaves the pixel-aware encoder out, and that of another process may not: what is left
            # out has gradients of zeros, so that all send the same.
            model.set_reduce_scatter_unused_params(True)
            self.policy.backbone.after_sharding(adapted=self._settings.stage == "pue")
        return prepared

    @property
    def policy(self) -> PixelVLA:
        """The policy without what distributes it."""
        return self.accelerator.unwrap_model(self.model)

    def _init_training_state(self, *arguments: Any) -> Any:
        begin = super()._init_training_state(*arguments)
        # How often to log, save and evaluate: the checkpoint's state has its own.
        self.state.compute_steps(self.args, self.state.max_steps)
        return begin

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The weights are there already: the policy was built from this checkpoint (train/run.py).
        folder, processes = Path(resume_from_checkpoint), self.args.world_size
        progress = [read_json(folder / checkpoints.progress_file(number)) for number in range(processes)]
        begun_with = checkpoints.recipe_of(folder)
        assert begun_with is not None  # or the run was refused before
        rank = self.args.process_index
        resume_stream(self._stream, [one["stream"] for one in progress], rank, begun_with.workers)
        self.account.load_state_dict(progress[rank]["account"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:  # torch's word for groups of parameters that are not the present ones
            raise InputError(
                f"{checkpoint} was written by an earlier version, which grouped the parameters otherwise ({one_line(error)}): "
                f"finish that run with it, or begin a new one with --init {checkpoint}"
            ) from None


class _Timed:
    """Iterates a stream, and adds to the account the seconds that each batch was waited for."""

    def __init__(self, stream: Any, account: Account) -> None:
        self._stream, self._account = stream, account

    def __iter__(self) -> Any:
        try:
            batches = iter(self._stream)
            while True:
                began = time.perf_counter()
                batch = next(batches)
                self._account.waited += time.perf_counter() - began
                yield batch
        except Exception as error:
            if (told := _in_own_words(error)) is error:
                raise
            raise told from error


def _in_own_words(error: Exception) -> Exception:
    """What went wrong in a loader process without the traceback that torch puts before it; another error as it is."""
    text = str(error).strip()
    name, _, last = text.rpartition("\n")[2].partition(": ")
    if isinstance(error, InputError):
        return InputError(text.rpartition(f"{InputError.__module__}.InputError: ")[2])
    if re.match(r"DataLoader worker \(pid\S* [\d, ]+\)", text):
        return InputError(f"{one_line(error).rstrip('.')}: often memory runs out; lower workers or batch_size")
    if "in DataLoader worker process" not in text:
        return error
    return InputError(last) if isinstance(error, OSError) else RuntimeError(f"{name}: {last}, in a loader process")


def _arguments(policy: PixelVLA, settings: TrainSettings, out: Path) -> TrainingArguments:
    """The recipe as transformers' arguments."""
    sharding: dict[str, Any] = {}
    if settings.fsdp:
        blocks = {type(part).__name__ for part in policy.modules() if isinstance(part, GradientCheckpointingLayer)}
        sharding = {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "transformer_layer_cls_to_wrap": sorted(blocks),
                "cpu_ram_efficient_loading": True,  # the first process alone has the values (train/run.py)
            },
        }
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        # Theirs named "constant" has no warm-up.
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        bf16=settings.dtype == "bfloat16",
        seed=settings.seed,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        save_steps=settings.save_every,
        eval_strategy="steps",
        eval_steps=settings.evaluate_every,
        prediction_loss_only=True,
        ignore_data_skip=True,  # the stream goes on where it was, nothing is skipped
        report_to=list(settings.report_to),
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        ddp_find_unused_parameters=settings.stage != "cat",  # a batch without masks leaves the pixel-aware encoder out
        disable_tqdm=False,
        **sharding,
    )
    if settings.fsdp and arguments.bf16:
        # The policy casts its inputs to bfloat16 itself, all but positions on the image and the true actions.
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return arguments
