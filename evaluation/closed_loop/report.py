"""How an evaluation in LIBERO is shown: a table for the terminal, and a page with the films."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from evaluation.closed_loop.episode import EpisodeResult
from evaluation.shifts import NONE
from pixel160k.files import write_text
from pixel160k.show import drawing

_TEMPLATE = Path(__file__).with_name("report.html")


def told(share: dict[str, Any]) -> str:
    """A share as `measures.share` has it, in words: 41/50 82.0% [69.2, 90.2]."""
    if share["rate"] is None:
        return "–"
    low, high = share["interval"]
    return f"{share['successes']}/{share['of']} {share['rate']:.1%} [{low:.1%}, {high:.1%}]"


def summary_tables(summary: dict[str, Any]) -> list[Table]:
    """The summary of an evaluation (`run.evaluate`) for the terminal: success by task, and the paired comparisons."""
    conditions = summary["conditions"]
    rates = Table("task", *conditions, title=f"{_title(summary)}: success [95% Wilson interval]")
    for task in sorted({task for measured in conditions.values() for task in measured["tasks"]}):
        rates.add_row(str(task), *(told(measured["tasks"][task]) for measured in conditions.values()))
    rates.add_section()
    rates.add_row("all", *(told(measured["success"]) for measured in conditions.values()))
    rates.add_row("first touch right", *(told(measured["first_touch"]) for measured in conditions.values()))
    if any(measured["errors"] for measured in conditions.values()):
        rates.add_row("errors", *(str(measured["errors"]) for measured in conditions.values()))
    tables = [rates]
    if summary["paired"]:
        compared = Table("first", "second", "same scenes", "only the first", "only the second", "McNemar's p")
        for pair in summary["paired"]:
            counts = (str(pair[key]) for key in ("scenes", "only_first", "only_second"))
            compared.add_row(pair["first"], pair["second"], *counts, f"{pair['p']:.4f}")
        tables.append(compared)
    if summary["shifts"]:
        tables += _shift_tables(summary["shifts"], summary["against"])
    return tables


def told_lost(lost: dict[str, Any] | None) -> str:
    """What a shift cost, as `degradation.by_shift` has it, in words: 12.0 points (p 0.0312)."""
    return f"{100 * lost['rate']:.1f} points (p {lost['p']:.4f})" if lost else "–"


def _shift_tables(rows: Sequence[dict[str, Any]], other: str | None) -> list[Table]:
    """Each shift with what it costs; and beside another policy where there is one."""
    costs = Table("shift", "pointing", "success", "lost to none", "first touch right", "errors")
    beside = Table("shift", "pointing", "success there", "lost there", "only here", "only there", "McNemar's p")
    beside.title = f"there: {other}"
    for row in rows:
        named = row["shift"], row["condition"]
        touched, errors = told(row["first_touch"]), str(row["errors"])
        costs.add_row(*named, told(row["success"]), told_lost(row["lost"]), touched, errors)
        if other:
            pair, there = row["between"], row["there"]
            counts = str(pair["only_first"]), str(pair["only_second"]), f"{pair['p']:.4f}"
            beside.add_row(*named, told(there["success"]), told_lost(there["lost"]), *counts)
    for table in (costs, beside):
        table.columns[0].no_wrap = True
    return [costs, beside] if other else [costs]


def _title(summary: dict[str, Any]) -> str:
    """What an evaluation, or the first of its shifts, is called."""
    shift = summary["shifts"][0]["shift"] if summary["shifts"] else NONE
    return f"{summary['policy']} in {summary['suite']}" + (f" under {shift}" if shift != NONE else "")


def write_page(summary: dict[str, Any], results: Sequence[EpisodeResult], folder: Path) -> Path:
    """Write the page `libero.html` of an evaluation into its folder, beside the films; returns its path."""
    scenes: dict[Any, list[EpisodeResult]] = {}
    for result in results:
        scenes.setdefault(result.scene, []).append(result)
    shown = {scene: rows for scene, rows in sorted(scenes.items()) if any(row.video for row in rows)}
    failed = [row for row in results if row.error]
    words = {"title": _title(summary), "told": told, "told_lost": told_lost, "unshifted": NONE}
    values = {**words, "scenes": shown, "failed": failed}
    write_text(folder / "libero.html", drawing.render(_TEMPLATE, {**summary, **values}))
    return folder / "libero.html"
