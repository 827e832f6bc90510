"""Every choice of the annotation that the paper leaves open, as a named setting with its reason.

`pixelcli annotate --config FILE --set key=value`; docs/settings.md lists them. All of these change results, so all of
them are part of the settings hash; what does not (workers, runner, paths) is a command-line option instead.
"""

from typing import Annotated, Literal

from pydantic import Field

from pixel160k.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class MotionSettings(Settings):
    """How the weightless annotators read motion. Lengths are shares of the image height, so any resolution works."""

    blur_sigma: Annotated[float, Field(ge=0)] = 0.7  # pixels at 256; takes JPEG blocks and sensor noise away
    change_threshold: Annotated[float, Field(gt=0)] = 16.0  # grey levels of the most changed channel: a pixel changed
    lift_distance: Annotated[float, Field(gt=0)] = 0.04  # metres from the close pose: the object has left its place
    gripper_half_size: Share = 0.1  # half the side of the gripper box
    nearness: Annotated[float, Field(gt=0)] = 0.4  # how fast a changed region's weight falls with its distance
    moved_camera_share: Share = 0.5  # more of the image than this changed, even after registration: the camera moved


class PromptSettings(Settings):
    """The visual prompts sampled from every accepted mask."""

    points: Annotated[int, Field(ge=1, le=64)] = 3
    seed: int = 0


class FilterSettings(Settings):
    """The last step: what is accepted. Repeatable over the stored columns, without any model."""

    min_detection_score: Share = 0.2
    min_mask_score: Share = 0.2
    min_mask_area: Share = 0.001  # of the image: 66 pixels at 256 x 256
    max_mask_area: Share = 0.2
    min_inside_region: Share = 0.5  # of the object's mask
    min_evidence: Share = 0.3  # motion evidence below this contradicts the mask


class AnnotateSettings(Settings):
    """All settings of `pixelcli annotate`."""

    annotators: Literal["motion"]
    camera: str = ""  # "" is the source's main camera
    approach_frames: Annotated[int, Field(ge=0, le=64)] = 3  # decoded between the first step and the close
    evidence_frames: Annotated[int, Field(ge=4, le=64)] = 8  # decoded after the close
    region_expansion: Annotated[float, Field(ge=1)] = 1.7  # the gripper box is scaled by this to propose a region
    detections: Annotated[int, Field(ge=1, le=32)] = 5  # candidates kept an episode
    motion: MotionSettings = MotionSettings()
    prompts: PromptSettings = PromptSettings()
    filter: FilterSettings = FilterSettings()
