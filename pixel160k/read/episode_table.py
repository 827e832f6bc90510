"""What is known of every episode of a shard directory, as one table, however many there are."""

import pyarrow as pa

from pixel160k.errors import InputError
from pixel160k.format.episode_rows import EPISODES, as_table, row_of_sample
from pixel160k.paths import AnyPath
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.folder import read_episode_rows, read_manifest


def episode_table(shards: str | AnyPath) -> pa.Table:
    """One row per episode, in the shards' order, with the columns of `pixel160k.format.episode_rows.EpisodeRow`.

    The index is not read. But shards that were built before there was `episodes.parquet` lack that; then the first sample of
    every episode is read, which takes about 1 ms each, and `verb` is "".

    Args:
        shards: output of `pixelcli build-shards`.

    Raises:
        InputError: it holds no shards, the table or a sample cannot be read, or the table is not of these shards.
    """
    manifest = read_manifest(shards)
    if EPISODES in manifest["files"]:
        table = read_episode_rows(shards)
        if len(table) != manifest["episodes"]:
            fault = f"{shards}/{EPISODES} lists {len(table)} episodes, the manifest {manifest['episodes']}"
            raise InputError(f"{fault}; build these shards again")
        return table
    directory = ShardDirectory(shards)
    firsts = (directory.sample(episode, directory.steps(episode)[0], members=()) for episode in directory.episode_ids)
    return as_table([row_of_sample(first.metadata) for first in firsts])
