"""What works hold back, by hand: a short one that much waits for, and siblings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.board import Board
from cluster.events import EventLog
from cluster.executor import StopFlag
from cluster.held_back import HeldBack, find_chains
from cluster.pipeline import PipelineRun
from cluster.scheduler import get_demands
from cluster.stores.posix import PosixStore
from cluster.works import Need, Outcome, Work
from jobs.protocol import Estimate
from schemas.plans import Plan, Resources, Round, StageSpec
from tests.big_zoo import make_pipeline, publish_facts


def stage(subject: str, *reads: Plan, shards: int = 1) -> Plan:
    inputs = {str(n): read.digest for n, read in enumerate(reads)}
    spec = StageSpec(kind="selftest", method=1, subject=subject, output="rows", params={}, inputs=inputs)
    return Plan(stage=spec, rounds=(Round(name="all", rows=shards, shard_rows=1),), worker="w")


def flops(**of: tuple[Plan, int]) -> dict[str, Estimate]:
    return {plan.digest: Estimate(flops=n) for plan, n in of.values()}


def test_a_stage_holds_back_the_longest_chain_of_what_reads_it() -> None:
    """acts is read by two SAEs of 40 and 10 FLOPs; names of 3 read both and acts itself; other stands alone."""
    acts, other = stage("acts"), stage("other")
    large, small = stage("large", acts), stage("small", acts)
    names = stage("names", acts, large, small)
    planned = flops(a=(acts, 5), o=(other, 7), l=(large, 40), s=(small, 10), n=(names, 3))
    expected = {acts.digest: 43, other.digest: 0, large.digest: 3, small.digest: 3, names.digest: 0}
    for plans in ([acts, other, large, small, names], [names, small, large, other, acts]):
        assert find_chains(plans, planned) == expected


def test_what_is_not_planned_or_published_before_holds_nothing_back() -> None:
    acts = stage("acts")
    sae = stage("sae", acts)
    assert find_chains([acts, sae], {}) == {acts.digest: 0, sae.digest: 0}
    assert find_chains([sae], flops(s=(sae, 9))) == {sae.digest: 0}


def test_siblings_hold_back_what_one_pass_over_a_shard_takes_and_the_longest_of_their_chains() -> None:
    """Two sites of 2 and 4 FLOPs of their own and a forward pass of 30 in common, over 3 shards: 12 each."""
    one, two = stage("one", shards=3), stage("two", shards=3)
    sae = stage("sae", two)
    estimates = {
        one.digest: Estimate(flops=2, shared_flops=30),
        two.digest: Estimate(flops=4, shared_flops=30),
        sae.digest: Estimate(flops=8),
    }
    sites = Work((one, two), Resources())
    board = Board([sites, Work((sae,), Resources())], {}, estimates)
    assert [demand.held_back for demand in get_demands(board)] == [HeldBack(12.0, 8)]


def test_siblings_that_part_hold_back_their_own() -> None:
    """Two readers of different stages are one work until one of them is freed."""
    a, b = stage("a"), stage("b")
    of_a, of_b = stage("of a", a), stage("of b", b)
    works = [Work((a,), Resources()), Work((b,), Resources()), Work((of_a, of_b), Resources())]
    board = Board(works, {}, flops(a=(a, 1), b=(b, 1), c=(of_a, 10), d=(of_b, 20)))
    board.publish([a])
    held_back = {board.works[key].title: found.task for key, found in board.held_back.items()}
    assert held_back == {"selftest a": 1.0, "selftest b": 1.0, "selftest of a": 10.0, "selftest of b": 20.0}


class Onlooker:
    """An executor that looks at what waits, and does nothing."""

    def __init__(self) -> None:
        self.held_back: list[HeldBack] = []

    def check(self, works: Sequence[Need]) -> None:
        """All can be held."""

    def run(self, board: Board, stop: StopFlag) -> Iterator[Outcome]:
        self.held_back += [demand.held_back for demand in get_demands(board)]
        yield from ()

    def close(self) -> None:
        """Nothing to release."""


def test_a_run_knows_what_its_works_hold_back_from_what_is_planned_for_them(tmp_path: Path) -> None:
    """Of 4000 images two shards are extracted, at 162 GFLOP each at least; only with an SAE does anything wait for them."""
    acts = {"kind": "extract", "sites": ["resid_post.3@patch:sample(16,0)"]}
    sae = {"kind": "train_sae", "reads": "acts", "latents": 8192, "k": 32}
    found = []
    for stages in ({"acts": acts}, {"acts": acts, "sae": sae}):
        spec = make_pipeline(tmp_path / "tars", stages, models=1, images=4000)
        store = PosixStore(tmp_path / f"lake{len(stages)}")
        publish_facts(store, spec, images=4000)
        onlooker = Onlooker()
        PipelineRun(spec, "night-00001", store, onlooker, EventLog(), StopFlag()).run()
        found += onlooker.held_back
    alone, read = found
    assert alone.task == read.task and 1 <= read.task / (2000 * 162e9) < 1.5
    assert alone.after == 0 < read.after
