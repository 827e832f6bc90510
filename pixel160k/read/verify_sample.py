"""The checks of one sample as it lies in a tar: its members, what they hold, and whether they agree with each other."""

import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from pixel160k.errors import InputError, one_line
from pixel160k.format import masks, shards
from pixel160k.format.actions import ACTION_DIMENSIONS
from pixel160k.format.metadata import Metadata
from pixel160k.format.schema import Manifest, check_metadata
from pixel160k.format.table import ACCEPTED, CONTRADICTED, NOT_APPLICABLE, REASONS, SUPPORTED
from pixel160k.paths import AnyPath
from pixel160k.read import foreign
from pixel160k.read.folder import explain

Report = Callable[[str, str], None]
"""Takes a fault: the file or key that it is of, and what is wrong."""

_KEY = re.compile(r"(?P<episode>[A-Za-z0-9_]+-[A-Za-z0-9_]+-\d{5}-\d{5})-(?P<step>\d{4,9})", re.ASCII)
_BLOCK = tarfile.BLOCKSIZE
_LABELS = {masks.BACKGROUND, masks.GRIPPER, masks.TARGET, masks.NOT_ANNOTATED}


class View(NamedTuple):
    """An image of a further camera: what ends its member's name, and its size in pixels."""

    form: str
    height: int
    width: int


@dataclass
class StoredSample:
    """One sample of a tar.

    Attributes:
        key: `{episode_id}-{step:04d}`.
        offset: of its first member in the tar, in bytes.
        length: of all its members together, headers and padding included, in bytes.
        members: the bytes of each member by its suffix, until `check_sample` has read them.
        metadata: its JSON member; None where that cannot be read.
        chunk: float32 (horizon, 7); None where it cannot be read.
        state: float32 (S,); None where it cannot be read.
        views: of each further camera that it has, what ends its member's name, and its height and width in pixels; None where
            that image cannot be used.
    """

    key: str
    offset: int
    length: int = 0
    members: dict[str, bytes] = field(default_factory=dict)
    metadata: Metadata | None = None
    chunk: np.ndarray | None = None
    state: np.ndarray | None = None
    views: dict[str, View | None] = field(default_factory=dict)

    @property
    def episode_id(self) -> str:
        """The part of the key before the step."""
        return self.key.rpartition("-")[0]

    @property
    def step(self) -> int:
        """The raw step that the key says."""
        return int(self.key.rpartition("-")[2])


class _Labels(NamedTuple):
    """Which labels occur in a label image, and its size in pixels."""

    values: frozenset[int]
    height: int
    width: int


def stored_samples(path: AnyPath, cameras: Collection[str], report: Report) -> Iterator[StoredSample]:
    """The samples of a tar in their order: neighbouring members of one key. Reports what is no sample.

    Members are read into memory; nothing is ever unpacked to the disk.

    Args:
        path: of the tar.
        cameras: the further ones that samples may have images of.
        report: takes the faults.
    """
    known = {*shards.MEMBERS, *shards.IMAGES, *(f"{camera}.{form}" for camera in cameras for form in shards.IMAGES)}
    sample: StoredSample | None = None
    end = 0  # of the last member that could be read
    try:
        with path.open("rb") as file:
            for member, content in foreign.tar_members(file):
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                key, _, suffix = member.name.partition(".")
                if not member.isreg():
                    report(path.name, f"{member.name!r} is no regular file")
                    continue
                if not _KEY.fullmatch(key) or suffix not in known:
                    report(path.name, f"foreign member {member.name!r}")
                    continue
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = StoredSample(key, member.offset)
                if suffix in sample.members:
                    report(key, f"member {suffix} stands twice")
                sample.members[suffix] = content
                sample.length = end - sample.offset
            file.seek(end)
            rest = file.read()
        if len(rest) < 2 * _BLOCK or any(rest):
            report(path.name, "does not end as a tar ends: it was cut, or something was appended")
    except (OSError, InputError) as error:
        report(path.name, f"broken tar after sample {sample.key if sample else '(none)'} ({one_line(error)})")
    if sample is not None:
        yield sample


def check_sample(sample: StoredSample, manifest: Manifest, report: Report) -> None:
    """Check the members of a sample, and keep of them what the checks of order and statistics need."""
    if missing := shards.missing_members(sample.members):
        report(sample.key, f"lacks {', '.join(missing)}")
    labels = _check_images(sample, manifest, report)
    for camera in manifest.cameras:
        _check_view(sample, camera, report)
    if "json" in sample.members:
        try:
            sample.metadata = check_metadata(sample.members["json"])
        except ValidationError as error:
            for fault in explain(error):
                report(sample.key, f"its JSON: {fault}")
    if sample.metadata is not None:
        for fault in _metadata_faults(sample.key, sample.metadata, manifest):
            report(sample.key, fault)
        if labels is not None:
            for fault in _mark_faults(sample.metadata, labels):
                report(sample.key, fault)
    sample.chunk = _read_floats(sample, "action.npy", (manifest.horizon, ACTION_DIMENSIONS), report)
    sample.state = _read_floats(sample, "state.npy", None, report)
    sample.members = {}


def _check_images(sample: StoredSample, manifest: Manifest, report: Report) -> _Labels | None:
    """Decode both images; None where they cannot be used."""
    name = shards.image_member(sample.members)
    if not {name, "mask.png"} <= set(sample.members):
        return None
    if {*shards.IMAGES} <= set(sample.members) or (name == "png" and manifest.format_version < shards.WITH_PNG_VERSION):
        report(sample.key, "holds a png where the format has a jpg alone")
    try:
        image, kind = foreign.decode_picture(sample.members[name], shards.IMAGES[name])
        found = _read_labels(sample.members["mask.png"])
    except InputError as error:
        report(sample.key, f"image or mask does not decode ({error})")
        return None
    if kind:
        report(sample.key, f"the image is {kind}, not RGB: readers give it other channels; build these shards again")
    width, height = image.size
    if wrong := found.values - _LABELS:
        report(sample.key, f"the mask holds label {min(wrong)}, which is none of 0, 1, 2, 255")
        return None
    if (found.height, found.width) != (height, width):
        report(sample.key, f"the mask is {found.width}x{found.height}, the image {width}x{height}")
        return None
    return found


def _check_view(sample: StoredSample, camera: str, report: Report) -> None:
    """Decode the image of a further camera, if the sample has one."""
    for form in [form for form in shards.IMAGES if f"{camera}.{form}" in sample.members]:
        name = f"{camera}.{form}"
        if camera in sample.views:
            report(sample.key, f"holds both a jpg and a png of {camera}")
        sample.views[camera] = None
        try:
            image, kind = foreign.decode_picture(sample.members[name], shards.IMAGES[form])
        except InputError as error:
            report(sample.key, f"{name} does not decode ({error})")
            continue
        if kind:
            report(sample.key, f"{name} is {kind}, not RGB: readers give it other channels; build these shards again")
        sample.views[camera] = View(form, image.height, image.width)


@lru_cache(maxsize=8)  # where nothing is annotated, the bytes are the same at every step
def _read_labels(png: bytes) -> _Labels:
    labels = foreign.decode_labels(png)
    return _Labels(frozenset(np.flatnonzero(np.bincount(labels.ravel())).tolist()), *labels.shape)


def _metadata_faults(key: str, metadata: Metadata, manifest: Manifest) -> Iterator[str]:
    """The JSON agrees with the key, the manifest and itself."""
    if (named := shards.sample_key(metadata.episode_id, metadata.step)) != key:
        yield f"its JSON is of {named}"
    if metadata.dataset != manifest.dataset or not metadata.episode_id.startswith(f"{metadata.dataset}-"):
        yield f"its JSON is of the data set {metadata.dataset}"
    if not metadata.first_step <= metadata.step <= metadata.last_step < metadata.num_steps:
        yield "its steps are not 0 <= first_step <= step <= last_step < num_steps"
    if metadata.close_step >= metadata.num_steps:
        yield "close_step is not within the episode"
    if metadata.prompt_step not in (-1, metadata.first_step):
        yield "prompt_step is neither first_step nor -1"
    if manifest.include != "all" and metadata.status != ACCEPTED:
        yield "its status is not among those that the manifest includes"
    if metadata.reason not in ([""] if metadata.status == ACCEPTED else REASONS):
        yield f"status {metadata.status} with reason {metadata.reason!r}"
    if metadata.evidence_status not in (SUPPORTED, CONTRADICTED, NOT_APPLICABLE):
        yield f"unknown evidence_status {metadata.evidence_status!r}"


def _mark_faults(metadata: Metadata, labels: _Labels) -> Iterator[str]:
    """The labels agree with what the JSON says is marked; boxes, points and the RLE with the image's size."""
    height, width = labels.height, labels.width
    allowed = {masks.BACKGROUND, masks.GRIPPER, masks.TARGET}
    if not metadata.object_mask_valid:
        allowed -= {masks.TARGET}
    if not metadata.gripper_mask_valid:
        allowed -= {masks.GRIPPER}
    if allowed == {masks.BACKGROUND}:
        allowed = {masks.NOT_ANNOTATED}
    if wrong := labels.values - allowed:
        yield f"the mask holds label {min(wrong)}, which its JSON says is not marked here"
    for name in ("object_box", "region_box", "gripper_box"):
        x0, y0, x1, y1 = box = getattr(metadata, name)
        if tuple(box) != masks.NO_BOX and not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            yield f"{name} {box} is no box in an image of {width}x{height}"
    for name in ("points", "line"):
        points = getattr(metadata, name)
        if points != shards.NO_POINTS and not all(0 <= x <= width and 0 <= y <= height for x, y in points):
            yield f"{name} {points} lie outside the image of {width}x{height}"
    rle = metadata.object_mask
    if rle != shards.NO_RLE and not (rle["size"] == [height, width] and _is_canonical(height, width, rle["counts"])):
        yield f"object_mask is no RLE of an image of {width}x{height}"


@lru_cache(maxsize=8)  # all samples of an episode hold the same
def _is_canonical(height: int, width: int, counts: str) -> bool:
    """Whether an RLE is one, and written as `masks.encode` writes it."""
    rle: masks.RLE = {"size": [height, width], "counts": counts}
    try:
        mask = foreign.decode_rle(rle)
    except InputError:
        return False
    return masks.encode(mask) == rle


def _read_floats(sample: StoredSample, name: str, shape: tuple[int, ...] | None, report: Report) -> np.ndarray | None:
    """The array of a member, float32, of this shape or else (S,); None where it is missing or another."""
    if name not in sample.members:
        return None
    try:
        values = foreign.decode_array(sample.members[name])
    except InputError as error:
        report(sample.key, f"{name} cannot be read ({error})")
        return None
    if values.dtype != np.float32:
        report(sample.key, f"{name} holds no float32")
    elif values.shape != shape if shape else values.ndim != 1 or not len(values):
        report(sample.key, f"{name} has the shape {values.shape}, not {shape or '(S,)'}")
    elif not np.isfinite(values).all():
        report(sample.key, f"{name} holds a value that is not finite")
    else:
        return values
    return None
