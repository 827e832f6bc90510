"""A sample as HTML, for notebooks: its image with what is marked on it, and what is known of it in words.

`Sample` imports this when a notebook shows it; so nothing of `pixel160k.read` is imported here.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from markupsafe import Markup

from pixel160k.format import table
from pixel160k.show import drawing

if TYPE_CHECKING:
    from pixel160k.read.samples import Sample

LAYERS = ("object mask", "gripper mask", "prompts")
"""What can be drawn over a sample's image."""
_TEMPLATE = Path(__file__).with_name("sample.html")
_NOT_ANNOTATED = "not annotated on this step"


def sample_html(sample: "Sample", layers: Collection[str] = LAYERS) -> str:
    """A self-contained piece of HTML that shows a sample: its image with layers over it, and its facts as text.

    Args:
        sample: read with any members; what was not read is left out.
        layers: which of `LAYERS` are drawn. A mask is drawn where its class is annotated on this step, prompts only on the
            step that they belong to.
    """
    return drawing.render(
        _TEMPLATE,
        {
            "sample": sample,
            "picture": _picture(sample, layers),
            "views": [_view(name, image) for name, image in sample.views.items()],
            "instruction": split_at_target(sample.instruction, sample.target_object),
            "meaning": table.REASONS.get(sample.reason, ""),
            "facts": _facts(sample),
        },
    )


def split_at_target(instruction: str, target: str) -> tuple[str, str, str]:
    """Cut an instruction into the text before the target's words, these words as they stand there, and the text after.

    Upper and lower case do not matter, nor how many spaces or underscores are between words. Where the target is not in
    the instruction, the first text is all of it and the others are "".
    """
    words = [re.escape(word) for word in target.split()]
    if words:
        # A word ends where no letter or digit follows; \b would not do, since it takes an underscore for a letter.
        pattern = r"(?<![^\W_])" + r"[\s_]+".join(words) + r"(?![^\W_])"
        if match := re.search(pattern, instruction, re.IGNORECASE):
            return instruction[: match.start()], match.group(), instruction[match.end() :]
    return instruction, "", ""


def _picture(sample: "Sample", layers: Collection[str]) -> Markup:
    if sample.image is None:
        return Markup('<p class="faint">(read without its image)</p>')
    drawn = []
    if sample.labels is not None:
        for layer, mask, name in (
            ("object mask", sample.object_mask, "mask target"),
            ("gripper mask", sample.gripper_mask, "mask gripper"),
        ):
            if layer in layers and mask is not None:
                drawn.append(drawing.mask_layer(mask, name))
    if "prompts" in layers and sample.step == sample.metadata.prompt_step:
        # Points last: they are the smallest.
        drawn += [drawing.prompt_layer(prompt) for prompt in reversed(sample.prompts)]
    jpeg = cv2.imencode(".jpg", sample.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    height, width, _ = sample.image.shape
    return drawing.picture(jpeg, (height, width), drawn, f"step {sample.step}")


def _view(camera: str, image: np.ndarray | None) -> Markup:
    """What a further camera shows, on which nothing is marked."""
    if image is None:
        return Markup('<p class="faint">(no {} in this episode)</p>').format(camera)
    jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    height, width, _ = image.shape
    return drawing.picture(jpeg, (height, width), [], camera)


def _facts(sample: "Sample") -> list[tuple[str, str]]:
    metadata = sample.metadata
    carries = f"step {metadata.close_step}" if metadata.close_step >= 0 else "on nothing that it carries"
    facts = [
        ("step", f"{sample.step}, of {metadata.first_step} to {metadata.last_step}"),
        ("gripper closes", "never" if sample.reason == "no_gripper_close" else carries),
        ("object", sample.target_object or "none named"),
    ]
    if sample.labels is not None:
        for name, mask in (("object mask", sample.object_mask), ("gripper mask", sample.gripper_mask)):
            facts.append((name, _NOT_ANNOTATED if mask is None else _size(mask)))
    if sample.prompts:
        kinds = [prompt.kind for prompt in sample.prompts]
        counts = [(kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)]
        said = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts)
        facts.append(("prompts", f"{said}, on step {metadata.prompt_step}"))
    if metadata.prompt_step >= 0:
        facts.append(("scores", f"detection {metadata.score:.2f}, mask {metadata.mask_score:.2f}"))
        evidence = metadata.evidence_status.replace("_", " ")
        facts.append(
            ("motion", evidence if evidence == "not applicable" else f"{evidence}, {metadata.evidence_score:.2f}")
        )
    if sample.actions is not None and sample.action_mask is not None:
        real = np.count_nonzero(sample.action_mask)
        facts.append(
            (
                "actions",
                f"{len(sample.actions)}, {real} of them the episode's own; the first: {_numbers(sample.actions[0])}",
            )
        )
    if sample.state is not None:
        facts.append(("state", _numbers(sample.state)))
    return facts


def _size(mask: np.ndarray) -> str:
    pixels = np.count_nonzero(mask)
    return f"{pixels:,} pixel{'s' if pixels > 1 else ''}" if pixels else "nothing of it visible"


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in values.tolist()).replace("-", "−")
