"""Accept and reject again, with other filter settings and without the models: `pixelcli annotate --refilter`."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from annotate.accept import accept
from annotate.annotate_job import describe, read_run
from annotate.jobs import check_output_directory
from annotate.settings import AnnotateSettings
from pixel160k import table


def refilter(annotations: Path, out: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Write a copy of finished annotations whose rows are accepted by other thresholds; returns the new totals.

    Args:
        annotations: a finished run; it stays as it is.
        out: a new or empty directory; it appears only when all is written.
        overrides: `filter.key=value` settings.

    Raises:
        ValueError: the run is unfinished, `out` is not empty, or a setting is not the filter's.
    """
    if others := [text for text in overrides if not text.startswith("filter.")]:
        raise ValueError(f"--refilter changes only settings of the filter (filter.KEY=VALUE), not {others[0]!r}")
    run, totals = read_run(annotations)
    settings = AnnotateSettings.load(None, overrides, base=run["settings"])
    check_output_directory(out)
    if any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another --out")
    identity = describe(run["source"], run["dataset"], settings, run.get("device", "cpu"))
    totals |= {"status": Counter(), "reasons": Counter()}
    unfinished = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(annotations, unfinished, ignore=shutil.ignore_patterns(".*"))
    for part in table.list_parts(annotations):
        rows = [accept(row, settings.filter) for row in table.read_part(part)]
        table.write_part(unfinished / part.name, rows, identity)
        for name, counts in table.tally(rows).items():
            totals[name].update(counts)
    (unfinished / "run.json").write_text(json.dumps(run | identity, sort_keys=True, indent=1), encoding="utf-8")
    (unfinished / "stats.json").write_text(json.dumps(totals, indent=1), encoding="utf-8")
    out.rmdir()
    unfinished.rename(out)
    return totals
