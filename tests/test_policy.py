"""The policy: from an image and what is pointed at to actions in robot units, and back from disk the same."""

import json

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import SHARED
from PIL import Image
from safetensors.torch import load_file, save_file

from cli import main
from model.backbones.settings import GemmaSettings, Pi0Settings, SiglipSettings, SiglipVisionSettings
from model.patch_weights import patch_weights
from model.policy import PixelVLA
from model.predict import read_image, read_mask
from model.processor import Observation, Processor
from model.prompt_encoder import mask_prompts
from model.sequence import MASK
from model.settings import PRESETS, ModelSettings
from model.tokenizer import byte_tokenizer
from pixel160k.errors import InputError
from pixel160k.format.actions import normalise
from pixel160k.format.prompts import line, mask_prompt, point, region
from pixel160k.geometry import random_crop_view, resize_view
from pixel160k.seeding import seeded_generator

HEIGHT, WIDTH = 96, 128
STATISTICS = {
    "bridge_orig": {
        "action": {
            "mask": [True] * 6 + [False],
            "q01": [-0.02] * 6 + [0.0],
            "q99": [0.03] * 6 + [1.0],
            "min": [-0.1] * 6 + [0.0],
            "max": [0.1] * 6 + [1.0],
        },
        "proprio": {"mean": [0.2] * 7, "std": [0.5] * 7},
    }
}
SMALLER = ModelSettings.load(
    base=PRESETS["tiny"].model_dump(), overrides=["backbone.vision.image_size=64", "backbone.vision.patch_size=16"]
)
PI0 = ModelSettings(
    backbone=Pi0Settings(
        vision=SiglipVisionSettings(
            image_size=56, siglip=SiglipSettings(hidden_size=32, depth=2, heads=2, mlp_ratio=2), levels=(0, 1)
        ),
        language=GemmaSettings(hidden_size=48, intermediate_size=64),
        expert=GemmaSettings(hidden_size=32, intermediate_size=48),
        num_hidden_layers=2, num_attention_heads=2, head_dim=16, vocab_size=320,
    ),
    decoder_size=32,
)  # fmt: skip


def make(settings=SMALLER):
    torch.manual_seed(0)
    return PixelVLA(settings, byte_tokenizer(), STATISTICS).eval()


@pytest.fixture(scope="module")
def policy():
    return make()


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def square(x, y, size=16):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + size, x : x + size] = True
    return mask


EVERYTHING = {
    "masks": [square(20, 30), square(80, 10)],
    "prompts": [point(30.5, 40.5), line([(5, 5), (60, 70), (100, 20)]), region((20, 30, 36, 46)), mask_prompt(square(60, 60))],
}  # fmt: skip


def act(policy, instruction="Pick up the cup.", image=None, **arguments):
    image = picture() if image is None else image
    return policy.predict_action(image, instruction, dataset="bridge_orig", **arguments)


@pytest.mark.parametrize("said", [{}, {"masks": EVERYTHING["masks"]}, {"prompts": EVERYTHING["prompts"]}, EVERYTHING])
def test_actions_in_robot_units(policy, said):
    actions = act(policy, **said)
    assert actions.shape == (8, 7) and actions.dtype == np.float32
    assert (np.abs(actions[:, :6] - 0.005) <= 0.025 + 1e-6).all()  # between the quantiles
    assert ((actions[:, 6] >= 0) & (actions[:, 6] <= 1)).all()
    np.testing.assert_array_equal(actions, act(policy, **said))


def test_the_order_of_masks_and_prompts_means_nothing(policy):
    turned = {name: given[::-1] for name, given in EVERYTHING.items()}
    np.testing.assert_array_equal(act(policy, **turned), act(policy, **EVERYTHING))


def test_what_is_pointed_at_counts(policy):
    seen = [
        act(policy),
        act(policy, masks=[square(20, 30)]),
        act(policy, masks=[square(24, 30)]),
        act(policy, prompts=[point(30.5, 40.5)]),
        act(policy, prompts=[point(33.5, 40.5)]),
        act(policy, prompts=[region((20, 30, 36, 46))]),
        act(policy, prompts=[mask_prompt(square(20, 30))]),
        act(policy, prompts=[mask_prompt(square(20, 34))]),
        act(policy, masks=[square(20, 30)], prompts=[mask_prompt(square(20, 30))]),
    ]
    for index, first in enumerate(seen):
        for second in seen[index + 1 :]:
            assert np.abs(first - second).max() > 1e-5


def test_a_batch_gives_what_each_observation_gives_alone(policy):
    observations = [
        Observation(picture(1), "open the drawer"),
        Observation(picture(2), "put the spoon on the towel", **EVERYTHING),
        Observation(picture(3), "go", prompts=[point(1.5, 2.5)]),
        Observation(picture(4), "go", masks=[np.zeros((HEIGHT, WIDTH), bool), square(3, 3)]),
    ]
    with torch.no_grad():
        together = policy(policy.processor(observations)).actions
        for observation, expected in zip(observations, together, strict=True):
            alone = policy(policy.processor([observation])).actions[0]
            torch.testing.assert_close(alone, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("preset", ["openvla", "pi0"])
def test_one_graph_without_breaks_acts_for_all_texts(preset, monkeypatch):
    """What a GPU needs to be fast. A break, or a value that is looked at, would be an error; another wording or kind of prompt
    is no new graph; and where there are as many graphs as may be, it acts without one.
    """
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    policy = make(PI0 if preset == "pi0" else SMALLER)
    state = np.zeros(7, np.float32)
    mask, texts = square(8, 8), ("Pick up the cup.", "Pick up a jar.", "Put the cup up", "Pick a cup up")
    observations = [
        Observation(picture(seed), text, [mask], [where], state, "bridge_orig")
        for seed, (text, where) in enumerate(zip(texts, EVERYTHING["prompts"], strict=True))
    ]
    eager = make(policy.settings)
    expected = [eager.act([one])[0] for one in observations]
    policy.compile_acting([observations[:1]], backend=count)  # it never acted before
    assert len(compiled) == 1
    for one, actions in zip(observations, expected, strict=True):
        np.testing.assert_allclose(policy.act([one])[0], actions, rtol=0, atol=1e-5)
    monkeypatch.setattr("model.compiled.MOST_SHAPES", 1)
    assert policy.act(observations[:2]).shape == (2, 8, 7)
    assert len(compiled) == 1


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_query_sees_later_ones_with_the_setting_alone(together, padded):
    """And no query is seen by the sequence before it, nor padding by anyone."""
    backbone = make(
        ModelSettings.load(base=SMALLER.model_dump(), overrides=[f"backbone.bidirectional_queries={together}"])
    ).backbone
    generator = torch.Generator().manual_seed(0)
    sequence = torch.randn(2, 12, backbone.hidden_size, generator=generator)
    queries = torch.randn(2, 4, backbone.query_size, generator=generator)
    changed = queries.clone()
    changed[:, -1] += 1
    mask = torch.ones(2, 12, dtype=torch.long) if padded else None
    if padded:
        mask[1, 9:] = 0
    with torch.no_grad():
        first, second = (backbone.query(sequence, mask, some) for some in (queries, changed))
        if padded:
            alone = backbone.query(sequence[1:, :9], None, queries[1:])
            torch.testing.assert_close(first[1:], alone, rtol=0, atol=1e-5)
    moved = (first - second).abs().amax(-1) > 1e-6
    assert moved[:, -1].all() and moved[:, :-1].all() == together and moved[:, :-1].any() == together


@pytest.mark.parametrize("settings", [SMALLER, PI0], ids=["openvla", "pi0"])
def test_a_policy_s_state_is_its_parameters(settings):
    """FSDP's first process sends them to the others (train/run.py), and could not send anything else."""
    policy = make(settings)
    parameters = {id(parameter) for parameter in policy.parameters()}
    assert {id(tensor) for tensor in policy.state_dict(keep_vars=True).values()} == parameters


def test_settings_of_a_study_add_norms_and_nothing_else():
    """So that checkpoints without them load as they are; and norms before the projections take away how large features are."""
    plain, normed = (
        make(),
        make(ModelSettings.load(base=SMALLER.model_dump(), overrides=["decoder_norm=true", "level_norms=true"])),
    )
    levels = range(len(SMALLER.backbone.vision.levels))
    norms = ["action_decoder.norm", *(f"pixel_encoder.level_norms.{level}" for level in levels)]
    added = normed.state_dict().keys() - plain.state_dict().keys()
    assert added == {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    assert plain.state_dict().keys() < normed.state_dict().keys()
    seen = [torch.randn(1, 16, SMALLER.backbone.vision.level_size) for _ in levels]
    weights, hidden = torch.rand(1, 2, 16), torch.randn(1, 8, 128)
    for policy, unchanged in ((plain, False), (normed, True)):
        encoded = [policy.pixel_encoder([scale * level for level in seen], weights) for scale in (1, 10)]
        decoded = [policy.action_decoder(scale * hidden) for scale in (1, 10)]
        assert torch.allclose(*encoded, atol=1e-4) == torch.allclose(*decoded, atol=1e-4) == unchanged


def test_without_masks_and_prompts_it_is_openvla_and_queries(policy):
    batch = policy.processor([Observation(picture(), "Pick up the cup.")])
    text = [1, *byte_tokenizer().encode("In: What action should the robot take to pick up the cup?\nOut:")]
    backbone = policy.backbone
    with torch.no_grad():
        embedded = backbone.embed(torch.tensor([text]))
        patches = backbone.project(backbone.vision(backbone.pixels(batch.images)).patch_features)
        sequence = [embedded[:, :1], patches, embedded[:, 1:], policy.action_decoder.queries[None]]
        sequence = torch.cat(sequence, dim=1)
        hidden = backbone.read_sequence(sequence, torch.ones(sequence.shape[:2], dtype=torch.long))
        expected = policy.action_decoder(hidden[:, -8:])
        torch.testing.assert_close(policy(batch).actions, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("crop", ["all", "centre", "random"])
@pytest.mark.parametrize("size", [(96, 128), (480, 640), (224, 224)])
def test_masks_and_prompts_stay_on_their_image(size, crop, padded):
    """A white disc on black: where its mask covers a patch the patch is as bright, and its centre stays its centre."""
    changes = ["backbone.vision.patch_size=16", f"backbone.pad_images={padded}"]
    settings = ModelSettings.load(base=PRESETS["tiny"].model_dump(), overrides=changes)
    processor = Processor(settings, byte_tokenizer(), STATISTICS)
    image = np.zeros((*size, 3), np.uint8)
    centre = round(size[1] * 0.6), round(size[0] * 0.3)
    cv2.circle(image, centre, round(size[0] * 0.12), (255, 255, 255), -1)
    mask = image[..., 0] > 0
    x, y = centre[0] + 0.5, centre[1] + 0.5
    view = {
        "all": resize_view(*size, 224, padded=padded),
        "centre": processor.view(*size),
        "random": random_crop_view(*size, 224, generator=seeded_generator("view", *size), padded=padded),
    }[crop]
    batch = processor([Observation(image, "go", [mask], [point(x, y), mask_prompt(mask)])], [view])
    brightness = batch.images[0].float().mean(-1) / 255
    patches = brightness.unflatten(0, (14, 16)).unflatten(2, (14, 16)).mean((1, 3))
    weights = patch_weights(mask_prompts(batch.masks), 14)[0, 0].view(14, 14)
    assert (patches - weights).abs().max() < 0.1
    assert abs(float(patches.sum() / weights.sum()) - 1) < 0.02
    fine = brightness.unflatten(0, (56, 4)).unflatten(2, (56, 4)).mean((1, 3))
    assert (fine - batch.prompts.masks[0, 1]).abs().mean() < 0.01
    seen_y, seen_x = np.argwhere(brightness.numpy() > 0.5).mean(0) + 0.5
    assert batch.prompts.points[0, 0, 0].numpy() * 224 == pytest.approx([seen_x, seen_y], abs=1.0)


def test_learns_from_every_module():
    """A few steps on one batch: the loss falls, and each module has its part in it."""
    torch.manual_seed(0)
    policy = make().train()
    observations = [Observation(picture(0), "go", **EVERYTHING)] * 2
    observations[1] = Observation(picture(1), "go", masks=[np.zeros((HEIGHT, WIDTH), bool)])
    actions = np.random.default_rng(0).uniform(-0.02, 0.03, (2, 8, 7))
    actions[..., 6] = np.arange(8) % 2
    batch = policy.processor(observations)._replace(
        actions=torch.from_numpy(normalise(actions, STATISTICS["bridge_orig"])),
        action_mask=torch.arange(8) < torch.tensor([[8], [5]]),
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = policy(batch).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    for name in ("pixel_encoder", "prompt_encoder", "action_decoder", "backbone"):
        module = getattr(policy, name)
        assert all(parameter.grad is not None for parameter in module.parameters()), name
        assert sum(parameter.grad.abs().sum() for parameter in module.parameters()) > 0


@pytest.mark.parametrize(
    "overrides", [["backbone.vision.levels=[3]"], ["tokens_per_mask=3"], ["chunk=4", "decoder_blocks=1"]], ids=" ".join
)
def test_sizes_are_settings(overrides):
    policy = make(ModelSettings.load(base=SMALLER.model_dump(), overrides=overrides))
    assert act(policy, **EVERYTHING).shape == (policy.settings.chunk, 7)
    assert len(policy.pixel_encoder.level_projections) == len(policy.settings.backbone.vision.levels)
    ids = policy.processor([Observation(picture(), "go", **EVERYTHING)]).input_ids
    assert int((ids == MASK).sum()) == 2 * policy.settings.tokens_per_mask


def test_a_token_says_what_and_where():
    """Seen through the tokens: the same place on another image, or another place on an image of one colour, is another token.

    Without its half, a mask's token knows no place and a prompt's no image: the policies of before.
    """
    plain = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)

    def changed(settings, **pointed):
        policy = make(settings)
        tokens = []
        for name in ("_mask_tokens", "_prompt_tokens"):
            keep = getattr(policy, name)
            setattr(policy, name, lambda *given, keep=keep: tokens.append(keep(*given)) or tokens[-1])
        elsewhere = {key: [given[1]] for key, given in pointed.items()}
        pointed = {key: [given[0]] for key, given in pointed.items()}
        index = 0 if "masks" in pointed else 1
        for image, said in ((picture(1), pointed), (picture(2), pointed), (plain, pointed), (plain, elsewhere)):
            act(policy, image=image, **said)
        first, other_image, here, there = (pair for pair in tokens[index::2])
        return bool((first - other_image).abs().max() > 1e-4), bool((here - there).abs().max() > 2e-2)

    masks = {"masks": (square(20, 30), square(80, 60))}
    prompts = {"prompts": (point(28.5, 38.5), point(88.5, 68.5))}
    assert changed(SMALLER, **masks) == changed(SMALLER, **prompts) == (True, True)
    before = SMALLER.model_copy(update={"mask_places": False, "prompt_features": False})
    assert changed(before, **prompts) == (False, True)
    assert changed(before, **masks)[0]


def test_a_checkpoint_of_before_acts_as_it_was_trained(tmp_path):
    """It has neither setting: its tokens were what alone and where alone."""
    before = SMALLER.model_copy(update={"mask_places": False, "prompt_features": False})
    policy = make(before)
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("mask_places", "prompt_features"):
        del config["settings"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = PixelVLA.from_pretrained(tmp_path)
    assert loaded.settings == before
    np.testing.assert_array_equal(act(loaded, **EVERYTHING), act(policy, **EVERYTHING))
    assert np.abs(act(make(), **EVERYTHING) - act(policy, **EVERYTHING)).max() > 1e-5


def test_the_same_from_disk(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    again = PixelVLA.from_pretrained(tmp_path)
    assert again.settings == policy.settings and not again.training
    for name, tensor in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    np.testing.assert_array_equal(act(again, **EVERYTHING), act(policy, **EVERYTHING))
    rounded = PixelVLA.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert np.abs(act(rounded, **EVERYTHING) - act(policy, **EVERYTHING))[:, :6].max() < 0.002


OLD_NAMES = {  # of the modules, as checkpoints had them before
    "pixel_encoder.level_projections.0.weight": "pixel_encoder.projections.0.weight",
    "pixel_encoder.token_mlp.0.bias": "pixel_encoder.mlp.0.bias",
    "pixel_encoder.null_tokens": "pixel_encoder.null",
    "prompt_encoder.point_projection.weight": "prompt_encoder.place.weight",
    "prompt_encoder.kind_embeddings.weight": "prompt_encoder.kind.weight",
    "prompt_encoder.mask_downscaling.6.bias": "prompt_encoder.shape.6.bias",
    "prompt_encoder.token_mlp.2.weight": "prompt_encoder.mlp.2.weight",
    "prompt_encoder.null_token": "prompt_encoder.null",
}


def old_name(name):
    """The name that a tensor had in checkpoints before; whole modules are renamed, so an example of each says it."""
    for new, old in OLD_NAMES.items():
        new, old = (".".join(example.split(".")[:2]) for example in (new, old))
        if name == new or name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name


def test_a_checkpoint_with_the_old_names_of_modules_loads(policy, tmp_path):
    assert OLD_NAMES.items() <= {name: old_name(name) for name in policy.state_dict()}.items()
    policy.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({old_name(name): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    again = PixelVLA.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in policy.state_dict().items())
    renamed = {"prompt_encoder.place.weigth" if name.endswith("point_projection.weight") else name: tensor
               for name, tensor in tensors.items()}  # fmt: skip
    save_file(renamed, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"missing: prompt_encoder\.point_projection\.weight; unexpected: prompt"):
        PixelVLA.from_pretrained(tmp_path)


def test_a_part_with_the_old_names_of_modules_loads(policy, tmp_path):
    pytest.importorskip("peft", reason="needs the extra [train]")
    from train.checkpoints import load_part

    modules = {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith("backbone.")}
    save_file({old_name(name): tensor for name, tensor in modules.items()}, tmp_path / "modules.safetensors")
    torch.manual_seed(1)
    other = PixelVLA(SMALLER, byte_tokenizer(), STATISTICS)
    load_part(other, tmp_path)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in modules.items())


def test_pi0_reads_a_state_through_the_same_code(tmp_path):
    policy = make(PI0)
    states = [np.full(7, 0.1, np.float32), np.full(7, 0.6, np.float32)]
    first, second = (act(policy, state=state, **EVERYTHING) for state in states)
    assert first.shape == (8, 7) and np.abs(first - second).max() > 1e-5
    assert np.abs(first - act(policy, state=states[0])).max() > 1e-5
    observations = [
        Observation(picture(), "go", state=states[0], dataset="bridge_orig"),
        Observation(picture(), "open the drawer", **EVERYTHING, state=states[1], dataset="bridge_orig"),
    ]
    with torch.no_grad():
        together = policy(policy.processor(observations)).actions
        alone = policy(policy.processor(observations[:1])).actions
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=2e-5)
    policy.save_pretrained(tmp_path)
    np.testing.assert_array_equal(act(PixelVLA.from_pretrained(tmp_path), state=states[0], **EVERYTHING), first)
    assert policy.processor.view(96, 128).padded  # as π0 was trained; those of before say nothing and were stretched
    config = json.loads((tmp_path / "config.json").read_text())
    del config["settings"]["backbone"]["pad_images"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not PixelVLA.from_pretrained(tmp_path).processor.view(96, 128).padded
    with pytest.raises(InputError, match="proprioception"):
        act(policy)
    for state in (np.zeros(8, np.float32), ["a"] * 7):
        with pytest.raises(InputError, match=r"must be numbers \(7,\)"):
            act(policy, state=state)
    with pytest.raises(InputError, match="not finite"):
        act(policy, state=[np.nan] * 7)
    for proprio, says in (
        ({}, "no proprio.mean"),
        ({"mean": [0.0] * 7}, "no std"),
        ({"mean": [np.inf] * 7, "std": [1.0] * 7}, "not finite"),
    ):
        policy.processor.statistics = {"bridge_orig": STATISTICS["bridge_orig"] | {"proprio": proprio}}
        with pytest.raises(InputError, match=says):
            act(policy, state=states[0])


def test_what_is_not_scaled_is_not_cut_either():
    """But for the gripper: a motion that the statistics leave in robot units may be below 0 and above 1."""
    action = STATISTICS["bridge_orig"]["action"] | {"mask": [True] * 3 + [False] * 4}
    policy = PixelVLA(SMALLER, byte_tokenizer(), {"bridge_orig": {"action": action}}).eval()
    for bias, gripper in ((-50.0, 0), (50.0, 1)):
        torch.nn.init.constant_(policy.action_decoder.mlp[-1].bias, bias)
        actions = act(policy)
        np.testing.assert_allclose(actions[:, 3:6], bias, rtol=0.2)
        assert (actions[:, 6] == gripper).all() and np.abs(actions[:, :3]).max() < 0.031


def test_openvla_reads_a_state_through_a_token_of_its_own(policy, tmp_path):
    reading = make(ModelSettings.load(base=SMALLER.model_dump(), overrides=["proprioception=true"]))
    added = reading.state_dict().keys() - policy.state_dict().keys()
    assert {name.partition(".")[0] for name in added} == {"state_encoder"}
    states = [np.full(7, 0.1, np.float32), np.full(7, 0.6, np.float32)]
    np.testing.assert_array_equal(
        *(act(reading, state=state, **EVERYTHING) for state in states)
    )  # untrained it says nothing
    torch.nn.init.normal_(reading.state_encoder.token_mlp[-1].weight)
    first, second = (act(reading, state=state, **EVERYTHING) for state in states)
    assert first.shape == (8, 7) and np.abs(first - second).max() > 1e-5
    reading.save_pretrained(tmp_path)
    np.testing.assert_array_equal(act(PixelVLA.from_pretrained(tmp_path), state=states[0], **EVERYTHING), first)
    with pytest.raises(InputError, match="proprioception"):
        act(reading)
    with pytest.raises(InputError, match="pi0 reads proprioception by itself"):
        ModelSettings.load(base=PI0.model_dump(), overrides=["proprioception=true"])


@pytest.mark.parametrize("dataset", [None, "fractal20220817_data"])
def test_acting_needs_the_right_statistics(policy, dataset):
    with pytest.raises(InputError, match="statistics of: bridge_orig"):
        policy.predict_action(picture(), "go", dataset=dataset)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"instruction": " . "}, "name the task"),
        ({"image": picture().astype(np.float32)}, "uint8"),
        ({"image": picture()[..., 0]}, "height, width, 3"),
        ({"image": picture()[:0]}, r"not uint8 \(0, 128, 3\)"),
        ({"masks": [square(0, 0).astype(np.uint8)]}, "must be bool"),
        ({"masks": [square(0, 0)[:-1]]}, r"\(96, 128\)"),
        ({"prompts": point(5.0, 3.0)}, "list"),
        ({"prompts": [(5.0, 3.0)]}, "mask_prompt"),
        ({"prompts": [point(500.0, 3.0)]}, "500"),
        ({"prompts": [mask_prompt(square(0, 0)[:-1])]}, "96"),
    ],
)
def test_wrong_inputs_say_what_was_expected(policy, wrong, says):
    with pytest.raises(InputError, match=says):
        act(policy, **wrong)


class TestStart:
    @pytest.fixture
    def openvla(self):
        folder = SHARED / "data" / "openvla_tiny"
        if not folder.is_dir():
            pytest.skip(f"no {folder}; PIXELVLA_SHARED names the folder that holds data/")
        return folder

    def test_from_an_openvla_checkpoint(self, openvla):
        policies = [
            PixelVLA.start(openvla, STATISTICS, ["decoder_blocks=3"], byte_tokenizer(), dtype)
            for dtype in (None, torch.bfloat16)
        ]
        assert len(policies[0].action_decoder.blocks) == 3
        exact, rounded = (act(policy.eval(), **EVERYTHING) for policy in policies)
        assert exact.shape == (8, 7)
        assert policies[1].action_decoder.queries.dtype == torch.float32  # what is trained stays exact
        assert np.abs(exact - rounded)[:, :6].max() < 0.003

    def test_its_images_may_be_larger(self, openvla):
        policy = PixelVLA.start(openvla, STATISTICS, ["backbone.vision.image_size=112"], byte_tokenizer())
        assert policy.processor([Observation(picture(), "go")]).input_ids.eq(-1).sum() == 64
        assert act(policy, **EVERYTHING).shape == (8, 7)

    def test_it_is_no_policy_yet(self, openvla):
        with pytest.raises(InputError, match="--stage cat"):
            PixelVLA.from_pretrained(openvla)

    def test_from_a_preset_by_seed(self):
        first, again, other = (PixelVLA.start("tiny", STATISTICS, seed=seed).eval() for seed in (0, 0, 1))
        assert sum(parameter.numel() for parameter in first.parameters()) <= 3_000_000
        np.testing.assert_array_equal(act(first), act(again))
        assert np.abs(act(first) - act(other)).max() > 1e-4


class TestCommand:
    @pytest.fixture
    def files(self, policy, tmp_path_factory):
        folder = tmp_path_factory.mktemp("predict")
        policy.save_pretrained(folder / "policy")
        Image.fromarray(picture()).save(folder / "image.png")
        Image.fromarray(square(20, 30)).save(folder / "mask.png")
        return folder

    def run(self, files, *arguments):
        command = ["predict", "--checkpoint", str(files / "policy"), "--image", str(files / "image.png")]
        return CliRunner().invoke(main, [*command, "--instruction", "Pick up the cup.", *arguments])

    def test_prints_what_the_policy_predicts_and_draws_what_was_said(self, policy, files, tmp_path):
        said = ["--point", "30.5,40.5", "--line", "5,5,60,70,100,20", "--region", "20,30,36,46"]
        said += ["--mask", str(files / "mask.png"), "--dataset", "bridge_orig"]
        result = self.run(files, *said, "--json", "--draw", str(tmp_path / "said.png"))
        assert result.exit_code == 0, result.output
        prompts = [point(30.5, 40.5), line([(5, 5), (60, 70), (100, 20)]), region((20, 30, 36, 46))]
        expected = act(policy, masks=[square(20, 30)], prompts=prompts)
        np.testing.assert_allclose(json.loads(result.stdout), expected, rtol=0, atol=1e-6)
        drawn = np.asarray(Image.open(tmp_path / "said.png"))
        plain = cv2.resize(picture(), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        changed = (drawn != plain).any(2)
        assert drawn.shape == (4 * HEIGHT, 4 * WIDTH, 3)
        assert changed[30 * 4 : 46 * 4, 20 * 4 : 36 * 4].all() and not changed[: 4 * 4].any()

    def test_a_file_is_seen_as_a_person_sees_it(self, tmp_path, monkeypatch):
        """Turned as a camera says, and transparent outside of a mask; what Pillow will not read is one line."""
        image = Image.new("RGB", (60, 40))
        turned = image.getexif()
        turned[0x0112] = 6  # a quarter turn
        image.save(tmp_path / "image.jpg", exif=turned)
        assert read_image(tmp_path / "image.jpg").shape == (60, 40, 3)
        mask = np.full((8, 8, 4), 255, np.uint8)
        mask[3:, :, 3] = 0
        Image.fromarray(mask).save(tmp_path / "mask.png")
        assert read_mask(tmp_path / "mask.png").sum() == 24
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(InputError, match="could be decompression bomb"):
            read_image(tmp_path / "image.jpg")

    def test_table(self, files):
        result = self.run(files, "--dataset", "bridge_orig")
        assert result.exit_code == 0 and "gripper" in result.stdout and "Δyaw" in result.stdout

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            (["--dataset", "nowhere"], "bridge_orig"),
            (["--point", "1"], "--point takes x,y"),
            (["--line", "1,2"], "--line takes"),
            (["--region", "1,2,x,4"], "--region takes"),
            (["--point", "999,1"], "999"),
            (["--mask", "IMAGE"], "several colours"),
            (["--draw", "said"], "--draw said: its name does not end as an image's"),
        ],
    )
    def test_mistakes_are_one_line(self, files, wrong, says):
        wrong = [str(files / "image.png") if word == "IMAGE" else word for word in wrong]
        result = self.run(files, "--dataset", "bridge_orig", *wrong)
        assert result.exit_code == 1 and says in result.stderr and len(result.stderr.splitlines()) == 1
