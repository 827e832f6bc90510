"""Runs a table of SimplerEnv against a policy server: `python -m evaluation.simpler.run` in SimplerEnv's environment.

It is a module of its own and no command of `pixelcli`, because that one cannot be installed there.
"""

import argparse
import fcntl
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from evaluation.simpler.client import GRIPPERS, Server
from evaluation.simpler.conventions import ROBOTS, Driver, image_of
from evaluation.simpler.score import RULES, tabulate
from evaluation.simpler.tables import TABLES, Episode
from pixel160k.errors import InputError, one_line

PACKAGES = ("mani_skill2_real2sim", "sapien", "gymnasium", "numpy")


class Asked(Protocol):
    """What acts: a `Server`, or in tests something that does as one."""

    def ask(self, image: np.ndarray, instruction: str, episode: str) -> np.ndarray:
        """The next actions, see `Server.ask`."""


def make_environment(episode: Episode) -> Any:
    """The environment of an episode.

    Raises:
        InputError: SimplerEnv is not installed here.
    """
    try:
        import gymnasium
        import mani_skill2_real2sim.envs
    except ImportError as error:
        raise InputError(f"{one_line(error)}: run this in SimplerEnv's own environment, see docs/simpler.md") from error
    return gymnasium.make(
        episode.environment, **episode.keywords(Path(mani_skill2_real2sim.ASSET_DIR) / "real_inpainting")
    )


def run_episode(environment: Any, episode: Episode, policy: Asked, execute: int | None) -> dict[str, Any]:
    """One episode, to its last step whether or not it succeeds before.

    The instruction is read again at every step. Another one (the apple's drawer is open, or half the time is over) is an
    order of its own: what is left of a chunk is not carried out. Policies of ours do not say that they are done, as
    OpenVLA and Octo do not; so nothing ends an episode early.

    Args:
        environment: fresh: the places of distractors depend on how often an environment was reset.
        execute: how many actions of a chunk are carried out before the policy is asked again; None: all of them.

    Returns:
        The row: `success_last`, `success_any`, `successful_steps`, `first_success` (a step, from 1, or None), `steps`,
        `asked` (how often the policy was), `instructions`, `stats` (the environment's own), and seconds.
    """
    robot = ROBOTS[episode.robot]
    driver, waiting = Driver(robot), deque[np.ndarray]()
    name = f"{episode.id} {datetime.now():%H:%M:%S.%f}"  # the same episode may be run again
    began, policy_seconds, asked = time.monotonic(), 0.0, 0
    seen, _ = environment.reset(options=episode.reset_options())
    instructions = [environment.unwrapped.get_language_instruction()]
    successes: list[int] = []
    step, terminated, truncated, info = 0, False, False, dict[str, Any]()
    while not truncated:
        if step == episode.most_steps:
            raise RuntimeError(f"{episode.environment} did not end after {step} steps")
        if not waiting:
            start = time.monotonic()
            waiting.extend(policy.ask(image_of(seen, robot), instructions[-1], name)[:execute])
            policy_seconds += time.monotonic() - start
            asked += 1
        seen, _, terminated, truncated, info = environment.step(driver.convert(waiting.popleft()))
        step += 1
        if terminated:
            successes.append(step)
        if (instruction := environment.unwrapped.get_language_instruction()) != instructions[-1]:
            instructions.append(instruction)
            waiting.clear()
            driver.reset()
    return {
        "id": episode.id,
        "success_last": bool(terminated),
        "success_any": bool(successes),
        "successful_steps": len(successes),
        "first_success": successes[0] if successes else None,
        "steps": step,
        "asked": asked,
        "instructions": instructions,
        "stats": {name: _plain(value) for name, value in info.get("episode_stats", {}).items()},
        "seconds": round(time.monotonic() - began, 3),
        "policy_seconds": round(policy_seconds, 3),
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def run_episodes(
    episodes: Sequence[Episode],
    policy: Asked,
    file: BinaryIO,
    execute: int | None = None,
    make: Callable[[Episode], Any] = make_environment,
) -> None:
    """Runs episodes, each in an environment of its own, and writes a row as each one ends."""
    for number, episode in enumerate(episodes, 1):
        environment = make(episode)
        try:
            row = run_episode(environment, episode, policy, execute)
        finally:
            environment.close()
        file.write(json.dumps(row).encode() + b"\n")  # unbuffered: one write, so that a row is whole or is not there
        os.fsync(file.fileno())
        print(f"{number}/{len(episodes)} {row['id']}: {'success' if row['success_last'] else 'failure'}", flush=True)


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """All rows of a folder by id, those of other processes too. A line that a kill cut off is not there.

    Raises:
        InputError: a line that is no row.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("episodes-*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                rows.setdefault(row["id"], row)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}, line {number}, is no row: take that line out") from error
    return rows


@contextmanager
def rows_file(folder: Path, name: str) -> Iterator[BinaryIO]:
    """A file of rows to append to, for this process alone; what a kill left of a row is cut off.

    Raises:
        InputError: another process appends to it.
    """
    path = folder / f"episodes-{name}.jsonl"
    with path.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another process writes {path}: give each its own --part") from error
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        yield file


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes what the rows depend on beside them, once.

    Raises:
        InputError: the folder's rows are of other settings.
    """
    path = folder / "settings.json"
    if not path.exists():
        fresh = path.with_name(f"settings.json.{os.getpid()}")
        fresh.write_text(json.dumps(settings, indent=2, default=str) + "\n")
        fresh.replace(path)
    before, now = json.loads(path.read_text()), json.loads(json.dumps(settings, default=str))
    if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        raise InputError(f"{folder} holds episodes with another {', '.join(changed)}: take another --out")


def versions() -> dict[str, str | None]:
    """What is installed of that which results depend on."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def part_of(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8): the second of eight parts of the episodes."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 2/8")
    return int(number), int(count)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.simpler.run", description=__doc__)
    parser.add_argument("--table", required=True, choices=TABLES)
    parser.add_argument("--out", required=True, type=Path, help="a folder: episodes-*.jsonl, settings.json, table.md")
    parser.add_argument("--server", default="ws://127.0.0.1:8000", help="where the policy is; default %(default)s")
    parser.add_argument("--tasks", help="some of the table's tasks, separated by commas; default all")
    parser.add_argument(
        "--execute", type=positive, help="actions of a chunk until the policy is asked again; default all"
    )
    parser.add_argument("--success", choices=RULES, default="last", help="what the table counts; rows hold both")
    parser.add_argument("--gripper", choices=GRIPPERS, help="of a server whose metadata does not say it")
    parser.add_argument(
        "--part", type=part_of, default=(1, 1), help="of several processes at one server: 2/8; default 1/1"
    )
    options = parser.parse_args(arguments)
    planned = list(TABLES[options.table]())
    tasks = list(dict.fromkeys(episode.task for episode in planned))
    if unknown := set(options.tasks.split(",") if options.tasks else tasks) - set(tasks):
        parser.error(f"--tasks: {', '.join(sorted(unknown))}: {options.table} has {', '.join(tasks)}")
    options.episodes = [episode for episode in planned if not options.tasks or episode.task in options.tasks.split(",")]
    return options


def run(options: argparse.Namespace) -> str:
    """Runs what is missing of the asked part, and tabulates all that is there."""
    options.out.mkdir(parents=True, exist_ok=True)
    number, count = options.part
    with rows_file(options.out, f"{number}-of-{count}") as file:
        done = read_rows(options.out)
        missing = [episode for episode in options.episodes[number - 1 :: count] if episode.id not in done]
        if missing:
            with Server(options.server, options.gripper, os.environ.get("PIXELVLA_API_KEY")) as server:
                keep_settings(
                    options.out,
                    {
                        "policy": server.metadata,
                        "gripper": server.gripper,
                        "execute": options.execute,
                        "versions": versions(),
                    },
                )
                run_episodes(missing, server, file, options.execute)
    table = tabulate(options.episodes, read_rows(options.out), options.success)
    (options.out / "table.md").write_text(table)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    try:
        print(run(options))
    except (InputError, OSError) as error:  # such as a full disk, or --out where nothing can be written
        print(f"Error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
