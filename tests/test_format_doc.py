"""docs/format.md lists every column and key with the very words of the typed definitions."""

from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pytest

from pixel160k.format.arrow import arrow_type
from pixel160k.format.episode_rows import EpisodeRow
from pixel160k.format.masks import RLE
from pixel160k.format.metadata import PER_STEP, Metadata
from pixel160k.format.schema import Manifest
from pixel160k.format.shards import IndexRow
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.format.tracks import StepMasks

DOC = Path(__file__).parents[1] / "docs" / "format.md"


def type_name(kind):
    """An Arrow type in words."""
    if kind == arrow_type(RLE):
        return "RLE"
    if isinstance(kind, pa.StructType):
        return ", ".join(f"`{field.name}` {type_name(field.type)}" for field in kind)
    if isinstance(kind, pa.ListType):
        return f"list of ({type_name(kind.value_type)})".replace("(float32)", "float32")
    return "float32" if kind == pa.float32() else str(kind)


def table(definition, heading, with_types=True):
    """The table of a dataclass or model whose fields say what they mean."""
    lines = (
        [f"| {heading} | type | meaning |\n|---|---|---|"] if with_types else [f"| {heading} | meaning |\n|---|---|"]
    )
    for name, hint in get_type_hints(definition, include_extras=True).items():
        if name.startswith("model_"):  # pydantic's own
            continue
        meaning = next(extra for extra in reversed(hint.__metadata__) if isinstance(extra, str))
        lines.append(f"| `{name}` |{f' {type_name(arrow_type(hint))} |' if with_types else ''} {meaning} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param(table(EpisodeAnnotation, "column"), id="annotations"),
        pytest.param(table(StepMasks, "column"), id="tracks"),
        pytest.param(table(Metadata, "key"), id="metadata"),
        pytest.param(table(IndexRow, "column of `index.parquet`"), id="index"),
        pytest.param(table(EpisodeRow, "column of `episodes.parquet`"), id="episodes"),
        pytest.param(table(Manifest, "key of `manifest.json`", with_types=False), id="manifest"),
    ],
)
def test_the_tables_are_those_of_the_definitions(expected):
    assert expected in DOC.read_text(encoding="utf-8"), f"docs/format.md should hold this table:\n\n{expected}"


def test_what_differs_from_step_to_step_is_in_the_metadata():
    assert set(PER_STEP) < set(get_type_hints(Metadata))
