"""The data figure: its numbers are what reading every sample gives, though it reads few, and the picture holds them."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli import main
from pixel160k import ShardDirectory
from pixel160k.errors import InputError
from pixel160k.format import shards
from pixel160k.format.actions import action_chunk
from pixel160k.format.statistics import dataset_statistics
from pixel160k.format.table import EpisodeAnnotation, Evidence
from pixel160k.show.data_figure import figure_numbers, write_figure

HORIZON, EPISODES = 4, 15
LENGTHS = [2 + 3 * record % 11 for record in range(EPISODES)]  # shorter and longer than the horizon


def annotation(record):
    """Every third one is rejected by motion, each with a target of its own; the last has neither target nor words."""
    last, rejected = record == EPISODES - 1, record % 3 == 2
    return EpisodeAnnotation(
        episode_id=f"drawn-train-00000-{record:05d}",
        dataset="drawn",
        split="train",
        shard=0,
        record=record,
        record_crc32c=0,
        instruction="" if last else f"{'Pick up' if record % 2 else 'open,'} the ${record} $x_cup",
        target_object="" if last else f"${record} $x_cup of which there is no other in this whole wide world",
        num_steps=LENGTHS[record],
        first_step=0,
        last_step=LENGTHS[record] - 1,
        image_height=8,
        image_width=8,
        status="rejected" if rejected else "accepted",
        reason="contradicted_by_motion" if rejected else "",
        detection_score=0 if last else record / EPISODES,
        mask_score=0.5,
        evidence=Evidence("contradicted" if rejected else "supported", 0.1 if rejected else 0.9)
        if record
        else Evidence(),
    )


def write(out, records):
    generator = np.random.default_rng(0)
    out.mkdir()
    every = [generator.normal(size=(length, 7)).astype(np.float32) for length in LENGTHS]
    for actions in every:
        actions[:, 3] = 0.25  # never changes
    pixels = np.zeros((8, 8), np.uint8)
    with shards.ShardWriter(out / "drawn-train-00000.tar") as writer:
        for record in records:
            for step in range(LENGTHS[record]):
                row, actions = annotation(record), every[record]
                chunk = action_chunk(actions, step, len(actions) - 1, HORIZON)
                writer.write(row, shards.step_masks(row, step), pixels.tobytes(), chunk, np.zeros(1, np.float32))
    shards.write_index(out / "index.parquet", writer.index)
    actions = np.concatenate(every)
    statistics = {"drawn": dataset_statistics(actions, np.zeros((len(actions), 1)), EPISODES)}
    (out / "dataset_statistics.json").write_text(json.dumps(statistics))
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "dataset": "drawn",
        "include": "all",
        "horizon": HORIZON,
        "samples": len(writer.index),
        "episodes": len(records),
        "shards": [],
        "left_out": {"drawn-train-00000-00099": "bad_image", "drawn-train-00000-00098": "malformed_record"},
        "annotated": {
            "status": {"accepted": 10, "failed": 1, "rejected": 5},
            "reasons": {"bad_image": 1, "contradicted_by_motion": 5},
        },
        "annotations": {},
        "software": "0",
        "files": {},
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("figure") / "shards", range(EPISODES))


@pytest.fixture(scope="module")
def numbers(directory):
    return figure_numbers(ShardDirectory(directory, members=("actions",)))


@pytest.fixture(scope="module")
def samples(directory):
    """Every sample."""
    opened = ShardDirectory(directory, members=("actions",))
    return [sample for episode in opened.episode_ids for sample in opened.episode(episode)]


def test_actions_are_those_of_every_step(numbers, samples):
    steps = np.array([sample.actions[0] for sample in samples])
    for values, histogram in zip(steps.T, numbers["actions"].values(), strict=True):
        edges, counts = histogram["edges"], histogram["counts"]
        assert sum(counts) == len(samples) == sum(LENGTHS)
        for low, high, number in list(zip(edges, edges[1:], counts, strict=False))[1:-1]:
            assert number == np.count_nonzero((values >= low) & (values < high))
        assert counts[0] == np.count_nonzero(values < edges[1])  # the outermost bins hold all beyond them
    assert max(numbers["actions"]["Δroll"]["counts"]) == len(samples)


def test_chunks_are_whole_as_often_as_their_masks_say(numbers, samples):
    real = np.array([sample.action_mask.sum() for sample in samples])
    expected = [np.mean(real >= length) for length in range(1, HORIZON + 1)]
    assert numbers["whole_chunks"] == pytest.approx(expected)


def test_lengths_words_and_objects_are_counted_by_episode(numbers):
    lengths = numbers["episode_steps"]
    counted = {int(low + 0.5): count for low, count in zip(lengths["edges"], lengths["counts"], strict=False) if count}
    assert counted == Counter(LENGTHS)
    assert numbers["skills"] == {"open": 7, "pick": 7, "": 1}
    assert list(numbers["skills"]) == ["open", "pick", ""]
    assert numbers["target_objects"] == {annotation(record).target_object: 1 for record in range(EPISODES)}


def test_scores_count_only_what_was_scored(numbers):
    rejected = sum(record % 3 == 2 for record in range(EPISODES))

    def counted(score, status):
        histogram = numbers["scores"][score][status]
        return {
            round(low, 2): count for low, count in zip(histogram["edges"], histogram["counts"], strict=False) if count
        }

    assert counted("mask_score", "accepted") == {0.5: EPISODES - rejected}
    assert counted("evidence_score", "rejected") == {0.1: rejected}
    assert counted("evidence_score", "accepted") == {0.9: EPISODES - rejected - 1}  # one could not be judged
    found = [counted("score", status) for status in ("accepted", "rejected")]
    assert sum(sum(counts.values()) for counts in found) == EPISODES - 2  # 0 is no score


def test_reasons_are_those_of_all_that_was_annotated(numbers, tmp_path):
    assert numbers["reasons"] == {"contradicted_by_motion": 5, "bad_image": 1}
    assert numbers["left_out"] == {"bad_image": 1, "malformed_record": 1}
    accepted = write(tmp_path / "accepted", [record for record in range(EPISODES) if record % 3 != 2])
    assert figure_numbers(ShardDirectory(accepted, members=("actions",)))["reasons"] == numbers["reasons"]


def test_few_samples_are_read(directory, monkeypatch):
    read = []
    monkeypatch.setattr(
        ShardDirectory, "sample", lambda *asked, sample=ShardDirectory.sample: (read.append(asked), sample(*asked))[1]
    )
    figure_numbers(ShardDirectory(directory, members=("actions",)))
    assert len(read) == sum(-(-length // HORIZON) for length in LENGTHS)


def test_the_command_writes_picture_and_numbers(directory, numbers, tmp_path):
    for name in ("first", "second"):
        result = CliRunner().invoke(main, ["stats", "--shards", str(directory), "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
    first, second = ((tmp_path / name / "stats.json").read_bytes() for name in ("first", "second"))
    assert first == second and json.loads(first) == numbers
    with Image.open(tmp_path / "first" / "stats.png") as picture:
        assert picture.size == (1600, 1800)
        colours = {colour for number, colour in picture.convert("RGB").getcolors(1 << 24) if number > 500}
    assert colours >= {(0x1F, 0x5F, 0xBF), (0x17, 0x71, 0x3A), (0xC2, 0x49, 0x2F)}  # bars of every kind


def test_what_cannot_be_drawn_is_said(directory, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="pixelcli build-shards"):
        write_figure(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="holds no episode"):
        write_figure(write(tmp_path / "empty", []), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pixelvla\[notebook\]"):
        write_figure(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
