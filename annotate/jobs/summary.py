"""The table at the end of `pixelcli annotate`: what became of the episodes."""

from typing import Any

from rich.table import Table

from pixel160k.format import table


def summary_table(totals: dict[str, Any]) -> Table:
    """A table of the totals that `annotate` returns: accepted episodes, then the others by reason, then the times."""
    episodes, work = totals["episodes"], max(totals["work_seconds"], 1e-9)
    caption = f"{episodes} episodes, {episodes / work:.1f} per second of work"
    if totals["files_missing"]:
        caption += f"; {totals['files_missing']} of the data set's files are not in the data directory"
    if retries := totals.get("retries"):  # earlier versions did not count them
        caption += f"; {retries} faults of a disk or network passed and were tried again"
    for stage, seconds in sorted(totals["stages"].items(), key=lambda item: -item[1]):
        caption += f"\n{seconds:8.1f} s {stage}"
    summary = Table(caption=caption, caption_justify="left")
    summary.add_column("episodes", justify="right")
    summary.add_column("status")
    summary.add_column("why")
    summary.add_row(str(totals["status"].get(table.ACCEPTED, 0)), table.ACCEPTED, "")
    for reason, count in sorted(totals["reasons"].items(), key=lambda item: -item[1]):
        summary.add_row(str(count), reason, table.REASONS[reason])
    return summary
