"""Run by lerobot's own environment: loads an exported data set with the `lerobot` package and says what it found, as JSON.

`python lerobot_loads.py FOLDER SCRATCH`; SCRATCH is where lerobot's tools write a data set with the first episode deleted.
"""

import hashlib
import json
import sys

import torch
from lerobot.datasets.compute_stats import aggregate_stats, get_feature_stats
from lerobot.datasets.dataset_tools import delete_episodes
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def digest(image):
    """SHA-256 of an image tensor (C, H, W) in [0, 1], turned back into uint8 (H, W, C)."""
    return hashlib.sha256((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes()).hexdigest()


def episodes_of(folder, begin, end):
    """The episode of each frame that is given where only the episodes from `begin` to before `end` are asked for."""
    part = LeRobotDataset("local/exported", root=folder, episodes=list(range(begin, end)))
    return [part[place]["episode_index"].item() for place in range(len(part))]


def main(folder, scratch):
    whole = LeRobotDataset("local/exported", root=folder)
    frames = []
    for place in range(len(whole)):
        frame = whole[place]
        frames.append(
            {
                "image": digest(frame["observation.images.image"]),
                "mask": digest(frame["observation.mask"]),
                **{name: frame[name].tolist() for name in ("action", "observation.state", "annotation.step")},
                **{name: frame[name].item() for name in ("timestamp", "frame_index", "episode_index", "index")},
                "task": frame["task"],
            }
        )
    own = get_feature_stats(
        torch.stack([whole[i]["observation.images.image"] for i in range(20)]).numpy(), (0, 2, 3), True
    )
    chunked = LeRobotDataset(
        "local/exported",
        root=folder,
        episodes=[1],
        delta_timestamps={"action": [step / whole.fps for step in range(8)]},
    )
    last = chunked[len(chunked) - 3]
    batch = next(iter(torch.utils.data.DataLoader(chunked, batch_size=4)))
    fewer = delete_episodes(whole, [0], output_dir=scratch, repo_id="local/fewer")
    columns = [name for name in whole.meta.episodes.column_names if name.startswith("annotation/")]
    return {
        "frames": frames,
        "episodes": [
            {name.removeprefix("annotation/"): row[name] for name in columns} | {"length": row["length"]}
            for row in whole.meta.episodes
        ],
        "splits": {
            name: episodes_of(folder, *map(int, part.split(":"))) for name, part in whole.meta.info["splits"].items()
        },
        "fps": whole.fps,
        "features": list(whole.features),
        "images": list(whole.meta.camera_keys),
        "statistics": {
            name: {measure: values.tolist() for measure, values in row.items()}
            for name, row in whole.meta.stats.items()
        },
        "image_statistics_shape": {name: list(values.shape[1:]) for name, values in own.items() if name != "count"},
        "aggregated": sorted(aggregate_stats([whole.meta.stats, whole.meta.stats])),
        "chunk": {"action": last["action"].tolist(), "is_pad": last["action_is_pad"].tolist()},
        "batch": list(batch["observation.images.image"].shape),
        "fewer": {"episodes": fewer.num_episodes, "frames": len(fewer), "task": fewer[0]["task"]},
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
