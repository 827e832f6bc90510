"""COCO instances: the untouched images of every annotated step, and their masks as compressed RLE with boxes and areas.

Format: https://cocodataset.org/#format-data. Only accepted episodes, and of these only the steps that have a mask: an
image without annotations would say that nothing is there. Where only one of object and gripper is marked on a step,
`not_annotated` of the image names the category that is not: its absence says nothing.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pixel160k.errors import InputError
from pixel160k.format import masks
from pixel160k.format.metadata import Metadata
from pixel160k.format.origins import origin_of
from pixel160k.format.shards import split_of
from pixel160k.format.table import ACCEPTED
from pixel160k.publish.steps import Step

GRIPPER_CATEGORY = "robot gripper"


def export(episodes: Iterable[list[Step]], manifest: dict[str, Any], folder: Path) -> dict[str, int]:
    """Write `images/KEY.jpg` (or `.png`) and `annotations/instances_SPLIT.json` into an empty folder, as COCO itself is laid out.

    All splits have the same categories, and no number of an image or instance comes twice, so that files can be joined.

    Returns:
        How many images, annotations and categories there are.

    Raises:
        InputError: there is no image with a mask.
    """
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    categories = {GRIPPER_CATEGORY: 1}
    counts = {"images": 0, "annotations": 0}
    splits: list[Path] = []
    for split, of_split in itertools.groupby(episodes, key=lambda episode: split_of(episode[0].metadata.episode_id)):
        splits.append(folder / "annotations" / f"instances_{split}.json")
        _write_split(splits[-1], folder / "images", of_split, manifest, categories, counts)
    if not counts["images"]:
        raise InputError("no step of an accepted episode has a mask, so there is nothing to export to coco")
    listed = [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]
    for path in splits:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f'],\n"categories": {json.dumps(listed)}}}\n')
    return counts | {"categories": len(categories)}


def _write_split(
    path: Path,
    images: Path,
    episodes: Iterable[list[Step]],
    manifest: dict[str, Any],
    categories: dict[str, int],
    counts: dict[str, int],
) -> None:
    """Write images and annotations of a split, all but the categories, which may still grow; adds to both dictionaries."""
    rest = path.with_suffix(".part")  # both lists grow together, but in the file one follows the other
    first = dict(counts)
    licence = origin_of(manifest).licence
    licences = [{"id": 1, "name": licence.name, "url": licence.url}] if licence else []
    of_image = {"license": 1} if licence else {}
    with open(path, "w", encoding="utf-8") as file, open(rest, "w+", encoding="utf-8") as part:
        file.write(f'{{"info": {json.dumps(_info(manifest))},\n"licenses": {json.dumps(licences)},\n"images": [')
        for step in itertools.chain.from_iterable(episodes):
            metadata = step.metadata
            if metadata.status != ACCEPTED or not (metadata.object_mask_valid or metadata.gripper_mask_valid):
                continue
            (images / step.image_name).write_bytes(step.image)
            file.write("\n" if counts["images"] == first["images"] else ",\n")
            counts["images"] += 1
            file.write(json.dumps(_image(counts["images"], step) | of_image))
            for category, mask in _instances(metadata, step.labels):
                number = categories.setdefault(category, len(categories) + 1)
                part.write("\n" if counts["annotations"] == first["annotations"] else ",\n")
                counts["annotations"] += 1
                part.write(json.dumps(_annotation(counts["annotations"], counts["images"], number, mask)))
        file.write('],\n"annotations": [')
        part.seek(0)
        for line in part:
            file.write(line)
    rest.unlink()


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
