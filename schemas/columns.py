"""What tables are made of: columns, and those that several tables share."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))
ATTRIBUTES = pa.map_(pa.string(), pa.string())


@dataclass(frozen=True)
class Column:
    """One column: Arrow type, what it means, its unit, and whether it may be null."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One published table: what a row is, and its columns in order.

    group_rows: rows of a row group where a reader wants single rows, so that it fetches little beside them; else row groups
    hold as many bytes as scans like.
    """

    name: str
    row: str
    columns: tuple[Column, ...]
    group_rows: int | None = None

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema that every part must have exactly."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the `list<float32>` columns."""
        return tuple(c.name for c in self.columns if c.type == VECTOR)


def columns(*rows: tuple[str, pa.DataType, str] | tuple[str, pa.DataType, str, str]) -> tuple[Column, ...]:
    """A trailing `?` on a name marks a column that may be null."""
    return tuple(
        Column(row[0].rstrip("?"), row[1], row[2], row[3] if len(row) == 4 else "", row[0].endswith("?"))
        for row in rows
    )


STAGE = ("stage", pa.string(), "digest of the stage that made this row")
MODEL = ("model", pa.string(), "full model ref")
SITE = ("site", pa.string(), "canonical site, as in `miclip sites`")
UNIT = ("unit", pa.int32(), "channel of the site, 0-based")
SAE = ("sae", pa.string(), "ref of the SAE: sae:<stage>")
CODE = "as in the model where decoder rows have unit norm"
FEATURE = ("feature", pa.int32(), "latent of the SAE, 0-based")
UNITS = (
    ("sae?", pa.string(), "ref of the SAE whose latents the units are; null for neurons"),
    ("unit_kind", pa.string(), "neurons or features"),
)
VARIANT = (
    ("method", pa.string(), "miclip, act_values, auroc, clip_dissect, netdissect or v_interp"),
    (
        "variant",
        pa.string(),
        "method and what sets it apart, the same for all seeds: miclip in+out, auroc pool=max",
    ),
    ("seed?", pa.int64(), "of the neuron encoder; null for methods without one"),
)
CONCEPT = (
    ("concept_id", pa.int32(), "place in the list of concepts, 0-based"),
    ("concept", pa.string(), "its name"),
)
CHANGE = (
    ("op", pa.string(), "scale (u becomes beta u) or add (u becomes u + beta)"),
    ("beta", pa.float64(), "2 enhances and 0 removes if scaled"),
    ("error_mode", pa.string(), "keep, or drop what the SAE does not reconstruct"),
    ("positions", pa.string(), "tokens at which units were changed: all, patch or cls"),
)
INTS = pa.list_(pa.field("element", pa.int32(), nullable=False))
IMAGE = (
    ("image_id", pa.string(), "first 32 hex digits of the sha256 of the image bytes"),
    ("image_index", pa.int64(), "row of the image in its index"),
)
TOKEN = (
    "token",
    pa.int32(),
    "position inside the site: patch number row-major, or token index for @all; -1 if reduced",
)
