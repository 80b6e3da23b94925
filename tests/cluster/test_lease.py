"""A lease has one holder at a time; one who is silent loses it to whoever waited long enough, whatever clocks say."""

from __future__ import annotations

import threading
import time as clocks
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.lease import PACE, Lease, Pace, find_term, follow, make_pace, still_lives, take
from cluster.stores import Store, make_store
from cluster.stores.posix import PosixStore
from schemas import layout
from schemas.errors import Interrupted, LeaseHeld, LeaseLost, StoreUnreachable, UsageError
from tests.lossy import LossyStore
from tests.paces import Time


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def test_a_lease_that_nobody_holds_or_that_was_given_back_is_taken_without_waiting(store: Store) -> None:
    time = Time()
    first = take(store, "n", time.pace())
    first.release()
    second = take(store, "n", time.pace())
    assert (first.term, second.term, time.slept) == (1, 2, 0.0)
    second.check()


def test_a_holder_that_beats_keeps_its_lease_and_one_beat_is_enough_to_see_it(store: Store) -> None:
    holder = take(store, "n", Time(begin=1e9).pace())
    taker = Time(begin=-5e8, during=holder.beat)  # the two machines disagree by half a century
    with pytest.raises(LeaseHeld, match=r"process \d+ holds the lease \(term 1\)"):
        take(store, "n", taker.pace())
    assert taker.slept == 5
    holder.check()


def test_a_silent_holder_loses_its_lease_after_our_patience_and_is_told(store: Store) -> None:
    dead, time = take(store, "n", Time().pace()), Time()
    new = take(store, "n", time.pace())
    assert new.term == 2 and 60 <= time.slept <= 65
    dead.beat()
    with pytest.raises(LeaseLost, match=r"term 1: taken over by .* process"):
        dead.check()
    new.check()


def test_whoever_gives_back_while_others_watch_is_followed_at_once(store: Store) -> None:
    holder = take(store, "n", Time().pace())
    time = Time(during=lambda: holder.release())
    assert take(store, "n", time.pace()).term == 2
    assert time.slept == 5


def test_of_eight_that_find_a_dead_holder_one_takes_the_lease(store: Store) -> None:
    take(store, "n", Time().pace())
    barrier = threading.Barrier(8)
    passed = threading.local()

    def meet_once() -> None:
        if not getattr(passed, "done", False):
            passed.done = True
            barrier.wait(30)

    def enter(_: int) -> Lease | None:
        try:
            return take(store, "n", Time(during=meet_once).pace())
        except LeaseHeld:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [lease for lease in pool.map(enter, range(8)) if lease]
    assert [lease.term for lease in won] == [2]


def test_a_taker_whose_answer_was_lost_does_not_lose_to_itself(tmp_path: Path) -> None:
    lease = take(LossyStore(str(tmp_path), 1), "n", Time().pace())
    lease.check()
    with pytest.raises(
        LeaseHeld, match="has just taken the lease"
    ):  # who says the same of itself in its answer is another
        follow(make_store(str(tmp_path)), "n", None, Time().pace())
    lease.check()


def test_what_somebody_else_lays_beside_the_terms_of_a_lease_is_none(store: Store) -> None:
    first = take(store, "n", Time().pace())
    for name in (
        "README",
        "notes.txt",
        "00000009.held.json.bak",
        "00000009.json",
        "x.held.json",
        "old/00000009.held.json",
    ):
        store.create(f"leases/n/{name}", b"")
    first.beat()
    first.check()
    first.release()
    assert take(store, "n", Time().pace()).term == 2


class SilentStore(PosixStore):
    """A folder that is away when it is told so."""

    away = False

    def replace(self, key: str, data: bytes) -> None:
        if self.away:
            raise StoreUnreachable("away")
        super().replace(key, data)

    def create(self, key: str, data: bytes) -> bool:
        if self.away:
            raise StoreUnreachable("away")
        return super().create(key, data)


def test_a_holder_that_cannot_beat_stops_before_others_take_over(tmp_path: Path) -> None:
    store, time = SilentStore(str(tmp_path)), Time()
    lease = take(store, "n", time.pace())
    store.away = True
    time.sleep(14)
    lease.check()  # 14 of 60 seconds: enough is left for whatever is done next
    time.sleep(2)
    with pytest.raises(LeaseLost, match="no beat could be written"):
        lease.check()


def test_a_lease_whose_store_is_away_at_the_end_hides_no_other_error(tmp_path: Path) -> None:
    store = SilentStore(str(tmp_path))
    with pytest.raises(ZeroDivisionError), take(store, "n", Time().pace()):
        store.away = True
        _ = 1 / 0
    term = find_term(store, "n")
    assert term is not None and not term.ended


def test_a_holder_that_slept_too_long_does_not_trust_its_late_beat(store: Store) -> None:
    time = Time()
    lease = take(store, "n", time.pace())
    time.suspended += 61  # as a laptop that was closed, whose other clock stands still
    with pytest.raises(LeaseLost, match="no beat was written for 61 s"):
        lease.check()


def test_a_lease_in_a_with_beats_by_itself_and_ends(store: Store) -> None:
    with take(store, "n", Pace(beat=0.01)) as lease:
        while not store.exists(layout.lease_key("n", lease.term, "beat")):
            threading.Event().wait(0.01)
    term = find_term(store, "n")
    assert term is not None and term.ended


def test_a_machine_that_slept_with_the_holder_does_not_think_it_dead(store: Store) -> None:
    holder, time = take(store, "n", Time().pace()), Time()

    def wake() -> None:
        time.suspended += 7200
        if time.slept > 30:  # the holder is awake again too, and takes its time
            holder.beat()

    time.during = wake
    with pytest.raises(LeaseHeld):
        take(store, "n", time.pace())


@pytest.mark.skipif(not hasattr(clocks, "CLOCK_BOOTTIME"), reason="this system has no clock that counts suspended time")
def test_a_holder_counts_the_time_in_which_its_machine_was_suspended() -> None:
    before = clocks.clock_gettime(clocks.CLOCK_BOOTTIME)
    assert before <= PACE.age() <= clocks.clock_gettime(clocks.CLOCK_BOOTTIME)


class SlowStore(PosixStore):
    """A folder whose listings take so many seconds."""

    def __init__(self, root: str, time: Time) -> None:
        super().__init__(root)
        self.time, self.listing = time, 0.0

    def list(self, prefix: str) -> list[str]:
        self.time.now += self.listing
        return super().list(prefix)


def test_a_beat_is_as_old_as_its_writing_however_long_we_listed_behind_it(tmp_path: Path) -> None:
    time = Time()
    store = SlowStore(str(tmp_path), time)
    lease = take(store, "n", time.pace())
    store.listing = 14
    lease.beat()
    lease.check()  # 14 of 60 seconds
    store.listing = 2
    time.now += 2
    lease.check()  # 16 seconds, so it beats, which takes 2
    store.listing = 16
    time.now += 14
    with pytest.raises(LeaseLost, match="takes too long over a beat"):
        lease.check()  # it beats, and 16 of 60 seconds are over when it hears that nobody took the lease


def test_a_term_that_was_there_before_and_removed_is_not_taken_again(store: Store) -> None:
    time = Time()
    take(store, "n", time.pace()).release()
    seen = find_term(store, "n")
    for _ in range(2):  # while a taker that has looked is paused, two come and go, or stay
        last = take(store, "n", time.pace())
        last.release()
    for key in store.list("leases/n"):
        if not key.startswith("leases/n/00000003"):
            store.delete(key)  # as `gc` does
    with pytest.raises(LeaseHeld, match="has just taken the lease"):
        follow(store, "n", seen, time.pace())
    last.beat()
    last.check()


def test_of_two_patiences_the_longer_one_counts(store: Store) -> None:
    take(store, "n", Time().pace()._replace(patience=200))
    time = Time()
    take(store, "n", time.pace())
    assert 200 <= time.slept <= 210
    later = Time()
    take(store, "n", later.pace()._replace(patience=300))
    assert 300 <= later.slept <= 310


def test_whoever_waits_can_be_stopped(store: Store) -> None:
    take(store, "n", Time().pace())
    time = Time()

    def check() -> None:
        if time.slept >= 10:
            raise Interrupted("Ctrl-C")

    term = find_term(store, "n")
    assert term is not None
    with pytest.raises(Interrupted):
        still_lives(store, "n", term, time.pace(), check)
    assert time.slept == 10


def test_a_patience_that_one_request_may_use_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "20")
    with pytest.raises(UsageError, match=r"--patience 29: expected at least 30 seconds, 1.5 times the 20 seconds"):
        make_pace(29)
    assert make_pace(30).patience == 30 and make_pace().patience == 90
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "100")
    assert make_pace().patience == 150
