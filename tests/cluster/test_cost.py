"""What work will cost, against numbers one can check by hand, and against what a run before took."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest

from cluster.cost import RUNS, Cost, Part, Rates, Terms, cost_of, load_rates
from cluster.cost_log import COSTS, OPEN, CostLog, Measure, Rate, RunCosts
from cluster.planned import PlannedPipeline, plan_pipeline
from cluster.stores.base import Store, make_store
from cluster.works import group_siblings
from jobs.kinds import get_kind
from jobs.protocol import Estimate, flops_of
from schemas.job_files import as_pipeline
from schemas.layout import run_key
from schemas.plans import Resources
from schemas.selftest_specs import SelftestSpec
from tests.big_zoo import make_pipeline, publish_facts
from tests.corridor import selftest
from tests.lakes import Lake
from tests.made_up_descriptions import run_plans
from tests.training import Stopped, make_plan, store_tokens, train

NOTHING = Terms()
CPUS = Resources(cpus=2, workers=4)


def rate(round: str, seconds: float, per: Measure = "row", subject: str = "selftest", **more: Any) -> Rate:
    fields = {"kind": "selftest", "on_gpu": False, "shards": 7, **more}
    return Rate(round=round, subject=subject, per=per, seconds=seconds, **fields)


BY_ROW = Rates([rate("map", 2.0), rate("merge", 5.0), rate(OPEN, 10.0, "worker")])


def parts(resources: Resources = CPUS, done: int = 0, estimate: Estimate | None = None, **fields: Any) -> list[Part]:
    """Of a selftest of 100 rows in 10 shards, and one row in a second round."""
    todo = selftest(resources, **{"rows": 100, "shard_rows": 10, **fields})
    shared = {plan.digest: work.key for work in group_siblings(todo) for plan in work.plans}
    return [Part(shared[plan.digest], plan, needs, estimate or Estimate(), done) for plan, needs in todo]


def hours(seconds: float) -> Any:
    return pytest.approx(seconds / 3600)


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("done", "seconds"),
    [
        (0, 100 * 2 + 5 + 4 * 10),  # all rows, the merge, and opening four workers
        (4, 60 * 2 + 5 + 4 * 10),
        (8, 20 * 2 + 5 + 2 * 10),  # two shards are left for two workers
        (10, 5 + 10),
        (11, 0),
    ],
)
def test_rows_that_are_left_cost_what_a_row_took_and_each_worker_its_opening(done: int, seconds: float) -> None:
    cost = cost_of(parts(done=done), BY_ROW, NOTHING)
    assert cost.cpu_hours == hours(2 * seconds) and cost.gpu_hours == 0  # of two CPUs
    assert cost.rests_on == ({"selftest": 7} if seconds else {}) and not cost.unknown and not cost.borrowed


def test_decoding_threads_are_cpus_that_a_worker_holds() -> None:
    cost = cost_of(parts(Resources(cpus=1, decode_threads=6, workers=4)), BY_ROW, NOTHING)
    assert cost.cpu_hours == hours(6 * 245)


def test_a_worker_on_half_a_gpu_costs_half_of_its_hours_and_no_cpus() -> None:
    on_gpu = Rates([rate("map", 1.0, on_gpu=True), rate("merge", 1.0, on_gpu=True)])
    cost = cost_of(parts(Resources(gpus=0.5, cpus=8)), on_gpu, NOTHING)
    assert (cost.gpu_hours, cost.cpu_hours) == (hours(101 / 2), 0)


def test_past_runs_on_cpus_say_nothing_about_gpus() -> None:
    assert cost_of(parts(Resources(gpus=1)), BY_ROW, NOTHING).unknown == {"selftest"}


def test_each_member_of_a_gang_counts() -> None:
    one, four = (cost_of(parts(Resources(workers=4), gang=gang), BY_ROW, NOTHING) for gang in (1, 4))
    assert one.cpu_hours == hours(245) and four.cpu_hours == hours(4 * (205 + 10))  # one gang is opened


def test_flops_are_spread_over_the_rows_of_a_round_and_what_siblings_share_counts_once() -> None:
    by_flop = Rates([rate("map", 0.5, "FLOP"), rate("merge", 0.25, "FLOP")])
    two = parts(variants=("a", "b"), estimate=Estimate(flops=10, shared_flops=100))
    assert len(two) == 2 and len({part.forward for part in two}) == 1
    assert cost_of(two, by_flop, NOTHING).cpu_hours == hours(2 * (120 * 0.5 + 120 * 0.25))
    assert cost_of([*two, *two], by_flop, NOTHING) == cost_of(two, by_flop, NOTHING)  # two cells may ask for one stage
    half = [part._replace(done=5) for part in two]
    assert cost_of(half, by_flop, NOTHING).cpu_hours == hours(2 * (60 * 0.5 + 120 * 0.25))


def test_a_kind_that_never_ran_is_named_and_is_in_no_sum() -> None:
    known, strange = parts(), [part._replace(estimate=Estimate(flops=1), forward="other") for part in parts(seed=1)]
    cost = cost_of([*known, *strange], BY_ROW, Terms(cpu=1.0))
    assert cost.unknown == {"selftest"} and cost.cpu_hours == hours(2 * 245) == cost.money


def test_a_round_that_was_never_reached_makes_the_whole_unknown() -> None:
    assert cost_of(parts(), Rates([rate("map", 2.0)]), NOTHING) == Cost(unknown=frozenset(["selftest"]))


def test_a_subject_that_was_run_counts_by_itself_and_another_by_the_median_of_all() -> None:
    of = {"x": 1.0, "y": 3.0, "z": 100.0}
    rates = Rates([rate(round, s, "FLOP", name) for name, s in of.items() for round in ("map", "merge")])
    flop = Estimate(flops=5)
    assert cost_of(parts(subject="x", estimate=flop), rates, NOTHING).cpu_hours == hours(2 * 10 * 1.0)
    new = cost_of(parts(subject="new", estimate=flop), rates, NOTHING)
    assert new.cpu_hours == hours(2 * 10 * 3.0) and new.borrowed == {"selftest"} and new.rests_on == {"selftest": 21}


def test_rows_are_not_taken_from_subjects_whose_rows_are_other_things() -> None:
    rates = Rates([rate("read", 0.002, subject="folder:/a"), rate("read", 2.0, subject="world:seed=1,n=400")])
    found = rates.find("selftest", "read", "folder:/b", False, "row")
    assert found == (0.002, 7, False)
    assert rates.find("selftest", "read", "wds:/b", False, "row") is None


def test_of_several_runs_the_middle_shard_counts() -> None:
    found = Rates([rate("map", 1.0, shards=2), rate("map", 9.0, shards=5), rate("map", 4.0, shards=1)])
    assert found.find("selftest", "map", "selftest", False, "row") == (9.0, 8, True)
    few = Rates([rate("map", 1.0, shards=2), rate("map", 9.0, shards=1), rate("map", 4.0, shards=1)])
    assert few.find("selftest", "map", "selftest", False, "row") == (1.0, 4, True)


# ---------------------------------------------------------------- prices and stated rates


def test_money_is_hours_times_the_price_of_what_a_worker_holds() -> None:
    on_gpu = Rates([rate("map", 36.0, on_gpu=True), rate("merge", 0.0, on_gpu=True)])
    gpu = cost_of(parts(Resources(gpus=0.5)), on_gpu, Terms(gpu=3.0, cpu=100.0))
    assert gpu.money == pytest.approx(0.5 * 3.0) and not gpu.unpriced
    cpu = cost_of(parts(), BY_ROW, Terms(gpu=100.0, cpu=0.5))
    assert cpu.money == pytest.approx(cpu.cpu_hours * 0.5)


def test_the_price_of_a_worker_in_the_spec_goes_before() -> None:
    cost = cost_of(parts(Resources(cpus=2, workers=4, price=7.2)), BY_ROW, Terms(cpu=100.0))
    assert cost.money == pytest.approx(245 * 7.2 / 3600)


def test_what_has_no_price_is_named() -> None:
    cost = cost_of(parts(), BY_ROW, Terms(gpu=3.0))
    assert cost.money == 0 and cost.unpriced == {"selftest"}


def test_a_stated_rate_counts_flops_instead_of_past_runs_and_leaves_the_rest_to_them() -> None:
    flops = Estimate(flops=72 * 10**15)
    stated = cost_of(parts(Resources(gpus=2), estimate=flops), BY_ROW, Terms(tflops=10.0))
    assert stated.gpu_hours == pytest.approx(2.0) and stated.rests_on == {"selftest": 0}
    assert cost_of(parts(estimate=flops, done=5), BY_ROW, Terms(tflops=10.0)).cpu_hours == pytest.approx(2 * 1.0)
    assert cost_of(parts(), BY_ROW, Terms(tflops=10.0)) == cost_of(parts(), BY_ROW, NOTHING)


# ---------------------------------------------------------------- what runs leave behind


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("lake"))
    assert lake.run(SelftestSpec(rows=50, shard_rows=10, variants=("a", "b"))).exit_code == 0
    return lake


def test_a_run_leaves_behind_the_median_of_what_its_shards_took(lake: Lake) -> None:
    done = [event for event in lake.events if event["event"] == "shard_done"]
    took = [(e["seconds"]["process"] + e["seconds"]["store"]) / 10 for e in done if e["round_name"] == "map"]
    assert len(took) == 5
    rates = load_rates(lake.store)
    assert rates.find("selftest", "map", "selftest", False, "row") == (median(took), 5, True)
    opened = [event["seconds"]["open"] for event in done if "open" in event["seconds"]]
    assert rates.find("selftest", OPEN, "selftest", False, "worker") == (median(opened), len(opened), True)


def test_a_run_that_finds_all_published_leaves_nothing_and_takes_nothing_away(lake: Lake) -> None:
    before = lake.store.list("runs")
    assert lake.run(SelftestSpec(rows=50, shard_rows=10, variants=("a", "b"))).exit_code == 0
    new = [key for key in lake.store.list("runs") if key not in before]
    assert new and not any(key.endswith(COSTS) for key in new)
    assert load_rates(lake.store).find("selftest", "map", "selftest", False, "row")


def test_a_run_that_fails_tells_what_its_other_shards_took(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert lake.run(SelftestSpec(rows=50, shard_rows=10, error_shards=(2,))).exit_code == 1
    found = load_rates(lake.store).find("selftest", "map", "selftest", False, "row")
    assert found is not None and found.shards == 4


def put(store: Store, run: str, *rates: Rate) -> None:
    store.create(run_key(run, COSTS), RunCosts(rates=rates).canonical_json().encode())


def test_the_newest_runs_of_each_pipeline_count(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    for number in range(1, RUNS + 6):
        put(store, f"night-{number:05d}", rate("map", float(number), shards=1))
    put(store, "other-00001", rate("map", 100.0, shards=2 * RUNS))
    found = load_rates(store).find("selftest", "map", "selftest", False, "row")
    assert found == (100.0, 3 * RUNS, True)  # the first five nights are left out
    assert load_rates(make_store(str(tmp_path / "empty"))).find("selftest", "map", "selftest", False, "row") is None


def test_nothing_left_costs_nothing_whatever_is_known() -> None:
    (part,) = parts(done=11)
    assert cost_of([part], Rates([]), NOTHING) == Cost()


# ---------------------------------------------------------------- what a run notes of its shards


def shard_done(stage: str, **fields: Any) -> dict[str, Any]:
    seconds = {"process": 6.0, "store": 2.0, "open": 3.0}
    done = {"event": "shard_done", "stages": [stage], "items": 10, "round": 0, "round_name": "map", "round_rows": 50}
    return {**done, "seconds": seconds, **fields}


def noted(store: Store, planned: PlannedPipeline, *events: dict[str, Any]) -> Rates:
    """What a listener that expects this pipeline leaves behind after these events."""
    log = CostLog(store, "noted-00001")
    log.expect(planned)
    for event in events:
        log(event)
    log.save()
    return load_rates(store)


def test_a_shard_counts_as_part_of_the_round_that_it_is_of_not_of_the_one_that_was_planned(tmp_path: Path) -> None:
    """A stage may have been begun with another cut, of other rounds: the same FLOPs over twice the rows take half as long each."""
    spec = make_pipeline(tmp_path / "tars", {"acts": {"kind": "extract", "sites": ["resid_post.3@patch"]}}, 1)
    store = make_store(str(tmp_path / "lake"))
    publish_facts(store, spec)
    planned = plan_pipeline(spec, store)
    plan = next(plan for _, plan, _ in planned.plans() if plan.stage.kind == "extract")
    flops = flops_of([get_kind("extract").estimate(plan, planned.known)])
    assert flops > 10**15
    rates = noted(store, planned, shard_done(plan.digest, round=5, round_name="tiles", round_rows=40))
    found = rates.find("extract", "tiles", plan.stage.subject, True, "FLOP")
    assert found == (pytest.approx(8.0 / (flops * 10 / 40)), 1, True)


def test_a_shard_that_went_on_from_a_kept_state_tells_only_how_long_its_worker_took_to_open(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    planned = plan_pipeline(as_pipeline(SelftestSpec(rows=50, shard_rows=10)), store)
    stage = next(plan.digest for _, plan, _ in planned.plans())
    rates = noted(store, planned, shard_done(stage, resumed=True))
    assert rates.find("selftest", "map", "selftest", False, "row") is None
    assert rates.find("selftest", OPEN, "selftest", False, "worker") == (3.0, 1, True)
    again = noted(store, planned, shard_done(stage, resumed=True), shard_done(stage))
    assert again.find("selftest", "map", "selftest", False, "row") == (0.8, 1, True)


def test_of_a_shard_that_was_killed_the_next_try_says_that_it_went_on(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))
    tokens = store_tokens(store)
    killed, other = make_plan(tokens, keep_every=4), make_plan(tokens, keep_every=4, seed=7)
    with pytest.raises(Stopped):
        train(store, killed, stop_at=2)
    for plan, went_on in ((killed, True), (other, False)):
        trained = next(event for event in run_plans(store, [plan]).of("shard_done") if event["round_name"] == "train")
        assert trained.get("resumed", False) is went_on
