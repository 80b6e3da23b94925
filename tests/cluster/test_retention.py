"""Of equal nights two runs stay, and nothing that was cut short stays for ever."""

from __future__ import annotations

from cluster.retention import Policy, RunFacts, choose
from cluster.runs import RunState, RunTables, StageState


def tables(*digests: str, limited: bool = False) -> RunTables:
    return RunTables(run="", pipeline="p", limited=limited, stages={"cell": digests})


def cut(*digests: str) -> RunState:
    stages = tuple(
        StageState(digest=d, cell="cell", kind="selftest", subject="s", output="rows", state="to do") for d in digests
    )
    return RunState(run="", pipeline="p", number=1, status="INTERRUPTED", stages=stages)


def kept(runs: list[RunFacts], keep: int) -> set[int]:
    return {int(run.split("-")[1]) for run in choose(runs, Policy(keep_runs=keep), "/lake")}


def test_a_thousand_equal_nights_leave_two_runs() -> None:
    nights = [RunFacts(f"p-{n:05d}", None, tables("a", "b")) for n in range(1, 1001)]
    assert kept(nights, 7) == {1, 1000}
    nights[500] = RunFacts("p-00501", None, tables("a", "c"))
    assert kept(nights, 7) == {1, 501, 1000}
    assert kept(nights, 1) == {1, 1000}


def test_of_different_tables_the_newest_so_many_stay() -> None:
    nights = [RunFacts(f"p-{n:05d}", None, tables(str(n))) for n in range(1, 11)]
    assert kept(nights, 3) == {8, 9, 10}


def test_trials_and_runs_that_were_cut_short_stay_while_they_are_among_the_last_and_only_once() -> None:
    runs = [
        RunFacts("p-00001", cut("a"), None), RunFacts("p-00002", None, tables("a", limited=True)),
        RunFacts("p-00003", None, tables("a")), RunFacts("p-00004", cut("b"), None), RunFacts("p-00005", cut("a"), None),
        RunFacts("p-00006", cut("a"), None), RunFacts("p-00007", None, tables("a")), RunFacts("p-00008", cut("c"), None),
    ]  # fmt: skip
    assert kept(runs, 1) == {3, 7, 8}
    assert kept(runs, 2) == kept(runs, 3) == {3, 6, 7, 8}
    assert kept(runs, 4) == kept(runs, 6) == {3, 4, 6, 7, 8}
    assert kept(runs[:2], 1) == {2}  # of which none has finished, and both are about the same


def test_of_trials_no_more_than_so_many_stay_also_where_nothing_has_finished() -> None:
    trials = [RunFacts(f"p-{n:05d}", None, tables(str(n), limited=True)) for n in range(2, 41)]
    assert kept(trials, 3) == {38, 39, 40}
    assert kept([RunFacts("p-00001", None, tables("a")), *trials], 3) == {1, 38, 39, 40}
    equal = [RunFacts(f"p-{n:05d}", cut("a"), None) for n in range(41, 51)]  # which count as one
    assert kept([*trials, *equal], 3) == {39, 40, 50}


def test_the_newest_run_always_stays_so_that_no_number_is_given_twice() -> None:
    for last in (cut("a"), None):
        runs = [RunFacts("p-00001", None, tables("a")), RunFacts("p-00002", last, None)]
        assert 2 in kept(runs, 1)
