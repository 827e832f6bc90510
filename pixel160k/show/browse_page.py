"""One HTML file that shows what a shard directory holds, for people to judge: one card per episode, filters, overlays.

Of the shards only what is shown is read: the index says where the first sample of an episode lies, and that of the step
at which the gripper closes. The page needs no network and no other file; its images are the shards' own JPEG bytes.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from markupsafe import Markup

from pixel160k.errors import InputError
from pixel160k.files import write_text
from pixel160k.format import masks, table
from pixel160k.format.metadata import Metadata
from pixel160k.paths import AnyPath
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.foreign import decode_rle
from pixel160k.show import drawing
from pixel160k.show.sample_html import split_at_target

_TEMPLATE = Path(__file__).with_name("browse.html")


@dataclass(frozen=True)
class EpisodeCard:
    """What the page shows of one episode; `metadata` is the JSON member of its first sample."""

    metadata: Metadata
    instruction: tuple[str, str, str]  # as `split_at_target` cuts it
    meaning: str  # of the reason; "" when accepted
    initial: Markup
    close: Markup | None  # None where there is no close step, or no sample of it
    no_close: str  # why `close` is None


def write_page(shard_directory: AnyPath, out: AnyPath, title: str = "", limit: int = 200) -> int:
    """Write the HTML page of a shard directory and return the number of episodes on it.

    Args:
        shard_directory: output of `pixelcli build-shards`.
        out: the HTML file to write; its folder is made where it is missing.
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
            "made": yaml.safe_dump({key: made.get(key) for key in ("models", "settings")}, sort_keys=False),
            "total": len(directory.episode_ids),
            "cards": cards,
            "statuses": dict(sorted(Counter(card.metadata.status for card in cards).items())),
            "reasons": dict(Counter(card.metadata.reason for card in cards if card.metadata.reason).most_common()),
            "meanings": table.REASONS,
        },
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return len(cards)


def _card(directory: ShardDirectory, episode: str) -> EpisodeCard:
    steps = directory.steps(episode)
    first, labels, metadata = _read(directory, episode, steps[0])
    size = labels.shape[0], labels.shape[1]
    region = [] if tuple(metadata.region_box) == masks.NO_BOX else [drawing.box_layer(metadata.region_box, "region")]
    close_step, close, no_close = metadata.close_step, None, ""
    if close_step < 0:
        no_close = "The gripper never closes."
    elif close_step not in steps:
        valid = f"{metadata.first_step}–{metadata.last_step}"
        no_close = f"The close step {close_step} is not in the shard, which holds the valid steps {valid}."
    else:
        jpeg, close_labels, _ = _read(directory, episode, close_step)
        layers = [drawing.mask_layer(close_labels == masks.GRIPPER, "mask gripper"), *region]
        close = drawing.picture(jpeg, size, layers, f"the gripper closes: step {close_step}")
    layers = list(region)
    try:
        target = decode_rle(metadata.object_mask)
    except InputError as error:
        raise InputError(f"{directory.directory}: {episode}: {error}; `pixelcli verify` says more") from None
    if metadata.object_mask_valid:
        layers.insert(0, drawing.mask_layer(target, "mask target"))
    if metadata.prompt_step == steps[0]:
        box = masks.box_of(target)
        layers += [
            drawing.box_layer(box, "prompt"),
            drawing.line_layer(metadata.line, "prompt"),
            drawing.points_layer(metadata.points, "prompt point"),
        ]
    return EpisodeCard(
        metadata=metadata,
        instruction=split_at_target(metadata.instruction, metadata.target_object),
        meaning=table.REASONS.get(metadata.reason, ""),
        initial=drawing.picture(first, size, layers, f"the first frame: step {steps[0]}"),
        close=close,
        no_close=no_close,
    )


def _read(directory: ShardDirectory, episode: str, step: int) -> tuple[bytes, np.ndarray, Metadata]:
    """The JPEG, the labels and the JSON member of a sample."""
    sample = directory.sample(episode, step, members=("labels",))
    assert sample.labels is not None  # they were asked for
    return directory.image(episode, step), sample.labels, sample.metadata
