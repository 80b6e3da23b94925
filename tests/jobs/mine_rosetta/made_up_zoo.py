"""A zoo of made-up members: units, and buddies among them, published as the stages of units and pairs would have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.stores.base import Store
from jobs.activations import Forward
from jobs.mine_rosetta.members import Member, MemberSite
from jobs.mine_rosetta.plan import GRAPH, Side, compared, pair_stage, units_stage, zoo_stage
from schemas.plans import Plan, Round
from schemas.rosetta_specs import MineRosettaSpec
from tests.made_up_descriptions import publish_rows, rows_of, run_plans

Row = dict[str, Any]
Key = tuple[str, str | None, str, int]
"""Model, SAE, site and unit."""
SAE = "5ae" + 17 * "0"


def make_member(model: str, sites: Mapping[str, int], sae: str | None = None, grid: tuple[int, int] = (4, 4)) -> Member:
    """sites: how many units each has."""
    params: Any = {"rows": 64, "geometry": "square"}
    forward = Forward(model=model, inputs={"model": model, "images": "i"}, params=params, effort={"batch_size": 8})
    found = [
        MemberSite(site=site, grid=grid, width=width, channels=width, depth=i / 4)
        for i, (site, width) in enumerate(sites.items())
    ]
    return Member(forward=forward, sites=tuple(found), sae=sae)


def key(member: Member, site: str, unit: int) -> Key:
    return member.model, None if member.sae is None else f"sae:{member.sae}", site, unit


def keys_of(member: Member) -> list[Key]:
    return [key(member, site.site, unit) for site in member.sites for unit in range(site.width)]


def row_key(row: Row, side: str = "") -> Key:
    return row[f"model{side}"], row[f"sae{side}"], row[f"site{side}"], row[f"unit{side}"]


@dataclass(frozen=True)
class MadeUp:
    """Members, and the buddies of every two of them (or of one with itself) as rows."""

    members: tuple[Member, ...]
    buddies: Mapping[tuple[int, int], Sequence[Row]]
    dead: frozenset[Key] = frozenset()
    rare: frozenset[Key] = frozenset()

    def edges(self, k: int) -> dict[frozenset[Key], float]:
        """Two units of different models that are buddies above the null -> r."""
        return {
            frozenset((row_key(row, "_a"), row_key(row, "_b"))): row["r"]
            for (a, b), rows in self.buddies.items()
            for row in rows
            if a != b and not row["is_below_null"] and max(row["rank_ab"], row["rank_ba"]) < k
        }

    def publish(self, store: Store, name: str = "made_up", /, **changes: Any) -> Plan:
        """The plan of the zoo, over published units and pairs; changes: fields of the spec."""
        spec = MineRosettaSpec.model_validate({"k": 3, **changes}, strict=False)
        sides = [Side.of(spec, member) for member in self.members]
        for member in self.members:
            publish_rows(store, units_stage(spec, member), {"rosetta_units": [*self._units(member)]})
        for a, b in [*compared(self.members), *((m, m) for m in range(len(self.members)))]:
            stage = pair_stage(spec, sides[a], sides[b])
            publish_rows(store, stage, {"rosetta_buddies": list(self.buddies.get((a, b), []))})
        stage = zoo_stage(spec, name, self.members)
        effort: Any = {"members": [member.model_dump(mode="json") for member in self.members]}
        return Plan(stage=stage, rounds=(Round(name=GRAPH, rows=1, shard_rows=1),), worker="zoo", effort=effort)

    def _units(self, member: Member) -> Sequence[Row]:
        every = keys_of(member)
        return [self._unit(member, *every[i]) for i in reversed(range(len(every)))]  # in no order that helps

    def _unit(self, member: Member, model: str, sae: str | None, site: str, unit: int) -> Row:
        (of_site,) = [s for s in member.sites if s.site == site]
        dead = (model, sae, site, unit) in self.dead
        return {
            "model": model, "sae": sae, "unit_kind": member.unit_kind, "site": site, "unit": unit, "depth": of_site.depth,
            "grid_h": of_site.grid[0], "grid_w": of_site.grid[1], "images": 64, "n": 1024, "mean": 0.0, "sd": 1.0,
            "skewness": None if dead else 1.0, "kurtosis": None if dead else unit / 4, "active": 0.1 + unit / 100,
            "images_active": 9, "is_dead": dead, "is_rare": (model, sae, site, unit) in self.rare,
        }  # fmt: skip


def buddy(a: Key, b: Key, r: float, rank_ab: int = 0, rank_ba: int = 0, below: bool = False) -> Row:
    """One row of rosetta_buddies."""
    sides = {f"{name}{side}": value for side, of in (("_a", a), ("_b", b)) for name, value in zip(_KEY, of)}
    return {
        **sides,
        "r": r,
        "rank_ab": rank_ab,
        "rank_ba": rank_ba,
        "place_r": 0.0,
        "null_q999": 0.2,
        "is_below_null": below,
    }


_KEY = ("model", "sae", "site", "unit")


def random_zoo(members: Sequence[Member], seed: int, k: int = 3, left_out: Sequence[Key] = ()) -> MadeUp:
    """Buddies that follow from random r by sorting; up to .2 they are below the null. Half of left_out is dead, half rare."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, int], list[Row]] = {}
    for a, b in [*compared(members), *((m, m) for m in range(len(members)))]:
        of_a, of_b = ([u for u in keys_of(members[m]) if u not in left_out] for m in (a, b))
        same = np.equal.outer([u[3] for u in of_a], [u[3] for u in of_b])  # units of one number go along better
        r = np.round(rng.uniform(-0.2, 0.5, same.shape) + 0.4 * same, 2)  # rounded, so that there are ties
        if a == b:
            r = np.maximum(r, r.T)
            np.fill_diagonal(r, -9)
        ranks_ab = np.argsort(np.argsort(-r, 1, "stable"), 1, "stable")
        ranks_ba = np.argsort(np.argsort(-r, 0, "stable"), 0, "stable")
        found[a, b] = [
            buddy(of_a[i], of_b[j], r[i, j], int(ranks_ab[i, j]), int(ranks_ba[i, j]), bool(r[i, j] <= 0.2))
            for i, j in zip(*np.nonzero((ranks_ab < k) & (ranks_ba < k)))
            if a != b or i < j
        ]
    return MadeUp(tuple(members), found, frozenset(left_out[::2]), frozenset(left_out[1::2]))


def mine(store: Store, plan: Plan) -> dict[str, list[Row]]:
    """The rows of every table of a zoo that is run."""
    assert run_plans(store, [plan]).board.finished
    tables = ("universality", "cliques", "components", "layers", "tuples", "anchors", "clusters", "entries")
    return {name: rows_of(store, plan, f"rosetta_{name}") for name in tables}
