"""An image set's index as a plan: read every block, find duplicates over all of them, write the tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from jobs.protocol import Estimate, ImageFacts, Known
from miclip_core.images import MAX_PIXELS, RULES_VERSION, THUMBNAIL_SIDE
from schemas.plans import Plan, Published, Round, StageSpec
from schemas.refs import ImageSetRef

if TYPE_CHECKING:
    from schemas.cells import Images

METHOD = 2
TABLES = {"images": {"write": ("images", "bad_inputs")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"images": ("content",)}
READ, DUPLICATES, WRITE = range(3)
FILES_PER_SHARD = 512  # of a folder or glob; a block of any other source holds many images, so it is a shard of its own
_ROW_BYTES = 600 + THUMBNAIL_SIDE**2 // 2


def make_plan(
    images: Images, listing: str, blocks: int, labels_sha256: str | None = None, shard_rows: int | None = None
) -> Plan:
    """The plan of one image set's index.

    images: as `canonical_images` gives it. listing: sha256 of its frozen listing of `blocks` rows. labels_sha256: of
    the labels file, if there is one. shard_rows: blocks per shard, which decides nothing but the cut.
    """
    source = ImageSetRef.parse(images.ref).source
    per_shard = shard_rows or (FILES_PER_SHARD if source in ("folder", "glob") else 1)
    stage = StageSpec(
        kind="index_images",
        method=METHOD,
        subject=images.ref,
        output="images",
        params={
            "orientation": images.orientation,
            "decoding": RULES_VERSION,
            "labels": images.labels,
            "labels_sha256": labels_sha256,
            "listing": listing,
        },
    )
    rounds = (
        Round(name="read", rows=blocks, shard_rows=per_shard),
        Round(name="duplicates", rows=1, shard_rows=1),
        Round(name="write", rows=blocks, shard_rows=per_shard),
    )
    return Plan(stage=stage, rounds=rounds, worker=f"index_images {stage.digest}")


def estimate(plan: Plan, known: Known) -> Estimate:
    """Images where a block is one image, the bytes of their rows, and the memory of the largest accepted image."""
    source = ImageSetRef.parse(plan.stage.subject).source
    images = plan.rounds[READ].rows if source in ("folder", "glob") else 0
    return Estimate(images=images, bytes=images * _ROW_BYTES, memory=12 * MAX_PIXELS)


def image_facts(published: Published, content: bytes) -> ImageFacts:
    """What planning needs of a published index; `content` are the bytes of its artifact of that name."""
    counts = json.loads(content)
    return ImageFacts(published.stage.digest, published.content, counts["rows"], counts["usable"])
