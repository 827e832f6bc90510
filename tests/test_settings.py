"""Settings: one way of configuring, and errors that name the way out."""

import pytest

from annotate.jobs.annotate import default_data_dir, load_settings
from annotate.settings import AnnotateSettings
from pixel160k.errors import InputError


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
        ("evidence_frames", "--set takes key=value"),
        ("annotators.x=1", "'annotators' holds a value"),
    ],
)
def test_wrong_settings_are_named_in_one_line(override, message):
    with pytest.raises(InputError, match="set") as error:
        AnnotateSettings.load(None, ["annotators=motion", override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot read the settings file"):
        AnnotateSettings.load(tmp_path / "absent.yaml")
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
    real = load_settings("fractal", None, ())
    assert (real.annotators, real.foundation.detector) == ("foundation", "IDEA-Research/grounding-dino-tiny")
    with pytest.raises(InputError, match="needs --data-dir"):
        default_data_dir("fractal", None)
