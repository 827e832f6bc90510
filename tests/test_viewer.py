"""The notebook's viewer: what its widgets say is what its picture shows; a sample's HTML; the notebook runs as it is."""

import base64
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_shards import GRIPPER, TARGET, jpeg, write_drawn_shards

import pixel160k
from pixel160k.show import drawing

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "browse_shards.ipynb"
GUIDE = Path(__file__).parents[1] / "docs" / "notebook.md"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_drawn_shards(tmp_path_factory.mktemp("viewer") / "shards")


@pytest.fixture
def viewer(directory):
    pytest.importorskip("ipywidgets", reason="the viewer needs the extra [notebook]")
    return pixel160k.browse(directory)


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)


def shows(html, record, step):
    """Whether the picture is that of this step, which all differ: JPEG noise aside."""
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return np.abs(decoded(base64.b64decode(data)) - decoded(jpeg(10 * record + step))).mean() < 8


def test_opens_on_the_first_step_of_the_first_episode(viewer):
    assert viewer.shown.value == "4 of 4 episodes"
    assert shows(viewer.picture.value, 0, 0) and not shows(viewer.picture.value, 0, 1)
    assert f'd="{drawing.outline(TARGET)}"' in viewer.picture.value


def test_sliders_change_the_picture(viewer):
    viewer.step.value = 1
    assert shows(viewer.picture.value, 0, 1) and "step 1" in viewer.picture.value
    viewer.episode.value = 2
    assert shows(viewer.picture.value, 2, 0) and (viewer.step.min, viewer.step.max) == (0, 2)
    viewer.step.value = 2
    assert shows(viewer.picture.value, 2, 2)
    viewer.episode.value = 3
    assert shows(viewer.picture.value, 3, 0) and viewer.step.max == 3


def test_buttons_go_to_the_annotated_steps(viewer):
    viewer.to_close.click()
    assert viewer.step.value == 2 and shows(viewer.picture.value, 0, 2)
    assert f'd="{drawing.outline(GRIPPER)}"' in viewer.picture.value
    viewer.to_first.click()
    assert shows(viewer.picture.value, 0, 0)
    viewer.episode.value = 1  # its gripper never closes
    assert viewer.to_close.disabled
    viewer.episode.value = 2  # the close step is not in the shards
    assert viewer.to_close.disabled


@pytest.mark.parametrize(
    ("layer", "button", "drawn"),
    [
        ("object mask", "to_first", f'class="mask target" fill-rule="evenodd" d="{drawing.outline(TARGET)}"'),
        ("gripper mask", "to_close", f'class="mask gripper" fill-rule="evenodd" d="{drawing.outline(GRIPPER)}"'),
        ("prompts", "to_first", 'class="prompt point" d="M'),
        ("prompts", "to_first", 'class="prompt" d="M7 15H18V26H7Z"'),  # the target's half-open box
    ],
)
def test_a_layer_goes_and_comes_back_alone(viewer, layer, button, drawn):
    getattr(viewer, button).click()
    whole = viewer.picture.value
    assert drawn in whole
    viewer.layers[layer].value = False
    assert drawn not in viewer.picture.value
    gone = len(re.findall(r"<path", whole)) - len(re.findall(r"<path", viewer.picture.value))
    assert gone == (1 if layer != "prompts" else 6)  # three points, line, region, mask
    viewer.layers[layer].value = True
    assert viewer.picture.value == whole


def test_prompts_are_drawn_on_their_own_step_only(viewer):
    assert 'class="prompt' in viewer.picture.value
    viewer.step.value = 1
    assert 'class="prompt' not in viewer.picture.value and "on step 0" in viewer.picture.value
    assert viewer.picture.value.count("not annotated on this step") == 2


def test_filters(viewer):
    assert viewer.status.options == (("any status", ""), ("rejected (3)", "rejected"), ("accepted (1)", "accepted"))
    viewer.status.value = "rejected"
    assert viewer.shown.value == "3 of 4 episodes" and viewer.episode.max == 2 and shows(viewer.picture.value, 1, 0)
    viewer.target.value = "blue lid"
    assert viewer.shown.value == "1 of 4 episodes" and shows(viewer.picture.value, 2, 0)
    viewer.status.value = "accepted"
    assert viewer.shown.value == "0 of 4 episodes" and "No episode passes" in viewer.picture.value
    assert viewer.episode.disabled and viewer.step.disabled
    viewer.target.value = viewer.status.value = ""
    viewer.text.value = "RED  pick"
    assert viewer.shown.value == "2 of 4 episodes" and not viewer.step.disabled
    viewer.text.value = "00003"
    assert shows(viewer.picture.value, 3, 0)


def test_filters_by_reason_and_sorts_by_a_score(viewer):
    viewer.reason.value = "no_gripper_close"
    assert viewer.shown.value == "2 of 4 episodes" and shows(viewer.picture.value, 1, 0)
    viewer.episode.value = 1
    assert shows(viewer.picture.value, 3, 0)
    viewer.worst.value = "mask_score"  # neither has a mask
    assert viewer.shown.value == "0 of 4 episodes"
    viewer.reason.value = ""
    assert viewer.shown.value == "1 of 4 episodes" and shows(viewer.picture.value, 0, 0)


def test_damage_is_said_where_it_is_met(viewer, tmp_path):
    damaged = write_drawn_shards(tmp_path / "shards")
    viewer = pixel160k.browse(damaged)
    tar = damaged / "drawn-train-00000.tar"
    tar.write_bytes(tar.read_bytes()[: 512 * 40])
    viewer.step.value = 3
    assert "pixelcli verify" in viewer.picture.value
    viewer.step.value = 0
    assert shows(viewer.picture.value, 0, 0)


def test_a_bug_of_ours_is_not_shown_as_damage(viewer, monkeypatch):
    def broken(*_):
        raise ValueError("ours")

    monkeypatch.setattr("pixel160k.show.viewer.sample_html", broken)
    with pytest.raises(ValueError, match=r"^ours$"):
        viewer.step.value = 1


def test_a_sample_shows_itself(directory):
    shards = pixel160k.ShardDirectory(directory, chunk=8)
    html = shards.sample("drawn-train-00000-00000", 0)._repr_html_()
    assert shows(html, 0, 0) and drawing.outline(TARGET) in html
    assert "&lt;script&gt;" in html and "<script" not in html  # of the instruction
    assert "<mark>Red_Cup</mark>" in html and "8, 4 of them the episode&#39;s own" in html
    assert f"{TARGET.sum()} pixels" in html
    rejected = shards.sample("drawn-train-00000-00001", 3)._repr_html_()
    assert "the gripper never goes from open to closed" in rejected and "pixels" not in rejected


def test_a_sample_shows_what_was_read_of_it(directory):
    shards = pixel160k.ShardDirectory(directory, members=("state",))
    html = shards.sample("drawn-train-00000-00000", 0)._repr_html_()
    assert "<img" not in html and "read without its image" in html and "object mask" not in html


def test_the_guide_says_what_works(viewer, directory, monkeypatch):
    monkeypatch.chdir(directory.parent)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)
    assert names["viewer"].shown.value == "0 of 4 episodes"  # none of these is rejected and about a bowl
    assert names["picture"].shape == (512, 512, 3)


def test_without_its_extra_the_viewer_says_how_to_get_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "pixel160k.show.viewer", raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"pip install 'pixelvla\[notebook\]'"):
        pixel160k.browse("shards")


@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_viewer(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="running notebooks needs the extra [dev]")
    pytest.importorskip("ipykernel", reason="running notebooks needs the extra [notebook]")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    done = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output.get("data", {}) for cell in done.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    assert any('class="pixel160k"' in data.get("text/html", "") for data in shown)
    assert any("image/png" in data for data in shown)
