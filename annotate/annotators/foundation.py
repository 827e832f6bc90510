"""The paper's annotators in their roles: SAM 2 over discrete videos for the gripper, Grounding DINO + SAM 2 for the object."""

from collections.abc import Sequence

import numpy as np

from annotate.annotators.detector import Detector, crop_window, shift_box
from annotate.annotators.roles import Candidate, FoundObject, Gripper
from annotate.annotators.segmenter import Segment, Segmenter, tidy
from annotate.settings import FoundationSettings
from pixel160k.format import masks
from pixel160k.format.table import Box, Detection


class TrackedGripperFinder:
    """Tracks the gripper through the discrete video of a group's close frames.

    The most confident frame is prompted, with the user's prompt or the detector's box, and SAM 2 carries the gripper's
    look to the others, both ways. Where the track fails, the detector prompts that frame anew; short groups are
    prompted frame by frame.
    """

    def __init__(self, detector: Detector, segmenter: Segmenter, settings: FoundationSettings) -> None:
        """Use these models."""
        self._detector, self._segmenter, self._settings = detector, segmenter, settings

    def find_grippers(self, candidates: Sequence[Candidate]) -> list[Gripper | None]:
        """One answer a candidate, on its close frame; None where neither track nor detector found it."""
        frames = [candidate.keyframes.close for candidate in candidates]
        found = self._detector.detect(frames, [self._settings.gripper_phrase] * len(frames))
        boxes = {place: detections[0] for place, detections in enumerate(found) if detections}
        grippers: dict[int, Gripper] = {}
        if prompt := self._prompt(boxes, frames):
            segments = self._segmenter.track(frames, *prompt)
            grippers = self._keep(dict(enumerate(segments)))
        again = [place for place in boxes if place not in grippers]
        segments = self._segmenter.segment([frames[place] for place in again], [boxes[place].box for place in again])
        grippers |= self._keep(dict(zip(again, segments, strict=True)))
        return [grippers.get(place) for place in range(len(frames))]

    def _prompt(self, boxes: dict[int, Detection], frames: Sequence[np.ndarray]) -> tuple[int, Sequence[float]] | None:
        """The frame to prompt and its prompt; None where the frames make no video or there is nothing to prompt with."""
        if len({frame.shape for frame in frames}) > 1:
            return None
        if self._settings.gripper_prompt:
            return 0, self._settings.gripper_prompt
        if not boxes or len(frames) < self._settings.min_video_length:
            return None
        confident = max(boxes, key=lambda place: boxes[place].score)
        return confident, boxes[confident].box

    def _keep(self, segments: dict[int, Segment]) -> dict[int, Gripper]:
        """The segments that can be a gripper: present, and neither empty nor too large."""
        grippers = {}
        for place, segment in segments.items():
            mask = tidy(segment.mask)
            if segment.score >= self._settings.min_gripper_score and 0 < mask.mean() <= self._settings.max_gripper_area:
                grippers[place] = Gripper(masks.box_of(mask), mask)
        return grippers


class DetectedObjectFinder:
    """Grounding DINO finds the noun in the region proposal, SAM 2 cuts it out there."""

    def __init__(self, detector: Detector, segmenter: Segmenter, detections: int) -> None:
        """Use these models and keep up to so many candidate boxes an episode."""
        self._detector, self._segmenter, self._detections = detector, segmenter, detections

    def find_objects(
        self, candidates: Sequence[Candidate], regions: Sequence[Box], targets: Sequence[str]
    ) -> list[FoundObject]:
        """One answer a candidate; the crop is the square around the region, boxes count whose centre lies in the region."""
        found = [FoundObject() for _ in candidates]
        asked = [place for place, target in enumerate(targets) if target]
        frames = {place: candidates[place].keyframes.initial for place in asked}
        windows = {place: crop_window(regions[place], *frames[place].shape[:2]) for place in asked}
        crops = {place: _crop(frames[place], windows[place]) for place in asked}
        detected = self._detector.detect(list(crops.values()), [targets[place] for place in asked])
        inside = {
            place: [item for item in detections if _centre_inside(_on_frame(item, windows[place]).box, regions[place])]
            for place, detections in zip(asked, detected, strict=True)
        }
        cut = [place for place in asked if inside[place]]
        segments = self._segmenter.segment([crops[place] for place in cut], [inside[place][0].box for place in cut])
        for place, segment in zip(cut, segments, strict=True):
            detections = [_on_frame(item, windows[place]) for item in inside[place][: self._detections]]
            mask = _paste(tidy(segment.mask), windows[place], frames[place].shape[:2])
            found[place] = FoundObject(detections, mask if mask.any() else None, segment.score)
        return found


def _crop(frame: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = window
    return frame[y0:y1, x0:x1]


def _paste(mask: np.ndarray, window: tuple[int, int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """A crop's mask in the place where the crop was taken."""
    x0, y0, x1, y1 = window
    full = np.zeros(shape, bool)
    full[y0:y1, x0:x1] = mask
    return full


def _on_frame(detection: Detection, window: tuple[int, int, int, int]) -> Detection:
    return Detection(shift_box(detection.box, window[0], window[1]), detection.score)


def _centre_inside(box: Box, region: Box) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return region[0] <= x < region[2] and region[1] <= y < region[3]
