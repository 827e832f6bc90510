"""What is known of every episode of a shard directory, as one table, however many there are."""

from collections.abc import Callable

import pyarrow as pa

from pixel160k.errors import InputError
from pixel160k.format.episode_rows import EPISODES, as_table, row_of_sample
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.folder import read_episode_rows


def episode_table(directory: ShardDirectory, progress: Callable[[int], None] = lambda episodes: None) -> pa.Table:
    """One row per episode, in the shards' order, with the columns of `pixel160k.format.episode_rows.EpisodeRow`.

    Shards that were built before there was `episodes.parquet` lack it. Then the first sample of every episode is read, which
    takes about 1 ms each, and `verb` is "".

    Args:
        directory: the shards.
        progress: called with the number of episodes read so far, where samples are read.

    Raises:
        InputError: the table or a sample cannot be read, or the table is not of these shards.
    """
    if EPISODES in directory.manifest["files"]:
        table = read_episode_rows(directory.directory)
        if table["episode_id"].to_pylist() != directory.episode_ids:
            raise InputError(
                f"{directory.directory}/{EPISODES} and the index list other episodes; build these shards again"
            )
        return table
    rows = []
    for done, episode in enumerate(directory.episode_ids, 1):
        first = directory.sample(episode, directory.steps(episode)[0], members=())
        rows.append(row_of_sample(first.metadata))
        progress(done)
    return as_table(rows)
