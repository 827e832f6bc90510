"""What each public reader sees of a shard directory: the RGB pixels of each image, and the labels under it, by the sample's key.

docs/format.md lists these readers. Nothing is converted here: a reader that gives other channels than RGB shows that.
"""

import contextlib
import io
import json

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from pycocotools.coco import COCO

from pixel160k import ShardDirectory, open_shards
from pixel160k.format import masks
from pixel160k.publish.export import export


def by_loader(directory, scratch):
    return {sample.key: (sample.image, sample.labels) for sample in open_shards(directory, interleave=0)}


def by_shard_directory(directory, scratch):
    opened = ShardDirectory(directory)
    samples = [sample for episode_id in opened.episode_ids for sample in opened.episode(episode_id)]
    return {sample.key: (sample.image, sample.labels) for sample in samples}


def members(directory):
    """The members of all samples as bytes, by plain webdataset; the image's is `image`."""
    tars = sorted(map(str, directory.glob("*.tar")))
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        (image,) = {"jpg", "png"} & sample.keys()
        yield sample["__key__"], sample[image], sample["mask.png"]


def by_webdataset_and_pillow(directory, scratch):
    return {
        key: tuple(np.asarray(Image.open(io.BytesIO(part))) for part in parts) for key, *parts in members(directory)
    }


def by_webdataset_and_opencv(directory, scratch):
    """Of the labels OpenCV sees the palette's colours only."""

    def decode(encoded):
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    colours = np.array(masks._PALETTE).reshape(256, 3)
    found = {}
    for key, image, mask in members(directory):
        levels = {tuple(colours[label].tolist()): label for label in (0, 1, 2, 255)}
        labels = [[levels[tuple(pixel)] for pixel in row] for row in decode(mask).tolist()]
        found[key] = decode(image), np.array(labels, np.uint8)
    return found


def by_webdatasets_own_decoder(directory, scratch):
    """`.decode("rgb8")` is for images; it would make colours of the labels, which are therefore not asked of it."""
    tars = sorted(map(str, directory.glob("*.tar")))
    decoded = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8", only=["jpg", "png"])
    return {sample["__key__"]: (sample.get("jpg", sample.get("png")), None) for sample in decoded}


def by_datasets(directory, scratch):
    import datasets

    loaded = datasets.load_dataset(str(directory), split="train", cache_dir=str(scratch / "cache"))
    images = [name for name in ("jpg", "png") if name in loaded.column_names]
    found = {}
    for row in loaded:
        (image,) = [row[name] for name in images if row[name] is not None]
        found[row["__key__"]] = np.asarray(image), np.asarray(row["mask.png"])
    return found


def by_pycocotools(directory, scratch):
    """Steps with a mask only; what is not annotated there has no place in COCO, and is 0 here."""
    export(directory, "coco", scratch / "coco")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(scratch / "coco" / "annotations" / "instances_train.json")
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    found = {}
    for image in coco.loadImgs(coco.getImgIds()):
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            label = masks.GRIPPER if names[annotation["category_id"]] == "robot gripper" else masks.TARGET
            labels[coco.annToMask(annotation).astype(bool)] = label
        pixels = np.asarray(Image.open(scratch / "coco" / "images" / image["file_name"]))
        found[image["file_name"].rpartition(".")[0]] = pixels, labels
    return found


def by_lerobots_files(directory, scratch):
    """The export's Parquet as `lerobot` reads it: each image has the shape that info.json declares."""
    export(directory, "lerobot", scratch / "lerobot", fps=5)
    features = json.loads((scratch / "lerobot" / "meta" / "info.json").read_text())["features"]
    camera = next(name for name in features if name.startswith("observation.images."))
    found = {}
    for row in pq.read_table(scratch / "lerobot" / "data").to_pylist():
        pair = [row[name] for name in (camera, "observation.mask")]
        image, labels = (np.asarray(Image.open(io.BytesIO(stored["bytes"]))) for stored in pair)
        assert image.shape == tuple(features[camera]["shape"])
        found[pair[0]["path"].rpartition(".")[0]] = image, labels
    return found


def by_mlcroissant(directory, scratch):
    import mlcroissant
    from mlcroissant._src.operation_graph.operations import extract

    with pytest.MonkeyPatch.context() as patch:  # else tars of the same name would be taken from a cache
        patch.setattr(extract, "EXTRACT_PATH", extract.epath.Path(scratch / "extracted"))
        described = mlcroissant.Dataset(jsonld=directory / "croissant.json")
        named = [record_set.name for record_set in described.metadata.record_sets]
        pictures = {}
        for name in named:
            if name.endswith("images"):
                pictures |= {row[f"{name}/key"].decode(): row[f"{name}/image"] for row in described.records(name)}
        labels = {row["masks/key"].decode(): row["masks/mask"] for row in described.records("masks")}
    return {key: (np.asarray(picture), np.asarray(labels[key])) for key, picture in pictures.items()}


CHEAP = [by_loader, by_shard_directory, by_webdataset_and_pillow]
EVERY = [*CHEAP, by_webdataset_and_opencv, by_webdatasets_own_decoder, by_pycocotools, by_lerobots_files]
FROM_EXTRAS = {"datasets": by_datasets, "mlcroissant": by_mlcroissant}  # need the extra [export]


def assert_readers_agree(directory, scratch, readers=CHEAP):
    """Every reader sees the same pixels, uint8 (height, width, 3), under labels of the same size; returns them by key."""
    expected = by_shard_directory(directory, scratch)
    for reader in readers:
        found = reader(directory, scratch)
        assert found.keys() == expected.keys() or (reader is by_pycocotools and found.keys() < expected.keys())
        for key, (image, labels) in found.items():
            same, marked = expected[key]
            assert image.dtype == np.uint8 and image.shape == (*marked.shape, 3), f"{reader.__name__}: {key}"
            np.testing.assert_array_equal(image, same, err_msg=f"{reader.__name__}: {key}")
            if reader is by_pycocotools:
                marked = np.where(marked == masks.NOT_ANNOTATED, 0, marked)
            if labels is not None:
                np.testing.assert_array_equal(labels, marked, err_msg=f"{reader.__name__}: {key}")
    return expected
