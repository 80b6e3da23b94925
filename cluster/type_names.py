"""What the types of columns are called in SQL dialects and Python libraries that read our tables."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa


def spell(kind: pa.DataType, names: Mapping[str, str]) -> str:
    """The name of an Arrow type in a language: `names` has the plain ones, and how lists and maps are put around others."""
    if pa.types.is_list(kind):
        return names["list"].format(spell(kind.value_type, names))
    if pa.types.is_map(kind):
        return names["map"].format(spell(kind.key_type, names), spell(kind.item_type, names))
    return names[str(kind)]


def _types(text: str) -> dict[str, str]:
    plain = ("string", "int32", "int64", "float", "double", "bool", "binary", "list", "map")
    return dict(zip(plain, text.split("; "), strict=True))


TRINO = _types("varchar; integer; bigint; real; double; boolean; varbinary; array({}); map({}, {})")
DUCKDB = _types("VARCHAR; INTEGER; BIGINT; FLOAT; DOUBLE; BOOLEAN; BLOB; {}[]; MAP({}, {})")
SPARK = _types("STRING; INT; BIGINT; FLOAT; DOUBLE; BOOLEAN; BINARY; ARRAY<{}>; MAP<{}, {}>")
POLARS = _types(
    "pl.String; pl.Int32; pl.Int64; pl.Float32; pl.Float64; pl.Boolean; pl.Binary; pl.List({}); "
    "pl.List(pl.Struct({{'key': {}, 'value': {}}}))"
)
PYARROW = _types(
    "pa.string(); pa.int32(); pa.int64(); pa.float32(); pa.float64(); pa.bool_(); pa.binary(); pa.list_({}); pa.map_({}, {})"
)
