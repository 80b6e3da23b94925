"""The tables of docs from the lake that `python -m tests.planted_rosetta DIR` made; `python -m tests.planted_rosetta_tables DIR`."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from miclip_core.evaluate.significance import bootstrap_interval
from miclip_core.rosetta.cliques import maximal_cliques
from miclip_core.rosetta.graph import ZooGraph
from miclip_core.world.planted import VALUES
from tests.planted_rosetta import (
    CLEAR,
    FOUR,
    MODELS,
    STRONG,
    Edges,
    Mined,
    Truth,
    alike,
    found_again,
    has_run,
    permuted,
    same,
    shuffled,
    truth_of,
)

ENOUGH = 6
KINDS = {
    **dict.fromkeys(MODELS[:5], "ViT"),
    **dict.fromkeys(MODELS[5:7], "CLIP ResNet"),
    **dict.fromkeys(MODELS[7:], "classifier"),
}
FLAGSHIP = "demo:clip-p8"
Pairs = Sequence[tuple[str, str]]


def share(values: np.ndarray, counted: bool = False) -> str:
    """A mean with its 95 % interval over what it is a mean of, and their number."""
    if not len(values):
        return ""
    text = f"{values.mean():.2f}"
    if len(values) >= ENOUGH:
        low, high = bootstrap_interval(values)
        text += f" ({low:.2f} to {high:.2f})"
    return f"{text}, {len(values)}" if counted else text


def mean(values: np.ndarray) -> str:
    """A mean, if there is one."""
    return f"{values.mean():.2f}" if len(values) else ""


def row(*cells: object) -> str:
    """One line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def head(cells: str) -> str:
    """The first two lines of a table, from titles with bars between them."""
    titles = [cell.strip() for cell in cells.split("|")]
    return f"{row(*titles)}\n|{'---|' * len(titles)}"


def title(member: str) -> str:
    """A member for people."""
    return f"`{member.split(' ')[0].removeprefix('demo:')}`" + (" features" if " " in member else "")


def above(edges: Edges) -> Edges:
    """Edges that place and chance do not explain."""
    return edges.where(~edges.below.astype(bool))


def strong(edges: Edges) -> Edges:
    """Those of them above STRONG."""
    return above(edges.where(edges.r > STRONG))


def nearest_only(k: int) -> Callable[[Edges], Edges]:
    """Buddies of K = 1, or all of them."""
    return (lambda e: e.mutual) if k == 1 else (lambda e: e)


class Run:
    """A run and what its units stand for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.mined = Mined(folder, name)
        self.truth: Truth = truth_of(self.mined)
        self.neurons = [member for member in self.mined.members if " " not in member]

    @cached_property
    def r_of(self) -> dict[tuple[int, int], float]:
        """r of every edge, by its units ascending."""
        edges = [self.mined.edges(a, b) for a, b in self.mined.pairs()]
        return {(min(a, b), max(a, b)): r for e in edges for a, b, r in zip(e.a.tolist(), e.b.tolist(), e.r.tolist(), strict=True)}  # fmt: skip

    def both_selective(self, edges: Edges) -> Edges:
        """Edges whose units both stand for a value."""
        chosen = self.truth.selective_U
        return edges.where(chosen[edges.a] & chosen[edges.b])

    def together(self, pairs: Pairs, values: Callable[[Edges], np.ndarray]) -> np.ndarray:
        """The values of the edges of several pairs."""
        return np.concatenate([values(self.mined.edges(a, b)) for a, b in pairs])

    def same(self, edges: Edges) -> np.ndarray:
        """Whether both tell the same value best."""
        return same(self.truth.value_U, edges)

    def shuffled(self, edges: Edges) -> np.ndarray:
        """The same of permuted partners."""
        return shuffled(self.truth.value_U, edges, self.mined.site_U)

    def alike(self, edges: Edges) -> np.ndarray:
        """Correlation of what both tell."""
        return alike(self.truth.profile_UM, edges)

    def permuted(self, edges: Edges) -> Edges:
        """With permuted partners."""
        return permuted(edges, self.mined.site_U, np.random.default_rng(0))


def groups(run: Run) -> Iterator[tuple[str, Pairs]]:
    """Single pairs of four models, then all pairs of neurons by architecture and training, then features."""
    pairs = [pair for pair in run.mined.pairs() if set(pair) <= set(run.neurons)]
    of = defaultdict(list)
    for a, b in pairs:
        of[f"{KINDS[a]} x {KINDS[b]}"].append((a, b))
    yield from ((f"{title(a)} x {title(b)}", [(a, b)]) for a, b in pairs if {a, b} <= set(FOUR))
    yield from ((f"{name} ({len(some)})", some) for name, some in of.items())
    yield f"all ({len(pairs)})", pairs
    for other in set(run.mined.members) - set(run.neurons):
        some = [pair for pair in run.mined.pairs() if other in pair]
        yield f"features x neurons ({len(some)})", some


# ---------------------------------------------------------------- pairs


PICKS: dict[str, Callable[[Edges], Edges]] = {"1": nearest_only(1), "5": nearest_only(5), "best of 5": lambda e: e.best}


def concepts_table(run: Run, again: Run | None) -> Iterator[str]:
    """Share of buddies that stand for the same value."""
    yield head(
        "pairs | K | buddies | median r | above .7 | same value: all | above .7 | permuted | second images | both stand for a value, above .7 | permuted | second images"
    )
    for name, pairs in groups(run):
        for k, pick in PICKS.items():
            if (k == "5" and name.startswith("`")) or (k == "best of 5" and not name.startswith("all")):
                continue

            def of(values: Callable[[Edges], np.ndarray], here: Run = run, pick: Callable = pick) -> np.ndarray:
                return here.together(pairs, lambda e: values(pick(above(e))))  # noqa: B023

            r = of(lambda e: e.r)
            yield row(
                name, k, len(r), f"{np.median(r):.2f}", int((r > STRONG).sum()),
                share(of(run.same)),
                share(of(lambda e: run.same(strong(e)))),
                share(of(lambda e: run.shuffled(strong(e)))),
                share(of(lambda e: again.same(strong(e)), again)) if again else "",
                share(of(lambda e: run.same(run.both_selective(strong(e)))), True),
                share(of(lambda e: run.shuffled(run.both_selective(strong(e))))),
                share(of(lambda e: again.same(again.both_selective(strong(e))), again), True) if again else "",
            )  # fmt: skip


def chance_table(run: Run) -> Iterator[str]:
    """What chance gives, and other ways to say what a unit tells."""
    yield head("pairs | K = 5 below the null | q999 of the null | buddies, K = 1 | under the null | above .7 by mean activation: same value | above .7: profiles alike | permuted")  # fmt: skip
    for name, pairs in groups(run):
        if name.startswith("`"):
            continue
        q999, buddies, null = np.array([run.mined.chance(*pair) for pair in pairs]).T
        below = run.together(pairs, lambda e: e.below.astype(float))
        yield row(
            name, f"{below.mean():.3f}", f"{q999.min():.2f} to {q999.max():.2f}", int(buddies.sum()), int(null.sum()),
            share(run.together(pairs, lambda e: same(run.truth.mean_value_U, strong(e)))),
            share(run.together(pairs, lambda e: run.alike(strong(e)))),
            share(run.together(pairs, lambda e: run.alike(run.permuted(strong(e))))),
        )  # fmt: skip


# ---------------------------------------------------------------- cliques


def cliques_by_size(run: Run, k: int) -> dict[int, tuple[int, np.ndarray, np.ndarray, np.ndarray, float]]:
    """Size -> how many; of those that share no unit with a larger or stronger one: min r, whether all units tell one value
    best, the same of cliques whose units all stand for a value, and the share of one value when units are permuted."""
    value_U, selective_U = run.truth.value_U, run.truth.selective_U
    of: dict[int, list[tuple[np.ndarray, float]]] = defaultdict(list)
    taken: set[int] = set()
    count: Counter[int] = Counter()
    for ids, low, _ in run.mined.cliques(k):
        count[len(ids)] += 1
        if not taken.intersection(ids.tolist()):
            taken.update(ids.tolist())
            of[len(ids)].append((ids, low))
    found, rng = {}, np.random.default_rng(0)
    for size, n in count.items():
        ids_CS = np.array([units for units, _ in of[size]], np.int64).reshape(-1, size)
        whole = np.array([len(set(value_U[units])) == 1 for units in ids_CS], float)
        by_chance = float(np.mean([_by_chance(run, ids_CS, rng) for _ in range(20)])) if len(ids_CS) > 1 else np.nan
        found[size] = n, np.array([low for _, low in of[size]]), whole, whole[selective_U[ids_CS].all(1)], by_chance
    return found


def _by_chance(run: Run, ids_CS: np.ndarray, rng: np.random.Generator) -> float:
    """Share of cliques of one value where each unit's place is taken by a unit of another clique from the same site."""
    flat = ids_CS.ravel()
    mixed, sites = flat.copy(), np.char.add(run.mined.member_U[flat].astype(str), run.mined.site_U[flat].astype(str))
    for site in np.unique(sites):
        at = np.flatnonzero(sites == site)
        mixed[at] = flat[rng.permutation(at)]
    value = run.truth.value_U[mixed].reshape(ids_CS.shape)
    return float((value == value[:, :1]).all(1).mean())


def cliques_table(run: Run, again: Run | None) -> Iterator[str]:
    """How many cliques, and whether they stand for one value."""
    yield head("K | models | cliques | disjoint | median of min r | one value | permuted | all units stand for a value: one value | second images: one value | all units stand for a value")  # fmt: skip
    for k in (1, 5):
        other = cliques_by_size(again, k) if again else {}
        for size, (n, lows, whole, selective, by_chance) in sorted(cliques_by_size(run, k).items()):
            second = [share(some, True) for some in other[size][2:4]] if size in other else ["", ""]
            yield row(k, size, n, len(lows), f"{np.median(lows):.2f}" if len(lows) else "", share(whole), f"{by_chance:.2f}", share(selective, True), *second)  # fmt: skip


def cliques_of_a_value(run: Run, k: int, least: float, models: int) -> list[np.ndarray]:
    """Cliques of at least so many models whose edges are all above some r and whose units all stand for the same value."""
    edges = [nearest_only(k)(run.both_selective(above(run.mined.edges(a, b)))) for a, b in run.mined.pairs()]
    edges = [e.where((e.r > least) & (run.same(e) > 0)) for e in edges]
    a, b, r = (np.concatenate([e[i] for e in edges]) for i in range(3))
    member = np.array([run.mined.members.index(name) for name in run.mined.member_U], np.int32)
    graph = ZooGraph(member, np.stack([np.minimum(a, b), np.maximum(a, b)], 1).astype(np.int32), r)
    return [units[units >= 0] for units in maximal_cliques(graph, models).vertices]


def values_tables(run: Run) -> Iterator[str]:
    """Which planted values buddies and cliques stand for, at two bounds; and the largest clique of every value."""
    yield head(f"what | at r > {CLEAR} | at r > {STRONG}")
    of = {models: {least: {k: cliques_of_a_value(run, k, least, models) for k in (1, 5)} for least in (CLEAR, STRONG)} for models in (2, 3, 4, 5)}  # fmt: skip
    for models, by_bound in of.items():
        for k in (1, 5):
            yield row(f"{models} models or more, K = {k}", *(_by_category(run, some[k]) for some in by_bound.values()))
    yield "\n" + head(f"value | cliques, K = 5, r > {CLEAR} | disjoint | most models | largest min r of these | models")
    by_value: dict[int, list[np.ndarray]] = defaultdict(list)
    for units in of[3][CLEAR][5]:
        by_value[run.truth.value_U[units[0]]].append(units)
    for value, (category, name) in enumerate(VALUES):
        cliques = by_value[value]
        apart: set[int] = set()
        disjoint = [apart.update(units.tolist()) for units in cliques if not apart.intersection(units.tolist())]
        largest = max(cliques, key=len, default=np.empty(0, np.int64))
        most = [units for units in cliques if len(units) == len(largest)]
        yield row(f"{category} {name}", len(cliques), len(disjoint), len(largest), f"{max(_min_r(run, units) for units in most[:50]):.2f}" if most else "", ", ".join(title(member) for member in run.mined.member_U[largest]))  # fmt: skip


def _min_r(run: Run, units: np.ndarray) -> float:
    """The smallest r inside a clique."""
    a, b = (units[i] for i in np.triu_indices(len(units), 1))
    return min(run.r_of[min(pair), max(pair)] for pair in zip(a.tolist(), b.tolist(), strict=True))


def _by_category(run: Run, cliques: Sequence[np.ndarray]) -> str:
    values = {int(run.truth.value_U[units[0]]) for units in cliques}
    counts = Counter(VALUES[value][0] for value in sorted(values))
    return f"{len(values)} of {len(VALUES)}: " + ", ".join(f"{n} {category}" for category, n in counts.items())


# ---------------------------------------------------------------- place, features, selectivity, anchors


def place_table(run: Run, rotated: Run | None) -> Iterator[str]:
    """Whether the null tells pairs of units that answer to a place from others, over four models."""
    yield head("place explains of both at least | buddies | median r | median place_r | its 90 % | below the null | rotated: median place_r | below the null | same value: above the null | below")  # fmt: skip
    pairs = [pair for pair in run.mined.pairs() if set(pair) <= set(FOUR)]
    for low, high in ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 1.0)):

        def of(values: Callable[[Edges], np.ndarray], here: Run = run, low: float = low, high: float = high) -> np.ndarray:  # fmt: skip
            def inside(e: Edges) -> np.ndarray:
                least = np.minimum(here.truth.place_U[e.a], here.truth.place_U[e.b])
                return values(e.where((least >= low) & (least < high)))

            return here.together(pairs, inside)

        place_r, below, right = of(lambda e: e.place_r), of(lambda e: e.below.astype(float)), of(run.same)
        turned = [f"{np.median(of(lambda e: e.place_r, rotated)):.2f}", share(of(lambda e: e.below.astype(float), rotated))] if rotated else ["", ""]  # fmt: skip
        yield row(f"{low} to {high}", len(below), f"{np.median(of(lambda e: e.r)):.2f}", f"{np.median(place_r):.2f}", f"{np.quantile(place_r, 0.9):.2f}", share(below), *turned, share(right[below == 0]), share(right[below > 0], True))  # fmt: skip


def features_table(run: Run) -> Iterator[str]:
    """Features of an SAE beside the neurons of the same model: how well other models know them."""
    yield head("units of `clip-p8` | compared | stand for a value | median r of the nearest elsewhere | above .5 | above .7 | it tells the same value: above .5 | above .7 | with a buddy, K = 1")  # fmt: skip
    rows = run.mined.sql.execute("SELECT id FROM shared WHERE k = 1 AND degree > 0").fetchnumpy()
    for member in (m for m in run.mined.members if m.startswith(FLAGSHIP) and m.removeprefix(FLAGSHIP)[:1] in ("", " ")):  # fmt: skip
        best = [nearest(run, member, other) for other in run.neurons if other != FLAGSHIP]
        ids = np.unique(np.concatenate([edges.a for edges in best]))
        for name, chosen in (("all", run.truth.auroc_U >= 0), ("that stand for a value", run.truth.selective_U)):
            edges = [e.where(chosen[e.a]) for e in best]
            r, right = np.concatenate([e.r for e in edges]), np.concatenate([run.same(e) for e in edges])
            some = ids[chosen[ids]]
            yield row(f"{'features' if ' ' in member else 'neurons'}, {name}", len(some), mean(run.truth.selective_U[some]), f"{np.median(r):.2f}", share((r > CLEAR).astype(float)), share((r > STRONG).astype(float)), share(right[r > CLEAR], True), share(right[r > STRONG], True), share(np.isin(some, rows["id"]).astype(float)))  # fmt: skip


def nearest(run: Run, a: str, b: str) -> Edges:
    """The nearest unit of b to each unit of a."""
    query = "SELECT a, b, r FROM neighbours WHERE first = ? AND second = ? AND rank = 0 ORDER BY a"
    a_E, b_E, r_E = run.mined.sql.execute(query, [a, b]).fetchnumpy().values()
    none = np.zeros(len(r_E))
    return Edges(a_E, b_E, r_E, none, none, none, none)


def selectivity_table(run: Run) -> Iterator[str]:
    """Shared units beside others: how selective they are; and whether their number follows that of units."""
    yield head("member | units | shared, K = 1 | with 3 or more | median kurtosis: shared | others | median active share: shared | others | stand for a value: shared | others")  # fmt: skip
    rows = run.mined.sql.execute("SELECT id, degree, kurtosis, active FROM shared WHERE k = 1 ORDER BY id").fetchnumpy()
    ids, degree, counts = rows["id"], rows["degree"], []
    for member in run.mined.members:
        of = run.mined.member_U[ids] == member
        yes, no = of & (degree > 0), of & (degree == 0)
        counts += [(of.sum(), yes.sum())] * (" " not in member)
        medians = [f"{np.nanmedian(np.ma.filled(rows[name][some], np.nan)):.2f}" for name in ("kurtosis", "active") for some in (yes, no)]  # fmt: skip
        yield row(title(member), of.sum(), f"{yes.sum()} ({yes.sum() / of.sum():.2f})", (of & (degree >= 3)).sum(), *medians, *(share(run.truth.selective_U[ids[some]].astype(float)) for some in (yes, no)))  # fmt: skip
    x, y = np.log(np.array(counts, float)).T
    draws = np.random.default_rng(0).integers(len(x), size=(2000, len(x)))
    slopes = [np.polyfit(x[d], y[d], 1)[0] for d in draws if np.ptp(x[d]) > 0]
    low, high = np.quantile(slopes, [0.025, 0.975])
    yield f"\nlog-log slope over {len(counts)} models {np.polyfit(x, y, 1)[0]:.2f} ({low:.2f} to {high:.2f}), correlation {np.corrcoef(x, y)[0, 1]:.2f}"


def anchors_table(run: Run) -> Iterator[str]:
    """Tuples of all anchors, how far they agree, and clusters; the largest components."""
    sql, truth = run.mined.sql, run.truth
    yield head("anchor | tuples | median of mean r | of min r | units that tell the anchor's value, if it stands for one | mean Jaccard | clusters | of one unit | largest | split | of several: one value")  # fmt: skip
    for member in run.mined.members:
        tuples = sql.execute("SELECT anchor, any_value(mean_r), any_value(min_r), list(id) FROM tuples WHERE first = ? GROUP BY anchor, tuple", [member]).fetchall()  # fmt: skip
        jaccard = [r for (r,) in sql.execute("SELECT jaccard FROM rosetta_anchors WHERE ? IN (name(model_a, sae_a), name(model_b, sae_b))", [member]).fetchall() if r is not None]  # fmt: skip
        clusters = sql.execute("SELECT any_value(size), bool_or(is_split), list(id) FROM clusters WHERE first = ? GROUP BY cluster", [member]).fetchall()  # fmt: skip
        if not tuples:
            continue
        sizes = np.array([size for size, _, _ in clusters])
        pure = np.array([len(set(truth.value_U[ids])) == 1 for size, _, ids in clusters if size > 1], float)
        right = np.array([(truth.value_U[ids] == truth.value_U[a]).mean() for a, _, _, ids in tuples if truth.selective_U[a]])  # fmt: skip
        low, middle = (np.median([t[i] for t in tuples]) for i in (2, 1))
        yield row(title(member), len(tuples), f"{middle:.2f}", f"{low:.2f}", share(right, True), f"{np.mean(jaccard):.3f}" if jaccard else "", len(sizes), (sizes == 1).sum(), sizes.max(), sum(split for _, split, _ in clusters), share(pure, True))  # fmt: skip
    for k in (1, 5):
        rows = sql.execute("SELECT DISTINCT component, units, models, round(density::DOUBLE, 3), longest_path FROM rosetta_components WHERE k = ? ORDER BY 1 LIMIT 3", [k]).fetchall()  # fmt: skip
        yield f"\ncomponents of K = {k} (number, units, models, density, longest path): {rows}"


# ---------------------------------------------------------------- settings


def settings_table(folder: Path, base: Run, again: Run) -> Iterator[str]:
    """Other settings on four models: which buddies are those of the first setting, of other images, and stand for one value."""
    yield head("setting | K | buddies | median r | above .7 | above .7: also with 1,000 images | all | above .7: same value | above .7: found on other images | all")  # fmt: skip
    runs = {"1,000 images": ("all", "again"), "200 images": ("four-200", "four-200-again"), "1,600 images": ("four-1600", "four-1600-again"), "grid 4 x 4": ("four-grid", ""), "fp16": ("four-fp16", "")}  # fmt: skip
    for name, (first, second) in runs.items():
        if not has_run(folder, first):
            continue
        one = base if first == "all" else Run(folder, first)
        two = again if second == "again" else Run(folder, second) if has_run(folder, second or "-") else None
        pairs = [pair for pair in one.mined.pairs() if set(pair) <= set(FOUR)]
        for k in (1, 5):
            edges, beside, others = ([one.mined.renumbered(run.mined, nearest_only(k)(above(run.mined.edges(a, b)))) for a, b in pairs] if run else [] for run in (one, base, two))  # fmt: skip
            high = [strong(e) for e in edges]
            r = np.concatenate([e.r for e in edges])
            kept = [share(np.concatenate([found_again(x, y) for x, y in zip(some, other, strict=True)])) if other else "" for some, other in ((high, beside), (edges, beside), (high, others), (edges, others))]  # fmt: skip
            yield row(name, k, len(r), f"{np.median(r):.2f}", len(np.concatenate([e.r for e in high])), *kept[:2], share(np.concatenate([one.same(e) for e in high])), *kept[2:])  # fmt: skip
    if has_run(folder, "four-fp16"):
        yield "\nfp16 against fp32: " + _precision(base, Run(folder, "four-fp16"))


def _precision(base: Run, other: Run) -> str:
    """Whether neighbours, their order and r of another precision are the same."""
    rows = []
    for run in (base, other):
        names = ", ".join(f"'{model}'" for model in FOUR)
        rows.append(run.mined.sql.execute(f"SELECT first, second, (x.site, x.unit)::VARCHAR, rank, (y.site, y.unit)::VARCHAR, r, is_exact FROM neighbours n JOIN units x ON x.id = a JOIN units y ON y.id = b WHERE first IN ({names}) AND second IN ({names}) AND first <> second ORDER BY 1, 2, 3, 4").fetchall())  # fmt: skip
    equal = np.mean([x[:5] == y[:5] for x, y in zip(*rows, strict=True)])
    apart = max(abs(x[5] - y[5]) for x, y in zip(*rows, strict=True))
    return f"{len(rows[0])} neighbours, alike {equal:.6f}, largest difference of r at a rank {apart:.1e}, not certain {sum(not x[6] for x in rows[0])} and {sum(not x[6] for x in rows[1])}"


def main() -> None:
    """Print everything."""
    folder = Path(sys.argv[1])
    run = Run(folder, "all")
    again = Run(folder, "again") if has_run(folder, "again") else None
    rotated = Run(folder, "four-rotated") if has_run(folder, "four-rotated") else None
    for table in (
        concepts_table(run, again), chance_table(run), cliques_table(run, again), values_tables(run), place_table(run, rotated), features_table(run),
        selectivity_table(run), anchors_table(run), settings_table(folder, run, again) if again else (),
    ):  # fmt: skip
        for line in table:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
