"""Who names the right object: the grammar, a language model that ranks, or one that answers freely?

    python benchmarks/target_nouns.py [--model FOLDER_OR_ID] [--verbose]

Asks about every distinct task text of LIBERO's suites and of the real Bridge records, and about 486 real instructions of
Bridge, fractal and other public sets, and compares with the truth that was written down by hand (tests/libero_targets.json
and tests/instructions.json say by which convention). Prints right / wrong / none, one column per suite or set, and for the
486 instructions those that the grammar's authors saw apart from those held out, with the verb's class. `--verbose` lists
what was wrong, but never a held-out text: whoever reads one may not tune on it. The first row is the baseline that a
method must beat: it takes whatever noun phrase comes first. Needs the extra [sim], and [foundation] and one to three
minutes of CPU for a model of 135 M.
"""

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from annotate.annotators.grammar import candidate_phrases, target_object, verb_class
from annotate.annotators.language_model import LanguageModelNamer
from simulation.libero import import_libero

TESTS = Path(__file__).parents[1] / "tests"
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
SETS = {"bridge": "Bridge", "fractal": "fractal", "calvin": "play", "taco_play": "play", "lila": "crowd"}
"""The columns of the sets; all others share one."""

Namer = Callable[[Sequence[str]], list[str]]
"""As `name_targets` of annotate/annotators/roles.py."""


class Column(NamedTuple):
    """Instructions that are counted together, with the answers that are right."""

    name: str
    truth: Mapping[str, Collection[str]]
    held_out: bool = False


def suite_texts(suite: str) -> set[str]:
    """The distinct task texts of a LIBERO suite."""
    with contextlib.redirect_stdout(io.StringIO()):  # LIBERO prints its task order
        tasks = import_libero()[0].get_benchmark_dict()[suite]()
        return {tasks.get_task(index).language for index in range(tasks.n_tasks)}


def libero_columns() -> list[Column]:
    """LIBERO's suites, its tasks that pick nothing, and the real Bridge records."""
    truth = json.loads((TESTS / "libero_targets.json").read_text(encoding="utf-8"))
    picks = truth["picks"]
    suites = {suite: {text: picks[text] for text in sorted(suite_texts(suite) & picks.keys())} for suite in SUITES}
    columns = {**suites, "all picks": picks, "no pick": truth["others"], "Bridge records": truth["bridge"]}
    return [Column(name, {text: [target] for text, target in targets.items()}) for name, targets in columns.items()]


def set_columns(what: str) -> list[Column]:
    """The real instructions by set, seen and held out; `what`: "target" or "verb"."""
    rows = json.loads((TESTS / "instructions.json").read_text(encoding="utf-8"))["instructions"]
    columns = []
    for held_out in (False, True):
        for name in ("Bridge", "fractal", "play", "crowd", "other", "all"):
            chosen = [
                row for row in rows if name in (SETS.get(row["set"], "other"), "all") and row["held_out"] is held_out
            ]
            label = f"{name}, held out" if held_out else name
            if not chosen:
                continue
            columns.append(Column(label, {row["text"]: row[what] for row in chosen}, held_out))
    return columns


def methods(model: str | None) -> dict[str, Namer]:
    """The methods to compare, by name; without a model only those that need none."""
    named: dict[str, Namer] = {
        "first noun phrase": lambda texts: [(candidate_phrases(text) or [""])[0] for text in texts],
        "grammar": lambda texts: [target_object(text) for text in texts],
    }
    if model is not None:
        named["model ranks"] = LanguageModelNamer(model).name_targets
        named["model answers"] = LanguageModelNamer(model, generate=True).name_targets
    return named


def report(title: str, columns: Sequence[Column], named: Mapping[str, Namer], console: Console, verbose: bool) -> None:
    """Print a table, one row per method, and with `verbose` before it what was not right of what is not held out."""
    texts = list(dict.fromkeys(text for column in columns for text in column.truth))
    table = Table(title, *(f"{column.name} ({len(column.truth)})" for column in columns), "ms per text")
    for method, name_targets in named.items():
        start = time.perf_counter()
        found = dict(zip(texts, name_targets(texts), strict=True))
        milliseconds = 1000 * (time.perf_counter() - start) / len(texts)
        table.add_row(method, *(count(found, column.truth) for column in columns), f"{milliseconds:.1f}")
        seen = {text: right for column in columns if not column.held_out for text, right in column.truth.items()}
        for text, right in seen.items() if verbose else ():
            if found[text] not in right:
                console.print(f"{method}: {text!r}: {found[text]!r}, not {right!r}", highlight=False)
    console.print(table)


def count(found: Mapping[str, str], truth: Mapping[str, Collection[str]]) -> str:
    """How many answers are right, wrong and missing, as "right / wrong / none"."""
    right = sum(found[text] in accepted for text, accepted in truth.items())
    none = sum(not found[text] and "" not in accepted for text, accepted in truth.items())
    return f"{right} / {len(truth) - right - none} / {none}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of an instruct language model")
    parser.add_argument("--verbose", action="store_true", help="list what was not right and is not held out")
    arguments = parser.parse_args()
    named, console = methods(arguments.model), Console(width=200)
    report("right / wrong / none", libero_columns(), named, console, arguments.verbose)
    report("noun: right / wrong / none", set_columns("target"), named, console, arguments.verbose)
    classes: dict[str, Namer] = {"grammar": lambda texts: [verb_class(text) for text in texts]}
    report("class: right / wrong / none", set_columns("verb"), classes, console, arguments.verbose)


if __name__ == "__main__":
    main()
