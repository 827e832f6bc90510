"""Small shard directories written sample by sample: each sample's actions, state and image say which one it is."""

import json

import cv2
import numpy as np

from pixel160k.files import sha256_of
from pixel160k.format import masks, shards
from pixel160k.format.actions import action_chunk
from pixel160k.format.prompts import sample_prompts
from pixel160k.format.statistics import dataset_statistics
from pixel160k.format.table import EpisodeAnnotation
from pixel160k.seeding import seeded_generator

HORIZON, SIZE = 10, 32


def object_mask(record):
    """Where the target of an episode is on its first frame."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[4 : 10 + record % 7, 8:20] = True
    return mask


def annotation(dataset, split, shard, record, steps, close_step):
    """Each third episode of a file is rejected; the others have a target on x_0 and a gripper at step 1."""
    episode_id = f"{dataset}-{split}-{shard:05d}-{record:05d}"
    rejected = record % 3 == 2
    mask = object_mask(record)
    found = {
        "target_object": "cup",
        "object_mask": masks.encode(mask),
        "gripper_mask": masks.encode(mask.T),
        "prompts": sample_prompts(mask, 3, seeded_generator(episode_id)),
    }
    return EpisodeAnnotation(
        episode_id=episode_id,
        dataset=dataset,
        split=split,
        shard=shard,
        record=record,
        record_crc32c=0,
        instruction=f"move the cup {record}",
        num_steps=steps,
        first_step=0,
        last_step=steps - 1,
        close_step=close_step,
        image_height=SIZE,
        image_width=SIZE,
        status="rejected" if rejected else "accepted",
        reason="not_detected" if rejected else "",
        **{} if rejected else found,
    )


def episode_actions(record, steps):
    """float32 (steps, 7): the record and the step, and a gripper that closes half way."""
    actions = np.zeros((steps, 7), np.float32)
    actions[:, 0], actions[:, 1], actions[:, 6] = record, np.arange(steps), np.arange(steps) < steps // 2
    return actions


def write_shards(out, files, dataset="drawn", split="train", close_step=1):
    """Write a directory of shards; `files` lists for each shard the number of steps of its episodes."""
    out.mkdir(exist_ok=True)
    index, entries, actions, states, rejected = [], [], [], [], 0
    for number, episodes in enumerate(files):
        path = out / f"{dataset}-{split}-{number:05d}.tar"
        with shards.ShardWriter(path) as writer:
            for record, steps in enumerate(episodes):
                row = annotation(dataset, split, number, record, steps, close_step)
                rejected += row.status == "rejected"
                actions.append(episode_actions(record, steps))
                for step in range(steps):
                    image = np.full((SIZE, SIZE, 3), (10 * number, 10 * record, 10 * step), np.uint8)
                    jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
                    masked = shards.step_masks(row, step)
                    chunk = action_chunk(actions[-1], step, steps - 1, HORIZON)
                    states.append(np.array([number, record, step], np.float32))
                    writer.write(row, masked, jpeg, chunk, states[-1])
        index += writer.index
        digest = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        entries.append({"name": path.name, "samples": len(writer.index)} | digest)
    shards.write_index(out / "index.parquet", index)
    together = np.concatenate(actions)
    statistics = dataset_statistics(together, np.stack(states), len(actions))
    (out / "dataset_statistics.json").write_text(json.dumps({dataset: statistics}))
    manifest = {
        "format_version": shards.FORMAT_VERSION,
        "dataset": dataset,
        "include": "all",
        "horizon": HORIZON,
        "samples": len(index),
        "episodes": len(actions),
        "shards": entries,
        "left_out": {},
        "annotated": {"status": {"accepted": len(actions) - rejected, "rejected": rejected}, "reasons": {}},
        "annotations": {},
        "software": "0",
        "files": {},
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out
