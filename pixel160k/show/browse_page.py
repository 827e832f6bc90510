"""One HTML file that shows what a shard directory holds, for people to judge: an episode a card, filters, overlays.

Reads the shards alone and of them only what is shown: the index says where the first and the close sample of an episode
lie. The page needs no network and no other file; the images in it are the shards' own JPEG bytes.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml
from markupsafe import Markup

from pixel160k.format import masks, table
from pixel160k.format.metadata import Metadata
from pixel160k.read.episodes import ShardDirectory
from pixel160k.show import drawing

_TEMPLATE = Path(__file__).with_name("browse.html")


@dataclass(frozen=True)
class Card:
    """What the page shows of one episode; `metadata` is the JSON member of its first sample."""

    metadata: Metadata
    instruction: tuple[str, str, str]  # before, the target's words, after
    meaning: str  # of the reason; "" when accepted
    initial: Markup
    close: Markup | None  # None where there is no close step, or no sample of it
    no_close: str  # why `close` is None


def write_page(shard_directory: Path, out: Path, title: str = "", limit: int = 200) -> int:
    """Write the page of a shard directory and return the number of episodes on it.

    Args:
        shard_directory: output of `pixelcli build-shards`.
        out: the HTML file to write.
        title: heading of the page; by default the data set's name.
        limit: at most this many episodes, the first in the shards' order; the page says so when there are more.

    Raises:
        InputError: the directory holds no shards, or they are damaged.
    """
    directory = ShardDirectory(shard_directory)
    manifest = directory.manifest
    cards = [_card(directory, episode_id) for episode_id in directory.episode_ids[:limit]]
    made = manifest["annotations"]
    page = drawing.render(
        _TEMPLATE,
        {
            "title": title or manifest["dataset"],
            "manifest": manifest,
            "made": yaml.safe_dump({key: made[key] for key in ("models", "settings")}, sort_keys=False),
            "total": len(directory.episode_ids),
            "cards": cards,
            "statuses": dict(sorted(Counter(card.metadata.status for card in cards).items())),
            "reasons": dict(Counter(card.metadata.reason for card in cards if card.metadata.reason).most_common()),
            "meanings": table.REASONS,
        },
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return len(cards)


def split_at_target(instruction: str, target: str) -> tuple[str, str, str]:
    """Cut an instruction into the text before the target's words, these words as they stand, and the text after.

    Case and the kind and number of spaces (or underscores) between words do not matter; a target that is not there
    leaves everything before.
    """
    words = [re.escape(word) for word in target.split()]
    if words:
        # A word ends where no letter or digit follows; \b would not do, since it takes an underscore for a letter.
        pattern = r"(?<![^\W_])" + r"[\s_]+".join(words) + r"(?![^\W_])"
        if match := re.search(pattern, instruction, re.IGNORECASE):
            return instruction[: match.start()], match.group(), instruction[match.end() :]
    return instruction, "", ""


def _card(directory: ShardDirectory, episode: str) -> Card:
    steps = directory.steps(episode)
    first = directory.members(episode, steps[0])
    metadata = Metadata.unchecked(json.loads(first["json"]))
    labels = masks.decode_indexed_png(first["mask.png"])
    size = labels.shape[0], labels.shape[1]
    region = [] if tuple(metadata.region_box) == masks.NO_BOX else [drawing.box_layer(metadata.region_box, "region")]
    close_step, close, no_close = metadata.close_step, None, ""
    if close_step < 0:
        no_close = "The gripper never closes."
    elif close_step not in steps:
        valid = f"{metadata.first_step}–{metadata.last_step}"
        no_close = f"The close step {close_step} is not in the shard, which holds the valid steps {valid}."
    else:
        sample = directory.members(episode, close_step)
        gripper = masks.decode_indexed_png(sample["mask.png"]) == masks.GRIPPER
        layers = [drawing.mask_layer(gripper, "mask gripper"), *region]
        close = drawing.picture(sample["jpg"], size, layers, f"the gripper closes: step {close_step}")
    layers = list(region)
    if metadata.object_mask_valid:
        layers.insert(0, drawing.mask_layer(masks.decode(metadata.object_mask), "mask target"))
    if metadata.prompt_step == steps[0]:
        box = masks.box_of(masks.decode(metadata.object_mask))
        layers += [
            drawing.box_layer(box, "prompt"),
            drawing.line_layer(metadata.line, "prompt"),
            drawing.points_layer(metadata.points, "prompt point"),
        ]
    return Card(
        metadata=metadata,
        instruction=split_at_target(metadata.instruction, metadata.target_object),
        meaning=table.REASONS.get(metadata.reason, ""),
        initial=drawing.picture(first["jpg"], size, layers, f"the first frame: step {steps[0]}"),
        close=close,
        no_close=no_close,
    )
