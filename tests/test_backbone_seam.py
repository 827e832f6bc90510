"""The seam for backbones: a third one, all of it in this file, trains, predicts and comes back from disk as a policy."""

import json
import re
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
pytest.importorskip("transformers", reason="needs the extra [foundation]")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig, LlamaModel  # noqa: E402

import model  # noqa: E402
from model.backbones import BACKBONES, Registered  # noqa: E402
from model.backbones.base import Backbone, TokenReaders, VisionOutput  # noqa: E402
from model.backbones.settings import SIGLIP_PIXELS, BackboneSettings, TextForm, VisionSettings  # noqa: E402
from model.policy import PixelVLA  # noqa: E402
from model.processor import Observation  # noqa: E402
from model.settings import ModelSettings  # noqa: E402
from model.tokenizer import byte_tokenizer  # noqa: E402
from pixel160k.errors import InputError  # noqa: E402
from pixel160k.files import read_json_object  # noqa: E402
from pixel160k.format.prompts import point  # noqa: E402


class ToyVisionSettings(VisionSettings):
    width: int = 12

    @property
    def level_blocks(self):
        return 2

    @property
    def level_size(self):
        return self.width


class ToySettings(BackboneSettings):
    text_form: ClassVar = TextForm("Do: {}", ".")
    pixel_statistics: ClassVar = (SIGLIP_PIXELS,)

    kind: Literal["toy"] = "toy"
    vision: ToyVisionSettings
    hidden_size: int = 16
    reads: int = 0  # numbers of proprioception

    @property
    def reads_state(self):
        return self.reads > 0

    def scale_state(self, state, statistics):
        low, high = np.array(statistics["q01"]), np.array(statistics["q99"])
        return (2 * (state - low) / (high - low) - 1).astype(np.float32)


class ToyBackbone(Backbone):
    """Two convolutions see, a Llama of one layer reads, and a recurrent network answers the queries."""

    def __init__(self, settings):
        super().__init__(settings)
        vision, self.hidden_size, self.query_size = settings.vision, settings.hidden_size, 8
        self.patches = nn.Conv2d(3, vision.width, vision.patch_size, stride=vision.patch_size)
        self.mix = nn.Conv2d(vision.width, vision.width, 3, padding=1)
        self.positions = nn.Parameter(torch.zeros(vision.grid**2, vision.width))
        self.to_tokens = nn.Linear(vision.width, self.hidden_size)
        sizes = {"hidden_size": self.hidden_size, "intermediate_size": 24, "num_attention_heads": 2}
        self.reader = LlamaModel(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=320))
        self.recurrent = nn.GRU(self.query_size, self.query_size, batch_first=True)
        self.start = nn.Linear(self.hidden_size + settings.reads, self.query_size)

    @classmethod
    def read_settings(cls, folder):
        config = read_json_object(folder / "config.json")
        return ToySettings.load(base={"vision": config["vision"], "hidden_size": config["width"]})

    @classmethod
    def load(cls, folder, dtype=None):
        backbone = cls(cls.read_settings(folder))
        backbone.load_state_dict(load_file(folder / "model.safetensors"))
        return backbone.to(dtype or torch.float32).eval()

    def vision(self, pixel_values):
        first = self.patches(pixel_values)
        levels = [level.flatten(2).transpose(1, 2) + self.positions for level in (first, first + self.mix(first))]
        return VisionOutput(levels[-1], [levels[index] for index in self.settings.vision.levels])

    def project(self, patch_features):
        return self.to_tokens(patch_features)

    def embed(self, input_ids):
        return self.reader.get_input_embeddings()(input_ids)

    def query(self, inputs_embeds, attention_mask, queries, state=None):
        hidden = self.reader(inputs_embeds=inputs_embeds, attention_mask=attention_mask).last_hidden_state
        last = -1 if attention_mask is None else attention_mask.sum(1) - 1
        read = hidden[torch.arange(len(hidden)), last]
        start = self.start(read if state is None else torch.cat([read, state], dim=1))
        return self.recurrent(queries, start[None])[0]

    def get_language_model(self):
        return self.reader

    def position_tables(self):
        return ["positions"]

    def token_readers(self):
        return TokenReaders([self.patches, self.mix, self.to_tokens], [self.reader], [self.recurrent])


VISION = ToyVisionSettings(image_size=32, patch_size=8, levels=(0, 1))
STATISTICS = {
    "bridge_orig": {
        "action": {
            name: [value] * 7 for name, value in {"mask": True, "q01": -1, "q99": 1, "min": -1, "max": 1}.items()
        },
        "proprio": {"mean": [0.7] * 3, "q01": [0.0] * 3, "q99": [2.0] * 3},
    }
}
IMAGE = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)
SHOWN = {"masks": [np.ones((40, 48), bool)], "prompts": [point(3, 4)]}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """All that an entry in the register takes."""
    monkeypatch.setitem(BACKBONES, "toy", Registered(ToySettings, f"{__name__}:ToyBackbone"))


def make(**sizes):
    torch.manual_seed(0)
    settings = ModelSettings(backbone=ToySettings(vision=VISION, **sizes), decoder_size=16, chunk=4)
    return PixelVLA(settings, byte_tokenizer(), STATISTICS)


def act(policy, **said):
    return policy.predict_action(IMAGE, "pick up the cup", dataset="bridge_orig", **said)


def batch_of(policy, **said):
    batch = policy.processor([Observation(IMAGE, "pick up the cup", **said) for _ in range(2)])
    return batch._replace(actions=torch.zeros(2, 4, 7), action_mask=torch.ones(2, 4, dtype=torch.bool))


def test_it_trains_a_step_and_predicts():
    policy = make()
    before = act(policy.eval(), **SHOWN)
    optimizer = torch.optim.AdamW(policy.train().parameters(), lr=1e-2)
    policy(batch_of(policy, **SHOWN)).loss.backward()
    assert all(parameter.grad is not None for parameter in policy.backbone.parameters())
    optimizer.step()
    after = act(policy.eval(), **SHOWN)
    assert before.shape == after.shape == (4, 7) and np.abs(after - before).max() > 1e-3
    assert np.abs(after - act(policy)).max() > 1e-5  # what is shown is read


def test_its_words_and_pixels_are_its_own():
    policy = make()
    batch = policy.processor([Observation(IMAGE, "Pick up the cup.")])
    assert policy.backbone.pixels(batch.images).shape == (1, 3, 32, 32) and batch.state is None
    text = byte_tokenizer().decode([index for index in batch.input_ids[0] if index > 1])
    assert text == "Do: pick up the cup."


def test_it_reads_a_state_in_its_own_scale():
    policy = make(reads=3).eval()
    still, moved = (np.full(3, value, np.float32) for value in (0.0, 2.0))
    batch = policy.processor([Observation(IMAGE, "go", state=state, dataset="bridge_orig") for state in (still, moved)])
    assert batch.state.tolist() == [[-1, -1, -1], [1, 1, 1]]
    assert np.abs(act(policy, state=still) - act(policy, state=moved)).max() > 1e-5
    with pytest.raises(InputError, match="proprioception"):
        act(policy)


def test_a_policy_over_it_comes_back_from_disk(tmp_path):
    policy = make(hidden_size=24).eval()
    policy.save_pretrained(tmp_path)
    again = PixelVLA.from_pretrained(tmp_path)
    assert again.settings == policy.settings
    np.testing.assert_array_equal(act(again, **SHOWN), act(policy, **SHOWN))


def test_its_published_checkpoint_starts_a_policy_at_another_resolution(tmp_path):
    backbone = ToyBackbone(ToySettings(vision=VISION))
    nn.init.normal_(backbone.positions)
    save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    config = {"model_type": "toy", "vision": VISION.model_dump(), "width": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(tmp_path)
    policy = PixelVLA.start(tmp_path, STATISTICS, ["backbone.vision.image_size=64", "chunk=4"]).eval()
    assert policy.backbone.positions.shape == (64, 12)
    assert torch.equal(policy.backbone.to_tokens.weight, backbone.to_tokens.weight)
    assert act(policy, **SHOWN).shape == (4, 7)


@pytest.mark.parametrize("stage", ["pretrain", "cat", "pue"])
def test_every_stage_trains_it_and_counts_its_flops(stage):
    pytest.importorskip("peft", reason="needs the extra [train]")
    from train import stages
    from train.cost import FlopCount
    from train.settings import load_recipe

    policy = make().train()
    stages.prepare(policy, load_recipe("tiny-sample", (f"stage={stage}", "lora.targets=[q_proj]", "lora.rank=2")))
    assert bool(stages.lora_layers(policy)) == (stage == "pue")
    batch = batch_of(policy)
    policy(batch).loss.backward()
    assert FlopCount(policy)(batch) > 0


def test_a_kind_that_is_not_registered_is_refused_with_those_that_are():
    with pytest.raises(InputError, match="setting 'backbone': kind must be one of openvla, pi0, toy, not"):
        ModelSettings.load(base={"backbone": {"kind": "clay"}})
    with pytest.raises(InputError, match=r"setting 'backbone\.vision': .*levels must be rising"):
        ModelSettings.load(base={"backbone": {"kind": "toy", "vision": VISION.model_dump() | {"levels": (5,)}}})


def test_no_room_but_that_of_the_backbones_names_one():
    """But for the sizes of presets, and the comparison with the original OpenVLA."""
    root = Path(model.__file__).parent.parent
    files = [path for room in ("model", "train", "evaluation") for path in (root / room).rglob("*.py")]
    assert len(files) > 20
    naming = {
        str(path.relative_to(root))
        for path in files
        if re.search(r"OpenVLA(Backbone|Settings)|Pi0[BS]", path.read_text())
    }
    assert {path for path in naming if not path.startswith("model/backbones")} == {
        "model/settings.py",
        "model/parity.py",
    }
