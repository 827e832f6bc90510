"""Whatever a user gives instead of the right folder or file, every command answers with one line and exit code 1 or 2.

Exit code 3 means a bug of ours: a test that meets it fails. The valid inputs are made once; each test gives one command one
wrong thing.
"""

import shutil

import pytest
from click.testing import CliRunner
from PIL import Image
from scene import episode, write_scenes
from test_files import another_process

from cli import main
from pixel160k.files import new_folder, only_writer

KNOWN_NAMES = """manifest.json index.parquet dataset_statistics.json croissant.json config.json recipe.yaml run.json stats.json
    features.json dataset_info.json part-train-00000.parquet model.safetensors modules.safetensors truth.parquet tokenizer.json
    drawn-train.tfrecord-00000-of-00001 drawn-train-00000.tar""".split()
CONTENTS = {
    "empty": b"",
    "object": b"{}",
    "list": b"[]",
    "null": b"null",
    "keys": b'{"format_version": 1, "model_type": "pixelvla", "source": "libero", "splits": [1], "name": 7, "settings": 1}',
    "bytes": bytes(range(256)) * 9,
}


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def check(result):
    """One line, and no bug; what a command does not look at may be wrong without harm."""
    assert result.exit_code in (0, 1, 2), result.output
    assert "Traceback" not in result.output
    if result.exit_code == 1:
        assert len([line for line in result.output.splitlines() if line.startswith("Error: ")]) == 1


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Data, annotations, shards and a policy that are all as they should be."""
    folder = tmp_path_factory.mktemp("valid")
    write_scenes(folder / "data", [episode(), episode(seed=1)])
    for command in (
        ["annotate", "--src", "libero", "--data-dir", folder / "data", "--set", "annotators=motion", "--out", folder / "a"],
        ["build-shards", "--annotations", folder / "a", "--include", "all", "--out", folder / "shards"],
        ["train", "--stage", "pretrain", "--shards", folder / "shards", "--max-steps", "1", "--out", folder / "run",
         "--set", "held_out_share=0.5", "--set", "batch_size=2", "--set", "workers=0"],
    ):  # fmt: skip
        result = run(*command)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(params=["missing", "a file", "empty folder", *CONTENTS])
def wrong(request, tmp_path):
    """Something that is not what any command wants."""
    path = tmp_path / "wrong"
    if request.param == "a file":
        path.write_bytes(b"\x00not this")
    elif request.param != "missing":
        path.mkdir()
        for name in KNOWN_NAMES if request.param in CONTENTS else ():
            (path / name).write_bytes(CONTENTS[request.param])
    return path


COMMANDS = {
    "annotate the sample's schema": ["annotate", "--src", "libero", "--set", "annotators=motion", "--data-dir", "WRONG"],
    "annotate another schema": ["annotate", "--src", "bridge_orig", "--set", "annotators=motion", "--data-dir", "WRONG"],
    "settings": ["annotate", "--src", "sample", "--config", "WRONG"],
    "detector": ["annotate", "--src", "sample", "--set", "foundation.detector=WRONG"],
    "segmenter": ["annotate", "--src", "sample", "--set", "foundation.segmenter=WRONG"],
    "refilter": ["annotate", "--refilter", "WRONG"],
    "build-shards": ["build-shards", "--annotations", "WRONG"],
    "build-shards of data elsewhere": ["build-shards", "--annotations", "VALID/a", "--data-dir", "WRONG"],
    "verify": ["verify", "--shards", "WRONG"],
    "browse": ["browse", "--shards", "WRONG"],
    "stats": ["stats", "--shards", "WRONG"],
    "lerobot": ["export", "--to", "lerobot", "--fps", "5", "--shards", "WRONG"],
    "coco": ["export", "--to", "coco", "--shards", "WRONG"],
    "hf": ["export", "--to", "hf", "--shards", "WRONG"],
    "train on": ["train", "--stage", "pretrain", "--shards", "WRONG"],
    "train from": ["train", "--stage", "pue", "--shards", "VALID/shards", "--init", "WRONG"],
    "recipe": ["train", "--shards", "VALID/shards", "--recipe", "WRONG"],
    "merge": ["merge", "--checkpoint", "WRONG"],
    "evaluate annotations": ["evaluate", "annotations", "--annotations", "WRONG"],
    "truth": ["evaluate", "annotations", "--annotations", "VALID/a", "--truth", "WRONG"],
    "evaluate actions of": ["evaluate", "actions", "--checkpoint", "WRONG", "--shards", "VALID/shards", "--split", "train"],
    "evaluate actions on": ["evaluate", "actions", "--checkpoint", "VALID/run", "--shards", "WRONG"],
    "predict by": ["predict", "--checkpoint", "WRONG", "--image", "VALID/image.png", "--instruction", "go"],
    "predict on": ["predict", "--checkpoint", "VALID/run", "--image", "WRONG", "--instruction", "go"],
    "evaluate libero of": ["evaluate", "libero", "--policy", "WRONG", "--episodes", "1", "--set", "tasks=[0]"],
    "evaluate libero by": ["evaluate", "libero", "--policy", "random", "--config", "WRONG"],
    "study": ["study", "--shards", "WRONG", "--grid", "decoder_blocks=1", "--seeds", "1"],
    "serve": ["serve", "--checkpoint", "WRONG"],
}  # fmt: skip
WITHOUT_OUT = ("verify", "predict by", "predict on", "serve")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_the_wrong_thing_gets_one_line(command, wrong, valid, tmp_path):
    arguments = [word.replace("WRONG", str(wrong)).replace("VALID", str(valid)) for word in command]
    if command[0] not in ("verify", "predict", "serve"):
        arguments += ["--out", str(tmp_path / "out")]
    result = run(*arguments)
    check(result)
    assert result.exit_code in (1, 2), result.output


@pytest.mark.parametrize("to", ["a file", "not empty"])
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITHOUT_OUT])
def test_an_unusable_out_gets_one_line(command, to, valid, tmp_path):
    out = tmp_path / "out"
    if to == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    source = {"--annotations": "a", "--shards": "shards", "--checkpoint": "run", "--init": "run", "--data-dir": "data",
              "--refilter": "a"}  # fmt: skip
    words = COMMANDS[command]
    arguments = [
        str(valid / source.get(words[index - 1], "absent")) if word == "WRONG" else word.replace("VALID", str(valid))
        for index, word in enumerate(words)
    ]
    check(run(*arguments, "--out", out))
    mine = out if to == "a file" else out / "mine.txt"
    assert mine.read_text() == "mine" or command in ("browse",)  # browse writes the one file that it was told to


def test_a_second_command_that_would_overwrite_the_work_of_one_that_runs_is_refused(valid, tmp_path):
    right = ["--shards", valid / "shards"]
    few = [part for setting in ("held_out_share=0.5", "batch_size=2", "workers=0") for part in ("--set", setting)]
    commands = {
        "train": (only_writer, ["train", "--stage", "pretrain", *right, *few]),
        "study": (only_writer, ["study", *right, *few, "--grid", "decoder_blocks=1", "--seeds", "1"]),
        "libero": (only_writer, ["evaluate", "libero", "--policy", "random", "--episodes", "1"]),
        "export": (new_folder, ["export", "--to", "coco", *right]),
        "refilter": (new_folder, ["annotate", "--refilter", valid / "a"]),
        "sample": (new_folder, ["sample", "--suite", "libero_object", "--episodes", "1"]),
    }
    with another_process(*((how, tmp_path / name) for name, (how, _) in commands.items())):
        for name, (_, command) in commands.items():
            result = run(*command, "--out", tmp_path / name)
            said = f"Error: another process writes to {tmp_path / name}: wait for it, or choose another --out"
            assert result.exit_code == 1 and said in result.output, result.output


@pytest.mark.parametrize("command", ["predict on", "evaluate actions of", "evaluate libero of", "study", "serve"])
@pytest.mark.parametrize("device", ["gpu", "cuda:97"])
def test_a_device_that_is_not_there_is_one_line(command, device, valid, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    run_of, image = valid / "run", tmp_path / "image.png"
    right = {"--checkpoint": run_of, "--policy": run_of, "--image": image, "--shards": valid / "shards"}
    words = COMMANDS[command]
    arguments = [
        str(right[words[index - 1]]) if word == "WRONG" else word.replace("VALID", str(valid))
        for index, word in enumerate(words)
    ]
    result = run(*arguments, "--device", device, *([] if command in WITHOUT_OUT else ["--out", tmp_path / "out"]))
    check(result)
    assert result.exit_code == 1 and f"--device {device} cannot be used" in result.output


@pytest.mark.parametrize("damage", ["empty", "object", "list", "bytes", "cut", "gone"])
@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", "dataset_statistics.json", "*.tar"])
def test_damaged_shards_are_never_our_bug(name, damage, valid, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(valid / "shards", shards)
    (path,) = shards.glob(name)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(CONTENTS.get(damage) if damage in CONTENTS else path.read_bytes()[: path.stat().st_size // 3])
    for number, command in enumerate(COMMANDS.values()):
        if "--shards" in command and "WRONG" in command and command[command.index("WRONG") - 1] == "--shards":
            arguments = [word.replace("WRONG", str(shards)).replace("VALID", str(valid)) for word in command]
            out = [] if command[0] == "verify" else ["--out", tmp_path / f"out{number}"]
            check(run(*arguments, *(["--set", "workers=0"] if command[0] == "train" else []), *out))


@pytest.mark.parametrize("damage", ["empty", "object", "list", "bytes", "cut", "gone"])
@pytest.mark.parametrize("name", ["run.json", "stats.json", "part-*.parquet"])
def test_damaged_annotations_are_never_our_bug(name, damage, valid, tmp_path):
    annotations = tmp_path / "annotations"
    shutil.copytree(valid / "a", annotations)
    path = next(annotations.glob(name))
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(CONTENTS.get(damage) if damage in CONTENTS else path.read_bytes()[: path.stat().st_size // 3])
    for number, command in enumerate(["refilter", "build-shards", "evaluate annotations"]):
        arguments = [word.replace("WRONG", str(annotations)) for word in COMMANDS[command]]
        check(run(*arguments, "--out", tmp_path / f"out{number}"))


@pytest.mark.parametrize("damage", ["empty", "object", "list", "bytes", "cut", "gone"])
@pytest.mark.parametrize(
    "name", ["config.json", "*.safetensors", "tokenizer.json", "dataset_statistics.json", "recipe.yaml"]
)
def test_damaged_checkpoints_are_never_our_bug(name, damage, valid, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(valid / "run", run_folder)
    path = next(run_folder.glob(f"checkpoint-*/{name}"))
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(CONTENTS.get(damage) if damage in CONTENTS else path.read_bytes()[: path.stat().st_size // 3])
    for number, command in enumerate(["train from", "merge", "evaluate actions of"]):
        arguments = [word.replace("WRONG", str(run_folder)).replace("VALID", str(valid)) for word in COMMANDS[command]]
        check(run(*arguments, "--out", tmp_path / f"out{number}"))
