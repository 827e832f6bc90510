"""What the tests share: the real records, and data sets written in the sources' own schemas."""

import errno
import os
import shutil
import tempfile
from multiprocessing.util import get_temp_dir
from pathlib import Path

import cv2
import numpy as np
import pytest

from annotate.sources import SOURCES
from annotate.sources.rlds import list_files, read_episodes
from simulation.rlds import write_rlds

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network
# Processes of the suite share the cores, and which kernels torch takes, so the last bits, hangs on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
LONGEST = ("test_train_fsdp.py", "test_kills.py", "test_closed_loop_processes.py", "test_closed_loop.py")
SHARED = Path(os.environ.get("PIXELVLA_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items):
    """Files that take minutes begin first: at the end, all other processes would wait for one of them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """What tests and the processes that they start, also those that they kill, leave in the folder for temporary files goes."""
    get_temp_dir()  # of multiprocessing, which removes it as the last thing
    folder = tmp_path_factory.mktemp("t")  # a short name: sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv("TMPDIR", str(folder))
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fails_for_a_moment(monkeypatch):
    """Makes one call of a module's function an input/output error, which Beam jobs try again without waiting; gives its calls."""

    def fails(module, name, call=1):
        real, calls = getattr(module, name), []

        def called(*arguments):
            calls.append(arguments)
            if len(calls) == call:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(arguments[0]))
            return real(*arguments)

        monkeypatch.setattr(module, name, called)
        monkeypatch.setattr("annotate.jobs.unit.WAITS", (0,))
        return calls

    return fails


@pytest.fixture(scope="session")
def bridge_dir():
    """Twelve real BridgeData V2 episodes."""
    directory = SHARED / "data" / "bridge_real"
    if not directory.is_dir():
        pytest.skip(f"no real Bridge records at {directory}; PIXELVLA_SHARED names the folder that holds data/")
    return directory


def jpeg(seed=0, height=64, width=80):
    """A small textured JPEG."""
    noise = np.random.default_rng(seed).integers(0, 255, (8, 10, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))[1].tobytes()


def fractal_features(height=64, width=80):
    """The schema of fractal20220817_data 0.1.0 (at a smaller image size)."""
    import tensorflow_datasets as tfds

    features = tfds.features

    def floats(*shape):
        return features.Tensor(shape=shape, dtype=np.float32)

    observation = {
        "image": features.Image(shape=(height, width, 3), dtype=np.uint8, encoding_format="jpeg"),
        "natural_language_instruction": features.Text(),
        "natural_language_embedding": floats(512),
        "base_pose_tool_reached": floats(7),
        "gripper_closed": floats(1),
        "gripper_closedness_commanded": floats(1),
        "height_to_bottom": floats(1),
        "orientation_box": floats(2, 3),
        "orientation_start": floats(4),
        "robot_orientation_positions_box": floats(3, 3),
        "rotation_delta_to_go": floats(3),
        "src_rotation": floats(4),
        "vector_to_go": floats(3),
        "workspace_bounds": floats(3, 3),
    }
    action = {
        "world_vector": floats(3),
        "rotation_delta": floats(3),
        "gripper_closedness_action": floats(1),
        "terminate_episode": features.Tensor(shape=(3,), dtype=np.int32),
        "base_displacement_vector": floats(2),
        "base_displacement_vertical_rotation": floats(1),
    }
    flags = {name: features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")}
    return features.FeaturesDict(
        {
            "steps": features.Dataset(
                {"observation": observation, "action": action, "reward": features.Scalar(dtype=np.float32), **flags}
            ),
            "aspects": {
                "already_success": features.Scalar(dtype=np.bool_),
                "feasible": features.Scalar(dtype=np.bool_),
                "has_aspects": features.Scalar(dtype=np.bool_),
                "success": features.Scalar(dtype=np.bool_),
                "undesirable": features.Scalar(dtype=np.bool_),
            },
            "attributes": {
                "collection_mode": features.Scalar(dtype=np.int64),
                "collection_mode_name": features.Text(),
                "data_type": features.Scalar(dtype=np.int64),
                "data_type_name": features.Text(),
                "env": features.Scalar(dtype=np.int64),
                "env_name": features.Text(),
                "location": features.Scalar(dtype=np.int64),
                "location_name": features.Text(),
                "objects_family": features.Scalar(dtype=np.int64),
                "objects_family_name": features.Text(),
                "task_family": features.Scalar(dtype=np.int64),
                "task_family_name": features.Text(),
            },
        }
    )


def fractal_episode(commands, instruction="pick coke can", base=0.0, images=None):
    """A fractal episode whose relative gripper commands are given; the arm rises 2 cm a step."""
    count = len(commands)
    zeros = np.zeros

    def step(place):
        pose = zeros(7, np.float32)
        pose[2] = 0.02 * place
        return {
            "observation": {
                "image": images[place] if images else jpeg(place),
                "natural_language_instruction": instruction,
                "natural_language_embedding": zeros(512, np.float32),
                "base_pose_tool_reached": pose,
                "gripper_closed": np.array([0.25], np.float32),
                "gripper_closedness_commanded": zeros(1, np.float32),
                "height_to_bottom": zeros(1, np.float32),
                "orientation_box": zeros((2, 3), np.float32),
                "orientation_start": zeros(4, np.float32),
                "robot_orientation_positions_box": zeros((3, 3), np.float32),
                "rotation_delta_to_go": zeros(3, np.float32),
                "src_rotation": zeros(4, np.float32),
                "vector_to_go": zeros(3, np.float32),
                "workspace_bounds": zeros((3, 3), np.float32),
            },
            "action": {
                "world_vector": np.array([place, 2, 3], np.float32),
                "rotation_delta": np.array([4, 5, 6], np.float32),
                "gripper_closedness_action": np.array([commands[place]], np.float32),
                "terminate_episode": np.array([0, 1, 0], np.int32),
                "base_displacement_vector": np.array([base, 0], np.float32),
                "base_displacement_vertical_rotation": zeros(1, np.float32),
            },
            "reward": np.float32(0),
            "is_first": place == 0,
            "is_last": place == count - 1,
            "is_terminal": place == count - 1,
        }

    names = ("collection_mode", "data_type", "env", "location", "objects_family", "task_family")
    return {
        "steps": [step(place) for place in range(count)],
        "aspects": dict.fromkeys(("already_success", "feasible", "has_aspects", "success", "undesirable"), False),
        "attributes": {name: 0 for name in names} | {f"{name}_name": "x" for name in names},
    }


@pytest.fixture
def write_fractal(tmp_path):
    """Write fractal episodes (a list a file) and return the data directory."""

    def write(*files, directory=tmp_path / "fractal"):
        write_rlds(directory, "fractal20220817_data", "0.1.0", fractal_features(), {"train": list(files)})
        return directory

    return write


def read_all(source, data_dir, camera=""):
    """Every episode or failed row of a data set."""
    return [
        item for file in list_files(SOURCES[source], data_dir) for item in read_episodes(SOURCES[source], file, camera)
    ]


def tfrecord_files(directory):
    """The TFRecord files below a directory."""
    return sorted(Path(directory).rglob("*.tfrecord-*"))
