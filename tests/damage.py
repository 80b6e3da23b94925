"""What a disk or a wire does that lies: a turned bit, and a store that turns one in what it writes."""

from __future__ import annotations

from cluster.stores.posix import PosixStore


def turn_bit(data: bytes, place: int) -> bytes:
    """The same bytes but for one bit."""
    turned = bytearray(data)
    turned[place] ^= 16
    return bytes(turned)


class DamagingStore(PosixStore):
    """A real folder; the first writes of parts and artifacts arrive with one bit turned."""

    def __init__(self, root: str, damaged_writes: int) -> None:
        super().__init__(root)
        self._left = damaged_writes

    def create(self, key: str, data: bytes) -> bool:
        """As the folder, but for the damage."""
        if self._left and not key.endswith(".json"):
            self._left -= 1
            data = turn_bit(data, len(data) // 2)
        return super().create(key, data)
