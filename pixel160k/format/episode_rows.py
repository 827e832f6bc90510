"""The table of episodes beside the shards, `episodes.parquet`: one short row per episode, by which people find them.

The index has a row per sample and says where it lies; what is known of an episode would else be read from its first sample,
in thousands of places. The values are those of the samples' `.json` members, but for `verb`, which only the annotations have.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.format.arrow import arrow_schema
from pixel160k.format.metadata import Metadata
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.paths import AnyPath, open_parquet

EPISODES = "episodes.parquet"


@dataclass(frozen=True)
class EpisodeRow:
    """What is known of an episode whose samples are in the shards."""

    episode_id: Annotated[str, "which record of the source the episode is"]
    status: Annotated[str, "`accepted` or `rejected`"]
    reason: Annotated[str, 'why it was rejected; `""`: it was not']
    detail: Annotated[str, "more about the reason, for people"]
    instruction: Annotated[str, "what the robot is told"]
    verb: Annotated[str, "the instruction's verb class, as in the annotations"]
    target_object: Annotated[str, 'the words of the object that is to be grasped; `""`: none found']
    num_steps: Annotated[int, "number of raw steps"]
    first_step: Annotated[int, "the first valid raw step"]
    last_step: Annotated[int, "the last valid raw step"]
    close_step: Annotated[int, "the raw step at which the gripper closes on what it carries; −1: it carries nothing"]
    score: Annotated[float, "score of the object's box, 0 to 1; 0: none"]
    mask_score: Annotated[float, "score of the object's mask, 0 to 1; 0: none"]
    evidence_status: Annotated[str, "what motion says of the object's mask"]
    evidence_score: Annotated[float, "score of the motion evidence, 0 to 1; 0: none"]


SCHEMA = arrow_schema(EpisodeRow)


def row_of_annotation(row: EpisodeAnnotation) -> EpisodeRow:
    """The row of an annotated episode."""
    return EpisodeRow(
        episode_id=row.episode_id,
        status=row.status,
        reason=row.reason,
        detail=row.detail,
        instruction=row.instruction,
        verb=row.verb,
        target_object=row.target_object,
        num_steps=row.num_steps,
        first_step=row.first_step,
        last_step=row.last_step,
        close_step=row.close_step,
        score=row.detection_score,
        mask_score=row.mask_score,
        evidence_status=row.evidence.status,
        evidence_score=row.evidence.score,
    )


def row_of_sample(metadata: Metadata) -> EpisodeRow:
    """The row of an episode by one of its samples, which do not know the verb."""
    names = {name: getattr(metadata, name) for name in SCHEMA.names if name != "verb"}
    return EpisodeRow(**names, verb="")


def as_table(rows: Sequence[EpisodeRow]) -> pa.Table:
    """Rows as a table."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)


def write_rows(path: Path, rows: Sequence[EpisodeRow]) -> None:
    """Write rows as Parquet."""
    pq.write_table(as_table(rows), path, compression="zstd")


def join_rows(paths: Sequence[AnyPath], out: Path) -> None:
    """Write the rows of several files into one, in their order: some 0.3 kB of memory per episode."""
    tables = [pq.read_table(open_parquet(path), schema=SCHEMA) for path in paths]
    pq.write_table(pa.concat_tables(tables).combine_chunks(), out, compression="zstd")
