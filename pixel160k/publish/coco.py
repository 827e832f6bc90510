"""COCO instances: the untouched images of every annotated step, and their masks as compressed RLE with boxes and areas.

Format: https://cocodataset.org/#format-data. Only accepted episodes, and of these only the steps that have a mask: an
image without annotations would say that nothing is there. Where only one of object and gripper is marked on a step,
`not_annotated` of the image names the category that is not: its absence says nothing.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pixel160k.format import masks
from pixel160k.format.metadata import Metadata
from pixel160k.format.origins import origin_of
from pixel160k.format.table import ACCEPTED
from pixel160k.publish.steps import Step

GRIPPER_CATEGORY = "robot gripper"


def export(episodes: Iterable[list[Step]], manifest: dict[str, Any], folder: Path) -> dict[str, int]:
    """Write `images/KEY.jpg` (or `.png`) and `annotations.json` into an empty folder; returns images, annotations and categories."""
    (folder / "images").mkdir()
    categories = {GRIPPER_CATEGORY: 1}
    counts = {"images": 0, "annotations": 0}
    rest = folder / "annotations.part"  # both lists grow together, but in the file one follows the other
    with open(folder / "annotations.json", "w", encoding="utf-8") as file, open(rest, "w+", encoding="utf-8") as part:
        file.write(f'{{"info": {json.dumps(_info(manifest))},\n"images": [')
        for episode in episodes:
            for step in episode:
                metadata = step.metadata
                if metadata.status != ACCEPTED or not (metadata.object_mask_valid or metadata.gripper_mask_valid):
                    continue
                (folder / "images" / step.image_name).write_bytes(step.image)
                file.write(",\n" if counts["images"] else "\n")
                counts["images"] += 1
                file.write(json.dumps(_image(counts["images"], step)))
                for category, mask in _instances(metadata, step.labels):
                    number = categories.setdefault(category, len(categories) + 1)
                    part.write(",\n" if counts["annotations"] else "\n")
                    counts["annotations"] += 1
                    part.write(json.dumps(_annotation(counts["annotations"], counts["images"], number, mask)))
        file.write('],\n"annotations": [')
        part.seek(0)
        for line in part:
            file.write(line)
        listed = [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]
        file.write(f'],\n"categories": {json.dumps(listed)}}}\n')
    rest.unlink()
    return counts | {"categories": len(categories)}


def _info(manifest: dict[str, Any]) -> dict[str, str]:
    return {
        "description": f"{manifest['dataset']}: pixel annotations made with pixelvla {manifest['software']}",
        "version": str(manifest["format_version"]),
        "contributor": origin_of(manifest).credit,
    }


def _image(number: int, step: Step) -> dict[str, Any]:
    metadata = step.metadata
    missing = []
    if not metadata.object_mask_valid:
        missing.append(_object_category(metadata))
    if not metadata.gripper_mask_valid:
        missing.append(GRIPPER_CATEGORY)
    return {
        "id": number,
        "file_name": step.image_name,
        "height": step.labels.shape[0],
        "width": step.labels.shape[1],
        "episode_id": metadata.episode_id,
        "step": metadata.step,
        "instruction": metadata.instruction,
        "not_annotated": missing,
    }


def _instances(metadata: Metadata, labels: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Category and mask of what is visible: the target as far as the gripper does not cover it, and the gripper."""
    found = [(_object_category(metadata), labels == masks.TARGET), (GRIPPER_CATEGORY, labels == masks.GRIPPER)]
    return [(category, mask) for category, mask in found if mask.any()]


def _object_category(metadata: Metadata) -> str:
    return metadata.target_object or "object"


def _annotation(number: int, image: int, category: int, mask: np.ndarray) -> dict[str, Any]:
    x0, y0, x1, y1 = masks.box_of(mask)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": masks.encode(mask),
    }
