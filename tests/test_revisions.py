"""Which revision of a model a run used: pinned once by the command, loaded by every worker, written beside the results."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from scene import episode, write_scenes

pytest.importorskip("torch", reason="needs the extra [foundation]")
pytest.importorskip("transformers", reason="needs the extra [foundation]")

from test_language_model import TEMPLATE, save_tokenizer, tiny_llama

from annotate.annotators.choose import choose_annotators, pin_models, with_models
from annotate.annotators.language_model import LanguageModelNamer
from annotate.annotators.pretrained import pin, resolve
from annotate.jobs import annotate as annotate_job
from annotate.jobs.annotate import describe_run
from annotate.settings import AnnotateSettings
from cli import main
from pixel160k.errors import InputError
from pixel160k.read.folder import read_manifest

A, B = "a" * 40, "b" * 40
SEGMENTER, DETECTOR = (Path(resolve("tiny", role)) for role in ("segmenter", "detector"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local cache of the hub, as `from_pretrained` leaves it: put(id, files of a folder, commit)."""
    cache = tmp_path / "home" / "hub"
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(name, folder, commit, branch="main"):
        stored = cache / f"models--{name.replace('/', '--')}"
        snapshot = stored / "snapshots" / commit
        for made in (snapshot, stored / "blobs", stored / "refs"):
            made.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            blob = stored / "blobs" / f"{commit}-{path.name}"
            shutil.copy(path, blob)
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
        (stored / "refs" / branch).write_text(commit)

    return put


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An episode before its gripper closes: models are loaded for it, and have nothing to do."""
    whole = episode()
    return write_scenes(tmp_path_factory.mktemp("data"), [whole | {"steps": whole["steps"][:6]}])


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny segmenter."""
    return Path(shutil.copytree(SEGMENTER, tmp_path / "my@model"))


def change_weights(folder):
    """Other weights that load as well as the earlier ones."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def run_annotate(data, out, segmenter, *more):
    chosen = ("--set", "annotators=motion", "--tracks", "--set", f"foundation.segmenter={segmenter}")
    return run("annotate", "--src", "libero", "--data-dir", data, "--out", out, *chosen, *more)


def line_of(output):
    (line,) = [line for line in output.splitlines() if line.startswith("Error: ")]
    return line


def made_by(part):
    return json.loads(pq.read_schema(part).metadata[b"pixelvla"])


def test_the_commit_of_a_hub_id_is_loaded_and_recorded_everywhere(hub, data, tmp_path, monkeypatch):
    hub("org/seg", SEGMENTER, A)

    def pin_and_move(settings):
        pinned = pin_models(settings)
        hub("org/seg", tmp_path / "empty", B)  # nothing that could be loaded
        return pinned

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(annotate_job, "pin_models", pin_and_move)
    out, shards, again = (tmp_path / name for name in ("out", "shards", "again"))
    assert run_annotate(data, out, "org/seg")[0] == 0
    monkeypatch.undo()
    hub_id = {"foundation.segmenter": f"org/seg@{A}"}
    assert json.loads((out / "run.json").read_text())["revisions"] == hub_id
    assert made_by(out / "part-train-00000.parquet")["revisions"] == hub_id
    assert run("annotate", "--refilter", out, "--set", "filter.min_evidence=0.9", "--out", again)[0] == 0
    assert made_by(again / "part-train-00000.parquet")["revisions"] == hub_id
    assert run("build-shards", "--annotations", out, "--out", shards, "--include", "all")[0] == 0
    assert read_manifest(shards)["annotations"]["revisions"] == hub_id
    assert f"- Model revisions: `foundation.segmenter` is org/seg at commit {A}." in (shards / "README.md").read_text()
    assert run("verify", "--shards", shards)[0] == 0


def test_a_run_does_not_go_on_with_another_commit(hub, data, tmp_path):
    hub("org/seg", SEGMENTER, A)
    assert run_annotate(data, tmp_path / "out", "org/seg")[0] == 0
    assert run_annotate(data, tmp_path / "out", "org/seg")[0] == 0
    hub("org/seg", SEGMENTER, B)
    code, output = run_annotate(data, tmp_path / "out", "org/seg")
    assert code == 1
    assert f"(different: revisions.foundation.segmenter was org/seg@{A}, is org/seg@{B});" in line_of(output)
    assert run_annotate(data, tmp_path / "out", f"org/seg@{A}")[0] == 0


def test_a_setting_may_say_the_revision(hub, folder):
    hub("org/seg", SEGMENTER, A, branch="v1")
    for asked in ("org/seg@v1", f"org/seg@{A}"):
        assert pin("foundation.segmenter", asked) == f"org/seg@{A}"
    pinned = pin("foundation.segmenter", str(folder))
    assert pin("foundation.segmenter", pinned) == pinned and pinned.startswith(f"{folder}@sha256:")
    tiny = pin("foundation.segmenter", "tiny")
    assert tiny == f"tiny@{pinned.rpartition('@')[2]}" and pin("foundation.segmenter", tiny) == tiny
    for absent in ("org/seg", "org/seg@v2", f"org/seg@{B}", "tiny@sha256:0", f"{folder}@sha256:0"):
        with pytest.raises(InputError, match=r"^[^\n]+$"):
            pin("foundation.segmenter", absent)


def test_all_models_are_pinned_and_load_as_pinned(hub, tmp_path):
    tiny_llama(save_tokenizer(tmp_path / "llm", TEMPLATE)).save_pretrained(tmp_path / "llm")
    for name, model in (("org/det", DETECTOR), ("org/seg", SEGMENTER), ("org/llm", tmp_path / "llm")):
        hub(name, model, A)
    models = {"foundation.detector": "org/det", "foundation.segmenter": "org/seg", "target.model": "org/llm"}
    settings = AnnotateSettings.load(values=models)
    pinned = pin_models(settings)
    assert pinned == {setting: f"{name}@{A}" for setting, name in models.items()}
    (tmp_path / "empty").mkdir()
    for name in models.values():
        hub(name, tmp_path / "empty", B)
    annotators = choose_annotators(with_models(settings, pinned), "cpu")
    assert isinstance(annotators.target, LanguageModelNamer)
    with pytest.raises(InputError, match="cannot load 'org/"):
        choose_annotators(settings, "cpu")
    pinned.pop("target.model")
    assert pin_models(AnnotateSettings.load(values=pinned, overrides=["target.method=grammar"])) == pinned
    assert pin_models(AnnotateSettings(annotators="motion")) == {}
    assert "revisions" not in describe_run("libero", "drawn", AnnotateSettings(annotators="motion"))


def test_the_revision_of_a_folder_is_that_of_the_files_that_are_loaded(folder):
    revision = pin("foundation.segmenter", str(folder)).rpartition("@")[2]
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    said = subprocess.run(
        ["bash", "-c", 'sha256sum "$@" | sha256sum', "-", *names],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert revision == f"sha256:{said.stdout.split()[0]}"
    (folder / "README.md").write_text("mine")
    assert pin("foundation.segmenter", str(folder)).rpartition("@")[2] == revision
    for change in (change_weights, lambda folder: (folder / "generation_config.json").write_text("{}")):
        change(folder)
        assert revision != (revision := pin("foundation.segmenter", str(folder)).rpartition("@")[2])


def test_a_folder_whose_files_change_is_refused(data, folder, tmp_path, monkeypatch):
    """By the next command, and by a worker that loads it."""
    monkeypatch.chdir(tmp_path)
    assert run_annotate(data, tmp_path / "out", folder.name)[0] == 0  # a relative path
    change_weights(folder)
    code, output = run_annotate(data, tmp_path / "out", folder.name)
    assert code == 1 and "(different: revisions.foundation.segmenter was my@model@sha256:" in line_of(output)

    def pin_and_change(settings):
        pinned = pin_models(settings)
        change_weights(folder)
        return pinned

    monkeypatch.setattr(annotate_job, "pin_models", pin_and_change)
    code, output = run_annotate(data, tmp_path / "changed", folder)
    assert code == 1
    assert f"the model in {folder} is another one than this run began with: sha256:" in line_of(output)


def test_an_earlier_run_that_notes_no_revisions_is_read(data, tmp_path):
    out, shards = tmp_path / "out", tmp_path / "shards"
    assert run_annotate(data, out, "tiny")[0] == 0
    earlier = json.loads((out / "run.json").read_text())
    assert earlier.pop("revisions") == {"foundation.segmenter": pin("foundation.segmenter", "tiny")}
    (out / "run.json").write_text(json.dumps(earlier))
    assert run("annotate", "--refilter", out, "--set", "filter.min_evidence=0.9", "--out", tmp_path / "again")[0] == 0
    assert "revisions" not in json.loads((tmp_path / "again" / "run.json").read_text())
    assert run("build-shards", "--annotations", out, "--out", shards, "--include", "all")[0] == 0
    assert "Model revisions" not in (shards / "README.md").read_text()
    assert run("browse", "--shards", shards, "--out", tmp_path / "browse.html")[0] == 0
    code, output = run_annotate(data, out, "tiny")
    assert code == 1 and "(different: revisions)" in line_of(output)
