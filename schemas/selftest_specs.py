"""What a person writes to try the machinery: rows that follow from their number, and what is to go wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import EFFORT, RESULT
from schemas.cells import Cell, Name


class SelftestSpec(Cell):
    """A torch-free kind of deterministic rows in two rounds, with switches that make things go wrong."""

    kind: Annotated[Literal["selftest"], RESULT] = "selftest"
    subject: Annotated[Name, RESULT] = "selftest"
    rows: Annotated[int, Field(ge=0), RESULT] = 1000
    seed: Annotated[int, RESULT] = 0
    nan_rows: Annotated[tuple[int, ...], RESULT] = ()
    """Rows whose value is NaN, which stops the shard."""
    variants: Annotated[tuple[Name, ...], RESULT] = ("a",)
    """Sibling stages that share one pass, as the sites of one model do."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 100
    sleep_ms: Annotated[int, Field(ge=0), EFFORT] = 0
    """Time per shard, so that a test can kill something in the middle of it."""
    poison_shards: Annotated[tuple[int, ...], EFFORT] = ()
    """Shards that end their process every time."""
    crash_once_dir: Annotated[str | None, EFFORT] = None
    """A local folder; a shard that finds `crash-<n>` there removes the file and kills its own process."""
    error_shards: Annotated[tuple[int, ...], EFFORT] = ()
    """Shards that raise an application error."""
    oom_above: Annotated[int | None, EFFORT] = None
    """Batches of more rows than this run out of memory."""
    batch_rows: Annotated[int, Field(ge=1), EFFORT] = 100
    gang: Annotated[int, Field(ge=1), EFFORT] = 1
    """Workers that meet before each shard of the first round and share it."""
