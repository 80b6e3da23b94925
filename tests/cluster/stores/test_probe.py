"""What makes a store fit for a run, tried by really using it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.stores import make_store
from cluster.stores.posix import PosixStore
from cluster.stores.probe import WRITABLE, check_writable
from schemas.errors import StoreDenied


class LosesWrites(PosixStore):
    """A folder that says of every write that it is done, and keeps what was there."""

    def replace(self, key: str, data: bytes) -> None:
        """Lose it."""


@pytest.mark.parametrize("there", [None, b"miclip can write here\n", b"something else\n"])
def test_a_store_that_loses_a_write_is_not_taken_for_writable(tmp_path: Path, there: bytes | None) -> None:
    if there is None:  # what an earlier run wrote
        check_writable(make_store(str(tmp_path)))
    else:
        PosixStore(str(tmp_path)).replace(WRITABLE, there)
    with pytest.raises(StoreDenied, match="holds other bytes now; this store cannot be trusted"):
        check_writable(LosesWrites(str(tmp_path)))


@pytest.mark.parametrize("faster", [1, 2, 1000])
def test_others_may_write_at_the_same_time(tmp_path: Path, faster: int) -> None:
    """Also where they are always faster: what they wrote is never there twice."""

    class Busy(PosixStore):
        writes = 0

        def replace(self, key: str, data: bytes) -> None:
            self.writes += 1
            super().replace(key, data)
            if self.writes <= faster:
                check_writable(PosixStore(str(tmp_path)))

    store = Busy(str(tmp_path))
    check_writable(store)
    assert store.writes == min(faster + 1, 3)
