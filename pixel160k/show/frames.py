"""One step of an episode as a picture with what is marked on it, from the shards; as a thumbnail where many are shown."""

import cv2
import numpy as np
from markupsafe import Markup

from pixel160k.errors import InputError
from pixel160k.format import masks
from pixel160k.format.metadata import Metadata
from pixel160k.format.shards import camera_member, image_member, sample_key
from pixel160k.read.episodes import ShardDirectory
from pixel160k.read.foreign import decode_rle
from pixel160k.read.samples import decode
from pixel160k.show import drawing

THUMBNAIL = 192  # pixels of the longer side


def frame(directory: ShardDirectory, episode: str, step: int, thumbnail: bool = False) -> Markup:
    """An HTML figure of a step: its frame, and as SVG over it masks, region proposal and prompts as far as they are its own.

    Args:
        directory: the shards.
        episode: id of the episode.
        step: the raw step.
        thumbnail: whether the frame is made smaller; else its bytes are embedded as they are.

    Raises:
        InputError: there is no such step, or it cannot be read.
    """
    encoded = directory.members(episode, step)
    try:
        sample = decode(sample_key(episode, step), encoded, ("labels", "image") if thumbnail else ("labels",))
        assert sample.labels is not None  # they were asked for
        layers = _layers(sample.metadata, sample.labels)
    except InputError as error:
        raise InputError(f"{directory.directory}: {episode}: {error}; `pixelcli verify` says more") from None
    image = encoded[image_member(encoded)] if sample.image is None else _smaller(sample.image)
    cameras = [camera for camera in directory.manifest.get("cameras", ()) if camera_member(encoded, camera)]
    also = f", also seen by {', '.join(cameras)}" if cameras else ""
    return drawing.picture(image, sample.labels.shape, layers, _caption(sample.metadata) + also)


def _layers(metadata: Metadata, labels: np.ndarray) -> list[Markup]:
    """What is marked on a step, later ones over earlier ones. On x_0 the object is drawn whole, under the gripper too."""
    step, layers = metadata.step, []
    target = decode_rle(metadata.object_mask)  # of x_0
    if metadata.object_mask_valid:
        whole = step == metadata.first_step and target.shape == labels.shape
        layers.append(drawing.mask_layer(target if whole else labels == masks.TARGET, "mask target"))
    if metadata.gripper_mask_valid:
        layers.append(drawing.mask_layer(labels == masks.GRIPPER, "mask gripper"))
    if step in (metadata.first_step, metadata.close_step) and tuple(metadata.region_box) != masks.NO_BOX:
        layers.append(drawing.box_layer(metadata.region_box, "region"))
    if metadata.prompt_step == step:
        layers += [
            drawing.box_layer(masks.box_of(target), "prompt"),
            drawing.line_layer(metadata.line, "prompt"),
            drawing.points_layer(metadata.points, "prompt point"),
        ]
    return layers


def _caption(metadata: Metadata) -> str:
    if metadata.step == metadata.first_step:
        return f"the first frame: step {metadata.step}"
    if metadata.step == metadata.close_step:
        return f"the gripper closes: step {metadata.step}"
    return f"step {metadata.step}"


def _smaller(image: np.ndarray) -> bytes:
    """A JPEG of an image, RGB, uint8 (height, width, 3), not longer than `THUMBNAIL` on a side."""
    scale = THUMBNAIL / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
