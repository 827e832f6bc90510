"""Shards as batches: an endless stream to train on, which can be resumed, and a few fixed batches that are held out."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from model.processor import Processor
from model.sequence import is_instruction
from pixel160k.errors import InputError
from pixel160k.format.shards import order_splits, split_of
from pixel160k.format.table import ACCEPTED
from pixel160k.paths import AnyPath
from pixel160k.read.loader import ShardLoader, open_shards
from pixel160k.read.samples import Sample
from pixel160k.seeding import seeded_generator
from train.data import Collator, is_trained_on
from train.settings import TrainSettings


def statistics_of(shards: Sequence[str]) -> dict[str, Any]:
    """The statistics of every data set in shard directories, by name.

    Raises:
        InputError: a directory holds no shards, or no statistics.
    """
    return open_shards(shards, members=()).statistics


def is_held_out(episode_id: str, settings: TrainSettings) -> bool:
    """Whether an episode is held out to evaluate on: it is of `held_out_split`, or of `split` and its id decides so.

    An episode of another split, such as a test split, is neither held out nor trained on.
    """
    if (split := split_of(episode_id)) in (settings.held_out_split, settings.split):
        return split == settings.held_out_split or _is_drawn(episode_id, settings)
    return False


def _is_drawn(episode_id: str, settings: TrainSettings) -> bool:
    return bool(seeded_generator("held out", episode_id).random() < settings.held_out_share)


def check_held_out(settings: TrainSettings, shards: Sequence[str | AnyPath]) -> None:
    """Check that there are episodes to train on and episodes to evaluate on; only the index is read.

    Raises:
        InputError: no episode is of the split to train on, all of these are held out, or none is.
    """
    episode_ids = open_shards(shards, members=(), status=_status(settings)).episode_ids
    splits = order_splits(map(split_of, episode_ids))
    if settings.split not in splits:
        raise InputError(
            f"no episode of these shards is of the split {settings.split!r}, which is to be trained on; "
            f"they have {', '.join(splits)}: --set split=NAME"
        )
    if all(is_held_out(episode, settings) for episode in episode_ids if split_of(episode) == settings.split):
        raise InputError("every sample of these shards is held out; lower held_out_share")
    if not any(is_held_out(episode, settings) for episode in episode_ids):
        raise InputError("no episode of these shards is held out to evaluate on; raise held_out_share")


def open_stream(processor: Processor, settings: TrainSettings, shards: Sequence[str]) -> StatefulDataLoader:
    """The training batches of this process, without end: epoch after epoch, each in another order.

    Which process this is, and of how many, is what torchrun says in RANK and WORLD_SIZE.

    Raises:
        InputError: there is nothing to train on.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    loader = _open(processor, settings, shards, rank, processes, settings.split, settings.mixture or None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own affair
        return StatefulDataLoader(
            _Endless(loader, settings),
            batch_size=settings.batch_size,
            num_workers=settings.workers,
            collate_fn=Collator(processor, settings, augment=True),
            pin_memory=torch.cuda.is_available(),
        )


def resume_stream(stream: StatefulDataLoader, saved: Sequence[dict[str, Any]], rank: int, workers: int) -> None:
    """Let a stream that was not read yet go on where that of a run that stopped was.

    With as many workers as then the same batches come. Others share out what was left.

    Args:
        stream: as `open_stream` gives it.
        saved: what `state_dict()` of the stream of every process said.
        rank: which of them this process is.
        workers: how many workers each process had.

    Raises:
        InputError: they are states of other shards, or of another order.
    """
    if stream.num_workers == workers:
        stream.load_state_dict(saved[rank])
    else:
        stream.dataset.load_state_dict(list(saved))


def _status(settings: TrainSettings) -> str | None:
    """The status of the episodes that a stage trains on; None for all."""
    return ACCEPTED if settings.stage == "pue" or settings.status == "accepted" else None


class _Endless(IterableDataset):
    """Epoch after epoch of a loader, as (epoch, sample), without the episodes that are held out."""

    def __init__(self, loader: ShardLoader, settings: TrainSettings) -> None:
        super().__init__()
        self._loader, self._settings = loader, settings

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        given = True
        while True:
            before, given = given, False
            for sample in self._loader:
                if is_instruction(sample.instruction) and not is_held_out(sample.episode_id, self._settings):
                    given = True
                    if is_trained_on(sample, self._loader.epoch, self._settings):
                        yield self._loader.epoch, sample
            if not given and not before:  # the rest of a resumed epoch may be empty, a whole one may not
                raise InputError("every sample that this process reads is held out; lower held_out_share")
            self._loader.set_epoch(self._loader.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any] | list[Any]) -> None:
        self._loader.load_state_dict(state)


class HeldOut:
    """The first `evaluate_batches` batches of held-out samples, the same at each iteration.

    Images are neither cropped nor changed in colour; in `pue` prompts are drawn as for training.
    """

    def __init__(self, processor: Processor, settings: TrainSettings, shards: Sequence[str | AnyPath]) -> None:
        """Read the samples. They stay in memory; the batches, which are larger, are made at each iteration.

        Args:
            processor: of the policy.
            settings: the recipe.
            shards: where `check_held_out` finds held-out episodes.
        """
        self._settings, wanted = settings, settings.batch_size * settings.evaluate_batches
        read = list(islice(filter(self._is_wanted, _open(processor, settings, shards)), wanted))
        self._samples = [
            read[begin : begin + settings.batch_size] for begin in range(0, len(read), settings.batch_size)
        ]
        self._collate = Collator(processor, settings, augment=False)

    def _is_wanted(self, sample: Sample) -> bool:
        return is_instruction(sample.instruction) and is_held_out(sample.episode_id, self._settings)

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for samples in self._samples:
            yield self._collate([(0, sample) for sample in samples])


def _open(
    processor: Processor,
    settings: TrainSettings,
    shards: Sequence[str | AnyPath],
    rank: int = 0,
    processes: int = 1,
    split: str | None = None,
    weights: Mapping[str, float] | None = None,
) -> ShardLoader:
    members = ["image", "actions", "state"] + (["labels", "prompts"] if settings.stage == "pue" else [])
    return open_shards(
        shards,
        members=members,
        chunk=processor.settings.chunk,
        split=split,
        status=_status(settings),
        weights=weights,
        interleave=settings.interleave,
        seed=settings.seed,
        rank=rank,
        world_size=processes,
        cache_dir=settings.cache_dir or None,
        cache_bytes=settings.cache_bytes,
    )
