"""What of the planted concepts the models of the demo zoo share; `python -m tests.planted_rosetta DIR` mines them, every setting a run
of the lake DIR, and `python -m tests.planted_rosetta_tables DIR` prints the tables of docs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import torch
from torch import Tensor

from cluster.inputs import StoreInputs
from cluster.stores.base import make_store
from jobs.sae_files import WEIGHTS
from miclip_core.intervene.edits import Neurons
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from miclip_core.world.planted import VALUES
from miclip_core.zoo.edits import rows_of
from schemas.pipeline_spec import PipelineSpec
from tests.lakes import Lake
from tests.planted_concepts import JUDGE, SELECTIVE, drawn, make_units, open_model

MODELS = (
    "demo:clip-p8",
    "demo:clip-p8-b",
    "demo:siglip-p8",
    "demo:clip-p16",
    "demo:vit-dense",
    "demo:clip-rn",
    "demo:clip-rn-typo",
    "demo:resnet-sup",
    "demo:resnet-sup-wm",
)
FOUR = ("demo:clip-p8", "demo:clip-p8-b", "demo:clip-p16", "demo:clip-rn")
"""Models that settings are compared on."""
STRONG, CLEAR = 0.7, 0.5
"""From which r on buddies count as strong, and a value as covered."""
SEEN = 1000
SAE: dict[str, Any] = {
    "patches": {
        "kind": "extract",
        "model": "demo:clip-p8",
        "images": {"ref": "world:seed=3,n=2000"},
        "sites": ["resid_post.-2@patch"],
        "outputs": ["activations"],
    },
    "sae": {
        "kind": "train_sae", "reads": "patches", "arch": "batchtopk", "latents": 128, "k": 10, "lr": 2e-3, "steps": 800,
        "batch_tokens": 1024, "block_images": 16,
    },
}  # fmt: skip
"""The recipe of docs/truth.md, on images that nothing else sees."""


class Setting(NamedTuple):
    """One run: a seed of the world, how many images, which models, and fields of the stage."""

    seed: int = 0
    images: int = SEEN
    models: Sequence[str] = FOUR
    changes: Mapping[str, Any] = {}


ONE_ANCHOR = {"anchors": ["demo:clip-p8"]}
"""Where tuples and clusters are not looked at: one model is compared with itself, not all."""
SETTINGS = {
    "all": Setting(models=MODELS, changes={"reads": "sae"}),
    "again": Setting(seed=2, models=MODELS, changes={"reads": "sae", **ONE_ANCHOR}),
    "four-rotated": Setting(changes={**ONE_ANCHOR, "chance": "shifted_rotated"}),
    "four-fp16": Setting(changes={**ONE_ANCHOR, "precision": "fp16"}),
    "four-200": Setting(images=200, changes=ONE_ANCHOR),
    "four-200-again": Setting(seed=2, images=200, changes=ONE_ANCHOR),
    "four-grid": Setting(changes={**ONE_ANCHOR, "grid": [4, 4]}),
    "four-1600": Setting(images=1600, changes=ONE_ANCHOR),
    "four-1600-again": Setting(seed=2, images=1600, changes=ONE_ANCHOR),
}
"""Runs by the name of their pipeline."""


def mine(folder: Path, name: str, setting: Setting) -> None:
    """Run one setting to its end in a lake, through the real job; what is there is kept."""
    stages = SAE if "reads" in setting.changes else {}
    shared = {"kind": "mine_rosetta", "model": list(setting.models), "entries": 0, **setting.changes}
    spec = {
        "kind": "pipeline",
        "name": name,
        "images": {"ref": f"world:seed={setting.seed},n={setting.images}"},
        "stages": {**stages, "shared": shared},
    }
    report = Lake(folder).run(PipelineSpec.model_validate(spec, strict=False))
    assert report.state.status == "DONE", report.state


# ---------------------------------------------------------------- what was mined


class Edges(NamedTuple):
    """Buddies of two members, one row each: numbers of units, r, ranks from 0, what place alone explains, whether chance gives the rest."""

    a: np.ndarray
    b: np.ndarray
    r: np.ndarray
    rank_ab: np.ndarray
    rank_ba: np.ndarray
    place_r: np.ndarray
    below: np.ndarray

    def where(self, chosen: np.ndarray) -> Edges:
        """Some of them."""
        return Edges(*(column[chosen] for column in self))

    @property
    def mutual(self) -> Edges:
        """Those that are nearest to each other (K = 1)."""
        return self.where((self.rank_ab == 0) & (self.rank_ba == 0))

    @property
    def best(self) -> Edges:
        """Of each unit of a the buddy with the highest r, as tuples take them."""
        order = np.lexsort((self.b, -self.r, self.a))
        return self.where(order[np.unique(self.a[order], return_index=True)[1]])


VIEWS = (
    "CREATE MACRO name(model, sae) AS model || coalesce(' ' || sae, '')",
    "CREATE TABLE units AS SELECT row_number() OVER (ORDER BY name(model, sae), site, unit) - 1 AS id, name(model, sae) AS member, * FROM rosetta_units",
    *(
        f"CREATE TABLE {view} AS SELECT name(t.model_a, t.sae_a) AS first, name(t.model_b, t.sae_b) AS second, x.id AS a, y.id AS b, t.* FROM "
        f"rosetta_{view} t JOIN units x ON (x.member, x.site, x.unit) = (name(t.model_a, t.sae_a), t.site_a, t.unit_a) "
        "JOIN units y ON (y.member, y.site, y.unit) = (name(t.model_b, t.sae_b), t.site_b, t.unit_b)"
        for view in ("buddies", "neighbours")
    ),
    *(
        f"CREATE TABLE {view} AS SELECT u.id, t.* FROM rosetta_{table} t JOIN units u ON (u.member, u.site, u.unit) = (name(t.model, t.sae), t.site, t.unit)"
        for view, table in (("shared", "universality"), ("cliques", "cliques"))
    ),
    "CREATE TABLE tuples AS SELECT u.id, a.id AS anchor, a.member AS first, t.tuple, t.mean_r, t.min_r FROM rosetta_tuples t "
    "JOIN units u ON (u.member, u.site, u.unit) = (name(t.model, t.sae), t.site, t.unit) "
    "JOIN units a ON (a.member, a.site, a.unit) = (name(anchor_model, anchor_sae), anchor_site, anchor_unit)",
    "CREATE TABLE clusters AS SELECT u.id, u.member AS first, t.cluster, t.size, t.is_split FROM rosetta_clusters t "
    "JOIN units u ON (u.member, u.site, u.unit) = (name(anchor_model, anchor_sae), t.site, t.unit)",
)
"""Tables of a run with one number per unit instead of its names."""


def has_run(folder: Path, name: str) -> bool:
    """Whether a setting was mined in a lake."""
    return any((folder / "runs").glob(f"{name}-0*/tables.json"))


class Mined:
    """The tables of one run. Units have one number over all members; `member_U` and `site_U` say whose they are."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._edges: dict[tuple[str, str], Edges] = {}
        self.sql = duckdb.connect()
        cells = json.loads(sorted((folder / "runs").glob(f"{name}-0*"))[-1].joinpath("tables.json").read_text())[
            "stages"
        ]
        stages = ", ".join(f"'{digest}'" for digests in cells.values() for digest in digests)
        for path in sorted((folder / "tables").glob("rosetta_*")):
            self.sql.execute(
                f"CREATE VIEW {path.name} AS SELECT * FROM '{path}/**/*.parquet' WHERE stage IN ({stages})"
            )
        for view in VIEWS:
            self.sql.execute(view)
        columns = self.sql.execute("SELECT * FROM units ORDER BY id").fetchnumpy()
        self.units: dict[str, np.ndarray] = {name: np.ma.getdata(values) for name, values in columns.items()}
        self.member_U, self.site_U = self.units["member"], self.units["site"]
        self.members = sorted(set(self.member_U), key=_place_of_member)

    def edges(self, a: str, b: str) -> Edges:
        """Buddies of two members as they stand in the table, whichever comes first."""
        if (a, b) not in self._edges:
            self._edges[a, b] = self._read(a, b)
        return self._edges[a, b]

    def _read(self, a: str, b: str) -> Edges:
        query = "SELECT a, b, r, rank_ab, rank_ba, place_r, is_below_null FROM buddies WHERE first = ? AND second = ? ORDER BY 1, 2"
        found = Edges(*self.sql.execute(query, [a, b]).fetchnumpy().values())
        if len(found.a) or a == b:
            return found
        back = Edges(*self.sql.execute(query, [b, a]).fetchnumpy().values())
        return back._replace(a=back.b, b=back.a, rank_ab=back.rank_ba, rank_ba=back.rank_ab)

    def chance(self, a: str, b: str) -> tuple[float, int, int]:
        """The q999 of the null, and how many buddies of K = 1 there are, and are under the null."""
        query = "SELECT null_q999, buddies, buddies_null FROM rosetta_pairs WHERE k = 1 AND list_sort([?, ?]) = list_sort([name(model_a, sae_a), name(model_b, sae_b)])"
        return self.sql.execute(query, [a, b]).fetchall()[0]

    def renumbered(self, other: Mined, edges: Edges) -> Edges:
        """Edges of another run under the numbers that their units have here."""
        names = [list(zip(run.member_U, run.site_U, run.units["unit"], strict=True)) for run in (self, other)]
        number = {name: i for i, name in enumerate(names[0])}
        return edges._replace(a=np.array([number[names[1][i]] for i in edges.a], np.int64), b=np.array([number[names[1][i]] for i in edges.b], np.int64))  # fmt: skip

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All pairs of different members of different models."""
        for i, a in enumerate(self.members):
            for b in self.members[i + 1 :]:
                if a.split(" ")[0] != b.split(" ")[0]:
                    yield a, b

    def cliques(self, k: int) -> list[tuple[np.ndarray, float, float]]:
        """(numbers of units, min r, mean r) of each clique, the largest and strongest first."""
        query = "SELECT list(id ORDER BY id), any_value(min_r), any_value(mean_r) FROM cliques WHERE k = ? GROUP BY clique ORDER BY clique"
        return [(np.array(ids), low, mean) for ids, low, mean in self.sql.execute(query, [k]).fetchall()]

    def sae(self) -> Sae | None:
        """The SAE whose latents take part."""
        refs = {ref for ref in self.units["sae"] if isinstance(ref, str)}
        if not refs:
            return None
        (ref,) = refs
        inputs = StoreInputs(make_store(str(self.folder)))
        return load_sae(inputs.published(ref.removeprefix("sae:"), WEIGHTS))


def _place_of_member(member: str) -> tuple[int, int]:
    model, _, sae = member.partition(" ")
    return MODELS.index(model), len(sae)


# ---------------------------------------------------------------- what units stand for


@dataclass(frozen=True, eq=False)
class Truth:
    """Of every unit: the planted value it tells apart best on other images, by its largest or its mean activation on an
    image, with its AUROC there; and the share of its variance that its place alone explains.

    profile_UM: the AUROC of every unit for every value, by its largest activation.
    """

    value_U: np.ndarray
    auroc_U: np.ndarray
    mean_value_U: np.ndarray
    mean_auroc_U: np.ndarray
    place_U: np.ndarray
    profile_UM: np.ndarray

    @property
    def selective_U(self) -> np.ndarray:
        """Units that stand for a value."""
        return self.auroc_U > SELECTIVE


@torch.no_grad()
def _seen(member: str, sites: tuple[str, ...], sae: Sae | None) -> dict[str, tuple[Tensor, Tensor, np.ndarray]]:
    """Site -> largest and mean activation [N, U] on the images to judge on, and the share that place explains [U]."""
    model = open_model(member.split(" ")[0])
    pooled: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in sites}
    sums: dict[str, list[Tensor]] = {}
    for pixels in drawn(*JUDGE).pixels.split(200):
        for site, out in model.run(model.normalise(pixels), sites).items():
            rows = rows_of(model.facts.site(model.sites([site])[0].path), out)[0]
            if sae is not None:
                rows = sae.encode(rows.flatten(0, 1)).dense().unflatten(0, rows.shape[:2])
            pooled[site].append((rows.amax(1), rows.mean(1)))
            new = [rows.double().sum(0), rows.double().square().sum(0)]
            sums[site] = [x + y for x, y in zip(sums[site], new)] if site in sums else new
    n, found = len(drawn(*JUDGE).pixels), {}
    for site, parts in pooled.items():
        by_place_PU, squares_PU = sums[site][0] / n, sums[site][1] / n
        variance_U = squares_PU.mean(0) - by_place_PU.mean(0).square()
        place_U = by_place_PU.var(0, correction=0) / variance_U.clamp(min=1e-30)
        largest, mean = (torch.cat(part) for part in zip(*parts, strict=True))
        found[site] = largest, mean, place_U.numpy()
    return found


def judge(member: str, sites: tuple[str, ...], sae: Sae | None, path: Path) -> dict[str, np.ndarray]:
    """Per site AUROC [28, U] by the largest and by the mean activation, and the share that place explains; kept in a file."""
    if not path.exists():
        found = {}
        for site, (largest, mean, place_U) in _seen(member, sites, sae).items():
            for name, pooled in (("max", largest), ("mean", mean)):
                found[f"{site} {name}"] = make_units("", site, Neurons(), torch.empty(0), pooled[:, None]).auroc_MU
            found[f"{site} place"] = place_U
        np.savez(path, **found)
    with np.load(path) as kept:
        return dict(kept)


def truth_of(mined: Mined) -> Truth:
    """What all units of a run stand for."""
    sae = mined.sae()
    columns = [np.zeros(len(mined.member_U)) for _ in range(5)]
    profile_UM = np.zeros((len(mined.member_U), len(VALUES)))
    for member in mined.members:
        sites = tuple(sorted(set(mined.site_U[mined.member_U == member])))
        path = mined.folder / f"judged {member.replace(':', '-')}.npz"
        found = judge(member, sites, sae if " " in member else None, path)
        for site in sites:
            ids = np.flatnonzero((mined.member_U == member) & (mined.site_U == site))
            unit = mined.units["unit"][ids]
            largest, mean = found[f"{site} max"], found[f"{site} mean"]
            values = (largest.argmax(0), largest.max(0), mean.argmax(0), mean.max(0), found[f"{site} place"])
            for column, value in zip(columns, values, strict=True):
                column[ids] = value[unit]
            profile_UM[ids] = largest.T[unit]
    value_U, auroc_U, mean_value_U, mean_auroc_U, place_U = columns
    return Truth(
        value_U.astype(np.int64), auroc_U, mean_value_U.astype(np.int64), mean_auroc_U, place_U, profile_UM
    )  # fmt: skip


def same(value_U: np.ndarray, edges: Edges) -> np.ndarray:
    """Whether both units tell the same value best, float [edges]."""
    return (value_U[edges.a] == value_U[edges.b]).astype(float)


def alike(profile_UM: np.ndarray, edges: Edges) -> np.ndarray:
    """Correlation over values of what the two units tell apart, float [edges]."""
    x, y = (some - some.mean(1, keepdims=True) for some in (profile_UM[edges.a], profile_UM[edges.b]))
    return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def permuted(edges: Edges, site_U: np.ndarray, rng: np.random.Generator) -> Edges:
    """Units of b permuted among the edges into one site of b; edges that are alone in their site are left out."""
    parts = []
    for site in sorted(set(site_U[edges.b])):
        group = np.flatnonzero(site_U[edges.b] == site)
        if len(group) > 1:
            order = rng.permutation(group)
            parts.append(edges.where(order)._replace(b=edges.b[np.roll(order, 1)]))  # nothing stays where it was
    return Edges(*(np.concatenate(columns) for columns in zip(*parts, strict=True))) if parts else edges.where(np.zeros(len(edges.a), bool))  # fmt: skip


def shuffled(value_U: np.ndarray, edges: Edges, site_U: np.ndarray) -> np.ndarray:
    """Expected share of permuted edges whose units tell the same value best, per edge, float [permuted edges]: over all
    partners that others have in the same site."""
    found = [np.empty(0)]
    for site in sorted(set(site_U[edges.b])):
        group = np.flatnonzero(site_U[edges.b] == site)
        if len(group) > 1:
            equal = value_U[edges.a[group]][:, None] == value_U[edges.b[group]]
            np.fill_diagonal(equal, False)
            found.append(equal.sum(1) / (len(group) - 1))
    return np.concatenate(found)


def found_again(edges: Edges, again: Edges) -> np.ndarray:
    """Whether each edge is also among those of another run, float [edges]."""
    key = lambda some: some.a.astype(np.int64) << 32 | some.b  # noqa: E731
    return np.isin(key(edges), key(again)).astype(float)


def covered(values: np.ndarray) -> list[str]:
    """Names of planted values, ascending."""
    return [VALUES[value][1] for value in np.unique(values)]


def main() -> None:
    """Mine every setting, or those that are named."""
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or SETTINGS:
        mine(folder, name, SETTINGS[name])
        print(name, flush=True)


if __name__ == "__main__":
    main()
