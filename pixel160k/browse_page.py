"""One HTML file that shows what a shard directory holds, for people to judge: an episode a card, filters, overlays.

Reads the shards alone and of them only what is shown: the index says where the first and the close sample of an episode
lie. The page needs no network and no other file; the images in it are the shards' own JPEG bytes.
"""

import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from markupsafe import Markup

from pixel160k import drawing, masks, shards, table

_TEMPLATE = Path(__file__).with_name("browse.html")


@dataclass(frozen=True)
class Card:
    """What the page shows of one episode; `about` is the JSON member of its first sample."""

    about: dict[str, Any]
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
        ValueError: the directory holds no shards, or they are damaged.
    """
    manifest = shards.read_manifest(shard_directory)
    index = _read_index(shard_directory / "index.parquet")
    episodes = index.group_by("episode_id", use_threads=False).aggregate([("step", "min")])
    shown = episodes[:limit].to_pylist()
    wanted = pa.array([episode["episode_id"] for episode in shown], pa.string())
    places = {
        (row["episode_id"], row["step"]): row
        for row in index.filter(pc.is_in(index["episode_id"], value_set=wanted)).to_pylist()
    }
    cards = [_card(shard_directory, places, episode["episode_id"], episode["step_min"]) for episode in shown]
    made = manifest["annotations"]
    page = drawing.render(
        _TEMPLATE,
        {
            "title": title or manifest["dataset"],
            "manifest": manifest,
            "made": yaml.safe_dump({key: made[key] for key in ("models", "settings")}, sort_keys=False),
            "total": len(episodes),
            "cards": cards,
            "statuses": dict(sorted(Counter(card.about["status"] for card in cards).items())),
            "reasons": dict(Counter(card.about["reason"] for card in cards if card.about["reason"]).most_common()),
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


def _read_index(path: Path) -> pa.Table:
    """Of the index what is needed, as a table: rows as objects would not fit at the size of the whole data set."""
    columns = ["episode_id", "step", "shard", "offset", "bytes"]
    try:
        return pq.read_table(path, columns=columns, read_dictionary=["shard"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); build these shards again") from None


def _read_sample(directory: Path, place: dict[str, Any]) -> dict[str, bytes]:
    """The members of one sample by their suffix, read from its place in the tar."""
    path = directory / place["shard"]
    members = {}
    try:
        with open(path, "rb") as file:
            file.seek(place["offset"])
            with tarfile.open(fileobj=io.BytesIO(file.read(place["bytes"])), mode="r:") as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    members[member.name.partition(".")[2]] = content.read() if content else b""
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path} cannot be read at {place['offset']} ({error}); `pixelcli verify` says more") from None
    if missing := [name for name in shards.MEMBERS if name not in members]:
        raise ValueError(f"{path} lacks {missing[0]} at {place['offset']}; `pixelcli verify` says more")
    return members


def _card(directory: Path, places: dict[tuple[str, int], dict[str, Any]], episode: str, first_step: int) -> Card:
    first = _read_sample(directory, places[episode, first_step])
    about = json.loads(first["json"])
    labels = masks.decode_indexed_png(first["mask.png"])
    size = labels.shape[0], labels.shape[1]
    region = [] if tuple(about["region_box"]) == masks.NO_BOX else [drawing.box_layer(about["region_box"], "region")]
    close_step, close, no_close = about["close_step"], None, ""
    if close_step < 0:
        no_close = "The gripper never closes."
    elif (episode, close_step) not in places:
        valid = f"{about['first_step']}–{about['last_step']}"
        no_close = f"The close step {close_step} is not in the shard, which holds the valid steps {valid}."
    else:
        sample = _read_sample(directory, places[episode, close_step])
        gripper = masks.decode_indexed_png(sample["mask.png"]) == masks.GRIPPER
        layers = [drawing.mask_layer(gripper, "mask gripper"), *region]
        close = drawing.picture(sample["jpg"], size, layers, f"the gripper closes: step {close_step}")
    layers = list(region)
    if about["object_mask_valid"]:
        layers.insert(0, drawing.mask_layer(masks.decode(about["object_mask"]), "mask target"))
    if about["prompt_step"] == first_step:
        box = masks.box_of(masks.decode(about["object_mask"]))
        layers += [
            drawing.box_layer(box, "prompt"),
            drawing.line_layer(about["line"], "prompt"),
            drawing.points_layer(about["points"], "prompt point"),
        ]
    return Card(
        about=about,
        instruction=split_at_target(about["instruction"], about["target_object"]),
        meaning=table.REASONS.get(about["reason"], ""),
        initial=drawing.picture(first["jpg"], size, layers, f"the first frame: step {first_step}"),
        close=close,
        no_close=no_close,
    )
