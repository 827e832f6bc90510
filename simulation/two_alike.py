"""Scenes with two objects of one kind, each demonstrated as the target: only a visual prompt can say which is meant.

In LIBERO's libero_spatial two black bowls stand in every scene, and the instruction says where the wanted one stands.
Here it no longer does, and both bowls are picked up from the very same initial states: neither text nor layout gives
the target away. A seeded coin decides which of the two demonstrations comes first. The splits share no initial state.
"""

import tempfile
from pathlib import Path

from pixel160k.errors import InputError
from pixel160k.seeding import seeded_generator
from simulation.environment import import_libero
from simulation.recording import (
    Place,
    Progress,
    RecordingSummary,
    check_request,
    draw_scenes,
    episode_ids,
    record_places,
    write_spooled,
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
) -> RecordingSummary:
    """Record `episodes` demonstrations, a fifth of them as split `val`, into `<out>/<name>/1.0.0/` and `truth.parquet`.

    `name` defaults to `libero_two_alike`, `files` is the number of TFRecord files of each split. The two demonstrations
    of a scene follow each other; a scene in which one of them fails is left out whole, and another is drawn in its place.
    The same arguments write the same bytes.

    Raises:
        InputError: `episodes` is no multiple of 10, or more than there are scenes for; `hz` does not divide 20; `out`
            is not empty.
    """
    most = 10 * len(TASKS) * len(INITIAL_STATES["val"])
    if episodes % 10 or not 0 < episodes <= most:
        raise InputError(f"cannot record {episodes} episodes of two alike: ask for a multiple of 10, at most {most}")
    check_request(episodes // 5, out, files, hz)
    import_libero()
    out.mkdir(parents=True, exist_ok=True)
    name = name or "libero_two_alike"
    identifiers = {
        "train": episode_ids(name, "train", episodes * 4 // 5, files),
        "val": episode_ids(name, "val", episodes // 5, files),
    }
    places = []
    for split, parts in identifiers.items():
        names = [identifier for part in parts for identifier in part]
        draws = draw_scenes(SUITE, seed, TASKS, INITIAL_STATES[split])
        for number in range(len(names) // 2):
            heads = seeded_generator("two alike", seed, names[2 * number]).integers(2)
            first, second = TARGETS[heads], TARGETS[1 - heads]
            places.append(Place(draws, {first: names[2 * number], second: names[2 * number + 1]}))
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=out) as folder:
        summary = record_places(Path(folder), places, hz, progress, INSTRUCTION)
        write_spooled(Path(folder), out, name, identifiers)
    return summary
