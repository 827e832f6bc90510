"""The job of `pixelcli annotate`: source file k -> annotation part k."""

import json
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from annotate import jobs
from annotate.annotator import annotate_episodes
from annotate.choose import check_annotators, choose_annotators, model_names
from annotate.jobs import Execution
from annotate.rlds import SourceFile, list_files, read_episodes
from annotate.settings import AnnotateSettings
from annotate.sources import SOURCES, sample
from pixel160k import table
from pixel160k.tracks import write_tracks


@dataclass(frozen=True)
class _AnnotateFile:
    """Annotates one file into `part-{split}-{shard}.parquet`."""

    source: str
    settings: AnnotateSettings
    device: str
    description: dict[str, Any]

    def __call__(self, file: SourceFile, folder: Path) -> dict[str, Any]:
        annotators = choose_annotators(self.settings, self.device)
        annotators.stages.seconds.clear()
        episodes = read_episodes(SOURCES[self.source], file, self.settings.camera)
        rows, tracks = annotate_episodes(episodes, annotators, self.settings)
        table.write_part(folder / f"part-{file.name}.parquet", rows, self.description)
        if self.settings.tracks:
            (folder / "tracks").mkdir()
            write_tracks(folder / "tracks" / f"part-{file.name}.parquet", tracks)
        return {
            "episodes": len(rows),
            **table.tally(rows),
            "stages": annotators.stages.seconds,
        }


def describe(source: str, dataset: str, settings: AnnotateSettings, device: str = "cpu") -> dict[str, Any]:
    """Everything that determines the bytes of a part; the filter's settings have a digest of their own.

    A GPU rounds otherwise than a CPU, so its kind belongs to them, and parts of both never mix.
    """
    kind = device.partition(":")[0]
    return {
        "job": "annotate",
        "software": version("pixelvla"),
        "source": source,
        "dataset": dataset,
        "settings": settings.model_dump(mode="json"),
        "filter_digest": settings.filter.digest(),
        "models": model_names(settings),
        **({} if kind == "cpu" else {"device": kind}),
    }


def default_data_dir(source: str, data_dir: str | Path | None) -> Path:
    """The data directory to read: the one given, or the shipped sample's.

    Raises:
        ValueError: a real source without a directory.
    """
    if data_dir is not None:
        return Path(data_dir)
    if source != "sample":
        raise ValueError(f"--src {source} needs --data-dir, the folder that holds its TFRecord files")
    return sample.default_directory()


# The sample must run anywhere, so it takes the shipped tiny checkpoints, which know its simulated world and no other.
_SAMPLE_DEFAULTS = ("foundation.detector=tiny", "foundation.segmenter=tiny", "target.method=grammar")


def load_settings(
    source: str, config: str | Path | None, overrides: tuple[str, ...], device: str = "cpu"
) -> AnnotateSettings:
    """The settings of a run: of a file and overrides, or else the defaults, which for the sample are the tiny models.

    On CUDA the models compute in bfloat16 unless a dtype is asked for.

    Raises:
        ValueError: a setting is unknown or wrong.
    """
    if source == "sample" and config is None:
        overrides = (*_SAMPLE_DEFAULTS, *overrides)
    settings = AnnotateSettings.load(config, overrides)
    if device.startswith("cuda") and "dtype" not in settings.foundation.model_fields_set:
        foundation = settings.foundation.model_copy(update={"dtype": "bfloat16"})
        settings = settings.model_copy(update={"foundation": foundation})
    return settings


def read_run(annotations: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a finished run says of itself: run.json (source, settings, models, files) and stats.json (counts, paths).

    Raises:
        ValueError: the directory holds no annotations, or unfinished ones.
    """
    try:
        run, stats = (
            json.loads((annotations / name).read_text(encoding="utf-8")) for name in ("run.json", "stats.json")
        )
    except FileNotFoundError as error:
        raise ValueError(
            f"{annotations} holds no finished annotations (no {Path(error.filename).name}); "
            "run `pixelcli annotate` to its end first"
        ) from None
    return run, stats


def annotate(
    source: str,
    data_dir: Path,
    out: Path,
    settings: AnnotateSettings,
    execution: Execution,
    split: str = "",
    device: str = "cpu",
) -> dict[str, Any]:
    """Annotate every file of a data set into `out` and return the totals, which stats.json keeps too.

    Raises:
        ValueError: the data directory, the output directory or a file is unusable; one line that says what to do.
    """
    files = list_files(SOURCES[source], data_dir, split)
    cameras = SOURCES[source].cameras
    if settings.camera and settings.camera not in cameras:
        raise ValueError(f"setting 'camera': {source} has {', '.join(cameras)}, not {settings.camera!r}")
    check_annotators(settings)
    identity = describe(source, files[0].dataset, settings, device)
    # Which files there are belongs to the run, but not into the parts: one part's bytes depend on one file's.
    inputs = [[file.path.name, file.path.stat().st_size] for file in files]
    started = time.monotonic()
    work = _AnnotateFile(source, settings, device, identity)
    markers = jobs.run(f"annotate {files[0].dataset}", work, files, out, identity | {"files": inputs}, execution)
    totals: dict[str, Any] = {"episodes": 0, "status": Counter(), "reasons": Counter(), "stages": Counter()}
    for marker in markers:
        totals["episodes"] += marker["summary"]["episodes"]
        for name in ("status", "reasons", "stages"):
            totals[name].update(marker["summary"][name])
    totals |= {
        "files": len(files),
        "files_missing": sum(count for _, count in {(file.split, file.shards) for file in files}) - len(files),
        "seconds": round(time.monotonic() - started, 3),
        "work_seconds": round(sum(marker["seconds"] for marker in markers), 3),
        "workers": execution.workers,
        "runner": execution.runner,
        "data_dir": str(data_dir.resolve()),
    }
    jobs.write_atomically(out / "stats.json", json.dumps(totals, indent=1))
    return totals
