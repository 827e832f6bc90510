"""The job of `pixelcli build-shards`: source file k + annotation part k -> shard k, then what stands beside the shards."""

import hashlib
import io
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from annotate.faults import LOGGER, describe_error, tracebacks_to
from annotate.jobs.annotate import read_run
from annotate.jobs.beam import Execution, run_job
from annotate.jobs.unit import log_path
from annotate.jobs.views import CameraCounts, View, check_cameras, members_at, read_views, total_counts
from annotate.sources import SOURCES
from annotate.sources.episode import BadImage, Episode
from annotate.sources.rlds import SourceFile, first_episodes, list_files, read_episodes
from pixel160k.errors import InputError
from pixel160k.files import sha256_of, working_folder, write_json, write_text, written_atomically
from pixel160k.format import episode_rows, shards, table
from pixel160k.format.actions import action_chunk
from pixel160k.format.statistics import Transitions
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.format.tracks import StepMasks, read_tracks
from pixel160k.paths import AnyPath, open_path, read_all
from pixel160k.publish.card import data_card
from pixel160k.publish.croissant import croissant

# Keys of run.json; the last three are there if there is something to say.
_MADE_BY = ("software", "source", "dataset", "settings", "models", "revisions", "limit")
HORIZON = 50  # actions per sample; loaders slice the first N_c
_AT_ONCE = 16  # parts that are hashed, or files of transitions that are read, at the same time


@dataclass(frozen=True)
class _BuildShard:
    """Builds one shard and, in `.work/`, its index rows and the transitions for the statistics."""

    source: str
    camera: str
    annotations: str
    include: str
    tracked: bool  # masks were followed through the steps: of all episodes, or of the accepted ones
    horizon: int
    out: str  # whose log gets the tracebacks of `internal_error`
    cameras: tuple[str, ...] = ()  # further ones

    def __call__(self, file: SourceFile, folder: Path, device: str) -> dict[str, Any]:
        with tracebacks_to(log_path(open_path(self.out))):
            return self._build(file, folder)

    def _build(self, file: SourceFile, folder: Path) -> dict[str, Any]:
        annotations = open_path(self.annotations)
        rows = table.read_part(annotations / f"part-{file.name}.parquet")
        tracks = read_tracks(annotations / "tracks" / f"part-{file.name}.parquet")
        episodes = read_episodes(SOURCES[self.source], file, self.camera, self.cameras)
        tar = folder / f"{file.dataset}-{file.name}.tar"
        (folder / ".work").mkdir()
        left_out: dict[str, str] = {}
        causes: dict[str, str] = {}
        images: Counter[str] = Counter()
        converted: Counter[str] = Counter()
        cameras = CameraCounts(self.cameras)
        errors: list[str] = []
        untracked = 0
        written: list[EpisodeAnnotation] = []
        actions, states, trajectories = [np.zeros((0, 7), np.float32)], [], 0
        with shards.ShardWriter(tar) as writer:
            for row, episode in _join(rows, episodes):
                if isinstance(episode, EpisodeAnnotation):
                    left_out[row.episode_id] = row.reason or episode.reason
                    if episode.reason == "internal_error" != row.reason:
                        errors.append(f"{row.episode_id}: {episode.detail}")
                    continue
                valid = slice(episode.first_step, episode.last_step + 1)
                if episode.first_step <= episode.last_step:
                    actions.append(episode.actions[valid])
                    states.append(episode.state[valid])
                    trajectories += 1
                wanted = row.status == table.ACCEPTED or (self.include == "all" and row.status == table.REJECTED)
                reason = row.reason if row.status == table.FAILED else ""
                if wanted and not reason:
                    masked = tracks.get(row.episode_id, {})
                    samples: list[tuple[int, dict[str, bytes]]] = []
                    were, views = Counter[str](), dict[str, View]()
                    try:
                        if episode.first_step <= episode.last_step:
                            views = read_views(episode)
                        samples, were = _make_samples(row, masked, episode, views, self.horizon)
                        reason = "" if samples else "too_short"
                    except BadImage as error:
                        reason, causes[row.episode_id] = "bad_image", str(error)
                    except Exception as error:
                        LOGGER.error("%s:", row.episode_id, exc_info=error)
                        errors.append(f"{row.episode_id}: {describe_error(error)}")
                        reason = "internal_error"
                    for step, members in samples:
                        writer.append(row, step, members)
                        images[shards.image_member(members)] += 1
                    converted.update(were)
                    if samples:
                        written.append(row)
                        cameras.add(row.episode_id, views)
                    has_mask = row.object_mask is not None or row.gripper_mask is not None
                    untracked += bool(self.tracked and samples and has_mask and not masked)
                if reason:
                    left_out[row.episode_id] = reason
        if not writer.index:
            tar.unlink()  # readers stumble over a tar without samples
        shards.write_index(folder / ".work" / f"{file.name}.parquet", writer.index)
        episodes_of_file = [episode_rows.row_of_annotation(row) for row in written]
        episode_rows.write_rows(folder / ".work" / f"{file.name}.{episode_rows.EPISODES}", episodes_of_file)
        state = np.concatenate(states) if states else np.zeros((0, 0), np.float32)
        np.savez(folder / ".work" / f"{file.name}.npz", action=np.concatenate(actions), state=state)
        return {
            "samples": len(writer.index),
            "trajectories": trajectories,
            "left_out": left_out,
            "causes": causes,
            "images": images,
            "converted": converted,
            "cameras": cameras.summary(),
            "untracked": untracked,
            "internal_errors": errors,
            **table.tally(rows),
        }


def _join(
    rows: list[EpisodeAnnotation], episodes: Iterator[Episode | EpisodeAnnotation]
) -> Iterator[tuple[EpisodeAnnotation, Episode | EpisodeAnnotation]]:
    """Pair rows and records one by one, checking that they belong together."""
    by_id = {row.episode_id: row for row in rows}
    for episode in episodes:
        found = episode.identity if isinstance(episode, Episode) else episode
        row = by_id.pop(found.episode_id, None)
        if row is None or row.record_crc32c != found.record_crc32c:
            raise InputError(
                f"the annotations do not belong to this data: record {found.record} "
                + ("has no row" if row is None else "has another checksum than when it was annotated")
                + "; annotate this copy of the data, or give the --data-dir that was annotated"
            )
        yield row, episode
    if by_id:
        raise InputError(f"the annotations do not belong to this data: it has no record {min(by_id)}")


def _make_samples(
    row: EpisodeAnnotation,
    tracks: dict[int, StepMasks],
    episode: Episode,
    views: dict[str, View],
    horizon: int,
) -> tuple[list[tuple[int, dict[str, bytes]]], Counter[str]]:
    """An episode's samples, each its step and its members, and how many images had to be converted, by what they were.

    Raises:
        BadImage: a frame cannot be published, or has not the size of the masks.
    """
    size = row.image_height, row.image_width
    samples, converted, describe = [], Counter[str](), shards.json_maker(row)
    for step in range(episode.first_step, episode.last_step + 1):
        image, was = episode.published(step, size)
        masked = shards.step_masks(row, step, tracks.get(step))
        chunk = action_chunk(episode.actions, step, episode.last_step, horizon)
        members = shards.sample_members(row, masked, describe(masked), image, chunk, episode.state[step])
        samples.append((masked.step, members | members_at(views, step - episode.first_step)))
        if was:
            converted[was] += 1
    return samples, converted


def build_shards(
    annotations: AnyPath,
    out: AnyPath,
    execution: Execution,
    data_dir: AnyPath | None = None,
    include: str = "accepted",
    cameras: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the shards of an annotation directory and everything beside them.

    Args:
        annotations: output of `annotate`, complete.
        out: new, empty, or holding the same run, which is then resumed.
        execution: runner, workers and part.
        data_dir: the RLDS data that was annotated; by default where it was then.
        include: "accepted" episodes only, or "all" that can be read.
        cameras: further cameras of the source whose images the samples have too; masks and prompts are not on these.

    Returns:
        The manifest of the shards, `seconds`, the wall time, and `internal_errors`: which episodes met a bug here.

    Raises:
        InputError: the annotations are incomplete or of other data, a directory is unusable, or there is no such camera.
        JobBug: a file met a bug.
        PartDone: this command's part is done, but others are not.
    """
    run, stats = read_run(annotations)
    source = SOURCES[run["source"]]
    cameras = check_cameras(cameras, run["settings"]["camera"] or source.cameras[0], source.cameras)
    tracked = run["settings"]["tracks"] not in ("none", False)  # False: of earlier versions
    annotated = {name for name, _ in run["files"]}
    every = list_files(source, data_dir or open_path(stats["data_dir"]), cameras=cameras)
    files = [file for file in every if file.path.name in annotated]
    if missing := sorted(annotated - {file.path.name for file in files}):
        raise InputError(f"the data directory lacks {missing[0]}, which was annotated; give the right --data-dir")
    if "limit" in run:
        files = first_episodes(files, run["limit"])
    folders = ("", "tracks/") if tracked else ("",)
    parts = [f"{folder}part-{file.name}.parquet" for folder in folders for file in files]
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # in a store each of thousands of parts takes a while to answer
        digests = list(pool.map(sha256_of, (annotations / name for name in parts)))
    description = {
        "job": "build-shards",
        "software": version("pixelvla"),
        "annotations": {key: run[key] for key in _MADE_BY if key in run},
        "parts": dict(zip(parts, digests, strict=True)),
        "include": include,
        "horizon": HORIZON,
        **({"cameras": list(cameras)} if cameras else {}),
    }
    started = time.monotonic()
    work = _BuildShard(
        run["source"], run["settings"]["camera"], str(annotations.resolve()), include, tracked, HORIZON,
        str(out.resolve()), cameras,
    )  # fmt: skip
    markers = run_job(f"build-shards {files[0].dataset}", work, files, out, description, execution)
    errors = [error for marker in markers for error in marker["summary"].get("internal_errors", [])]
    manifest = _finish(out, files, markers, description)
    return manifest | {"seconds": round(time.monotonic() - started, 3), "internal_errors": errors}


def _finish(
    out: AnyPath, files: list[SourceFile], markers: list[dict[str, Any]], description: dict[str, Any]
) -> dict[str, Any]:
    """Write index, statistics, manifest, Croissant description and data card from what the files left in `.work`."""
    dataset = files[0].dataset
    with written_atomically(out / "index.parquet") as temporary:
        listed = [out / ".work" / f"{file.name}.parquet" for file in files]
        samples, episodes = shards.join_indices(listed, temporary)
    with written_atomically(out / episode_rows.EPISODES) as temporary:
        episode_rows.join_rows([out / ".work" / f"{file.name}.{episode_rows.EPISODES}" for file in files], temporary)
    summaries = [marker["summary"] for marker in markers]
    trajectories = [(file, summary["trajectories"]) for file, summary in zip(files, summaries, strict=True)]
    split = shards.TRAIN if any(number for file, number in trajectories if file.split == shards.TRAIN) else ""
    of_split = [(file, number) for file, number in trajectories if split in (file.split, "")]
    with working_folder(out, "statistics") as folder, Transitions(folder) as transitions:
        for start in range(0, len(of_split), _AT_ONCE):
            parts = [out / ".work" / f"{file.name}.npz" for file, _ in of_split[start : start + _AT_ONCE]]
            for content in read_all(parts):
                part = np.load(io.BytesIO(content or b""), allow_pickle=False)
                if len(part["state"]):
                    transitions.add(part["action"], part["state"])
        if not len(transitions):
            raise InputError(
                f"{dataset} holds no valid step at all, so there is nothing to build; see the annotations' reasons"
            )
        statistics = transitions.statistics(sum(number for _, number in of_split))
    if len(of_split) < len(files):
        statistics["split"] = split  # what is for validation or a test has no part in them
    counted: dict[str, Counter[str]] = {name: Counter() for name in ("status", "reasons", "images", "converted")}
    for summary, (name, counts) in itertools.product(summaries, counted.items()):
        counts.update(summary.get(name, {}))  # earlier versions counted no images
    with_png = counted["images"]["png"] > 0
    cameras = description.get("cameras", [])
    of_images = shards.WITH_PNG_VERSION if with_png else shards.FORMAT_VERSION
    causes = {key: cause for summary in summaries for key, cause in summary.get("causes", {}).items()}
    manifest = {
        "format_version": shards.WITH_CAMERAS_VERSION if cameras else of_images,
        "dataset": dataset,
        "include": description["include"],
        "horizon": HORIZON,
        "samples": samples,
        "episodes": episodes,
        "shards": [
            {"name": name, **output, "samples": marker["summary"]["samples"]}
            for marker in markers
            for name, output in marker["outputs"].items()
            if name.endswith(".tar")
        ],
        "left_out": {key: reason for summary in summaries for key, reason in summary["left_out"].items()},
        "untracked": sum(summary.get("untracked", 0) for summary in summaries),  # earlier versions did not count them
        # Only where there is something to say, so that other shards stay what they were.
        **({"causes": causes} if causes else {}),
        **({"images": dict(sorted(counted["images"].items()))} if with_png else {}),
        **({"converted": dict(sorted(counted["converted"].items()))} if counted["converted"] else {}),
        **({"cameras": total_counts(cameras, summaries)} if cameras else {}),
        "annotated": {name: dict(sorted(counted[name].items())) for name in ("status", "reasons")},
        "annotations": description["annotations"],
        "software": description["software"],
    }
    write_json(out / "dataset_statistics.json", {dataset: statistics})
    described = croissant(manifest, sha256_of(out / "index.parquet"))
    write_json(out / "croissant.json", described)
    beside = ("index.parquet", episode_rows.EPISODES, "dataset_statistics.json", "croissant.json")
    manifest["files"] = {name: sha256_of(out / name) for name in beside}
    _write_card(out, data_card(manifest, statistics))
    write_json(out / "manifest.json", manifest)
    return manifest


def _write_card(out: AnyPath, card: str) -> None:
    """Write README.md, unless the user has changed it: then it is theirs and stays.

    `.work/README.sha256` holds the SHA-256 of every card that was written here, one per line.
    """
    readme, written = out / "README.md", out / ".work" / "README.sha256"
    ours = written.read_text(encoding="utf-8").split() if written.exists() else []
    if readme.exists() and sha256_of(readme) not in ours:
        return
    # Noted first: if the job ends here, the earlier card is still known as ours.
    write_text(written, "\n".join(dict.fromkeys([*ours, hashlib.sha256(card.encode()).hexdigest()])) + "\n")
    write_text(readme, card)
