"""Training: what moves and what does not, resuming to the bit, and failures that are loud and cheap."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

import forked  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from full_disk import files_of_at_most  # noqa: E402
from numbered_shards import write_shards  # noqa: E402
from openvla_format import Sizes, Tower, random_weights, write_checkpoint  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_pi0 import SETTINGS as PI0_SIZES  # noqa: E402
from transformers import PI0ForConditionalGeneration  # noqa: E402

from cli import main  # noqa: E402
from model.backbones.pi0 import pi0_config  # noqa: E402
from model.policy import PixelVLA  # noqa: E402
from model.processor import Observation  # noqa: E402
from model.tokenizer import byte_tokenizer  # noqa: E402
from pixel160k.format.masks import TARGET, box_of  # noqa: E402
from pixel160k.format.prompts import PIXEL_MASK, PROMPT_KINDS  # noqa: E402
from pixel160k.read.episodes import ShardDirectory  # noqa: E402
from train import checkpoints, run, stages  # noqa: E402
from train.data import draw_prompts, is_trained_on, masks_and_prompts  # noqa: E402
from train.settings import RECIPES, PromptMixture, load_recipe  # noqa: E402
from train.stream import HeldOut, open_stream, statistics_of  # noqa: E402

SMALL = (
    "model=[backbone.vision.image_size=48, backbone.vision.patch_size=16]",
    "held_out_share=0.2",
    "batch_size=2",
    "evaluate_batches=1",
    "report_to=[]",
)
QUICK = (*SMALL, "max_steps=2", "save_every=2", "evaluate_every=2", "warmup_steps=0", "workers=0", "log_every=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four shards of numbered pictures, most episodes accepted; nearly all steps can be pointed at."""
    return str(write_shards(tmp_path_factory.mktemp("train") / "shards", [[12] * 4] * 4, close_step=11))


def train(shards, out, *overrides, recipe="tiny-sample", resume=False):
    return run.train(load_recipe(recipe, (*QUICK, *overrides)), [shards], Path(out), resume)


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """The three stages in a row, two steps each: the folders of their runs."""
    folder = tmp_path_factory.mktemp("runs")
    train(shards, folder / "pretrain")
    train(shards, folder / "cat", "stage=cat", f"init={folder / 'pretrain'}")
    train(shards, folder / "pue", "stage=pue", f"init={folder / 'cat'}", "learning_rate=0.01")
    return folder


def observe(shards):
    directory = ShardDirectory(shards)
    return directory.sample(directory.episode_ids[0], 0)


def act(policy, shards, **pointing):
    sample = observe(shards)
    return policy.predict_action(sample.image, sample.instruction, dataset=sample.dataset, **pointing)


# --- what is trained


def test_cat_moves_the_action_decoder_alone(trained):
    before, after = (checkpoints.load_policy(trained / stage).state_dict() for stage in ("pretrain", "cat"))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"action_decoder"}


def test_cat_differentiates_nothing_before_the_queries():
    """As one pass that could learn everything: the same loss and gradients, and a small part of its saved activations."""
    policy = PixelVLA.start("tiny", {}).train()
    stages.prepare(policy, load_recipe("tiny-sample", ("stage=cat",)))
    images = [np.full((64, 64, 3), grey, np.uint8) for grey in (50, 200)]
    texts = ("pick up the cup", "open the drawer, then put the black bowl into it")  # so that one of them is padded
    batch = policy.processor([Observation(*seen) for seen in zip(images, texts, strict=True)])
    actions = torch.linspace(-1, 1, 2 * 8 * 7).view(2, 8, 7)
    batch = batch._replace(actions=actions, action_mask=torch.ones(2, 8, dtype=torch.bool))

    weights = {parameter.data_ptr() for parameter in policy.parameters()}

    def learn():
        saved = {}

        def save(tensor):
            saved[tensor.data_ptr()] = 0 if tensor.data_ptr() in weights else tensor.nbytes
            return tensor

        policy.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = policy(batch).loss
        loss.backward()
        return loss, [parameter.grad for parameter in policy.action_decoder.parameters()], sum(saved.values())

    loss, gradients, saved = learn()
    policy.backbone.projector.requires_grad_(True)
    expected_loss, expected, saved_before = learn()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    assert saved < 0.2 * saved_before, (saved, saved_before)


def test_a_step_is_the_same_in_one_batch_or_in_several(tmp_path):
    """Actions past an episode's end do not count, so that small batches count by the actions that they have."""
    shards = str(write_shards(tmp_path / "short", [[3, 5]] * 3))  # shorter than a chunk
    seen = []
    for name, *sizes in (("one", "batch_size=6"), ("several", "batch_size=1", "accumulation=6")):
        train(shards, tmp_path / name, "max_steps=1", "colour_jitter=false", *sizes)
        seen.append(losses(tmp_path / name)[1])
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_pue_moves_adapters_and_modules_alone(trained, shards):
    settings = load_recipe("tiny-sample", (*QUICK, "stage=pue", f"init={trained / 'cat'}"))
    policy, _ = run.build(settings, {}, resumed=checkpoints.latest(trained / "pue"))
    started, _ = run.build(settings, {}, resumed=None)
    before, after = started.state_dict(), policy.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"backbone", "pixel_encoder", "prompt_encoder", "action_decoder"}
    assert all(".lora_" in name for name in moved if name.startswith("backbone."))
    adapted = set(stages.lora_layers(policy))
    assert any("q_proj" in name for name in adapted) and any("down_proj" in name for name in adapted)
    assert not any("lm_head" in name for name in adapted)
    assert not any(".lora_" in name for name in after if "vision" in name or "projector" in name.split(".")[1])
    assert "adapters 0 of" not in stages.describe(policy) and "backbone 0 of" in stages.describe(policy)


def test_pue_learns_every_module_around_the_backbone():
    policy = PixelVLA.start("tiny", {}, ["proprioception=true"])
    stages.prepare(policy, load_recipe("tiny-sample", ("stage=pue",)))
    frozen = {name.split(".")[0] for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone"} and "state encoder" in stages.describe(policy)


def test_a_policy_that_cannot_be_written_is_one_line(trained, tmp_path):
    with files_of_at_most(100_000):
        result = CliRunner().invoke(
            main, ["merge", "--checkpoint", str(trained / "pue"), "--out", str(tmp_path / "out")]
        )
    assert result.exit_code == 1 and "File too large" in result.output, result.output
    assert not (tmp_path / "out").exists()


def test_merged_predictions_are_those_of_the_adapter(trained, shards, tmp_path):
    settings = load_recipe("tiny-sample", (*QUICK, "stage=pue", f"init={trained / 'cat'}"))
    statistics = ShardDirectory(shards).statistics
    policy, _ = run.build(settings, {"drawn": statistics}, resumed=checkpoints.latest(trained / "pue"))
    with_adapter = act(policy.eval(), shards)
    result = CliRunner().invoke(
        main, ["merge", "--checkpoint", str(trained / "pue"), "--out", str(tmp_path / "policy")], catch_exceptions=False
    )
    assert result.exit_code == 0
    merged = PixelVLA.from_pretrained(tmp_path / "policy")
    np.testing.assert_allclose(act(merged, shards), with_adapter, atol=1e-5)
    np.testing.assert_array_equal(act(merged, shards), act(checkpoints.load_policy(trained / "pue"), shards))
    with pytest.raises(InputError, match="no checkpoint of cat or pue"):
        checkpoints.merge(trained / "pretrain", tmp_path / "again")


def test_a_checkpoint_holds_everything_and_no_pickle_of_ours(trained):
    files = {path.name for path in checkpoints.latest(trained / "pue").iterdir()}
    assert files == {
        "adapter", "config.json", "dataset_statistics.json", "modules.safetensors", "recipe.yaml", "tokenizer.json",
        "tokenizer_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "progress-0.json", "trainer_state.json",
    }  # fmt: skip
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with torch.serialization.safe_globals(
            [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
        ):
            torch.load(checkpoints.latest(trained / "pue") / name, weights_only=True)


def tiny_openvla(folder):
    sizes = Sizes(
        image=56, dino=Tower(32, 3, 2, 4.0), siglip=Tower(24, 3, 2, 4.0), hidden=32, layers=2, heads=2, kv_heads=2,
        mlp=48, vocab=320, pad=0,
    )  # fmt: skip
    write_checkpoint(folder, sizes, random_weights(sizes))
    byte_tokenizer().save_pretrained(folder)
    return folder


def tiny_pi0(folder):
    sizes = PI0_SIZES.model_copy(update={"vocab_size": 320})
    torch.manual_seed(0)
    PI0ForConditionalGeneration(pi0_config(sizes)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_runs(recipe, shards, tmp_path):
    """Two steps of each recipe as it is shipped, its models exchanged for tiny ones of the same kind."""
    changes = ["report_to=[]", "workers=0", "held_out_share=0.2", "evaluate_batches=1", "batch_size=2"]
    if recipe.endswith(("openvla", "pi0")):
        init = (tiny_pi0 if recipe.endswith("pi0") else tiny_openvla)(tmp_path / "vla")
        if recipe.startswith("pue"):
            run.train(load_recipe("cat-openvla", (*changes, f"init={init}", "max_steps=2")), [shards], tmp_path / "cat")
            init = tmp_path / "cat"
        changes.append(f"init={init}")
    else:
        changes.append("model=[backbone.vision.image_size=48, backbone.vision.patch_size=16]")
        if recipe == "small-sample":  # its language model is a package of its own: the same recipe with the tiny one
            changes.append("init=tiny")
    result = CliRunner().invoke(
        main,
        ["train", "--recipe", recipe, "--shards", shards, "--out", str(tmp_path / "out"), "--max-steps", "2"]
        + [part for change in changes for part in ("--set", change)],
        catch_exceptions=False,
    )
    assert result.exit_code == 0 and "checkpoint-2" in result.output
    sample = observe(shards)
    policy = checkpoints.load_policy(tmp_path / "out")
    actions = policy.predict_action(sample.image, "pick it up", dataset="drawn", state=sample.state)
    assert actions.shape == (8, 7) and np.isfinite(actions).all()


def test_a_run_says_in_plain_lines_how_it_goes(shards, tmp_path, capsys):
    train(shards, tmp_path / "out", "warmup_steps=2")
    said = capsys.readouterr().out.splitlines()
    assert "the learning rate grows through all 2 steps and does not reach learning_rate: warmup_steps is 2" in said
    for line in (r"step 1: loss 0\.\d{4}, learning rate 0\.0e\+00, 2 samples, \d+\.\d% of the time waiting for data",
                 r"step 2: held-out loss 0\.\d{4}, 4 samples, .*"):  # fmt: skip
        assert any(re.fullmatch(line, one.strip()) for one in said), said
    assert not any("grad_norm" in one or "train_runtime" in one for one in said)


def test_each_way_of_pointing_is_trained_alone_too(shards):
    """A user gives a mask, or a prompt, or both, or neither: none of the four may be new to the policy."""
    sample, generator = observe(shards), np.random.default_rng(0)
    given = Counter()
    for _ in range(2000):
        masks, prompts = draw_prompts(sample, PromptMixture(), generator)
        given[len(masks), len(prompts)] += 1
        assert all(prompt.kind in PROMPT_KINDS for prompt in prompts)
    shares = {"neither": given[0, 0], "mask": given[1, 0], "prompt": given[0, 1], "both": given[1, 1]}
    assert sum(shares.values()) == 2000
    np.testing.assert_allclose([share / 2000 for share in shares.values()], [0.5, 0.125, 0.25, 0.125], atol=0.03)


def test_nothing_points_at_the_place_that_the_object_left(shards):
    """After the close V and p_t go on where tracks carry them along, and end where there are none."""
    first = observe(shards)
    closed = first.metadata.close_step
    labels = np.zeros_like(first.labels)
    labels[20:25, 1:9] = TARGET
    generator = np.random.default_rng(0)

    def shown(step, valid, labels=labels):
        metadata = replace(first.metadata, step=step, object_mask_valid=valid)
        sample = replace(first, step=step, labels=labels, metadata=metadata)
        drawn = [draw_prompts(sample, PromptMixture(text_only=0), generator) for _ in range(200)]
        return {kind: masks_and_prompts(sample, kind) for kind in (*PROMPT_KINDS, PIXEL_MASK)}, drawn

    by_kind, drawn = shown(closed, valid=False)
    assert all(one == ([], []) for one in (*by_kind.values(), *drawn))
    by_kind, drawn = shown(closed, valid=True)
    np.testing.assert_array_equal(by_kind[PIXEL_MASK][0][0], labels == TARGET)
    (at,), (along,), (box,), (mask,) = (by_kind[kind][1] for kind in PROMPT_KINDS)
    for x, y in (*at.coordinates, *along.coordinates):
        assert labels[int(y), int(x)] == TARGET
    assert tuple(box.coordinates.ravel()) == box_of(labels == TARGET)
    np.testing.assert_array_equal(mask.mask, labels == TARGET)
    assert {prompt.kind for _, prompts in drawn for prompt in prompts} == set(PROMPT_KINDS)
    by_kind, drawn = shown(closed, valid=True, labels=np.zeros_like(labels))  # followed, and hidden
    assert not by_kind[PIXEL_MASK][0][0].any() and all(by_kind[kind] == ([], []) for kind in PROMPT_KINDS)
    by_kind, _ = shown(closed - 1, valid=False)
    own = [next(prompt for prompt in first.prompts if prompt.kind == kind) for kind in PROMPT_KINDS]
    assert [by_kind[kind][1] for kind in PROMPT_KINDS] == [[prompt] for prompt in own]
    assert by_kind[PIXEL_MASK][0][0] is own[-1].mask


def test_fewer_samples_that_nothing_marks_leave_all_the_others(tmp_path):
    """Which are left depends on the epoch and the seed; other stages, which point at nothing, train on everything."""
    shards = str(write_shards(tmp_path / "shards", [[20] * 4] * 2, close_step=5))
    directory = ShardDirectory(shards)
    first = observe(shards)
    marked, unmarked = directory.sample(first.episode_id, 4), directory.sample(first.episode_id, 5)

    def trained_on(sample, epoch, *overrides):
        settings = load_recipe("tiny-sample", ("stage=pue", "prompts.unmarked=0.3", *overrides))
        return [is_trained_on(replace(sample, key=f"{number}"), epoch, settings) for number in range(1000)]

    assert all(trained_on(marked, 0)) and sum(trained_on(unmarked, 0)) == pytest.approx(300, abs=45)
    assert all(trained_on(unmarked, 0, "stage=cat")) and all(trained_on(unmarked, 0, "prompts.unmarked=1"))
    seen = trained_on(unmarked, 0)
    assert trained_on(unmarked, 0) == seen != trained_on(unmarked, 1) and seen != trained_on(unmarked, 0, "seed=1")

    settings = load_recipe("tiny-sample", (*QUICK, "stage=pue", "prompts.unmarked=0.000001"))
    processor = PixelVLA.start("tiny", statistics_of([shards]), settings.model, seed=0).processor
    keys = [key for batch in islice(open_stream(processor, settings, [shards]), 8) for key in batch["keys"]]
    assert len(keys) == 16 and all(int(key.rpartition("-")[2]) < 5 for key in keys)


def test_the_held_out_loss_is_of_what_the_stage_trains(shards):
    """In pue with prompts, always the same; or how far pointing is learned would not show."""

    def seen(stage):
        settings = load_recipe("tiny-sample", (*QUICK, f"stage={stage}", "evaluate_batches=4"))
        processor = PixelVLA.start("tiny", statistics_of([shards]), settings.model, seed=0).processor
        held_out = HeldOut(processor, settings, [shards])
        first, again = ([one["batch"] for one in held_out] for _ in range(2))
        for batch, same in zip(first, again, strict=True):
            for tensor, other in zip(batch, same, strict=True):
                torch.testing.assert_close(tensor, other, rtol=0, atol=0)
        return sum(int(batch.prompt_used.sum() + batch.mask_used.sum()) for batch in first)

    assert seen("cat") == 0
    assert seen("pue") > 0


# --- resuming


LONG = (
    *SMALL,
    "max_steps=20",
    "save_every=5",
    "evaluate_every=10",
    "log_every=1",
    "keep=3",
    "batch_size=2",
    "workers=1",
)


def words_of(shards, out, steps, overrides, *more):
    """What `pixelcli` is told to train."""
    settings = [part for override in overrides for part in ("--set", override)]
    return ["train", "--shards", shards, "--out", str(out), "--max-steps", str(steps), *more, *settings]


def losses(out):
    state = json.loads((checkpoints.latest(out) / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "cat", "pue"])
def test_a_killed_run_goes_on_to_the_bit(stage, trained, shards, tmp_path):
    """On two data sets that are mixed by weights; in another process than the one that was killed."""
    init = {"pretrain": "tiny", "cat": str(trained / "pretrain"), "pue": str(trained / "cat")}[stage]
    both = [shards, str(write_shards(tmp_path / "other", [[6] * 4] * 2, dataset="other"))]
    changes = (*LONG, f"stage={stage}", f"init={init}", "mixture.drawn=1", "mixture.other=2")
    settings = load_recipe("tiny-sample", changes)
    run.train(settings, both, tmp_path / "whole")
    words = words_of(shards, tmp_path / "killed", 20, changes, "--shards", both[1])
    killed = forked.start(words, tmp_path / "told")
    while not (tmp_path / "killed" / "checkpoint-10").exists():
        assert killed.is_alive(), (tmp_path / "told").read_text()[-2000:]
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert checkpoints.latest(tmp_path / "killed").name != "checkpoint-20"
    run.train(settings, both, tmp_path / "killed", resume=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 20
    for name in ("modules.safetensors", "adapter/adapter_model.safetensors", "model.safetensors"):
        first, second = (tmp_path / folder / "checkpoint-20" / name for folder in ("whole", "killed"))
        assert first.exists() == second.exists()
        if first.exists():
            assert first.read_bytes() == second.read_bytes()


# What a run of several processes leaves alive; such a thread can abort the process as it ends.
COUNTED = """
from pathlib import Path
from cli import main
main(standalone_mode=False)
threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
left = [name for name in threads if "gloo" in name]
print(f"{', '.join(left) or 'no'} thread of gloo is left", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "pue"])
def test_two_processes_train_one_policy(stage, trained, shards, tmp_path):
    overrides = [*QUICK, f"stage={stage}", "init=tiny" if stage == "pretrain" else f"init={trained / 'cat'}"]
    folder = tmp_path / "of_the_user"  # with files of our names
    folder.mkdir()
    for name in ("cli.py", "train.py"):
        (folder / name).write_text("raise SystemExit('this is another program')")
    scripts = Path(sys.executable).parent
    command = [scripts / "torchrun", "--nproc-per-node", "2", "--standalone", "--no-python", scripts / "pixelcli"]
    command += words_of(shards, tmp_path / "out", 2, overrides)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    progress = [
        json.loads((tmp_path / "out" / "checkpoint-2" / f"progress-{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert [one["account"]["samples"] for one in progress] == [4, 4]
    assert "8 samples" in done.stdout
    checkpoints.load_policy(tmp_path / "out")
    counted = tmp_path / "counted.py"
    counted.write_text(COUNTED)
    told = forked.launch(words_of(shards, tmp_path / "out", 4, overrides, "--resume"), counted)
    assert "16 samples" in told
    assert told.count("no thread of gloo is left") == 2


# --- failures


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=pue"], "pue starts from a checkpoint of cat"),
        (["stage=pue", "init={runs}/pretrain"], "is one of pretrain: run pixelcli train --stage cat first"),
        (["stage=cat", "init={runs}/pue"], "is a checkpoint of pue"),
        (["init=nowhere"], "--init one of openvla-7b, pi0, small, tiny"),
        (["stage=cat", "init=/nowhere/at/all"], "/nowhere/at/all"),
        (["learning_rates=1"], "did you mean 'learning_rate'"),
        (["stage=pue", "init={runs}/cat", "lora.targets=[nothing]"], "fit no layer of the language model"),
        (["prompts.point=0", "prompts.line=0", "prompts.region=0", "prompts.mask=0"], "set text_only to 1"),
        (["held_out_share=1"], "every sample of these shards is held out"),
        (["stage=cat", "init={runs}/pretrain", "gradient_checkpointing=true"], "--set gradient_checkpointing=false"),
        (["fsdp=true"], "fsdp spreads a policy over several processes, .*torchrun"),
    ],
)
def test_what_cannot_be_is_said_before_it_begins(overrides, message, trained, shards, tmp_path):
    overrides = [override.format(runs=trained) for override in overrides]
    with pytest.raises(InputError, match=message) as error:
        train(shards, tmp_path / "out", *overrides)
    assert "\n" not in str(error.value)
    assert checkpoints.latest(tmp_path / "out") is None


def test_an_optimizer_of_an_earlier_version_is_refused_in_one_line(shards, tmp_path):
    train(shards, tmp_path / "out")
    file = checkpoints.latest(tmp_path / "out") / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    state["param_groups"] = state["param_groups"][:1]  # as before there were groups with another rate
    torch.save(state, file)
    with pytest.raises(InputError, match=r"checkpoint-2 was written by an earlier version.*begin a new one") as error:
        train(shards, tmp_path / "out", "max_steps=4", resume=True)
    assert "\n" not in str(error.value)


def test_a_run_is_never_begun_over_another(trained, shards, tmp_path):
    with pytest.raises(InputError, match="go on with --resume or choose another --out"):
        train(shards, trained / "pretrain")
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        train(shards, tmp_path, resume=True)


def test_missing_statistics_and_other_formats_are_refused(shards, tmp_path):
    copy = write_shards(tmp_path / "copy", [[4]])
    (copy / "dataset_statistics.json").unlink()
    with pytest.raises(InputError, match="holds no statistics of drawn"):
        train(str(copy), tmp_path / "out")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        train(str(copy), tmp_path / "out")


def test_the_recipe_of_an_older_checkpoint_is_read(trained, tmp_path):
    recipe = checkpoints.latest(trained / "pretrain") / "recipe.yaml"
    (tmp_path / "recipe.yaml").write_text(recipe.read_text("utf-8") + "\nshuffle_buffer: 512\n", "utf-8")
    assert checkpoints.recipe_of(tmp_path) == checkpoints.recipe_of(trained / "pretrain")
    (tmp_path / "recipe.yaml").write_text(recipe.read_text("utf-8") + "\nshuffle: 512\n", "utf-8")
    with pytest.raises(InputError, match="unknown setting 'shuffle'"):
        checkpoints.recipe_of(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(shards, tmp_path, monkeypatch):
    train(shards, tmp_path / "out")
    good = load_file(checkpoints.latest(tmp_path / "out") / "model.safetensors")
    monkeypatch.setattr("model.policy.l1_loss", lambda predicted, *_: predicted.sum() * float("nan"))
    with pytest.raises(InputError, match=r"the loss is nan at step 3, in the batch of drawn-train-\d+") as error:
        train(shards, tmp_path / "out", "max_steps=9", resume=True)
    assert "\n" not in str(error.value)
    assert checkpoints.latest(tmp_path / "out").name == "checkpoint-2"
    kept = load_file(checkpoints.latest(tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(kept[name], good[name]) for name in good)


def test_a_full_gpu_is_one_line_that_names_the_way_out(shards, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")

    monkeypatch.setattr(PixelVLA, "forward", full)
    with pytest.raises(
        InputError, match=r"memory is full at step 1 with 2 samples.*2\.00 GiB.*gradient_checkpoin"
    ) as error:
        train(shards, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_old_checkpoint(shards, tmp_path):
    train(shards, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "checkpoint-2").rglob("*") if path.is_file()}
    weights = (tmp_path / "out" / "checkpoint-2" / "model.safetensors").stat().st_size
    for largest, says in ((weights // 2, "File too large"), (weights + 10_000, "torch cannot write")):  # then AdamW's
        with (
            files_of_at_most(largest),
            pytest.raises(InputError, match=f"checkpoint-4 cannot be written .*{says}") as error,
        ):
            train(shards, tmp_path / "out", "max_steps=4", "keep=1", resume=True)
        assert "\n" not in str(error.value)
        assert {path: path.read_bytes() for path in before} == before
    mine = shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "out" / "checkpoint-2-best1")
    train(shards, tmp_path / "out", "max_steps=4", "keep=1", "log_every=2", "save_every=3", resume=True)
    assert set((tmp_path / "out").glob("checkpoint-*")) == {tmp_path / "out" / "checkpoint-4", mine}
    assert list(losses(tmp_path / "out")) == [1, 2, 4]
