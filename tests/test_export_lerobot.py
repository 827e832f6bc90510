"""The LeRobot export, loaded by the `lerobot` package itself, which runs in an environment of its own (.venv-lerobot)."""

import hashlib
import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from export_source import raw_samples, sample_shards
from PIL import Image

from pixel160k.format import masks
from pixel160k.format.actions import action_chunk
from pixel160k.format.statistics import dataset_statistics
from pixel160k.publish.export import export, lerobot

PYTHON = Path(__file__).parents[1] / ".venv-lerobot" / "bin" / "python"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return sample_shards(tmp_path_factory.mktemp("lerobot"))


@pytest.fixture(scope="module")
def exported(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    assert export(shards, "lerobot", folder) == {"episodes": 12, "frames": 477, "tasks": 12}
    return folder


@pytest.fixture(scope="module")
def samples(shards):
    return list(raw_samples(shards))


@pytest.fixture(scope="module")
def loaded(exported, tmp_path_factory):
    """What lerobot says of it."""
    if not PYTHON.exists():
        pytest.skip("lerobot's environment is not there; `make .venv-lerobot/.all` makes it")
    scratch = tmp_path_factory.mktemp("scratch")
    result = subprocess.run(
        [PYTHON, Path(__file__).parent / "lerobot_loads.py", exported, scratch / "fewer"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(scratch), "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.slow
def test_lerobot_sees_every_frame(samples, loaded):
    """Image, mask, action, state, task and index of each of the 477 frames."""
    for sample, frame in zip(samples, loaded["frames"], strict=True):
        metadata = sample["metadata"]
        image = np.asarray(Image.open(io.BytesIO(sample["jpg"])))
        assert frame["image"] == digest(image)
        assert frame["mask"] == digest(masks.decode_indexed_png(sample["mask.png"]))
        assert frame["task"] == metadata["instruction"]
        assert frame["annotation.step"] == metadata["step"]
        assert frame["timestamp"] == pytest.approx(frame["frame_index"] / 5)
        np.testing.assert_array_equal(np.array(frame["action"], np.float32), sample["action"])
        np.testing.assert_array_equal(np.array(frame["observation.state"], np.float32), sample["state"])
    assert [frame["index"] for frame in loaded["frames"]] == list(range(477))
    assert loaded["fps"] == 5


@pytest.mark.slow
def test_lerobot_sees_the_episodes_annotations(samples, loaded):
    per_step = {"step", "object_mask_valid", "gripper_mask_valid"}
    episodes = {sample["metadata"]["episode_id"]: sample["metadata"] for sample in samples}
    assert len(loaded["episodes"]) == len(episodes) == 12
    for row, metadata in zip(loaded["episodes"], episodes.values(), strict=True):
        assert row.pop("length") == metadata["last_step"] - metadata["first_step"] + 1
        assert set(row) == set(metadata) - per_step
        for name, value in row.items():
            assert value == metadata[name] or np.allclose(value, metadata[name])


@pytest.mark.slow
def test_lerobot_makes_chunks_as_the_shards_do(samples, loaded):
    """`delta_timestamps` within an episode; LeRobot repeats the last action where the shards stand still, and says so."""
    episode = [
        sample for sample in samples if sample["metadata"]["episode_id"] == samples[44]["metadata"]["episode_id"]
    ]
    actions = np.stack([sample["action"] for sample in episode])
    expected = action_chunk(actions, len(actions) - 3, len(actions) - 1, 8)
    np.testing.assert_array_equal(np.array(loaded["chunk"]["action"], np.float32)[:3], expected[:3])
    assert loaded["chunk"]["is_pad"] == [False] * 3 + [True] * 5
    assert loaded["batch"] == [4, 3, 256, 256]


@pytest.mark.slow
def test_lerobots_tools_take_it(loaded):
    """Episodes can be deleted and statistics aggregated, which reads the statistics of every episode."""
    assert loaded["fewer"]["episodes"] == 11
    assert loaded["fewer"]["frames"] == 477 - 44
    assert loaded["aggregated"] == ["action", "observation.images.image", "observation.mask", "observation.state"]
    assert set(loaded["images"]) <= set(loaded["statistics"])  # `lerobot-train` writes ImageNet's over those of each
    assert set(loaded["image_statistics_shape"]) <= set(loaded["statistics"]["observation.images.image"])


def test_statistics_are_those_of_the_frames(exported, samples):
    found = json.loads((exported / "meta" / "stats.json").read_text())
    actions, states = (np.stack([sample[name] for sample in samples]) for name in ("action", "state"))
    expected = dataset_statistics(actions, states, 12)
    for name, part in (("action", "action"), ("observation.state", "proprio")):
        assert found[name]["count"] == [477]
        for measure in ("min", "max", "mean", "std", "q01", "q99"):
            np.testing.assert_allclose(found[name][measure], expected[part][measure], rtol=1e-9, atol=1e-12)
    frames = [np.asarray(Image.open(io.BytesIO(sample["jpg"]))).reshape(-1, 3).T for sample in samples]
    pixels = np.sort(np.concatenate(frames, axis=1), axis=1)
    image = {name: np.array(values) for name, values in found["observation.images.image"].items()}
    assert image["mean"].shape == (3, 1, 1)
    mean = pixels.mean(1)
    deviation = np.sqrt((pixels.astype(np.uint16) ** 2).mean(1) - mean**2)
    for measure, value in (("mean", mean), ("std", deviation), ("min", pixels[:, 0]), ("max", pixels[:, -1])):
        np.testing.assert_allclose(image[measure].ravel(), value / 255, atol=1e-9)
    for name, share in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        np.testing.assert_allclose(image[name].ravel(), pixels[:, int(share * pixels.shape[1])] / 255, atol=1 / 255)


def test_every_image_feature_has_statistics_of_three_channels(exported, samples):
    """`lerobot-train` fails at an image without any, and LeRobot's tools make (3, 1, 1) of those of each episode."""
    features = json.loads((exported / "meta" / "info.json").read_text())["features"]
    found = json.loads((exported / "meta" / "stats.json").read_text())
    rows = pq.read_table(exported / "meta" / "episodes").to_pylist()
    for name in (name for name, feature in features.items() if feature["dtype"] == "image"):
        for statistics in (found[name]["mean"], *(row[f"stats/{name}/mean"] for row in rows)):
            assert np.shape(statistics) == (3, 1, 1)
    labels = np.stack([masks.decode_indexed_png(sample["mask.png"]) for sample in samples])
    np.testing.assert_allclose(found["observation.mask"]["mean"], np.full((3, 1, 1), labels.mean() / 255))


def test_images_are_the_sources_own_bytes(exported, samples):
    table = pq.read_table(exported / "data", columns=["observation.images.image", "observation.mask"])
    for row, sample in zip(table.to_pylist(), samples, strict=True):
        assert row["observation.images.image"]["bytes"] == sample["jpg"]
        assert row["observation.mask"]["bytes"] == sample["mask.png"]


def test_a_new_file_begins_where_one_is_full(shards, exported, tmp_path, monkeypatch):
    """Whole episodes per file, and every episode's row names its file."""
    monkeypatch.setattr(lerobot, "_FILE_BYTES", 2**20)
    monkeypatch.setattr(lerobot, "_FILES_PER_CHUNK", 3)
    export(shards, "lerobot", tmp_path / "out")
    files = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out" / "data").rglob("*.parquet")
    )
    assert files[:4] == [
        "data/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
        "data/chunk-000/file-002.parquet",
        "data/chunk-001/file-000.parquet",
    ]
    rows = pq.read_table(tmp_path / "out" / "meta" / "episodes").to_pylist()
    for row in rows:
        path = tmp_path / "out" / f"data/chunk-{row['data/chunk_index']:03d}/file-{row['data/file_index']:03d}.parquet"
        indices = [
            r["index"] for r in pq.read_table(path, filters=[("episode_index", "==", row["episode_index"])]).to_pylist()
        ]
        assert indices == list(range(row["dataset_from_index"], row["dataset_to_index"]))
    assert pq.read_table(tmp_path / "out" / "data").equals(pq.read_table(exported / "data"))


def test_images_of_two_sizes_are_refused(tmp_path):
    from scene import episode, write_scenes

    from annotate.jobs.annotate import annotate
    from annotate.jobs.beam import Execution
    from annotate.jobs.shards import build_shards
    from annotate.settings import AnnotateSettings

    small = episode()
    for step in small["steps"]:
        step["observation"]["image"] = resized(step["observation"]["image"])
    data = write_scenes(tmp_path / "data", [episode(), small])
    annotate("libero", data, tmp_path / "annotations", AnnotateSettings(annotators="motion"), Execution())
    build_shards(tmp_path / "annotations", tmp_path / "shards", Execution(), include="all")
    with pytest.raises(
        ValueError,
        match=r"length of state \[128, 128, 8\], the first sample \[256, 256, 8\]: LeRobot wants one size; export such shards apart",
    ):
        export(tmp_path / "shards", "lerobot", tmp_path / "out", fps=5)
    assert not (tmp_path / "out").exists()


def resized(encoded):
    buffer = io.BytesIO()
    Image.open(encoded).resize((128, 128)).save(buffer, format="JPEG")
    return io.BytesIO(buffer.getvalue())
