"""What is to be done: a stage with its digest, its frozen plan of rounds, and the shards of a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import Field, JsonValue

from schemas.base import Frozen, digest
from schemas.refs import slug

PAIR = " + "
"""Stands between two models in the subject of a stage about both."""


class StageSpec(Frozen):
    """The smallest thing that is cached and published; its digest is known before it runs.

    kind and method (version) say how, subject on what (a model ref, `zoo-<name>`, or an image set), params are the
    canonical result fields, inputs the digests of what it reads.
    """

    kind: str
    method: int
    subject: str
    output: str
    params: dict[str, JsonValue]
    inputs: dict[str, str] = Field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """20 hex digits over every field."""
        return digest(self.model_dump(mode="json"))

    @property
    def detail(self) -> str:
        """What tells it from its siblings, for people: site, variant, units, seed, and what a sweep of SAEs or encoders varies."""
        params = self.params
        words: list[Any] = [params.get("site"), params.get("variant"), params.get("format")]
        words += [str(params.get("sha256", ""))[:8], *self._units(), self._between(), *_settings(params, ("seed",))]
        if isinstance(sae := params.get("sae"), dict):
            words += [sae["arch"], f"{sae['latents']} latents", *_settings(sae, ("k", "l1", "lr", "seed"))]
        if isinstance(align := params.get("align"), dict):
            words += _settings(align, ("w_out", "w_in", "logit_scale", "lr", "seed"))
        return " ".join(str(word) for word in words if word)

    def _units(self) -> Iterator[str]:
        """Which units it is about, those of which SAE, where, and what becomes of its error."""
        kind = self.params.get("unit_kind")
        if kind is not None:
            yield str(kind)
        if "sae" in self.inputs and not isinstance(self.params.get("sae"), dict):  # whose settings say which it is
            yield f"of sae:{self.inputs['sae'][:8]}"
        if kind is None:
            return
        if (at := self.params.get("at")) not in (None, self.params.get("site")):
            yield f"at {at}"
        if kind == "features" and (error := self.params.get("error")) is not None:
            yield f"error {error}"

    def _between(self) -> str:
        """Whose units are compared, where two members of a zoo are, or one with itself."""
        between = str(self.params.get("between", ""))
        return f"{between} with itself" if between and self.inputs.get("a") == self.inputs.get("b") else between

    @property
    def slug(self) -> str:
        """The readable part of the path of its tables; that of a pair has both models."""
        return "+".join(slug(part) for part in self.subject.split(PAIR))


def _settings(of: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """`lr 0.01`, for each of these settings that is there."""
    given = [(name, of[name]) for name in names if of.get(name) is not None]
    return [f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}" for name, value in given]


class Shard(Frozen):
    """The unit of work and retry: rows [start, stop) of one round; `number` counts through all rounds of the plan."""

    number: int
    round: int
    start: int
    stop: int


class Round(Frozen):
    """Shards that are independent of each other: `rows` things, `shard_rows` of them in each shard."""

    name: str
    rows: int = Field(ge=0)
    shard_rows: int = Field(ge=1)

    @property
    def n_shards(self) -> int:
        """Number of shards; a round over nothing has none."""
        return -(-self.rows // self.shard_rows)


class Resources(Frozen):
    """What one worker needs, and how many there may be; stated, never sniffed."""

    gpus: float = Field(default=0.0, ge=0)
    cpus: float = Field(default=1.0, gt=0)
    workers: int = Field(default=2, ge=1)
    decode_threads: int = Field(default=1, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    price: float | None = Field(default=None, ge=0)
    """Money that one worker costs per hour, in whatever currency; only `plan` reads it."""


class Plan(Frozen):
    """A stage's frozen, create-only list of rounds; whoever plans second uses the stored one.

    `effort` holds what decides how the work is cut and batched, so that every retry runs the same shapes. Stages whose
    plans share kind, `worker` key and effort are siblings: their shards of equal rows run in one pass.
    """

    stage: StageSpec
    rounds: tuple[Round, ...]
    worker: str
    effort: dict[str, JsonValue] = Field(default_factory=dict)
    gang: int = Field(default=1, ge=1)

    @property
    def digest(self) -> str:
        """The digest of the stage."""
        return self.stage.digest

    @property
    def n_shards(self) -> int:
        """Shards of all rounds."""
        return sum(r.n_shards for r in self.rounds)

    def shards(self, round_number: int) -> Iterator[Shard]:
        """The shards of one round, in order."""
        first = sum(r.n_shards for r in self.rounds[:round_number])
        this = self.rounds[round_number]
        for i in range(this.n_shards):
            start = i * this.shard_rows
            yield Shard(number=first + i, round=round_number, start=start, stop=min(start + this.shard_rows, this.rows))

    def all_shards(self) -> Iterator[Shard]:
        """Every shard of every round, in order."""
        for round_number in range(len(self.rounds)):
            yield from self.shards(round_number)


class StoredPart(Frozen):
    """One Parquet part as a marker names it: the key that counts, its rows, size and sha256."""

    table: str
    key: str
    rows: int
    bytes: int
    sha256: str


class StoredArtifact(Frozen):
    """One artifact (weights, partial sums) as a marker names it."""

    name: str
    key: str
    bytes: int
    sha256: str


class DoneMarker(Frozen):
    """Written last for a shard: what it stored; `seconds` and `attempt` are for people, never for tables."""

    shard: int
    round: int
    parts: tuple[StoredPart, ...]
    artifacts: tuple[StoredArtifact, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    attempt: int = 0


class FailedMarker(Frozen):
    """Why a shard stopped: the error and its traceback; replaced by the next try, superseded by a done marker."""

    shard: int
    round: int
    error: str
    message: str
    traceback: str
    attempts: int


class Published(Frozen):
    """`published.json`: the one pointer that makes a stage's parts a table."""

    stage: StageSpec
    tables: dict[str, tuple[StoredPart, ...]]
    artifacts: tuple[StoredArtifact, ...] = ()
    content: str

    def rows(self, table: str) -> int:
        """Rows of one of its tables."""
        return sum(part.rows for part in self.tables.get(table, ()))


def load_json(cls: type[Frozen], data: bytes | str) -> Any:
    """Read a stored value back in JSON mode (tuples and floats as JSON has them)."""
    return cls.model_validate_json(data)
