"""Every tensor of an OpenVLA checkpoint is accounted for, and a checkpoint that does not fit is refused before it is read."""

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
pytest.importorskip("transformers", reason="needs the extra [foundation]")

from openvla_format import Sizes, Tower, configuration, random_weights, tensors, write_checkpoint  # noqa: E402
from test_openvla_parity import FIXTURE, fixture  # noqa: E402

from model.backbones.openvla import OpenVLABackbone  # noqa: E402
from model.backbones.openvla_checkpoint import read_settings, tensor_sources, unused_tensors  # noqa: E402
from model.settings import PRESETS  # noqa: E402
from model.weights import without_memory  # noqa: E402

SMALL = Sizes(28, 14, 4, Tower(16, 3, 2, 4.0), Tower(24, 3, 2, 3.7362), 32, 2, 4, 2, 48, 128, 100)


@pytest.fixture(scope="module")
def openvla_7b():
    """The real size, without memory."""
    return without_memory(partial(OpenVLABackbone, PRESETS["openvla-7b"].backbone))


def test_the_list_of_the_real_checkpoint_is_the_published_one():
    shapes = tensors(Sizes())
    # Published: 982 tensors, and metadata.total_size 15,082,474,368 bytes of bfloat16 in the index of openvla-7b.
    assert len(shapes) == 982
    assert 2 * sum(math.prod(shape) for shape in shapes.values()) == 15_082_474_368


def test_every_tensor_of_openvla_7b_is_read_or_knowingly_unused(openvla_7b):
    shapes = tensors(Sizes())
    read = {source.name: source.shape for source in tensor_sources(openvla_7b, openvla_7b.settings).values()}
    left = unused_tensors(PRESETS["openvla-7b"].backbone)
    assert read == {name: shape for name, shape in shapes.items() if name not in left}
    assert left <= shapes.keys()
    assert len(left) == 43
    assert all("featurizer" in name for name in left)
    parts = ("featurizer.blocks.23.", "featurizer.norm.", "fused_featurizer.blocks.26.", "attn_pool.")
    assert {part for part in parts for name in left if part in name} == set(parts)


def test_every_parameter_of_openvla_7b_is_filled_in_its_shape(openvla_7b):
    found = tensor_sources(openvla_7b, openvla_7b.settings)
    parameters = dict(openvla_7b.named_parameters())
    assert found.keys() == parameters.keys()
    assert all(parameter.is_meta for parameter in parameters.values())
    for name, parameter in parameters.items():
        taken = found[name].take(torch.empty(found[name].shape, device="meta"))
        assert taken.shape == parameter.shape, name
    assert all(not buffer.is_meta for buffer in openvla_7b.buffers())  # rotary frequencies, position ids


def test_the_real_configuration_gives_the_preset(tmp_path):
    """config.json of openvla-7b says nothing of the towers, and of the Llama only the vocabulary."""
    config = configuration(Sizes())
    config["text_config"] = {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_settings(tmp_path) == PRESETS["openvla-7b"].backbone


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_the_checkpoint_s_tensors(tmp_path, shards, dtype):
    weights = random_weights(SMALL)
    write_checkpoint(tmp_path, SMALL, weights, shards)
    backbone = OpenVLABackbone.load(tmp_path, dtype)
    parameters = {name: parameter.detach() for name, parameter in backbone.named_parameters()}
    assert {parameter.dtype for parameter in parameters.values()} == {dtype}
    dino, siglip = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
    expected = {  # what outputs cannot show: a bias of k, the class token's row, the order of q, k and v
        "vision_backbone.dino.encoder.layer.1.attention.q_proj.bias": weights[dino + "blocks.1.attn.qkv.bias"][:16],
        "vision_backbone.dino.encoder.layer.1.attention.k_proj.bias": weights[dino + "blocks.1.attn.qkv.bias"][16:32],
        "vision_backbone.dino.encoder.layer.1.attention.v_proj.bias": weights[dino + "blocks.1.attn.qkv.bias"][32:],
        "vision_backbone.siglip.encoder.layers.0.self_attn.k_proj.weight": weights[siglip + "blocks.0.attn.qkv.weight"][
            24:48
        ],
        "vision_backbone.dino.encoder.layer.0.layer_scale2.lambda1": weights[dino + "blocks.0.ls2.scale_factor"],
        "vision_backbone.dino.embeddings.position_embeddings": torch.cat(
            [torch.zeros(1, 1, 16), weights[dino + "pos_embed"]], dim=1
        ),
        "vision_backbone.siglip.embeddings.position_embedding.weight": weights[siglip + "pos_embed"][0],
        "projector.fc2.weight": weights["projector.fc2.weight"],
        "language_model.model.embed_tokens.weight": weights["language_model.model.embed_tokens.weight"],
        "language_model.lm_head.weight": weights["language_model.lm_head.weight"],
    }
    for name, tensor in expected.items():
        assert torch.equal(parameters[name], tensor.to(dtype)), name
    total = sum(tensor.double().sum() for tensor in parameters.values())
    left = unused_tensors(backbone.settings)
    assert total == pytest.approx(sum(weights[name].to(dtype).double().sum() for name in weights.keys() - left))


def test_types_are_kept_unless_another_is_asked_for(tmp_path):
    weights = {name: tensor.bfloat16() for name, tensor in random_weights(SMALL).items()}
    write_checkpoint(tmp_path, SMALL, weights)
    assert {parameter.dtype for parameter in OpenVLABackbone.load(tmp_path).parameters()} == {torch.bfloat16}
    rotary = OpenVLABackbone.load(tmp_path).language_model.model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32  # positions would be wrong in bfloat16


@fixture
def test_the_fixture_s_43_unused_tensors_are_the_listed_ones():
    from safetensors import safe_open

    with safe_open(FIXTURE / "model.safetensors", framework="pt") as handle:
        names = set(handle.keys())
    backbone = OpenVLABackbone.load(FIXTURE)
    assert names == {source.name for source in tensor_sources(backbone, backbone.settings).values()} | unused_tensors(
        backbone.settings
    )
    assert len(unused_tensors(backbone.settings)) == 43


def test_all_that_does_not_fit_is_listed_in_one_line(tmp_path):
    weights = random_weights(SMALL)
    del weights["projector.fc1.bias"], weights["vision_backbone.featurizer.reg_token"]
    del weights["vision_backbone.featurizer.norm.weight"]  # unused, so not missed
    weights["vision_backbone.fused_featurizer.cls_token"] = torch.zeros(1, 1, 24)
    weights["language_model.model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)  # a layer too many
    weights["vision_backbone.fused_featurizer.attn_pool.strange"] = torch.zeros(2)
    weights["vision_backbone.featurizer.blocks.0.attn.qkv.weight"] = torch.zeros(47, 16)
    weights["language_model.lm_head.weight"] = torch.zeros(128, 32, dtype=torch.int8)
    write_checkpoint(tmp_path, SMALL, weights)
    with pytest.raises(InputError, match="do not fit") as error:
        OpenVLABackbone.load(tmp_path)
    assert "\n" not in str(error.value)
    missing, unexpected, wrong = str(error.value).split("; ")
    assert missing.endswith("missing: projector.fc1.bias, vision_backbone.featurizer.reg_token")
    assert unexpected == (
        "unexpected: language_model.model.layers.2.mlp.up_proj.weight, "
        "vision_backbone.fused_featurizer.attn_pool.strange, vision_backbone.fused_featurizer.cls_token"
    )
    assert "language_model.lm_head.weight is I8 (128, 32)" in wrong
    assert "blocks.0.attn.qkv.weight is F32 (47, 16) and should be a float (48, 16)" in wrong


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak memory from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_needs_little_more_memory_than_the_weights(tmp_path, dtype):
    sizes = Sizes(224, 14, 4, Tower(64, 3, 4, 4.0), Tower(48, 3, 4, 3.7362), 512, 12, 8, 8, 1536, 16064, 16000)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.rand(shape, generator=generator) for name, shape in tensors(sizes).items()}
    write_checkpoint(tmp_path, sizes, weights)
    code = f"""
import torch
from pathlib import Path
from model.backbones.openvla import OpenVLABackbone

def peak():  # of this process alone, in bytes; getrusage would count its parent's
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

before = peak()
backbone = OpenVLABackbone.load(Path({str(tmp_path)!r}), torch.{dtype})
print((peak() - before) / sum(parameter.nbytes for parameter in backbone.parameters()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sum(weight.nbytes for weight in weights.values()) > 200e6
    assert 0.9 < float(result.stdout) < 1.2
