"""Annotations without images (`--to hf`): Parquet that joins to the user's own copy of the images by episode id and step.

No pixel and no action of the source is in it, so that the source's licence on images does not matter. `image_crc32c`,
the CRC32C of the image's bytes in the shards, shows whether the joined image is the annotated one; where the manifest counts
`converted` images it is that of the PNG, and not of the source's bytes.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from pixel160k.format.origins import origin_of
from pixel160k.format.shards import split_of_shard
from pixel160k.publish.card import declared_splits, front_matter, how_to_cite
from pixel160k.publish.features import IMAGE, METADATA, declared
from pixel160k.publish.steps import Step

_JOIN = """\
```python
from datasets import load_dataset

rows = load_dataset("FOLDER", split="SPLIT")
place = {key: number for number, key in enumerate(zip(rows["episode_id"], rows["step"]))}
mask = rows[place[EPISODE_ID, STEP]]["mask"]
```

`episode_id` is `{dataset}-{split}-{shard:05d}-{record:05d}`: the number of the TFRecord file and of the record in it, both
from 0; `step` is the raw step of that record. In the repository of pixelvla, `annotate.sources.rlds.read_episodes` reads such records
without TensorFlow."""


COLUMNS = pa.schema(
    [
        *METADATA,
        ("image_height", pa.int32()),
        ("image_width", pa.int32()),
        ("image_crc32c", pa.uint32()),
        ("mask", IMAGE),
    ]
)


def export(episodes: Iterable[list[Step]], manifest: dict[str, Any], folder: Path) -> dict[str, int]:
    """Write one Parquet file per shard, which is of one split, and the data card into an empty folder; returns the number of rows."""
    (folder / "data").mkdir()
    written = 0
    patterns: dict[str, str | list[str]] = {}
    for file, of_file in itertools.groupby(
        episodes, key=lambda episode: episode[0].metadata.episode_id.rpartition("-")[0]
    ):
        patterns[split_of_shard(file)] = f"data/{file.rpartition('-')[0]}-*.parquet"
        with pq.ParquetWriter(folder / "data" / f"{file}.parquet", COLUMNS, compression="zstd") as writer:
            for episode in of_file:
                writer.write_table(pa.Table.from_pylist([_row(step) for step in episode], schema=COLUMNS))
                written += len(episode)
    (folder / "README.md").write_text(_card(manifest, written, patterns), encoding="utf-8")
    return {"rows": written}


def _row(step: Step) -> dict[str, Any]:
    height, width = step.labels.shape
    return step.metadata.as_dict() | {
        "image_height": height,
        "image_width": width,
        "image_crc32c": google_crc32c.value(step.image),
        "mask": {"bytes": step.mask_png, "path": f"{step.key}.mask.png"},
    }


def _card(manifest: dict[str, Any], rows: int, patterns: dict[str, str | list[str]]) -> str:
    header = {
        "tags": ["robotics", "pixel160k"],
        "configs": declared_splits(patterns),
        "dataset_info": {"features": declared(COLUMNS)},
    }
    origin = origin_of(manifest)
    return "\n".join(
        [
            front_matter(header),
            f"# {manifest['dataset']}: pixel annotations without the images\n",
            f"{rows} rows, one per step, of {manifest['episodes']} episodes, made with pixelvla {manifest['software']}.",
            f"The images are those of {origin.credit}: join your own copy. {how_to_cite(origin)}\n",
            _JOIN.replace("SPLIT", next(iter(patterns))) + "\n",
        ]
    )
