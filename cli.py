"""`pixelcli`: the commands, each a few lines that call one function.

Exit codes: 0 done; 1 the data, the settings or the machine are not as they should be: one line says what and how to mend
it; 2 wrong usage; 3 a bug of pixelvla: one line says where its traceback lies; 143 ended by SIGTERM. A job that
met bugs at single episodes keeps the results of all others and then ends with 3.
"""

import errno
import logging
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from threading import current_thread, main_thread
from time import monotonic
from typing import Any

import click

from pixel160k.errors import InputError, JobBug, PartDone, one_line
from pixel160k.format.origins import ORIGINS
from pixel160k.packages import require_packages
from pixel160k.paths import AnyPath, open_path
from pixel160k.stores import StorePath


class _Bug(click.ClickException):
    """An exception that no input may cause, as one line; its traceback goes into a file, or a job's log has it already."""

    exit_code = 3

    def __init__(self, error: Exception) -> None:
        if isinstance(error, JobBug):
            super().__init__(str(error))
            return
        with tempfile.NamedTemporaryFile("w", prefix="pixelcli-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.writelines(traceback.format_exception(error))
        what = f"{type(error).__name__}: {one_line(error)}"
        super().__init__(f"a bug of pixelvla: {what}; please report it with the traceback in {log.name}")


class _Warnings(logging.Handler):
    """Shows what our own packages warn of, one line each, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"Warning: {' '.join(record.getMessage().split())}", err=True)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as an error does, so that it removes what it made for the time of its work; a second one kills.

    Not of processes of torchrun, which wait for each other in calls that no signal interrupts.
    """
    if "RANK" in os.environ or current_thread() is not main_thread():
        yield
        return

    def end(number: int, _: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Commands(click.Group):
    """Turns exceptions into one line: of the input with exit code 1, any other with exit code 3."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with _ended_by_sigterm():
                return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if context.params.get("debug"):
                raise
            of_the_input = isinstance(error, InputError) or (
                isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC)
            )
            raise (click.ClickException(one_line(error)) if of_the_input else _Bug(error)) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--debug", is_flag=True, help="Show tracebacks instead of one-line errors.")
@click.version_option(package_name="pixelvla", prog_name="pixelcli")
def main(debug: bool) -> None:
    """PixelVLA: pixel annotations for robot episodes, and policies that use them."""
    # Threads of torch that wait for each other would spin: with another process on the same cores that makes training several
    # times as slow, where sleeping costs a few percent.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Beam warns of Google libraries that nothing here needs, and the hub of each retry.
    for noisy in ("", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # its errors are raised, too
    for ours in ("pixel160k", "model", "train", "evaluation"):  # the jobs of annotate write a log of their own
        logging.getLogger(ours).setLevel(logging.WARNING)
        logging.getLogger(ours).handlers = [_Warnings()]


class _AnyPath(click.Path):
    """A local path, or one of an object store, as `open_path` takes it."""

    def convert(
        self, value: str | os.PathLike[str], parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        path = open_path(os.fspath(value))
        return path if isinstance(path, StorePath) else super().convert(path, parameter, context)


class _LocalPath(_AnyPath):
    """A local path."""

    def convert(
        self, value: str | os.PathLike[str], parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        path = super().convert(value, parameter, context)
        if isinstance(path, StorePath):
            self.fail(f"{path} is in an object store; here only local paths do", parameter, context)
        return path


_directory = _AnyPath(path_type=Path, file_okay=False)
_new_file = _AnyPath(path_type=Path, dir_okay=False)
_local_directory = _LocalPath(path_type=Path, file_okay=False)
_new_local_file = _LocalPath(path_type=Path, dir_okay=False)
_file = _LocalPath(path_type=Path, dir_okay=False, exists=True)
_shards = click.option("--shards", type=_directory, required=True, help="Output of `pixelcli build-shards`.")
_annotations = click.option("--annotations", type=_directory, required=True, help="Output of `pixelcli annotate`.")
_data_dir = click.option(
    "--data-dir", type=_directory, help="The annotated RLDS files [default: where they were then]."
)
_overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one setting; may be repeated."
)
_device = click.option("--device", default="cpu", show_default=True, help="Of the models: cpu, cuda, cuda:1, mps.")


class _Shard(click.ParamType):
    """I/N, as 2/8: the I-th of N parts."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        index, _, count = str(value).partition("/")
        if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
            return int(index), int(count)
        self.fail(f"{value!r} is not I/N with 1 <= I <= N, as 2/8", param, ctx)


def _execution(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say where a Beam job runs; the command gets them together, in the order of `Execution`."""

    @click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes, on each device.")
    @click.option(
        "--shard", type=_Shard(), default="1/1", show_default=True, help="I/N: only every N-th file, from the I-th."
    )
    @click.option("--runner", default="", help="Another Beam runner by its full name [default: the local one].")
    @click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM_OPTIONS...]")
    @wraps(command)
    def with_execution(
        workers: int, shard: tuple[int, int], runner: str, beam_options: tuple[str, ...], **options: Any
    ) -> None:
        if runner:
            _refuse_with("--runner", "workers")
        elif beam_options:
            raise click.UsageError(
                f"unexpected {' '.join(beam_options)}, which would be ignored: "
                "each option takes one word, and those of Beam need --runner"
            )
        try:
            command(execution=(workers, runner, beam_options, shard), **options)
        except PartDone as part:
            click.echo(part)

    return with_execution


def _refuse_with(option: str, *names: str) -> None:
    """Refuse those of these parameters that stand on the command line: beside `option` they would be ignored."""
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{option} does not go with {', '.join(given)}, which would be ignored")


def _names(text: str) -> list[str]:
    """The names of a list with commas, as it was typed: "none, point"."""
    return [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields what to call with the number that is done.

    It is drawn by these calls and not by a thread of its own: while tensorflow_datasets is imported, Python's import is another
    one for all threads, and rich imports when it draws.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), auto_refresh=False) as bar:
        task, drawn = bar.add_task(title, total=total), 0.0

        def show(done: int) -> None:
            nonlocal drawn
            bar.update(task, completed=done)
            if monotonic() - drawn > 0.1:
                bar.refresh()
                drawn = monotonic()

        yield show


def _print(*tables: Any) -> None:
    from rich.console import Console

    for table in tables:
        Console().print(table)


@main.command("annotate")
@click.option("--src", "source", type=click.Choice(tuple(ORIGINS)), help="The data set.")
@click.option(
    "--refilter", type=_directory, help="Instead of --src: finished annotations to accept anew, by --set filter..."
)
@click.option("--data-dir", type=_directory, help="Folder with the RLDS files [default for sample: the shipped one].")
@click.option("--split", default="", help="Only this split [default: all].")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many episodes, in the order of the files.")
@click.option(
    "--out", type=_directory, required=True, help="Where the annotation parts go; the same run resumes there."
)
@click.option("--config", type=_new_local_file, help="YAML file of settings.")
@_overrides
@click.option(
    "--tracks",
    type=click.Choice(["accepted", "all", "none"]),
    is_flag=False,
    flag_value="accepted",
    help="Also masks at every step: of accepted episodes, or, with --tracks=all, of rejected ones too.",
)
@click.option(
    "--device",
    "--devices",
    "device",
    default="cpu",
    show_default=True,
    help="Of the models: cpu, cuda (every GPU), cuda:0,cuda:2 (these).",
)
@_execution
def annotate_command(
    source: str | None,
    refilter: AnyPath | None,
    data_dir: AnyPath | None,
    split: str,
    limit: int | None,
    out: AnyPath,
    config: Path | None,
    overrides: tuple[str, ...],
    tracks: str | None,
    device: str,
    execution: tuple[int, str, tuple[str, ...], tuple[int, int]],
) -> None:
    """Find and cut out the target object and the gripper in every episode.

    \b
    pixelcli annotate --src sample --out annotations
    pixelcli annotate --src bridge_orig --data-dir ~/data/bridge_orig --out look --limit 50 --device cuda
    pixelcli annotate --src bridge_orig --data-dir ~/data/bridge_orig --out annotations --set annotators=motion --workers 8
    pixelcli annotate --src libero --data-dir DIR --out annotations --set annotators=motion \\
        --runner apache_beam.runners.dask.dask_runner.DaskRunner -- --dask_client_address=tcp://HOST:8786 --dask_npartitions=64
    pixelcli annotate --src fractal --data-dir DIR --out annotations --device cuda --workers 2 --shard 3/8
    pixelcli annotate --refilter annotations --set filter.min_evidence=0.5 --out stricter
    """
    require_packages("annotate", "apache_beam")
    from annotate.jobs import annotate, beam, summary
    from annotate.jobs import refilter as refilter_job

    if refilter is not None:
        _refuse_with(
            "--refilter",
            "source",
            "data_dir",
            "split",
            "limit",
            "config",
            "tracks",
            "device",
            "workers",
            "shard",
            "runner",
        )
        totals = refilter_job.refilter(refilter, out, overrides)
        _print(summary.summary_table(totals))
        summary.check_annotated(totals, out)
        return
    if source is None:
        raise click.UsageError("name a data set with --src, or finished annotations with --refilter")
    settings = annotate.load_settings(source, config, overrides, {"tracks": tracks} if tracks else {}, device)
    data_dir = annotate.default_data_dir(source, data_dir)
    totals = annotate.annotate(source, data_dir, out, settings, beam.Execution(*execution), split, device, limit or 0)
    _print(summary.summary_table(totals))
    summary.check_episodes(totals["internal_errors"], totals["reasons"].get("internal_error", 0), out)
    summary.check_annotated(totals, out)


@main.command("build-shards")
@_annotations
@_data_dir
@click.option("--out", type=_directory, required=True, help="Where the shards go; the same run resumes there.")
@click.option(
    "--include",
    type=click.Choice(["accepted", "all"]),
    default="accepted",
    show_default=True,
    help="Which episodes; all: rejected ones too.",
)
@click.option(
    "--cameras", default="", help="Further cameras, as image_1,image_2: images without masks [default: none]."
)
@_execution
def build_shards_command(
    annotations: AnyPath,
    data_dir: AnyPath | None,
    out: AnyPath,
    include: str,
    cameras: str,
    execution: tuple[int, str, tuple[str, ...], tuple[int, int]],
) -> None:
    """Write WebDataset shards of annotated episodes, with index, statistics, manifest and data card.

    \b
    pixelcli build-shards --annotations annotations --out shards
    pixelcli build-shards --annotations annotations --out shards --cameras wrist_image
    """
    require_packages("annotate", "apache_beam")
    from annotate.jobs.beam import Execution
    from annotate.jobs.shards import build_shards
    from annotate.jobs.summary import check_episodes

    manifest = build_shards(annotations, out, Execution(*execution), data_dir, include, _names(cameras))
    left_out, untracked = manifest["left_out"], manifest["untracked"]
    click.echo(
        f"{manifest['samples']} samples of {manifest['episodes']} episodes in {len(manifest['shards'])} shards"
        + (f"; {len(left_out)} unusable episodes left out (see manifest.json)" if left_out else "")
        + (f"; {untracked} without masks at every step, which `annotate --tracks=all` makes" if untracked else "")
    )
    for name, counts in manifest.get("cameras", {}).items():
        blank, unusable = counts["blank"], len(counts["unusable"])
        click.echo(
            f"{name}: in {counts['episodes']} episodes; blank in {blank}, unusable in {unusable} (see manifest.json)"
        )
    errors = manifest["internal_errors"]
    check_episodes(errors, len(errors), out)


@main.command("verify")
@_shards
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that check shards.")
def verify_command(shards: AnyPath, workers: int) -> None:
    """Check shards against their manifest, and every sample in them; exit code 1 and one line per fault.

    \b
    pixelcli verify --shards shards
    """
    from pixel160k.read.folder import read_manifest
    from pixel160k.read.verify import verify

    faults = verify(shards, workers)
    for fault in faults:
        click.echo(fault)
    if faults:
        raise click.ClickException(f"{len(faults)} faults in {shards}; build these shards again")
    click.echo(f"{read_manifest(shards)['samples']} samples, no fault")


@main.command("export")
@_shards
@click.option("--to", type=click.Choice(("lerobot", "coco", "hf")), required=True, help="The format; hf has no images.")
@click.option("--out", type=_directory, required=True, help="A new or empty directory.")
@click.option(
    "--fps", type=click.FloatRange(0, min_open=True), help="Of lerobot: control rate in Hz [default: the source's own]."
)
def export_command(shards: AnyPath, to: str, out: AnyPath, fps: float | None) -> None:
    """Write shards as a LeRobot data set, as COCO instances, or as annotations without images.

    \b
    pixelcli export --shards shards --to lerobot --out lerobot
    pixelcli export --shards shards --to coco --out coco
    pixelcli export --shards shards --to hf --out annotations-only
    """
    from pixel160k.publish.export import export
    from pixel160k.read.folder import read_manifest

    if to != "lerobot":
        _refuse_with(f"--to {to}", "fps")
    with _progress(f"export {to}", read_manifest(shards)["samples"]) as show:
        counts = export(shards, to, out, fps, show)
    click.echo(f"{', '.join(f'{count} {what}' for what, count in counts.items())} in {out}")


@main.command("browse")
@_shards
@click.option("--out", type=_new_file, help="Instead of serving all pages: one HTML file to write.")
@click.option(
    "--limit", type=click.IntRange(1), default=200, show_default=True, help="Of --out: at most this many episodes."
)
@click.option("--status", default="", help="Only episodes of this status: accepted, rejected.")
@click.option("--reason", default="", help="Only episodes that were rejected for this reason.")
@click.option("--verb", default="", help="Only episodes of this verb class: pick_place, open, ...")
@click.option("--worst", type=click.Choice(["score", "mask_score", "evidence_score"]), help="The lowest of this first.")
@click.option("--port", type=click.IntRange(0, 65535), help="Of the pages [default: 8160; 0: any that is free].")
def browse_command(
    shards: AnyPath,
    out: AnyPath | None,
    limit: int,
    status: str,
    reason: str,
    verb: str,
    worst: str | None,
    port: int | None,
) -> None:
    """Show each episode with its masks, prompts, scores and reason: as pages for a browser here, or as one file.

    \b
    pixelcli browse --shards shards
    pixelcli browse --shards shards --worst mask_score --verb open
    pixelcli browse --shards shards --out browse.html
    """
    from pixel160k.show import browse_page, browse_server
    from pixel160k.show.overview import Choice

    choice = Choice(status, reason, verb, worst=worst or "")
    if out is not None:
        _refuse_with("--out", "port")
        click.echo(
            f"{browse_page.write_page(shards, out, limit=limit, choice=choice)} episodes; open {out} in a browser"
        )
        return
    _refuse_with("a browse without --out", "limit")
    with browse_server.BrowseServer(shards, choice, browse_server.PORT if port is None else port) as server:
        click.echo(
            f"{len(server.overview)} episodes: open {server.address} in a browser on this machine; Ctrl-C ends it"
        )
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@main.command("stats")
@_shards
@click.option("--out", type=_directory, required=True, help="Where stats.png and stats.json go.")
@click.option("--split", help="Only episodes of this split [default: all].")
def stats_command(shards: AnyPath, out: AnyPath, split: str | None) -> None:
    """Draw what shards hold: skills, objects, reasons, scores, lengths, actions (needs the extra [notebook]).

    \b
    pixelcli stats --shards shards --out stats
    """
    from pixel160k.read.folder import read_manifest
    from pixel160k.show.data_figure import write_figure

    with _progress("stats", read_manifest(shards)["episodes"]) as show:
        numbers = write_figure(shards, out, show, split)
    click.echo(f"{numbers['episodes']} episodes: {out / 'stats.png'}, {out / 'stats.json'}")


@main.command("predict")
@click.option("--checkpoint", required=True, help="Folder or hub id of a trained policy.")
@click.option("--image", "image_file", type=_file, required=True, help="What the robot's camera sees.")
@click.option("--instruction", required=True, help="What to do.")
@click.option("--point", "points", multiple=True, metavar="X,Y", help="A point in pixels; repeatable, as are the next.")
@click.option("--line", "lines", multiple=True, metavar="X,Y,X,Y...", help="A line through points.")
@click.option("--region", "regions", multiple=True, metavar="X0,Y0,X1,Y1", help="A box.")
@click.option("--mask", "mask_files", type=_file, multiple=True, help="The object's pixels: an image, black outside.")
@click.option("--state", metavar="NUMBERS", help="Proprioception, separated by commas, for policies that read it.")
@click.option("--dataset", help="Whose robot acts: a key of the checkpoint's statistics, as bridge_orig.")
@click.option("--json", "as_json", is_flag=True, help="Print the actions as JSON.")
@click.option("--draw", "drawing", type=_new_local_file, help="Write the image with masks and prompts drawn on it.")
@_device
def predict_command(
    checkpoint: str,
    image_file: Path,
    instruction: str,
    points: tuple[str, ...],
    lines: tuple[str, ...],
    regions: tuple[str, ...],
    mask_files: tuple[Path, ...],
    state: str | None,
    dataset: str | None,
    as_json: bool,
    drawing: Path | None,
    device: str,
) -> None:
    """Predict a robot's next actions from an image, an instruction, and what is pointed at.

    \b
    pixelcli predict --checkpoint policy --image image.png --instruction "pick up the cup" --dataset bridge_orig
    pixelcli predict --checkpoint policy --image image.png --instruction "pick it up" --dataset bridge_orig \\
        --point 120,96 --region 100,80,150,130 --mask cup.png --draw said.png
    """
    require_packages("foundation", "torch", "transformers")
    import json

    from PIL import Image

    from model.predict import action_table, read_image, read_mask, read_prompts, read_state
    from pixel160k.show.painting import paint
    from train.checkpoints import load_policy

    if drawing is not None and Image.registered_extensions().get(drawing.suffix.lower()) not in Image.SAVE:
        raise InputError(f"--draw {drawing}: its name does not end as an image's, as in said.png")
    image, prompts = read_image(image_file), read_prompts(points, lines, regions)
    masks = [read_mask(file) for file in mask_files]
    policy = load_policy(checkpoint, device=device)
    actions = policy.predict_action(image, instruction, masks, prompts, dataset, read_state(state))
    if drawing is not None:
        Image.fromarray(paint(image, masks, prompts)).save(drawing)
    if as_json:
        click.echo(json.dumps(actions.tolist()))
    else:
        _print(action_table(actions))


@main.command("train")
@click.option("--stage", type=click.Choice(["pretrain", "cat", "pue"]), help="[default: the recipe's]")
@click.option("--shards", multiple=True, required=True, help="Output of `pixelcli build-shards`; repeatable.")
@click.option("--out", type=_local_directory, required=True, help="Where checkpoints and logs go.")
@click.option("--recipe", default="tiny-sample", show_default=True, help="A shipped recipe's name, or a YAML file.")
@click.option("--init", help="Start from this checkpoint, run, hub id or preset [default: the recipe's].")
@click.option("--max-steps", type=click.IntRange(1), help="Steps in all [default: the recipe's].")
@_overrides
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
def train_command(
    stage: str | None,
    shards: tuple[str, ...],
    out: Path,
    recipe: str,
    init: str | None,
    max_steps: int | None,
    overrides: tuple[str, ...],
    resume: bool,
) -> None:
    """Train a policy on shards: pretrain (everything), cat (the action decoder), pue (LoRA, the three modules).

    Several GPUs or machines: torchrun --nproc-per-node N --no-python pixelcli train ...

    \b
    pixelcli train --stage cat --recipe cat-openvla --shards shards --out runs/cat
    pixelcli train --stage pue --recipe pue-openvla --shards shards --init runs/cat --out runs/pue
    pixelcli train --stage pue --recipe pue-openvla --shards shards --init runs/cat --out runs/pue --resume
    """
    from train.settings import check_packages, load_recipe

    check_packages()
    from train.checks import say
    from train.run import train

    chosen = {"stage": stage, "init": init, "max_steps": max_steps}
    values = {key: value for key, value in chosen.items() if value is not None}
    say(f"the last checkpoint: {train(load_recipe(recipe, overrides, values), shards, out, resume)}")


@main.command("recipes")
@click.argument("name", required=False)
@click.option("--out", type=_new_local_file, help="Copy the recipe to this new YAML file, to change it.")
def recipes_command(name: str | None, out: Path | None) -> None:
    """List the recipes that ship with the package, or copy one to change it.

    \b
    pixelcli recipes
    pixelcli recipes cat-pi0 --out mine.yaml
    """
    from train.settings import copy_recipe, shipped_recipes

    if (name is None) != (out is None):
        raise click.UsageError("name a recipe and where to copy it, as: pixelcli recipes cat-pi0 --out mine.yaml")
    if name is None or out is None:
        for recipe, what in shipped_recipes().items():
            click.echo(f"{recipe:16}{what}")
        return
    copy_recipe(name, out)
    click.echo(f"{out}: train by it with --recipe {out}")


@main.command("merge")
@click.option("--checkpoint", type=_local_directory, required=True, help="A checkpoint of cat or pue, or the run.")
@click.option("--out", type=_local_directory, required=True, help="A new folder for the whole policy.")
def merge_command(checkpoint: Path, out: Path) -> None:
    """Make a checkpoint of training one policy that stands alone, the LoRA folded into the weights.

    \b
    pixelcli merge --checkpoint runs/pue --out policy
    """
    from train.settings import check_packages

    check_packages()
    from train.checkpoints import merge

    merge(checkpoint, out)
    click.echo(f"{out} holds the whole policy; act with: pixelcli predict --checkpoint {out}")


@main.command("serve")
@click.option("--checkpoint", required=True, help="A policy, or a run or checkpoint of training.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--dataset", help="Whose robot acts, where clients do not say it [default: the checkpoint's only one].")
@click.option("--api-key-file", type=_file, help="Holds what clients must send [default: $PIXELVLA_API_KEY, or none].")
@click.option("--compile", "compiled", is_flag=True, help="Compiled graphs: minutes at the start, faster on a GPU.")
@click.option(
    "--point-page", "page", is_flag=True, help="Serve a page, /point, on which a person points at the object."
)
@click.option("--point", "always", metavar="X,Y", help="Point here at the beginning of every episode.")
@click.option("--segmenter", help="A SAM 2 that makes p_t of it: tiny, a hub id or a folder.")
@_overrides
@_device
def serve_command(
    checkpoint: str,
    host: str,
    port: int,
    dataset: str | None,
    api_key_file: Path | None,
    compiled: bool,
    page: bool,
    always: str | None,
    segmenter: str | None,
    overrides: tuple[str, ...],
    device: str,
) -> None:
    """Let robots and others' harnesses ask a policy: openpi's websocket and OpenVLA's /act, on one port.

    \b
    pixelcli serve --checkpoint policy --dataset bridge_orig
    pixelcli serve --checkpoint policy --point-page --segmenter facebook/sam2.1-hiera-small
    pixelcli serve --checkpoint policy --host 0.0.0.0 --api-key-file key --device cuda --set batch=32
    """
    require_packages("serve", "torch", "transformers", "msgpack", "starlette", "uvicorn", "websockets")
    from model.predict import read_prompts
    from serve.clicks import Pointing
    from serve.server import read_key, serve
    from serve.settings import ServeSettings

    settings, key = ServeSettings.load(overrides=overrides), read_key(api_key_file)
    (prompt,) = read_prompts([always], [], []) if always is not None else (None,)
    if segmenter is not None and not page and prompt is None:
        raise click.UsageError("--segmenter follows what is pointed at: give --point-page or --point as well")
    if settings.point_wait_s and not page:
        raise click.UsageError("point_wait_s waits for a click: give --point-page as well")
    follow = None if segmenter is None else _follower(segmenter, device)
    pointing = Pointing(page, prompt, follow) if page or prompt is not None else None
    serve(checkpoint, host, port, settings, dataset, device, key, compiled, click.echo, pointing)


def _follower(segmenter: str, device: str) -> Any:
    """What follows a point or box by a SAM 2, as `serve.clicks.Follow`."""
    from annotate.annotators.segmenter import Segmenter
    from annotate.settings import FoundationSettings
    from annotate.timing import Stopwatch

    try:
        return Segmenter(FoundationSettings(segmenter=segmenter), device, Stopwatch()).follow_live
    except InputError as error:
        raise InputError(str(error).replace("--set foundation.segmenter=", "--segmenter ")) from None


@main.group("evaluate")
def evaluate_group() -> None:
    """Measure annotations and policies."""


@evaluate_group.command("annotations")
@_annotations
@click.option("--truth", type=_new_local_file, help="truth.parquet [default for sample: its own].")
@_data_dir
@click.option("--out", type=_directory, required=True, help="Where evaluation.json and worst.html go.")
def evaluate_annotations_command(
    annotations: AnyPath, truth: Path | None, data_dir: AnyPath | None, out: AnyPath
) -> None:
    """Compare annotations with the truth of a simulated data set.

    \b
    pixelcli evaluate annotations --annotations annotations --out evaluation
    """
    require_packages("annotate", "apache_beam")
    from evaluation.annotation_report import summary_tables
    from evaluation.annotations import evaluate

    _print(*summary_tables(evaluate(annotations, truth, out, data_dir)))
    click.echo(f"the worst cases: {out / 'worst.html'}")


@evaluate_group.command("actions")
@click.option("--checkpoint", required=True, help="A policy, or a run or checkpoint of training.")
@_shards
@click.option("--split", help="Only episodes of this split [default: those that training held out].")
@click.option(
    "--prompts",
    default="none,point,mask,pixel_mask,wrong_point,wrong_mask,wrong_pixel_mask",
    show_default=True,
    help="What is pointed at: none, point, line, region, mask, pixel_mask, and each with wrong_ before it.",
)
@click.option(
    "--scaled-as", metavar="NAME", help="Whose statistics scale states and actions [default: the shards' own]."
)
@click.option(
    "--unmerged", is_flag=True, help="Keep LoRA beside the weights: bfloat16 weights then round nothing away."
)
@click.option("--out", type=_directory, required=True, help="Where evaluation.json and actions.html go.")
@_device
def evaluate_actions_command(
    checkpoint: str,
    shards: AnyPath,
    split: str | None,
    prompts: str,
    scaled_as: str | None,
    unmerged: bool,
    out: AnyPath,
    device: str,
) -> None:
    """Compare a policy's actions with the demonstrators' on held-out episodes, with and without pointing.

    On shards of a data set that the policy was not trained on, --scaled-as names the one that it was.

    \b
    pixelcli evaluate actions --checkpoint runs/pue --shards shards --out evaluation
    pixelcli evaluate actions --checkpoint runs/pue --shards fractal --split val --scaled-as bridge_orig --out evaluation
    """
    from train.settings import check_packages

    check_packages()
    from rich.console import Console
    from rich.progress import track

    from evaluation.action_report import summary_table
    from evaluation.actions import evaluate

    def show(episodes: Sequence[str]) -> Iterable[str]:
        return track(episodes, "episodes", console=Console(stderr=True))

    kinds = _names(prompts)
    _print(summary_table(evaluate(checkpoint, shards, out, kinds, split, device, show, not unmerged, scaled_as)))
    click.echo(f"the page: {out / 'actions.html'}")


@evaluate_group.command("libero")
@click.option(
    "--policy",
    required=True,
    metavar="POLICY",
    help="A trained policy or run, an OpenVLA checkpoint, ws://HOST:PORT, http://HOST:PORT/act, tiny, random, expert, replay:DIR.",
)
@click.option("--suite", help="libero_spatial, _object, _goal, _10, _90, or of LIBERO-PRO [default: libero_spatial].")
@click.option("--episodes", type=click.IntRange(1), help="Initial states of each task [default: 50].")
@click.option(
    "--prompts",
    help="What points at the target: as in evaluate actions; followed_point, followed_text [default: none].",
)
@click.option("--shifts", help="Of the domain: none, or a kind with a level, as camera-3 [default: none].")
@click.option("--config", type=_new_local_file, help="YAML file of settings.")
@_overrides
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes with a simulator each."
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Episodes that the policy is asked for together.",
)
@click.option("--dataset", help="Whose robot acts: a key of the checkpoint's statistics.")
@click.option("--film", is_flag=True, help="Make a film of each episode.")
@click.option("--against", type=_local_directory, help="Another --out, to compare with scene by scene.")
@click.option("--out", type=_local_directory, required=True, help="Where episodes.parquet, libero.html, films go.")
@_device
def evaluate_libero_command(
    policy: str,
    suite: str | None,
    episodes: int | None,
    prompts: str | None,
    shifts: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    workers: int,
    batch: int,
    dataset: str | None,
    film: bool,
    against: Path | None,
    out: Path,
    device: str,
) -> None:
    """Let a policy act in LIBERO, by OpenVLA's protocol; a killed run goes on (needs the extras [sim] and [train]).

    \b
    pixelcli evaluate libero --policy runs/pue --suite libero_spatial --workers 2 --out libero
    pixelcli evaluate libero --policy runs/pue --prompts none,point,pixel_mask --episodes 10 --film --out libero
    pixelcli evaluate libero --policy runs/pue --shifts none,camera-3,light-3 --against other --out shifted
    pixelcli evaluate libero --policy expert --suite libero_object --episodes 5 --out libero
    """
    from train.settings import check_packages

    require_packages("sim", "libero", "imageio_ffmpeg")
    check_packages()
    from rich.console import Console
    from rich.progress import Progress

    from evaluation.closed_loop.report import summary_tables
    from evaluation.closed_loop.run import evaluate
    from evaluation.closed_loop.settings import LiberoSettings

    named = {"prompts": prompts, "shifts": shifts}
    chosen = {"suite": suite, "episodes": episodes} | {key: _names(text) for key, text in named.items() if text}
    values = {key: value for key, value in chosen.items() if value is not None}
    settings = LiberoSettings.load(config, overrides, values=values)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("episodes", total=None)
        summary = evaluate(
            policy, settings, out, workers, batch, device, dataset, film, against,
            lambda done, of: bar.update(task, completed=done, total=of),
        )  # fmt: skip
    _print(*summary_tables(summary))
    click.echo(f"the page: {out / 'libero.html'}")


@main.command("study")
@click.option("--shards", multiple=True, required=True, help="To train on and to measure on; repeatable.")
@click.option("--grid", "grids", multiple=True, metavar="KEY=V,V...", help="What to vary; repeatable.")
@click.option("--cross", is_flag=True, help="Train on each of the data sets alone too; measure each policy on all.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Policies of each combination.")
@click.option("--init", default="", help="A checkpoint or run to train from [default: the recipe's preset].")
@click.option("--steps", help="Of pretrain, cat and pue, or of those after --init [default: 300,100,300].")
@click.option("--recipe", default="tiny-sample", show_default=True, help="A shipped recipe's name, or a YAML file.")
@click.option("--prompts", default="none,point,pixel_mask", show_default=True, help="As in evaluate actions.")
@_overrides
@_device
@click.option("--out", type=_local_directory, required=True, help="Where policies, study.json and study.png go.")
def study_command(
    shards: tuple[str, ...],
    grids: tuple[str, ...],
    cross: bool,
    seeds: int,
    init: str,
    steps: str | None,
    recipe: str,
    prompts: str,
    overrides: tuple[str, ...],
    device: str,
    out: Path,
) -> None:
    """Train a policy for every combination of a grid and every seed, and compare their held-out action errors.

    What --out already holds is kept. A grid takes settings of the policy and of the recipe, and multiscale=on,off. With
    --init only the stages after that checkpoint are trained, and the settings of its policy stay.

    \b
    pixelcli study --shards shards --grid decoder_blocks=1,2,3 --grid multiscale=on,off --seeds 3 --out study
    pixelcli study --shards shards --init runs/cat --grid lora.alpha=16,32 --steps 300 --out study
    pixelcli study --shards bridge --shards fractal --cross --out study
    """
    from train.settings import check_packages

    check_packages()
    require_packages("notebook", "matplotlib")
    from evaluation.study import STEPS, Study, read_grid, run_study, stages_after, summary_table

    if not grids and not cross:
        raise click.UsageError("say what to compare, with --grid or --cross")
    stages = stages_after(init)
    numbers = [str(STEPS[stage]) for stage in stages] if steps is None else steps.split(",")
    counts = [int(number) if number.isdecimal() else 0 for number in numbers]
    if len(counts) != len(stages) or not all(counts):
        raise click.UsageError(f"--steps takes {len(stages)} numbers, of {', '.join(stages)}, not {steps!r}")
    study = Study(
        read_grid(grids),
        range(seeds),
        dict(zip(stages, counts, strict=True)),
        recipe,
        init,
        cross,
        overrides,
        tuple(_names(prompts)),
    )
    result = run_study(
        study, shards, out, lambda done, of: click.echo(f"{done} of {of} policies are measured", err=True), device
    )
    _print(summary_table(result))
    click.echo(f"the plot: {out / 'study.png'}")


@main.command("sample")
@click.option("--suite", "suites", multiple=True, help="libero_object, _spatial, _goal, _10 or _90; repeatable.")
@click.option(
    "--task",
    "tasks",
    type=int,
    multiple=True,
    help="A task of the one suite; repeatable [default: the picks; of _10 and _90 all that are scripted].",
)
@click.option("--two-alike", is_flag=True, help="Instead: two alike bowls, each the target of one demonstration.")
@click.option(
    "--mishap",
    "mishaps",
    multiple=True,
    help="What goes wrong: miss, beside, drop, push, nudge, never, none; repeatable.",
)
@click.option("--episodes", type=click.IntRange(1), required=True, help="Successful demonstrations to record.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws tasks and initial states.")
@click.option(
    "--files", type=click.IntRange(1), default=1, show_default=True, help="TFRecord files to spread them over."
)
@click.option("--hz", type=int, default=5, show_default=True, help="5 thins the 20 Hz of the simulator; 20 keeps all.")
@click.option("--name", default="", help="The data set's name [default: SUITE_simulated, or libero_two_alike].")
@click.option("--out", type=_local_directory, required=True, help="A new or empty directory.")
def sample_command(
    suites: tuple[str, ...],
    tasks: tuple[int, ...],
    two_alike: bool,
    mishaps: tuple[str, ...],
    episodes: int,
    seed: int,
    files: int,
    hz: int,
    name: str,
    out: Path,
) -> None:
    """Record scripted demonstrations in LIBERO as RLDS, with truth beside them (needs the extra [sim]).

    With --two-alike, only a visual prompt can say which of two bowls is meant; a fifth of the episodes, in other initial
    states, are the split val. With --mishap, the demonstrations take turns in what goes wrong: a close
    that misses, drops or pushes the target (never: all of them), or a hand that is nudged off its way and comes back to it.

    \b
    pixelcli sample --suite libero_object --episodes 20 --seed 1 --out recorded
    pixelcli sample --suite libero_10 --task 0 --task 3 --episodes 20 --seed 1 --out recorded
    pixelcli sample --two-alike --episodes 100 --seed 1 --out recorded
    """
    if bool(suites) == two_alike:
        raise click.UsageError("name either the suites with --suite, or --two-alike")
    if tasks and len(suites) != 1:
        raise click.UsageError("--task chooses among the tasks of one --suite")
    require_packages("sim", "libero", "tensorflow_datasets")
    from simulation.recording import record_sample
    from simulation.two_alike import record_two_alike

    chosen = {suite: tasks for suite in suites} if tasks else None
    record = record_two_alike if two_alike else partial(record_sample, list(suites), tasks=chosen)
    with _progress("record", episodes) as show:
        counts = record(episodes, seed, out, name, files, hz, lambda done, _: show(done), mishaps=mishaps).total()
    click.echo(
        f"{counts.recorded} episodes recorded; {counts.failed_attempts} of {counts.attempts} attempts failed, "
        f"{counts.failed_episodes} scenes were given up; annotate with: pixelcli annotate --src libero "
        f"--set annotators=motion --data-dir {out} --out OUT"
    )


@main.command("doctor")
def doctor_command() -> None:
    """Say what is installed, which extras work, which devices there are, and how to get what is missing.

    \b
    pixelcli doctor
    """
    from pixel160k.doctor import core_works, examine, report

    findings = examine()
    _print(report(findings))
    if not core_works(findings):
        raise click.ClickException("the core does not work on this machine; the table says what to install")


if __name__ == "__main__":
    main()
