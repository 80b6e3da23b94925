"""The frozen, strict base of every value that is written down, and the two roles of a spec field."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

Role = Literal["result", "effort"]


class FieldRole:
    """Marks a spec field: `result` enters the digest, `effort` (workers, resources, shard size) never does."""

    def __init__(self, role: Role) -> None:
        self.role = role

    def __repr__(self) -> str:
        return f"FieldRole({self.role!r})"


RESULT = FieldRole("result")
EFFORT = FieldRole("effort")


class Frozen(BaseModel):
    """A frozen value that refuses unknown fields and silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed, not validated; what was worked out of the old fields and kept is left behind."""
        copy = super().model_copy(update=update, deep=deep)
        if update:
            for name in [
                name for name in copy.__dict__ if isinstance(getattr(type(copy), name, None), cached_property)
            ]:
                del copy.__dict__[name]
        return copy

    def canonical_json(self) -> str:
        """The one JSON text of this value: sorted keys, no spaces."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def roles(cls) -> dict[str, Role]:
        """Field name -> its declared role; fields without a role are left out."""
        return dict(_declared_roles(cls))


def _declared_roles(cls: type[BaseModel]) -> Iterator[tuple[str, Role]]:
    for name, field in cls.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, FieldRole):
                yield name, mark.role


def canonical_json(value: Any) -> str:
    """Serialise plain JSON data so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


DIGEST_LENGTH = 20


def digest(value: Any) -> str:
    """The first 20 hex digits (80 bits) of the sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_LENGTH]
