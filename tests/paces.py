"""A clock for tests of leases: it moves only when somebody sleeps, so that nothing depends on how busy the machine is."""

from __future__ import annotations

from collections.abc import Callable

from cluster.lease import Pace


class Time:
    """Seconds since `begin`, and those in which the machine was suspended; `during` is called in every sleep."""

    def __init__(self, begin: float = 0.0, during: Callable[[], object] = lambda: None) -> None:
        self.now, self.slept, self.suspended, self.during = begin, 0.0, 0.0, during

    def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.now += seconds
        self.slept += seconds
        self.during()

    def pace(self) -> Pace:
        """Beats every 5 seconds, 60 seconds of patience."""
        return Pace(5, 60, self.sleep, clock=lambda: self.now, age=lambda: self.now + self.suspended)


def fast() -> Pace:
    """A pace of its own, whose waits take no time, also to whoever holds a lease and beats by the real clock."""
    return Time().pace()._replace(age=lambda: 0.0)
