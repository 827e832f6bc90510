"""The paper's annotators: SAM 2 over discrete videos finds the gripper, Grounding DINO and SAM 2 the object."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from annotate.annotators.detector import Detector, crop_window, shift_box
from annotate.annotators.lanes import Video
from annotate.annotators.mask_cleaning import tidy
from annotate.annotators.roles import FoundObject, Gripper, KeyframedEpisode
from annotate.annotators.segmenter import Segment, Segmenter
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

    def find_grippers(self, groups: Sequence[Sequence[KeyframedEpisode]]) -> list[list[Gripper | None]]:
        """For each group one answer per episode, on its close frame; None where neither track nor detector found a gripper.

        The frames of all groups go through the detector together, and so do the videos through the segmenter.
        """
        frames = [[episode.keyframes.close for episode in group] for group in groups]
        places = [(group, index) for group, several in enumerate(frames) for index in range(len(several))]
        every = [frames[group][index] for group, index in places]
        found = self._detector.detect(every, [self._settings.gripper_phrase] * len(every))
        boxes: list[dict[int, Detection]] = [{} for _ in frames]
        for (group, index), detections in zip(places, found, strict=True):
            if detections:
                boxes[group][index] = detections[0]
        videos = {
            group: Video(several, [prompt])
            for group, several in enumerate(frames)
            if (prompt := self._prompt(boxes[group], several))
        }
        grippers: dict[tuple[int, int], Gripper] = {}
        for group, (segments,) in zip(videos, self._segmenter.follow(videos.values()), strict=True):
            grippers |= self._keep({(group, index): segment for index, segment in enumerate(segments)})
        again = [(group, index) for group, index in places if index in boxes[group] and (group, index) not in grippers]
        anew = self._segmenter.segment(
            [frames[group][index] for group, index in again], [boxes[group][index].box for group, index in again]
        )
        grippers |= self._keep(dict(zip(again, anew, strict=True)))
        return [[grippers.get((group, index)) for index in range(len(several))] for group, several in enumerate(frames)]

    def _prompt(self, boxes: dict[int, Detection], frames: Sequence[np.ndarray]) -> tuple[int, Sequence[float]] | None:
        """The frame to prompt and its prompt; None where the frames make no video or there is nothing to prompt with."""
        if len({frame.shape for frame in frames}) > 1:
            return None
        if self._settings.gripper_prompt:
            return 0, self._settings.gripper_prompt
        if not boxes or len(frames) < self._settings.min_video_length:
            return None
        confident = max(boxes, key=lambda index: boxes[index].score)
        return confident, boxes[confident].box

    def _keep(self, segments: dict[tuple[int, int], Segment]) -> dict[tuple[int, int], Gripper]:
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
        """Use these models and keep up to `detections` candidate boxes per episode."""
        self._detector, self._segmenter, self._detections = detector, segmenter, detections

    def find_objects(
        self, episodes: Sequence[KeyframedEpisode], regions: Sequence[Box], targets: Sequence[str]
    ) -> list[FoundObject]:
        """One answer per episode.

        The detector sees the square around the region; a box counts if its centre lies in the region.
        """
        found = [FoundObject() for _ in episodes]
        asked = [index for index, target in enumerate(targets) if target]
        frames = {index: episodes[index].keyframes.initial for index in asked}
        windows = {index: crop_window(regions[index], *frames[index].shape[:2]) for index in asked}
        crops = {index: _crop(frames[index], windows[index]) for index in asked}
        phrases = {index: self._detector.readable(targets[index]) for index in asked}
        detected = self._detector.detect(list(crops.values()), list(phrases.values()))
        inside = {
            index: [item for item in detections if _centre_inside(_on_frame(item, windows[index]).box, regions[index])]
            for index, detections in zip(asked, detected, strict=True)
        }
        for index, phrase in phrases.items():
            if phrase != targets[index]:
                detail = (
                    f"the detector was asked for the target's first {len(phrase)} of {len(targets[index])} characters"
                )
                found[index] = FoundObject(detail=detail)
        cut = [index for index in asked if inside[index]]
        segments = self._segmenter.segment([crops[index] for index in cut], [inside[index][0].box for index in cut])
        for index, segment in zip(cut, segments, strict=True):
            detections = [_on_frame(item, windows[index]) for item in inside[index][: self._detections]]
            mask = _paste(tidy(segment.mask), windows[index], frames[index].shape[:2])
            found[index] = replace(
                found[index], detections=detections, mask=mask if mask.any() else None, mask_score=segment.score
            )
        return found


def _crop(frame: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = window
    return frame[y0:y1, x0:x1]


def _paste(mask: np.ndarray, window: tuple[int, int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    """A crop's mask as a mask of the whole frame, False outside the crop."""
    x0, y0, x1, y1 = window
    full = np.zeros(shape, bool)
    full[y0:y1, x0:x1] = mask
    return full


def _on_frame(detection: Detection, window: tuple[int, int, int, int]) -> Detection:
    return Detection(shift_box(detection.box, window[0], window[1]), detection.score)


def _centre_inside(box: Box, region: Box) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return region[0] <= x < region[2] and region[1] <= y < region[3]
