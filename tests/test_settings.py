"""Settings: one way of configuring, and errors that name the way out."""

import pytest

from annotate.jobs.annotate import default_data_dir, load_settings
from annotate.settings import AnnotateSettings
from pixel160k.errors import InputError
from train.settings import load_recipe


def test_yaml_then_overrides(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("annotators: motion\nfilter:\n  min_evidence: 0.4\n  max_mask_area: 0.3\n")
    settings = AnnotateSettings.load(file, ["filter.min_evidence=0.6", "evidence_frames=12"])
    assert (settings.filter.min_evidence, settings.filter.max_mask_area, settings.evidence_frames) == (0.6, 0.3, 12)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("filter.min_evidense=0.5", "unknown setting 'filter.min_evidense'; did you mean 'filter.min_evidence'?"),
        ("evidence_frames=2", "setting 'evidence_frames': input should be greater than or equal to 4, not 2"),
        ("filter.min_evidence=high", "setting 'filter.min_evidence'"),
        ("annotators=magic", "setting 'annotators': input should be 'foundation' or 'motion', not 'magic'"),
        ("tracks=most", "setting 'tracks': input should be 'none', 'accepted' or 'all', not 'most'"),
        ("foundation.gripper_prompt=[1, 2, 3]", "should be x, y or x0, y0, x1, y1 in pixels, not [1, 2, 3]"),
        ("foundation.gripper_prompt=[9, 9, 5, 5]", "x0, y0 of a box should be its upper left corner"),
        ("evidence_frames", "--set takes key=value"),
        ("annotators.x=1", "'annotators' holds a value"),
        ("evidence_frames=[", "--set evidence_frames=[: the value is no YAML: "),
        (
            "evidence_frames=2024-13-01",
            "--set evidence_frames=2024-13-01: the value is no YAML: month must be in 1..12",
        ),
    ],
)
def test_wrong_settings_are_named_in_one_line(override, message):
    with pytest.raises(InputError, match="set") as error:
        AnnotateSettings.load(None, ["annotators=motion", override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("init", ["runs/my run #2", "2024", "no", "[", "a=b", "null"])
def test_values_are_taken_as_they_are(init):
    recipe = load_recipe("tiny-sample", ("init=other", "lora.rank=8"), {"init": init, "max_steps": 7, "lora.alpha": 5})
    assert (recipe.init, recipe.max_steps, recipe.lora.rank, recipe.lora.alpha) == (init, 7, 8, 5)


def test_wrong_values_are_named_in_one_line():
    with pytest.raises(InputError, match=r"unknown setting 'lora\.alfa'; did you mean 'lora\.alpha'\?"):
        load_recipe("tiny-sample", values={"lora.alfa": 5})
    with pytest.raises(InputError, match="setting 'max_steps': input should be greater than or equal to 1, not 0"):
        load_recipe("tiny-sample", values={"max_steps": 0})
    with pytest.raises(InputError, match="'init' holds a value, not further settings"):
        load_recipe("tiny-sample", values={"init.x": 0})


def test_a_base_is_left_as_it_is():
    base = AnnotateSettings(annotators="motion").model_dump()
    changed = AnnotateSettings.load(base=base, overrides=["prompts.seed=1"], values={"prompts.points": 5})
    assert (changed.prompts.seed, changed.prompts.points) == (1, 5)
    assert base == AnnotateSettings(annotators="motion").model_dump()


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot read the settings file"):
        AnnotateSettings.load(tmp_path / "absent.yaml")
    for number, content in enumerate([b"a: [", b"a: \xff", b"a: 2024-13-01", b"[" * 100_000]):
        file = tmp_path / f"{number}.yaml"
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read the settings file {file}"):
            AnnotateSettings.load(file)
    (tmp_path / "twice.yaml").write_text("prompts: {seed: 1}\nfilter: {}\nprompts: {points: 3}\n")
    with pytest.raises(InputError, match=r"twice.yaml: 'prompts' stands twice .* line 3, column 1"):
        AnnotateSettings.load(tmp_path / "twice.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(InputError, match="must hold `key: value` lines"):
        AnnotateSettings.load(tmp_path / "list.yaml")


def test_digest_follows_the_values():
    first = AnnotateSettings(annotators="motion")
    assert first.digest() == AnnotateSettings.load(None, ["annotators=motion"]).digest()
    assert first.digest() != AnnotateSettings.load(None, ["annotators=motion", "prompts.seed=1"]).digest()


def test_defaults_by_source(tmp_path):
    shipped = load_settings("sample", None, ())
    assert (shipped.annotators, shipped.foundation.detector, shipped.target.method) == ("foundation", "tiny", "grammar")
    assert load_settings("sample", None, ("annotators=motion",)).annotators == "motion"
    (tmp_path / "mine.yaml").write_text("foundation: {detector: mine}\nfilter: {min_evidence: 0.5}\n")
    mine = load_settings("sample", tmp_path / "mine.yaml", ())
    assert (mine.foundation.detector, mine.foundation.segmenter, mine.filter.min_evidence) == ("mine", "tiny", 0.5)
    assert load_settings("sample", None, ("tracks=none",), {"tracks": "accepted"}).tracks == "accepted"
    real = load_settings("fractal", None, ())
    assert (real.annotators, real.foundation.detector) == ("foundation", "IDEA-Research/grounding-dino-tiny")
    with pytest.raises(InputError, match="needs --data-dir"):
        default_data_dir("fractal", None)


def test_a_model_may_lie_below_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    chosen = load_settings("libero", None, ("foundation.segmenter=~/sam2", "target.model=org/~x"))
    assert (chosen.foundation.segmenter, chosen.target.model) == ("/home/me/sam2", "org/~x")
