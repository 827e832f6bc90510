"""What the backbone computes is what the original OpenVLA computes: on its own fixture, and on fixtures of other sizes."""

import json
import shutil
import subprocess
import sys

import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
pytest.importorskip("transformers", reason="needs the extra [foundation]")

from click.testing import CliRunner  # noqa: E402
from conftest import SHARED  # noqa: E402
from openvla_format import Sizes, Tower, compute, random_weights, write_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from model.backbones.openvla import OpenVLABackbone  # noqa: E402
from model.parity import TOLERANCES, compare, main  # noqa: E402

FIXTURE = SHARED / "data" / "openvla_tiny"
FIXTURE_SIZES = Sizes(56, 14, 4, Tower(64, 4, 4, 4.0), Tower(48, 5, 4, 3.7362), 96, 3, 4, 4, 256, 576, 512)
OTHERS = {
    "larger image": Sizes(84, 14, 4, Tower(32, 2, 2, 4.0), Tower(24, 3, 3, 3.7362), 64, 2, 4, 4, 96, 128, 100),
    "fewer key heads": Sizes(42, 14, 4, Tower(24, 5, 6, 4.0), Tower(40, 2, 5, 3.7362), 48, 1, 6, 2, 80, 192, 150),
    "other patches": Sizes(32, 8, 2, Tower(16, 3, 1, 2.0), Tower(32, 4, 8, 4.0), 80, 4, 5, 1, 100, 64, 63),
}
MISTAKES = ["q and k swapped", "tanh GELU", "transposed grid", "last block", "final norm", "norm eps"]
fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"no {FIXTURE}; PIXELVLA_SHARED names its folder")


def run(folder):
    """The command, in this process."""
    return CliRunner().invoke(main, [str(folder)])


def write_fixture(folder, sizes, shards=1, mistake="", batch=3, padding=((), (-1, -2), (2, 3, -1))):
    """A random checkpoint with inputs and what the plain reference computes from them."""
    weights = random_weights(sizes)
    write_checkpoint(folder, sizes, weights, shards)
    generator = torch.Generator().manual_seed(1)
    given = {
        "pixel_values": torch.randn(batch, 6, sizes.image, sizes.image, generator=generator),
        "input_ids": torch.randint(1, sizes.vocab, (batch, 9), generator=generator),
        "attention_mask": torch.ones(batch, 9, dtype=torch.long),
    }
    for row, positions in enumerate(padding[:batch]):
        given["attention_mask"][row, list(positions)] = 0
    save_file(given | compute(weights, sizes, **given, mistake=mistake), folder / "io.safetensors")
    return folder


@fixture
def test_the_original_s_outputs_are_reproduced():
    command = [sys.executable, "-m", "model.parity", str(FIXTURE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(TOLERANCES)
    assert all(difference.largest <= 3e-5 for difference in compare(FIXTURE))
    assert {difference.output: difference.compared for difference in compare(FIXTURE)} == {
        "patch_features": 2 * 16 * 112,
        "projected": 2 * 16 * 96,
        "last_hidden_state": (27 + 24) * 96,  # the second text ends in three pad tokens
        "logits": (27 + 24) * 576,
    }


@fixture
def test_the_plain_reference_agrees_with_the_original_too():
    given = load_file(FIXTURE / "io.safetensors")
    inputs = {name: given[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    for name, output in compute(load_file(FIXTURE / "model.safetensors"), FIXTURE_SIZES, **inputs).items():
        assert (output - given[name]).abs().max() <= TOLERANCES[name]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("sizes", OTHERS.values(), ids=OTHERS)
def test_other_sizes_batches_paddings_and_shards_agree(tmp_path, sizes, shards):
    differences = compare(write_fixture(tmp_path, sizes, shards))
    assert all(difference.passes for difference in differences), differences
    for folder, changes in (("one", {"batch": 1}), ("left", {"padding": ((0, 1), (), (0,))})):
        differences = compare(write_fixture(tmp_path / folder, sizes, **changes))
        assert all(difference.passes for difference in differences), differences


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_computation_is_seen(tmp_path, mistake):
    differences = compare(write_fixture(tmp_path, FIXTURE_SIZES, mistake=mistake))
    failed = [difference.output for difference in differences if not difference.passes]
    assert failed[:2] == ["patch_features", "projected"]


def spoil(folder, change):
    """A copy of the original's fixture whose tensors are changed."""
    for file in ("config.json", "dims.json", "io.safetensors"):
        shutil.copy(FIXTURE / file, folder)
    weights = load_file(FIXTURE / "model.safetensors")
    change(weights)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    return folder


def swap_q_and_k(weights):
    name = "vision_backbone.featurizer.blocks.0.attn.qkv.weight"
    q, k, v = weights[name].chunk(3)
    weights[name] = torch.cat([k, q, v])


def swap_layer_scales(weights):
    one, two = (f"vision_backbone.featurizer.blocks.1.ls{scale}.scale_factor" for scale in (1, 2))
    weights[one], weights[two] = weights[two], weights[one]


def transpose_grid(weights):
    name = "vision_backbone.fused_featurizer.pos_embed"
    weights[name] = weights[name].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)


def zero_registers(weights):
    weights["vision_backbone.featurizer.reg_token"].zero_()


def not_a_number(weights):
    weights["language_model.lm_head.weight"][3, 3] = float("nan")


@fixture
@pytest.mark.parametrize("change", [swap_q_and_k, swap_layer_scales, transpose_grid, zero_registers, not_a_number])
def test_a_spoiled_checkpoint_exits_1(tmp_path, change):
    result = run(spoil(tmp_path, change))
    assert result.exit_code == 1
    assert "logits" in next(line for line in result.stdout.splitlines() if "TOO LARGE" in line and "logits" in line)


@fixture
def test_what_cannot_be_compared_exits_2_and_says_why(tmp_path):
    spoil(tmp_path, lambda weights: weights.pop("projector.fc2.bias"))
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "missing: projector.fc2.bias" in result.stderr
    spoil(tmp_path, lambda weights: None)
    given = load_file(tmp_path / "io.safetensors")
    save_file({name: value for name, value in given.items() if name != "logits"}, tmp_path / "io.safetensors")
    assert "io.safetensors lacks logits" in run(tmp_path).stderr


@fixture
def test_a_text_that_is_not_padded_does_not_depend_on_the_rest_of_the_batch():
    backbone, given = OpenVLABackbone.load(FIXTURE), load_file(FIXTURE / "io.safetensors")
    inputs = {name: given[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.inference_mode():
        alone = backbone(
            **{name: value[1:, :8] if name != "pixel_values" else value[1:] for name, value in inputs.items()}
        )
    assert (alone.logits[0] - given["logits"][1, :24]).abs().max() <= TOLERANCES["logits"]


@fixture
def test_the_levels_are_outputs_of_siglip_s_blocks(tmp_path):
    given = load_file(FIXTURE / "io.safetensors")
    backbone = OpenVLABackbone.load(FIXTURE)
    assert backbone.settings.vision.levels == (0, 1, 2, 3)
    with torch.inference_mode():
        seen = backbone.vision(given["pixel_values"])
    assert [tuple(level.shape) for level in seen.levels] == [(2, 16, 48)] * 4
    assert (seen.levels[-1] - given["patch_features"][..., 64:]).abs().max() <= 3e-5  # the last is the feature itself
    # A checkpoint cut after two more blocks has the second of them as its feature.
    shallow = Sizes(56, 14, 4, Tower(64, 4, 4, 4.0), Tower(48, 3, 4, 3.7362), 96, 3, 4, 4, 256, 576, 512)
    weights = load_file(FIXTURE / "model.safetensors")
    for name in list(weights):
        if name.startswith(tuple(f"vision_backbone.fused_featurizer.blocks.{block}." for block in (3, 4))):
            del weights[name]
    write_checkpoint(tmp_path, shallow, weights)
    with torch.inference_mode():
        cut = OpenVLABackbone.load(tmp_path).vision(given["pixel_values"])
    assert torch.equal(cut.patch_features[..., 64:], seen.levels[1])


@fixture
def test_wrong_pixels_are_refused_by_shape():
    with pytest.raises(ValueError, match=r"must be \(batch, 6, 56, 56\).*not \(1, 3, 56, 56\)"):
        OpenVLABackbone.load(FIXTURE).vision(torch.zeros(1, 3, 56, 56))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "prismatic"}, "model_type must be 'openvla', not 'prismatic'"),
        ({"timm_override_act_layers": [None, "quick_gelu"]}, "timm_override_act_layers"),
        ({"image_resize_strategy": "letterbox"}, "image_resize_strategy"),
        ({"text_config": {"model_type": "mistral"}}, "must be 'llama', not 'mistral'"),
        ({"text_config": {"model_type": "llama", "rope_scaling": {"factor": 2}}}, "rope_scaling"),
        ({"image_sizes": [50, 50]}, "image_size 50 must be a multiple of patch_size 14"),
    ],
)
def test_a_model_that_is_not_computed_here_is_refused_by_name(tmp_path, change, complaint):
    write_checkpoint(tmp_path, FIXTURE_SIZES, {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=r"config\.json") as error:
        OpenVLABackbone.load(tmp_path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
