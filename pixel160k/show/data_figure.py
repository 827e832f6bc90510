"""What shards hold, at a glance: the paper's data figure for any shard directory, as a picture and as numbers.

Only as many samples of each episode are read as hold its actions: one per chunk of the shards' horizon.
"""

import json
from collections import Counter
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import numpy as np

from pixel160k.errors import InputError
from pixel160k.files import write_text, written_atomically
from pixel160k.format import table
from pixel160k.format.shards import TRAIN, split_of
from pixel160k.paths import AnyPath
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.samples import Sample
from pixel160k.show.overview import SCORES, has_score

_ACTION_NAMES = ("Δx", "Δy", "Δz", "Δroll", "Δpitch", "Δyaw", "gripper")
_COLOURS = {table.ACCEPTED: "#17713a", table.REJECTED: "#c2492f"}
_PLAIN, _SHOWN = "#1f5fbf", 12  # colour of what has no status; bars per panel


def write_figure(
    shards: AnyPath,
    out: AnyPath,
    progress: Callable[[int], None] = lambda episodes: None,
    split: str | None = None,
) -> dict[str, Any]:
    """Draw what shards hold: write `stats.png` and `stats.json` into `out`, and return the numbers of `figure_numbers`.

    Args:
        shards: output of `pixelcli build-shards`.
        out: a folder; it is made where it is missing.
        progress: called after each episode with the number of episodes read so far.
        split: only episodes of this split of the source; by default all.

    Raises:
        InputError: the directory holds no shards, no episode, no such split, or damaged ones; or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"the figure needs {error.name}: pip install 'pixelvla[notebook]'") from None
    numbers = figure_numbers(ShardDirectory(shards, split=split), progress)
    figure = Figure(figsize=(16, 18), layout="constrained")
    _draw(figure, numbers)
    out.mkdir(parents=True, exist_ok=True)
    with written_atomically(out / "stats.png") as temporary:
        figure.savefig(temporary, dpi=100)
    write_text(out / "stats.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    return numbers


def figure_numbers(
    directory: ShardDirectory, progress: Callable[[int], None] = lambda episodes: None
) -> dict[str, Any]:
    """Count what shards hold, for the data figure. The same shards give the same numbers, in the same order.

    Returns:
        - `dataset`, `include`, `episodes`, `samples`, `horizon`;
        - `splits`: of each split of the source how many `episodes` and `samples` are here, and episodes by `status`;
        - `annotated`: how many of all annotated episodes of the data set, all splits together, have each status, in the
          shards or not;
        - `reasons`: why such episodes are not accepted; `left_out`: why episodes that were to be in the shards are not
          there, failed ones included; where the directory was opened for one split, both are over its episodes alone,
          and reasons are known of those only that are here or left out;
        - `skills`: the first words of instructions, and `target_objects`: in how many episodes each is, "" for none;
        - `scores` by score and status, of the episodes that have one (motion evidence: where motion could judge);
        - `episode_steps`: valid steps per episode;
        - `actions` by dimension, in robot units, over all steps in the shards; the outermost bins hold all beyond the
          1% and 99% quantiles of the data set;
        - `whole_chunks`: the share of samples whose first n actions are all the episode's own, for n = 1 to the horizon.

        A histogram is `edges` and `counts`. What is counted by name is in the order of the counts, the largest first.

    Raises:
        InputError: there is no episode, or the samples are damaged.
    """
    if not directory.episode_ids:
        raise InputError(
            f"{directory.directory} holds no episode; `pixelcli build-shards --include all` keeps rejected"
        )
    manifest, horizon = directory.manifest, directory.manifest["horizon"]
    left_out = Counter(
        reason for episode, reason in manifest["left_out"].items() if directory.split in (None, split_of(episode))
    )
    skills, objects, lengths = Counter[str](), Counter[str](), []
    splits: dict[str, dict[str, Any]] = {
        split: {"episodes": len(episodes), "samples": 0, "status": Counter[str]()}
        for split, episodes in directory.splits.items()
    }
    reasons = Counter[str]()
    scores: dict[str, dict[str, list[float]]] = {name: {status: [] for status in _COLOURS} for name in SCORES}
    bounds = directory.statistics["action"]
    edges = [np.linspace(low, high, 41) for low, high in map(_apart, bounds["q01"], bounds["q99"])]
    actions = np.zeros((len(edges), 40), int)
    for done, episode in enumerate(directory.episode_ids, 1):
        steps = directory.steps(episode)
        chunks = [directory.sample(episode, step, ("actions",)) for step in steps[::horizon]]
        own = np.concatenate([_own_actions(chunk) for chunk in chunks])
        actions += [_histogram(values, bins)["counts"] for values, bins in zip(own.T, edges, strict=True)]
        lengths.append(len(steps))
        first = chunks[0]
        of_split = splits[split_of(episode)]
        of_split["samples"] += len(steps)
        of_split["status"][first.status] += 1
        if first.reason:
            reasons[first.reason] += 1
        skills[_first_word(first.instruction)] += 1
        objects[first.target_object] += 1
        for name in SCORES:
            value = getattr(first.metadata, name)
            if has_score(name, value, first.metadata.evidence_status):
                scores[name][first.status].append(value)
        progress(done)
    rows = np.arange(1, horizon + 1)
    whole = np.maximum(np.array(lengths)[:, None] - rows + 1, 0).sum(0)
    unit = np.linspace(0, 1, 21)
    return {
        "dataset": manifest["dataset"],
        "include": manifest["include"],
        "episodes": len(lengths),
        "samples": int(sum(lengths)),
        "horizon": horizon,
        "annotated": manifest["annotated"]["status"],
        "splits": splits,
        "reasons": _by_count(
            Counter(manifest["annotated"]["reasons"]) if directory.split is None else reasons + left_out
        ),
        "left_out": _by_count(left_out),
        "skills": _by_count(skills),
        "target_objects": _by_count(objects),
        "episode_steps": _histogram(np.array(lengths), _whole_edges(lengths)),
        "scores": {
            name: {status: _histogram(np.array(values), unit) for status, values in of_status.items()}
            for name, of_status in scores.items()
        },
        "actions": {
            name: {"edges": bins.tolist(), "counts": counts.tolist()}
            for name, bins, counts in zip(_ACTION_NAMES, edges, actions, strict=True)
        },
        "whole_chunks": (whole / sum(lengths)).tolist(),
    }


def _own_actions(sample: Sample) -> np.ndarray:
    """float32 (n, 7): of the sample's chunk the actions that are the episode's own."""
    assert sample.actions is not None and sample.action_mask is not None  # they were asked for
    return sample.actions[sample.action_mask]


def _first_word(instruction: str) -> str:
    words = instruction.replace("_", " ").split()
    return words[0].lower().strip(".,;:!?") if words else ""


def _by_count(counts: Counter[str]) -> dict[str, int]:
    """The most frequent first, equals by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _whole_edges(values: list[int]) -> np.ndarray:
    """Edges of at most about 30 bins of one whole width around whole numbers."""
    width = 1 + (max(values) - min(values)) // 30
    return np.arange(min(values), max(values) + width + 1, width) - 0.5


def _apart(low: float, high: float) -> tuple[float, float]:
    """The two bounds; a little apart where they are equal, since the value never changes."""
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[Any]]:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _draw(figure: Any, numbers: dict[str, Any]) -> None:
    annotated = ", ".join(f"{number:,} {status}" for status, number in numbers["annotated"].items())
    counts = {split: of_split["episodes"] for split, of_split in numbers["splits"].items()}
    splits = "".join(f", {number:,} of {split}" for split, number in counts.items()) if list(counts) != [TRAIN] else ""
    figure.suptitle(
        f"{numbers['dataset']}: {numbers['episodes']:,} episodes and {numbers['samples']:,} samples in the shards"
        f" ({numbers['include']}{splits}); of the episodes annotated: {annotated}",
        fontsize=14,
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    rows = figure.subfigures(5, 1, height_ratios=[2, 1, 1, 1, 1])

    lists = _panels(
        rows[0],
        ["skills: the instruction's first word (episodes)", "target objects (episodes)", "why not accepted (episodes)"],
    )
    _bars(lists[0], numbers["skills"])
    _bars(lists[1], numbers["target_objects"])
    # An episode that failed is counted in both.
    _bars(lists[2], _by_count(Counter(numbers["reasons"]) | Counter(numbers["left_out"])), _COLOURS[table.REJECTED])

    for axis, of_status in zip(
        _panels(rows[1], [f"{name} (episodes)" for name in SCORES.values()]), numbers["scores"].values(), strict=True
    ):
        below = np.zeros(20)
        for status, histogram in of_status.items():
            above = below + histogram["counts"]
            axis.stairs(above, histogram["edges"], baseline=below, fill=True, color=_COLOURS[status], label=status)
            below = above
        axis.set_xlim(0, 1)
        if below.any():
            axis.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98))
        else:
            _say_none(axis)

    steps, whole = _panels(
        rows[2], ["valid steps per episode (episodes)", "chunks of n actions without padding (% of samples), by n"]
    )
    steps.stairs(**_stairs(numbers["episode_steps"]), fill=True, color=_PLAIN)
    steps.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    whole.plot(range(1, numbers["horizon"] + 1), 100 * np.array(numbers["whole_chunks"]), color=_PLAIN)
    whole.set(ylim=(0, 102), xlim=(1, max(numbers["horizon"], 2)))
    whole.xaxis.get_major_locator().set_params(integer=True)
    whole.grid(alpha=0.3)

    names = [f"action {name} (steps)" for name in _ACTION_NAMES]
    for axis, histogram in zip(
        [*_panels(rows[3], names[:3]), *_panels(rows[4], names[3:])], numbers["actions"].values(), strict=True
    ):
        axis.stairs(**_stairs(histogram), fill=True, color=_PLAIN)
        axis.xaxis.get_major_locator().set_params(nbins=6)


def _panels(row: Any, titles: list[str]) -> list[Any]:
    """Axes side by side."""
    axes = row.subplots(1, len(titles))
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=11, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.get_major_locator().set_params(integer=True)
    return list(axes)


def _stairs(histogram: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"values": histogram["counts"], "edges": histogram["edges"]}


def _say_none(axis: Any) -> None:
    axis.text(0.5, 0.5, "none", ha="center", va="center", color="#5c6066", transform=axis.transAxes)
    axis.spines[:].set_visible(False)
    axis.set(xticks=[], yticks=[])


def _bars(axis: Any, counts: dict[str, int], colour: str = _PLAIN) -> None:
    """Draw the most frequent as bars with their numbers, and one bar for all others."""
    if not counts:
        _say_none(axis)
        return
    shown = dict(list(counts.items())[:_SHOWN])
    if others := len(counts) - len(shown):
        shown[f"({others:,} others)"] = sum(counts.values()) - sum(shown.values())
    bars = axis.barh(range(len(shown)), list(shown.values()), color=colour)
    if others:
        bars[-1].set_color("#b5b9bf")
    labels = [shorten(name or "(none)", 30, placeholder="…").replace("$", r"\$") for name in shown]  # $ is TeX's
    axis.set_yticks(range(len(shown)), labels)
    axis.set_ylim(max(len(shown), _SHOWN // 2) - 0.5, -0.5)
    axis.bar_label(bars, fmt="{:,.0f}", padding=3)
    axis.margins(x=0.15)
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(left=False)
    axis.set_xticks([])
