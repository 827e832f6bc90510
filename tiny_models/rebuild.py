"""Rebuild both tiny checkpoints from nothing: record, train both at the same time on two cores, export, measure.

`python -m tiny_models.rebuild --work build/tiny` writes `annotate/annotators/tiny/{detector,segmenter}` and prints the
numbers of the model cards. Recordings and frames that exist already are used again.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def run(script: str, *arguments: str | Path) -> None:
    """Run one of the scripts of this folder on one core, and raise CalledProcessError if it fails."""
    command = [sys.executable, "-m", f"tiny_models.{script}", *map(str, arguments)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def train_segmenter(work: Path) -> None:
    """Run the three phases of the segmenter's training."""
    run("train_segmenter_image", "--frames", work, "--out", work / "image_first")
    # Again on the same data, with a lower learning rate and another seed.
    run(
        "train_segmenter_image",
        *("--frames", work, "--start", work / "image_first", "--out", work / "image"),
        *("--steps", "4345", "--learning-rate", "7e-4", "--seed", "1"),
    )
    run(
        "train_segmenter_memory",
        *("--frames", work, "--image-model", work / "image", "--out", work / "video", "--steps", "2700"),
    )


def main() -> None:
    """Run all scripts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for recordings and unfinished models (2 GB)")
    parser.add_argument("--out", type=Path, default=Path("annotate/annotators/tiny"))
    arguments = parser.parse_args()
    work = arguments.work
    run("record", "--out", work)
    for split in ("train", "monitor"):
        if not (work / f"{split}_frames" / "index.json").exists():
            run("frames", "--recordings", work / split, "--out", work / f"{split}_frames")
    with ThreadPoolExecutor(2) as cores:
        detector = cores.submit(run, "train_detector", "--frames", work, "--out", work / "detector")
        segmenter = cores.submit(train_segmenter, work)
        detector.result()
        segmenter.result()
    run("export", "--detector", work / "detector", "--segmenter", work / "video", "--out", arguments.out)
    run("measure", "--frames", work / "monitor_frames", "--checkpoints", arguments.out)


if __name__ == "__main__":
    main()
