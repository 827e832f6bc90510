"""Checkpoints: what comes back is what went in, another resolution is interpolated, and what is unsafe or torn is refused."""

import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
pytest.importorskip("transformers", reason="needs the extra [foundation]")

from openvla_format import Sizes, Tower, random_weights, write_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from model.backbones import random_backbone  # noqa: E402
from model.backbones.openvla import OpenVLABackbone  # noqa: E402
from model.backbones.vision import resize_positions  # noqa: E402
from model.checkpoint import load_backbone, load_policy_weights, open_checkpoint, save_checkpoint, with_settings  # noqa: E402
from model.settings import PRESETS, ModelSettings, spread_levels  # noqa: E402
from model.tokenizer import byte_tokenizer  # noqa: E402
from model.weights import locate, own_tensors, reading, without_memory  # noqa: E402

STATISTICS = {
    "bridge_orig": {"action": {"q01": [0.25] * 7, "q99": [1.0] * 7, "mask": [True] * 7}, "num_transitions": 3}
}
SIZES = Sizes(
    28, 14, 4, Tower(16, 3, 2, 4.0), Tower(24, 3, 2, 3.7362), 32, 2, 4, 2, 48, 128, 100, statistics=STATISTICS
)
INDEX = "model.safetensors.index.json"


@pytest.fixture
def openvla(tmp_path):
    """A folder with a random OpenVLA checkpoint."""
    write_checkpoint(tmp_path / "openvla", SIZES, random_weights(SIZES))
    return tmp_path / "openvla"


def tiny_settings(**language):
    """The `tiny` preset with changes of its language model."""
    changes = [f"backbone.language.{name}={value}" for name, value in language.items()]
    return ModelSettings.load(base=PRESETS["tiny"].model_dump(), overrides=changes)


def changed_settings(backbone, *changes):
    return type(backbone.settings).load(base=backbone.settings.model_dump(), overrides=changes)


def random_policy(settings):
    """A module in a policy's place: all weights random, norms and biases too."""
    torch.manual_seed(0)
    policy = torch.nn.Sequential(OpenVLABackbone(settings.backbone), torch.nn.Linear(3, 2))
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter)
    return policy


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_policy_comes_back_bit_by_bit(tmp_path, tied, mixed):
    settings = tiny_settings(tie_word_embeddings=tied)
    policy = random_policy(settings)
    if mixed:
        policy[1].bfloat16()
    save_checkpoint(tmp_path, policy, settings, STATISTICS, byte_tokenizer())
    found = open_checkpoint(tmp_path)
    assert (found.kind, found.settings, found.statistics) == ("pixelvla", settings, STATISTICS)
    assert found.tokenizer.encode("pick up the cup") == byte_tokenizer().encode("pick up the cup")
    assert found.tokenizer.pad_token_id == byte_tokenizer().pad_token_id
    back = without_memory(lambda: torch.nn.Sequential(OpenVLABackbone(settings.backbone), torch.nn.Linear(3, 2)))
    load_policy_weights(back, found)
    ours, theirs = own_tensors(policy), own_tensors(back)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    llama = back[0].language_model
    assert (llama.lm_head.weight is llama.model.embed_tokens.weight) == tied
    pixels, ids = torch.randn(1, 6, 224, 224), torch.tensor([[1, 50, 60]])
    with torch.inference_mode():
        outputs = [module[0].eval()(pixels, ids, torch.ones_like(ids)).logits for module in (policy, back)]
    assert torch.equal(*outputs)


def test_saving_over_a_checkpoint_replaces_it_and_config_json_comes_last(tmp_path, monkeypatch):
    settings = tiny_settings()
    policy = random_policy(settings)
    save_checkpoint(tmp_path, policy, settings, STATISTICS, None)
    first = (tmp_path / "model.safetensors").read_bytes()
    save_checkpoint(tmp_path, policy, settings, {}, None)
    assert (tmp_path / "model.safetensors").read_bytes() == first
    assert open_checkpoint(tmp_path).statistics == {}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("model.checkpoint.save_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, policy, settings, {}, None)
    with pytest.raises(InputError, match=r"cannot read .*config\.json"):
        open_checkpoint(tmp_path)


def test_a_loaded_policy_does_not_depend_on_its_file(tmp_path):
    settings = tiny_settings()
    save_checkpoint(tmp_path, random_policy(settings), settings, {}, None)
    back = without_memory(lambda: torch.nn.Sequential(OpenVLABackbone(settings.backbone), torch.nn.Linear(3, 2)))
    load_policy_weights(back, open_checkpoint(tmp_path))
    before = {name: tensor.detach().clone() for name, tensor in own_tensors(back).items()}
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(bytes(len(content)))
    assert all(torch.equal(before[name], tensor) for name, tensor in own_tensors(back).items())


def stand_in(settings):
    """A module in a policy's place, without memory."""
    return without_memory(lambda: torch.nn.Sequential(OpenVLABackbone(settings.backbone), torch.nn.Linear(3, 2)))


def test_weights_that_another_process_will_send_have_their_places(tmp_path):
    """Under FSDP the first process alone reads; the others have places of the same shapes and types."""
    settings = tiny_settings()
    save_checkpoint(tmp_path, random_policy(settings), settings, {}, None)

    def load(**how):
        module = stand_in(settings)
        with reading(**how):
            load_policy_weights(module, open_checkpoint(tmp_path))
        return own_tensors(module)

    there, places = load(), load(values=False)
    assert {name: (t.shape, t.dtype) for name, t in there.items()} == {
        name: (t.shape, t.dtype) for name, t in places.items()
    }
    elsewhere = load(device="meta")  # as the GPU of a process of DDP
    assert {tensor.device.type for tensor in elsewhere.values()} == {"meta"}


IN_A_PROCESS_OF_ITS_OWN = """
import re, sys
from pathlib import Path
import test_model_checkpoint as tests

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

found = tests.open_checkpoint(sys.argv[1])
grown = []
for values in (False, True):
    module, before = tests.stand_in(found.settings), resident()
    with tests.reading(values=values):
        tests.load_policy_weights(module, found)
    grown.append(resident() - before)
print(*grown)
"""


def test_weights_that_another_process_will_send_take_no_memory(tmp_path):
    """Measured where no memory was freed before, which the weights would take instead of new one."""
    settings = tiny_settings(intermediate_size=20000)  # 123 MB
    save_checkpoint(tmp_path, random_policy(settings), settings, {}, None)
    command = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    unread, read = map(float, done.stdout.split())
    assert read > 100 and unread < 10, (read, unread)


def test_openvla_s_statistics_come_with_its_checkpoint_and_a_file_s_add_to_them(openvla):
    found = open_checkpoint(openvla)
    assert (found.kind, found.statistics, found.tokenizer) == ("openvla", STATISTICS, None)
    assert found.settings.backbone.language.vocab_size == 128
    added = {"libero_object_no_noops": STATISTICS["bridge_orig"] | {"num_transitions": 5}}
    (openvla / "dataset_statistics.json").write_text(json.dumps(added))
    assert open_checkpoint(openvla).statistics == STATISTICS | added


def test_another_resolution_interpolates_the_positions_and_shares_the_rest(openvla):
    backbone = load_backbone(open_checkpoint(openvla))
    larger = with_settings(backbone, changed_settings(backbone, "vision.image_size=56"))
    assert (larger.settings.vision.image_size, larger.settings.vision.grid) == (56, 4)
    ours, theirs = own_tensors(backbone), own_tensors(larger)
    changed = {name for name in ours if ours[name].shape != theirs[name].shape}
    dino, siglip = (
        "vision_backbone.dino.embeddings.position_embeddings",
        "vision_backbone.siglip.embeddings.position_embedding.weight",
    )
    assert changed == {dino, siglip}
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours.keys() - changed)
    assert torch.equal(theirs[dino][:, :1], ours[dino][:, :1])  # the class token's row is no position on the image
    assert torch.equal(theirs[siglip], resize_positions(ours[siglip], 4))
    assert torch.equal(theirs[dino][0, 1:], resize_positions(ours[dino][0, 1:], 4))
    with torch.inference_mode():
        seen = larger.vision(torch.randn(2, 6, 56, 56))
    assert seen.patch_features.shape == (2, 16, 40)
    assert all(not tensor.is_meta for tensor in [*larger.parameters(), *larger.buffers()])
    same = with_settings(backbone, backbone.settings)
    assert all(torch.equal(ours[name], tensor) for name, tensor in own_tensors(same).items())


def test_levels_are_free_but_a_trained_backbone_keeps_its_sizes(openvla):
    backbone = load_backbone(open_checkpoint(openvla))
    pixels = torch.randn(1, 6, 28, 28)
    with torch.inference_mode():
        both, one = (
            with_settings(backbone, changed_settings(backbone, f"vision.levels={levels}")).vision(pixels).levels
            for levels in ("[0, 1]", "[1]")
        )
    assert len(both) == 2
    assert torch.equal(both[1], one[0])
    for change, name in (("language.num_hidden_layers=1", "layers.1.mlp"), ("vision.siglip.mlp_ratio=2.0", "fc1.bias")):
        with pytest.raises(InputError, match=f"keeps its sizes; these settings would change .*{name}"):
            with_settings(backbone, changed_settings(backbone, change))


def test_interpolated_positions_keep_rows_columns_and_a_smooth_ramp():
    columns = torch.arange(16.0).expand(16, 16)
    positions = torch.stack([columns, columns.T], dim=-1).reshape(256, 2)  # x and y of each patch, row by row
    resized = resize_positions(positions, 32).reshape(32, 32, 2)
    centres = (torch.arange(32) + 0.5) / 2 - 0.5
    inner = slice(4, 28)  # a ramp has no outside, so its edges bend
    assert (resized[inner, inner, 0] - centres[inner]).abs().max() < 1e-4
    assert (resized[inner, inner, 1] - centres[inner, None]).abs().max() < 1e-4
    assert torch.equal(resize_positions(positions, 16), positions)
    assert resize_positions(positions.bfloat16(), 32).dtype == torch.bfloat16


class Explosive:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return pytest.fail, ("a checkpoint was unpickled",)


def test_pickled_weights_are_never_read(openvla):
    (openvla / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.bin", "consolidated.pth"):
        (openvla / name).write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(InputError, match=r"holds neither model\.safetensors nor .* pickled weights are never read"):
        load_backbone(open_checkpoint(openvla))
    (openvla / "model.safetensors").write_bytes(pickle.dumps(Explosive()))  # a pickle under the right name
    with pytest.raises(InputError, match=r"cannot read .*model\.safetensors"):
        load_backbone(open_checkpoint(openvla))


def test_code_beside_a_checkpoint_is_never_run(openvla):
    config = json.loads((openvla / "config.json").read_text())
    assert "auto_map" in config
    (openvla / "modeling_prismatic.py").write_text("raise SystemExit('a checkpoint ran code')")
    load_backbone(open_checkpoint(openvla))


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "sub/inside.safetensors"])
def test_an_index_must_not_lead_out_of_its_folder(openvla, shard):
    save_file(load_file(openvla / "model.safetensors"), openvla.parent / "outside.safetensors")
    (openvla / INDEX).write_text(json.dumps({"weight_map": {"projector.fc1.bias": shard}}))
    with pytest.raises(InputError, match="must name files of its own folder"):
        load_backbone(open_checkpoint(openvla))


def test_torn_missing_and_doubled_shards_are_named(tmp_path):
    write_checkpoint(tmp_path, SIZES, random_weights(SIZES), shards=2)
    one, two = (tmp_path / f"model-0000{shard}-of-00002.safetensors" for shard in (1, 2))
    content = two.read_bytes()
    two.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"cannot read .*{two.name}"):
        load_backbone(open_checkpoint(tmp_path))
    two.unlink()
    with pytest.raises(InputError, match=f"cannot read .*{two.name}"):
        load_backbone(open_checkpoint(tmp_path))
    two.write_bytes(one.read_bytes())
    with pytest.raises(InputError, match=f"{two.name} repeats tensors of another shard"):
        load_backbone(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{", r"cannot read .*config\.json"),
        ("[]", "must hold a JSON object, not a list"),
        ('{"model_type": "bert"}', "model_type is 'bert'; a policy starts from pixelvla, openvla or pi0"),
        ('{"model_type": "pixelvla", "settings": {"bakbone": {}}}', "unknown setting 'bakbone'"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path, config, complaint):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=complaint) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["nobody/no-such-model", "no/such/folder"])
def test_a_model_that_is_not_to_be_had_is_one_line_that_names_it(model):
    with pytest.raises(InputError, match=f"^cannot load '{model}' .* give the path of a folder that holds it instead$"):
        locate(model)


def test_levels_are_spread_evenly_and_end_at_the_last_block():
    assert spread_levels(26) == (6, 12, 19, 25)
    assert spread_levels(3) == (0, 1, 2)
    assert spread_levels(1) == (0,)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_their_sizes(preset):
    settings = PRESETS[preset]
    backbone = without_memory(partial(random_backbone, settings.backbone))
    millions = sum(tensor.numel() for tensor in own_tensors(backbone).values()) / 1e6
    low, high = {"openvla-7b": (7400, 7600), "pi0": (3100, 3300), "small": (170, 190), "tiny": (1, 2.7)}[preset]
    assert low < millions < high
    assert ModelSettings.load(base=settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("backbone.vision.image_size=225", "image_size 225 must be a multiple of patch_size"),
        ("backbone.vision.levels=[2, 1]", "levels must be rising block indices"),
        ("backbone.vision.levels=[25, 26]", "levels must be rising block indices from 0 to 25"),
        ("backbone.vision.siglip.heads=7", "hidden_size 1152 must be a multiple of heads 7"),
        ("decoder_blocks=4", "decoder_blocks"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, complaint):
    with pytest.raises(InputError, match=complaint):
        ModelSettings.load(base=PRESETS["openvla-7b"].model_dump(), overrides=[change])
