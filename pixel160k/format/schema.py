"""The forms of a shard directory's JSON, as models that check types: manifest.json and the `.json` member of a sample.

docs/format.md says what each key means. Types are strict (no text where a number belongs), keys fixed, numbers finite.
"""

from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from pixel160k.format.metadata import Metadata

Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Base of the forms: no unknown key, no other type, no number that is not finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ShardEntry(Strict):
    """One tar in the manifest."""

    name: FileName
    bytes: Count
    sha256: Digest
    samples: Annotated[int, Field(ge=1)]


class Outcome(Strict):
    """How many episodes the annotations have of each status and reason."""

    status: dict[str, Count]
    reasons: dict[str, Count]


class Manifest(Strict):
    """manifest.json."""

    format_version: int
    dataset: str
    include: Literal["accepted", "all"]
    horizon: Annotated[int, Field(ge=1)]
    samples: Count
    episodes: Count
    shards: list[ShardEntry]
    left_out: dict[str, str]
    annotated: Outcome
    annotations: dict[str, Any]
    software: str
    files: dict[FileName, Digest]


_KEYS: dict[str, Any] = {name: (hint, ...) for name, hint in get_type_hints(Metadata, include_extras=True).items()}
_METADATA = create_model("Metadata", __base__=Strict, **_KEYS)


def check_metadata(content: bytes) -> Metadata:
    """The metadata of a sample, from the bytes of its `.json` member.

    Raises:
        ValidationError: they are no JSON of that form; it lists every fault.
    """
    return Metadata(**dict(_METADATA.model_validate_json(content)))
