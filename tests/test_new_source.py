"""A fifth data set: one source module and one entry of the registry, and no other file of the project is touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scene import episode

from simulation.rlds import write_rlds

ROOT = Path(__file__).parents[1]

MODULE = '''
"""Kitchen: drawn records in a schema of their own."""

from annotate.sources.episode import Episode
from annotate.sources.rlds import Source


def to_episode(columns, identity, camera):
    actions = columns.floats("steps/move", 7)
    return Episode(
        identity=identity,
        native_id="",
        camera=camera,
        viewpoint=camera,
        instruction=columns.text("steps/task"),
        images=columns.strings(f"steps/{camera}"),
        actions=actions,
        gripper_open=actions[:, 6] > 0.5,
        state=columns.floats("steps/pose", 8),
        first_step=0,
        last_step=columns.num_steps - 1,
    )


SOURCE = Source(name="kitchen", features=("steps/front", "steps/move", "steps/pose", "steps/task"), to_episode=to_episode)
'''

ENTRY = """
ORIGINS["kitchen"] = Origin(
    title="Kitchens drawn for a test",
    robot="xarm7",
    cameras=("front",),
    actions="metres and radians per step",
    dataset="kitchen_v1",
    hz=4.0,
    licence=_CC_BY,
    citation="Nobody, Kitchens, 2026",
)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the project with the fifth data set."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "cli.py", copy)
    for room in ("annotate", "pixel160k"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "annotate" / "sources" / "kitchen.py").write_text(MODULE)
    with open(copy / "pixel160k" / "format" / "origins.py", "a") as registry:
        registry.write(ENTRY)
    return copy


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """One file with one episode in the fifth data set's schema."""
    import tensorflow_datasets as tfds

    features = tfds.features
    flags = {name: features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")}
    schema = {
        "front": features.Image(shape=(256, 256, 3), dtype=np.uint8, encoding_format="jpeg"),
        "pose": features.Tensor(shape=(8,), dtype=np.float32),
        "move": features.Tensor(shape=(7,), dtype=np.float32),
        "task": features.Text(),
    }
    steps = [
        {
            "front": step["observation"]["image"],
            "pose": step["observation"]["state"],
            "move": np.append(step["action"][:6], np.float32(step["action"][6] < 0)),  # here 1 is open
            "task": step["language_instruction"],
        }
        | {name: step[name] for name in flags}
        for step in episode()["steps"]
    ]
    directory = tmp_path_factory.mktemp("records")
    described = features.FeaturesDict({"steps": features.Dataset(schema | flags)})
    write_rlds(directory, "some_name", "1.0.0", described, {"train": [[{"steps": steps}]]})
    return directory


def test_from_records_to_card_and_export(house, records):
    def pixelcli(*arguments):
        command = [sys.executable, "-m", "cli", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(house)}
        result = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    work = house / "work"
    annotate = ("--src", "kitchen", "--data-dir", records, "--set", "annotators=motion")
    pixelcli("annotate", *annotate, "--out", work / "annotations")
    pixelcli("build-shards", "--annotations", work / "annotations", "--out", work / "shards")
    pixelcli("verify", "--shards", work / "shards")
    pixelcli("export", "--shards", work / "shards", "--to", "lerobot", "--out", work / "lerobot")

    manifest = json.loads((work / "shards" / "manifest.json").read_text())
    assert (manifest["dataset"], manifest["episodes"], manifest["samples"]) == ("kitchen_v1", 1, 24)
    card = (work / "shards" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "- Source: Kitchens drawn for a test, CC BY 4.0." in card
    assert "- Robot: xarm7 at 4 Hz. Actions: metres and radians per step; gripper 1 = open." in card
    assert "- Cite the source: Nobody, Kitchens, 2026." in card
    croissant = json.loads((work / "shards" / "croissant.json").read_text())
    assert croissant["license"] == "https://creativecommons.org/licenses/by/4.0/"
    info = json.loads((work / "lerobot" / "meta" / "info.json").read_text())
    assert (info["robot_type"], info["fps"], info["total_frames"]) == ("xarm7", 4, 24)
    assert "observation.images.front" in info["features"]
