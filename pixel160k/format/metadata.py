"""The metadata of a sample, its `.json` member: the one place that says which keys there are.

From `Metadata` follow the check of types by every reader, the features that a data card declares, the columns of
exports, and the table of docs/format.md.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Len

from pixel160k.format.masks import RLE

RawStep = Annotated[int, Ge(0)]
RawStepOrNone = Annotated[int, Ge(-1)]  # −1 stands for none
JSONBox = Annotated[list[float], Len(4, 4)]
JSONPoints = Annotated[list[Annotated[list[float], Len(2, 2)]], Len(1)]


@dataclass(frozen=True)
class Metadata:
    """What a sample says of itself and its episode; boxes, points and masks are on the image, in its pixels.

    There are no nulls and no empty lists: readers take the types from the first samples. The text of each field says what
    it means, and what stands there where there is nothing.
    """

    dataset: Annotated[str, "the data set's name, by which statistics are kept"]
    episode_id: Annotated[str, "which record of the source the episode is"]
    step: Annotated[RawStep, "the raw step of this sample"]
    num_steps: Annotated[int, Ge(0), "number of raw steps of the episode"]
    first_step: Annotated[RawStep, "the first valid raw step (x_0)"]
    last_step: Annotated[
        RawStep, "the last valid raw step; row i of the action chunk is real where `step + i <= last_step`"
    ]
    close_step: Annotated[
        RawStepOrNone, "the raw step at which the gripper closes on what it carries; −1: it carries nothing"
    ]
    camera: Annotated[
        str,
        "the main camera: which of the source's took `.jpg` or `.png`, the image that masks, boxes and prompts are on",
    ]
    instruction: Annotated[str, 'what the robot is told; `""`: nothing']
    target_object: Annotated[str, 'the words of the object that is to be grasped; `""`: none found']
    status: Annotated[Literal["accepted", "rejected"], "`accepted` or `rejected`"]
    reason: Annotated[str, 'why the episode was rejected, of a closed list; `""`: it was not']
    detail: Annotated[str, 'more about the reason, for people; `""`: nothing']
    score: Annotated[float, "score of the object's box, 0 to 1; 0: none"]
    mask_score: Annotated[float, "score of the object's mask, 0 to 1; 0: none"]
    evidence_status: Annotated[
        str, "what motion says of the object's mask: `supported`, `contradicted`, `not_applicable`"
    ]
    evidence_score: Annotated[float, "score of the motion evidence, 0 to 1; 0: none"]
    object_box: Annotated[JSONBox, "the object on x_0; four −1: none"]
    region_box: Annotated[JSONBox, "the region proposal on x_0, where the object was looked for; four −1: none"]
    gripper_box: Annotated[JSONBox, "the gripper on the close frame; four −1: none"]
    points: Annotated[JSONPoints, "point prompts on the object, on x_0; `[[-1, -1]]`: none"]
    line: Annotated[JSONPoints, "both ends of the line prompt on the object, on x_0; `[[-1, -1]]`: none"]
    object_mask: Annotated[RLE, "the object on x_0; size `[0, 0]`: none"]
    prompt_step: Annotated[RawStepOrNone, "the raw step that prompts belong to (x_0); −1: no prompts"]
    object_mask_valid: Annotated[bool, "whether `.mask.png` of this step marks the object"]
    gripper_mask_valid: Annotated[bool, "whether `.mask.png` of this step marks the gripper"]

    @classmethod
    def of_checked(cls, values: dict[str, Any]) -> Self:
        """The metadata with these keys and values, which were checked before; it keeps the dictionary itself.

        This takes a tenth of the time of `Metadata(**values)`, and a loader needs thousands per second.
        """
        metadata = object.__new__(cls)
        object.__setattr__(metadata, "__dict__", values)
        return metadata

    def as_dict(self) -> dict[str, Any]:
        """The keys and values of the `.json` member."""
        return dict(vars(self))

    def of_episode(self) -> dict[str, Any]:
        """The keys and values that are the same at every step of an episode."""
        return {name: value for name, value in vars(self).items() if name not in PER_STEP}


PER_STEP = ("step", "object_mask_valid", "gripper_mask_valid")
"""The keys that differ from step to step; all others are the episode's."""
