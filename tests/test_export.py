"""`pixelcli export`: what every format promises, COCO by `pycocotools`, annotations joined back to the RLDS source."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from click.testing import CliRunner
from export_source import raw_samples, sample_shards
from pycocotools.coco import COCO
from scene import episode, write_scenes

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from annotate.sources.sample import default_directory
from cli import main
from pixel160k.format import masks
from pixel160k.paths import read_range
from pixel160k.publish.export import FORMATS, export
from pixel160k.publish.steps import read_episodes
from pixel160k.read.episodes import ShardDirectory

EXPORT_DOC = Path(__file__).parents[1] / "docs" / "export.md"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return sample_shards(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Small shards: one accepted episode and one without a target."""
    path = tmp_path_factory.mktemp("drawn")
    data = write_scenes(path / "data", [episode(), episode(instruction="pick it up", seed=1)])
    annotate("libero", data, path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    build_shards(path / "annotations", path / "shards", Execution(), include="all")
    return path / "shards"


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(*arguments):
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def rate(to):
    """LIBERO's data sets have no rate of their own, and only LeRobot's format asks for one."""
    return ["--fps", 10] if to == "lerobot" else []


@pytest.mark.parametrize("to", FORMATS)
def test_same_shards_same_bytes(drawn, tmp_path, to):
    for name in ("first", "second"):
        assert run("--shards", drawn, "--to", to, "--out", tmp_path / name, *rate(to))[0] == 0
    assert digests(tmp_path / "first") == digests(tmp_path / "second") != {}
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
    assert to == "coco" or "Cite the source: Liu et al., LIBERO" in (tmp_path / "first" / "README.md").read_text()


@pytest.mark.parametrize("to", FORMATS)
def test_an_out_that_is_not_empty_is_refused(drawn, tmp_path, to):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    code, output = run("--shards", drawn, "--to", to, "--out", tmp_path / "out", *rate(to))
    assert (code, output.splitlines()[-1]) == (1, f"Error: {tmp_path / 'out'} is not empty; choose a new --out")
    assert digests(tmp_path / "out").keys() == {"thesis.tex"}


@pytest.mark.parametrize("to", FORMATS)
def test_damaged_shards_leave_nothing_behind(drawn, tmp_path, to):
    """A tar cut between two samples reads without an error: the count tells."""
    damaged = shutil.copytree(drawn, tmp_path / "shards")
    (path,) = damaged.glob("*.tar")
    with tarfile.open(path) as tar:
        offset = next(member.offset for member in tar if "-0020." in member.name)
    path.write_bytes(path.read_bytes()[:offset])
    code, output = run("--shards", damaged, "--to", to, "--out", tmp_path / "out", *rate(to))
    assert code == 1
    assert "cannot be read at" in output and "`pixelcli verify` says more" in output.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"shards"}


def test_a_damaged_image_is_named(drawn, tmp_path):
    """LeRobot's statistics are of pixels, so there images are decoded."""
    damaged = shutil.copytree(drawn, tmp_path / "shards")
    (path,) = damaged.glob("*.tar")
    content = bytearray(path.read_bytes())
    begin = content.index(b"\xff\xd8")
    content[begin : begin + 1000] = bytes(1000)
    path.write_bytes(content)
    code, output = run("--shards", damaged, "--to", "lerobot", "--out", tmp_path / "out", *rate("lerobot"))
    assert code == 1 and "drawn-train-00000-00000-0000.jpg is damaged" in output and "`pixelcli verify`" in output


def test_an_episode_is_read_in_one_request(drawn, monkeypatch):
    """In an object store one per step takes days where one per episode takes hours."""
    read = []
    monkeypatch.setattr(
        "pixel160k.read.episodes.read_range", lambda *asked: (read.append(asked), read_range(*asked))[1]
    )
    episodes = list(read_episodes(ShardDirectory(drawn), lambda samples: None))
    assert len(read) == len(episodes) == 2 and [len(episode) for episode in episodes] == [24, 24]
    directory = ShardDirectory(drawn, history=2)
    samples = directory.episode(directory.episode_ids[0])
    assert len(read) == 3 and len(samples) == 24
    for step in (0, 1, 9):
        alone = directory.sample(directory.episode_ids[0], step)
        np.testing.assert_array_equal(samples[step].history, alone.history)
        np.testing.assert_array_equal(samples[step].history_valid, alone.history_valid)


def test_no_shards(tmp_path):
    code, output = run("--shards", tmp_path, "--to", "coco", "--out", tmp_path / "out")
    assert code == 1 and "holds no shards" in output


def test_shards_without_samples(tmp_path):
    """Nothing accepted, nothing exported: said in one line, not by an empty data set."""
    data = write_scenes(tmp_path / "data", [episode(instruction="pick it up")])
    annotate("libero", data, tmp_path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    build_shards(tmp_path / "annotations", tmp_path / "shards", Execution())
    code, output = run("--shards", tmp_path / "shards", "--to", "hf", "--out", tmp_path / "out")
    assert code == 1 and "shards holds no samples, so there is nothing to export" in output
    build_shards(tmp_path / "annotations", tmp_path / "rejected", Execution(), include="all")
    code, output = run("--shards", tmp_path / "rejected", "--to", "coco", "--out", tmp_path / "out")
    assert code == 1 and "no step of an accepted episode has a mask" in output
    assert not (tmp_path / "out").exists()


def test_lerobot_wants_a_control_rate_where_the_source_has_none(drawn, tmp_path):
    code, output = run("--shards", drawn, "--to", "lerobot", "--out", tmp_path / "out")
    assert code == 1
    assert "data sets of source 'libero' have no fixed control rate; give it in Hz with --fps" in output
    code, output = run("--shards", drawn, "--to", "lerobot", "--out", tmp_path / "out", "--fps", "nan")
    assert code == 1 and "above 0, not nan" in output and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def coco_folder(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco") / "out"
    counts = export(shards, "coco", folder)
    assert counts["images"] == len(list((folder / "images").iterdir()))
    return folder


def test_coco_masks_are_ours(shards, coco_folder):
    """Every instance that `pycocotools` decodes is the label image's, box and area fit, and none is missing."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(coco_folder / "annotations/instances_train.json")
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    images = {image["file_name"].removesuffix(".jpg"): image for image in coco.loadImgs(coco.getImgIds())}
    expected = set()
    for sample in raw_samples(shards):
        metadata = sample["metadata"]
        if not (metadata["object_mask_valid"] or metadata["gripper_mask_valid"]):
            continue
        expected.add(sample["key"])
        image = images[sample["key"]]
        labels = masks.decode_indexed_png(sample["mask.png"])
        assert (image["height"], image["width"]) == labels.shape
        assert (coco_folder / "images" / image["file_name"]).read_bytes() == sample["jpg"]
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        for annotation in found:
            mask = coco.annToMask(annotation).astype(bool)
            label = masks.GRIPPER if names[annotation["category_id"]] == "robot gripper" else masks.TARGET
            np.testing.assert_array_equal(mask, labels == label)
            assert label == masks.GRIPPER or names[annotation["category_id"]] == metadata["target_object"]
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == masks.box_of(mask)
            assert annotation["area"] == mask.sum() == masks.area(annotation["segmentation"])
        assert len(found) == len({masks.TARGET, masks.GRIPPER} & set(np.unique(labels).tolist()))
        assert image["not_annotated"] == (
            ([] if metadata["object_mask_valid"] else [metadata["target_object"]])
            + ([] if metadata["gripper_mask_valid"] else ["robot gripper"])
        )
    assert set(images) == expected
    assert len({annotation["id"] for annotation in coco.loadAnns(coco.getAnnIds())}) == len(coco.getAnnIds())


def test_coco_says_the_licence_of_the_images(coco_folder, drawn, tmp_path):
    described = json.loads((coco_folder / "annotations/instances_train.json").read_text())
    (licence,) = described["licenses"]
    assert licence["name"] == "Apache-2.0" and {image["license"] for image in described["images"]} == {licence["id"]}
    export(drawn, "coco", tmp_path / "out")  # of a source whose licence only its own card knows
    described = json.loads((tmp_path / "out" / "annotations/instances_train.json").read_text())
    assert described["licenses"] == [] and "license" not in described["images"][0]


def test_coco_has_both_classes_on_tracked_steps(coco_folder):
    """Else the test above would show little."""
    described = json.loads((coco_folder / "annotations/instances_train.json").read_text())
    images = [annotation["image_id"] for annotation in described["annotations"]]
    assert len(images) - len(set(images)) > 20


def test_coco_holds_accepted_episodes_only(drawn, tmp_path):
    export(drawn, "coco", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "annotations/instances_train.json").read_text())
    assert {image["episode_id"] for image in described["images"]} == {"drawn-train-00000-00000"}


@pytest.fixture(scope="module")
def hf_folder(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "out"
    assert export(shards, "hf", folder) == {"rows": 477}
    return folder


@pytest.fixture(scope="module")
def rows(hf_folder):
    datasets = pytest.importorskip("datasets", reason="needs the extra [export]")
    return datasets.load_dataset(str(hf_folder), split="train", cache_dir=str(hf_folder.with_name("cache")))


def test_annotations_hold_no_image_and_no_action(shards, rows):
    assert "mask" in rows.column_names and not {"jpg", "image", "action", "state"} & set(rows.column_names)
    jpegs = sum(len(sample["jpg"]) for sample in raw_samples(shards))
    assert rows.data.nbytes < jpegs / 2


def test_a_mask_is_found_as_the_card_says(shards, hf_folder, rows, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    wanted = list(raw_samples(shards))[99]
    names = {"EPISODE_ID": wanted["metadata"]["episode_id"], "STEP": wanted["metadata"]["step"]}
    exec(re.search(r"```python\n(.*?)```", (hf_folder / "README.md").read_text(), re.DOTALL)[1], names)
    np.testing.assert_array_equal(np.asarray(names["mask"]), masks.decode_indexed_png(wanted["mask.png"]))


def test_annotations_join_to_the_source(shards, rows):
    """By episode id and step alone, by the code of docs/export.md, every row finds its image, and the checksum agrees."""
    names = {"DATA_DIR": default_directory()}
    exec(
        re.search(r"```python\n(.*?)```", EXPORT_DOC.read_text(), re.DOTALL)[1].replace("bridge_orig", "sample"), names
    )
    images = dict(names["images"]())
    joined = 0
    for row, sample in zip(rows, raw_samples(shards), strict=True):
        image = images[row["episode_id"]][row["step"]]
        assert google_crc32c.value(image) == row["image_crc32c"]
        assert image == sample["jpg"]
        labels = np.asarray(row["mask"])
        np.testing.assert_array_equal(labels, masks.decode_indexed_png(sample["mask.png"]))
        assert labels.shape == (row["image_height"], row["image_width"])
        assert {name: row[name] for name in ("instruction", "status", "object_mask_valid")} == {
            name: sample["metadata"][name] for name in ("instruction", "status", "object_mask_valid")
        }
        joined += 1
    assert joined == 477
