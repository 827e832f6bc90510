"""Several data sets in one run: each with its own statistics and its own held-out loss, mixed by the weights of the recipe."""

from collections.abc import Mapping, Sequence

from model.processor import Processor
from pixel160k.errors import InputError
from pixel160k.paths import AnyPath
from pixel160k.read.shard_sets import open_sets
from train.settings import TrainSettings
from train.stream import HeldOut, check_held_out


def sources_by_dataset(shards: Sequence[str]) -> dict[str, list[AnyPath]]:
    """The tars of each data set in shard directories, by the data set's name.

    Raises:
        InputError: a directory holds no shards, or a data set lies in two.
    """
    return {of_one.dataset: [shard.path for shard in of_one.shards] for of_one in open_sets(shards, None, None)}


def check_mixture(settings: TrainSettings, shards: Sequence[str]) -> None:
    """Check that the recipe's weights are those of these data sets, and that each has episodes to train and to evaluate on.

    Only the indices are read.

    Raises:
        InputError: a data set has no weight, a weight no data set, or one has nothing to train on or nothing held out.
    """
    sources = sources_by_dataset(shards)
    if settings.mixture and settings.mixture.keys() != sources.keys():
        raise InputError(
            f"mixture weighs {', '.join(sorted(settings.mixture))}, and the shards are of {', '.join(sorted(sources))}: "
            "give each data set its weight, as --set mixture.NAME=1, or none to have every sample equally often"
        )
    if len(sources) == 1:
        return check_held_out(settings, shards)
    for name, of_one in sources.items():
        try:
            check_held_out(settings, of_one)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


def open_held_out(
    processor: Processor, settings: TrainSettings, shards: Sequence[str]
) -> HeldOut | Mapping[str, HeldOut]:
    """The batches to evaluate on; of several data sets those of each, by its name."""
    sources = sources_by_dataset(shards)
    if len(sources) == 1:
        return HeldOut(processor, settings, shards)
    return {name: HeldOut(processor, settings, of_one) for name, of_one in sources.items()}
