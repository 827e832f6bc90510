"""How good the annotations are: every stage of the pipeline measured against the simulator's truth.

A row is joined with the truth of its episode by the episode's id. Rows without truth, and truth without a row, are
reported. All measures (annotation_measures.py) are given overall, by suite and by verb class.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from annotate.annotators.motion import Motion, decode_keyframes
from annotate.jobs.annotate import read_run
from annotate.settings import AnnotateSettings
from annotate.sources import SOURCES
from annotate.sources.episode import BadImage, Episode
from annotate.sources.rlds import list_files, read_episodes
from annotate.sources.sample import default_directory
from evaluation import annotation_report
from evaluation.annotation_measures import EvidenceScore, region_curve, score_episode, summarise
from evaluation.annotation_report import Case
from pixel160k.errors import InputError
from pixel160k.files import write_text
from pixel160k.format import masks, table
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.paths import AnyPath, open_path
from simulation import truth as truth_table
from simulation.truth import StepTruth

MIN_OBJECT_PIXELS = 60  # the motion evidence is not measured on objects that show fewer pixels
_ROBOT = ("gripper", "robot_arm")


def evaluate(
    annotations: AnyPath, truth: Path | None = None, out: AnyPath | None = None, data_dir: AnyPath | None = None
) -> dict[str, Any]:
    """Measure an annotation directory against a truth table.

    Args:
        annotations: output of `pixelcli annotate`, complete.
        truth: the `truth.parquet` recorded with the data that was annotated; by default that of the shipped sample.
        out: the folder that evaluation.json and worst.html go to; None writes nothing.
        data_dir: the RLDS data that was annotated; by default the folder that it was read from.

    Returns:
        What evaluation.json holds: `dataset`, `annotations` (how they were made), `join` (which rows and truths have no
        partner), `overall`, `by_suite` and `by_verb` (see `measure`), `region_curve`, and `episodes`, one `EpisodeScore`
        each.

    Raises:
        InputError: the annotations are unfinished, or truth, annotations and data do not belong together.
    """
    run, stats = read_run(annotations)
    truth = truth or default_directory() / truth_table.FILE_NAME
    settings = AnnotateSettings.model_validate(run["settings"])
    main_camera = SOURCES[run["source"]].cameras[0]
    if settings.camera not in ("", main_camera):
        raise InputError(f"the truth is of the camera {main_camera!r}, these annotations are of {settings.camera!r}")
    rows = {row.episode_id: row for row in table.read_annotations(annotations)}
    cases, without_row = _join(rows, truth)
    frames = _Frames(run["source"], data_dir or open_path(stats["data_dir"]))
    evidence = _evidence_scores(cases, frames, settings)
    matched = {case.row.episode_id for case in cases}
    result = _rounded(
        {
            "dataset": run["dataset"],
            "annotations": {
                key: run[key] for key in ("software", "source", "settings", "models", "revisions") if key in run
            },
            "join": {
                "rows": len(rows),
                "matched": len(cases),
                "rows_without_truth": sorted(set(rows) - matched),
                "truth_without_row": sorted(without_row),
            },
            **summarise([case.score for case in cases], evidence, settings.filter.min_evidence),
            "region_curve": region_curve(
                [
                    (case.row.gripper_box, masks.decode(case.initial.target))
                    for case in cases
                    if case.row.gripper_box is not None and case.initial is not None
                ]
            ),
            "episodes": [asdict(case.score) for case in cases],
        }
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "evaluation.json", json.dumps(result, indent=1, sort_keys=True) + "\n")
        worst = {case.row.episode_id: case for case in annotation_report.worst_cases(cases)}
        pictures = {
            (identifier := episode.identity.episode_id): annotation_report.draw_case(worst[identifier], episode)
            for episode in frames.episodes([case.row for case in worst.values()])
        }
        annotation_report.write_page(out / "worst.html", cases, pictures, run["dataset"])
    return result


def _evidence_scores(cases: Sequence[Case], frames: "_Frames", settings: AnnotateSettings) -> list[EvidenceScore]:
    """The motion evidence of every case for the truth masks on x_0, as if an annotator had found each of them.

    Robot parts, and objects that show fewer than `MIN_OBJECT_PIXELS` pixels, are left out. The order is the data's.
    """
    from rich.console import Console
    from rich.progress import track

    readable = {case.row.episode_id: case for case in cases if case.initial is not None}
    episodes = track(
        frames.episodes([case.row for case in readable.values()]),
        "motion evidence of truth masks",
        total=len(readable),
        console=Console(stderr=True),
    )
    found = []
    for episode in episodes:
        initial = readable[episode.identity.episode_id].initial
        if initial is not None:
            found.append(_evidence_score(episode, initial, settings))
    return found


def _evidence_score(episode: Episode, initial: StepTruth, settings: AnnotateSettings) -> EvidenceScore:
    identifier = episode.identity.episode_id
    if episode.close_step < 0:
        return EvidenceScore(identifier, "the gripper never closes")
    if episode.base_moves:
        return EvidenceScore(identifier, "the robot's base drives")
    try:
        motion = Motion(decode_keyframes(episode, settings), settings.motion)
    except BadImage:
        return EvidenceScore(identifier, "a frame does not decode")
    if motion.unusable:
        return EvidenceScore(identifier, motion.unusable)
    if masks.area(initial.target) < MIN_OBJECT_PIXELS:
        return EvidenceScore(identifier, f"the target shows fewer than {MIN_OBJECT_PIXELS} pixels")

    def ask(rle: masks.RLE) -> float:
        return motion.evidence(masks.decode(rle), settings.filter.min_evidence).score

    others = {
        name: ask(rle)
        for name, rle in sorted(initial.others.items())
        if name not in _ROBOT and masks.area(rle) >= MIN_OBJECT_PIXELS
    }
    return EvidenceScore(identifier, target=ask(initial.target), others=others)


@dataclass(frozen=True)
class _Frames:
    """The annotated RLDS data, read again for its frames."""

    source: str
    data_dir: AnyPath

    def episodes(self, rows: Sequence[EpisodeAnnotation]) -> Iterator[Episode]:
        """The episodes of these rows, in the data's order; each is checked to be the record that was annotated."""
        wanted = {row.episode_id: row for row in rows}
        files = {(row.split, row.shard) for row in rows}
        source = SOURCES[self.source]
        for file in list_files(source, self.data_dir):
            if (file.split, file.shard) not in files:
                continue
            for item in read_episodes(source, file):
                found = item.identity if isinstance(item, Episode) else item
                row = wanted.pop(found.episode_id, None)
                if row is None:
                    continue
                if isinstance(item, EpisodeAnnotation) or found.record_crc32c != row.record_crc32c:
                    raise InputError(
                        f"{self.data_dir}: {row.episode_id} is not as annotated; give the right --data-dir"
                    )
                yield item
        if wanted:
            raise InputError(f"{self.data_dir} lacks {min(wanted)}, which was annotated; give the right --data-dir")


def _join(rows: dict[str, EpisodeAnnotation], truth: Path) -> tuple[list[Case], list[str]]:
    """The rows paired with their truth, which is read one episode at a time, and the ids of the truth that has no row."""
    cases, without_row = [], []
    for episode in truth_table.iterate(truth):
        row = rows.get(episode.episode_id)
        if row is None:
            without_row.append(episode.episode_id)
            continue
        score = score_episode(row, episode)
        usable = row.status != table.FAILED and row.first_step <= row.last_step
        initial = episode.steps[row.first_step] if usable else None
        close = episode.steps[row.close_step] if row.close_step >= 0 else None
        cases.append(Case(row, score, initial, close))
    if not cases:
        raise InputError(f"{truth} has no episode of these annotations; give the one recorded with the annotated data")
    return cases, without_row


def _rounded(value: Any) -> Any:
    """A result with its numbers rounded to six decimals: more differ between machines."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
