"""Turn the trained models into what the package ships: half-precision safetensors, configuration, tokenizer.

The weights are stored as fp16 while the configuration asks for float32, so `from_pretrained(folder)` computes in
float32. The segmenter is stored as a Sam2VideoModel, as `facebook/sam2.1-hiera-*` are; Sam2Model loads it too.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import BertTokenizer, GroundingDinoForObjectDetection, PreTrainedModel, Sam2VideoModel

from tiny_models.frames import IMAGE_MEAN, IMAGE_STD, SIZE
from tiny_models.training import save_folder

# What `GroundingDinoImageProcessorPil` and SAM 2's image processor read; both models take 256 x 256.
_PREPROCESSING = {
    "size": {"height": SIZE, "width": SIZE},
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": IMAGE_MEAN,
    "image_std": IMAGE_STD,
    "resample": 2,
}
_DETECTOR_PREPROCESSING = {
    "image_processor_type": "GroundingDinoImageProcessor",
    "processor_class": "GroundingDinoProcessor",
    "do_pad": False,
}
_SEGMENTER_PREPROCESSING = {
    "image_processor_type": "Sam2ImageProcessor",
    "processor_class": "Sam2VideoProcessor",
    "mask_size": {"height": SIZE // 4, "width": SIZE // 4},
}


def export_detector(trained: Path, out: Path) -> None:
    """Write the detector's folder."""
    model = GroundingDinoForObjectDetection.from_pretrained(trained)
    tokenizer = BertTokenizer.from_pretrained(trained)

    def write(folder: Path) -> None:
        _write_model(model, folder)
        tokenizer.save_pretrained(folder)
        shutil.copyfile(trained / "vocab.txt", folder / "vocab.txt")
        _write_json(folder / "preprocessor_config.json", _PREPROCESSING | _DETECTOR_PREPROCESSING)

    _replace(out, write)


def export_segmenter(trained: Path, out: Path) -> None:
    """Write the segmenter's folder."""
    model = Sam2VideoModel.from_pretrained(trained)

    def write(folder: Path) -> None:
        _write_model(model, folder)
        _write_json(folder / "preprocessor_config.json", _PREPROCESSING | _SEGMENTER_PREPROCESSING)

    _replace(out, write)


def _write_model(model: PreTrainedModel, folder: Path) -> None:
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # transformers writes it for its owner alone
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    _write_json(path, config)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _replace(out: Path, write: Callable[[Path], None]) -> None:
    """Replace the folder, all but its card."""
    card = out / "README.md"
    text = card.read_text() if card.exists() else None
    save_folder(out, write)
    if text is not None:
        card.write_text(text)


def main() -> None:
    """Export both models, or the one that is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detector", type=Path, help="folder that train_detector wrote")
    parser.add_argument("--segmenter", type=Path, help="folder that train_segmenter_memory wrote")
    parser.add_argument("--out", type=Path, default=Path("annotate/annotators/tiny"))
    arguments = parser.parse_args()
    if arguments.detector:
        export_detector(arguments.detector, arguments.out / "detector")
    if arguments.segmenter:
        export_segmenter(arguments.segmenter, arguments.out / "segmenter")


if __name__ == "__main__":
    main()
