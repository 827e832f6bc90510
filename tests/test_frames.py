"""Whatever frames, texts, lengths and folders a source has: what build-shards writes is sound, and the same to every reader."""

import importlib.util
import io
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from readers import EVERY, FROM_EXTRAS, assert_readers_agree

from annotate.jobs.annotate import annotate
from annotate.jobs.beam import Execution
from annotate.jobs.shards import build_shards
from annotate.settings import AnnotateSettings
from annotate.sources import frames
from pixel160k.errors import InputError
from pixel160k.format import shards
from pixel160k.format.table import FAILED, read_annotations
from pixel160k.read.folder import read_manifest
from pixel160k.read.verify import verify

MOTION = AnnotateSettings(annotators="motion")
sys.path.insert(0, str(SHARED / "faults"))
gen = pytest.importorskip("gen", reason="needs the generators of PIXELVLA_SHARED/faults")


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def turned(degrees=6):
    exif = Image.Exif()
    exif[0x0112] = degrees
    return exif


def with_alpha(image, alpha):
    image = image.copy()
    image.putalpha(alpha)
    return image


PASSES = {  # encoders of an RGB picture whose bytes are published as they are
    "jpeg": lambda image: saved(image, "JPEG", quality=90),
    "444": lambda image: saved(image, "JPEG", subsampling=0),
    "progressive": lambda image: saved(image, "JPEG", progressive=True),
    "optimised": lambda image: saved(image, "JPEG", optimize=True),
    "upright": lambda image: saved(image, "JPEG", exif=turned(1)),
    "restarts": lambda image: saved(image, "JPEG", restart_marker_rows=1),
    "zeros after": lambda image: saved(image, "JPEG") + bytes(9),
    "png": lambda image: saved(image, "PNG"),
    "opencv": lambda image: cv2.imencode(".png", np.asarray(image)[..., ::-1])[1].tobytes(),
}
CONVERTED = {
    "grey jpeg": (lambda image: saved(image.convert("L"), "JPEG"), "grey"),
    "grey png": (lambda image: saved(image.convert("L"), "PNG"), "grey"),
    "two levels": (lambda image: saved(image.convert("1"), "PNG"), "grey"),
    "palette": (lambda image: saved(image.quantize(16), "PNG"), "palette"),
    "opaque": (lambda image: saved(with_alpha(image, 255), "PNG"), "opaque alpha"),
}
REFUSED = {
    "cmyk": (lambda image: saved(image.convert("CMYK"), "JPEG"), "its colours are CMYK"),
    "exif": (lambda image: saved(image, "JPEG", exif=turned()), "its EXIF orientation is 6"),
    "exif png": (lambda image: saved(image, "PNG", exif=turned(3)), "its EXIF orientation is 3"),
    "16 bit": (lambda image: cv2.imencode(".png", np.asarray(image).astype(np.uint16) * 257)[1].tobytes(), "16 bits"),
    "16 bit grey": (lambda image: saved(image.convert("I;16"), "PNG"), "16 bits"),
    "transparent": (lambda image: saved(with_alpha(image, image.convert("L")), "PNG"), "it is transparent"),
    "moving": (lambda image: saved(image, "PNG", save_all=True, append_images=[image.rotate(90)]), "several pictures"),
    "gif": (lambda image: saved(image, "GIF"), "neither JPEG nor PNG"),
    "webp": (lambda image: saved(image, "WEBP"), "neither JPEG nor PNG"),
    "text": (lambda image: b"404 not found", "neither JPEG nor PNG"),
    "empty": (lambda image: b"", "the frame is empty"),
    "cut": (lambda image: saved(image, "JPEG")[:-400], "the JPEG is cut short"),
    "cut png": (lambda image: saved(image, "PNG")[:-400], "the PNG is cut short"),
    "bad png": (lambda image: flipped(saved(image, "PNG"), 200), "a checksum is wrong"),
    "bad head": (
        lambda image: saved(image, "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        "unusable",
    ),
    "huge": (lambda image: larger(saved(image, "JPEG")), "the header of the JPEG is damaged"),
}


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]


def larger(jpeg):
    """A header that claims 65,535 x 65,535 pixels."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + b"\xff" * 4 + jpeg[start + 4 :]


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(gen.scene(T=2, h=64, w=96)[0][0])


def twice(data):
    """What `look` says of the first frame with this head, and of one that follows."""
    frames._known.clear()
    first = frames.look(data)
    assert frames.look(data) == first
    return first


@pytest.mark.parametrize("kind", PASSES)
def test_an_rgb_picture_passes_through(picture, kind):
    assert twice(PASSES[kind](picture)) == (64, 96, "")


@pytest.mark.parametrize("kind", CONVERTED)
def test_what_stands_for_an_rgb_picture_becomes_one(picture, kind):
    encode, was = CONVERTED[kind]
    data = encode(picture)
    assert twice(data) == (64, 96, was)
    made = frames.rgb_png(data)
    assert frames.look(made) == (64, 96, "")
    np.testing.assert_array_equal(frames.decode(made), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_readers_see_differently_is_refused_with_its_cause(picture, kind):
    encode, cause = REFUSED[kind]
    frames._known.clear()
    for _ in range(2):
        with pytest.raises(InputError, match=cause):
            frames.look(encode(picture))


def test_a_marker_among_the_pixels_is_looked_at(picture):
    """A JPEG whose head was met before: a table or another scan among its pixels is decoded before it passes."""
    data = PASSES["jpeg"](picture)
    frames.look(data)
    bad = data[:-60] + b"\xff\xc4\x00\x13\x00" + b"\xff" * 16 + data[-30:]
    with pytest.raises(InputError, match="the JPEG is unusable"):
        frames.look(bad)


def test_codes_of_their_own_are_no_reason_to_decode(picture):
    """An encoder that makes new Huffman tables for every picture."""
    frames._known.clear()
    for image in (picture, picture.rotate(90), picture.resize((96, 64)).rotate(180)):
        frames.look(PASSES["optimised"](image))
    assert len(frames._known) == 1


@pytest.mark.parametrize("kind", ["optimised", "jpeg", "png"])
def test_no_damaged_head_passes_that_readers_do_not_take(picture, kind):
    """Each byte before the pixels is changed: what still passes is decoded, and to the same pixels."""
    data = PASSES[kind](picture)
    frames.look(data)
    passed = 0
    for place in range(frames.read_header(data).pixels):
        try:
            found = frames.look(changed := flipped(data, place))
        except InputError:
            continue
        passed += 1
        pixels = np.asarray(Image.open(io.BytesIO(changed)).convert("RGB"))
        assert pixels.shape == (found.height, found.width, 3), place
        assert np.abs(pixels - frames.decode(changed).astype(np.int16)).mean() <= 1, place
    assert passed or kind == "png"


def written(root, images):
    """A data set of one file; `images` holds the encoded frames of each episode."""
    episodes = [gen.libero(images=encoded, seed=seed, T=len(encoded)) for seed, encoded in enumerate(images)]
    gen.write(root, "toy", {"train": [episodes]})
    return root


def built(data, path):
    """Annotate and build all that can be read; returns the rows and the manifest."""
    annotate("libero", data, path / "annotations", MOTION, Execution())
    build_shards(path / "annotations", path / "shards", Execution(), include="all")
    return list(read_annotations(path / "annotations")), read_manifest(path / "shards")


def test_every_reader_sees_the_same(tmp_path):
    """JPEG, PNG and converted episodes in one directory; a refused frame costs its episode and says why."""
    whole = [Image.fromarray(frame) for frame in gen.scene(h=96, w=128)[0]]
    encoders = [PASSES["jpeg"], PASSES["png"], CONVERTED["grey jpeg"][0], CONVERTED["palette"][0]]
    images = [[encode(image) for image in whole] for encode in encoders]
    images.append([REFUSED["cmyk"][0](image) for image in whole])
    images.append([*images[0][:20], REFUSED["exif"][0](whole[20]), *images[0][21:]])
    rows, manifest = built(written(tmp_path / "data", images), tmp_path)
    assert [row.status for row in rows[:2]] == ["accepted"] * 2 and rows[4].status == FAILED
    assert manifest["format_version"] == shards.WITH_PNG_VERSION
    assert manifest["images"] == {"jpg": 24, "png": 72} and manifest["converted"] == {"grey": 24, "palette": 24}
    assert manifest["left_out"] == {row.episode_id: "bad_image" for row in rows[4:]}
    assert manifest["causes"] == {
        rows[5].episode_id: "step 20: the JPEG is unusable: its EXIF orientation is 6, which not every reader applies"
    }
    assert verify(tmp_path / "shards") == []
    readers = EVERY + [reader for package, reader in FROM_EXTRAS.items() if importlib.util.find_spec(package)]
    seen = assert_readers_agree(tmp_path / "shards", tmp_path, readers)
    for (key, (image, _)), data in zip(seen.items(), [data for episode in images[:4] for data in episode], strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), err_msg=key)
    card = (tmp_path / "shards" / "README.md").read_text()
    assert (
        "own bytes, but for 24 that were grey and 24 that were palette: these are RGB PNG of the same pixels." in card
    )


# At random


ODD = {**{name: encode for name, (encode, _) in {**CONVERTED, **REFUSED}.items()}, **PASSES}


def encoded(draw, pictures, least):
    """Pictures as one encoder has them, of which some are then spoiled; and whether none is."""
    encode = PASSES[draw(st.sampled_from(sorted(PASSES)))] if draw(st.booleans()) else CONVERTED["grey jpeg"][0]
    images, sound = [encode(image) for image in pictures], True
    for place in draw(st.lists(st.integers(0, len(images) - 1), min_size=least, max_size=2, unique=True)):
        change = draw(st.sampled_from(["encoder", "size", "bytes", "cut"]))
        data, sound = images[place], False
        if change == "encoder":
            images[place] = ODD[draw(st.sampled_from(sorted(ODD)))](pictures[place])
        elif change == "size":
            images[place] = encode(pictures[place].resize((draw(st.integers(1, 99)), draw(st.integers(1, 99)))))
        elif change == "bytes":
            for at in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=4)):
                images[place] = flipped(images[place], at)
        else:
            images[place] = data[: draw(st.integers(0, len(data)))] + draw(st.sampled_from([b"", b"\xff\xd9"]))
    return images, sound


@st.composite
def sources(draw):
    """A data set as bytes: its episodes, of which some are sound, their wrist images too, and how it lies in its folder."""
    episodes = []
    for seed in range(draw(st.integers(1, 3))):
        (height, width), steps = draw(st.sampled_from([(48, 64), (64, 48), (33, 71)])), draw(st.integers(2, 6))
        pictures = [Image.fromarray(frame) for frame in gen.scene(T=steps, h=height, w=width, seed=seed)[0]]
        images, sound = encoded(draw, pictures, 0)
        wrist, wrist_sound = encoded(draw, [picture.resize((40, 30)) for picture in pictures], draw(st.integers(0, 1)))
        text = draw(st.text(max_size=20) | st.binary(max_size=20) | st.just("pick up the red disc"))
        columns = gen.libero(text, images=images, seed=seed, T=steps) | {"steps/observation/wrist_image": wrist}
        episodes.append((columns, sound, wrist_sound))
    layout = {
        "version": draw(st.sampled_from(["1.0.0", ""])),
        "file_name": draw(st.sampled_from(["toy", "other"])),
        "lengths": draw(st.sampled_from([None, {"train": [9, 1]}, {"train": [1, 1]}, {"train": [0]}, {"other": [1]}])),
    }
    beside = draw(st.sampled_from([b"", b"version https://git-lfs.github.com/spec/v1\noid", bytes(40), None]))
    return episodes, layout, beside


@settings(max_examples=12, deadline=None, derandomize=True)
@given(source=sources())
def test_whatever_the_source_holds_the_shards_are_sound(source):
    """Nothing sound is lost, what is broken is counted, `verify` accepts the shards, and readers agree."""
    episodes, layout, beside = source
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        files = [[columns for columns, *_ in episodes], [] if beside is None else [gen.libero(T=2, h=48, w=64)]]
        data = gen.write(path / "data", "toy", {"train": files}, **layout)
        if beside is not None:
            next(data.glob("*-00001-of-00002")).write_bytes(beside)
        annotate("libero", path / "data", path / "annotations", MOTION, Execution())
        rows = list(read_annotations(path / "annotations"))
        assert {row.dataset for row in rows} == {layout["file_name"]}
        assert all(row.reason and row.detail for row in rows if row.status == FAILED)
        assert "internal_error" not in {row.reason for row in rows}, rows
        sound = {rows[record].episode_id for record, (_, sound, _) in enumerate(episodes) if sound}
        assert not sound & {row.episode_id for row in rows if row.status == FAILED}
        build_shards(path / "annotations", path / "shards", Execution(), include="all", cameras=["wrist_image"])
        assert verify(path / "shards") == []
        manifest = read_manifest(path / "shards")
        assert not sound & manifest["left_out"].keys()
        seen_well = {rows[record].episode_id for record, (*_, sound) in enumerate(episodes) if sound}
        assert not seen_well & manifest["cameras"]["wrist_image"]["unusable"].keys()
        if manifest["samples"]:
            seen = assert_readers_agree(path / "shards", path)
            assert sound <= {key.rpartition("-")[0] for key in seen}
