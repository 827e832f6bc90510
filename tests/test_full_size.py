"""The real sizes (hub configurations, random weights) pass through the very code that the tiny ones take."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [foundation]")
transformers = pytest.importorskip("transformers", reason="needs the extra [foundation]")

from random_models import write_detector  # noqa: E402
from test_language_model import MUG_ON_PLATE, TEMPLATE, save_tokenizer  # noqa: E402

from annotate.annotators.detector import Detector  # noqa: E402
from annotate.annotators.foundation import DetectedObjectFinder, TrackedGripperFinder  # noqa: E402
from annotate.annotators.language_model import LanguageModelNamer  # noqa: E402
from annotate.annotators.roles import Gripper  # noqa: E402
from annotate.annotators.segmenter import Segmenter  # noqa: E402
from annotate.settings import ChoiceSettings, FoundationSettings  # noqa: E402
from annotate.timing import Stopwatch  # noqa: E402


def grounding_dino_tiny(folder):
    """IDEA-Research/grounding-dino-tiny: Swin-T, BERT base, 900 queries, 800 pixels."""
    write_detector(folder, size=256)  # for its tokenizer, whose ids lie within BERT's
    transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333}).save_pretrained(
        folder
    )
    swin = transformers.SwinConfig(
        image_size=224,
        window_size=7,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        out_indices=[2, 3, 4],
    )
    config = transformers.GroundingDinoConfig(backbone_config=swin)
    model = transformers.GroundingDinoForObjectDetection(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def sam2_hiera_small(folder):
    """facebook/sam2.1-hiera-small: Hiera-S at 1024 pixels, with the video memory."""
    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=96, num_attention_heads=1, blocks_per_stage=[1, 2, 11, 2], embed_dim_per_stage=[96, 192, 384, 768],
        num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[8, 4, 14, 7], global_attention_blocks=[7, 10, 13],
    )  # fmt: skip
    config = transformers.Sam2VideoConfig(vision_config=transformers.Sam2VisionConfig(backbone_config=hiera))
    model = transformers.Sam2VideoModel(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def smollm2_1_7b(folder):
    """HuggingFaceTB/SmolLM2-1.7B-Instruct, the default of target.model: a Llama with 24 layers of width 2048."""
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=8192, rope_theta=130000, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.device("meta"):  # drawing each of its numbers would take half a minute
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    drawn = torch.empty(2**20, dtype=torch.bfloat16).normal_(std=0.02)
    for parameter in model.to_empty(device="cpu").parameters():
        parameter.data = drawn.repeat(parameter.numel() // len(drawn) + 1)[: parameter.numel()].view_as(parameter)
    model.tie_weights()
    model.save_pretrained(folder)
    return model.num_parameters()


@pytest.mark.slow
def test_full_size_language_model_takes_the_same_path(tmp_path):
    save_tokenizer(tmp_path, TEMPLATE)  # of a few words, whose ids lie within the model's
    assert 1.65e9 < smollm2_1_7b(tmp_path) < 1.75e9
    ranked = LanguageModelNamer(str(tmp_path), dtype="bfloat16")
    assert ranked.name_targets([MUG_ON_PLATE])[0] in ("white mug", "left plate")
    answered = LanguageModelNamer(str(tmp_path), dtype="bfloat16", generate=True)
    # What random weights say is no phrase of the instruction, or by chance one that is.
    assert all(name in MUG_ON_PLATE for name in answered.name_targets([MUG_ON_PLATE]))


@pytest.mark.slow
def test_full_size_models_take_the_same_path(tmp_path):
    assert 1.6e8 < grounding_dino_tiny(tmp_path / "detector") < 1.8e8
    assert 4.4e7 < sam2_hiera_small(tmp_path / "segmenter") < 4.8e7
    chosen = FoundationSettings(
        detector=str(tmp_path / "detector"), segmenter=str(tmp_path / "segmenter"), dtype="bfloat16",
        box_threshold=0.0, text_threshold=0.0,
    )  # fmt: skip
    detector, segmenter = (model(chosen, "cpu", Stopwatch()) for model in (Detector, Segmenter))
    frame = np.random.default_rng(0).integers(0, 255, (256, 320, 3)).astype(np.uint8)
    candidate = SimpleNamespace(
        keyframes=SimpleNamespace(initial=frame, close=frame),
        episode=SimpleNamespace(base_moves=True, instruction="pick it up"),
    )
    ((gripper,),) = TrackedGripperFinder(detector, segmenter, chosen).find_grippers([[candidate]])
    held = Gripper((100.0, 60.0, 220.0, 180.0), np.ones((256, 320), bool))
    finder = DetectedObjectFinder(detector, segmenter, 5, ChoiceSettings())
    (found,) = finder.find_objects([candidate], [held], [(0, 0, 320, 256)], ["red disc"])
    assert gripper is None or gripper.mask.shape == (256, 320)
    assert 1 <= len(found.detections) <= 5
    assert all(
        0 <= x0 < x1 <= 320 and 0 <= y0 < y1 <= 256 for x0, y0, x1, y1 in (item.box for item in found.detections)
    )
    tracked = segmenter.track([frame, frame], 0, (100.0, 60.0, 220.0, 180.0))
    assert [segment.mask.shape for segment in tracked] == [(256, 320)] * 2
