"""Who fills the three roles: from the settings to loaded annotators, once a process."""

from functools import lru_cache, partial
from importlib.util import find_spec

from annotate.annotator import Annotators, Tracker
from annotate.motion_roles import GrammarNamer, MotionGripperFinder, MotionObjectFinder
from annotate.pretrained import check, resolve
from annotate.roles import TargetNamer
from annotate.settings import AnnotateSettings
from annotate.stages import Stages


@lru_cache(maxsize=1)
def choose_annotators(settings: AnnotateSettings, device: str) -> Annotators:
    """The annotators of the settings; models are loaded here and stay for the life of the process.

    Raises:
        ValueError: a model cannot be loaded.
    """
    if settings.annotators == "motion" and not settings.tracks:
        return _motion_annotators(settings, Stages(), None)

    import torch

    from annotate.segmenter import Segmenter
    from annotate.tracking import track_episodes

    torch.set_num_threads(1)  # one process a core; and results may not depend on a thread count
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32: float32's range, and eight times the speed
    stages = Stages(device)
    segmenter = Segmenter(settings.foundation, device, stages)
    track = partial(track_episodes, segmenter=segmenter) if settings.tracks else None
    if settings.annotators == "motion":
        return _motion_annotators(settings, stages, track)

    from annotate.detector import Detector
    from annotate.foundation import DetectedObjectFinder, TrackedGripperFinder

    detector = Detector(settings.foundation, device, stages)
    return Annotators(
        TrackedGripperFinder(detector, segmenter, settings.foundation),
        _namer(settings, device),
        DetectedObjectFinder(detector, segmenter, settings.detections),
        settings.foundation.video_length,
        settings.foundation.region_expansion,
        stages,
        track,
    )


def _motion_annotators(settings: AnnotateSettings, stages: Stages, track: Tracker | None) -> Annotators:
    objects = MotionObjectFinder(settings.detections)
    expansion = settings.motion.region_expansion
    return Annotators(MotionGripperFinder(), GrammarNamer(), objects, 1, expansion, stages, track)


def check_annotators(settings: AnnotateSettings) -> None:
    """Check, before workers start, that the models of the settings can be had.

    Raises:
        ValueError: the packages or a model are missing; one line that says how to get them.
    """
    if settings.annotators == "motion" and not settings.tracks:
        return
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise ValueError(
                f"the models need {package}: pip install 'pixelvla[foundation]', or --set annotators=motion without tracks"
            )
    check("foundation.segmenter", resolve(settings.foundation.segmenter, "segmenter"))
    if settings.annotators == "motion":
        return
    check("foundation.detector", resolve(settings.foundation.detector, "detector"))
    if settings.target.method != "grammar":
        check("target.model", settings.target.model)


def model_names(settings: AnnotateSettings) -> dict[str, str]:
    """Role -> what fills it, for the metadata of everything that is written."""
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
    from annotate.language_model import LanguageModelNamer

    generate = settings.target.method == "generate"
    return LanguageModelNamer(settings.target.model, device, settings.foundation.dtype, generate)
