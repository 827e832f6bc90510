"""Who fills the three roles: from the settings to loaded annotators, once per process."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial

import cv2

from annotate.annotator import Annotators
from annotate.annotators.grammar import GrammarNamer
from annotate.annotators.motion_roles import MotionGripperFinder, MotionObjectFinder
from annotate.annotators.pretrained import check_device, elsewhere, pin
from annotate.annotators.roles import TargetNamer
from annotate.faults import WorkerUnusable
from annotate.settings import AnnotateSettings
from annotate.timing import Stopwatch
from pixel160k.errors import InputError, one_line
from pixel160k.packages import require_packages

_CHOOSING = threading.Lock()
# Episodes that go through the models together, and that a thread reads ahead. On a CPU a group goes alone, so that what stands
# in a batch beside a frame, and with it the last bits, is the group's own; and a thread would take the core from the models.
_ON_A_CPU, _ON_A_GPU = (1, 0), (32, 32)


def choose_annotators(settings: AnnotateSettings, device: str) -> Annotators:
    """The annotators that the settings name. Models are loaded here and stay in memory for the life of the process.

    However many threads ask, each model is loaded once: the others wait, and get the same annotators.

    Args:
        settings: of `pixelcli annotate`.
        device: where the models compute, as torch names it.

    Raises:
        WorkerUnusable: the device cannot be used or has no room for the models, or one cannot be loaded.
    """
    # Held while transformers is imported, too: its lazy modules fail where several threads import them at once.
    with _CHOOSING:
        cv2.setNumThreads(1)  # one process per core; and results may not depend on a thread count
        try:
            return _choose(settings, device)
        except InputError as error:
            raise WorkerUnusable(one_line(error)) from error
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # of torch
                raise
            raise WorkerUnusable(
                f"--device {device} has no room for the models ({one_line(error).split('. ')[0]}); try fewer --workers"
            ) from error


@lru_cache(maxsize=1)
def _choose(settings: AnnotateSettings, device: str) -> Annotators:
    if settings.annotators == "motion" and settings.tracks == "none":
        return _motion_annotators(settings, Stopwatch())

    import torch

    from annotate.annotators.segmenter import Segmenter
    from annotate.annotators.tracking import track_episodes

    torch.set_num_threads(1)  # one process per core; and results may not depend on a thread count
    check_device(device)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32: float32's range, and eight times the speed
    stopwatch = Stopwatch(device)
    segmenter = Segmenter(settings.foundation, device, stopwatch)
    together, ahead = _ON_A_CPU if device == "cpu" else _ON_A_GPU
    track = None if settings.tracks == "none" else partial(track_episodes, segmenter=segmenter)
    if settings.annotators == "motion":
        motion = _motion_annotators(settings, stopwatch)
        return replace(motion, track=track, lock=threading.RLock(), together=together, ahead=ahead)

    from annotate.annotators.detector import Detector
    from annotate.annotators.foundation import DetectedObjectFinder, TrackedGripperFinder

    detector = Detector(settings.foundation, device, stopwatch)
    return Annotators(
        TrackedGripperFinder(detector, segmenter, settings.foundation),
        _namer(settings, device),
        DetectedObjectFinder(detector, segmenter, settings.detections, settings.choice),
        settings.foundation.video_length,
        settings.foundation.region_expansion,
        stopwatch,
        track,
        threading.RLock(),
        together,
        ahead,
    )


def _motion_annotators(settings: AnnotateSettings, stopwatch: Stopwatch) -> Annotators:
    objects = MotionObjectFinder(settings.detections)
    expansion = settings.motion.region_expansion
    return Annotators(MotionGripperFinder(), GrammarNamer(), objects, 1, expansion, stopwatch)


def pin_models(settings: AnnotateSettings) -> dict[str, str]:
    """Before workers start, which revisions of the models the settings mean now; loads no weights.

    Returns:
        By its setting each model that will be loaded, as `NAME@REVISION` (pretrained.py); empty where none is.

    Raises:
        InputError: the packages or a model are missing; one line that says how to get them.
    """
    if settings.annotators == "motion" and settings.tracks == "none":
        return {}
    require_packages("foundation", "torch", "transformers", otherwise="--set annotators=motion without tracks")
    models = {"foundation.segmenter": settings.foundation.segmenter}
    if settings.annotators != "motion":
        models["foundation.detector"] = settings.foundation.detector
        if settings.target.method != "grammar":
            models["target.model"] = settings.target.model
    return {setting: pin(setting, model) for setting, model in models.items()}


def with_models(settings: AnnotateSettings, pinned: Mapping[str, str]) -> AnnotateSettings:
    """The settings by which any worker loads exactly these models."""
    values = {setting: elsewhere(model) for setting, model in pinned.items()}
    return AnnotateSettings.load(base=settings.model_dump(), values=values)


def model_names(settings: AnnotateSettings) -> dict[str, str]:
    """What fills each role (gripper, target, object), in words, for the metadata of everything that is written."""
    if settings.annotators == "motion":
        return {"gripper": "motion", "target": "verb-pattern grammar", "object": "motion"}
    detector, segmenter = settings.foundation.detector, settings.foundation.segmenter
    grammar = settings.target.method == "grammar"
    return {
        "gripper": f"{detector} + {segmenter} (video)",
        "target": "verb-pattern grammar" if grammar else f"{settings.target.model} ({settings.target.method})",
        "object": f"{detector} + {segmenter}",
    }


def _namer(settings: AnnotateSettings, device: str) -> TargetNamer:
    if settings.target.method == "grammar":
        return GrammarNamer()
    from annotate.annotators.language_model import LanguageModelNamer

    generate = settings.target.method == "generate"
    return LanguageModelNamer(settings.target.model, device, settings.foundation.dtype, generate)
