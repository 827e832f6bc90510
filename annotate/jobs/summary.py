"""The end of the jobs: a table of what became of the episodes, and whether one of them met a bug."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from annotate.jobs.unit import name_log
from pixel160k.errors import InputError, JobBug
from pixel160k.format import table
from pixel160k.paths import AnyPath


def summary_table(totals: dict[str, Any]) -> Group:
    """A table of the totals that `annotate` returns: accepted episodes, then the others by reason; the times stand below."""
    episodes, work = totals["episodes"], max(totals["work_seconds"], 1e-9)
    caption = f"{episodes} episodes, {episodes / work:.1f} per second of work"
    if limit := totals.get("limit"):
        caption += f"; no more than the first {limit} were asked for"
    if totals["files_missing"]:
        caption += f"; {totals['files_missing']} of the data set's files are not in the data directory"
    if retries := totals.get("retries"):  # earlier versions did not count them
        caption += f"; {retries} faults of a disk or network passed and were tried again"
    if untracked := totals.get("untracked"):  # of --refilter
        caption += f"; {untracked} of the accepted have no masks at every step, which `annotate --tracks=all` makes"
    for stage, seconds in sorted(totals["stages"].items(), key=lambda item: -item[1]):
        caption += f"\n{seconds:8.1f} s {stage}"
    summary = Table()
    summary.add_column("episodes", justify="right")
    summary.add_column("status")
    summary.add_column("why")
    summary.add_row(str(totals["status"].get(table.ACCEPTED, 0)), table.ACCEPTED, "")
    for reason, count in sorted(totals["reasons"].items(), key=lambda item: -item[1]):
        summary.add_row(str(count), reason, table.REASONS[reason])
    return Group(summary, Text(caption))  # a table's own caption would be folded to its width


def check_annotated(totals: dict[str, Any], out: AnyPath) -> None:
    """Check that a finished job of `annotate` could read an episode at all.

    Args:
        totals: as `annotate` returns them.
        out: where it wrote to.

    Raises:
        InputError: every episode failed, or there is none; names the first, and why.
    """
    if totals["episodes"] == 0:
        raise InputError("nothing was annotated: the data set's files hold no record")
    if totals["status"].get(table.FAILED, 0) == totals["episodes"]:
        first = next(table.read_annotations(out))
        raise InputError(
            f"nothing was annotated: all {totals['episodes']} episodes failed, the first, {first.episode_id}, as "
            f"{first.reason} ({first.detail}); {out} has a row for each"
        )


def check_episodes(first: list[str], count: int, out: AnyPath) -> None:
    """Check that no episode of a finished job met a bug.

    Args:
        first: of the first such episodes, id and what happened.
        count: how many there are.
        out: where the job wrote to.

    Raises:
        JobBug: some did; names one, and the log.
    """
    if count:
        more = f" (and {count - 1} more episodes)" if count > 1 else ""
        raise JobBug(
            f"this is a bug, met at {first[0]}{more}; the traceback is in {name_log(out)}; "
            "all other episodes are done, these count as internal_error, and the same command tries them once more"
        )
