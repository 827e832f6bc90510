"""How an evaluation in LIBERO is shown: a table for the terminal, and a page with the films."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from evaluation.closed_loop.episode import EpisodeResult
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
    rates = Table(
        "task", *conditions, title=f"{summary['policy']} in {summary['suite']}: success [95% Wilson interval]"
    )
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
    return tables


def write_page(summary: dict[str, Any], results: Sequence[EpisodeResult], folder: Path) -> Path:
    """Write the page `libero.html` of an evaluation into its folder, beside the films; returns its path."""
    scenes: dict[Any, list[EpisodeResult]] = {}
    for result in results:
        scenes.setdefault(result.scene, []).append(result)
    shown = {scene: rows for scene, rows in sorted(scenes.items()) if any(row.video for row in rows)}
    failed = [row for row in results if row.error]
    values = {"title": f"{summary['policy']} in {summary['suite']}", "told": told, "scenes": shown, "failed": failed}
    write_text(folder / "libero.html", drawing.render(_TEMPLATE, {**summary, **values}))
    return folder / "libero.html"
