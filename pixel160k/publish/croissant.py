"""The Croissant description (croissant.json) beside the shards, by which dataset search engines and `mlcroissant` read them.

Croissant 1.0 of MLCommons: https://docs.mlcommons.org/croissant/docs/croissant-spec.html. Record sets: `splits` of the
source, and those that share `key` and `split`:
`index` (from index.parquet), `images` (of PNG `png-images`; of a further camera `NAME-images` and `NAME-png-images`), `masks` and `annotations` (files in the tars; the last gives each JSON as text,
since `mlcroissant` follows JSON paths only outside of archives). Croissant knows no `.npy`: actions and states are
described as files.
"""

from typing import Any

from pixel160k.format.origins import origin_of
from pixel160k.format.shards import IMAGES, INDEX_SCHEMA
from pixel160k.publish.card import camera_members, image_counts, samples_by_split

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_CITATION = (
    "@inproceedings{pixelvla2026, title={PixelVLA: Advancing Pixel-level Understanding in Vision-Language-Action Model}, "
    "booktitle={ICLR}, year={2026}, eprint={2511.01571}, archivePrefix={arXiv}}"
)
_INDEX_TYPES = {"string": "sc:Text", "int32": "sc:Integer", "int64": "sc:Integer"}
_MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png"}
_STEP_DIGITS = range(4, 7)  # with which keys end
_FILE_SETS = {  # name -> suffix, media type, what it is
    "image-files": ("jpg", "image/jpeg", "the source's own JPEG bytes"),
    "png-image-files": ("png", "image/png", "RGB images, the source's own PNG bytes or the same pixels"),
    "mask-files": ("mask.png", "image/png", "labels: 0 background, 1 gripper, 2 target object, 255 not annotated"),
    "annotation-files": ("json", "application/json", "instruction, boxes, prompts, scores and what is marked"),
    "action-files": ("action.npy", "application/octet-stream", "float32 (horizon, 7), NumPy format"),
    "state-files": ("state.npy", "application/octet-stream", "float32 (S,), NumPy format"),
}


def croissant(manifest: dict[str, Any], index_sha256: str) -> dict[str, Any]:
    """The description of a shard directory as JSON-LD; depends on the shards alone.

    Args:
        manifest: as in manifest.json, without need of its `files`.
        index_sha256: SHA-256 (hex) of index.parquet.
    """
    images = image_counts(manifest)
    file_sets = {name: of for name, of in _FILE_SETS.items() if of[0] in images or of[0] not in IMAGES}
    for suffix, (camera, form) in camera_members(manifest).items():
        name = f"{camera}-{'png-' if form == 'png' else ''}image-files"
        file_sets[name] = (suffix, _MEDIA_TYPES[form], f"images of the camera {camera}, on which nothing is marked")
    tars = [_file(shard["name"], "application/x-tar", shard["sha256"]) for shard in manifest["shards"]]
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": f"{manifest['dataset']}-pixel160k",
        "description": f"Pixel annotations of {manifest['dataset']}: {manifest['samples']} samples of "
        f"{manifest['episodes']} robot episodes with object and gripper masks, visual prompts and action chunks.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "citeAs": _CITATION,
        "url": "https://arxiv.org/abs/2511.01571",
        "version": f"{manifest['format_version']}.0.0",
        "isLiveDataset": False,
    }
    if licence := origin_of(manifest).licence:
        described["license"] = licence.url
    in_index = {"fileObject": {"@id": "index.parquet"}, "extract": {"column": "episode_id"}}
    in_split = _split_field("index", in_index, r"^.*-([A-Za-z0-9_]+)-\d+-\d+$")
    return described | {
        "distribution": [
            _file("index.parquet", "application/x-parquet", index_sha256),
            *tars,
            *(
                {
                    "@type": "cr:FileSet",
                    "@id": name,
                    "name": name,
                    "description": what,
                    "containedIn": [{"@id": tar["@id"]} for tar in tars],
                    "encodingFormat": media_type,
                    "includes": _includes(suffix, bool(manifest.get("cameras"))),
                }
                for name, (suffix, media_type, what) in file_sets.items()
            ),
        ],
        "recordSet": [
            _splits(manifest),
            _record_set("index", [*(_index_field(column.name, str(column.type)) for column in INDEX_SCHEMA), in_split])
            | {"key": {"@id": "index/key"}},
            *(
                _member_set(name.removesuffix("-files") + "s", "image", "sc:ImageObject", name, suffix)
                for name, (suffix, *_) in file_sets.items()
                if name.endswith("image-files")
            ),
            _member_set("masks", "mask", "sc:ImageObject", "mask-files", "mask.png"),
            _member_set("annotations", "json", "sc:Text", "annotation-files", "json"),
        ],
    }


def _file(name: str, media_type: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": media_type,
        "sha256": sha256,
    }


def _record_set(name: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields}


def _field(record_set: str, name: str, data_type: str | list[str], source: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{name}",
        "name": name,
        "dataType": data_type,
    } | ({"source": source} if source else {})


def _splits(manifest: dict[str, Any]) -> dict[str, Any]:
    """The record set of the source's splits, whose names stand in the field `split` of the other record sets."""
    names = samples_by_split(manifest)
    return _record_set("splits", [_field("splits", "name", "sc:Text", None)]) | {
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "data": [{"splits/name": name} for name in names],
    }


def _split_field(record_set: str, source: dict[str, Any], regex: str) -> dict[str, Any]:
    """The split that a record is of, cut out of a text by the group of `regex`.

    It has no `references` to `splits`: these mlcroissant 1.1 joins, which writes the split over the text it is cut from.
    """
    return _field(record_set, "split", ["sc:Text", "cr:Split"], source | {"transform": {"regex": regex}})


def _index_field(column: str, arrow_type: str) -> dict[str, Any]:
    source = {"fileObject": {"@id": "index.parquet"}, "extract": {"column": column}}
    return _field("index", column, _INDEX_TYPES[arrow_type], source)


def _includes(suffix: str, cameras: bool) -> str | list[str]:
    """The pattern of the files with this suffix. It must not match `mask.png`, nor the images of further cameras."""
    if cameras and suffix in IMAGES:  # whose names may end with a digit, too
        return [f"*-{'[0-9]' * digits}.{suffix}" for digits in _STEP_DIGITS]
    return f"*[0-9].{suffix}" if suffix == "png" else f"*.{suffix}"


def _member_set(name: str, content: str, data_type: str, file_set: str, member: str) -> dict[str, Any]:
    """A record set of `key`, cut out of the file name, and the member's content."""
    suffix = member.replace(".", r"\.")
    named = {"extract": {"fileProperty": "filename"}, "transform": {"regex": rf"^(.*)\.{suffix}$"}}
    files = {"fileSet": {"@id": file_set}}
    return _record_set(
        name,
        [
            _field(name, "key", "sc:Text", files | named),
            _split_field(
                name,
                files | {"extract": {"fileProperty": "fullpath"}},
                rf"^.+-([A-Za-z0-9_]+)-.+-.+-.+[0-9]\.{suffix}$",
            ),
            _field(name, content, data_type, files | {"extract": {"fileProperty": "content"}}),
        ],
    )
