"""Mine_rosetta cells to plans: units of each member, pairs of members, the graph of the zoo, its dictionary; loads no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple, TypeAlias

from pydantic import JsonValue

from jobs.memory import LIBRARY_BYTES
from jobs.mine_rosetta.members import Member, find_members, map_bytes, matching
from jobs.mine_rosetta.tiles import (
    Tile,
    again_bytes,
    images_at_once,
    images_together,
    numbers_alone,
    pair_flops,
    plan_tiles,
    tiling_bytes,
)
from jobs.protocol import Cell, Estimate, Known
from miclip_core.rosetta.grids import Rule
from miclip_core.rosetta.memory import zoo_bytes
from miclip_core.zoo.shipped import share_targets
from schemas.base import canonical_json, digest
from schemas.errors import BadSpec, NotInspected
from schemas.plans import PAIR, Plan, Round, StageSpec, load_json
from schemas.rosetta_specs import MineRosettaSpec

METHODS = {"units": 1, "pair": 1, "zoo": 1, "dictionary": 1}
MOMENTS, SCALE, ACTIVITY, UNITS = "moments", "scale", "activity", "units"
TILES, RESCORE, BUDDIES = "tiles", "rescore", "buddies"
GRAPH, PEAKS, CHOOSE, MAPS = "graph", "peaks", "choose", "maps"
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "units": {MOMENTS: ("bad_inputs",), SCALE: (), ACTIVITY: (), UNITS: ("rosetta_units",)},
    "pair": {
        TILES: (),
        RESCORE: (),
        BUDDIES: ("rosetta_neighbours", "rosetta_buddies", "rosetta_pairs", "rosetta_moments"),
    },
    "zoo": {
        GRAPH: (
            "rosetta_universality",
            "rosetta_cliques",
            "rosetta_components",
            "rosetta_layers",
            "rosetta_tuples",
            "rosetta_anchors",
            "rosetta_clusters",
            "rosetta_entries",
        )
    },
    "dictionary": {PEAKS: (), CHOOSE: (), MAPS: ("rosetta_exemplars",)},
}
ARTIFACTS: dict[str, tuple[str, ...]] = dict.fromkeys(TABLES, ())
SHARDS_PER_WORKER = 2
"""Of tiles, over all pairs of a zoo: those of a pair are cut further only where pairs alone leave workers idle."""
SHARD_OVER_MAPS = 4
"""A shard of tiles computes at least so many times what its maps cost."""
MAP_FLOPS = 50
"""Per number of a map: reading and standardising it takes as long as so many FLOP of a product."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The plans of one model (its units, and it as an anchor with itself), of one pair of models, or of the whole zoo.

    Raises:
        NotInspected: a model or the image set is not known yet.
        BadSpec: nothing to compare, or a spec that asks for what these models do not have.
    """
    spec = cell.spec
    assert isinstance(spec, MineRosettaSpec)
    if cell.pair is not None:
        of_a, of_b = (_sides(cell, known, model) for model in cell.pair)
        return tuple(_pair_plan(cell, known, a, b) for a in of_a for b in of_b)
    if cell.model is not None:
        members = find_members(cell, known, cell.model)
        _check_some(cell, members)
        anchors = [Side.of(spec, member) for member in members if _is_anchor(spec, member)]
        return (*_units_plans(cell, members), *(_pair_plan(cell, known, m, m) for m in anchors))
    return tuple(_zoo_plans(cell, known))


def _check_some(cell: Cell, members: Sequence[Member]) -> None:
    if not members:
        raise BadSpec(
            f"units: features of {cell.model}, but no stage that is read makes an SAE of it; read one, add neurons to units, or "
            "take the model out"
        )


def _is_anchor(spec: MineRosettaSpec, member: Member) -> bool:
    return spec.anchors == "all" or member.model in spec.anchors


# ---------------------------------------------------------------- one member


def _units_plans(cell: Cell, members: Sequence[Member]) -> Iterator[Plan]:
    """Of the members of one model, which see as many images at once as all of them have room for."""
    spec = cell.spec
    assert isinstance(spec, MineRosettaSpec)
    block = images_together(members, spec.batch_size, spec.budget_gb * 2**30)
    yield from (_units_plan(spec, member, block) for member in members)


def _units_plan(spec: MineRosettaSpec, member: Member, block: int) -> Plan:
    forward = member.forward
    rounds = (
        Round(name=MOMENTS, rows=forward.rows, shard_rows=spec.shard_rows),
        Round(name=SCALE, rows=1, shard_rows=1),
        Round(name=ACTIVITY, rows=forward.rows, shard_rows=spec.shard_rows),
        Round(name=UNITS, rows=1, shard_rows=1),
    )
    return Plan(
        stage=units_stage(spec, member),
        rounds=rounds,
        # neurons and the latents of SAEs of one model see its images in one pass
        worker=f"mine_rosetta units {member.model} {digest([forward.inputs, forward.params])}",
        effort={"member": member.model_dump(mode="json"), "images_at_once": block, "cache_gb": spec.cache_gb},
    )


def units_stage(spec: MineRosettaSpec, member: Member) -> StageSpec:
    """The statistics of every unit of a member: all that a pair of members needs to know of either."""
    inputs = {**member.forward.inputs, **({"sae": member.sae} if member.sae else {})}
    return StageSpec(
        kind="mine_rosetta",
        method=METHODS["units"],
        subject=member.model,
        output="units",
        params={
            **member.forward.params,
            "unit_kind": member.unit_kind,
            "sites": [site.model_dump(mode="json") for site in _known_sites(member)],
            "min_active_images": spec.min_active_images,
            "min_active_positions": spec.min_active_positions,
        },
        inputs=inputs,
    )


def _known_sites(member: Member) -> list[Any]:
    """Sites as a digest may hold them: without the width of an SAE, which is assumed where it is not known."""
    return [site if member.sae is None else site.model_copy(update={"width": 0}) for site in member.sites]


# ---------------------------------------------------------------- two members


Cut: TypeAlias = tuple[int, tuple[tuple[Tile, ...], ...]]
"""Images of a block, and the tiles of each shard."""


class Side(NamedTuple):
    """A member to be compared, with what all of its pairs say of it: the digest of the stage of its units, and itself as JSON."""

    member: Member
    units: str
    described: JsonValue

    @classmethod
    def of(cls, spec: MineRosettaSpec, member: Member) -> Side:
        """The side that a member is."""
        return cls(member, units_stage(spec, member).digest, member.model_dump(mode="json"))


def _sides(cell: Cell, known: Known, model: str) -> list[Side]:
    """The members of one model; it has a pair with every other model of the zoo, and is the same in each of them."""
    read = tuple(plan.digest for plans in cell.reads.values() for plan in plans if plan.stage.subject == model)
    images = cell.images.canonical_json() if cell.images else ""
    key = ("mine_rosetta", cell.name, cell.spec, images, cell.zoo, model, read)
    if key not in known.memo:
        assert isinstance(cell.spec, MineRosettaSpec)
        known.memo[key] = [Side.of(cell.spec, member) for member in find_members(cell, known, model)]
    sides: list[Side] = known.memo[key]
    return sides


def _pair_plan(cell: Cell, known: Known, side_a: Side, side_b: Side) -> Plan:
    spec, a, b = cell.spec, side_a.member, side_b.member
    assert isinstance(spec, MineRosettaSpec)
    _check_generators(known, a, b)
    _check_chance(spec, b)
    budget = spec.budget_gb * 2**30
    least = SHARD_OVER_MAPS * sum(_map_flops(known, member) for member in (a, b, b))
    pairs = len(cell.zoo) * (len(cell.zoo) + 1) // 2
    shards = -(-SHARDS_PER_WORKER * cell.resources.workers // pairs)
    block, tiles = _fitting(spec, a, b, partial(_cut, spec, a, b, least, shards))
    stage = pair_stage(spec, side_a, side_b)
    rounds = (
        Round(name=TILES, rows=len(tiles), shard_rows=1),
        Round(name=RESCORE, rows=a.forward.rows, shard_rows=spec.shard_rows),
        Round(name=BUDDIES, rows=1, shard_rows=1),
    )
    effort: dict[str, JsonValue] = {
        "a": side_a.described,
        "b": side_b.described,
        "tiles": [[tile.model_dump(mode="json") for tile in shard] for shard in tiles],
        "images_at_once": block,
        "cache_gb": spec.cache_gb,
        "budget_bytes": int(budget),
    }
    return Plan(stage=stage, rounds=rounds, worker=f"mine_rosetta pair {stage.digest}", effort=effort)


def _map_flops(known: Known, member: Member) -> int:
    """What the maps of one image cost, as FLOP of a product: to compute unless they are kept, and to standardise."""
    return MAP_FLOPS * member.map_numbers + (0 if member.cached else known.models[member.model].flops)


def pair_stage(spec: MineRosettaSpec, side_a: Side, side_b: Side) -> StageSpec:
    """Neighbours, buddies and null of two members, or of one with itself."""
    a, b, same = side_a.member, side_b.member, side_a.units == side_b.units
    return StageSpec(
        kind="mine_rosetta",
        method=METHODS["pair"],
        subject=a.model if same else f"{a.model}{PAIR}{b.model}",
        output="pair",
        params={
            "between": _of(a) if same else f"{_of(a)} and {_of(b)}",
            "grid": spec.grid if isinstance(spec.grid, str) else list(spec.grid),
            "k": list(spec.k),
            "rank_by": spec.rank_by,
            "min_r": spec.min_r,
            "margin": spec.margin,
            "precision": spec.precision,
            "chance": spec.chance,
            "chance_shift": spec.chance_shift,
            "rare": spec.rare,
            "shares_training": share_targets([a.model, b.model]),
        },
        inputs={"a": side_a.units, "b": side_b.units},
    )


def _of(member: Member) -> str:
    return "neurons" if member.sae is None else f"features of sae:{member.sae[:8]}"


def _check_generators(known: Known, a: Member, b: Member) -> None:
    if a.model != b.model and all(known.models[m.model].family == "generator" for m in (a, b)):
        raise BadSpec(
            f"model: {a.model} and {b.model} both draw images, so neither sees what the other draws; keep one generator"
        )


def _check_chance(spec: MineRosettaSpec, b: Member) -> None:
    rows = b.forward.rows
    if spec.chance_shift is not None and spec.chance_shift % rows == 0:
        raise BadSpec(
            f"chance_shift: {spec.chance_shift} of {rows} images sets each image against itself; expected no multiple of {rows}, such as "
            f"{rows // 2}"
        )
    oblong = [site for site in b.sites if site.grid[0] != site.grid[1]]
    if spec.chance == "shifted_rotated" and oblong:
        site = oblong[0]
        raise BadSpec(
            f"chance: shifted_rotated: {site.site} of {b.model} has a grid of {site.grid[0]}x{site.grid[1]}, which no quarter turn keeps; "
            "expected square grids; use chance: shifted, or other sites"
        )


def _cut(spec: MineRosettaSpec, a: Member, b: Member, least: float, shards: int, budget: float) -> Cut:
    """Images of a block, and the tiles of each shard, under a budget in bytes."""
    block = images_at_once(a, b, spec.batch_size, budget)
    return block, plan_tiles(a, b, spec.grid, budget, least, shards, -(-a.forward.rows // block) + 1)


def _fitting(spec: MineRosettaSpec, a: Member, b: Member, cut: Callable[[float], Cut]) -> Cut:
    """How a pair is cut under the budget of a spec. Raises BadSpec: it does not fit; the message says what would do."""

    def needed(found: Cut) -> int:
        return tiling_bytes(found[1], a, b, found[0], max(spec.k) + spec.margin)

    budget = spec.budget_gb * 2**30
    found = cut(budget)
    if needed(found) <= budget:
        return found
    enough = budget
    while needed(cut(enough)) > enough:
        enough *= 1.1
    raise BadSpec(
        f"budget_gb: the maps of {found[0]} images and the lists of {a.width} and {b.width} units take "
        f"{needed(found) / 2**30:.2f} GiB; expected at most budget_gb: {spec.budget_gb:g}; give budget_gb: "
        f"{math.ceil(enough / 2**30 * 100) / 100:g}, fewer sites, or a smaller k and margin"
    )


def _pair_memory(
    a: Member, b: Member, tiles: Sequence[Sequence[Tile]], block: int, neighbours: int, loading: int = 0
) -> int:
    """The most that a worker holds beside libraries and weights; loading: of a model, beside its weights."""
    waiting = tiling_bytes(tiles, a, b, 1, neighbours) + 4 * block * a.map_numbers + loading
    return max(waiting, tiling_bytes(tiles, a, b, block, neighbours), again_bytes(a, b, block, neighbours))


# ---------------------------------------------------------------- all members


def _zoo_plans(cell: Cell, known: Known) -> Iterator[Plan]:
    spec = cell.spec
    assert isinstance(spec, MineRosettaSpec)
    if missing := [model for model in cell.zoo if model not in known.models]:
        raise NotInspected(f"{missing[0]} is not inspected yet")
    _check_zoo(cell, known)
    members = [member for model in cell.zoo for member in find_members(cell, known, model)]
    zoo = zoo_stage(spec, cell.name, members)
    described: dict[str, JsonValue] = {"members": [member.model_dump(mode="json") for member in members]}
    yield Plan(
        stage=zoo,
        rounds=(Round(name=GRAPH, rows=1, shard_rows=1),),
        worker=f"mine_rosetta zoo {zoo.digest}",
        effort=described,
    )
    if spec.entries:
        rows = members[0].forward.rows
        stage = StageSpec(
            kind="mine_rosetta",
            method=METHODS["dictionary"],
            subject=zoo.subject,
            output="dictionary",
            params={name: zoo.params[name] for name in ("members", "grid")} | {"exemplars": spec.exemplars},
            inputs={"zoo": zoo.digest, **{k: v for k, v in zoo.inputs.items() if k.startswith("units.")}},
        )
        yield Plan(
            stage=stage,
            rounds=(
                Round(name=PEAKS, rows=rows, shard_rows=spec.shard_rows),
                Round(name=CHOOSE, rows=1, shard_rows=1),
                Round(name=MAPS, rows=len(members), shard_rows=1),
            ),
            worker=f"mine_rosetta dictionary {stage.digest}",
            effort={**described, "images_at_once": _blocks(spec, members), "cache_gb": spec.cache_gb},
        )


def _blocks(spec: MineRosettaSpec, members: Sequence[Member]) -> dict[str, JsonValue]:
    """Images that the members of each model have their maps of together."""
    of_models = {m.model: [one for one in members if one.model == m.model] for m in members}
    return {model: images_together(of, spec.batch_size, spec.budget_gb * 2**30) for model, of in of_models.items()}


def _check_zoo(cell: Cell, known: Known) -> None:
    spec = cell.spec
    assert isinstance(spec, MineRosettaSpec)
    if len(cell.zoo) < 2:
        raise BadSpec(f"model: {cell.zoo[0]} alone shares units with nobody; give at least two models")
    named = () if isinstance(spec.anchors, str) else spec.anchors
    if strange := [anchor for anchor in named if anchor not in cell.zoo]:
        raise BadSpec(f"anchors: {strange[0]} is not among the models; there are {', '.join(cell.zoo)}, all and none")
    for text in spec.sites:
        if not any(True for model in cell.zoo for _ in matching(known.models[model], text)):
            raise BadSpec(f"sites: {text}: no model of the zoo has a map there; `miclip sites MODEL` lists what it has")


def zoo_stage(spec: MineRosettaSpec, name: str, members: Sequence[Member]) -> StageSpec:
    """The graph over all pairs: which units many members share."""
    sides = [Side.of(spec, member) for member in members]
    inputs = {f"units.{i}": side.units for i, side in enumerate(sides)}
    for i, j in compared(members):
        inputs[f"pair.{i}.{j}"] = pair_stage(spec, sides[i], sides[j]).digest
    anchors = [i for i, member in enumerate(members) if _is_anchor(spec, member)]
    for i in anchors:
        inputs[f"self.{i}"] = pair_stage(spec, sides[i], sides[i]).digest
    return StageSpec(
        kind="mine_rosetta",
        method=METHODS["zoo"],
        subject=f"zoo-{name}",
        output="zoo",
        params={
            "members": [{"model": m.model, "sae": m.sae, "unit_kind": m.unit_kind} for m in members],
            "anchors": list(anchors),
            "k": list(spec.k),
            "grid": spec.grid if isinstance(spec.grid, str) else list(spec.grid),
            "rank_by": spec.rank_by,
            "rare": spec.rare,
            "tuples": spec.tuples,
            "min_clique": spec.min_clique,
            "most": spec.most,
            "entries_from": spec.entries_from,
            "entries": spec.entries,
            "shares_training": share_targets(m.model for m in members),
        },
        inputs=inputs,
    )


def compared(members: Sequence[Member]) -> list[tuple[int, int]]:
    """Places of the members of every pair: of two models, in their order."""
    return [(i, j) for i, j in combinations(range(len(members)), 2) if members[i].model != members[j].model]


# ---------------------------------------------------------------- plans read back


def member_of(plan: Plan, side: str = "a") -> Member:
    """A member that a plan holds: a or b of a pair."""
    return load_json(Member, canonical_json(plan.effort[side]))


def members_of(plan: Plan) -> tuple[Member, ...]:
    """The members of a zoo, from its plan."""
    found: Any = plan.effort["members"]
    return tuple(load_json(Member, canonical_json(member)) for member in found)


def unit_member_of(plan: Plan) -> Member:
    """The member of a plan of units."""
    return member_of(plan, "member")


def tiles_of(plan: Plan, shard: int) -> tuple[Tile, ...]:
    """The tiles of one shard of the first round of a pair."""
    tiles: Any = plan.effort["tiles"]
    return tuple(load_json(Tile, canonical_json(tile)) for tile in tiles[shard])


def rule_of(params: Mapping[str, Any]) -> Rule:
    """Where maps are compared, from the params of a pair."""
    grid = params["grid"]
    return "pairwise_max" if grid == "pairwise_max" else (int(grid[0]), int(grid[1]))


# ---------------------------------------------------------------- costs


def estimate(plan: Plan, known: Known) -> Estimate:
    """FLOPs of products and of maps that are computed, bytes of lists, and the budget that a worker keeps."""
    if plan.stage.output == "pair":
        return _estimate_pair(plan, known)
    if plan.stage.output == "units":
        member = unit_member_of(plan)
        facts = known.models[member.model]
        rows, passes = member.forward.rows, 1 if member.cached else 2
        return Estimate(
            images=rows,
            shared_flops=passes * rows * facts.flops,
            bytes=100 * member.width,
            memory=80 * member.width + 4 * int(str(plan.effort["images_at_once"])) * numbers_alone(member),
            worker_memory=LIBRARY_BYTES + 8 * facts.params,
            note=_note_on_maps(member, facts.flops),
        )
    members = members_of(plan)
    if plan.stage.output == "zoo":
        return Estimate(worker_memory=LIBRARY_BYTES + _zoo_memory(plan, members))
    rows = members[0].forward.rows
    blocks: Any = plan.effort["images_at_once"]
    largest = max(
        8 * known.models[model].params + 4 * blocks[model] * sum(numbers_alone(m) for m in members if m.model == model)
        for model in blocks
    )
    flops = sum(known.models[m.model].flops for m in members if not m.cached)
    return Estimate(images=rows, flops=rows * flops, worker_memory=LIBRARY_BYTES + largest)


def _zoo_memory(plan: Plan, members: Sequence[Member]) -> int:
    """What the graph takes if every unit has as many buddies in each other member as it may have."""
    params: Any = plan.stage.params
    k_a, k_b = params["k"]
    units = [member.width for member in members]
    edges = sum(min(k_a * units[a], k_b * units[b]) for a, b in compared(members))
    tuples = [params["most"] if params["tuples"] == "full" else units[m] for m in params["anchors"]]
    return zoo_bytes(sum(units), edges, len({member.model for member in members}), tuples)


def _estimate_pair(plan: Plan, known: Known) -> Estimate:
    a, b = member_of(plan, "a"), member_of(plan, "b")
    params: Any = plan.stage.params
    effort: Any = plan.effort
    rows, shards = a.forward.rows, plan.rounds[0].rows
    passes = {"a": shards + 1, "b": 2 * shards + 1}  # of the second model also with shifted images
    maps = sum(passes[side] * rows * known.models[m.model].flops for side, m in (("a", a), ("b", b)) if not m.cached)
    tiles = [tiles_of(plan, shard) for shard in range(shards)]
    weights = {model: 4 * known.models[model].params for model in (a.model, b.model)}
    neighbours = max(params["k"]) + params["margin"]
    held = _pair_memory(a, b, tiles, effort["images_at_once"], neighbours, max(weights.values()))
    return Estimate(
        images=rows,
        flops=2 * rows * pair_flops(a, b, rule_of(params)) + maps,
        bytes=60 * (a.width + b.width) * max(params["k"]),
        worker_memory=LIBRARY_BYTES + sum(weights.values()) + held,
        note=f"{shards} shards of tiles, {effort['images_at_once']} images at once" if shards > 1 else "",
    )


def _note_on_maps(member: Member, flops: int) -> str:
    size = map_bytes(member) / 2**30
    if member.cached:
        return f"each node keeps its maps, {size:.2f} GiB"
    return f"maps are computed where they are needed, {flops / 1e9:.2g} GFLOP per image; kept they would take {size:.2f} GiB"
