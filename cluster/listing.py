"""Image sets on the driver's side: the listing and the plan of its index, the frozen listing, what an index says."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.ledger import get_checked, load_published
from cluster.parquet import read_part
from cluster.stores.base import Store
from jobs.index_images.plan import image_facts, make_plan
from jobs.index_images.sources import canonical_images, list_source, open_source
from jobs.index_images.texts import read_labels
from jobs.protocol import FileInfo, Files, ImageFacts
from schemas import layout
from schemas.errors import DamagedPart
from schemas.plans import Plan
from schemas.refs import ImageSetRef

if TYPE_CHECKING:
    from schemas.cells import Images


class IndexPlan(NamedTuple):
    """The plan of an image set's index, and the listing it speaks of, which its shards read from the store."""

    plan: Plan
    listing: pa.Table

    def freeze(self, store: Store) -> Plan:
        """Store the listing, so that the plan can run."""
        key = layout.listing_key(str(self.plan.stage.params["listing"]))
        if not store.exists(key):
            out = io.BytesIO()
            pq.write_table(self.listing, out, compression="zstd")
            store.create(key, out.getvalue())
        return self.plan


def plan_index(files: Files, images: Images, shard_rows: int | None = None) -> IndexPlan:
    """List an image set and plan its index; nothing is written.

    The digest follows the listing: a file that was added, removed or touched gives a new index, and only a change of
    bytes or order gives it another content.

    Raises:
        BadRef, EmptyImageSet: the image set or its labels file is not there or not what it should be.
    """
    images = canonical_images(images)
    ref = ImageSetRef.parse(images.ref)
    listing = list_source(ref, files)
    labels_sha256 = None
    if images.labels.startswith("file:"):
        labels, labels_sha256 = read_labels(images.labels.removeprefix("file:"), files)
        blocks = (FileInfo(**row) for row in listing.to_pylist())
        labels.check_fits(open_source(ref, files).known_names(blocks), str(ref))
    return IndexPlan(make_plan(images, _sha256(listing), len(listing), labels_sha256, shard_rows), listing)


def _sha256(listing: pa.Table) -> str:
    """Of the rows, a batch at a time: a listing may have millions."""
    hasher = hashlib.sha256()
    for batch in listing.to_batches(max_chunksize=65536):
        for uri, size, stamp in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            hasher.update(f"{uri}\0{size}\0{stamp}\0".encode())
    return hasher.hexdigest()


def load_listing(store: Store, listing: str) -> pa.Table:
    """A frozen listing: uri, size, stamp. Raises KeyMissing."""
    return read_part(store.get(layout.listing_key(listing)))


def load_image_facts(store: Store, digest: str) -> ImageFacts | None:
    """What a published index says to planning, or None while it is not published.

    Raises:
        DamagedPart: its small `content` artifact is not what was published.
    """
    published = load_published(store, digest)
    if published is None:
        return None
    for artifact in published.artifacts:
        if artifact.name == "content":
            return image_facts(published, get_checked(store, artifact))
    raise DamagedPart(f"stage {digest} published no artifact 'content'; it is not an index of images")
