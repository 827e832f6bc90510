"""OpenVLA's own checkpoints act as the original does: what they see, the tokens they choose, the actions these mean."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixel160k.errors import InputError

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
pytest.importorskip("transformers", reason="needs the extra [foundation]")

from conftest import SHARED  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from model.backbones.openvla import OpenVLABackbone  # noqa: E402
from pixel160k.format.prompts import point  # noqa: E402
from policies.base import Seen  # noqa: E402
from policies.choose import open_policy  # noqa: E402
from policies.openvla import OpenVLAPolicy, action_of_tokens, as_openvla_sees, is_openvla  # noqa: E402

DATA = Path(__file__).parent / "data"
FIXTURE = SHARED / "data" / "openvla_tiny"
fixture = pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"no {FIXTURE}; PIXELVLA_SHARED names its folder")


def test_an_image_is_seen_as_by_openvla():
    """The second image is what TensorFlow 2.21 made of the first with the functions of `run_libero_eval.py`."""
    image, theirs = (np.asarray(Image.open(DATA / f"openvla_{name}.png")) for name in ("image", "sees"))
    assert image.shape == (256, 256, 3) and theirs.shape == (224, 224, 3)
    apart = np.abs(as_openvla_sees(image, 224).astype(int) - theirs)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3  # a level, where a sum lies between two


def originals_rule(tokens, statistics, vocabulary):
    """`predict_action` of OpenVLA, word by word."""
    bins = np.linspace(-1, 1, 256)
    bin_centers = (bins[:-1] + bins[1:]) / 2.0
    discretized_actions = vocabulary - tokens
    discretized_actions = np.clip(discretized_actions - 1, a_min=0, a_max=bin_centers.shape[0] - 1)
    normalized_actions = bin_centers[discretized_actions]
    mask = statistics["action"].get("mask", np.ones_like(statistics["action"]["q01"], dtype=bool))
    action_high, action_low = np.array(statistics["action"]["q99"]), np.array(statistics["action"]["q01"])
    return np.where(mask, 0.5 * (normalized_actions + 1) * (action_high - action_low) + action_low, normalized_actions)


@fixture
def test_the_actions_of_the_fixtures_logits_are_the_originals():
    statistics = json.loads((FIXTURE / "config.json").read_text())["norm_stats"]["openvla_tiny"]
    logits = load_file(FIXTURE / "io.safetensors")["logits"]
    chosen = logits.argmax(-1).flatten().numpy()
    edges = np.array([0, 1, 255, 256, 257, 400, 510, 511, 512, 575])  # padding of the vocabulary, too
    for tokens in [*chosen[: len(chosen) // 7 * 7].reshape(-1, 7), edges[:7], edges[3:]]:
        ours = action_of_tokens(tokens, statistics, 512)
        np.testing.assert_allclose(ours, originals_rule(tokens, statistics, 512), atol=1e-6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The fixture's checkpoint with a tokenizer beside it, whose ids its vocabulary has."""
    if not FIXTURE.is_dir():
        pytest.skip(f"no {FIXTURE}; PIXELVLA_SHARED names its folder")
    from model.tokenizer import byte_tokenizer

    folder = tmp_path_factory.mktemp("openvla")
    for file in ("config.json", "dims.json", "model.safetensors"):
        (folder / file).write_bytes((FIXTURE / file).read_bytes())
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_seven_tokens_are_decoded_one_after_the_other(checkpoint):
    """With kept keys and values they are those of the whole sequence, computed anew for every token."""
    policy = OpenVLAPolicy.load(checkpoint)
    backbone = OpenVLABackbone.load(checkpoint)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), dtype=np.uint8))
    ids = torch.tensor([[1, 17, 40, 200, 9]])
    expected = ids
    with torch.inference_mode():
        for _ in range(7):
            logits = backbone(backbone.pixels(image), expected, torch.ones_like(expected)).logits
            expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
        assert policy.decode(image, ids).tolist() == expected[0, 5:].tolist()


def test_a_checkpoint_whose_actions_are_no_tokens_is_refused(checkpoint, tmp_path):
    """OpenVLA-OFT's folders have OpenVLA's config.json, and a head for continuous actions beside it."""
    shutil.copytree(checkpoint, tmp_path / "oft")
    (tmp_path / "oft" / "action_head--150000_checkpoint.pt").touch()
    with pytest.raises(InputError, match="oft is a checkpoint of OpenVLA-OFT"):
        OpenVLAPolicy.load(tmp_path / "oft")


def test_it_acts_as_a_policy_and_takes_no_prompts(checkpoint):
    assert is_openvla(str(checkpoint))
    statistics = json.loads((checkpoint / "config.json").read_text())["norm_stats"]["openvla_tiny"]["action"]
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    with open_policy(str(checkpoint)) as policy:
        assert isinstance(policy, OpenVLAPolicy)
        actions = policy.act([Seen(image, "Lift the cup.") for image in images])
        assert actions.shape == (2, 1, 7) and np.isfinite(actions).all()
        low, high = np.array(statistics["q01"]) - 1e-6, np.array(statistics["q99"]) + 1e-6
        assert (low <= actions).all() and (actions <= high)[..., :6].all()
        assert np.array_equal(policy.act([Seen(images[1], "lift the cup")])[0], actions[1])
        with pytest.raises(InputError, match="neither masks nor prompts"):
            policy.act([Seen(images[0], "lift the cup", prompts=[point(3, 4)])])
    with pytest.raises(InputError, match=r"statistics of openvla_tiny: name one of them with --dataset"):
        OpenVLAPolicy.load(checkpoint, dataset="libero_spatial")
