"""What is said about a recipe before a run begins: what is missing, what a resumed run may change, which episodes there are."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from pixel160k.errors import InputError
from pixel160k.packages import is_installed, require_packages
from train.settings import CHANGEABLE_ON_RESUME, RECIPES, TrainSettings, check_packages, check_resumable, load_recipe

# --- packages


def test_what_is_missing_is_named_with_its_extra(monkeypatch, tmp_path):
    check_packages()
    monkeypatch.setitem(sys.modules, "torchdata", None)
    with pytest.raises(InputError, match=r"^not installed: torchdata; pip install 'pixelvla\[train\]'$"):
        check_packages()
    with pytest.raises(InputError, match=r"pip install 'pixelvla\[sim\]', or leave it$"):
        require_packages("sim", "nowhere_at_all", otherwise="leave it")
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("only_a_folder")


def test_recipes_are_read_without_torch():
    """So that the command can say that it is missing."""
    code = "import train.settings, sys; print([n for n in ('torch', 'transformers', 'peft') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_s_command_is_one_that_no_file_of_the_user_can_break(recipe):
    commands = [line for line in recipe.read_text().splitlines() if "pixelcli train" in line]
    assert commands and all(
        line.startswith(("#   pixelcli train ", "#   torchrun --nproc-per-node 8 --no-python pixelcli train "))
        for line in commands
    )


# --- resuming

BEGUN = load_recipe("pue-openvla")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate was 0.0005 and is now 0.5"),
        ({"stage": "cat", "seed": 3}, 'stage was "pue" and is now "cat", seed was 0 and is now 3'),
        ({"init": "elsewhere"}, 'init was "runs/cat" and is now "elsewhere"'),
        ({"lora": BEGUN.lora.model_copy(update={"rank": 8})}, "lora.rank was 32 and is now 8"),
        ({"prompts": BEGUN.prompts.model_copy(update={"line": 0.0})}, "prompts.line was 1.0 and is now 0.0"),
        ({"fsdp": True}, "fsdp was false and is now true"),
        ({"model": ("chunk=4",)}, r"model was \[\] and is now \[\"chunk=4\"\]"),
        ({"max_steps": 100}, "max_steps was 20000 and is now 100"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_run_does_not_go_on_by_another_recipe(changes, message, tmp_path):
    with pytest.raises(InputError, match=f"recipe: {message}; give --resume") as error:
        check_resumable(BEGUN.model_copy(update=changes), BEGUN, tmp_path)
    assert "\n" not in str(error.value)


def test_what_changes_nothing_that_is_learned_may_change(tmp_path):
    assert TrainSettings.model_fields.keys() >= CHANGEABLE_ON_RESUME
    free = {
        "gradient_checkpointing": False, "log_every": 1, "save_every": 2, "keep": 9, "evaluate_every": 3,
        "evaluate_batches": 4, "report_to": (), "workers": 1, "cache_dir": "kept", "cache_bytes": 1,
    }  # fmt: skip
    assert free.keys() == CHANGEABLE_ON_RESUME
    same_init = str((tmp_path / "runs" / ".." / "runs" / "cat").absolute())
    begun = BEGUN.model_copy(update={"init": str(tmp_path / "runs" / "cat")})
    check_resumable(begun.model_copy(update={**free, "max_steps": 10**6, "init": same_init}), begun, tmp_path)


# --- with a policy

pytest.importorskip("torch", reason="needs the extra [train]")
pytest.importorskip("peft", reason="needs the extra [train]")

import test_train  # noqa: E402
from numbered_shards import write_shards  # noqa: E402
from test_train import QUICK, train  # noqa: E402

from cli import main  # noqa: E402
from pixel160k.read import loader  # noqa: E402
from train import mixture, run  # noqa: E402
from train.stream import HeldOut, check_held_out  # noqa: E402

shards = test_train.shards


def test_the_command_refuses_another_recipe(shards, tmp_path):
    train(shards, tmp_path / "out")
    arguments = ["train", "--shards", shards, "--out", str(tmp_path / "out"), "--max-steps", "4", "--resume"]
    arguments += [part for change in (*QUICK, "seed=1", "keep=1") for part in ("--set", change)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "checkpoint-2 cannot be resumed with another recipe: seed was 0" in result.output
    (tmp_path / "out" / "checkpoint-2" / "recipe.yaml").unlink()
    assert "holds no recipe.yaml" in CliRunner().invoke(main, arguments).output


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_reporter_is_said_before_it_begins(package, shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # as W&B leaves one where it was run: no package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"^{package} of report_to is not installed: pip install {package}, or .*$"):
        train(shards, tmp_path / "out", f"report_to=[{package}]")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("share", "message"), [(0, "no episode of .* raise held_out_share"), (1, "every sample of")])
def test_which_episodes_are_held_out_is_known_from_the_index(share, message, shards, tmp_path, monkeypatch):
    def decode(*arguments):
        raise AssertionError("a sample was decoded")

    monkeypatch.setattr(loader, "decode", decode)
    with pytest.raises(InputError, match=message):
        train(shards, tmp_path / "out", f"held_out_share={share}")
    check_held_out(load_recipe("tiny-sample", QUICK), [shards])


def test_a_damaged_shard_is_one_line_from_a_loader_process_too(shards, tmp_path, monkeypatch):
    damaged = write_shards(tmp_path / "damaged", [[12] * 4] * 2)
    for tar in damaged.glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    monkeypatch.setattr(run, "check_policy", lambda *_: None)  # which reads the first sample of each episode itself
    monkeypatch.setattr(mixture, "HeldOut", lambda processor, settings, _: HeldOut(processor, settings, [shards]))
    with pytest.raises(InputError, match=r"^\S+\.tar .* drawn-train-\S+ \(.*\); `pixelcli verify` says more$"):
        train(str(damaged), tmp_path / "out", "workers=1")
