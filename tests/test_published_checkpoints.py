"""Checkpoints as people have them: each gives the numbers that it means, however it is spelled, or is refused in one line."""

import json

import numpy as np
import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
transformers = pytest.importorskip("transformers", reason="needs the extra [foundation]")

import test_pi0  # noqa: E402
from openvla_format import Sizes, Tower, random_weights, write_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from model.backbones.openvla import OpenVLABackbone  # noqa: E402
from model.checkpoint import load_backbone, open_checkpoint  # noqa: E402
from model.policy import PixelVLA  # noqa: E402
from model.presets import start  # noqa: E402
from model.tokenizer import byte_tokenizer  # noqa: E402
from pixel160k.format.actions import unnormalise  # noqa: E402

pi0, folder = test_pi0.pi0, test_pi0.folder

QUANTILES = {"q01": [-0.9] * 7, "q99": [0.9] * 7}
FULL = {
    "action": QUANTILES | {"mean": [0.0] * 7, "std": [1.0] * 7, "min": [-1.0] * 7, "max": [1.0] * 7, "mask": [True] * 6 + [False]},
    "proprio": {"mean": [0.0] * 8, "std": [1.0] * 8},
    "num_transitions": 10,
}  # fmt: skip
SIZES = Sizes(
    28,
    14,
    4,
    Tower(16, 3, 2, 4.0),
    Tower(24, 3, 2, 3.7362),
    32,
    2,
    4,
    4,
    48,
    320,
    319,
    statistics={"bridge_orig": FULL},
)
WEIGHTS = random_weights(SIZES)


def openvla(folder, change=lambda config: None, shards=1):
    """A folder in OpenVLA's format whose config.json is changed."""
    write_checkpoint(folder, SIZES, WEIGHTS, shards)
    byte_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def set_text(**values):
    return lambda config: config["text_config"].update(values)


def set_actions(**values):
    return lambda config: config["norm_stats"]["bridge_orig"]["action"].update(values)


def refused(folder):
    """The line by which a start from this folder is refused."""
    with pytest.raises(InputError) as error:
        start(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500
    return str(error.value)


# --- OpenVLA: what is meant

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("change", "theta"),
    [
        (set_text(), 10000.0),
        (set_text(rope_theta=10000), 10000.0),
        (set_text(rope_theta=500000.0), 500000.0),
        (set_text(rope_parameters=DEFAULT_ROPE, head_dim=8, num_key_value_heads=None, bos_token_id=None), 10000.0),
        (set_text(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}), 500000.0),
        (set_text(rope_parameters=DEFAULT_ROPE, rope_theta=10000.0, rope_scaling=None), 10000.0),
        (set_text(rope_scaling={"type": "default"}), 10000.0),
    ],
)
def test_rotary_positions_are_those_that_are_meant(change, theta, tmp_path):
    """The Llama computes what transformers' own does by this base."""
    backbone = OpenVLABackbone.load(openvla(tmp_path / "openvla", change))
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=320, rope_parameters={"rope_type": "default", "rope_theta": theta},
    )  # fmt: skip
    plain = transformers.LlamaForCausalLM(config).eval()
    own = {name.removeprefix("language_model."): tensor for name, tensor in WEIGHTS.items() if "language_model" in name}
    plain.load_state_dict(own)
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        ours = backbone.read_sequence(backbone.embed(ids), torch.ones_like(ids))
        theirs = plain.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def by_vision(config):
    config["vision_backbone_id"] = "dinosiglip-vit-so-224px"
    for name in ("timm_model_ids", "timm_override_act_layers", "use_fused_vision_backbone"):
        del config[name]


@pytest.mark.parametrize(
    "change",
    [lambda config: config.update(image_sizes=28), by_vision, lambda config: config.update(quantization_config=None)],
    ids=["one size", "by the name of the vision backbone", "not quantized"],
)
def test_another_spelling_is_the_same_model(change, tmp_path):
    assert OpenVLABackbone.read_settings(openvla(tmp_path / "a", change)) == OpenVLABackbone.read_settings(
        openvla(tmp_path / "b")
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_text(rope_parameters=DEFAULT_ROPE, rope_theta=500000.0), "rope_theta must be one number, not 500000.0 and 10000.0"),
        (set_text(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling must be of the type default"),
        (set_text(rope_parameters=DEFAULT_ROPE | {"partial_rotary_factor": 0.5}), "rope_parameters must be of the type"),
        (set_text(rope_parameters=7), "rope_parameters must be of the type default"),
        (set_text(rope_theta="far"), "setting 'language.rope_theta'"),
        (set_text(head_dim=16), "head_dim must be 8"),
        (set_text(vocab_size=321), "language_model.lm_head.weight is F32 (320, 32) and should be a float (321, 32)"),
        (set_text(num_hidden_layers=40), "layers.10.self_attn.q_proj.weight and 334 others"),
        (lambda config: config.update(quantization_config={"load_in_4bit": True}), "quantization_config must be None"),
        (lambda config: config.update(image_sizes=[224, 384]), "image_sizes must be pixels per side, the same for both"),
        (lambda config: config.update(image_sizes=None), "image_sizes must be pixels per side"),
        (lambda config: config.update(image_resize_strategy="letterbox"), "image_resize_strategy must be 'resize-naive'"),
        (lambda config: config.update(use_fused_vision_backbone=False), "use_fused_vision_backbone must be True"),
        (lambda config: config.pop("timm_model_ids"), "timm_model_ids must be"),
    ],
)  # fmt: skip
def test_another_model_is_refused_by_the_name_of_what_differs(change, told, tmp_path):
    assert told in refused(openvla(tmp_path / "openvla", change))


def test_weights_that_are_not_there_are_said_to_be_so(tmp_path):
    for name in ("pointer", "empty", "missing"):
        made = openvla(tmp_path / name, shards=3)
        shard = made / "model-00002-of-00003.safetensors"
        if name == "pointer":
            shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n")
        elif name == "empty":
            shard.write_bytes(b"")
        else:
            shard.unlink()
    assert "is a Git LFS pointer and not the weights, which `git lfs pull` fetches" in refused(tmp_path / "pointer")
    assert "is empty; copy or fetch the checkpoint anew" in refused(tmp_path / "empty")
    assert "it is not there; copy or fetch the checkpoint anew" in refused(tmp_path / "missing")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "openvla/openvla-7b"}')
    save_file({"base_model.model.x": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    assert "holds a LoRA adapter alone, of openvla/openvla-7b: merge it" in refused(adapter)


# --- statistics


def test_what_openvla_s_own_loader_takes_is_taken(tmp_path):
    """A mask may be absent, then all is scaled; and of the rest it reads the quantiles alone."""

    def change(config):
        config["norm_stats"]["bridge_orig"] = {"action": dict(QUANTILES)}

    policy = PixelVLA.start(openvla(tmp_path / "openvla", change)).eval()
    actions = policy.predict_action(np.zeros((64, 64, 3), np.uint8), "pick it up", dataset="bridge_orig")
    assert actions.shape == (8, 7) and np.abs(actions).max() <= 0.9
    known = policy.processor.statistics_of("bridge_orig")
    np.testing.assert_allclose(unnormalise(np.ones((1, 7)), known), [[0.9] * 7], rtol=1e-6)


@pytest.mark.parametrize("absent", ["absent", "null"])
def test_without_statistics_a_policy_starts_on_those_of_its_data(absent, tmp_path):
    made = openvla(
        tmp_path / "openvla", lambda c: c.pop("norm_stats") if absent == "absent" else c.update(norm_stats=None)
    )
    assert start(made).statistics == {}
    (made / "dataset_statistics.json").write_text(json.dumps({"libero_spatial_no_noops": FULL}))
    assert start(made).statistics == {"libero_spatial_no_noops": FULL}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["norm_stats"].update(aloha={"action": {key: [0.5] * 14 for key in ("q01", "q99")}}),
         "norm_stats: aloha: action.q01 must be 7 numbers, not 14 of float"),
        (lambda c: c["norm_stats"].update(aloha={"proprio": FULL["proprio"]}), "norm_stats: aloha: action must hold"),
        (lambda c: c["norm_stats"].update(aloha=7), "norm_stats: aloha: action must hold"),
        (lambda c: c.update(norm_stats=[1]), "norm_stats must hold the statistics of data sets by name, not 1 of int"),
        (lambda c: c["norm_stats"]["bridge_orig"]["action"].pop("q99"), "bridge_orig: action.q99 must be 7 numbers, not nothing"),
        (set_actions(mask=[True] * 6), "bridge_orig: action.mask must be 7 true or false, not 6 of bool"),
        (set_actions(mask=[1.0] * 7), "bridge_orig: action.mask must be 7 true or false, not 7 of float"),
        (set_actions(q01=[float("nan")] * 7), "bridge_orig: action.q01 must be finite"),
        (set_actions(min="low"), "bridge_orig: action.min must be 7 numbers, not a str"),
        (lambda c: c["norm_stats"]["bridge_orig"]["proprio"].update(std=[1.0] * 7), "proprio.std must be 8 numbers, not 7 of float"),
    ],
)  # fmt: skip
def test_other_statistics_are_refused_by_data_set_key_and_width(change, told, tmp_path):
    assert told in refused(openvla(tmp_path / "openvla", change))


def test_a_file_of_statistics_is_checked_too(tmp_path):
    made = openvla(tmp_path / "openvla")
    (made / "dataset_statistics.json").write_text('{"libero": ')
    assert "cannot read" in refused(made)
    (made / "dataset_statistics.json").write_text('{"libero": {"action": {"q01": [0, 1]}}}')
    assert "dataset_statistics.json: libero: action.q01 must be 7 numbers, not 2 of int" in refused(made)
    policy = PixelVLA.start("tiny", {"libero": FULL}, ["backbone.vision.image_size=56"])
    policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "dataset_statistics.json").write_text('{"libero": {"action": {"q01": [0, 1]}}}')
    with pytest.raises(InputError, match=r"libero: action\.q01 must be 7 numbers"):
        PixelVLA.from_pretrained(tmp_path / "policy")


# --- π0: the tensor names of the published folders (issues 2151, 2291, 2307 and 3109 of huggingface/lerobot print them)

PALIGEMMA = "paligemma_with_expert.paligemma."


def as_lerobot(weights, prefix=""):
    """LeRobot's names of now: its word embeddings are stored as the head that they are tied to."""
    renamed = {}
    for name, tensor in weights.items():
        name = name.replace(PALIGEMMA + "model.language_model.model.embed_tokens", PALIGEMMA + "lm_head")
        name = name.replace(PALIGEMMA + "model.language_model.model.", PALIGEMMA + "model.language_model.")
        name = name.replace(PALIGEMMA + "model.vision_tower.", PALIGEMMA + "model.vision_tower.vision_model.")
        renamed[prefix + name] = tensor.clone()
    return renamed


def both(weights):
    weights = as_lerobot(weights, "model.")
    embeddings = "model." + PALIGEMMA + "model.language_model.embed_tokens.weight"
    return weights | {embeddings: weights[f"model.{PALIGEMMA}lm_head.weight"].clone()}


def as_first_published(weights):
    """The names of early 2025, with the means and deviations of its data among the weights."""
    renamed = {}
    for name, tensor in as_lerobot(weights, "model.").items():
        name = name.replace(PALIGEMMA + "lm_head", PALIGEMMA + "language_model.lm_head")
        name = name.replace(PALIGEMMA + "model.language_model", PALIGEMMA + "language_model.model")
        renamed[name.replace(PALIGEMMA + "model.", PALIGEMMA)] = tensor
    state, action = "normalize_inputs.buffer_observation_state", "unnormalize_outputs.buffer_action"
    return renamed | {f"{state}.mean": torch.zeros(8), f"{state}.std": torch.ones(8), f"{action}.mean": torch.zeros(7)}


def partly_rounded(weights):
    """Some tensors in bfloat16, as LeRobot keeps them; whoever computes wants one type."""
    weights = as_lerobot(weights)
    return weights | {name: tensor.bfloat16() for name, tensor in weights.items() if "mlp" in name}


def without_group(weights):
    return {name.replace("paligemma_with_expert.", ""): tensor for name, tensor in as_lerobot(weights).items()}


LEROBOT = {"type": "pi0", "n_obs_steps": 1, "chunk_size": 50, "dtype": "float32", "paligemma_variant": "gemma_2b",
           "action_expert_variant": "gemma_300m", "input_features": {}, "output_features": {}}  # fmt: skip


def published(folder, out, rename, **config):
    """The π0 of `folder` under other tensor names, with LeRobot's config.json."""
    sizes = json.loads((folder / "config.json").read_text())
    sizes = {name: sizes[name] for name in ("vlm_config", "dit_config", "max_state_dim") if name in sizes}
    out.mkdir()
    save_file(rename(load_file(folder / "model.safetensors")), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(sizes | LEROBOT | config))
    return out


@pytest.mark.parametrize(
    "rename",
    [dict, as_lerobot, lambda weights: as_lerobot(weights, "model."), both, as_first_published, without_group],
    ids=["transformers", "pi0_base", "trained by lerobot", "both embeddings", "first published", "without group"],
)
def test_every_name_of_pi0_s_tensors_gives_the_same_numbers(rename, folder, tmp_path, capfd):
    expected = load_backbone(open_checkpoint(folder)).state_dict()
    found = load_backbone(open_checkpoint(published(folder, tmp_path / "pi0", rename))).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_a_pi0_stored_in_two_types_is_loaded_in_the_wider(folder, tmp_path):
    backbone = load_backbone(open_checkpoint(published(folder, tmp_path / "pi0", partly_rounded)))
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("rename", "config", "told"),
    [
        (as_lerobot, {"type": "pi05"}, "model_type is 'pi05'; a policy starts from pixelvla, openvla or pi0"),
        (as_lerobot, {"action_expert_variant": "gemma_300m_lora"}, "action_expert_variant must be 'gemma_300m'"),
        (as_lerobot, {"quantization_config": {"load_in_8bit": True}}, "quantization_config must be None"),
        (lambda weights: {name: tensor for name, tensor in as_lerobot(weights).items() if "gemma_expert" not in name}, {},
         "missing: model.dit.layers.0.input_layernorm.weight"),
    ],
)  # fmt: skip
def test_what_is_no_pi0_is_refused_in_one_line(rename, config, told, folder, tmp_path):
    with pytest.raises(InputError) as error:
        load_backbone(open_checkpoint(published(folder, tmp_path / "pi0", rename, **config)))
    assert told in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1500
