"""The paper's annotators: SAM 2 over discrete videos finds the gripper, Grounding DINO and SAM 2 the object."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from annotate.annotators.candidates import Candidate, distinct, fingers_end, ranked
from annotate.annotators.detector import Detector
from annotate.annotators.grammar import verb_class
from annotate.annotators.lanes import Video
from annotate.annotators.mask_cleaning import near_box, tidy
from annotate.annotators.regions import Window, centre_inside, crop_window, opened, reaches_out, shift_box
from annotate.annotators.roles import FoundObject, Gripper, KeyframedEpisode
from annotate.annotators.segmenter import Segment, Segmenter
from annotate.annotators.touched import SAME_PART, part_of, ranked_parts, stays_in_place
from annotate.settings import ChoiceSettings, FoundationSettings
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
    """Grounding DINO finds the noun in the region proposal, SAM 2 cuts the best boxes out, and one of them is chosen."""

    def __init__(self, detector: Detector, segmenter: Segmenter, detections: int, choice: ChoiceSettings) -> None:
        """Use these models, cut out up to `detections` boxes per episode, and choose as candidates.py says."""
        self._detector, self._segmenter, self._detections, self._choice = detector, segmenter, detections, choice

    def find_objects(
        self,
        episodes: Sequence[KeyframedEpisode],
        grippers: Sequence[Gripper],
        regions: Sequence[Box],
        targets: Sequence[str],
    ) -> list[FoundObject]:
        """One answer per episode.

        The detector sees a square around the region; a box counts if its centre lies in the region. SAM 2 sees the same
        square, or the whole frame where one of the boxes ends at an edge of the square. Where nothing is carried away,
        the part that the hand takes hold of is looked for first, and then the target itself (touched.py).
        """
        kinds = [verb_class(episode.episode.instruction) for episode in episodes]
        parts = [part_of(kind, target) for kind, target in zip(kinds, targets, strict=True)]
        found = self._find(episodes, grippers, regions, targets, parts)
        missing = {index for index, part in enumerate(parts) if part and not self._is_sure(found[index])}
        if missing:
            themselves = [target if index in missing else "" for index, target in enumerate(targets)]
            whole = self._find(episodes, grippers, regions, themselves, [""] * len(targets))
            for index in missing:
                detail = f"no {parts[index]} was found, so the target is what was named"
                found[index] = replace(whole[index], detail="; ".join(filter(None, (detail, whole[index].detail))))
        return [
            replace(one, mask=_clip(one.mask, region)) if stays_in_place(kind) and not one.part else one
            for one, kind, region in zip(found, kinds, regions, strict=True)
        ]

    def _is_sure(self, found: FoundObject) -> bool:
        return found.mask is not None and found.detections[0].score >= self._choice.min_part_score

    def _find(
        self,
        episodes: Sequence[KeyframedEpisode],
        grippers: Sequence[Gripper],
        regions: Sequence[Box],
        targets: Sequence[str],
        parts: Sequence[str],
    ) -> list[FoundObject]:
        """`find_objects` for the parts of targets; for the targets themselves where a part is ""."""
        found = [FoundObject(part=part) for part in parts]
        asked = [index for index, target in enumerate(targets) if target]
        frames = {index: episodes[index].keyframes.initial for index in asked}
        windows = {
            index: crop_window(regions[index], self._choice.context, *frames[index].shape[:2]) for index in asked
        }
        phrases = {index: self._detector.readable(parts[index] or targets[index]) for index in asked}
        detected = self._detector.detect(
            [_crop(frames[index], windows[index]) for index in asked], list(phrases.values())
        )
        boxes: dict[int, list[Detection]] = {}
        for index, detections in zip(asked, detected, strict=True):
            if phrases[index] != (parts[index] or targets[index]):
                detail = (
                    f"the detector was asked for the target's first {len(phrases[index])} of "
                    f"{len(targets[index])} characters"
                )
                found[index] = replace(found[index], detail=detail)
            on_frame = [_shifted(item, windows[index]) for item in detections]
            inside = [item for item in on_frame if centre_inside(item.box, regions[index])]
            overlap = SAME_PART if parts[index] else self._choice.distinct
            if kept := distinct(inside, overlap, self._detections):
                boxes[index] = kept
        for index, candidates in zip(boxes, self._cut_out(frames, windows, boxes), strict=True):
            # A driving base moves the camera with it, and the arm's way through the image means nothing then.
            motion = None if episodes[index].episode.base_moves else episodes[index].motion
            usable = None if motion is None or motion.unusable else motion
            # Candidates lie on the first frame, the gripper's box on the close frame.
            hand = grippers[index].box if motion is None else shift_box(grippers[index].box, *motion.close_offset)
            if parts[index]:
                best = ranked_parts(candidates, hand, usable, targets[index], self._choice)
            else:
                entry = None if motion is None or motion.camera_moved else motion.arm_entry
                best = ranked(candidates, fingers_end(hand, entry), usable, self._choice)
            found[index] = replace(
                found[index],
                detections=[candidate.detection for candidate in best],
                mask=best[0].mask if best[0].mask.any() else None,
                mask_score=best[0].mask_score,
            )
        return found

    def _cut_out(
        self, frames: dict[int, np.ndarray], windows: dict[int, Window], boxes: dict[int, list[Detection]]
    ) -> list[list[Candidate]]:
        """The candidates of every frame that has boxes; each frame is encoded once."""
        limits = {
            index: [opened(item.box, windows[index], *frames[index].shape[:2]) for item in detections]
            for index, detections in boxes.items()
        }
        seen = {
            index: (0, 0, frames[index].shape[1], frames[index].shape[0])
            if any(reaches_out(limit, windows[index]) for limit in limits[index])
            else windows[index]
            for index in boxes
        }
        prompts = [
            [shift_box(item.box, -seen[index][0], -seen[index][1]) for item in detections]
            for index, detections in boxes.items()
        ]
        cut = self._segmenter.segment_each([_crop(frames[index], seen[index]) for index in boxes], prompts)
        candidates = []
        for (index, detections), segments in zip(boxes.items(), cut, strict=True):
            shape = frames[index].shape[:2]
            of_frame = zip(detections, limits[index], segments, strict=True)
            candidates.append(
                [
                    Candidate(item, tidy(near_box(_paste(segment.mask, seen[index], shape), limit)), segment.score)
                    for item, limit, segment in of_frame
                ]
            )
        return candidates


def _clip(mask: np.ndarray | None, region: Box) -> np.ndarray | None:
    """What of a mask lies in a region; None for nothing."""
    inside = None if mask is None else mask & masks.inside_box(region, *mask.shape)
    return inside if inside is not None and inside.any() else None


def _crop(frame: np.ndarray, window: Window) -> np.ndarray:
    x0, y0, x1, y1 = window
    return frame[y0:y1, x0:x1]


def _paste(mask: np.ndarray, window: Window, shape: tuple[int, ...]) -> np.ndarray:
    """A crop's mask as a mask of the whole frame, False outside the crop."""
    x0, y0, x1, y1 = window
    full = np.zeros(shape, bool)
    full[y0:y1, x0:x1] = mask
    return full


def _shifted(detection: Detection, window: Window) -> Detection:
    """A detection on a crop as one on the frame."""
    return Detection(shift_box(detection.box, window[0], window[1]), detection.score)
