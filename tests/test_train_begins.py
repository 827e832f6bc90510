"""What a run says before it begins, where it ends, and after it was moved; several data sets in one run."""

import json
import os
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

import numbered_shards  # noqa: E402
import test_train  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from numbered_shards import write_shards  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_train import QUICK, tiny_openvla, tiny_pi0, train  # noqa: E402

from cli import main  # noqa: E402
from model.policy import PixelVLA  # noqa: E402
from train import checkpoints, checks, run, stages  # noqa: E402
from train.data import Collator  # noqa: E402
from train.mixture import check_mixture, open_held_out  # noqa: E402
from train.settings import load_recipe, shipped_recipes  # noqa: E402
from train.stream import open_stream, statistics_of  # noqa: E402
from train.trainer import PolicyTrainer  # noqa: E402

shards = test_train.shards


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """pretrain, cat and pue in a row, one step each, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    one = ("max_steps=1", "save_every=1")
    train(shards, folder / "pretrain", *one)
    train(shards, folder / "cat", *one, "stage=cat", f"init={folder / 'pretrain'}")
    train(shards, folder / "pue", *one, "stage=pue", f"init={folder / 'cat'}")
    return folder


@pytest.fixture
def no_policy(monkeypatch):
    """Whatever is said has to be said before a policy is built."""

    def build(*_):
        raise AssertionError("a policy was built")

    monkeypatch.setattr(run, "build", build)


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


# --- where a run ends and goes


def test_a_finished_run_says_so_and_writes_nothing(runs, shards, no_policy):
    before = contents(runs)
    arguments = ["train", "--stage", "cat", "--init", str(runs / "pretrain"), "--shards", shards, "--out"]
    arguments += [
        str(runs / "cat"),
        "--resume",
        *(part for one in QUICK for part in ("--set", one)),
        "--max-steps",
        "1",
    ]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "nothing is left to do" in result.output and "checkpoint-1 has all 1 steps" in result.output
    assert contents(runs) == before


def test_runs_are_moved_together(runs, shards, tmp_path):
    """A base beside its run is found again, an older absolute one is read, and a moved run goes on."""
    config = json.loads((runs / "pue" / "checkpoint-1" / "config.json").read_text())
    assert config["base"] == "../pretrain/checkpoint-1"
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs, moved)
    for part in ("cat", "pue"):
        base, _ = checkpoints.stands_on(moved / part / "checkpoint-1"), checkpoints.load_policy(moved / part)
        assert base == str((moved / "pretrain" / "checkpoint-1").resolve())
    train(shards, moved / "pue", "max_steps=2", "stage=pue", f"init={moved / 'cat'}", resume=True)
    assert checkpoints.latest(moved / "pue").name == "checkpoint-2"
    with pytest.raises(InputError, match=r"init was .* and is now"):  # the same step on another base
        train(shards, moved / "pue", "max_steps=3", "stage=pue", f"init={runs / 'cat'}", resume=True)
    config["base"] = str(runs / "pretrain" / "checkpoint-1")
    (moved / "pue" / "checkpoint-2" / "config.json").write_text(json.dumps(config))
    assert checkpoints.stands_on(moved / "pue" / "checkpoint-2") == config["base"]
    assert checkpoints.seen_from(tmp_path / "out", "openvla/openvla-7b") == "openvla/openvla-7b"
    assert checkpoints.seen_from(tmp_path / "a" / "out", str(moved)) == str(moved)


def test_a_run_goes_on_in_as_many_processes_and_on_the_same_backbone(runs, shards, tmp_path, no_policy, monkeypatch):
    """The run that it stands on may have gone on meanwhile: its last checkpoint is another."""
    copied = shutil.copytree(runs, tmp_path / "copied")
    last = copied / "cat" / "checkpoint-1"
    (last / "recipe.yaml").write_text((last / "recipe.yaml").read_text().replace(str(runs), "~/copied"))
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(copied / "pretrain" / "checkpoint-1", copied / "pretrain" / "checkpoint-2")
    begun = ("max_steps=2", "stage=cat", "init=~/copied/pretrain")
    before = copied / "pretrain" / "checkpoint-1"
    with pytest.raises(InputError, match=f"stands on {before}, .* is now .*checkpoint-2.* --init {before}"):
        train(shards, copied / "cat", *begun, resume=True)
    with pytest.raises(AssertionError, match="a policy was built"):
        train(shards, copied / "cat", *begun[:2], f"init={before}", resume=True)
    shutil.copy(last / "progress-0.json", last / "progress-1.json")
    with pytest.raises(InputError, match="a run of 2 processes, and 1 would go on"):
        train(shards, copied / "cat", *begun, resume=True)


def test_how_large_checkpoints_become_is_said(runs):
    for stage, init, all_learned in (("cat", runs / "pretrain", True), ("pue", runs / "cat", False)):
        settings = load_recipe("tiny-sample", (*QUICK, f"stage={stage}", f"init={init}"))
        policy, _ = run.build(settings, {}, None)
        files = [path for path in (runs / stage / "checkpoint-1").rglob("*") if path.suffix in (".safetensors", ".pt")]
        said, written = checkpoints.bytes_of_checkpoint(policy, settings), sum(path.stat().st_size for path in files)
        # AdamW keeps nothing for what no batch of these few steps has used, such as an encoder of masks.
        assert 0.95 * written < said < (1.05 if all_learned else 3) * written


# --- before a policy is built


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=[chunk=11]"], "11"),
        (["stage=pue", "init={runs}/cat", "model=[decoder_blocks=3]"], "is a policy whose settings are fixed"),
        (
            ["model=[backbone.language.max_position_embeddings=40]"],
            r"drawn-train-\S+: with the instruction .*40 positions",
        ),
        (["mixture.drawn=1", "mixture.other=2"], "mixture weighs drawn, other, and the shards are of drawn"),
        (["mixture.drawn=0"], "setting 'mixture.drawn': input should be greater than 0"),
    ],
)
def test_what_arithmetic_can_tell_comes_before_the_model(overrides, message, runs, shards, tmp_path, no_policy):
    with pytest.raises(InputError, match=message) as error:
        train(shards, tmp_path / "out", *(override.format(runs=runs) for override in overrides))
    assert "\n" not in str(error.value)


def test_several_gpus_want_several_processes(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(
        InputError, match=r"^4 GPUs are visible, .* torchrun --nproc-per-node 4 .*CUDA_VISIBLE_DEVICES=0$"
    ):
        train(shards, tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "4")
    checks.check_machine(load_recipe("tiny-sample", QUICK))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(InputError, match=r"^8 processes are started on this machine, and 4 GPUs are visible") as error:
        checks.check_machine(load_recipe("tiny-sample", QUICK))
    assert "\n" not in str(error.value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")  # as another launcher may leave it
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(InputError, match=r"^5 processes"):
        checks.check_machine(load_recipe("tiny-sample", QUICK))
    monkeypatch.setenv("LOCAL_RANK", "3")
    checks.check_machine(load_recipe("tiny-sample", QUICK))


class _Together:
    """What `check_shared` needs of accelerate, for threads in place of processes."""

    def __init__(self, processes):
        self.barrier, self.given, self.device = threading.Barrier(processes, timeout=20), [None] * processes, "cpu"

    def process(self, number):
        def gather(tensor):
            self.given[number] = tensor
            self.barrier.wait()
            return torch.cat(self.given)

        return SimpleNamespace(
            is_main_process=number == 0, device="cpu", wait_for_everyone=self.barrier.wait, gather=gather
        )


def test_machines_that_do_not_share_out_are_all_told(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()

    def check(*outs):
        together = _Together(len(outs))
        with ThreadPoolExecutor() as pool:
            return [
                said.exception()
                for said in [pool.submit(run.check_shared, together.process(n), out) for n, out in enumerate(outs)]
            ]

    assert check(folders[0], folders[0]) == [None, None]
    told = [str(error) for error in check(folders[0], folders[0], folders[1])]
    assert len(told) == 3 and all("process 2 does not see what process 0 writes" in line for line in told)
    assert not any(any(folder.iterdir()) for folder in folders)


def test_a_state_too_long_is_said_before(shards, tmp_path, monkeypatch, no_policy):
    vla = tiny_pi0(tmp_path / "vla")
    config = json.loads((vla / "config.json").read_text())
    (vla / "config.json").write_text(json.dumps(config | {"max_state_dim": 2}))
    with pytest.raises(InputError, match="the state has 3 numbers, and this policy reads at most 2"):
        train(shards, tmp_path / "out", "stage=cat", f"init={vla}", "model=[]")


def test_episodes_without_an_instruction_are_left_out_and_counted(tmp_path, monkeypatch, capsys):
    original = numbered_shards.annotation

    def untold(dataset, split, shard, record, *more):
        row = original(dataset, split, shard, record, *more)
        return replace(row, instruction=" . ") if record == 1 else row

    monkeypatch.setattr(numbered_shards, "annotation", untold)
    made = str(write_shards(tmp_path / "shards", [[3] * 4] * 4))
    settings = load_recipe("tiny-sample", (*QUICK, "held_out_share=0.2"))
    checks.check_policy(settings, [made])
    assert "left out: 4 of 16 episodes of drawn, which have no instruction" in capsys.readouterr().out
    processor = PixelVLA.start("tiny", statistics_of([made]), settings.model).processor
    stream = iter(open_stream(processor, settings, [made]))
    seen = {key for _ in range(30) for key in next(stream)["keys"]}
    held_out = {key for batch in open_held_out(processor, settings, [made]) for key in batch["keys"]}
    assert seen and held_out and not any("-00001-" in key.removeprefix("drawn-train-")[5:] for key in seen | held_out)


# --- loader processes


def test_errors_of_loader_processes_are_their_own_last_line(shards, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("no such thing")

    monkeypatch.setattr(Collator, "__call__", fail)
    with pytest.raises(RuntimeError, match=r"^KeyError: 'no such thing', in a loader process$"):
        train(shards, tmp_path / "out", "workers=1")


def test_a_killed_loader_process_is_one_line(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(Collator, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match=r"^DataLoader worker .* lower workers or batch_size$") as error:
        train(shards, tmp_path / "out", "workers=1")
    assert "\n" not in str(error.value)


# --- types, groups, adapters


def bfloat16_copy(folder, out):
    shutil.copytree(folder, out)
    weights = load_file(out / "model.safetensors")
    save_file(
        {name: tensor.bfloat16() for name, tensor in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )
    return out


def test_a_pretrained_policy_s_modules_are_not_rounded(runs):
    settings = load_recipe("tiny-sample", ("stage=cat", f"init={runs / 'pretrain'}", "dtype=bfloat16"))
    policy, _ = run.build(settings, {}, None)
    stored = load_file(runs / "pretrain" / "checkpoint-1" / "model.safetensors")
    assert {parameter.dtype for parameter in policy.backbone.parameters()} == {torch.bfloat16}
    for name, parameter in policy.named_parameters():
        assert name.startswith("backbone.") or torch.equal(parameter, stored[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_computed_in_the_recipe_s_type(dtype, tmp_path):
    vla = bfloat16_copy(tiny_openvla(tmp_path / "vla"), tmp_path / "half")
    settings = load_recipe("tiny-sample", ("stage=cat", f"init={vla}", f"dtype={dtype}"))
    policy, _ = run.build(settings, {}, None)
    assert {parameter.dtype for parameter in policy.backbone.parameters()} == {getattr(torch, dtype)}
    assert {parameter.dtype for parameter in policy.action_decoder.parameters()} == {torch.float32}


def test_acting_reads_weights_straight_to_its_device(runs, monkeypatch):
    monkeypatch.setattr(checkpoints, "on_device", lambda policy, _: policy)  # what comes after the reading
    whole, part = (checkpoints.load_policy(runs / stage, device="meta") for stage in ("pretrain", "cat"))
    for policy in (whole, part):
        assert {parameter.device.type for parameter in policy.backbone.parameters()} == {"meta"}


def test_a_device_is_refused_before_weights_are_read_or_where_it_is_too_small(runs, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")

    monkeypatch.setattr(PixelVLA, "from_pretrained", full)
    for device, says in (("meta", "CUDA out of memory$"), ("nowhere", "nowhere")):
        with pytest.raises(InputError, match=f"^--device {device} cannot be used: .*{says}") as error:
            checkpoints.load_policy(runs / "pretrain", device=device)
        assert "\n" not in str(error.value)


def test_new_modules_learn_at_their_rate_and_what_there_is_one_of_does_not_decay(runs, shards, tmp_path):
    changes = ("stage=pue", f"init={runs / 'cat'}", "modules_learning_rate=0.5", "weight_decay=0.1")
    changes += ("schedule=constant", "warmup_steps=4")
    settings = load_recipe("tiny-sample", (*QUICK, *changes))
    policy, _ = run.build(settings, {}, None)
    trainer = PolicyTrainer(policy, settings, "", None, {}, tmp_path)
    names = {parameter: name for name, parameter in policy.named_parameters()}
    rates, decayed = {}, set()
    optimizer = trainer.create_optimizer()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in rates
            rates[names[parameter]] = group["lr"]
            decayed |= {names[parameter]} if group["weight_decay"] else set()
    assert rates.keys() == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert all(rate == (1e-3 if ".lora_" in name else 0.5) for name, rate in rates.items())
    alone = {"action_decoder.queries", "prompt_encoder.null_token", "prompt_encoder.kind_embeddings.weight",
             "pixel_encoder.null_tokens"}  # fmt: skip
    assert alone <= rates.keys() and not alone & decayed
    assert any(".lora_A" in name for name in decayed) and not any("bias" in name for name in decayed)
    trainer.create_scheduler(8, optimizer)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}  # the warm-up begins, of "constant" too


def test_pi0_s_action_expert_is_adapted_too(shards, tmp_path):
    vla, few = tiny_pi0(tmp_path / "vla"), ("max_steps=1", "save_every=1", "model=[]")
    train(shards, tmp_path / "cat", *few, "stage=cat", f"init={vla}")
    train(shards, tmp_path / "pue", *few, "stage=pue", f"init={tmp_path / 'cat'}", "learning_rate=0.05")
    part = checkpoints.latest(tmp_path / "pue")
    assert (part / "adapter").is_dir() and (part / "adapter_expert").is_dir()
    apart, whole = checkpoints.load_policy(part, merged=False), checkpoints.load_policy(part)
    layers = stages.lora_layers(apart)
    assert any("model.dit." in name for name in layers) and any("language_model." in name for name in layers)
    assert not stages.lora_layers(whole)
    moved = [layer for name, layer in layers.items() if "model.dit." in name]
    assert any(layer.lora_B["default"].weight.abs().sum() > 0 for layer in moved)
    sample = test_train.observe(shards)
    actions = [
        policy.predict_action(sample.image, "pick it up", dataset="drawn", state=sample.state)
        for policy in (apart, whole)
    ]
    np.testing.assert_allclose(*actions, atol=1e-5)


# --- several data sets


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory):
    """A larger and a smaller data set, each with statistics of its own."""
    folder = tmp_path_factory.mktemp("mixed")
    large = write_shards(folder / "drawn", [[12] * 4] * 4)
    small = write_shards(folder / "other", [[6] * 4] * 2, dataset="other")
    return [str(large), str(small)]


def test_data_sets_are_mixed_by_their_weights(two_sets):
    settings = load_recipe("tiny-sample", (*QUICK, "mixture.drawn=1", "mixture.other=3"))
    check_mixture(settings, two_sets)
    processor = PixelVLA.start("tiny", statistics_of(two_sets), settings.model).processor
    assert processor.statistics.keys() == {"drawn", "other"}
    stream = iter(open_stream(processor, settings, two_sets))
    seen = Counter(key.partition("-")[0] for _ in range(200) for key in next(stream)["keys"])
    assert seen["other"] / seen.total() == pytest.approx(0.75, abs=0.08)
    with pytest.raises(InputError, match=r"mixture weighs drawn, and the shards are of drawn, other: give each"):
        check_mixture(load_recipe("tiny-sample", (*QUICK, "mixture.drawn=1")), two_sets)


def test_each_data_set_has_its_held_out_loss(two_sets, tmp_path, capsys):
    settings = load_recipe("tiny-sample", (*QUICK, "mixture.drawn=1", "mixture.other=2"))
    run.train(settings, two_sets, tmp_path / "out")
    said = capsys.readouterr().out
    assert "held-out loss of drawn 0." in said and "held-out loss of other 0." in said
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    logged = {name for entry in state["log_history"] for name in entry if name.startswith("eval_")}
    assert {"eval_drawn_loss", "eval_other_loss"} <= logged
    assert checkpoints.load_policy(tmp_path / "out").processor.statistics.keys() == {"drawn", "other"}


# --- recipes


def test_recipes_are_listed_and_copied(tmp_path):
    listed = CliRunner().invoke(main, ["recipes"]).output
    assert "cat-pi0" in listed and all(
        f"{name} " in listed and what in listed for name, what in shipped_recipes().items()
    )
    copied = tmp_path / "mine.yaml"
    assert CliRunner().invoke(main, ["recipes", "cat-pi0", "--out", str(copied)]).exit_code == 0
    assert load_recipe(str(copied)) == load_recipe("cat-pi0")
    for wrong in (["cat-pi0", "--out", str(copied)], ["cat-pi", "--out", str(tmp_path / "x")], ["cat-pi0"]):
        assert CliRunner().invoke(main, ["recipes", *wrong]).exit_code in (1, 2)
