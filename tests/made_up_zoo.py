"""Publishes tables about a zoo of models with made-up numbers, as the kind that compares units of models would have."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from cluster.stores.base import Store
from schemas.plans import StageSpec
from tests.made_up_saes import Rows, publish_rows, stage_of
from tests.made_up_units import reading

SITES = ("mlp_act.0@patch", "mlp_act.2@patch", "mlp_act.3@patch")
DEPTHS = (0.0, 0.5, 1.0)
KS = (5, 1)
ALL = ("units", "pair", "zoo", "dictionary")

Of = tuple[str, str | None]
"""Model and digest of an SAE."""


def models(count: int) -> list[Of]:
    """So many models: two of the demo world, the others with long names."""
    names = ["demo:clip-p8", "demo:vit-p8", *(f"hf:some-laboratory/network-{i}" for i in range(2, count))]
    return [(name, None) for name in names[:count]]


def publish_zoo(
    store: Store,
    images: Rows,
    members: Sequence[Of],
    units: int = 12,
    entries: int = 4,
    exemplars: int = 3,
    grid: int = 8,
    name: str = "shared",
    outputs: Collection[str] = ALL,
    shares_training: bool | None = True,
) -> list[StageSpec]:
    """Tables of these outputs. units: of each site. Unit u of a site is a buddy of unit u of the same site of every other member."""
    stages: list[StageSpec] = []
    measured = [stage_of("mine_rosetta", "units", of[0], sae=of[1], units=units, geometry="square") for of in members]
    paired = {
        (i, j): reading(stage_of("mine_rosetta", "pair", f"{members[i]} x {members[j]}", units=units),
                        {"a": measured[i].digest, "b": measured[j].digest})
        for i, j in combinations(range(len(members)), 2)
    }  # fmt: skip
    params = {"members": [{"model": m, "sae": sae, "unit_kind": kind(sae)} for m, sae in members], "min_clique": 3}
    inputs = {f"units.{i}": stage.digest for i, stage in enumerate(measured)}
    inputs |= {f"pair.{i}.{j}": stage.digest for (i, j), stage in paired.items()}
    zoo = reading(stage_of("mine_rosetta", "zoo", f"zoo-{name}", **params), inputs)
    dictionary = reading(stage_of("mine_rosetta", "dictionary", f"zoo-{name}", **params), {**inputs, "zoo": zoo.digest})

    def add(stage: StageSpec, tables: dict[str, Rows]) -> None:
        if stage.output in outputs:
            publish_rows(store, stage, tables)
            stages.append(stage)

    for of, stage in zip(members, measured):
        add(stage, {"rosetta_units": make_units(of, units, grid)})
    for n, ((i, j), stage) in enumerate(paired.items()):
        add(stage, {"rosetta_pairs": make_pairs(members[i], members[j], units * len(SITES), n, shares_training)})
    add(zoo, {"rosetta_universality": make_universality(members, units), "rosetta_layers": make_layers(members, units),
              "rosetta_cliques": make_cliques(members, units), "rosetta_entries": make_entries(members, entries, shares_training)})  # fmt: skip
    add(dictionary, {"rosetta_exemplars": make_exemplars(members, entries, exemplars, grid, images)})
    return stages


def kind(sae: str | None) -> str:
    """What its units are."""
    return "features" if sae else "neurons"


def _one(of: Of, suffix: str = "") -> dict[str, Any]:
    return {f"model{suffix}": of[0], f"sae{suffix}": f"sae:{of[1]}" if of[1] else None}


def _unit(of: Of, site: str, unit: int) -> dict[str, Any]:
    return {**_one(of), "unit_kind": kind(of[1]), "site": site, "unit": unit}


def make_units(of: Of, units: int, grid: int) -> list[dict[str, Any]]:
    """Units of three sites."""
    return [
        {**_unit(of, site, u), "depth": depth, "grid_h": grid, "grid_w": grid, "images": 24, "n": 24 * grid**2, "mean": 0.0, "sd": 1.0,
         "skewness": 1.0, "kurtosis": 2.0, "active": 0.2, "images_active": 12, "is_dead": False, "is_rare": False}
        for site, depth in zip(SITES, DEPTHS) for u in range(units)
    ]  # fmt: skip


def make_pairs(a: Of, b: Of, units: int, number: int, shares_training: bool | None) -> list[dict[str, Any]]:
    """With one neighbour half of the units are buddies above chance, and with five all of them twice; r falls from pair to pair."""
    r = 0.8 - 0.5 * number / (number + 4)
    return [
        {**_one(a, "_a"), **_one(b, "_b"), "k": k, "rule": "pairwise_max", "units_a": units, "units_b": units + 6, "images": 24,
         "buddies": units * (3 if k > 1 else 1), "buddies_null": units, "above_null": units * 2 if k > 1 else units // 2,
         "share_a": 0.9, "share_b": 0.7, "r_p50": r if k > 1 else r + 0.1, "r_p90": r + 0.15, "null_q999": 0.31, "null_p50": 0.1,
         "null_max": 0.33, "inexact": 0, "shares_training": shares_training}
        for k in KS
    ]  # fmt: skip


def make_universality(members: Sequence[Of], units: int) -> list[dict[str, Any]]:
    """Unit u is shared with u of the other models, at most with all; shared units have larger kurtosis."""
    others = len(members) - 1
    return [
        {**_unit(of, site, u), "k": k, "depth": depth, "degree": min(u, others) if k > 1 else min(u // 2, others), "models": others,
         "best_r": 0.8 if u else None, "kurtosis": 40.0 + u if u else 2.0, "active": 0.05 if u else 0.4}
        for of in members for site, depth in zip(SITES, DEPTHS) for u in range(units) for k in KS
    ]  # fmt: skip


def make_layers(members: Sequence[Of], units: int) -> list[dict[str, Any]]:
    """Buddies on the diagonal, one for each step below it and two above."""
    return [
        {"k": k, **_one(a, "_a"), "site_a": SITES[i], "depth_a": DEPTHS[i], **_one(b, "_b"), "site_b": SITES[j], "depth_b": DEPTHS[j],
         "buddies": units * k if i == j else 2 if i < j else 1, "r_p50": 0.7}
        for a, b in combinations(members, 2) for k in KS for i in range(3) for j in range(3) if abs(i - j) <= 1
    ]  # fmt: skip


def make_cliques(members: Sequence[Of], units: int) -> list[dict[str, Any]]:
    """With five neighbours four cliques of all members and six of the first two; with one neighbour one of all."""
    found = []
    for k, sizes in ((5, [len(members)] * 4 + [2] * 6), (1, [len(members)])):
        for clique, size in enumerate(sizes):
            found += [{"k": k, "clique": clique, "size": size, **_unit(of, SITES[2], clique % units), "min_r": 0.5, "mean_r": 0.6 + 0.01 * clique,
                       "is_truncated": False} for of in members[:size]]  # fmt: skip
    return found


def make_entries(members: Sequence[Of], entries: int, shares_training: bool | None) -> list[dict[str, Any]]:
    """Entry e holds unit e of the last site of every member; entry 1 leaves out the last member; the second represents all."""
    return [
        {"entry": e, "origin": "clique", "models": len(of_entry(members, e)), "size": len(of_entry(members, e)), **_unit(of, SITES[2], e),
         "mean_r": 0.6 + 0.1 * (n == 1), "is_representative": n == 1, "shares_training": shares_training}
        for e in range(entries) for n, of in enumerate(of_entry(members, e))
    ]  # fmt: skip


def of_entry(members: Sequence[Of], entry: int) -> Sequence[Of]:
    """The members of an entry."""
    return members[:-1] if entry == 1 and len(members) > 2 else members


def make_exemplars(
    members: Sequence[Of], entries: int, exemplars: int, grid: int, images: Rows
) -> list[dict[str, Any]]:
    """A blob at (entry, rank) of every unit, wider in later members; negative elsewhere. Later images excite less."""
    rows = []
    y, x = np.mgrid[:grid, :grid]
    for e in range(entries):
        for rank in range(exemplars):
            image = images[(e * exemplars + rank) % len(images)]
            for n, of in enumerate(of_entry(members, e)):
                size = 4.0 - 0.5 * rank
                found = size * np.exp(-((y - e % grid) ** 2 + (x - rank % grid) ** 2) / (1.5 + n)) - 0.25
                rows.append({"entry": e, "rank": rank, "image_id": image["image_id"], "image_index": image["image_index"], "uri": image["uri"],
                             "score": size, **_unit(of, SITES[2], e), "peak": float(found.max()), "grid_h": grid, "grid_w": grid,
                             "map": found.ravel().tolist()})  # fmt: skip
    return rows


def publish_inversions(store: Store, images: Rows, steps: int = 20) -> list[StageSpec]:
    """Two images inverted from two starts each, with maps and by pixels alone, and one edit of the first; the second start is better."""
    found = []
    for edit, activation in ((None, 1.0), (None, 0.0), ("zoom 2", 1.0)):
        stage = stage_of(
            "invert", "inversions", "demo:generator", variant=edit or "inversion", settings={"activation": activation}
        )
        rows = [
            {"model": "demo:generator", "image_id": image["image_id"], "image_index": image["image_index"], "uri": image["uri"], "start": start,
             "edit": edit, "space": "z", "pairs": 30, "steps": steps, "loss": np.linspace(2, 1, steps + 1).tolist(),
             "act_sim": np.linspace(0.1, 0.5 + activation / 10, steps + 1).tolist(), "pixel_loss": np.geomspace(0.1, 0.01, steps + 1).tolist(),
             "latent": [0.0, 1.0], "psnr": 18.0 + start + activation, "ssim": 0.5, "lpips": None, "act_sim_before": 0.1,
             "act_sim_after": 0.5 + activation / 10, "is_best": start == 1 or edit is not None, "picture": make_png(start)}
            for image in (images[:1] if edit else images[:2]) for start in ((0,) if edit else (0, 1))
        ]  # fmt: skip
        publish_rows(store, stage, {"rosetta_inversions": rows})
        found.append(stage)
    return found


def make_png(number: int) -> bytes:
    """A picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", (16, 16), (40 * number, 90, 160)).save(data, "PNG")
    return data.getvalue()
