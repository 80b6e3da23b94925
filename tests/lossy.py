"""A folder whose answers can be lost on their way, as S3's: what was created is there, and whoever made it hears that it was there before."""

from __future__ import annotations

from cluster.stores.posix import PosixStore


class LossyStore(PosixStore):
    """Loses the answers to these of its creates, counted from 1."""

    def __init__(self, root: str, *lost: int) -> None:
        super().__init__(root)
        self.lost, self.creates = lost, 0

    def create(self, key: str, data: bytes) -> bool:
        self.creates += 1
        return super().create(key, data) and self.creates not in self.lost
