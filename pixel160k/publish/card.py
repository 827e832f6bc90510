"""The data card (README.md) beside the shards: what they hold, how they were made, and what their limits are."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import yaml

from pixel160k.format.origins import Origin, origin_of
from pixel160k.format.shards import IMAGES, TRAIN, order_splits, split_of_shard
from pixel160k.format.table import REASONS
from pixel160k.publish.features import IMAGE, METADATA, declared

_HOW_TO_LOAD = """\
Where this folder is called `shards`; each is a whole program.

```python
from datasets import load_dataset  # Hugging Face; also streaming=True

samples = load_dataset("shards", split="SPLIT")
print(samples[0]["json"]["instruction"], samples[0]["mask.png"].size)
```

```python
import glob
import io
import json

import numpy as np
import webdataset
from PIL import Image

for sample in webdataset.WebDataset(sorted(glob.glob("shards/*-SPLIT-*.tar")), shardshuffle=False):
    labels = np.asarray(Image.open(io.BytesIO(sample["mask.png"])))  # not .decode("pil"), which makes colours of labels
    actions = np.load(io.BytesIO(sample["action.npy"]), allow_pickle=False)
    print(json.loads(sample["json"])["instruction"], labels.shape, actions.shape)
    break
```

```python
from pixel160k import ShardDirectory  # any episode or step, without reading a tar from its start

shards = ShardDirectory("shards", split="SPLIT")
sample = shards.episode(shards.episode_ids[0])[0]
print(sample.instruction, sample.image.shape, sample.actions.shape)
```
"""


_FEATURES = pa.schema(
    {
        "__key__": pa.string(),
        "__url__": pa.string(),
        "jpg": IMAGE,
        "mask.png": IMAGE,
        "json": pa.struct(list(METADATA)),
        "action.npy": pa.list_(pa.list_(pa.float32())),
        "state.npy": pa.list_(pa.float32()),
    }
)


def features(manifest: dict[str, Any]) -> pa.Schema:
    """The columns of shards as Hugging Face's `datasets` gives them: `jpg`, or `png`, or both, of which one is None then.

    Those of further cameras follow: None where an episode does not have one.
    """
    images = [pa.field(name, IMAGE) for name in IMAGES if name in image_counts(manifest)]
    images += [pa.field(name, IMAGE) for name in camera_members(manifest)]
    return pa.schema(
        [column for name in _FEATURES.names for column in (images if name == "jpg" else [_FEATURES.field(name)])]
    )


def image_counts(manifest: dict[str, Any]) -> dict[str, int]:
    """How many images shards hold of each form, by the name of the member; the manifest says it only where there are PNGs."""
    return manifest.get("images") or {"jpg": manifest["samples"]}


def camera_members(manifest: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The members of samples that hold images of further cameras: each camera and what ends the member's name."""
    return {
        f"{name}.{form}": (name, form)
        for name, camera in manifest.get("cameras", {}).items()
        for form in IMAGES
        if camera["images"].get(form)
    }


def front_matter(fields: dict[str, Any], origin: Origin | None = None) -> str:
    """The YAML header of a card for the Hugging Face hub: the licence of the images where it is known, then `fields`."""
    licence = {"license": origin.licence.hub_name} if origin and origin.licence else {}
    return f"---\n{yaml.safe_dump(licence | fields, sort_keys=False).strip()}\n---"


def how_to_cite(origin: Origin) -> str:
    """A sentence of every card: images and instructions are the source's."""
    return f"Cite the source: {origin.citation}." if origin.citation else "Cite the source as its own card asks."


def declared_splits(files: Mapping[str, str | list[str]]) -> list[dict[str, Any]]:
    """The `configs` of a card: which files each split has, by patterns, so that nobody trains on what is for validation."""
    return [{"config_name": "default", "data_files": [{"split": split, "path": path} for split, path in files.items()]}]


def samples_by_split(manifest: dict[str, Any]) -> dict[str, int]:
    """How many samples shards hold of each split of the source, `train` first."""
    found: Counter[str] = Counter()
    for shard in manifest["shards"]:
        found[split_of_shard(shard["name"])] += shard["samples"]
    return {split: found[split] for split in order_splits(found)}


def data_card(manifest: dict[str, Any], statistics: dict[str, Any]) -> str:
    """The text of README.md beside the shards: Markdown, with a YAML header that the Hugging Face hub reads.

    Args:
        manifest: of the shards, as manifest.json holds it; it need not have `files` yet.
        statistics: of the data set, as dataset_statistics.json holds them under its name.
    """
    made = manifest["annotations"]
    splits = samples_by_split(manifest)
    origin = origin_of(manifest)
    header = {
        "tags": ["robotics", "pixel160k", "webdataset"],
        "configs": declared_splits({split: f"{manifest['dataset']}-{split}-*.tar" for split in splits}),
        "dataset_info": {"features": declared(features(manifest))},
    }
    annotated, untracked = manifest["annotated"], manifest.get("untracked", 0)
    counts = [f"| {status} | {count} |" for status, count in annotated["status"].items()]
    reasons = [f"| `{reason}` | {count} | {REASONS[reason]} |" for reason, count in annotated["reasons"].items()]
    settings = yaml.safe_dump(made["settings"], sort_keys=False).strip()
    return "\n".join(
        [
            front_matter(header, origin),
            f"# {manifest['dataset']}: pixel annotations\n",
            f"{manifest['samples']} samples of {manifest['episodes']} episodes in {len(manifest['shards'])} WebDataset shards "
            f"(format version {manifest['format_version']}, `{manifest['include']}` episodes, action horizon "
            f"{manifest['horizon']}), made with pixelvla {manifest['software']}.\n",
            f"- Source: {origin.credit}. The images are the source's own bytes{_converted(manifest)}.",
            f"- Robot: {origin.robot}{f' at {origin.hz:g} Hz' if origin.hz else ''}. Actions: {origin.actions}; gripper 1 = open.",
            f"- {how_to_cite(origin)}",
            f"- Models: {', '.join(f'{role} by {model}' for role, model in made['models'].items())}.",
            *_revisions(made.get("revisions", {})),
            f"- Splits of the source: {', '.join(f'`{split}` ({samples} samples)' for split, samples in splits.items()) or 'none here'}.",
            *_limit(made),
            *_cameras(manifest),
            f"- Left out of these shards: {_left_out(manifest['left_out'])}.",
            "- `episodes.parquet` has one row per episode: scores, reason, verb and target, to choose by without reading a tar.",
            f"- Statistics: over all {statistics['num_transitions']} valid transitions of "
            f"{statistics['num_trajectories']} episodes of {_counted(statistics)}, accepted or not.\n",
            "## What became of the episodes\n",
            "| status | episodes |\n|---|---|",
            *counts,
            "\n| reason | episodes | meaning |\n|---|---|---|" if reasons else "",
            *reasons,
            "\n## How to load\n",
            _HOW_TO_LOAD.replace("SPLIT", next(iter(splits), TRAIN)),
            "## Known limits\n",
            "- The masks are made by machines. `score` and `mask_score` order them; they are not probabilities.",
            "- Without tracks only the first valid step has an object mask and only the close step a gripper mask; everywhere "
            "else the label is 255, not annotated."
            + (f" So it is for {untracked} episodes here, though others have tracks." if untracked else ""),
            "- Prompts belong to the first valid step (`prompt_step`), not to the step of the sample.",
            "- The `motion` annotator's gripper mask is a region around the gripper, not its outline.",
            "- Nobody has looked at every mask; `pixelcli browse` shows them, `pixelcli verify` checks form, not truth.\n",
            "## Settings\n",
            f"```yaml\n{settings}\n```\n",
        ]
    )


def _revisions(revisions: dict[str, str]) -> list[str]:
    """A line that says of each model that was loaded which one it was; none where none was, or nobody noted it."""
    loaded = []
    for setting, model in revisions.items():
        name, _, revision = model.rpartition("@")
        loaded.append(f"`{setting}` is {name} at {'' if ':' in revision else 'commit '}{revision}")
    return [f"- Model revisions: {'; '.join(loaded)}."] if loaded else []


def _limit(made: dict[str, Any]) -> list[str]:
    """A line that says that not all of the source was annotated; none where all was."""
    if "limit" not in made:
        return []
    return [
        f"- Only the first {made['limit']} episodes of the source were annotated (`--limit`): a look, not the data set."
    ]


def _cameras(manifest: dict[str, Any]) -> list[str]:
    """A line for each further camera: which episodes have it."""
    return [
        f"- Further camera `{name}`: in {camera['episodes']} episodes, as the members `{name}.jpg` or `.png`; blank in "
        f"{camera['blank']}, unusable in {len(camera['unusable'])} (see manifest.json), whose samples lack it. Masks, boxes and "
        "prompts are not on its images."
        for name, camera in manifest.get("cameras", {}).items()
    ]


def _counted(statistics: dict[str, Any]) -> str:
    return f"the source's split `{statistics['split']}`" if "split" in statistics else "the source"


def _converted(manifest: dict[str, Any]) -> str:
    counts = [f"{count} that were {kind}" for kind, count in manifest.get("converted", {}).items()]
    return f", but for {' and '.join(counts)}: these are RGB PNG of the same pixels" if counts else ""


def _left_out(left_out: dict[str, str]) -> str:
    reasons = sorted(Counter(left_out.values()).items())
    return ", ".join(f"{count} episodes as `{reason}`" for reason, count in reasons) or "nothing"
