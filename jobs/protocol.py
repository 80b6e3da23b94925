"""The ports between what a job does and where it runs: Inputs, Keep, Worker, and what a kind must provide."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

from schemas.matrix import At
from schemas.plans import Plan, Resources, Shard, StageSpec

if TYPE_CHECKING:
    from schemas.cells import Images
    from schemas.models import ModelFacts
    from schemas.specs import JobSpec  # takes a fifth of a second, which readers of tables need not wait for


class FileInfo(NamedTuple):
    """One file of an image source; `stamp` changes when the content may have (mtime in ns, or an etag)."""

    uri: str
    size: int
    stamp: str


class Files(Protocol):
    """Read access to the places where people keep images: absolute local paths and s3:// uris."""

    def list(self, location: str) -> list[FileInfo]:
        """Every file below a folder, or matching a glob, sorted by uri."""
        ...

    def read(self, uri: str) -> bytes:
        """The whole file; KeyMissing if it is gone."""
        ...

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Part of a file."""
        ...


class ImageBytes(NamedTuple):
    """One image of an index: `data` is None when the index already knows why it cannot be used."""

    image_index: int
    image_id: str
    uri: str
    data: bytes | None
    problem: str | None = None
    """`checksum` or `missing`, found while reading; never a transient error, those raise."""


class Inputs(Protocol):
    """What a worker may read; implemented by `cluster`."""

    @property
    def files(self) -> Files:
        """Read access to where people keep images."""
        ...

    def images(self, index: str, start: int, stop: int) -> Iterator[ImageBytes]:
        """Usable images among rows [start, stop) of the index stage `index`, in order: no duplicates, no bad inputs.

        Bytes are read ahead of use and checked against the index's sha256.
        """
        ...

    def table(
        self,
        stage: str,
        table: str,
        columns: Sequence[str] | None = None,
        between: tuple[str, Sequence[tuple[int, int]]] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Rows of a published table of another stage, in part order.

        between: (integer column, disjoint ranges [start, stop)) leaves only rows in one of them; no more is read than
        row groups that may have some.
        """
        ...

    def shard_table(self, stage: str, shard: int, table: str) -> pa.Table:
        """What one finished shard of an earlier round of this plan wrote to a table."""
        ...

    def artifact(self, stage: str, shard: int, name: str) -> bytes:
        """An artifact of a finished shard of an earlier round of this plan."""
        ...

    def published(self, stage: str, name: str) -> bytes:
        """An artifact that another stage has published, such as the weights of an SAE."""
        ...

    def listing(self, sha256: str) -> pa.Table:
        """A frozen list of files: uri, size, stamp."""
        ...

    def local_path(self, location: str) -> Path:
        """`file:/...` or `s3://...` as a local path, fetched once per node."""
        ...


class Keep(Protocol):
    """Numbered resumable states of one shard, for each of its stages; the newest whole one wins."""

    def latest(self, stage: str) -> tuple[int, Mapping[str, bytes]] | None:
        """(step, named pieces) of the newest state that is there whole, or None; a piece is read when it is looked up."""
        ...

    def save(self, stage: str, step: int, pieces: Iterable[tuple[str, bytes]]) -> None:
        """Store one state; steps must grow. One older state stays, those before it are dropped."""
        ...


@dataclass(frozen=True)
class Part:
    """Rows for one table of one stage. Yield as many as you like: those of one (stage, table) become one part."""

    stage: str
    table: str
    batch: pa.RecordBatch


@dataclass(frozen=True)
class Artifact:
    """Named bytes of one stage: weights, or partial sums for the next round."""

    stage: str
    name: str
    data: bytes


@dataclass(frozen=True)
class Gang:
    """This worker's place among n that restart together; `address` is host:port of rank 0's free port."""

    rank: int = 0
    size: int = 1
    address: str = ""


class Worker(Protocol):
    """Opens once, processes many shards."""

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterable[Part | Artifact]:
        """Do the rows of `shard` for those of the sibling stages that still lack it; in a gang only rank 0's count.

        Yielding often lets writing overlap with computing. A stage that yields nothing for a declared table has no
        part of it, and a done marker all the same.
        """
        ...


@dataclass(frozen=True)
class Setting:
    """What a worker is opened with: sibling plans, the device it was given, and its gang."""

    plans: tuple[Plan, ...]
    resources: Resources
    gang: Gang = Gang()

    @property
    def device(self) -> str:
        """`cuda` when the spec states GPUs, else `cpu`."""
        return "cuda" if self.resources.gpus > 0 else "cpu"


OpenWorker = Callable[[Setting, Inputs], Worker]


@dataclass(frozen=True)
class ImageFacts:
    """What planning needs to know of an indexed image set."""

    stage: str
    content: str
    rows: int
    usable: int


@dataclass(frozen=True)
class Known:
    """Facts that are there before planning: published by inspect per model ref and by index_images per image set; the
    sha256 of files that a spec names, by location; published stages that it names and SAEs that stages before this one make,
    by ref; what is written in lists of concepts that it names, and the bytes of weights among files, by location."""

    models: Mapping[str, ModelFacts]
    images: Mapping[str, ImageFacts]
    files: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, StageSpec] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    memo: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    """What a kind has worked out from these facts for one cell and wants again for the next, under a key of its own."""


@dataclass(frozen=True)
class Cell:
    """One stage of a pipeline at one point of its matrix, with everything it inherits filled in."""

    name: str
    spec: JobSpec
    model: str | None = None
    pair: tuple[str, str] | None = None
    """The two models that it is about, of a stage over a zoo."""
    zoo: tuple[str, ...] = ()
    """All models of such a stage; it is about all of them together if neither `model` nor `pair` is given."""
    at: At = field(default_factory=dict)
    """Its place on the axes of the matrix that its stage is over, beside models; the values are in the spec."""
    images: Images | None = None
    clip: str | None = None
    """The CLIP that names concepts, for kinds that need one."""
    resources: Resources = field(default_factory=Resources)
    reads: Mapping[str, tuple[Plan, ...]] = field(default_factory=dict)
    """Name of a stage that it reads -> the plans of that stage's cells that are for this one."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it is about; none for a stage without."""
        return (self.model,) if self.model is not None else self.pair or self.zoo


class Estimate(NamedTuple):
    """What a plan will cost, as far as it can be known: for people and for the order of work, never for what is made.

    A worker that has sibling stages open computes the sum of their `flops` and the largest of their `shared_flops`, and
    takes the sum of their `memory` and the largest `worker_memory`, in bytes. `note` says what was weighed.
    """

    images: int = 0
    flops: int = 0
    shared_flops: int = 0
    bytes: int = 0
    memory: int = 0
    worker_memory: int = 0
    note: str = ""


def flops_of(estimates: list[Estimate]) -> int:
    """FLOPs of stages that one worker does in one pass."""
    return sum(e.flops for e in estimates) + max((e.shared_flops for e in estimates), default=0)


class Kind(Protocol):
    """What `jobs/<kind>/plan.py` provides; it never imports torch."""

    TABLES: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Output -> round name -> the tables that round writes."""
    ARTIFACTS: Mapping[str, tuple[str, ...]]
    """Output -> the artifacts that it publishes; all others only go from one round to the next."""

    def make_plans(self, cell: Cell, known: Known) -> tuple[Plan, ...]:
        """The plans of every stage of this cell. Pure. The two kinds of facts have none: they are planned from refs."""
        ...

    def estimate(self, plan: Plan, known: Known) -> Estimate:
        """What the plan costs. Pure."""
        ...
