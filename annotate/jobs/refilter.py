"""Accept and reject again, with other filter settings and without the models: `pixelcli annotate --refilter`."""

import json
from collections import Counter
from typing import Any

from annotate.accept import accept
from annotate.jobs.annotate import describe_run, read_run
from annotate.settings import AnnotateSettings
from pixel160k.errors import InputError
from pixel160k.files import copy_folder, new_folder, write_json, write_text
from pixel160k.format import table
from pixel160k.format.tracks import tracked_episodes
from pixel160k.paths import AnyPath


def refilter(annotations: AnyPath, out: AnyPath, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Write a copy of finished annotations whose rows are accepted by other thresholds.

    Args:
        annotations: a finished run; it stays as it is.
        out: a new or empty directory; it appears only when all is written.
        overrides: `filter.key=value` settings; the filter's other settings stay as they were.

    Returns:
        The new totals, as `annotate` returns them. `untracked` counts accepted episodes that have no masks at every step,
        since they were rejected when others were followed.

    Raises:
        InputError: the run is unfinished, `out` is not empty, or a setting is not the filter's.
    """
    if others := [text for text in overrides if not text.startswith("filter.")]:
        raise InputError(f"--refilter changes only settings of the filter (filter.KEY=VALUE), not {others[0]!r}")
    run, totals = read_run(annotations)
    settings = AnnotateSettings.load(None, overrides, base=run["settings"])
    identity = describe_run(run["source"], run["dataset"], settings, run.get("device", "cpu"), run.get("revisions"))
    totals |= {"status": Counter(), "reasons": Counter(), "untracked": 0}
    with new_folder(out, last="stats.json") as folder:
        copy_folder(annotations, folder)
        for part in table.list_parts(annotations):
            rows = [accept(row, settings.filter) for row in table.read_part(part)]
            table.write_part(folder / part.name, rows, identity)
            if settings.tracks == "accepted":
                accepted = {row.episode_id for row in rows if row.status == table.ACCEPTED}
                totals["untracked"] += len(accepted - tracked_episodes(annotations / "tracks" / part.name))
            for name, counts in table.tally(rows).items():
                totals[name].update(counts)
        write_text(folder / "run.json", json.dumps(run | identity, sort_keys=True, indent=1))
        write_json(folder / "stats.json", totals)
    return totals
