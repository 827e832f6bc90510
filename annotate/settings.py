"""Every choice of the annotation that the paper leaves open, as a named setting with its reason.

`pixelcli annotate --config FILE --set key=value`; docs/settings.md lists them. All of them change results, so all
of them are part of a run's fingerprint. What changes no result (workers, runner, paths) is a command-line option.
"""

from os.path import expanduser
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat

from pixel160k.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]
Expansion = Annotated[float, Field(ge=1)]
Model = Annotated[str, AfterValidator(expanduser)]  # no shell expands the ~ of --set KEY=~/FOLDER


def _in_words(tracks: Any) -> Any:
    """`tracks` as runs of earlier versions and YAML's no have it: true meant all."""
    return ("all" if tracks else "none") if isinstance(tracks, bool) else tracks


def _point_or_box(prompt: tuple[float, ...]) -> tuple[float, ...]:
    """`gripper_prompt`, or a ValueError, to which pydantic adds the setting and its value."""
    if len(prompt) not in (0, 2, 4) or min(prompt, default=0) < 0:
        raise ValueError("should be x, y or x0, y0, x1, y1 in pixels")
    if len(prompt) == 4 and not (prompt[0] < prompt[2] and prompt[1] < prompt[3]):
        raise ValueError("x0, y0 of a box should be its upper left corner")
    return prompt


Tracks = Annotated[Literal["none", "accepted", "all"], BeforeValidator(_in_words)]


class MotionSettings(Settings):
    """How the weightless annotators read motion. Lengths are shares of the image height, so any resolution works."""

    blur_sigma: Annotated[float, Field(ge=0)] = 0.7  # pixels at 256; takes JPEG blocks and sensor noise away
    change_threshold: Annotated[float, Field(gt=0)] = 16.0  # grey levels of the most changed channel: a pixel changed
    lift_distance: Annotated[float, Field(gt=0)] = 0.04  # metres from the close pose: the object was lifted
    min_finger_opening: Share = 0.03  # of the episode's widest; fingers nearer to each other hold nothing
    gripper_half_size: Share = 0.1  # half the side of the gripper box
    nearness: Annotated[float, Field(gt=0)] = 0.4  # how fast a changed region's weight falls with its distance
    region_expansion: Expansion = 1.7  # the side of the region proposal, in longer sides of the gripper's box
    moved_camera_share: Share = 0.5  # more of the image than this changed, even after registration: the camera moved


class TargetSettings(Settings):
    """Who names the object that is grasped first where the grammar is not sure; what it is sure of, it names."""

    method: Literal["rank", "generate", "grammar"] = "rank"  # an LLM ranks the instruction's noun phrases, or answers
    model: Model = "HuggingFaceTB/SmolLM2-1.7B-Instruct"  # hub id or folder of an instruct LLM


class FoundationSettings(Settings):
    """The foundation models and their floors: low, since accepting is a later step over what they found."""

    # Hub ids or folders of a Grounding DINO and a SAM 2; "tiny": the shipped ones.
    detector: Model = "IDEA-Research/grounding-dino-tiny"
    segmenter: Model = "facebook/sam2.1-hiera-small"
    dtype: Literal["float32", "bfloat16"] = "float32"
    gripper_phrase: str = "robot gripper"
    # x, y or x0, y0, x1, y1 on the first close frame of a group, in pixels
    gripper_prompt: Annotated[tuple[FiniteFloat, ...], AfterValidator(_point_or_box)] = ()
    box_threshold: Share = 0.05
    text_threshold: Share = 0.05
    region_expansion: Expansion = 1.75  # sides of the gripper's box, as motion's
    video_length: Annotated[int, Field(ge=1, le=64)] = 8  # N_e: close frames strung into one discrete video
    min_video_length: Annotated[int, Field(ge=2)] = 4  # shorter groups are handled frame by frame
    join_scenes: bool = True  # episodes of viewpoints with fewer make videos across scenes, of one camera and file
    min_gripper_score: Share = 0.5  # of a tracked mask; below it the detector prompts that frame anew
    max_gripper_area: Share = 0.35  # of the image; a larger mask is no gripper


class ChoiceSettings(Settings):
    """How the target is chosen among the detector's boxes: score + nearness_weight * nearness + motion_weight * agreement.

    Measured on the scenes that the tiny checkpoints are trained on: docs/results.md.
    """

    context: Expansion = 1.25  # the models see a square of this many sides of the region proposal
    distinct: Share = 0.7  # of two boxes that overlap by more than this IoU the better one is kept
    nearness: Annotated[float, Field(gt=0)] = 0.1  # how fast nearness falls with distance, share of the image height
    nearness_weight: Annotated[float, Field(ge=0)] = 1.0
    min_part_score: Share = 0.2  # a handle or knob below it counts as not found; then the thing itself is looked for
    motion_weight: Annotated[float, Field(ge=0)] = 3.0  # of the IoU of the mask and what left its place there


class PromptSamplingSettings(Settings):
    """How the visual prompts that the rows store are sampled from a mask."""

    points: Annotated[int, Field(ge=1, le=64)] = 3
    seed: int = 0


class FilterSettings(Settings):
    """The last step: what is accepted. Repeatable over the stored columns, without any model."""

    min_detection_score: Share = 0.2
    min_supported_score: Share = 0.1  # the same for a mask that motion supports
    min_mask_score: Share = 0.2
    min_mask_area: Share = 0.001  # of the image: 66 pixels at 256 x 256
    max_mask_area: Share = 0.2
    min_inside_region: Share = 0.5  # of the object's mask
    max_region_area: Share = 0.5  # of the image; a larger region proposal says nothing about where the object is
    min_evidence: Share = 0.3  # motion evidence below this contradicts the mask
    min_coverage: Share = 0.5  # of what left its place there, by the mask


class AnnotateSettings(Settings):
    """All settings of `pixelcli annotate`."""

    annotators: Literal["foundation", "motion"] = "foundation"
    camera: str = ""  # "" is the source's main camera
    approach_frames: Annotated[int, Field(ge=0, le=64)] = 3  # decoded between the first step and the close
    evidence_frames: Annotated[int, Field(ge=4, le=64)] = 8  # decoded after the close
    tracks: Tracks = "none"  # whose masks are followed through every step, by the segmenter's video memory
    detections: Annotated[int, Field(ge=1, le=32)] = 5  # candidate boxes kept per episode
    target: TargetSettings = TargetSettings()
    foundation: FoundationSettings = FoundationSettings()
    choice: ChoiceSettings = ChoiceSettings()
    motion: MotionSettings = MotionSettings()
    prompts: PromptSamplingSettings = PromptSamplingSettings()
    filter: FilterSettings = FilterSettings()
