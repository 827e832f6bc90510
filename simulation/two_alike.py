"""Scenes with two objects of one kind, each of them the target of a demonstration: only a visual prompt says which.

In LIBERO's libero_spatial, two black bowls stand in every scene, and the instruction says where the wanted one stands.
Here it no longer does, and each bowl is picked up from the same initial states: neither the text nor the layout tells
which is the target. A seeded coin decides which demonstration comes first. The splits share no initial state.
"""

from collections.abc import Sequence
from pathlib import Path

from pixel160k.errors import InputError
from pixel160k.seeding import seeded_generator
from simulation.libero import import_libero
from simulation.mishaps import check_mishaps, mishap_of
from simulation.recording import (
    EpisodeGroup,
    Progress,
    RecordingSummary,
    check_request,
    draw_scenes,
    episode_ids,
    record_data_set,
)

SUITE = "libero_spatial"
TASKS = (0, 1, 2, 3)
TARGETS = ("akita_black_bowl_1", "akita_black_bowl_2")
INSTRUCTION = "pick up the black bowl and place it on the plate"
INITIAL_STATES = {"train": range(40), "val": range(40, 50)}


def record_two_alike(
    episodes: int,
    seed: int,
    out: Path,
    name: str = "",
    files: int = 1,
    hz: int = 5,
    progress: Progress | None = None,
    mishaps: Sequence[str] = (),
) -> RecordingSummary:
    """Record two demonstrations per scene as the RLDS data set `<out>/<name>/1.0.0/`, with `<out>/truth.parquet`.

    The two demonstrations of a scene follow each other. If one of them fails, the scene is replaced by another. `out`
    appears when everything is recorded; the same arguments write the same bytes.

    Args:
        episodes: how many demonstrations to record, a multiple of 10; a fifth of them become the split `val`.
        seed: decides which tasks and initial states are drawn, and the order of the two demonstrations of a scene.
        out: a folder that is missing or empty.
        name: of the data set; by default `libero_two_alike`.
        files: how many TFRecord files to write per split.
        hz: frames per second: 20, the control rate, or a divisor of it.
        progress: called after every recorded episode.
        mishaps: what goes wrong, scene by scene in turn, as in `simulation.recording.record_sample`.

    Raises:
        InputError: `episodes` is no multiple of 10, or more than there are scenes for; `hz` does not divide 20; `out`
            is not empty; LIBERO is not installed.
    """
    most = 10 * len(TASKS) * len(INITIAL_STATES["val"])
    if episodes % 10 or not 0 < episodes <= most:
        raise InputError(f"cannot record {episodes} episodes of two alike: ask for a multiple of 10, at most {most}")
    check_request(episodes // 5, out, files, hz)
    check_mishaps(mishaps)
    import_libero()
    name = name or "libero_two_alike"
    splits = {
        "train": episode_ids(name, "train", episodes * 4 // 5, files),
        "val": episode_ids(name, "val", episodes // 5, files),
    }
    groups = []
    for split, ids_by_file in splits.items():
        ids = [episode_id for ids_of_file in ids_by_file for episode_id in ids_of_file]
        scenes = draw_scenes(SUITE, seed, TASKS, INITIAL_STATES[split])
        for number, (first_id, second_id) in enumerate(zip(ids[::2], ids[1::2], strict=True)):
            heads = seeded_generator("two alike", seed, first_id).integers(2)
            of_both = {TARGETS[heads]: first_id, TARGETS[1 - heads]: second_id}
            groups.append(EpisodeGroup(scenes, of_both, mishap_of(number, mishaps)))
    return record_data_set(out, name, splits, groups, hz, progress, INSTRUCTION)
