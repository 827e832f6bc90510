"""Every measure of the annotations against truth, on cases that can be reckoned by hand."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from scene import CLOSE, STEPS, episode, object_mask, write_scenes

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.settings import AnnotateSettings
from evaluation import annotation_measures as measures
from evaluation.annotation_measures import EpisodeScore, EvidenceScore
from evaluation.annotation_report import summary_tables
from evaluation.annotations import evaluate
from pixel160k.errors import InputError
from pixel160k.format import masks
from pixel160k.format.table import EpisodeAnnotation
from simulation import truth as truth_table
from simulation.truth import EpisodeTruth, StepTruth

SIZE = 40


def box(x, y, side=10, size=SIZE):
    mask = np.zeros((size, size), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def truth(episode_id="drawn-train-00000-00000", steps=5, target=None, gripper=None, others=None, **changed):
    step = StepTruth(
        gripper=masks.encode(box(20, 0) if gripper is None else gripper),
        target=masks.encode(box(10, 10) if target is None else target),
        others={name: masks.encode(mask) for name, mask in (others or {}).items()},
    )
    values = {
        "suite": "drawn",
        "task_id": 0,
        "initial_state": 0,
        "instruction": "pick up the red cup",
        "target_instance": "red_cup_1",
        "target_phrase": "red cup",
        "contact_step": 3,
        "grasp_step": 2,
        "home_step": 4,
        "attempts": 1,
    }
    return EpisodeTruth(episode_id, **values | changed, steps=[step] * steps)


def row(**changed):
    values = {
        "verb": "pick_place",
        "num_steps": 5,
        "first_step": 1,
        "last_step": 3,
        "image_height": SIZE,
        "image_width": SIZE,
        "status": "accepted",
    }
    identity = ("drawn-train-00000-00000", "drawn", "train", 0, 0, 0)
    return EpisodeAnnotation(*identity, **values | changed)


def test_a_perfect_row():
    perfect = row(
        object_mask=masks.encode(box(10, 10)),
        gripper_mask=masks.encode(box(20, 0)),
        region_box=(0.0, 0.0, 40.0, 20.0),
        close_step=3,
        target_object="red cup",
    )
    score = measures.score_episode(perfect, truth())
    assert (score.object_iou, score.gripper_iou, score.gripper_precision, score.gripper_recall) == (1, 1, 1, 1)
    assert (score.region_recall, score.region_area) == (1, 0.5)
    assert score.noun_right and score.good and score.close_error == 0


def test_a_shifted_row():
    shifted = row(
        object_mask=masks.encode(box(15, 10)),  # shares 50 of 150 pixels with the truth
        gripper_mask=masks.encode(box(20, 0, side=20)),  # 400 pixels, 100 of them right
        region_box=(0.0, 0.0, 40.0, 13.0),  # the upper 3 of the target's 10 rows
        close_step=1,
        target_object="red plate",
    )
    score = measures.score_episode(shifted, truth())
    assert score.object_iou == pytest.approx(1 / 3)
    assert (score.gripper_iou, score.gripper_precision, score.gripper_recall) == (0.25, 0.25, 1)
    assert score.region_recall == pytest.approx(0.3)
    assert not score.noun_right and not score.good and score.close_error == -2
    json.dumps(measures.measure([score], [], 0.3))  # numpy's numbers would not go into JSON


def test_what_is_missing_is_none():
    score = measures.score_episode(row(), truth())
    assert (score.object_iou, score.gripper_iou, score.region_recall, score.close_error) == (None,) * 4
    assert not score.good
    hidden = measures.score_episode(
        row(object_mask=masks.encode(box(0, 0)), region_box=(0.0, 0.0, 9.0, 9.0)), truth(target=box(0, 0, side=0))
    )
    assert hidden.object_iou == 0 and hidden.region_recall is None


def test_a_failed_row_has_no_measures():
    failed = row(status="failed", reason="malformed_record", num_steps=0, first_step=-1)
    score = measures.score_episode(failed, truth())
    assert (score.status, score.verb, score.suite, score.good) == ("failed", "unread", "drawn", False)


def test_an_episode_without_a_valid_step_has_no_first_frame_to_measure():
    too_short = row(status="rejected", reason="too_short", num_steps=1, last_step=-1)
    assert measures.score_episode(too_short, truth(steps=1)).region_recall is None


def test_truth_of_another_recording_is_refused():
    with pytest.raises(InputError, match="recorded with the annotated data"):
        measures.score_episode(row(num_steps=6), truth())
    with pytest.raises(InputError, match="size"):
        measures.score_episode(row(image_width=50), truth())


@pytest.mark.parametrize(
    ("prediction", "phrase", "right"),
    [
        ("alphabet soup", "alphabet soup", True),
        ("The Alphabet  Soup", "alphabet soup", True),
        ("small black bowl", "black bowl", True),
        ("bowl", "black bowl", False),
        ("black bowl on the plate", "black bowl", False),
        ("wine-bottle", "wine bottle", True),
        ("a", "bowl", False),
        ("", "bowl", False),
        ("bowl", "", False),
    ],
)
def test_the_noun_rule(prediction, phrase, right):
    assert measures.noun_is_right(prediction, phrase) is right


def test_auc():
    assert measures.auc([3, 4], [1, 2]) == 1
    assert measures.auc([1], [2, 3]) == 0
    assert measures.auc([1, 1], [1, 1, 1]) == 0.5
    assert measures.auc([2, 3], [1, 2, 4]) == pytest.approx((1 + 0.5 + 0 + 1 + 1 + 0) / 6)
    assert measures.auc([], [1]) is None and measures.auc([1], []) is None


def test_the_bootstrap_is_seeded_and_holds_the_mean():
    values = np.linspace(0, 1, 30)
    low, high = measures.bootstrap_interval(values)
    assert [low, high] == measures.bootstrap_interval(values)
    assert 0.35 < low < values.mean() < high < 0.65
    assert measures.bootstrap_interval([0.5, 0.5]) == [0.5, 0.5]
    assert measures.bootstrap_interval([]) is None


def score(number, status, iou=None, **changed):
    values = {"suite": "a", "verb": "pick_place", "reason": "" if status == "accepted" else "low_confidence"}
    return EpisodeScore(str(number), status=status, object_iou=iou, **values | changed)


SCORES = [
    score(0, "accepted", 1.0, noun_right=True, close_error=-2, region_recall=1.0, region_area=0.25),
    score(1, "accepted", 0.5, noun_right=True, close_error=1, region_recall=0.9, region_area=0.25),
    score(2, "accepted", 0.3, suite="b", close_error=0, region_recall=0.5, region_area=0.25),
    score(3, "rejected", 0.6, suite="b"),
    score(4, "rejected", reason="not_detected"),
    score(5, "failed", verb="unread", reason="bad_image"),
]


def test_measures_of_a_group():
    measured = measures.measure(SCORES, [], 0.3)
    assert measured["episodes"] == 6
    assert measured["status"] == {"accepted": 3, "failed": 1, "rejected": 2}
    overlap = measured["object_mask"]
    assert (overlap["n"], overlap["no_mask"], overlap["iou"], overlap["good"]) == (4, 1, pytest.approx(0.6), 0.75)
    accepted = measured["object_mask_accepted"]
    assert (accepted["n"], accepted["iou"], accepted["good"]) == (3, pytest.approx(0.6), pytest.approx(2 / 3))
    assert measured["target_noun"] == {"n": 5, "accuracy": pytest.approx(0.4)}
    region = measured["region"]
    assert (region["n"], region["recall"], region["area"]) == (3, pytest.approx(0.8), 0.25)
    assert region["recall_at_least_0.9"] == pytest.approx(2 / 3)
    close = measured["close_step"]
    assert (close["n"], close["not_found"], close["median_absolute"], close["largest_absolute"]) == (3, 2, 1, 2)
    assert close["mean_absolute"] == 1 and close["mean_signed"] == pytest.approx(-1 / 3)
    assert close["within"] == {"0": pytest.approx(1 / 3), "1": pytest.approx(2 / 3), "2": 1, "5": 1}
    assert measured["filter"] == {
        "accepted_good": 2,
        "accepted_bad": 1,
        "rejected_good": 1,
        "rejected_bad": 2,
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
    }
    assert measured["reasons"] == {
        "bad_image": {"good": 0, "bad": 1},
        "low_confidence": {"good": 1, "bad": 0},
        "not_detected": {"good": 0, "bad": 1},
    }


def test_measures_of_nothing_are_null_not_zero():
    measured = measures.measure([score(0, "failed")], [], 0.3)
    assert measured["object_mask"]["iou"] is None and measured["gripper_mask"]["precision"] is None
    assert measured["filter"]["precision"] is None and measured["close_step"]["mean_absolute"] is None
    assert measured["evidence"]["auc"] is None and measured["evidence"]["auc_within"] is None


def test_evidence_is_pooled_over_episodes_and_within_them():
    evidence = [
        EvidenceScore("0", target=0.9, others={"cup": 0.1, "plate": 0.9}),
        EvidenceScore("1", target=0.2, others={"cup": 0.1}),
        EvidenceScore("2", target=0.8),
        EvidenceScore("3", unusable="the camera moved"),
        EvidenceScore("9", target=0.0, others={"cup": 1.0}),  # of no episode of this group
    ]
    measured = measures.measure(SCORES, evidence, 0.3)["evidence"]
    assert (measured["n"], measured["other_objects"], measured["unusable"]) == (3, 3, {"the camera moved": 1})
    assert measured["auc_within"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert measured["auc"] == pytest.approx((1 + 0.5 + 1 + 1 + 0 + 1 + 1 + 0 + 1) / 9)
    assert measured["targets_supported"] == pytest.approx(2 / 3)
    assert measured["others_contradicted"] == pytest.approx(2 / 3)


def test_groups_share_the_episodes_out():
    result = measures.summarise(SCORES, [], 0.3)
    assert {name: group["episodes"] for name, group in result["by_suite"].items()} == {"a": 4, "b": 2}
    assert {name: group["episodes"] for name, group in result["by_verb"].items()} == {"pick_place": 5, "unread": 1}
    assert result["by_suite"]["b"]["filter"]["accepted_bad"] == 1


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """Four drawn scenes, annotated by motion, one with a broken frame; truth of three, and of one that is not there."""
    folder = tmp_path_factory.mktemp("annotated")
    points = [(80, 150), (100, 160), (70, 170)]
    scenes = [episode(centre=point, seed=seed) for seed, point in enumerate(points)]
    write_scenes(folder / "data", scenes[:2], [scenes[2], episode(broken=[CLOSE])])
    settings = AnnotateSettings(annotators="motion")
    annotate("libero", folder / "data", folder / "annotations", settings, Execution())
    identifiers = [f"drawn-train-{address}" for address in ("00000-00000", "00000-00001", "00007-00000", "00001-00001")]
    known = [
        truth(
            identifier,
            steps=STEPS,
            target=object_mask(point),
            gripper=box(point[0] - 10, point[1] - 15, side=20, size=256),
            others={
                "speck_1": box(0, 0, side=7, size=256),
                "robot_arm": box(120, 0, size=256),
                "mat_1": box(200, 20, size=256),
            },
            target_phrase="disc",
            contact_step=CLOSE + 1,
            suite=f"suite_{point[0]}",
        )
        for identifier, point in zip(identifiers, [*points, points[0]], strict=True)
    ]
    truth_table.write(known, folder / "truth.parquet", {})
    return folder


def test_end_to_end(annotated, tmp_path):
    result = evaluate(annotated / "annotations", annotated / "truth.parquet", tmp_path)
    assert result["join"] == {
        "rows": 4,
        "matched": 3,
        "rows_without_truth": ["drawn-train-00001-00000"],
        "truth_without_row": ["drawn-train-00007-00000"],
    }
    overall = result["overall"]
    assert overall["status"] == {"accepted": 2, "failed": 1} and list(result["by_verb"]) == ["pick_place", "unread"]
    assert overall["object_mask"]["n"] == 2 and overall["object_mask"]["iou"] > 0.8
    assert overall["filter"]["accepted_good"] == 2
    assert overall["close_step"]["mean_signed"] == -1
    assert overall["target_noun"]["accuracy"] == 1
    assert overall["evidence"]["n"] == overall["evidence"]["other_objects"] == 2  # neither speck nor arm
    assert overall["evidence"]["auc"] == 1
    assert list(result["by_suite"]) == ["suite_100", "suite_80"]
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(result))

    page = (tmp_path / "worst.html").read_text()
    assert page.count('<article class="card">') == 2
    assert page.count("data:image/jpeg;base64,") == 4
    lowest = min(score["object_iou"] for score in result["episodes"] if score["object_iou"] is not None)
    assert page.index(f"IoU {lowest:.2f}") == page.index("<strong>IoU") + len("<strong>")

    console = Console(width=160, record=True, file=io.StringIO())
    for table in summary_tables(result):
        console.print(table)
    text = console.export_text()
    assert "3 of 4 rows have truth; 1 episodes of the truth have no row" in text
    assert "suite_100" in text and "]" in text  # the interval's brackets are no markup


def test_the_same_evaluation_writes_the_same_bytes(annotated, tmp_path):
    for name in ("first", "second"):
        evaluate(annotated / "annotations", annotated / "truth.parquet", tmp_path / name)
    for name in ("evaluation.json", "worst.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_what_does_not_belong_together_is_refused(annotated, tmp_path):
    with pytest.raises(InputError, match="pixelcli annotate"):
        evaluate(tmp_path, annotated / "truth.parquet")
    truth_table.write([truth("another-train-00000-00000")], tmp_path / "truth.parquet", {})
    with pytest.raises(InputError, match="no episode of these annotations"):
        evaluate(annotated / "annotations", tmp_path / "truth.parquet")
    changed = write_scenes(tmp_path / "data", [episode(seed=7), episode(seed=8)])
    with pytest.raises(InputError, match="--data-dir"):
        evaluate(annotated / "annotations", annotated / "truth.parquet", data_dir=changed)
