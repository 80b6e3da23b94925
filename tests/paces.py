"""A clock for tests of leases: it moves only when somebody sleeps, so that nothing depends on how busy the machine is."""

from __future__ import annotations

from collections.abc import Callable

from cluster.lease import Pace


class Time:
    """Seconds since `begin`; `during` is called in every sleep."""

    def __init__(self, begin: float = 0.0, during: Callable[[], object] = lambda: None) -> None:
        self.now, self.slept, self.during = begin, 0.0, during

    def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.now += seconds
        self.slept += seconds
        self.during()

    def pace(self) -> Pace:
        """Beats every 5 seconds, 60 seconds of patience."""
        return Pace(beat=5, patience=60, sleep=self.sleep, clock=lambda: self.now)


def fast() -> Pace:
    """A pace of its own, whose waits take no time."""
    return Time().pace()
