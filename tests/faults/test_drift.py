"""A night that is killed while it keeps how results moved: no half of it is a table, and the next night tells all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.catalog import Scope, load_drift, open_catalog, verify
from cluster.changes import load_changes
from cluster.drift import compare_runs
from cluster.gc import Policy, sweep
from cluster.nightly import conclude, last_night
from cluster.runs import RunState, load_state
from cluster.sql import run_sql
from cluster.stores import Store
from tests.faults.victim import DIED, ROOT
from tests.lakes import Lake
from tests.made_up_nights import sweep_of_saes
from tests.paces import fast

VICTIM = """
import json, sys
from cluster.nightly import conclude
from cluster.stores import make_store
from tests.faults.victim import die_at
store, run, die = json.loads(sys.argv[1])
die_at(**die)
conclude(make_store(store), run, None)
"""
WHERE = ["before its part", "after its part", "before its pointer", "after its pointer"]
KEYS = {"part": r"^tables/drift/", "pointer": r"drift\.json$"}


def night(lake: Lake, steps: int) -> RunState:
    return sweep_of_saes(lake, [16, 32], steps).end()


def kill(lake: Lake, run: str, where: str) -> None:
    """End the process that concludes a run as SIGKILL would."""
    when, _, what = where.split()
    order = json.dumps([lake.uri, run, {"key": KEYS[what], "when": when}])
    done = subprocess.run([sys.executable, "-c", VICTIM, order], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == DIED, done.stderr


def rows(store: Store, run: str) -> list[dict[str, object]]:
    query = "SELECT * EXCLUDE (stage) FROM drift ORDER BY ALL"
    found: list[dict[str, object]] = run_sql(open_catalog(store, Scope(run=run)), query).read_all().to_pylist()
    return found


@pytest.mark.parametrize(
    "where", [WHERE[2], *(pytest.param(w, marks=pytest.mark.slow) for w in WHERE if w != WHERE[2])]
)
def test_a_night_that_is_killed_while_drift_is_kept_leaves_no_half_of_it_and_the_next_tells_it(
    tmp_path: Path, where: str
) -> None:
    lake = Lake(tmp_path / "lake")
    store = lake.store
    conclude(store, night(lake, 1).run, None, fast())
    killed = night(lake, 2).run
    kill(lake, killed, where)
    there = where == "after its pointer"
    assert (load_drift(store, killed) is not None) == there and load_changes(store, killed) is None
    assert ("drift" in open_catalog(store, Scope(run=killed)).tables) == there
    orphans = store.list("tables/drift")
    assert bool(orphans) == (where != "before its part")
    again = night(lake, 2).run
    assert last_night(store, again) == "nights-00001"
    assert conclude(store, again, None, fast()).problems == []
    whole = Lake(tmp_path / "whole")
    conclude(whole.store, night(whole, 1).run, None, fast())
    conclude(whole.store, night(whole, 2).run, None, fast())
    told = rows(store, again)
    assert told == rows(whole.store, "nights-00002") and len(told) > 50
    assert not there or rows(store, killed) == told
    assert not [v for v in verify(open_catalog(store, Scope(all=True))) if v.problem]
    last = night(lake, 3).run
    conclude(store, last, None, fast())
    sweep(store, Policy(keep_runs=1), fast())
    newest = load_drift(store, last)
    assert newest is not None  # and what the killed one left has gone with its run
    assert store.list("tables/drift") == [part.key for part in newest.tables["drift"]]


@pytest.mark.slow
def test_what_a_killed_night_left_is_taken_up_by_who_compares_the_same_runs_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    runs = [night(lake, steps) for steps in (1, 2)]
    conclude(lake.store, runs[0].run, None, fast())
    kill(lake, runs[1].run, "after its part")
    (orphan,) = lake.store.list("tables/drift")
    evening = conclude(lake.store, runs[1].run, None, fast())
    assert evening.problems == [] and lake.store.list("tables/drift") == [orphan]
    published = load_drift(lake.store, runs[1].run)
    assert published is not None and [part.key for part in published.tables["drift"]] == [orphan]
    found = compare_runs(lake.store, *(load_state(lake.store, run.run) for run in runs))
    assert published.rows("drift") == sum(batch.num_rows for batch in found.batches(""))
