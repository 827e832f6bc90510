"""`pixelcli`: the commands, each a few lines that call one function.

Exit codes: 0 done, 1 the data or the machine is not as it should be (one line says what and how to mend it), 2 wrong usage.
"""

import logging
from pathlib import Path
from typing import Any

import click


class _Commands(click.Group):
    """Turns the errors that name their own way out into one line and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (ValueError, OSError) as error:
            if context.params.get("debug"):
                raise
            raise click.ClickException(" ".join(str(error).split())) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--debug", is_flag=True, help="Show tracebacks instead of one-line errors.")
@click.version_option(package_name="pixelvla", prog_name="pixelcli")
def main(debug: bool) -> None:
    """PixelVLA: pixel annotations for robot episodes, and policies that use them."""
    for noisy in (
        "",
        "huggingface_hub",
    ):  # Beam warns of Google libraries that nothing here needs, the hub of each retry
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _execution_options(command: Any) -> Any:
    """The options that say where a job runs, shared by the Beam jobs."""
    options = [
        click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Local worker processes."),
        click.option("--runner", default="", help="Another Beam runner by its full name [default: the local one]."),
        click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM_OPTIONS...]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_SOURCE_NAMES = ("sample", "bridge_orig", "fractal", "libero")
_directory = click.Path(path_type=Path, file_okay=False)
_file = click.Path(path_type=Path, dir_okay=False, exists=True)


@main.command()
@click.option("--src", "source", type=click.Choice(_SOURCE_NAMES), help="The data set.")
@click.option(
    "--refilter", type=_directory, help="Instead of --src: finished annotations to accept anew, by --set filter..."
)
@click.option("--data-dir", type=_directory, help="Folder with the RLDS files [default for sample: the shipped one].")
@click.option("--split", default="", help="Only this split [default: all].")
@click.option(
    "--out", type=_directory, required=True, help="Where the annotation parts go; the same run resumes there."
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file of settings.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one setting; may be repeated.")
@click.option("--tracks", is_flag=True, help="Also masks at every step (as --set tracks=true).")
@click.option("--device", default="cpu", show_default=True, help="Of the models: cpu, cuda, cuda:1, mps.")
@_execution_options
def annotate(
    source: str | None,
    refilter: Path | None,
    data_dir: Path | None,
    split: str,
    out: Path,
    config: Path | None,
    overrides: tuple[str, ...],
    tracks: bool,
    device: str,
    workers: int,
    runner: str,
    beam_options: tuple[str, ...],
) -> None:
    """Find and cut out the target object and the gripper in every episode.

    \b
    pixelcli annotate --src sample --out annotations
    pixelcli annotate --src bridge_orig --data-dir ~/data/bridge_orig --out annotations --set annotators=motion --workers 8
    pixelcli annotate --src libero --data-dir DIR --out annotations --set annotators=motion \\
        --runner apache_beam.runners.dask.dask_runner.DaskRunner -- --dask_client_address=tcp://HOST:8786 --dask_npartitions=64
    pixelcli annotate --refilter annotations --set filter.min_evidence=0.5 --out stricter
    """
    from rich.console import Console

    from annotate import annotate_job
    from annotate.jobs import Execution
    from annotate.refilter import refilter as accept_anew
    from annotate.summary import summary_table

    if refilter is not None:
        Console().print(summary_table(accept_anew(refilter, out, overrides)))
        return
    if source is None:
        raise click.UsageError("name a data set with --src, or finished annotations with --refilter")
    if tracks:
        overrides = (*overrides, "tracks=true")
    settings = annotate_job.load_settings(source, config, overrides, device)
    data_dir = annotate_job.default_data_dir(source, data_dir)
    totals = annotate_job.annotate(
        source, data_dir, out, settings, Execution(workers, runner, beam_options), split, device
    )
    Console().print(summary_table(totals))


@main.command()
@click.option("--annotations", type=_directory, required=True, help="Output of `pixelcli annotate`.")
@click.option("--data-dir", type=_directory, help="The annotated RLDS files [default: where they were then].")
@click.option("--out", type=_directory, required=True, help="Where the shards go; the same run resumes there.")
@click.option("--include", type=click.Choice(["accepted", "all"]), default="accepted", show_default=True)
@_execution_options
def build_shards(
    annotations: Path,
    data_dir: Path | None,
    out: Path,
    include: str,
    workers: int,
    runner: str,
    beam_options: tuple[str, ...],
) -> None:
    """Write WebDataset shards of annotated episodes, with index, statistics, manifest and data card.

    \b
    pixelcli build-shards --annotations annotations --out shards
    """
    from annotate import shards_job
    from annotate.jobs import Execution

    manifest = shards_job.build_shards(annotations, out, Execution(workers, runner, beam_options), data_dir, include)
    click.echo(
        f"{manifest['samples']} samples of {manifest['episodes']} episodes in {len(manifest['shards'])} shards"
        + (
            f"; {len(manifest['left_out'])} unusable episodes left out (see manifest.json)"
            if manifest["left_out"]
            else ""
        )
    )


@main.command()
@click.option("--shards", type=_directory, required=True, help="Output of `pixelcli build-shards`.")
def verify(shards: Path) -> None:
    """Check shards against their manifest, and every sample in them; exit code 1 and one line a fault.

    \b
    pixelcli verify --shards shards
    """
    from pixel160k.shards import read_manifest
    from pixel160k.verify import verify as find_faults

    faults = find_faults(shards)
    for fault in faults:
        click.echo(fault)
    if faults:
        raise click.ClickException(f"{len(faults)} faults in {shards}; build these shards again")
    click.echo(f"{read_manifest(shards)['samples']} samples, no fault")


@main.command()
@click.option("--shards", type=_directory, required=True, help="Output of `pixelcli build-shards`.")
@click.option("--to", type=click.Choice(("lerobot", "coco", "hf")), required=True, help="The format; hf has no images.")
@click.option("--out", type=_directory, required=True, help="A new or empty directory.")
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="Control rate in Hz [default: the source's own].")
def export(shards: Path, to: str, out: Path, fps: float | None) -> None:
    """Write shards as a LeRobot data set, as COCO instances, or as annotations without images.

    \b
    pixelcli export --shards shards --to lerobot --out lerobot
    pixelcli export --shards shards --to coco --out coco
    pixelcli export --shards shards --to hf --out annotations-only
    """
    from rich.console import Console
    from rich.progress import Progress

    from pixel160k.export import export as write
    from pixel160k.shards import read_manifest

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"export {to}", total=read_manifest(shards)["samples"])
        counts = write(shards, to, out, fps, lambda samples: bar.update(task, completed=samples))
    click.echo(f"{', '.join(f'{count} {what}' for what, count in counts.items())} in {out}")


@main.command()
@click.option("--shards", type=_directory, required=True, help="Output of `pixelcli build-shards`.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The HTML file to write.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="At most this many episodes.")
def browse(shards: Path, out: Path, limit: int) -> None:
    """Write one self-contained page that shows each episode with its masks, prompts, scores and reason.

    \b
    pixelcli browse --shards shards --out browse.html
    """
    from pixel160k.browse_page import write_page

    episodes = write_page(shards, out, limit=limit)
    click.echo(f"{episodes} episodes; open {out} in a browser")


@main.command()
@click.option("--shards", type=_directory, required=True, help="Output of `pixelcli build-shards`.")
@click.option("--out", type=_directory, required=True, help="Where stats.png and stats.json go.")
def stats(shards: Path, out: Path) -> None:
    """Draw what shards hold: skills, objects, reasons, scores, lengths, actions (needs the extra [notebook]).

    \b
    pixelcli stats --shards shards --out stats
    """
    from rich.console import Console
    from rich.progress import Progress

    from pixel160k.data_figure import write_figure
    from pixel160k.shards import read_manifest

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("stats", total=read_manifest(shards)["episodes"])
        numbers = write_figure(shards, out, lambda episodes: bar.update(task, completed=episodes))
    click.echo(f"{numbers['episodes']} episodes: {out / 'stats.png'}, {out / 'stats.json'}")


@main.command()
@click.option("--checkpoint", required=True, help="Folder or hub id of a trained policy.")
@click.option("--image", "image_file", type=_file, required=True, help="What the robot's camera sees.")
@click.option("--instruction", required=True, help="What to do.")
@click.option("--point", "points", multiple=True, metavar="X,Y", help="A place in pixels; repeatable, as are the next.")
@click.option("--line", "lines", multiple=True, metavar="X,Y,X,Y...", help="A line through places.")
@click.option("--region", "regions", multiple=True, metavar="X0,Y0,X1,Y1", help="A box.")
@click.option("--mask", "mask_files", type=_file, multiple=True, help="The object's pixels: an image, black outside.")
@click.option("--state", metavar="NUMBERS", help="Proprioception, separated by commas; read by policies over π0.")
@click.option("--dataset", help="Whose robot acts: a key of the checkpoint's statistics, as bridge_orig.")
@click.option("--json", "as_json", is_flag=True, help="Print the actions as JSON.")
@click.option("--draw", "drawing", type=click.Path(path_type=Path, dir_okay=False), help="Write what was pointed at.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
def predict(
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
    import json

    from PIL import Image
    from rich.console import Console

    from model.predict import action_table, read_image, read_mask, read_prompts, read_state
    from pixel160k.painting import paint
    from train.checkpoints import load_policy

    image, prompts = read_image(image_file), read_prompts(points, lines, regions)
    masks = [read_mask(file) for file in mask_files]
    policy = load_policy(checkpoint).to(device)
    actions = policy.predict_action(image, instruction, masks, prompts, dataset, read_state(state))
    if drawing is not None:
        Image.fromarray(paint(image, masks, prompts)).save(drawing)
    if as_json:
        click.echo(json.dumps(actions.tolist()))
    else:
        Console().print(action_table(actions))


@main.command()
@click.option("--stage", type=click.Choice(["pretrain", "cat", "pue"]), help="[default: the recipe's]")
@click.option("--shards", multiple=True, required=True, help="Output of `pixelcli build-shards`; repeatable.")
@click.option("--out", type=_directory, required=True, help="Where checkpoints and logs go.")
@click.option("--recipe", default="tiny-sample", show_default=True, help="A shipped recipe's name, or a YAML file.")
@click.option("--init", help="Start from this checkpoint, run, hub id or preset [default: the recipe's].")
@click.option("--max-steps", type=click.IntRange(1), help="Steps in all [default: the recipe's].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one setting; may be repeated.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
def train(
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

    Several processes or machines: start it with torchrun or accelerate launch, as the recipes show.

    \b
    pixelcli train --stage cat --recipe cat-openvla --shards shards --out runs/cat
    pixelcli train --stage pue --recipe pue-openvla --shards shards --init runs/cat --out runs/pue
    pixelcli train --stage pue --recipe pue-openvla --shards shards --init runs/cat --out runs/pue --resume
    """
    from train.run import train as run
    from train.settings import load_recipe

    chosen = {"stage": stage, "init": init, "max_steps": max_steps}
    chosen_here = tuple(f"{key}={value}" for key, value in chosen.items() if value is not None)
    checkpoint = run(load_recipe(recipe, (*overrides, *chosen_here)), shards, out, resume)
    click.echo(f"the last checkpoint: {checkpoint}")


@main.command()
@click.option("--checkpoint", type=_directory, required=True, help="A checkpoint of cat or pue, or the run.")
@click.option("--out", type=_directory, required=True, help="A new folder for the whole policy.")
def merge(checkpoint: Path, out: Path) -> None:
    """Make a checkpoint of training one policy that stands alone, the LoRA folded into the weights.

    \b
    pixelcli merge --checkpoint runs/pue --out policy
    """
    from train.checkpoints import merge as make_whole

    make_whole(checkpoint, out)
    click.echo(f"{out} holds the whole policy; act with: pixelcli predict --checkpoint {out}")


@main.group()
def evaluate() -> None:
    """Measure annotations and policies."""


@evaluate.command("annotations")
@click.option("--annotations", type=_directory, required=True, help="Output of `pixelcli annotate`.")
@click.option(
    "--truth", type=click.Path(path_type=Path, dir_okay=False), help="truth.parquet [default for sample: its own]."
)
@click.option("--data-dir", type=_directory, help="The annotated RLDS files [default: where they were then].")
@click.option("--out", type=_directory, required=True, help="Where evaluation.json and worst.html go.")
def evaluate_annotations(annotations: Path, truth: Path | None, data_dir: Path | None, out: Path) -> None:
    """Compare annotations with the truth of a simulated data set.

    \b
    pixelcli evaluate annotations --annotations annotations --out evaluation
    """
    from rich.console import Console

    from annotate.sources.sample import default_directory
    from evaluation.annotation_report import summary_tables
    from evaluation.annotations import evaluate as compare

    for table in summary_tables(compare(annotations, truth or default_directory() / "truth.parquet", out, data_dir)):
        Console().print(table)
    click.echo(f"the worst cases: {out / 'worst.html'}")


@evaluate.command("actions")
@click.option("--checkpoint", required=True, help="A policy, or a run or checkpoint of training.")
@click.option("--shards", type=_directory, required=True, help="Output of `pixelcli build-shards`.")
@click.option("--split", help="Only episodes of this split [default: those that training held out].")
@click.option(
    "--prompts",
    default="none,point,mask,pixel_mask,wrong_point,wrong_mask,wrong_pixel_mask",
    show_default=True,
    help="What is pointed at: none, point, line, region, mask, pixel_mask, and each with wrong_ before it.",
)
@click.option("--out", type=_directory, required=True, help="Where evaluation.json and actions.html go.")
@click.option("--device", default="cpu", show_default=True, help="Of the policy: cpu, cuda, cuda:1, mps.")
def evaluate_actions(checkpoint: str, shards: Path, split: str | None, prompts: str, out: Path, device: str) -> None:
    """Compare a policy's actions with the demonstrators' on held-out episodes, with and without pointing.

    \b
    pixelcli evaluate actions --checkpoint runs/pue --shards shards --out evaluation
    """
    from rich.console import Console
    from rich.progress import track

    from evaluation.action_report import summary_table
    from evaluation.actions import choose_episodes
    from evaluation.actions import evaluate as compare
    from pixel160k.episodes import ShardDirectory
    from train.checkpoints import load_policy, recipe_of

    recipe = recipe_of(checkpoint)
    if recipe is None and split is None:
        raise click.UsageError(f"{checkpoint} does not say what it was trained on; name the episodes with --split")
    policy = load_policy(checkpoint).to(device)
    directory = ShardDirectory(shards, chunk=policy.settings.chunk)
    episodes = choose_episodes(directory, recipe, split)
    console = Console(stderr=True)
    result = compare(
        policy, directory, episodes, prompts.split(","), out, lambda ids: track(ids, "episodes", console=console)
    )
    Console().print(summary_table(result))
    click.echo(f"the page: {out / 'actions.html'}")


@main.command()
@click.option("--suite", "suites", multiple=True, help="libero_object, libero_spatial, libero_goal; repeatable.")
@click.option("--two-alike", is_flag=True, help="Instead: two alike bowls, each the target of one demonstration.")
@click.option("--episodes", type=click.IntRange(1), required=True, help="Successful demonstrations to record.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws tasks and initial states.")
@click.option(
    "--files", type=click.IntRange(1), default=1, show_default=True, help="TFRecord files to spread them over."
)
@click.option("--hz", type=int, default=5, show_default=True, help="5 thins the 20 Hz of the simulator; 20 keeps all.")
@click.option("--name", default="", help="The data set's name [default: SUITE_simulated, or libero_two_alike].")
@click.option("--out", type=_directory, required=True, help="A new or empty directory.")
def sample(
    suites: tuple[str, ...], two_alike: bool, episodes: int, seed: int, files: int, hz: int, name: str, out: Path
) -> None:
    """Record scripted demonstrations in LIBERO as RLDS, with truth beside them (needs the extra [sim]).

    With --two-alike, only a visual prompt can say which of two bowls is meant; a fifth of the episodes, in other initial
    states, are the split val.

    \b
    pixelcli sample --suite libero_object --episodes 20 --seed 1 --out recorded
    pixelcli sample --two-alike --episodes 100 --seed 1 --out recorded
    """
    from rich.console import Console
    from rich.progress import Progress

    from simulation.recording import record_sample
    from simulation.two_alike import record_two_alike

    if bool(suites) == two_alike:
        raise click.UsageError("name either the suites with --suite, or --two-alike")
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("record", total=episodes)

        def show(done: int, _: int) -> None:
            bar.update(task, completed=done)

        if two_alike:
            summary = record_two_alike(episodes, seed, out, name, files, hz, show)
        else:
            summary = record_sample(list(suites), episodes, seed, out, name, files, hz, show)
    counts = summary.total()
    click.echo(
        f"{counts.recorded} episodes recorded; {counts.failed_attempts} of {counts.attempts} attempts failed, "
        f"{counts.failed_episodes} scenes were given up; annotate with: pixelcli annotate --src libero --data-dir {out}"
    )


@main.command()
def doctor() -> None:
    """Say what is installed, which extras work, which devices there are, and how to get what is missing.

    \b
    pixelcli doctor
    """
    from rich.console import Console
    from rich.table import Table

    from pixel160k.doctor import examine

    findings = examine()
    report = Table("", "", "found", "to get it", show_lines=True)
    for finding in findings:
        mark = "[green]ok[/]" if finding.well else "[red]no[/]"
        report.add_row(
            finding.subject.replace("[", r"\["),
            mark,
            finding.found.replace("[", r"\["),
            "" if finding.well else finding.remedy.replace("[", r"\["),
        )
    Console().print(report)
    if not all(finding.well for finding in findings if finding.subject in ("Python", "core", "libGL", "libglib-2.0")):
        raise click.ClickException("the core does not work on this machine; the table says what to install")


if __name__ == "__main__":
    main()
