"""The pool of Ray actors: carries out the scheduler's decisions and turns what happens into outcomes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from cluster.board import Board
from cluster.executor import Rests, StopFlag
from cluster.feasible import check_fits, describe
from cluster.on_ray.session import join, start_local
from cluster.on_ray.team import Died, Team
from cluster.on_ray.watch import PATIENCE, ClusterWatch
from cluster.scheduler import Assign, Slot, Start, Stop, View, decide, get_demands
from cluster.works import Need, Outcome
from schemas.errors import ClusterUnreachable

TICK = 0.2
"""Seconds after which a request to stop is seen at the latest."""
START_TIMEOUT = 900.0
"""Seconds in which a worker must come up while nothing runs; a machine in a cloud takes minutes."""
MAX_FAILED_STARTS = 3


class RayExecutor:
    """Runs tasks on Ray actors of this machine or of a cluster; keeps them, with what they have open, until `close`."""

    def __init__(
        self,
        store_uri: str,
        address: str | None = None,
        cpus: int | None = None,
        gpus: int = 0,
        start_timeout: float = START_TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        """address: None starts Ray here with `cpus` and `gpus` (or uses the session this process has), see `join`.

        Raises:
            ClusterUnreachable: nothing answers at `address`.
        """
        self._owns_session = not ray.is_initialized()
        if self._owns_session:
            join(address) if address else start_local(cpus, gpus)
        self._store_uri = store_uri
        self._start_timeout = start_timeout
        self._watch = ClusterWatch(patience)
        self._next_id = 0
        self._teams: dict[int, Team] = {}
        self._most: Counter[Slot] = Counter()
        self._failed_starts = 0
        self._counted = 0

    # -- before work

    def check(self, works: Sequence[Need]) -> None:
        """Refuse what no machine of this cluster can hold, because Ray would wait for it for ever."""
        for work in works:
            check_fits(work, self._watch.nodes)

    # -- work

    def run(self, board: Board, stop: StopFlag) -> Iterator[Outcome]:
        """Hand out tasks until the board is finished; see `Executor.run`."""
        works: dict[str, Any] = {}
        self._failed_starts = 0
        self._prove_idle()
        rests = Rests()
        last_life = time.monotonic()
        try:
            while not board.finished and board.fatal is None:
                stop.check()
                self._watch.check()
                rests.end(board)
                self._act(board, works)
                yield from self._collect(board)
                if any(team.state.in_flight for team in self._teams.values()):
                    last_life = time.monotonic()
                elif time.monotonic() - last_life > self._start_timeout:
                    raise ClusterUnreachable(self._explain_wait())
        finally:
            self._end([team for team in self._teams.values() if team.state.in_flight])

    def _act(self, board: Board, works: dict[str, Any]) -> None:
        view = View(get_demands(board), [team.state for team in self._teams.values()], self._watch.nodes, self._most)
        for action in decide(view):
            if isinstance(action, Start):
                for team_id in range(self._next_id, self._next_id + action.count):
                    self._teams[team_id] = Team(team_id, action.slot, self._store_uri)
                self._next_id += action.count
            elif isinstance(action, Assign):
                task = next(iter(board.waiting(action.work).values()))
                board.hand_out(task)
                if action.work not in works:  # works divide while others run, so each is put when it begins
                    works[action.work] = ray.put(board.works[action.work])
                self._teams[action.worker].submit(works[action.work], task)
            elif isinstance(action, Stop):
                self._end([self._teams[action.worker]])

    def _collect(self, board: Board) -> Iterator[Outcome]:
        """Wait a tick at most, then take what every team has."""
        owners = {ref: team for team in self._teams.values() for ref in team.awaited}
        if not owners:
            time.sleep(TICK)
            return
        first, rest = ray.wait(list(owners), num_returns=1, timeout=TICK, fetch_local=False)
        more = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if first and rest else []
        arrived: dict[int, list[Any]] = {}
        for ref in (*first, *more):
            arrived.setdefault(owners[ref].id, []).append(ref)
        for team_id, refs in arrived.items():
            outcome = self._advance(self._teams[team_id], refs, board)
            if outcome is not None:
                yield outcome

    def _advance(self, team: Team, refs: list[Any], board: Board) -> Outcome | None:
        try:
            outcome = team.advance(refs)
        except Died as death:
            if death.out_of_memory:
                together = sum(other.slot == team.slot for other in self._teams.values())
                self._most[team.slot] = max(1, together - 1)
            del self._teams[team.id]
            for task in reversed(death.queued):
                board.take_back(task)
            self._count_failed_start(team, death)
            self._prove_idle()
            return death.outcome
        if team.started:
            self._failed_starts = 0
        return outcome

    def _count_failed_start(self, team: Team, death: Died) -> None:
        """Workers that were starting together and end together, as on a machine that dies, count once."""
        if team.started or team.id < self._counted:
            return
        self._counted = self._next_id
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise ClusterUnreachable(
                f"workers could not start {MAX_FAILED_STARTS} times in a row: {death.cause}. Every node needs the same "
                "version of miclip installed and access to the store"
            )

    def _prove_idle(self) -> None:
        for team in self._teams.values():
            team.prove_alive()

    def _explain_wait(self) -> str:
        slots = sorted({team.slot for team in self._teams.values()})
        asked = "; ".join(describe(slot) for slot in slots) or "nothing fits"
        free = {k: round(v, 2) for k, v in ray.available_resources().items() if k in ("CPU", "GPU", "memory")}
        return (
            f"no worker started within {self._start_timeout:.0f} s: waiting for {asked}; free in the cluster now: {free}. "
            "Others may be using it: run the same command later, or ask for less under resources"
        )

    # -- end

    def _end(self, teams: Sequence[Team]) -> None:
        for team in teams:
            team.end()
            self._teams.pop(team.id, None)

    def close(self) -> None:
        """Kill this executor's workers; end the session if this executor began it."""
        self._watch.close()
        try:
            self._watch.check()
        except ClusterUnreachable:  # nobody is there to kill them, and asking would hang
            self._teams.clear()
            return
        self._end(list(self._teams.values()))
        if self._owns_session:
            ray.shutdown()
