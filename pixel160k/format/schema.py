"""The checks of a shard directory's JSON: manifest.json, and the `.json` member of a sample.

Types are strict (no text where a number belongs), keys fixed, numbers finite.
"""

from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, create_model

from pixel160k.format.metadata import Metadata

Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Base of what is checked: no unknown key, no other type, no number that is not finite."""

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


class Camera(Strict):
    """A further camera in the manifest: the episodes here are those that have it, those where it is blank, and the unusable.

    Attributes:
        episodes: how many have it.
        images: how many images it has of each form.
        sizes: height and width of its images in pixels, each pair once; all images of an episode have the same.
        converted: how many images were made RGB PNG, by what they were.
        blank: in how many episodes it shows nothing.
        unusable: why it cannot be published, by the ids of those episodes.
    """

    episodes: Count
    images: dict[Literal["jpg", "png"], Count]
    sizes: list[Annotated[list[Count], Len(2, 2)]]
    converted: dict[str, Count]
    blank: Count
    unusable: dict[str, str]


CameraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]  # it begins the name of a member


class Manifest(Strict):
    """manifest.json. The text of each field says what it means."""

    format_version: Annotated[
        int,
        "1; 2 where images are PNG, 3 where there are `cameras`, which readers of the versions before would not find",
    ]
    dataset: Annotated[str, "the data set's name"]
    include: Annotated[Literal["accepted", "all"], "which episodes are here: `accepted`, or `all` that can be read"]
    horizon: Annotated[int, Field(ge=1), "rows of an action chunk"]
    samples: Annotated[Count, "how many samples the shards hold"]
    episodes: Annotated[Count, "how many episodes the shards hold"]
    shards: Annotated[list[ShardEntry], "`name`, `bytes`, `sha256`, `samples` of each tar, in order"]
    left_out: Annotated[dict[str, str], "episode id and reason of what should be here and could not be used"]
    causes: Annotated[
        dict[str, str], "what is wrong with those of `left_out` of which the annotations do not say it; not there: none"
    ] = {}
    images: Annotated[
        dict[Literal["jpg", "png"], Count], "how many images are JPEG and how many PNG; not there: all are JPEG"
    ] = {}
    converted: Annotated[
        dict[str, Count],
        "how many images were made RGB PNG, by what they were: `grey`, `palette`, `opaque alpha`; not there: none",
    ] = {}
    cameras: Annotated[
        dict[CameraName, Camera],
        "the further cameras that were asked for, by name: how many `episodes` and `images` (by form) each has, their `sizes` "
        "(height, width), how many were `converted`; in how many episodes it is `blank`, in which `unusable` and why; not "
        "there: none was asked for",
    ] = {}
    untracked: Annotated[Count, "how many episodes here lack masks at every step, though others were followed"] = 0
    annotated: Annotated[Outcome, "`status` and `reasons`: how many episodes the annotations have of each"]
    annotations: Annotated[
        dict[str, Any],
        "`software`, `source`, `dataset`, `settings`, `models` with which they were made, and where models were loaded "
        "`revisions`: each as `NAME@REVISION`, by its setting; `limit` where only the first so many episodes were annotated",
    ]
    software: Annotated[str, "the version that built the shards"]
    files: Annotated[
        dict[FileName, Digest],
        "SHA-256 of `index.parquet`, `episodes.parquet`, `dataset_statistics.json`, `croissant.json`",
    ]


_KEYS: dict[str, Any] = {name: (hint, ...) for name, hint in get_type_hints(Metadata, include_extras=True).items()}
_METADATA = create_model("Metadata", __base__=Strict, **_KEYS)


def check_metadata(content: bytes) -> Metadata:
    """The metadata of a sample, from the bytes of its `.json` member.

    Raises:
        ValidationError: they are no JSON of that form; it lists every fault.
    """
    return Metadata.of_checked(vars(_METADATA.model_validate_json(content)))
