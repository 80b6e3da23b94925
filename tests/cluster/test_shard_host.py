"""What a shard leaves in the store when writes are damaged or an image cannot be read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cluster import ledger
from cluster.board import Board
from cluster.parquet import read_part
from cluster.planned import plan_pipeline
from cluster.shard_host import ShardHost
from cluster.works import group_siblings
from tests.corridor import selftest
from tests.damage import DamagingStore
from tests.lakes import Lake, export, make_extract


def test_a_part_that_was_damaged_on_its_way_is_published_under_the_next_key(tmp_path: Path) -> None:
    (todo,) = selftest(rows=10, shard_rows=10)
    (work,) = group_siblings([todo])
    store = DamagingStore(str(tmp_path), damaged_writes=1)
    host = ShardHost(str(tmp_path))
    host._store = store
    outcome = host.run(work, next(iter(Board([work], {}).ready())))
    assert outcome.state == "done", outcome.message
    (part,) = ledger.load_done(store, work.plans[0].digest, 0).parts
    assert part.key.endswith(".a1.parquet")
    assert read_part(ledger.get_checked(store, part))["row"].to_pylist() == list(range(10))


def test_an_image_that_cannot_be_read_fails_its_shard_to_be_tried_again_and_no_other(tmp_path: Path) -> None:
    """Neither a bad image nor the end of the run: the disk may be back in a moment."""
    folder, lake = export(tmp_path, 32), Lake(tmp_path / "lake")
    spec = make_extract(folder, ("demo:clip-p8",), sites=[], outputs=["embeddings"], shard_rows=16)
    trial = spec.model_copy(update={"images": spec.images.model_copy(update={"limit": 1})})
    assert lake.run(trial).exit_code == 0  # inspects the model and indexes every image
    planned = plan_pipeline(spec, lake.store)
    (work,) = group_siblings((plan, c.cell.resources) for c in planned.cells for plan in c.plans)
    image = sorted((folder / "images").iterdir())[20]
    data = image.read_bytes()
    image.unlink()
    image.symlink_to(image)  # a link to itself is an OSError that is neither "missing" nor "denied"
    with pytest.raises(OSError) as error:
        image.read_bytes()
    assert error.value.errno == errno.ELOOP
    first, second = Board([work], {}).ready()
    host = ShardHost(lake.uri)
    assert host.run(work, first).state == "done"
    outcome = host.run(work, second)
    assert (outcome.state, outcome.error, outcome.retry) == ("failed", "InputUnreadable", True)
    assert str(image) in outcome.message and os.strerror(errno.ELOOP) in outcome.message
    assert ledger.done_shards(lake.store, work.plans[0].digest) == {0}
    image.unlink()
    image.write_bytes(data)
    assert host.run(work, second).state == "done"
