"""Episodes -> the numbers of SimplerEnv's tables.

A score is the mean over the variants of a part, then over the parts (orientations of the can; opening and closing), as
tools/calc_metrics_evaluation_videos.py of SimplerEnv has it. The intervals are Wilson's over all episodes of a number: they
take episodes as independent, so they say nothing of another training of the policy.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from evaluation.simpler.tables import Episode

RULES = {
    "last": "success at the last step, as SimplerEnv counts",
    "any": "success at any step, as harnesses count that stop early or accumulate",
}
NAMES = {
    "coke_can": "pick coke can",
    "move_near": "move near",
    "drawer": "open / close drawer",
    "apple_in_drawer": "open top drawer and place apple",
    "spoon_on_towel": "put spoon on towel",
    "carrot_on_plate": "put carrot on plate",
    "stack_cubes": "stack green block on yellow block",
    "eggplant_in_basket": "put eggplant in yellow basket",
}
AVERAGES = {  # papers average over three of the Google robot's tasks or over all four
    "average of three": ("coke_can", "move_near", "drawer"),
    "average of four": ("coke_can", "move_near", "drawer", "apple_in_drawer"),
    "average": ("spoon_on_towel", "carrot_on_plate", "stack_cubes", "eggplant_in_basket"),
}


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """The 95% interval of a share, after Wilson (1927)."""
    z = 1.959963984540054
    share, weight = successes / episodes, z * z / episodes
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * np.sqrt(share * (1 - share) / episodes + weight / episodes / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def tabulate(planned: Sequence[Episode], rows: Mapping[str, Mapping[str, Any]], rule: str) -> str:
    """The table, as Markdown. Numbers of which episodes are still missing are marked by a star.

    Args:
        planned: all episodes of the numbers, in their order.
        rows: by id, those that were run, as `run.run_episode` describes them.
        rule: one of `RULES`.
    """
    grasps = any(episode.table == "widowx" for episode in planned)
    head = ["task", "success %", "95% interval", "episodes", *(["grasped %"] if grasps else [])]
    lines = [head, ["---"] * len(head)]
    means: dict[str, float] = {}
    grasped: dict[str, float] = {}
    complete: dict[str, bool] = {}
    for task in dict.fromkeys(episode.task for episode in planned):
        of_task = [episode for episode in planned if episode.task == task]
        parts = list(dict.fromkeys(episode.part for episode in of_task))
        scores = {part: _score([episode for episode in of_task if episode.part == part], rows, rule) for part in parts}
        for part in parts if len(parts) > 1 else []:
            among = [episode for episode in of_task if episode.part == part]
            lines.append(_line(f"{NAMES[task]}: {part}", scores[part], among, rows, rule))
        known = [score for score in scores.values() if score is not None]
        mean = float(np.mean(known)) if known else None
        lines.append(_line(NAMES[task], mean, of_task, rows, rule))
        complete[task] = all(episode.id in rows for episode in of_task)
        if mean is not None:
            means[task] = mean
        if grasps:
            held = [bool(rows[e.id]["stats"].get("is_src_obj_grasped")) for e in of_task if e.id in rows]
            lines[-1].append(_percent(float(np.mean(held))) if held else "")
            if held:
                grasped[task] = float(np.mean(held))
    for name, tasks in AVERAGES.items():
        if all(task in means for task in tasks):
            star = "" if all(complete[task] for task in tasks) else "*"
            lines.append([name, _percent(float(np.mean([means[task] for task in tasks]))) + star, "", ""])
            if grasps:
                lines[-1].append(_percent(float(np.mean([grasped[task] for task in tasks]))))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    missing = sum(episode.id not in rows for episode in planned)
    note = f"\n\n\\* {missing} episodes are missing" if missing else ""
    return f"{planned[0].table}: {RULES[rule]}\n\n{table}{note}\n"


def succeeded(row: Mapping[str, Any], rule: str) -> bool:
    """Whether an episode counts as a success."""
    return bool(row["success_last"] if rule == "last" else row["success_any"])


def _score(episodes: Iterable[Episode], rows: Mapping[str, Mapping[str, Any]], rule: str) -> float | None:
    """The mean over the variants of the mean over their episodes; None where none was run."""
    run = sorted((episode for episode in episodes if episode.id in rows), key=lambda episode: episode.variant)
    shares = [
        float(np.mean([succeeded(rows[episode.id], rule) for episode in group]))
        for _, group in groupby(run, key=lambda episode: episode.variant)
    ]
    return float(np.mean(shares)) if shares else None


def _line(
    name: str, score: float | None, episodes: Sequence[Episode], rows: Mapping[str, Mapping[str, Any]], rule: str
) -> list[str]:
    run = [rows[episode.id] for episode in episodes if episode.id in rows]
    if score is None:
        return [name, "", "", f"0 of {len(episodes)}"]
    low, high = wilson(sum(succeeded(row, rule) for row in run), len(run))
    star = "*" if len(run) < len(episodes) else ""
    return [
        name,
        _percent(score) + star,
        f"{_percent(low)} to {_percent(high)}",
        f"{len(run)} of {len(episodes)}" if star else str(len(run)),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
