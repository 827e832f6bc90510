"""Further cameras: their images beside the main camera's in every sample, for every reader; masks stay the main camera's."""

import contextlib
import importlib.util
import io
import json
import tarfile

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from click.testing import CliRunner
from conftest import jpeg, tfrecord_files
from PIL import Image
from scene import episode, write_scenes
from test_loader import list_anew, rewrite

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from annotate.sources.tf_example import Example
from cli import main
from pixel160k import ShardDirectory, open_shards
from pixel160k.errors import InputError
from pixel160k.publish.export import export
from pixel160k.read.collate import collate
from pixel160k.read.folder import read_manifest
from pixel160k.read.verify import verify
from pixel160k.show.browse_page import write_page
from pixel160k.tfrecord import read_records, write_records

WRIST, HEIGHT, WIDTH, SHORT = "wrist_image", 48, 80, 4
COLUMN = f"steps/observation/{WRIST}"


def png(seed, grey=False):
    picture = cv2.imdecode(np.frombuffer(jpeg(seed, HEIGHT, WIDTH), np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) if grey else picture)[1].tobytes()


def fine(record, steps=SHORT):
    return [jpeg(100 * record + step, HEIGHT, WIDTH) for step in range(steps)]


BLACK = cv2.imencode(".jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()
WRISTS = [  # what the wrist camera of each record has
    fine(0, 24),
    [png(100 + step) for step in range(SHORT)],
    [png(200 + step, grey=True) for step in range(SHORT)],
    [BLACK] * SHORT,
    [*fine(4)[:3], fine(4)[3][:-200]],
    None,  # not even the column
    [*fine(6)[:2], jpeg(1, 32, 32), fine(6)[3]],
    [BLACK, *fine(7)[1:]],
    fine(8)[:2],  # too few
]
HAVE = [0, 1, 2, 7]  # the records that have it
CAUSES = {
    4: "step 3: the JPEG is cut short",
    5: f"the record lacks the feature {COLUMN}",
    6: f"step 2: the frame is 32x32, that of step 0 {WIDTH}x{HEIGHT}",
    8: f"{COLUMN} holds 2 values for 4 steps",
}


def name(record):
    return f"drawn-train-00000-{record:05d}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Annotations of a file of such episodes; all but the first are too short for a grasp."""
    path = tmp_path_factory.mktemp("cameras")
    short = [episode(seed=record) for record in range(1, len(WRISTS))]
    write_scenes(path / "data", [episode(), *(whole | {"steps": whole["steps"][:SHORT]} for whole in short)])
    (file,) = tfrecord_files(path / "data")
    payloads = []
    for record, wrist in zip(list(read_records(file)), WRISTS, strict=True):
        example = Example.FromString(record.payload)
        del example.features.feature[COLUMN]
        if wrist is not None:
            example.features.feature[COLUMN].bytes_list.value.extend(wrist)
        payloads.append(example.SerializeToString(deterministic=True))
    write_records(file, payloads)
    annotate("libero", path / "data", path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    return path


@pytest.fixture(scope="module")
def directory(made):
    arguments = ["build-shards", "--annotations", made / "annotations", "--out", made / "shards", "--include", "all"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--cameras", WRIST])
    assert result.exit_code == 0, result.output
    assert "wrist_image: in 4 episodes; blank in 1, unusable in 4 (see manifest.json)" in result.output
    return made / "shards"


def rgb(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def expected(sample_or_key):
    """The pixels of the wrist camera of a sample, by the source; None where it has none."""
    record, step = map(int, sample_or_key.split("-")[-2:])
    return rgb(WRISTS[record][step]) if record in HAVE else None


def assert_close(found, pixels):
    """The same picture; decoders of JPEG may round otherwise."""
    assert found.shape == pixels.shape and np.abs(found - pixels.astype(np.int16)).mean() < 1


def test_the_manifest_says_what_there_is(directory):
    manifest = read_manifest(directory)
    assert manifest["format_version"] == 3 and manifest["left_out"] == {} and manifest["episodes"] == len(WRISTS)
    assert manifest["cameras"] == {
        WRIST: {
            "episodes": 4,
            "images": {"jpg": 24 + SHORT, "png": 2 * SHORT},
            "sizes": [[HEIGHT, WIDTH]],
            "converted": {"grey": SHORT},
            "blank": 1,
            "unusable": {name(record): cause for record, cause in CAUSES.items()},
        }
    }
    assert verify(directory) == []
    card = (directory / "README.md").read_text()
    assert "Further camera `wrist_image`: in 4 episodes" in card and "prompts are not on its images" in card


def members(directory):
    """The members of every sample as bytes, by plain webdataset."""
    for sample in webdataset.WebDataset(sorted(map(str, directory.glob("*.tar"))), shardshuffle=False):
        yield sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}


def test_the_sources_bytes_pass_and_all_else_is_as_without(made, directory):
    """Other members, and what stands beside the shards, do not know of the further camera."""
    build_shards(made / "annotations", made / "plain", Execution(), include="all")
    manifest = read_manifest(made / "plain")
    assert manifest["format_version"] == 1 and "cameras" not in manifest
    plain, seen = dict(members(made / "plain")), 0
    for key, found in members(directory):
        record, step = map(int, key.split("-")[-2:])
        views = {name: found.pop(name) for name in list(found) if name.startswith(WRIST)}
        assert found == plain[key]
        if record not in HAVE:
            assert not views
        elif record == 2:
            np.testing.assert_array_equal(rgb(views[f"{WRIST}.png"]), expected(key))
        else:
            assert views == {f"{WRIST}.{'png' if record == 1 else 'jpg'}": WRISTS[record][step]}
        seen += len(views)
    assert seen == 24 + 3 * SHORT
    for file in ("dataset_statistics.json", "episodes.parquet"):
        assert (directory / file).read_bytes() == (made / "plain" / file).read_bytes()


@pytest.mark.parametrize("interleave", [0, 2])
def test_the_stream_gives_it_where_it_is_asked_for(directory, interleave):
    for sample in open_shards(directory, cameras=[WRIST], history=2, interleave=interleave):
        pixels = expected(sample.key)
        assert sample.image.shape == (256, 256, 3) == (*sample.labels.shape, 3)
        if pixels is None:
            assert sample.views == {WRIST: None} == sample.view_history
            continue
        assert_close(sample.views[WRIST], pixels)
        for back, seen in zip((2, 1), sample.view_history[WRIST], strict=True):
            assert_close(seen, expected(f"{sample.key[:-4]}{max(0, sample.step - back):04d}"))
    sample = next(iter(open_shards(directory)))
    assert sample.views == {} == sample.view_history


def test_random_access_gives_it_where_it_is_asked_for(directory, tmp_path):
    opened = ShardDirectory(directory, members=["state"], cameras=[WRIST])
    for number in range(len(opened)):
        sample = opened[number]
        pixels = expected(sample.key)
        assert (sample.views[WRIST] is None) == (pixels is None) and sample.image is None
        if pixels is not None:
            assert_close(sample.views[WRIST], pixels)
    html = ShardDirectory(directory, cameras=[WRIST]).sample(name(0), 3)._repr_html_()
    assert f">{WRIST}</figcaption>" in html and html.count("<figure") == 2
    write_page(directory, tmp_path / "page.html", limit=4)  # the fourth does not have it
    page = (tmp_path / "page.html").read_text()
    assert page.count(f"also seen by {WRIST}</figcaption>") == 4 and page.count("<figure") == 5


def test_a_batch_is_black_where_it_is_missing(directory):
    pytest.importorskip("torch")
    samples = list(open_shards(directory, cameras=[WRIST], history=1, interleave=0))
    batch = collate(samples)
    assert batch["views"][WRIST].shape == (len(samples), HEIGHT, WIDTH, 3)
    assert batch["view_history"][WRIST].shape == (len(samples), 1, HEIGHT, WIDTH, 3)
    for sample, valid, pixels in zip(samples, batch["views_valid"][WRIST], batch["views"][WRIST], strict=True):
        assert bool(valid) == (expected(sample.key) is not None)
        np.testing.assert_array_equal(pixels, sample.views[WRIST] if valid else 0)
    without = [sample for sample in samples if sample.views[WRIST] is None][:2]
    assert collate(without)["views"][WRIST].shape == (2, 256, 256, 3)


@pytest.mark.parametrize("asked", ["wrist", "image"])
def test_a_camera_that_is_not_there_is_refused(made, directory, asked):
    for opened in (open_shards, ShardDirectory):
        with pytest.raises(InputError, match=f"holds no further camera '{asked}'; there are wrist_image"):
            opened(directory, cameras=[asked])
    with pytest.raises(InputError, match=f"no further camera '{asked}'; beside image, .*, this source has wrist_image"):
        build_shards(made / "annotations", made / "none", Execution(), cameras=[asked])


def test_datasets_gives_it_by_the_card(directory, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra [export]")
    loaded = datasets.load_dataset(str(directory), split="train", cache_dir=str(tmp_path))
    assert loaded.column_names[2:6] == ["jpg", f"{WRIST}.jpg", f"{WRIST}.png", "mask.png"]
    for row in loaded:
        images = [row[f"{WRIST}.{form}"] for form in ("jpg", "png") if row[f"{WRIST}.{form}"] is not None]
        pixels = expected(row["__key__"])
        assert len(images) == (pixels is not None)
        if images:
            np.testing.assert_array_equal(np.asarray(images[0]), pixels)


def test_lerobots_files_hold_it_black_where_it_is_missing(directory, tmp_path):
    export(directory, "lerobot", tmp_path / "out", fps=5)
    features = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())["features"]
    column = f"observation.images.{WRIST}"
    assert features[column] == features["observation.images.image"] | {"shape": [HEIGHT, WIDTH, 3]}
    table = pq.read_table(tmp_path / "out" / "data")
    assert table.column_names == list(features)
    black = 0
    for row in table.to_pylist():
        pixels = expected(row["observation.images.image"]["path"].rpartition(".")[0])
        assert row[f"annotation.{WRIST}_valid"] == (pixels is not None)
        found = rgb(row[column]["bytes"])
        np.testing.assert_array_equal(found, np.zeros((HEIGHT, WIDTH, 3)) if pixels is None else pixels)
        black += pixels is None
    assert black == 5 * SHORT
    statistics = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())[column]
    assert statistics["count"] == [len(table)] and statistics["min"] == [[[0]]] * 3


@pytest.mark.skipif(not importlib.util.find_spec("mlcroissant"), reason="needs the extra [export]")
def test_mlcroissant_keeps_the_cameras_apart(directory, tmp_path, monkeypatch):
    import mlcroissant
    from mlcroissant._src.operation_graph.operations import extract

    monkeypatch.setattr(extract, "EXTRACT_PATH", extract.epath.Path(tmp_path))
    described = mlcroissant.Dataset(jsonld=directory / "croissant.json")
    assert not described.metadata.issues.errors
    found = {}
    for records in ("images", f"{WRIST}-images", f"{WRIST}-png-images"):
        rows = list(described.records(records))
        found[records] = {row[f"{records}/key"].decode(): np.asarray(row[f"{records}/image"]) for row in rows}
        assert {row[f"{records}/split"].decode() for row in rows} == {"train"}
    assert {image.shape for image in found.pop("images").values()} == {(256, 256, 3)}
    for key, image in (pair for images in found.values() for pair in images.items()):
        np.testing.assert_array_equal(image, expected(key))
    assert [len(images) for images in found.values()] == [24 + SHORT, 2 * SHORT]


def changed_view(step, data, suffix=f"{WRIST}.jpg"):
    """Another image, or none, for the wrist camera of a step of the first episode."""
    member = f"{name(0)}-{step:04d}.{suffix}"
    return lambda entries: [
        (name, data if name == member else content) for name, content in entries if name != member or data
    ]


def named_view(camera):
    return lambda entries: [(name.replace(f".{WRIST}.", f".{camera}."), data) for name, data in entries]


FAULTS = {
    "missing": (changed_view(5, None), "0005: wrist_image is here or at the step before, but not at both"),
    "size": (changed_view(5, jpeg(0, 8, 8)), "0005: wrist_image has another size than at the step before"),
    "damaged": (changed_view(5, fine(0)[0][:99]), "0005: wrist_image.jpg does not decode"),
    "grey": (
        changed_view(5, cv2.imencode(".jpg", np.zeros((HEIGHT, WIDTH), np.uint8))[1].tobytes()),
        "is grey, not RGB",
    ),
    "foreign": (named_view("other"), "foreign member 'drawn-train-00000-00000-0000.other.jpg'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_finds(directory, tmp_path, fault):
    change, said = FAULTS[fault]
    copy = tmp_path / "shards"
    with contextlib.suppress(FileExistsError):
        copy.mkdir()
    for path in directory.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (tar,) = copy.glob("*.tar")
    rewrite(tar, change)
    list_anew(copy, tar.name)
    faults = verify(copy)
    assert any(said in found for found in faults), faults
    if fault == "missing":
        assert any("manifest.json: says [4, {'jpg': 28, 'png': 8}, [[48, 80]]] of wrist_image" in one for one in faults)
        with pytest.raises(InputError, match=r"lacks 'wrist_image\.jpg'"):
            list(open_shards(copy, cameras=[WRIST], history=1, members=["state"]))


def test_bridges_black_cameras_are_left_out(bridge_dir, tmp_path):
    """Real records: `image_1` and `image_2` are there, `image_3` is black in all of them."""
    annotate("bridge_orig", bridge_dir, tmp_path / "a", AnnotateSettings(annotators="motion"), Execution())
    cameras = ["image_1", "image_2", "image_3"]
    build_shards(tmp_path / "a", tmp_path / "s", Execution(), include="all", cameras=cameras)
    assert verify(tmp_path / "s") == []
    manifest = read_manifest(tmp_path / "s")
    counts = {camera: (of["episodes"], of["blank"], of["unusable"]) for camera, of in manifest["cameras"].items()}
    assert counts == {"image_1": (12, 0, {}), "image_2": (12, 0, {}), "image_3": (0, 12, {})}
    with tarfile.open(next((tmp_path / "s").glob("*.tar"))) as tar:
        names = [member.name.partition(".")[2] for member in tar]
    assert names[:7] == ["action.npy", "image_1.jpg", "image_2.jpg", "jpg", "json", "mask.png", "state.npy"]
    for sample in open_shards(tmp_path / "s", cameras=cameras, members=["image"]):
        assert sample.views["image_3"] is None
        assert sample.views["image_1"].shape == sample.image.shape == sample.views["image_2"].shape
        assert (sample.views["image_1"] != sample.image).any()
