"""Who names the right object: the grammar, a language model that ranks, or one that answers freely?

    python benchmarks/target_nouns.py [--model FOLDER_OR_ID] [--verbose]

Asks about every distinct task text of LIBERO's suites and of the real Bridge records, and compares with the truth that
was written down by hand (tests/libero_targets.json says by which convention). Prints right / wrong / none in one table,
one column per suite; `--verbose` lists what was wrong. The first row is the baseline that a method must beat: it takes
whatever noun phrase comes first. Needs the extra [sim], and [foundation] and one to three minutes of CPU for a model of 135 M.
"""

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from annotate.annotators.grammar import candidate_phrases, target_object
from annotate.annotators.language_model import LanguageModelNamer
from simulation.environment import import_libero

TRUTH = Path(__file__).parents[1] / "tests" / "libero_targets.json"
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")

Namer = Callable[[Sequence[str]], list[str]]
"""As `name_targets` of annotate/annotators/roles.py."""


def suite_texts(suite: str) -> set[str]:
    """The distinct task texts of a LIBERO suite."""
    with contextlib.redirect_stdout(io.StringIO()):  # LIBERO prints its task order
        tasks = import_libero()[0].get_benchmark_dict()[suite]()
        return {tasks.get_task(index).language for index in range(tasks.n_tasks)}


def columns() -> dict[str, dict[str, str]]:
    """The truth of each column of the table: column -> instruction -> target."""
    truth = json.loads(TRUTH.read_text(encoding="utf-8"))
    picks = truth["picks"]
    suites = {suite: {text: picks[text] for text in sorted(suite_texts(suite) & picks.keys())} for suite in SUITES}
    return {**suites, "all picks": picks, "no pick": truth["others"], "Bridge": truth["bridge"]}


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


def main() -> None:
    """Print the table, one row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of an instruct language model")
    parser.add_argument("--verbose", action="store_true", help="list what was not right")
    arguments = parser.parse_args()
    truths = columns()
    texts = list(dict.fromkeys(text for truth in truths.values() for text in truth))
    report = Table("right / wrong / none", *(f"{name} ({len(truth)})" for name, truth in truths.items()), "ms per text")
    console = Console(width=200)
    for method, name_targets in methods(arguments.model).items():
        start = time.perf_counter()
        found = dict(zip(texts, name_targets(texts), strict=True))
        milliseconds = 1000 * (time.perf_counter() - start) / len(texts)
        report.add_row(method, *(count(found, truth) for truth in truths.values()), f"{milliseconds:.1f}")
        if arguments.verbose:
            right = {text: target for truth in truths.values() for text, target in truth.items()}
            for text in texts:
                if found[text] != right[text]:
                    console.print(f"{method}: {text!r}: {found[text]!r}, not {right[text]!r}", highlight=False)
    console.print(report)


def count(found: dict[str, str], truth: dict[str, str]) -> str:
    """How many answers are right, wrong and missing, as "right / wrong / none"."""
    right = sum(found[text] == target for text, target in truth.items())
    none = sum(not found[text] for text in truth)
    return f"{right} / {len(truth) - right - none} / {none}"


if __name__ == "__main__":
    main()
