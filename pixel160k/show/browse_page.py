"""The page that shows what a shard directory holds, for people to judge: one card per episode, filters, overlays.

It is written as one HTML file, which needs no network and no other file, with the frames' own bytes (`write_page`). Or a
server makes it as it is looked at (`browse_server.py`). Of the shards only what is shown is read: the table of episodes, and
of each card the first step and that at which the gripper closes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from pixel160k.files import write_text
from pixel160k.format import table
from pixel160k.format.episode_rows import EpisodeRow
from pixel160k.paths import AnyPath
from pixel160k.read.episode_table import episode_table
from pixel160k.read.episodes import ShardDirectory
from pixel160k.show import drawing
from pixel160k.show.frames import frame
from pixel160k.show.overview import FILTERS, SCORES, Choice, Overview, has_score
from pixel160k.show.sample_html import split_at_target

_TEMPLATE = Path(__file__).with_name("browse.html")
_OFFERED = ("status", "reason", "verb")  # objects are too many for a list: they are searched for

Picture = Callable[[EpisodeRow, int], Markup]
"""Makes the picture of an episode's step."""


@dataclass(frozen=True)
class Card:
    """What the page shows of one episode."""

    row: EpisodeRow
    instruction: tuple[str, str, str]  # as `split_at_target` cuts it
    meaning: str  # of the reason; "" when accepted
    scores: dict[str, float]  # those of `SCORES` that it has
    pictures: list[Markup]
    missing: str  # why the step at which the gripper closes is not among them; "" where it is


def write_page(
    shard_directory: AnyPath, out: AnyPath, title: str = "", limit: int = 200, choice: Choice | None = None
) -> int:
    """Write the HTML page of a shard directory and return the number of episodes on it.

    Args:
        shard_directory: output of `pixelcli build-shards`.
        out: the HTML file to write; its folder is made where it is missing.
        title: heading of the page; by default the data set's name.
        limit: at most this many episodes, the first in the order asked for; the page says so when there are more.
        choice: which episodes, in what order; by default all, in the shards' order.

    Raises:
        InputError: the directory holds no shards, they are damaged, or no episode is as asked for.
    """
    directory = ShardDirectory(shard_directory)
    overview, choice = Overview(episode_table(directory.directory)), choice or Choice()
    overview.check(choice)
    chosen = overview.choose(choice)
    rows = overview.rows(chosen[:limit])
    cards = [make_card(row, lambda row, step: frame(directory, row.episode_id, step)) for row in rows]
    shown = Overview(overview.table.take(chosen[:limit]))  # what the filters of the page count
    page = render_page(directory.manifest, shown, choice, cards, title, total=len(chosen), asked=_in_words(choice))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return len(cards)


def make_card(row: EpisodeRow, picture: Picture) -> Card:
    """The card of an episode, with pictures of its first step and of that at which the gripper closes."""
    steps, missing = [row.first_step], ""
    if row.close_step < 0:
        never = row.reason == "no_gripper_close"
        missing = "The gripper never closes." if never else "The gripper closes on nothing that it carries."
    elif not row.first_step <= row.close_step <= row.last_step:
        valid = f"{row.first_step}–{row.last_step}"
        missing = f"The close step {row.close_step} is not in the shard, which holds the valid steps {valid}."
    elif row.close_step != row.first_step:
        steps.append(row.close_step)
    scores = {name: getattr(row, name) for name in SCORES}
    return Card(
        row=row,
        instruction=split_at_target(row.instruction, row.target_object),
        meaning=table.REASONS.get(row.reason, ""),
        scores={name: value for name, value in scores.items() if has_score(name, value, row.evidence_status)},
        pictures=[picture(row, step) for step in steps],
        missing=missing,
    )


def render_page(
    manifest: dict[str, Any], overview: Overview, choice: Choice, cards: list[Card], title: str = "", **more: Any
) -> str:
    """The HTML of the page.

    Args:
        manifest: of the shards.
        overview: the episodes that the filters count.
        choice: what the filters are set to.
        cards: of the episodes that are shown.
        title: heading; by default the data set's name.
        more: `total`, how many episodes are chosen; of a file `asked`, the choice in words; of a server `page`, `pages` and
            `links`: this page's number, those to offer, and their addresses; and `episode`, whether one alone is shown.
    """
    made = {key: manifest["annotations"].get(key) for key in ("models", "revisions", "settings", "limit")}
    return drawing.render(
        _TEMPLATE,
        {
            "title": title or manifest["dataset"],
            "manifest": manifest,
            "made": yaml.safe_dump({key: value for key, value in made.items() if value}, sort_keys=False),
            "cards": cards,
            "choice": choice,
            "counts": {column: overview.counts(column) for column in _OFFERED},
            "scores": SCORES,
            "meanings": table.REASONS,
            "asked": "",
            "page": 0,
            "pages": [],
            "links": {},
            "episode": False,
            **more,
        },
    )


def _in_words(choice: Choice) -> str:
    """What was asked for, as the file's page says it; "" where nothing was."""
    asked = [f"{column} {value}" for column in FILTERS if (value := getattr(choice, column))]
    if choice.worst:
        asked.append(f"the lowest {SCORES[choice.worst]} first")
    return ", ".join(asked)
