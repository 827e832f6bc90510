"""The data card (README.md) beside the shards: what they hold, how they were made, what is known to be wrong with them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from pixel160k.format.table import REASONS


@dataclass(frozen=True)
class Origin:
    """Where images come from and under which licence; empty where only the data set's own card knows."""

    title: str
    licence: str = ""
    licence_url: str = ""
    hub_licence: str = ""  # the Hugging Face hub's name of it


ORIGINS = {
    "bridge_orig": Origin(
        "BridgeData V2 (rail-berkeley.github.io/bridgedata)",
        "CC BY 4.0",
        "https://creativecommons.org/licenses/by/4.0/",
        "cc-by-4.0",
    ),
    "fractal": Origin(
        "RT-1 robot data of Open X-Embodiment (robotics-transformer-x.github.io)",
        "Apache-2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        "apache-2.0",
    ),
    "libero": Origin("a data set in the schema of OpenVLA's modified LIBERO; its own card names its licence"),
    "sample": Origin(
        "the simulated sample of pixelvla, rendered in LIBERO",
        "Apache-2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        "apache-2.0",
    ),
}
"""The sources of `pixelcli annotate --src`."""

_HOW_TO_LOAD = """\
Where this folder is called `shards`; each is a whole program.

```python
from datasets import load_dataset  # Hugging Face; also streaming=True

samples = load_dataset("shards", split="train")
print(samples[0]["json"]["instruction"], samples[0]["mask.png"].size)
```

```python
import glob
import io
import json

import numpy as np
import webdataset
from PIL import Image

for sample in webdataset.WebDataset(sorted(glob.glob("shards/*.tar")), shardshuffle=False):
    labels = np.asarray(Image.open(io.BytesIO(sample["mask.png"])))  # not .decode("pil"), which makes colours of labels
    actions = np.load(io.BytesIO(sample["action.npy"]), allow_pickle=False)
    print(json.loads(sample["json"])["instruction"], labels.shape, actions.shape)
    break
```

```python
from pixel160k import ShardDirectory  # any episode or step, without reading a tar from its start

shards = ShardDirectory("shards")
sample = shards.episode(shards.episode_ids[0])[0]
print(sample.instruction, sample.image.shape, sample.actions.shape)
```
"""


def metadata_features() -> list[dict[str, Any]]:
    """The declared features of the `.json` member, in the form of Hugging Face data cards, ordered by name."""
    declared: list[dict[str, Any]] = [
        *(
            {"name": name, "dtype": "string"}
            for name in "dataset episode_id camera instruction target_object status reason detail evidence_status".split()
        ),
        *(
            {"name": name, "dtype": "int32"}
            for name in "step num_steps first_step last_step close_step prompt_step".split()
        ),
        *({"name": name, "dtype": "float32"} for name in ("score", "mask_score", "evidence_score")),
        *({"name": name, "dtype": "bool"} for name in ("object_mask_valid", "gripper_mask_valid")),
        *({"name": name, "list": "float32"} for name in ("object_box", "region_box", "gripper_box")),
        *({"name": name, "list": {"list": "float32"}} for name in ("points", "line")),
        {"name": "object_mask", "struct": [{"name": "size", "list": "int32"}, {"name": "counts", "dtype": "string"}]},
    ]
    return sorted(declared, key=lambda feature: feature["name"])


def features() -> list[dict[str, Any]]:
    """The declared features of a sample, in the form of Hugging Face data cards."""
    return [
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
        {"name": "jpg", "dtype": "image"},
        {"name": "mask.png", "dtype": "image"},
        {"name": "json", "struct": metadata_features()},
        {"name": "action.npy", "list": {"list": "float32"}},
        {"name": "state.npy", "list": "float32"},
    ]


def data_card(manifest: dict[str, Any], statistics: dict[str, Any]) -> str:
    """Markdown with the YAML header of the Hugging Face hub."""
    made = manifest["annotations"]
    origin = ORIGINS[made["source"]]
    header: dict[str, Any] = {"license": origin.hub_licence} if origin.hub_licence else {}
    header |= {
        "tags": ["robotics", "pixel160k", "webdataset"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "*.tar"}]}],
        "dataset_info": {"features": features()},
    }
    annotated = manifest["annotated"]
    counts = [f"| {status} | {count} |" for status, count in annotated["status"].items()]
    reasons = [f"| `{reason}` | {count} | {REASONS[reason]} |" for reason, count in annotated["reasons"].items()]
    settings = yaml.safe_dump(made["settings"], sort_keys=False).strip()
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=False).strip()}\n---",
            f"# {manifest['dataset']}: pixel annotations\n",
            f"{manifest['samples']} samples of {manifest['episodes']} episodes in {len(manifest['shards'])} WebDataset shards "
            f"(format version {manifest['format_version']}, `{manifest['include']}` episodes, action horizon "
            f"{manifest['horizon']}), made with pixelvla {manifest['software']}.\n",
            f"- Source: {origin.title}{f', {origin.licence}' if origin.licence else ''}. The images are the source's own bytes.",
            f"- Models: {', '.join(f'{role} by {model}' for role, model in made['models'].items())}.",
            f"- Left out of these shards: {_left_out(manifest['left_out'])}.",
            f"- Statistics: over all {statistics['num_transitions']} valid transitions of "
            f"{statistics['num_trajectories']} episodes of the source, accepted or not.\n",
            "## What became of the episodes\n",
            "| status | episodes |\n|---|---|",
            *counts,
            "\n| reason | episodes | meaning |\n|---|---|---|" if reasons else "",
            *reasons,
            "\n## How to load\n",
            _HOW_TO_LOAD,
            "## Known limits\n",
            "- The masks are made by machines. `score` and `mask_score` order them; they are not probabilities.",
            "- Without tracks only the first valid step has an object mask and only the close step a gripper mask; everywhere "
            "else the label is 255, not annotated.",
            "- Prompts belong to the first valid step (`prompt_step`), not to the step of the sample.",
            "- The `motion` annotator's gripper mask is a region around the gripper, not its outline.",
            "- Nobody has looked at every mask; `pixelcli browse` shows them, `pixelcli verify` checks form, not truth.\n",
            "## Settings\n",
            f"```yaml\n{settings}\n```\n",
        ]
    )


def _left_out(left_out: dict[str, str]) -> str:
    reasons = sorted(Counter(left_out.values()).items())
    return ", ".join(f"{count} episodes as `{reason}`" for reason, count in reasons) or "nothing"


def arrow_type(feature: dict[str, Any]) -> pa.DataType:
    """The Arrow type of a declared feature; an image is a struct of bytes and path, as Hugging Face stores it."""
    if "struct" in feature:
        return pa.struct([(field["name"], arrow_type(field)) for field in feature["struct"]])
    if "list" in feature:
        inner = feature["list"]
        return pa.list_(arrow_type(inner if isinstance(inner, dict) else {"dtype": inner}))
    if feature["dtype"] == "image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.type_for_alias(feature["dtype"])
