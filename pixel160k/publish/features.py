"""Features as Hugging Face data cards declare them, and the Arrow types they are declared from."""

from typing import Any

import pyarrow as pa

from pixel160k.format.arrow import arrow_schema
from pixel160k.format.metadata import Metadata

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
"""An encoded image, as Hugging Face and LeRobot store it in Parquet."""

METADATA = pa.schema(sorted(arrow_schema(Metadata), key=lambda key: key.name))
"""The keys of a sample's metadata, ordered by name as in its JSON."""


def declared(columns: pa.Schema | pa.StructType) -> list[dict[str, Any]]:
    """The features of columns, in the form of data cards."""
    return [{"name": column.name} | _feature(column.type) for column in columns]


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if kind == IMAGE:
        return {"dtype": "image"}
    if isinstance(kind, pa.StructType):
        return {"struct": declared(kind)}
    if isinstance(kind, pa.ListType):
        inner = _feature(kind.value_type)
        return {"list": inner.get("dtype", inner)}
    return {"dtype": "float32" if kind == pa.float32() else str(kind)}  # whose own name is "float"
