"""The forms of a shard directory's JSON, as models that check types: manifest.json and the `.json` member of a sample.

docs/format.md says what each key means. Types are strict (no text where a number belongs), keys fixed, numbers finite.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Box = Annotated[list[float], Field(min_length=4, max_length=4)]
Points = Annotated[list[Annotated[list[float], Field(min_length=2, max_length=2)]], Field(min_length=1)]


class Strict(BaseModel):
    """Base of the forms: no unknown key, no other type, no number that is not finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Shard(Strict):
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
    shards: list[Shard]
    left_out: dict[str, str]
    annotated: Outcome
    annotations: dict[str, Any]
    software: str
    files: dict[FileName, Digest]


class RLE(Strict):
    """A run-length encoded mask; `size` is [height, width], both 0 where there is none."""

    size: Annotated[list[Count], Field(min_length=2, max_length=2)]
    counts: str


class Metadata(Strict):
    """The `.json` member of a sample."""

    dataset: str
    episode_id: str
    step: Count
    num_steps: Count
    first_step: Count
    last_step: Count
    close_step: Annotated[int, Field(ge=-1)]
    camera: str
    instruction: str
    target_object: str
    status: Literal["accepted", "rejected"]
    reason: str
    detail: str
    score: float
    mask_score: float
    evidence_status: str
    evidence_score: float
    object_box: Box
    region_box: Box
    gripper_box: Box
    points: Points
    line: Points
    object_mask: RLE
    prompt_step: Annotated[int, Field(ge=-1)]
    object_mask_valid: bool
    gripper_mask_valid: bool

    def of_episode(self) -> dict[str, Any]:
        """What must be the same at every step of an episode."""
        return self.model_dump(exclude={"step", "object_mask_valid", "gripper_mask_valid"})
