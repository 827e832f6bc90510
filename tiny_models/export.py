"""Turn the trained models into what the package ships: safetensors in half precision, configuration, tokenizer.

The weights are stored as fp16, but the configuration says float32, so that `from_pretrained(folder)` computes in
float32. The segmenter is stored as a Sam2VideoModel, as `facebook/sam2.1-hiera-*` are; Sam2Model loads it too.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import BertTokenizer, GroundingDinoForObjectDetection, PreTrainedModel, Sam2VideoModel

from pixel160k.files import new_folder, read_json
from tiny_models.frames import IMAGE_MEAN, IMAGE_STD, SIZE

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
    """Write what is shipped of the detector, from the folder that train_detector wrote; only a README.md in `out` stays."""
    model = GroundingDinoForObjectDetection.from_pretrained(trained)
    tokenizer = BertTokenizer.from_pretrained(trained)
    with replaced(out) as folder:
        _write_model(model, folder)
        tokenizer.save_pretrained(folder)
        shutil.copyfile(trained / "vocab.txt", folder / "vocab.txt")
        _write_json(folder / "preprocessor_config.json", _PREPROCESSING | _DETECTOR_PREPROCESSING)


def export_segmenter(trained: Path, out: Path) -> None:
    """Write what is shipped of the segmenter, from the folder that train_segmenter_memory wrote; as `export_detector`."""
    model = Sam2VideoModel.from_pretrained(trained)
    with replaced(out) as folder:
        _write_model(model, folder)
        _write_json(folder / "preprocessor_config.json", _PREPROCESSING | _SEGMENTER_PREPROCESSING)


def _write_model(model: PreTrainedModel, folder: Path) -> None:
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    _write_json(path, read_json(path) | {"dtype": "float32"})


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A temporary folder for a model, which replaces `out` when the block ends; the model card of `out` is kept."""
    with new_folder(out, replace=True) as folder:
        yield folder
        (folder / "model.safetensors").chmod(0o644)  # it is written readable for its owner only
        if (out / "README.md").exists():
            shutil.copyfile(out / "README.md", folder / "README.md")


def main() -> None:
    """Export the given models: the detector, the segmenter, or both."""
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
