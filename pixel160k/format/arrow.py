"""Arrow types that follow from type hints: a dataclass that is one row says what the schema of its Parquet files is."""

from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa

_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int32(), float: pa.float32()}


def arrow_schema(row: type) -> pa.Schema:
    """The schema of a table whose rows are of a dataclass: one column per field, in their order."""
    return pa.schema(list(arrow_type(row)))


def arrow_type(hint: Any) -> pa.DataType:
    """The Arrow type of a type hint.

    An int is int32 and a float is float32; `Annotated[int, pa.int64()]` says otherwise. Lists and tuples are lists of their
    first type, dataclasses and TypedDicts are structs. `| None` changes nothing: every column may hold nulls.
    """
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Annotated:
        named = [extra for extra in hint.__metadata__ if isinstance(extra, pa.DataType)]
        return named[0] if named else arrow_type(arguments[0])
    if kind is UnionType:
        return arrow_type(arguments[0])
    if kind in (list, tuple):
        return pa.list_(arrow_type(arguments[0]))
    if kind is Literal:
        return arrow_type(type(arguments[0]))
    if hint in _TYPES:
        return _TYPES[hint]
    return pa.struct({name: arrow_type(of) for name, of in get_type_hints(hint, include_extras=True).items()})
