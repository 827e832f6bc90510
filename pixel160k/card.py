"""The data card (README.md) beside the shards: what they hold, how they were made, what is known to be wrong with them."""

from typing import Any

import yaml

from pixel160k.table import REASONS

_SOURCES = {
    "bridge_orig": "BridgeData V2 (rail-berkeley.github.io/bridgedata), CC BY 4.0",
    "fractal20220817_data": "RT-1 robot data of Open X-Embodiment (robotics-transformer-x.github.io), Apache-2.0",
}
_SIMULATED = "LIBERO simulation (MIT), or a data set in its schema; see the source's own card"


def features() -> list[dict[str, Any]]:
    """The declared features of a sample, in the form of Hugging Face data cards."""

    def floats(name: str) -> dict[str, Any]:
        return {"name": name, "list": "float32"}

    def integers(*names: str) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": "int32"} for name in names]

    def strings(*names: str) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": "string"} for name in names]

    metadata = [
        *strings(
            "dataset",
            "episode_id",
            "camera",
            "instruction",
            "target_object",
            "status",
            "reason",
            "detail",
            "evidence_status",
        ),
        *integers("step", "num_steps", "first_step", "last_step", "close_step", "prompt_step"),
        *({"name": name, "dtype": "float32"} for name in ("score", "mask_score", "evidence_score")),
        *({"name": name, "dtype": "bool"} for name in ("object_mask_valid", "gripper_mask_valid")),
        *(floats(name) for name in ("object_box", "region_box", "gripper_box")),
        *({"name": name, "list": {"list": "float32"}} for name in ("points", "line")),
        {"name": "object_mask", "struct": [{"name": "size", "list": "int32"}, {"name": "counts", "dtype": "string"}]},
    ]
    return [
        *strings("__key__", "__url__"),
        {"name": "jpg", "dtype": "image"},
        {"name": "mask.png", "dtype": "image"},
        {"name": "json", "struct": sorted(metadata, key=lambda feature: feature["name"])},
        {"name": "action.npy", "list": {"list": "float32"}},
        floats("state.npy"),
    ]


def data_card(manifest: dict[str, Any], statistics: dict[str, Any]) -> str:
    """Markdown with the YAML header of the Hugging Face hub."""
    made = manifest["annotations"]
    header = {
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
            f"- Source: {_SOURCES.get(manifest['dataset'], _SIMULATED)}. The images are the source's own bytes.",
            f"- Models: {', '.join(f'{role} by {model}' for role, model in made['models'].items())}.",
            f"- Statistics: over all {statistics['num_transitions']} valid transitions of "
            f"{statistics['num_trajectories']} episodes of the source, accepted or not.\n",
            "## What became of the episodes\n",
            "| status | episodes |\n|---|---|",
            *counts,
            "\n| reason | episodes | meaning |\n|---|---|---|" if reasons else "",
            *reasons,
            "\n## Known limits\n",
            "- The masks are made by machines. `score` and `mask_score` order them; they are not probabilities.",
            "- Without tracks only the first valid step has an object mask and only the close step a gripper mask; everywhere "
            "else the label is 255, not annotated.",
            "- The `motion` annotator's gripper mask is a region around the gripper, not its outline.\n",
            "## Settings\n",
            f"```yaml\n{settings}\n```\n",
        ]
    )
