"""The π0 variant computes what π0 computes up to its action tokens, and reads masks, prompts and queries beside them."""

import json

import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
transformers = pytest.importorskip("transformers", reason="needs the extra [foundation]")

from safetensors.torch import load_file, save_file  # noqa: E402

from model.backbones.pi0_checkpoint import UNUSED, pi0_config, read_settings  # noqa: E402
from model.backbones.settings import GemmaSettings, Pi0Settings, SiglipSettings, SiglipVisionSettings  # noqa: E402
from model.checkpoint import load_backbone, open_checkpoint, with_settings  # noqa: E402
from model.settings import PRESETS  # noqa: E402

SETTINGS = Pi0Settings(
    vision=SiglipVisionSettings(
        image_size=28,
        siglip=SiglipSettings(hidden_size=24, depth=3, heads=3, mlp_ratio=3.75),
        levels=(0, 1, 2),
    ),
    language=GemmaSettings(hidden_size=32, intermediate_size=64),
    expert=GemmaSettings(hidden_size=16, intermediate_size=48),
    num_hidden_layers=2,
    num_attention_heads=4,
    head_dim=8,
    vocab_size=64,
    state_size=10,
)
PATCHES, IMAGE_TOKEN = 4, 64


@pytest.fixture(scope="module")
def pi0():
    """transformers' own π0 with random weights."""
    torch.manual_seed(0)
    model = transformers.PI0ForConditionalGeneration(pi0_config(SETTINGS)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def folder(pi0, tmp_path_factory):
    """Its checkpoint, under LeRobot's tensor names, as transformers writes it."""
    folder = tmp_path_factory.mktemp("pi0")
    pi0.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(open_checkpoint(folder))


@pytest.fixture
def inputs():
    """A batch of two; the second text is two tokens shorter."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, PATCHES + 5, dtype=torch.long)
    mask[1, -2:] = 0
    return {
        "pixels": torch.randn(2, 3, 28, 28, generator=generator),
        "ids": torch.randint(3, 60, (2, 5), generator=generator),
        "mask": mask,
        "state": torch.randn(2, 10, generator=generator),
        "queries": torch.randn(2, 6, 16, generator=generator),
    }


def prefix_of(backbone, inputs):
    projected = backbone.project(backbone.vision(inputs["pixels"]).patch_features)
    return torch.cat([projected, backbone.embed(inputs["ids"])], dim=1)


def answers(backbone, inputs):
    with torch.inference_mode():
        return backbone.query(prefix_of(backbone, inputs), inputs["mask"], inputs["queries"], inputs["state"])


def test_with_pi0_s_own_action_tokens_in_the_queries_place_it_is_pi0(pi0, backbone, inputs):
    with torch.inference_mode():
        suffix = pi0.embed_action_time(inputs["state"], torch.randn(2, 6, 32), torch.tensor([0.3, 0.8]))
        image_ids = torch.full((2, PATCHES), IMAGE_TOKEN)
        original = pi0.model(
            action_embeds=suffix,
            input_ids=torch.cat([image_ids, inputs["ids"]], dim=1),
            pixel_values=inputs["pixels"][:, None],
            pixel_attention_mask=torch.ones(2, 1, dtype=torch.bool),
            attention_mask=inputs["mask"],
        )
    ours = answers(backbone, inputs | {"queries": suffix[:, 1:]})
    assert (ours - original.last_hidden_state[:, 1:]).abs().max() < 1e-5


def test_every_tensor_is_kept_but_those_of_flow_matching(pi0, backbone):
    theirs, ours = dict(pi0.named_parameters()), dict(backbone.named_parameters())
    kept = {name: theirs[name] for name in theirs.keys() - set(UNUSED)}
    renamed = {name.removeprefix("embed_action_time."): parameter for name, parameter in kept.items()}
    assert set(UNUSED) <= theirs.keys()
    assert renamed.keys() == ours.keys()
    assert all(torch.equal(renamed[name], ours[name]) for name in ours)


def test_what_the_prefix_holds_reaches_the_queries(backbone, inputs):
    before = answers(backbone, inputs)
    assert before.shape == (2, 6, backbone.query_size)
    others = [
        {"pixels": inputs["pixels"].flip(-1)},
        {"ids": inputs["ids"].roll(1, 1)},
        {"state": -inputs["state"]},
        {"queries": inputs["queries"].flip(1)},
    ]
    for other in others:
        assert (answers(backbone, inputs | other) - before).abs().amax((1, 2)).min() > 1e-4


def test_padding_changes_nothing(backbone, inputs):
    together = answers(backbone, inputs)[1]
    alone = {name: tensor[1:] for name, tensor in inputs.items()}
    alone["ids"], alone["mask"] = alone["ids"][:, :3], alone["mask"][:, :-2]
    assert (answers(backbone, alone)[0] - together).abs().max() < 1e-5


def test_gradients_reach_queries_state_and_prefix(backbone, inputs):
    backbone.zero_grad()
    queries = inputs["queries"].requires_grad_()
    backbone.query(prefix_of(backbone, inputs), inputs["mask"], queries, inputs["state"]).square().sum().backward()
    vlm = backbone.model.vlm
    reached = [queries, backbone.state_proj.weight, vlm.language_model.embed_tokens.weight]
    reached += [vlm.vision_tower.embeddings.patch_embedding.weight, backbone.model.dit.layers[0].mlp.up_proj.weight]
    assert all(tensor.grad.abs().sum() > 0 for tensor in reached)


def test_no_state_and_wrong_pixels_are_refused(backbone, inputs):
    with pytest.raises(ValueError, match="reads the robot's state"):
        backbone.query(prefix_of(backbone, inputs), inputs["mask"], inputs["queries"])
    with pytest.raises(ValueError, match=r"must be \(batch, 3, 28, 28\), not \(2, 6, 28, 28\)"):
        backbone.vision(torch.zeros(2, 6, 28, 28))


def test_the_settings_are_the_checkpoint_s(folder):
    assert read_settings(folder) == SETTINGS
    found = open_checkpoint(folder)
    assert (found.kind, found.settings.backbone, found.tokenizer) == ("pi0", SETTINGS, None)


@pytest.mark.parametrize("config", ["transformers", "lerobot"])
def test_the_published_sizes_are_the_preset(tmp_path, config):
    lerobot = {"type": "pi0", "n_obs_steps": 1, "chunk_size": 50, "max_state_dim": 32}  # says nothing of sizes
    content = transformers.PI0Config().to_dict() if config == "transformers" else lerobot
    (tmp_path / "config.json").write_text(json.dumps(content))
    found, preset = open_checkpoint(tmp_path).settings.backbone, PRESETS["pi0"].backbone
    assert found.vision.siglip.mlp_size == preset.vision.siglip.mlp_size == 4304
    siglip = found.vision.siglip.model_copy(update={"mlp_ratio": preset.vision.siglip.mlp_ratio})
    assert found.model_copy(update={"vision": found.vision.model_copy(update={"siglip": siglip})}) == preset


def test_other_mathematics_are_refused_by_name(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["dit_config"]["rms_norm_eps"] = 1e-5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"dit_config\.rms_norm_eps must be 1e-06, not 1e-05"):
        read_settings(tmp_path)


def test_a_checkpoint_that_does_not_fit_is_listed(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    del weights["state_proj.bias"]
    weights["state_proj.weight"] = torch.zeros(16, 9)
    weights["strange.weight"] = torch.zeros(2)
    del weights["action_out_proj.bias"]  # unused, so not missed
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="do not fit") as error:
        load_backbone(open_checkpoint(tmp_path))
    assert "missing: state_proj.bias;" in str(error.value)
    assert "unexpected: strange.weight;" in str(error.value)
    assert "state_proj.weight is F32 (16, 9) and should be a float (16, 10)" in str(error.value)
    assert "\n" not in str(error.value)


def test_types_are_kept_unless_another_is_asked_for(pi0, folder, tmp_path):
    assert {parameter.dtype for parameter in load_backbone(open_checkpoint(folder)).parameters()} == {torch.float32}
    half = load_backbone(open_checkpoint(folder), torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.model.dit.rotary_emb.inv_freq.dtype == torch.float32


def test_another_resolution_is_interpolated(backbone):
    settings = Pi0Settings.load(base=SETTINGS.model_dump(), overrides=["vision.image_size=56"])
    larger = with_settings(backbone, settings)
    with torch.inference_mode():
        seen = larger.vision(torch.zeros(1, 3, 56, 56))
    assert seen.patch_features.shape == (1, 16, 24)
    assert [level.shape for level in seen.levels] == [(1, 16, 24)] * 3
    assert larger.state_proj.weight.data_ptr() == backbone.state_proj.weight.data_ptr()
