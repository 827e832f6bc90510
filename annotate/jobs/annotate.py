"""The job of `pixelcli annotate`: source file k -> annotation part k."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from annotate.annotator import annotate_episodes
from annotate.annotators.choose import choose_annotators, model_names, pin_models, with_models
from annotate.faults import name_errors, tracebacks_to
from annotate.jobs.beam import Execution, run_job
from annotate.jobs.local import list_devices
from annotate.jobs.unit import log_path
from annotate.settings import AnnotateSettings
from annotate.sources import SOURCES, sample
from annotate.sources.rlds import SourceFile, first_episodes, list_files, read_episodes
from pixel160k.errors import InputError
from pixel160k.files import read_json, write_json
from pixel160k.format import table
from pixel160k.format.tracks import write_tracks
from pixel160k.paths import AnyPath, open_path


@dataclass(frozen=True)
class _AnnotateFile:
    """Annotates one file into `part-{split}-{shard}.parquet`."""

    source: str
    settings: AnnotateSettings
    description: dict[str, Any]
    out: str  # whose log gets the tracebacks of `internal_error`

    def __call__(self, file: SourceFile, folder: Path, device: str) -> dict[str, Any]:
        annotators = choose_annotators(self.settings, device)
        annotators.stopwatch.seconds.clear()
        with tracebacks_to(log_path(open_path(self.out))):
            episodes = read_episodes(SOURCES[self.source], file, self.settings.camera)
            rows, tracks = annotate_episodes(episodes, annotators, self.settings)
        table.write_part(folder / f"part-{file.name}.parquet", rows, self.description)
        if self.settings.tracks != "none":
            (folder / "tracks").mkdir()
            write_tracks(folder / "tracks" / f"part-{file.name}.parquet", tracks)
        return {
            "episodes": len(rows),
            **table.tally(rows),
            "internal_errors": name_errors(rows),
            "stages": annotators.stopwatch.seconds,
        }


def describe_run(
    source: str,
    dataset: str,
    settings: AnnotateSettings,
    device: str = "cpu",
    revisions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a run of `annotate` is: everything that determines the bytes of its parts. Each part holds it, and run.json too.

    `filter_digest` says at a glance whether two runs accepted by the same thresholds. A GPU rounds otherwise than a CPU, so
    the kind of a device that is no CPU belongs to it, and parts of both never mix. So do the `revisions` of the models that
    are loaded, as `pin_models` returns them; the settings hold the names alone, so that a run goes on with a revision that
    is asked for by a setting.
    """
    names = {setting: model.rpartition("@")[0] for setting, model in (revisions or {}).items()}
    settings = AnnotateSettings.load(base=settings.model_dump(), values=names)
    kind = device.partition(",")[0].partition(":")[0]
    return {
        "job": "annotate",
        "software": version("pixelvla"),
        "source": source,
        "dataset": dataset,
        "settings": settings.model_dump(mode="json"),
        "filter_digest": settings.filter.digest(),
        "models": model_names(settings),
        **({"revisions": dict(revisions)} if revisions else {}),
        **({} if kind == "cpu" else {"device": kind}),
    }


def default_data_dir(source: str, data_dir: str | AnyPath | None) -> AnyPath:
    """The data directory to read: the one given, or for the source "sample" the one that ships with the package.

    Raises:
        InputError: another source, and no directory given.
    """
    if data_dir is not None:
        return open_path(data_dir)
    if source != "sample":
        raise InputError(f"--src {source} needs --data-dir, the folder that holds its TFRecord files")
    return sample.default_directory()


# The sample must run anywhere, so it takes the shipped tiny checkpoints, which know its simulated world and no other.
_SAMPLE_DEFAULTS = {"foundation": {"detector": "tiny", "segmenter": "tiny"}, "target": {"method": "grammar"}}


def load_settings(
    source: str,
    config: str | Path | None,
    overrides: tuple[str, ...],
    values: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> AnnotateSettings:
    """The settings of a run: the defaults, changed by a YAML file, `key=value` overrides, and values taken as they are.

    For the source "sample" the models are by default the tiny ones that ship with the package.

    On CUDA the models compute in bfloat16 unless a dtype is asked for.

    Raises:
        InputError: a setting is unknown or wrong.
    """
    base = _SAMPLE_DEFAULTS if source == "sample" else None
    settings = AnnotateSettings.load(config, overrides, base, values)
    if device.startswith("cuda") and "dtype" not in settings.foundation.model_fields_set:
        foundation = settings.foundation.model_copy(update={"dtype": "bfloat16"})
        settings = settings.model_copy(update={"foundation": foundation})
    return settings


# The files that a finished run leaves, and what they hold at least.
_RUN_FILES = {
    "run.json": {"software", "source", "dataset", "settings", "models", "files"},
    "stats.json": {"episodes", "status", "reasons", "stages", "files_missing", "work_seconds", "data_dir"},
}


def read_run(annotations: AnyPath) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a finished run says of itself: run.json (source, settings, models, files) and stats.json (counts, paths).

    Raises:
        InputError: the directory holds no annotations, unfinished ones, or damaged ones.
    """
    described = []
    for name, keys in _RUN_FILES.items():
        if not (annotations / name).exists():
            raise InputError(
                f"{annotations} holds no finished annotations (no {name}); run `pixelcli annotate` to its end first"
            )
        content = read_json(annotations / name)
        if not isinstance(content, dict) or not content.keys() >= keys:
            raise InputError(f"{annotations / name} is not what `pixelcli annotate` writes; annotate again")
        described.append(content)
    run, stats = described
    if run["source"] not in SOURCES:
        raise InputError(f"{annotations} is of the source {run['source']!r}, which this version does not know")
    return run, stats


def _devices(settings: AnnotateSettings, execution: Execution, device: str) -> list[str]:
    """Where the workers compute: several devices only for local workers, and others than the CPU only for models."""
    if settings.annotators == "motion" and settings.tracks == "none" and not device.startswith("cpu"):
        raise InputError(f"--device {device}: annotators=motion without tracks computes on the CPU alone; leave it out")
    if execution.runner:
        if "," in device:
            raise InputError(f"--device {device} does not go with --runner: each worker takes one, as cuda")
        return [device]
    return list_devices(device)


def annotate(
    source: str,
    data_dir: AnyPath,
    out: AnyPath,
    settings: AnnotateSettings,
    execution: Execution,
    split: str = "",
    device: str = "cpu",
    limit: int = 0,
) -> dict[str, Any]:
    """Annotate every file of a data set into `out`: parts, run.json and stats.json.

    Args:
        source: a name in `SOURCES`.
        data_dir: the folder that holds the RLDS data set.
        out: new, empty, or holding the same run, which is then resumed.
        settings: all that changes the results.
        execution: runner, workers and part.
        split: only files of this split; "" for all.
        device: where the models compute, as torch names it: one, or several separated by commas. "cuda" stands for every
            GPU of this machine; for another runner, for the first GPU that a worker sees.
        limit: only the first so many episodes, in the order of the files; 0 for all.

    Returns:
        The totals, which are the content of stats.json: episodes per status and reason, seconds per stage, and so on.
        `internal_errors` names the first few episodes that met a bug.

    Raises:
        InputError: the data directory, the output directory or a file is unusable; one line that says what to do.
        JobBug: a file met a bug.
        PartDone: this command's part is done, but others are not.
    """
    cameras = SOURCES[source].cameras
    if settings.camera and settings.camera not in cameras:
        raise InputError(f"setting 'camera': {source} has {', '.join(cameras)}, not {settings.camera!r}")
    files = list_files(SOURCES[source], data_dir, split, [settings.camera] if settings.camera else [])
    missing = sum(count for _, count in {(file.split, file.shards) for file in files}) - len(files)
    if limit:
        files = first_episodes(files, limit)
    revisions = pin_models(settings)
    identity = describe_run(source, files[0].dataset, settings, device, revisions)
    # Version and files belong to the run, but not into the parts: one part's bytes depend on one file's.
    inputs: dict[str, Any] = {"files": [[file.path.name, file.path.stat().st_size] for file in files]}
    if limit:
        inputs["limit"] = limit
    work = _AnnotateFile(source, with_models(settings, revisions), identity, str(out.resolve()))
    devices = _devices(settings, execution, device)
    title = f"annotate {files[0].dataset}"
    description = identity | {"version": files[0].version} | inputs
    markers = run_job(title, work, files, out, description, execution, devices)
    totals: dict[str, Any] = {"episodes": 0, "status": Counter(), "reasons": Counter(), "stages": Counter()}
    totals["internal_errors"] = []
    for marker in markers:
        totals["episodes"] += marker["summary"]["episodes"]
        for name in ("status", "reasons", "stages"):
            totals[name].update(marker["summary"][name])
        totals["internal_errors"] = (totals["internal_errors"] + marker["summary"].get("internal_errors", []))[:3]
    totals |= {
        "files": len(files),
        "files_missing": missing,
        "work_seconds": round(sum(marker["seconds"] for marker in markers), 3),
        "retries": sum(marker.get("retries", 0) for marker in markers),  # markers of earlier versions have none
        "data_dir": str(data_dir.resolve()),
        **({"limit": limit} if limit else {}),
    }
    write_json(out / "stats.json", totals)
    return totals
